"""A tree comes to the same end whenever its process dies, and no tool that is not safe runs twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from running import ANY, NODES, desk, helper, worker

from flat.agents.protocol import AgentRequest, AgentResult
from flat.backends import FileStore, SQLiteStore
from flat.drivers.clock import Clock
from flat.runtime.machine import Machine
from flat.runtime.treeload import tree_machine
from flat.testing.crash import EXECUTION, Places, Scenario, folder_places, memory_places, sweep
from flat.testing.executor import call, say
from flat.tree import Charter, Ctx, Node, tool
from flat.tree.run_act import UNKNOWN

pytestmark = pytest.mark.anyio


class Office:
    """Answers by what it is asked, so that a call that is made again is answered alike."""

    async def call(self, request: AgentRequest) -> AgentResult:
        node = str(request.input["node"])
        said = str(request.messages)
        if node == "desk" and "Work is done" in said:
            return say("All is done.")
        if node == "desk":
            return say(
                "Starting",
                call("stamp", id="d1", text="begin"),
                call("look_up", id="d2", text="fare"),
                call("transition", id="d3", to="hire_two", reason=""),
            )
        if any(message["role"] == "tool" for message in request.messages or ()):
            return say("", call("transition_report", id=f"{node}2", text="Work is done", reason=""))
        return say("", call("stamp", id=f"{node}1", text=node))


class Approval:
    """Works, waits for a person, and hands over."""

    async def call(self, request: AgentRequest) -> AgentResult:
        said = str(request.messages)
        if "approved by Mira" in said:
            return say("", call("transition_report", id="a3", text="Bought", reason=""))
        if any(message["role"] == "tool" for message in request.messages or ()):
            return say("", call("transition", id="a2", to="wait", reason=""))
        return say("Looking", call("stamp", id="a1", text="look"))


def charter(executor: Any, *, safe: bool, ran: Callable[[str], None] = lambda key: None) -> Charter:
    @tool("Stamp a text", safe=safe)
    def stamp(text: str, ctx: Ctx) -> str:
        ran(ctx.idempotency_key)
        ctx.update_state({"notes": [*ctx.state.get("notes", []), text]})
        return f"stamped {text}"

    @tool("Look up, as often as you like", safe=True)
    def look_up(text: str) -> str:
        return f"looked up {text}"

    def stamping(node: Node[Any]) -> Node[Any]:
        return Node(
            node.instructions,
            ANY,
            name=node.name,
            worker=node.worker,
            initial_state={},
            tools=[stamp, look_up],
            transitions=node.transitions,
            id=node.id,
        )

    nodes = [stamping(node) if node in (desk, worker, helper) else node for node in NODES]
    return Charter("office", executor=executor, nodes=nodes)


@pytest.fixture(params=["memory", "sqlite", "files"])
def places(request: pytest.FixtureRequest, tmp_path: Path) -> Places:
    if request.param == "memory":
        return memory_places()
    return folder_places(tmp_path, SQLiteStore if request.param == "sqlite" else FileStore)


async def test_two_workers_come_to_the_same_end_wherever_the_process_dies(places: Places) -> None:
    def machine(clock: Clock) -> Machine:
        return tree_machine(charter(Office(), safe=True), node="desk", until="end_turn")

    report = await sweep(Scenario(machine=machine, input={"message": "Go"}, unordered=True), places)
    report.check()
    assert report.points > 40


async def test_a_tree_that_waits_comes_to_the_same_end_wherever_the_process_dies(places: Places) -> None:
    def machine(clock: Clock) -> Machine:
        return tree_machine(charter(Approval(), safe=True), node="desk", until="cede")

    scenario = Scenario(
        machine=machine,
        input={"message": "Buy it"},
        signals={f"tree/{EXECUTION}/resume/s1": "approved by Mira"},
    )
    report = await sweep(scenario, places)
    report.check()
    assert report.points > 20


async def test_a_tool_that_is_not_safe_never_runs_twice_and_the_model_is_told() -> None:
    lives: list[tuple[Clock, Counter[str], list[str]]] = []
    """By clock: the two lives of one death share it."""

    class Listening(Office):
        def __init__(self, heard: list[str]) -> None:
            self.heard = heard

        async def call(self, request: AgentRequest) -> AgentResult:
            if UNKNOWN in str(request.messages):
                self.heard.append(request.idempotency_key)
            return await super().call(request)

    def machine(clock: Clock) -> Machine:
        life = next((known for known in lives if known[0] is clock), None)
        if life is None:
            life = (clock, Counter(), [])
            lives.append(life)
        _, ran, heard = life
        scripted = charter(Listening(heard), safe=False, ran=lambda key: ran.update([key]))
        return tree_machine(scripted, node="desk", until="end_turn")

    report = await sweep(Scenario(machine=machine, input={"message": "Go"}, unordered=True), memory_places())
    assert report.points > 40
    assert not [problem for problem in report.problems if "performed again" in problem or "twice" in problem]
    assert not [problem for problem in report.problems if "status" in problem]
    assert len(lives) > report.points
    assert {count for _, ran, _ in lives for count in ran.values()} == {1}
    unknown = [heard for _, _, heard in lives if heard]
    assert 5 < len(unknown) < report.points
