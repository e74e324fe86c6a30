"""The same small work as a machine of states and as a tree: the same effects and the same output.

Each piece of work has two halves, and one that lacks a half fails here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest

import flat
from flat.agents.protocol import AgentRequest, AgentResult
from flat.backends.memory.store import MemoryStore
from flat.errors import AgentFailed
from flat.hooks.notices import Notice
from flat.runtime.machine import Machine
from flat.runtime.outcome import Outcome
from flat.runtime.runtime import Runtime
from flat.runtime.treeload import tree_machine
from flat.testing.agents import ScriptedAgent
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Node, SpawnTarget, cede, machine_tool, spawn, suspend, tool, transition

pytestmark = pytest.mark.anyio

ANY: Mapping[str, Any] = {"type": "object"}


@dataclass
class Half:
    """One way to write a piece of work: the machine, its input, and its output in the words that both share."""

    machine: Machine
    input: Mapping[str, Any]
    output: Callable[[Any], Any] = lambda output: output
    signal: tuple[str, Any] | None = None
    """What is sent when it waits."""


STATES: dict[str, Callable[[], Half]] = {}
TREES: dict[str, Callable[[], Half]] = {}


def as_states(half: Callable[[], Half]) -> Callable[[], Half]:
    STATES[half.__name__.removesuffix("_states")] = half
    return half


def as_tree(half: Callable[[], Half]) -> Callable[[], Half]:
    TREES[half.__name__.removesuffix("_tree")] = half
    return half


def states(
    machine_states: Mapping[str, Any], context: Mapping[str, Any] | None = None, **data: Any
) -> dict[str, Any]:
    known = {"name": "m", "context": dict(context or {}), "states": dict(machine_states), **data}
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": known}


def agents(*names: str) -> dict[str, Any]:
    return {name: {"spec": "flatagent", "data": {"model": {"name": "x"}, "user": "w"}} for name in names}


def content(output: Any) -> Any:
    return output["content"]


def result(output: Any) -> Any:
    return output["result"]


# -- one answer --------------------------------------------------------------------------------


@as_states
def one_answer_states() -> Half:
    ask = {
        "type": "initial", "agent": "desk", "output_to_context": {"result": "{{ output.content }}"},
        "transitions": [{"to": "end"}],
    }  # fmt: skip
    config = states({"ask": ask, "end": END}, agents=agents("desk"))
    return Half(flat.load(config=config, agents={"desk": ScriptedAgent("Hello")}), {}, result)


@as_tree
def one_answer_tree() -> Half:
    desk = Node("Answer.", ANY, name="desk", initial_state={})
    charter = Charter("c", executor=ScriptedExecutor("Hello"), nodes=[desk])
    return Half(tree_machine(charter, until="end_turn"), {"message": "Hi"}, content)


END = {"type": "final", "output": {"result": "{{ context.result }}"}}


# -- tools -------------------------------------------------------------------------------------


@dataclass
class Tools:
    ran: list[Any] = field(default_factory=list)

    def get_tool_definitions(self) -> list[dict[str, Any]]:
        return [{"type": "function", "function": {"name": "look", "parameters": {}}}]

    async def execute_tool(self, name: str, tool_call_id: str, arguments: Any) -> Any:
        return flat.ToolResult(content=f"seen {arguments['at']}")


def looks(request: AgentRequest) -> AgentResult:
    """Looks twice in one answer, then tells what it saw."""
    results = [str(m["content"]) for m in request.messages or () if m["role"] == "tool"]
    if not results:
        return say("", call("look", at="left"), call("look", at="right"))
    return say(" and ".join(results))


@as_states
def tool_loop_states() -> Half:
    ask = {
        "type": "initial", "agent": "desk", "tool_loop": True,
        "output_to_context": {"result": "{{ output.content }}"}, "transitions": [{"to": "end"}],
    }  # fmt: skip
    config = states({"ask": ask, "end": END}, agents=agents("desk"))
    machine = flat.load(config=config, agents={"desk": ScriptedAgent(looks)}, tool_provider=Tools())
    return Half(machine, {}, result)


@as_tree
def tool_loop_tree() -> Half:
    @tool("Look")
    def look(at: str) -> str:
        return f"seen {at}"

    desk = Node("Look.", ANY, name="desk", initial_state={}, tools=[look])
    charter = Charter("c", executor=ScriptedExecutor(looks), nodes=[desk])
    return Half(tree_machine(charter, until="end_turn"), {"message": "Look"}, content)


# -- a person ----------------------------------------------------------------------------------


@as_states
def approval_states() -> Half:
    ask = {
        "type": "initial", "wait_for": "approve/7", "output_to_context": {"by": "{{ output.by }}"},
        "transitions": [{"to": "tell"}],
    }  # fmt: skip
    tell = {
        "agent": "desk", "input": {"by": "{{ context.by }}"},
        "output_to_context": {"result": "{{ output.content }}"}, "transitions": [{"to": "end"}],
    }  # fmt: skip
    config = states({"ask": ask, "tell": tell, "end": END}, agents=agents("desk"))
    desk = ScriptedAgent(lambda request: f"approved by {request.input['by']}")
    return Half(flat.load(config=config, agents={"desk": desk}), {}, result, ("approve/7", {"by": "Mira"}))


@as_tree
def approval_tree() -> Half:
    @transition("Wait for a person")
    def wait() -> Any:
        return suspend("Please approve", channel="approve/7")

    def answer(request: AgentRequest) -> AgentResult:
        if '{"by":"Mira"}' in str(request.messages):
            return say("approved by Mira")
        return say("", call("transition", to="wait"))

    desk = Node("Ask.", ANY, name="desk", initial_state={}, transitions=[wait])
    charter = Charter("c", executor=ScriptedExecutor(answer), nodes=[desk])
    machine = tree_machine(charter, until="end_turn")
    return Half(machine, {"message": "Ask"}, content, ("approve/7", {"by": "Mira"}))


# -- a child machine ---------------------------------------------------------------------------


def invoice() -> dict[str, Any]:
    write = {
        "type": "initial", "agent": "writer", "output_to_context": {"result": "{{ output.content }}"},
        "transitions": [{"to": "end"}],
    }  # fmt: skip
    return states({"write": write, "end": END}, agents=agents("writer"), name="invoice")


@as_states
def child_states() -> Half:
    bill = {
        "type": "initial", "machine": "invoice", "output_to_context": {"result": "{{ output.result }}"},
        "transitions": [{"to": "end"}],
    }  # fmt: skip
    config = states({"bill": bill, "end": END}, machines={"invoice": invoice()})
    return Half(flat.load(config=config, agents={"writer": ScriptedAgent("Invoice 7")}), {}, result)


@as_tree
def child_tree() -> Half:
    bill = machine_tool("invoice", "Bill", input_schema=ANY, output=lambda out: out["result"])

    def answer(request: AgentRequest) -> AgentResult:
        last = (request.messages or [])[-1]
        return say(str(last["content"])) if last["role"] == "tool" else say("", call("invoice"))

    desk = Node("Sell.", ANY, name="desk", initial_state={}, tools=[bill])
    charter = Charter("c", executor=ScriptedExecutor(answer), nodes=[desk])
    child = flat.load(config=invoice(), agents={"writer": ScriptedAgent("Invoice 7")})
    machine = tree_machine(charter, until="end_turn", machines={"invoice": child})
    return Half(machine, {"message": "Bill"}, content)


# -- several at once -----------------------------------------------------------------------------


def found(request: AgentRequest) -> str:
    text = str(request.input.get("city") or request.messages)
    return next(city for city in ("Oslo", "Rome", "Bern") if city in text)


@as_states
def fan_out_states() -> Half:
    look = {
        "type": "initial", "agent": "scout", "input": {"city": "{{ context.city }}"},
        "output_to_context": {"result": "{{ output.content }}"}, "transitions": [{"to": "end"}],
    }  # fmt: skip
    scout = states({"look": look, "end": END}, {"city": "{{ input.city }}"}, agents=agents("scout"))
    each = {
        "type": "initial", "foreach": "{{ context.cities }}", "as": "city", "machine": "scout",
        "input": {"city": "{{ city }}"}, "output_to_context": {"all": "{{ output }}"},
        "transitions": [{"to": "end"}],
    }  # fmt: skip
    end = {"type": "final", "output": {"all": "{{ context.all }}"}}
    config = states(
        {"each": each, "end": end}, {"cities": ["Oslo", "Rome", "Bern"], "all": None},
        machines={"scout": scout}, settings={"native_types": True},
    )  # fmt: skip
    machine = flat.load(config=config, agents={"scout": ScriptedAgent(lambda r: f"{found(r)} is cold")})
    return Half(machine, {}, lambda output: [one["result"] for one in output["all"]])


@as_tree
def fan_out_tree() -> Half:
    scout = Node("Scout.", ANY, name="scout", worker=True)

    @transition("Send scouts")
    def send() -> Any:
        cities = ("Oslo", "Rome", "Bern")
        return spawn([SpawnTarget(scout, {}, brief=city, launch=True) for city in cities])

    @transition("Hand over")
    def report(text: str) -> Any:
        return cede(text)

    def answer(request: AgentRequest) -> AgentResult:
        if request.input["node"] == "scout":
            return say(f"{found(request)} is cold")
        last = str((request.messages or [])[-1]["content"])
        if "cold" in last:
            return say("", call("transition_report", text=last))
        return say("", call("transition", to="send"))

    desk = Node("Plan.", ANY, name="desk", initial_state={}, transitions=[send, report])
    charter = Charter("c", executor=ScriptedExecutor(answer), nodes=[desk, scout])
    machine = tree_machine(charter, until="cede")
    return Half(machine, {"message": "Go"}, lambda output: output["content"].split("\n\n"))


# -- a failure -----------------------------------------------------------------------------------


@as_states
def failure_states() -> Half:
    half = one_answer_states()
    half.machine.agents = {"desk": ScriptedAgent(AgentFailed("no ink", code="server_error"))}
    return half


@as_tree
def failure_tree() -> Half:
    desk = Node("Answer.", ANY, name="desk", initial_state={})
    broken = ScriptedExecutor(AgentFailed("no ink", code="server_error"))
    charter = Charter("c", executor=broken, nodes=[desk])
    return Half(tree_machine(charter, until="end_turn"), {"message": "Hi"}, content)


# -- the comparison ------------------------------------------------------------------------------


# A tree decides by its model what a machine of states has written down: these calls are its transitions, and the
# model calls that ask for them or hand over what came of them.
OF_TREES: Mapping[str, Mapping[str, int]] = {
    "approval": {"call": 1, "tool": 1},
    "child": {"call": 2},
    "fan_out": {"call": 2, "tool": 2},
}


class Effects:
    """Counts what is asked of the world."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def notify(self, notice: Notice) -> None:
        if notice.kind == "perform":
            kind = notice.facts["effect"]
            self.counts[kind] = self.counts.get(kind, 0) + 1


