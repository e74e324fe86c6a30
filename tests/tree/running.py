"""What the tests of running trees share: a charter by script, and a short form of what a run came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flat.runtime.tree_steps import MachineStep
from flat.runtime.trees import TreeMachine, create_machine, run_machine
from flat.testing.executor import ScriptedExecutor
from flat.tree import (
    Cede,
    Charter,
    CommandCtx,
    CommandResult,
    Ctx,
    Instance,
    Node,
    Spawn,
    SpawnTarget,
    Suspend,
    TransitionTo,
    cede,
    command,
    command_result,
    spawn,
    suspend,
    tool,
    transition,
    transition_to,
)
from flat.tree.commands import ResumeResult, command_resume

ANY: Mapping[str, Any] = {"type": "object"}


@tool
def note(text: str, ctx: Ctx) -> str:
    """Write a note down."""
    ctx.update_state({"notes": [*ctx.state.get("notes", []), text]})
    return f"noted {text}"


@tool("Finish at once", terminal=True)
def finish() -> str:
    return "finished"


@tool("Fail")
def fail() -> str:
    raise RuntimeError("no paper")


@transition("Start one worker")
def hire(task: str) -> Spawn:
    return spawn(worker, {"task": task}, brief=f"Do {task}")


@transition("Start two workers")
def hire_two() -> Spawn:
    return spawn([SpawnTarget(worker, {"task": "a"}), SpawnTarget(helper, {"task": "b"})])


@transition("Start one worker in the background")
def hire_behind(task: str) -> Spawn:
    return spawn(worker, {"task": task}, background=True)


@transition("Open a sub desk")
def deepen() -> Spawn:
    return spawn(inner, {})


@transition("Open two sub desks")
def deepen_twice() -> Spawn:
    return spawn([SpawnTarget(inner, {}), SpawnTarget(inner, {})])


@transition("Become billing")
def bill() -> TransitionTo:
    return transition_to(billing, {"paid": False})


@transition("Hand over")
def report(text: str) -> Cede:
    return cede(text)


@transition("Wait for a person")
def wait() -> Suspend:
    return suspend("Please confirm", suspend_id="s1", metadata={"price": 7})


@transition("Break")
def broken() -> Spawn:
    raise RuntimeError("the transition is broken")


@command
def rename(name: str, ctx: CommandCtx) -> CommandResult:
    """Give it a name."""
    ctx.update_state({"name": name})
    return command_result({"named": name})


@command
def leave(ctx: CommandCtx) -> Cede:
    """Hand over at once."""
    return cede("by command")


@command
def crash(ctx: CommandCtx) -> CommandResult:
    """Write, then fail."""
    ctx.update_state({"name": "lost"})
    raise RuntimeError("stopped")


@command
def go_on(ctx: CommandCtx) -> ResumeResult:
    """Wait no more."""
    return command_resume("approved")


worker = Node(
    "Work.", ANY, name="worker", worker=True, tools=[note], transitions=[report, wait], commands=[leave]
)
helper = Node("Help.", ANY, name="helper", worker=True, tools=[note], transitions=[report, wait])
nudged = Node("Work on.", ANY, name="nudged", worker=True, on_end_turn="nudge", transitions=[report])
kept = Node("Stay.", ANY, name="kept", worker=True, on_end_turn="keep", transitions=[report])
strict = Node("Be strict.", ANY, name="strict", worker=True, on_end_turn="error", transitions=[report])
short = Node("Be short.", ANY, name="short", worker=True, max_steps=2, tools=[note], transitions=[report])
inner = Node("Inner desk.", ANY, name="inner", tools=[note], transitions=[report, wait])
billing = Node("Send the bill.", ANY, name="billing", initial_state={}, tools=[note])
desk = Node(
    "Plan.",
    ANY,
    name="desk",
    initial_state={},
    tools=[note, finish, fail],
    transitions=[hire, hire_two, hire_behind, deepen, deepen_twice, bill, report, wait, broken],
    commands=[rename, crash, go_on],
)
NODES = [desk, worker, helper, nudged, kept, strict, short, inner, billing]


def charter(*answers: Any, **options: Any) -> Charter:
    """The charter of these nodes, answered by script."""
    return Charter("office", executor=ScriptedExecutor(*answers), nodes=NODES, **options)


def machine(*answers: Any, children: Sequence[Instance[Any]] = (), **options: Any) -> TreeMachine[Any]:
    """A desk, answered by script."""
    return create_machine(charter(*answers), Instance(desk, {}, children, id="r"), **options)


def executor(of: TreeMachine[Any]) -> ScriptedExecutor:
    found = of.charter.executor
    assert isinstance(found, ScriptedExecutor)
    return found


async def steps(of: TreeMachine[Any], said: Any = None, **options: Any) -> list[MachineStep[Any]]:
    """All steps of a run."""
    return [step async for step in run_machine(of, said, **options)]


def told(found: Sequence[MachineStep[Any]]) -> list[tuple[str, bool]]:
    """Reason and end of each step."""
    return [(step.yield_reason, step.done) for step in found]


def roles(messages: Sequence[Any]) -> list[str]:
    """The history in short: roles, with the kind of a change and the text of what is said."""
    found = []
    for message in messages:
        if message.role == "instance":
            found.append(message.items.kind)
        elif isinstance(message.items, list) and message.items and message.items[0]["type"] == "tool_result":
            found.append("results")
        else:
            found.append(f"{message.role}:{message.text}")
    return found


def results(step: MachineStep[Any]) -> list[Any]:
    """The results of a step's tool calls."""
    found: list[Any] = []
    for message in step.history:
        items: Any = message.items
        if isinstance(items, list) and items and items[0]["type"] == "tool_result":
            found += items
    return found
