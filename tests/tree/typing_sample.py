"""What type checkers say of an author's code. Lines that must not pass end with `# error: <rule of mypy>`."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

import flat
from flat.tree import (
    Charter,
    CommandCtx,
    CommandResult,
    CommandRun,
    Ctx,
    Instance,
    Machine,
    MachineStep,
    Node,
    Pack,
    PackCtx,
    RunOptions,
    Spawn,
    Tool,
    TransitionTo,
    command,
    command_result,
    create_helpers,
    create_machine,
    create_node,
    run_command,
    run_machine,
    run_machine_to_completion,
    spawn,
    tool,
    transition,
    transition_to,
)


class Desk(BaseModel):
    legs: list[str] = []


class Watch(BaseModel):
    leg: str


@tool("Add one leg to the trip")
async def add_leg(city: str, ctx: Ctx[Desk]) -> str:
    legs: list[str] = ctx.model.legs
    ctx.update_state({"legs": [*legs, city]})
    ctx.update_state({"legs": []}, deep=True)
    ctx.replace_state(Desk(legs=[city]))
    ctx.replace_state({"legs": []})
    ctx.replace_state(Watch(leg=city))  # error: arg-type
    ctx.model.city  # error: attr-defined  # noqa: B018
    ctx.update_state(legs=[])  # error: call-arg
    return city


@tool(terminal=True, safe=True)
def count(n: int) -> int:
    return n + 1


@tool
def remember(note: str, ctx: PackCtx[Watch]) -> None:
    reveal: str = ctx.model.leg
    ctx.instance_id  # error: attr-defined  # noqa: B018
    ctx.update_state({"leg": reveal + note})


@transition("Start a fare watch")
def watch(state: Desk, leg: str) -> Spawn:
    return spawn(fare_watch, Watch(leg=leg), brief=state.legs[0])


@transition
def give_up(reason: str) -> TransitionTo:
    return transition_to(desk, Watch(leg=reason))  # error: misc


@command
def clear(ctx: CommandCtx[Desk], keep: int = 0) -> CommandResult:
    ctx.replace_state(Desk(legs=ctx.model.legs[:keep]))
    return command_result(keep)


desk = Node(
    "Plan the trip.",
    Desk,
    name="desk",
    tools=[add_leg, count],
    transitions={"watch": watch},
    commands=[clear],
)
fare_watch = Node("Watch.", Watch, worker=True, initial_state={"leg": ""})
loose = create_node(instructions="x", validator={"type": "object"}, tools={"count": count})
untyped = Node("x")
notes = Pack("notes", validator=Watch, tools=[remember], initial_state=Watch(leg=""))
charter = Charter("travel", nodes={"desk": desk, "watch": fare_watch}, packs=[notes])

typed: Node[Desk] = desk
wrong: Node[Watch] = desk  # error: assignment
made: Instance[Desk] = Instance(desk, Desk())
data: Instance[Desk] = Instance(desk, {"legs": []}, children=[Instance(fare_watch, Watch(leg="a"))])
Instance(desk, Watch(leg="a"))  # error: misc
Node("x", Desk, on_end_turn="later")  # error: arg-type
Node("x", Desk, worked=True)  # error: call-arg
Charter("x", nodes=[3])  # error: list-item

result: int = count(3)
count("three")  # error: arg-type
count(n=3, m=4)  # error: call-arg
text: str = count(3)  # error: assignment
spawned: Spawn = watch(Desk(), "Oslo")
watch(Watch(leg=""), "Oslo")  # error: arg-type
transition_to(desk, {"legs": []})
transition_to(desk, 3)  # error: misc
spawn([(desk, Desk()), (fare_watch, {"leg": "a"}), desk])
spawn(fare_watch, Desk())  # error: misc
create_helpers(fare_watch).transition_to(Watch(leg="a"))
create_helpers(fare_watch).transition_to(Desk())  # error: arg-type
any_tool: Tool[..., Any] = count


async def use() -> str:
    return await add_leg("Oslo", _context())


async def run() -> None:
    machine = create_machine(charter, Instance(desk, Desk()))
    legs: list[str] = (await run_machine_to_completion(machine, "Oslo")).instance.state.legs
    same: Machine[Desk] = machine
    other: Machine[Watch] = machine  # error: assignment
    await run_machine_to_completion("Oslo")  # error: arg-type
    create_machine("travel", Instance(desk, Desk()))  # error: arg-type
    async with run_machine(machine, "Rome", options=RunOptions(max_steps="3")) as steps:  # error: arg-type
        async for step in steps:
            seen: MachineStep[Desk] = step
            seen.nothing  # error: attr-defined  # noqa: B018
    done: CommandRun[Desk] = await run_command(same, "clear", {"keep": len(legs)})
    done.result = {}  # error: misc
    sure: flat.TreeMachine[Desk] = flat.create_machine(charter, Instance(desk, Desk()))
    flat.serialize_machine(charter)  # error: arg-type
    flat.run_machine_sync(sure, nothing=other)


def _context() -> Ctx[Desk]:
    raise NotImplementedError
