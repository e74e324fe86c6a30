"""`FlatMachine`, the seed system's way of running a machine, and the hooks it calls."""

from __future__ import annotations

from typing import Any

import pytest
from runtime_machines import acting, agents, config, start

from flat import (
    AgentResult,
    CompositeHooks,
    ExecutionError,
    FlatMachine,
    HooksRegistry,
    LimitExceeded,
    MachineHooks,
    MemoryStore,
    observer,
)
from flat.testing.agents import ScriptedAgent

pytestmark = pytest.mark.anyio


class Three(MachineHooks):
    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        return {**context, "n": context["n"] + 1}


class Two(MachineHooks):
    def on_action(self, action_name: str, context: dict[str, Any]) -> None:
        context["n"] += 10


class Partial(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        return {"n": 5}


class Facts(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
        assert context["machine"]["current_state"] == state_name
        context["n"] = context["machine"]["step"]
        context["machine"]["step"] = 9


class Fails(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> Any:
        raise KeyError("lost")


class Number(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> Any:
        return 3


class Watching(MachineHooks):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    @observer
    def on_state_enter(self, state_name: str, context: dict[str, Any]) -> Any:
        self.seen.append(state_name)
        context["n"] = 99

    @observer
    async def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> Any:
        self.seen.append((from_state, to_state))
        raise RuntimeError("watching must not hurt")


def flat_machine(states: dict[str, Any], hooks: Any = None, context: Any = None, **rest: Any) -> FlatMachine:
    data = {"hooks": "h"} if hooks is not None else {}
    registry = HooksRegistry({"h": hooks} if hooks is not None else {})
    return FlatMachine(config_dict=config(states, context, **data), hooks_registry=registry, **rest)


@pytest.mark.parametrize(
    ("hooks", "output"),
    [(Three, 1), (Two, 10), (Partial, 5), (lambda: CompositeHooks(Three(), Two(), Three()), 12)],
    ids=["async, three arguments", "sync, two arguments", "partial", "composite"],
)
async def test_an_action_answers_with_the_context_in_any_form(hooks: Any, output: int) -> None:
    assert await flat_machine(acting("a"), hooks).execute() == {"n": output}


async def test_what_an_action_returns_replaces_the_context() -> None:
    machine = flat_machine(acting("a"), Partial, {"n": 0, "other": 1})
    await machine.execute()
    assert machine.outcome is not None
    assert machine.outcome.context == {"n": 5}


async def test_the_facts_of_the_machine_are_read_only() -> None:
    with pytest.raises(ExecutionError, match="read-only"):
        await flat_machine(acting("a"), Facts).execute()


@pytest.mark.parametrize(
    ("hooks", "cause", "kind"), [(Fails, KeyError, "KeyError"), (Number, Exception, "TypeError")]
)
async def test_a_failure_is_raised_with_its_cause(hooks: Any, cause: type[Exception], kind: str) -> None:
    with pytest.raises(ExecutionError) as caught:
        await flat_machine(acting("a"), hooks).execute()
    assert caught.value.type == kind
    assert isinstance(caught.value.__cause__, cause)
    assert caught.value.node == "a"


async def test_observers_among_hooks_change_nothing_and_hurt_nothing() -> None:
    watching = Watching()
    machine = flat_machine(acting("a"), lambda: CompositeHooks(watching, Three()))
    assert await machine.execute() == {"n": 1}
    assert watching.seen == ["start", ("start", "a"), "a", ("a", "end"), "end"]


async def test_every_execute_is_an_execution_of_its_own() -> None:
    machine = flat_machine(acting("a"), Three)
    assert await machine.execute() == {"n": 1}
    first = machine.execution_id
    assert await machine.execute() == {"n": 1}
    assert machine.execution_id != first


async def test_execute_sync_works_inside_a_running_loop() -> None:
    assert flat_machine(acting("a"), Three).execute_sync() == {"n": 1}
    with pytest.raises(ExecutionError):
        flat_machine(acting("a"), Fails).execute_sync()


def test_execute_sync_works_without_a_loop() -> None:
    assert flat_machine(acting("a"), Three).execute_sync(input={"x": 1}) == {"n": 1}


async def test_resuming_an_unknown_execution_starts_it_and_says_so(caplog: Any) -> None:
    machine = flat_machine(acting("a"), Three)
    assert await machine.execute(resume_from="mine") == {"n": 1}
    assert "no execution mine" in caplog.text
    assert await machine.execute(resume_from="mine") == {"n": 1}


async def test_waiting_is_an_answer_and_a_limit_is_an_error() -> None:
    store = MemoryStore()
    states = {
        "start": start("w"),
        "w": {"wait_for": "go/1", "transitions": [{"to": "end"}]},
        "end": {"type": "final"},
    }
    machine = flat_machine(states, context={"x": 1}, persistence=store)
    assert await machine.execute() == {"_waiting": True, "_channel": "go/1"}
    limited = flat_machine(acting("a", "b"), Three, persistence=store)
    with pytest.raises(LimitExceeded, match="max_steps"):
        await limited.execute(max_steps=2)
    assert await limited.execute(resume_from=limited.execution_id, max_steps=10) == {"n": 2}


async def test_calls_and_costs_are_counted() -> None:
    states = {
        "start": start("ask"),
        "ask": {"agent": "a", "transitions": [{"to": "end"}]},
        "end": {"type": "final"},
    }
    machine = FlatMachine(
        config_dict=config(states, agents=agents("a")), agents={"a": ScriptedAgent("hello")}, name="renamed"
    )
    await machine.execute()
    assert (machine.total_api_calls, machine.total_cost, machine.machine_name) == (1, 0.001, "renamed")


class Everything(MachineHooks):
    def __init__(self) -> None:
        self.seen: list[str] = []

    def on_machine_start(self, context: dict[str, Any]) -> None:
        self.seen.append("machine_start")

    def on_state_enter(self, state_name: str, context: dict[str, Any]) -> None:
        self.seen.append(f"enter {state_name}")

    def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
        self.seen.append("machine_end")
        return {**final_output, "seen": len(self.seen)}


async def test_lifecycle_hooks_serve_the_beginning_and_the_end_alone() -> None:
    hooks, shared = Everything(), Everything()
    states = {"start": start("end"), "end": {"type": "final"}}
    machine = FlatMachine(config_dict=config(states), lifecycle_hooks=hooks, hooks=shared)
    assert await machine.execute() == {"seen": 2}
    assert hooks.seen == ["machine_start", "machine_end"]
    assert shared.seen == ["enter start", "enter end"]


async def test_tools_of_a_machine_without_hooks_come_from_its_provider() -> None:
    class Tools:
        def get_tool_definitions(self) -> list[dict[str, Any]]:
            return [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]

        async def execute_tool(self, name: str, tool_call_id: str, arguments: dict[str, Any]) -> Any:
            return str(arguments["a"] + arguments["b"])

    class Asks:
        async def call(self, request: Any) -> AgentResult:
            if request.messages is None:
                assert [t["function"]["name"] for t in request.tools] == ["add"]
                call = {"id": "c1", "name": "add", "arguments": {"a": 2, "b": 3}}
                return AgentResult(
                    finish_reason="tool_use", tool_calls=(call,), rendered_user_prompt="how much is it?"
                )
            return AgentResult(content=f"it is {request.messages[-1]['content']}", finish_reason="stop")

    states = {
        "start": {
            "agent": "a",
            "tool_loop": True,
            "output_to_context": {"said": "output.content"},
            "transitions": [{"to": "end"}],
        },
        "end": {"type": "final", "output": {"said": "context.said"}},
    }
    machine = FlatMachine(
        config_dict=config(states, agents=agents("a")), agents={"a": Asks()}, tool_provider=Tools()
    )
    assert await machine.execute() == {"said": "it is 5"}
