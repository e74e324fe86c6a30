"""Trees whose leaves have called machines that wait: wherever the process dies, they come to the same end, and nothing
that was recorded is done again."""

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
from flat.testing.crash import Scenario, folder_places, memory_places, sweep
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import (
    Charter,
    Ctx,
    Node,
    SpawnTarget,
    cede,
    machine_node,
    machine_tool,
    spawn,
    suspend,
    tool,
    transition,
)

pytestmark = pytest.mark.anyio

ANY: Mapping[str, Any] = {"type": "object"}
YES = {"ok": "yes"}


def approval() -> Machine:
    """Waits for a person, twice."""
    ask = {"type": "initial", "wait_for": "approve/1", "transitions": [{"to": "again"}]}
    again = {
        "wait_for": "approve/2", "output_to_context": {"ok": "{{ output.ok }}"}, "transitions": [{"to": "end"}],
    }  # fmt: skip
    end = {"type": "final", "output": {"ok": "{{ context.ok }}"}}
    data = {"name": "approval", "context": {"ok": ""}, "states": {"ask": ask, "again": again, "end": end}}
    return flat.load(config={"spec": "flatmachine", "spec_version": "4.2.1", "data": data})


def count(request: AgentRequest, text: str) -> int:
    return str(request.messages).count(text)


def offices(ran: Callable[[str], None], *, safe: bool, kind: str) -> Charter:
    """A desk with two workers: one works on its own, the other one lets a machine work that waits."""

    @tool("Look", safe=safe)
    def look(at: str, ctx: Ctx) -> str:
        ran(ctx.idempotency_key)
        ctx.update_state({"seen": [*ctx.state.get("seen", []), at]})
        return f"saw {at}"

    @transition("Hand over")
    def report(text: str) -> Any:
        return cede(text)

    @transition("Wait")
    def wait() -> Any:
        return suspend("May I?", suspend_id="s1")

    @transition("Send both")
    def send() -> Any:
        first = {"tool": asker, "node": office, "launched": scout}[kind]
        return spawn([SpawnTarget(first, {}, launch=kind == "launched"), SpawnTarget(plain, {})])

    def answer(request: AgentRequest) -> AgentResult:
        node = str(request.input["node"])
        if node == "desk":
            if count(request, "asked: ") and count(request, "looked twice"):
                return say("", call("transition_report", text="all is done", id="r"))
            return say("", call("transition", to="send"))
        if node == "asker":
            if count(request, "saw after") or count(request, "not known"):
                return say("", call("transition_report", text="asked: yes", id="r"))
            return say(
                "May I?",
                call("look", at="before", id="b"),
                call("approval", id="a"),
                call("look", at="after", id="c"),
            )
        if node == "scout":
            if count(request, "yes"):
                return say("", call("transition_report", text="asked: yes", id="r"))
            return say("", call("transition", to="wait"))
        if count(request, "saw two") or count(request, "not known"):
            return say("", call("transition_report", text="looked twice", id="r"))
        return say("", call("look", at="two" if count(request, "saw one") else "one"))

    ask = machine_tool("approval", "Ask", input_schema=ANY, output=lambda out: f"approved: {out['ok']}")
    asker = Node("Ask.", ANY, name="asker", worker=True, tools=[look, ask], transitions=[report])
    office = machine_node(
        "approval", name="office", input=lambda s: {}, cede=lambda out: f"asked: {out['ok']}"
    )
    scout = Node("Scout.", ANY, name="scout", worker=True, transitions=[report, wait])
    plain = Node("Look.", ANY, name="plain", worker=True, tools=[look], transitions=[report])
    desk = Node("Plan.", ANY, name="desk", initial_state={}, transitions=[send, report])
    return Charter("offices", executor=ScriptedExecutor(answer), nodes=[desk, asker, office, scout, plain])


def tree(ran: Callable[[str], None], *, safe: bool, kind: str) -> Machine:
    return tree_machine(offices(ran, safe=safe, kind=kind), until="cede", machines={"approval": approval()})


SIGNALS = {"approve/1": YES, "approve/2": YES}
KINDS = ("tool", "node", "launched")


def scenario(kind: str, machine: Callable[[Clock], Machine]) -> Scenario:
    scouts = "tree/swept.0-1-tree.1-2-0/resume/s1"
    signals = {scouts: "yes"} if kind == "launched" else SIGNALS
    return Scenario(machine=machine, input={"message": "Both, please"}, signals=signals, unordered=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["memory", "sqlite"])
async def test_it_comes_to_the_same_end_wherever_the_process_dies(
    kind: str, place: str, tmp_path: Path
) -> None:
    def machine(clock: Clock) -> Machine:
        return tree(lambda key: None, safe=True, kind=kind)

    places = memory_places() if place == "memory" else folder_places(tmp_path)
    every = 1 if place == "memory" else 3
    found = await sweep(scenario(kind, machine), places, every=every)
    found.check()
    assert found.points > 50 // every


async def test_no_tool_runs_twice_that_is_not_declared_safe() -> None:
    lives: list[tuple[Clock, Counter[str]]] = []

    def machine(clock: Clock) -> Machine:
        known = next((life for life in lives if life[0] is clock), None)
        if known is None:
            known = (clock, Counter())
            lives.append(known)
        ran = known[1]
        return tree(lambda key: ran.update([key]), safe=False, kind="tool")

    found = await sweep(scenario("tool", machine), memory_places())
    assert found.points > 50
    assert {count for _, ran in lives for count in ran.values()} == {1}
    assert not [problem for problem in found.problems if "performed again" in problem]