async def ran(half: Half) -> tuple[Outcome, dict[str, int]]:
    effects = Effects()
    async with Runtime(MemoryStore(), observers=[effects]) as runtime:
        outcome = await runtime.start(half.machine, half.input, execution_id="e")
        if half.signal is not None:
            assert outcome.status == "waiting", outcome
            assert half.signal[0] in outcome.waiting_on
            await runtime.signal(*half.signal)
            outcome = await runtime.resume("e", half.machine)
    return outcome, effects.counts


def test_every_piece_of_work_has_both_halves() -> None:
    assert STATES.keys() == TREES.keys()
    assert len(STATES) == 6


@pytest.mark.parametrize("work", sorted(STATES.keys() | TREES.keys()))
async def test_states_and_trees_come_to_the_same(work: str) -> None:
    one, other = STATES[work](), TREES[work]()
    of_states, effects = await ran(one)
    of_tree, more = await ran(other)
    assert of_states.status == of_tree.status
    if of_states.status == "done":
        assert one.output(of_states.output) == other.output(of_tree.output)
    else:
        assert of_states.failure is not None
        assert of_tree.failure is not None
        assert of_states.failure.type == of_tree.failure.type
        assert of_states.failure.message == of_tree.failure.message
    extra = OF_TREES.get(work, {})
    assert more == {kind: effects.get(kind, 0) + extra.get(kind, 0) for kind in {**effects, **extra}}
    assert of_tree.spent.calls == of_states.spent.calls + extra.get("call", 0)
