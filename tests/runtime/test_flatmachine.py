"""`FlatMachine`, the seed system's way of running a machine, and the hooks it calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
from runtime_machines import acting, agents, config, start

from flat import (
    AgentResult,
    CompositeHooks,
    DefinitionError,
    ExecutionError,
    FlatMachine,
    HooksRegistry,
    LimitExceeded,
    MachineHooks,
    MemoryStore,
    get_asset,
    observer,
)
from flat.agents.protocol import Usage
from flat.errors import SpecError
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


def the_file(folder: Path) -> Path:
    file = folder / "machine.yml"
    file.write_text(
        """\
spec: flatmachine
spec_version: "4.2.1"
metadata: {owner: team-a}
data:
  name: told
  context: {n: input.n}
  agents: {a: {type: mine}}
  machines: {c: {spec: flatmachine, data: {states: {d: {type: final}}}}}
  settings: {max_steps: 9, ours: 1}
  persistence: {checkpoint_on: [waiting]}
  states:
    start: {transitions: [{to: end}]}
    end: {type: final}
""",
        encoding="utf-8",
    )
    return file


def test_a_machine_tells_what_its_file_says(tmp_path: Path) -> None:
    file = the_file(tmp_path)
    for machine in (
        FlatMachine(file, name="other"),
        FlatMachine(file, name="other"),
    ):  # cold, and from the cache
        assert (machine.machine_name, machine.data["name"]) == ("other", "other")
        assert machine.metadata == {"owner": "team-a"}
        assert machine.config["spec_version"] == machine.spec_version == "4.2.1"
        assert list(machine.states) == ["start", "end"]
        assert machine.states["end"] == {"type": "final"}
        assert machine.settings == {"max_steps": 9, "ours": 1}
        assert machine.initial_context == {"n": "input.n"}
        assert machine.agent_refs == {"a": {"type": "mine"}}
        assert list(machine.machine_refs) == ["c"]
        assert machine.checkpoint_events == {"waiting"}
        assert "claude-code" in machine.agent_registry.types


def test_a_machine_from_a_mapping_tells_the_same() -> None:
    given = config({"end": {"type": "final"}})
    machine = FlatMachine(config_dict=given)
    assert machine.config == given
    assert machine.metadata == {}
    assert len(machine.checkpoint_events) == 7


async def test_an_adapter_may_be_registered_after_the_machine_is_made() -> None:
    class Executor:
        metadata: ClassVar[dict[str, Any]] = {}

        async def execute(self, input_data: Any, context: Any = None, session_id: Any = None) -> str:
            return "hello"

    class Mine:
        type_name = "mine"

        def create_executor(self, **_: Any) -> Executor:
            return Executor()

    states = {"start": {"agent": "a", "type": "final"}}
    machine = FlatMachine(config_dict=config(states, agents={"a": {"type": "mine"}}))
    machine.agent_registry.register(Mine())
    assert await machine.execute() == {"content": "hello"}


@pytest.mark.parametrize("given", [-1, 2.5, "3", True])
@pytest.mark.parametrize("name", ["max_steps", "max_agent_calls"])
async def test_a_limit_that_is_no_count_is_refused(name: str, given: Any) -> None:
    machine = FlatMachine(config_dict=config({"end": {"type": "final"}}))
    with pytest.raises(DefinitionError, match=f"{name} is a whole number, 0 or more.*not {given!r}"):
        await machine.execute(**{name: given})


@pytest.mark.parametrize("given", ["spec: flatmachine", [1]])
def test_a_config_that_is_no_mapping_is_refused(given: Any) -> None:
    with pytest.raises(DefinitionError, match="a config is a mapping"):
        FlatMachine(config_dict=given)


async def test_an_action_that_nothing_runs_is_warned_of_and_passed_over_under_compat() -> None:
    states = {"start": {"action": "go", "transitions": [{"to": "end"}]}, "end": {"type": "final"}}
    with pytest.warns(UserWarning, match='nothing runs the action "go"'):
        machine = FlatMachine(config_dict=config(states))
    with pytest.raises(ExecutionError, match='no action is registered under the name "go"'):
        await machine.execute()
    with pytest.warns(UserWarning, match='nothing runs the action "go"'):
        lenient = FlatMachine(config_dict=config(states), compat=True)
    assert await lenient.execute() == {}


async def test_hooks_from_python_run_the_actions_of_a_file_without_any() -> None:
    states = {
        "start": {"action": "go", "transitions": [{"to": "end"}]},
        "end": {"type": "final", "output": {"n": "context.n"}},
    }
    machine = FlatMachine(config_dict=config(states), hooks=Three())  # no warning: warnings are errors here
    assert await machine.execute() == {"n": 1}
    assert await FlatMachine(config_dict=config(states), hooks=Three(), compat=True).execute() == {"n": 1}


@pytest.mark.parametrize("given", [object(), 5])
def test_persistence_that_is_no_store_is_refused_at_once(given: Any) -> None:
    with pytest.raises(DefinitionError, match="persistence is a store, its URL, or one of the backends"):
        FlatMachine(config_dict=config({"end": {"type": "final"}}), persistence=given)


async def test_what_all_runs_of_a_machine_have_cost_is_added_up() -> None:
    class Priced:
        async def call(self, request: Any) -> Any:
            return AgentResult(content="x", usage=Usage(api_calls=1), cost={"total": 0.5})

    given = config({"end": {"type": "final", "agent": "a"}}, agents=agents("a"))
    machine = FlatMachine(config_dict=given, agents={"a": Priced()})
    first = machine.execution_id
    await machine.execute()
    await machine.execute()
    assert (machine.total_api_calls, machine.total_cost) == (2, 1.0)
    await machine.execute(resume_from=first)  # over already: nothing is counted twice
    assert (machine.total_api_calls, machine.total_cost) == (2, 1.0)


def test_an_asset_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(FileNotFoundError, match=r'no asset "\.\./x".*machine, agent'):
        get_asset("../x")


def test_what_is_wrong_in_an_inline_child_is_said_once() -> None:
    given = config({"end": {"type": "final"}}, machines={"c": {"states": {}}})
    with pytest.raises(SpecError) as caught:
        FlatMachine(config_dict=given)
    assert [p.message for p in caught.value.problems if "spec" in p.message] == [
        'data.machines.c: "spec" is missing in c'
    ]
