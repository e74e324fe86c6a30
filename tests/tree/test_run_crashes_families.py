"""Trees with packs, background workers and launched parts, and families of trees and machines of states: wherever the
process dies, they come to the same end, and nothing that was recorded is done again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import flat
from flat.agents.protocol import AgentRequest, AgentResult
from flat.drivers.clock import Clock
from flat.runtime.machine import Machine
from flat.runtime.treeload import tree_machine
from flat.testing.agents import ScriptedAgent
from flat.testing.crash import Scenario, folder_places, memory_places, sweep
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import (
    Charter,
    Ctx,
    Node,
    Pack,
    PackCtx,
    cede,
    machine_tool,
    spawn,
    tool,
    transition,
    transition_to,
)

pytestmark = pytest.mark.anyio

ANY: Mapping[str, Any] = {"type": "object"}


def last(request: AgentRequest) -> str:
    return str((request.messages or [{"content": ""}])[-1]["content"])


@transition("Hand over")
def report(text: str) -> Any:
    return cede(text)


# -- a tree with packs, a move, and a worker in the background ---------------------------------------


def office(ran: Callable[[str], None], *, safe: bool) -> Charter:
    @tool("Write a note down", safe=safe)
    def write(text: str, ctx: PackCtx) -> str:
        ran(ctx.idempotency_key)
        ctx.update_state({"notes": [*ctx.state["notes"], text]})
        return f"wrote {text}"

    @tool("Look", safe=safe)
    def look(at: str, ctx: Ctx) -> str:
        ran(ctx.idempotency_key)
        ctx.update_state({"seen": at})
        return f"saw {at}"

    @transition("Have somebody look")
    def send() -> Any:
        return spawn(scout, {}, brief="Look left", background=True)

    @transition("Become the second desk")
    def move() -> Any:
        return transition_to(second, {})

    def answer(request: AgentRequest) -> AgentResult:
        node, said = str(request.input["node"]), last(request)
        told = str(request.messages)
        if node == "scout":
            return say("Left is clear") if "saw" in said else say("", call("look", at="left"))
        if node == "first":
            if "wrote" not in told:
                return say("", call("write", text="one"), call("transition", to="send", id="t1"))
            return say("", call("transition", to="move", id="t2"))
        if "wrote two" in told and "Left is clear" in told:
            return say("Both are done.")
        return say("Waiting") if "wrote two" in told else say("", call("write", text="two", id="w2"))

    notebook = Pack(
        "notebook",
        description="Notes",
        validator={"type": "object", "properties": {"notes": {"type": "array"}}},
        initial_state={"notes": []},
        tools=[write],
    )
    scout = Node("Look.", ANY, name="scout", worker=True, tools=[look], transitions=[report])
    second = Node("Go on.", ANY, name="second", initial_state={}, packs=[notebook])
    first = Node("Begin.", ANY, name="first", initial_state={}, packs=[notebook], transitions=[send, move])
    return Charter("office", executor=ScriptedExecutor(answer), nodes=[first, second, scout])


# -- a tree with parts that are executions of their own ----------------------------------------------


def camp(ran: Callable[[str], None], *, safe: bool) -> Charter:
    @tool("Look", safe=safe)
    def look(at: str, ctx: Ctx) -> str:
        ran(ctx.idempotency_key)
        return f"saw {at}"

    @transition("Send a scout")
    def send(to: str) -> Any:
        return spawn(scout, {"to": to}, brief=f"Look at {to}", launch=True)

    def answer(request: AgentRequest) -> AgentResult:
        said = last(request)
        if request.input["node"] == "scout":
            return say("It is snow") if "saw" in said else say("", call("look", at="Oslo"))
        return say("Stay home.") if "snow" in said else say("", call("transition_send", to="Oslo"))

    scout = Node("Scout.", ANY, name="scout", worker=True, tools=[look])
    base = Node("Plan.", ANY, name="base", initial_state={}, transitions=[send])
    return Charter("camp", executor=ScriptedExecutor(answer), nodes=[base, scout])


# -- mixed projects ------------------------------------------------------------------------------------


def writer() -> dict[str, Any]:
    agent = {"spec": "flatagent", "data": {"model": {"name": "x"}, "user": "w"}}
    write = {
        "type": "initial", "agent": "writer", "input": {"for": "{{ context.customer }}"},
        "output_to_context": {"text": "{{ output.content }}"}, "transitions": [{"to": "end"}],
    }  # fmt: skip
    end = {"type": "final", "output": {"text": "{{ context.text }}"}}
    data = {
        "name": "invoice", "context": {"customer": "{{ input.customer }}", "text": ""},
        "agents": {"writer": agent}, "states": {"write": write, "end": end},
    }  # fmt: skip
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": data}


def shop(ran: Callable[[str], None], *, safe: bool) -> Charter:
    """A tree that starts a machine of states as a tool."""

    @tool("Look the customer up", safe=safe)
    def look_up(name: str, ctx: Ctx) -> str:
        ran(ctx.idempotency_key)
        return f"{name} is known"

    bill = machine_tool(
        "invoice",
        "Bill",
        input_schema={"type": "object", "properties": {"customer": {"type": "string"}}},
        output=lambda out: out["text"],
    )

    def answer(request: AgentRequest) -> AgentResult:
        said = last(request)
        if "Invoice for" in said:
            return say("", call("transition_report", text=said, id="r"))
        if "known" in said:
            return say("", call("invoice", customer="Mira", id="i"))
        return say("", call("look_up", name="Mira"))

    desk = Node("Sell.", ANY, name="desk", initial_state={}, tools=[look_up, bill], transitions=[report])
    return Charter("shop", executor=ScriptedExecutor(answer), nodes=[desk])


def invoice() -> Machine:
    agent = ScriptedAgent(lambda request: f"Invoice for {request.input['for']}")
    return flat.load(config=writer(), agents={"writer": agent})


def flow(ran: Callable[[str], None], *, safe: bool) -> Machine:
    """A machine of states that runs a tree that starts a machine of states."""
    sell = {
        "type": "initial", "machine": "desk", "input": {"message": "Bill Mira"},
        "output_to_context": {"bill": "{{ output.content }}"}, "transitions": [{"to": "end"}],
    }  # fmt: skip
    data = {
        "name": "flow", "context": {"bill": ""},
        "machines": {"desk": writer()},
        "states": {"sell": sell, "end": {"type": "final", "output": {"bill": "{{ context.bill }}"}}},
    }  # fmt: skip
    machine = flat.load(config={"spec": "flatmachine", "spec_version": "4.2.1", "data": data})
    charter = shop(ran, safe=safe)
    machine.children["desk"] = tree_machine(charter, until="cede", machines={"invoice": invoice()})
    return machine


WORKS: Mapping[str, Callable[..., tuple[Machine, Mapping[str, Any]]]] = {
    "packs": lambda ran, safe: (
        tree_machine(office(ran, safe=safe), until="end_turn"),
        {"message": "Go"},
    ),
    "launched": lambda ran, safe: (tree_machine(camp(ran, safe=safe), until="end_turn"), {"message": "Go"}),
    "tree over states": lambda ran, safe: (
        tree_machine(shop(ran, safe=safe), until="cede", machines={"invoice": invoice()}),
        {"message": "Go"},
    ),
    "states over tree": lambda ran, safe: (flow(ran, safe=safe), {}),
}
LEAST = {"packs": 35, "launched": 25, "tree over states": 25, "states over tree": 25}


@pytest.mark.parametrize("work", WORKS)
@pytest.mark.parametrize("place", ["memory", "sqlite"])
async def test_it_comes_to_the_same_end_wherever_the_process_dies(
    work: str, place: str, tmp_path: Path
) -> None:
    made = WORKS[work]

    def machine(clock: Clock) -> Machine:
        return made(lambda key: None, safe=True)[0]

    scenario = Scenario(machine=machine, input=made(lambda key: None, safe=True)[1], unordered=True)
    report = await sweep(scenario, memory_places() if place == "memory" else folder_places(tmp_path))
    report.check()
    assert report.points > LEAST[work]


@pytest.mark.parametrize("work", WORKS)
async def test_no_tool_runs_twice_that_is_not_declared_safe(work: str) -> None:
    lives: list[tuple[Clock, Counter[str]]] = []

    def machine(clock: Clock) -> Machine:
        known = next((life for life in lives if life[0] is clock), None)
        if known is None:
            known = (clock, Counter())
            lives.append(known)
        count = known[1]
        return WORKS[work](lambda key: count.update([key]), safe=False)[0]

    given = WORKS[work](lambda key: None, safe=False)[1]
    report = await sweep(Scenario(machine=machine, input=given, unordered=True), memory_places())
    assert report.points > LEAST[work]
    assert len(lives) > report.points
    assert {count for _, ran in lives for count in ran.values()} == {1}
    assert not [problem for problem in report.problems if "performed again" in problem]
