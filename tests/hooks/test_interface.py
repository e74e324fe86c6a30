"""Hooks at every point of a real run: what they get, what they may change, and in which order."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from flat import (
    CompositeHooks,
    LoggingHooks,
    MachineHooks,
    MemoryStore,
    MetricsHooks,
    Outcome,
    Runtime,
    observer,
)
from flat.errors import BindingError
from flat.hooks import observed_points, steered_points
from flat.hooks.base import POINTS, action_takes_state, call_action, overrides

_spec = importlib.util.spec_from_file_location("hooks_machines", Path(__file__).with_name("machines.py"))
assert _spec is not None
assert _spec.loader is not None
sys.modules[_spec.name] = machines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(machines)

pytestmark = pytest.mark.anyio


async def ran(states: Any, hooks: Any, context: Any = None) -> Outcome:
    async with Runtime(MemoryStore()) as runtime:
        return await runtime.start(machines.machine(states, hooks, context))


class Every(MachineHooks):
    """Notes each call, and changes whatever it may."""

    def __init__(self, name: str = "", seen: list[Any] | None = None) -> None:
        self.name, self.seen = name, [] if seen is None else seen

    def note(self, *facts: Any) -> None:
        self.seen.append((self.name, *facts) if self.name else facts)

    def on_machine_start(self, context: Any) -> Any:
        self.note("machine_start")
        return {**context, "n": context["n"] + 1}

    async def on_machine_end(self, context: Any, final_output: Any) -> Any:
        self.note("machine_end", context["n"])
        return {**final_output, "end": True}

    def on_state_enter(self, state_name: str, context: Any) -> Any:
        self.note("state_enter", state_name)
        context["n"] += 10

    async def on_state_exit(self, state_name: str, context: Any, output: Any) -> Any:
        self.note("state_exit", state_name)
        return output

    def on_transition(self, from_state: str, to_state: str, context: Any) -> Any:
        self.note("transition", from_state, to_state)

    def on_error(self, state_name: str, error: Exception, context: Any) -> Any:
        self.note("error", state_name, type(error).__name__)

    async def on_action(self, state_name: str, action_name: str, context: Any) -> Any:
        self.note("action", state_name, action_name)
        if action_name == "fail":
            raise KeyError("no")
        return {**context, "n": context["n"] + 100}


async def test_every_point_is_called_in_order_and_what_it_answers_counts() -> None:
    hooks = Every()
    outcome = await ran(machines.TWO_STATES, lambda: hooks)
    assert hooks.seen == [
        ("machine_start",), ("state_enter", "start"), ("action", "start", "a"), ("state_exit", "start"),
        ("transition", "start", "end"), ("state_enter", "end"), ("state_exit", "end"), ("machine_end", 121),
    ]  # fmt: skip
    assert outcome.output == {"n": 121, "end": True}


async def test_an_error_that_nobody_routes_is_shown_and_may_be_steered() -> None:
    hooks = Every()
    outcome = await ran(machines.FAILING, lambda: hooks)
    assert outcome.status == "failed"
    assert ("error", "start", "KeyError") in hooks.seen

    class Rescue(Every):
        def on_error(self, state_name: str, error: Exception, context: Any) -> Any:
            return "end"

    assert (await ran(machines.FAILING, Rescue)).status == "done"


async def test_members_of_a_composite_are_called_in_order_and_hand_on_what_they_return() -> None:
    seen: list[Any] = []
    outcome = await ran(machines.TWO_STATES, lambda: CompositeHooks(Every("a", seen), Every("b", seen)))
    points = [fact[1] for fact in seen]
    assert points == [point for point in points[::2] for _ in range(2)]
    assert [fact[0] for fact in seen] == ["a", "b"] * (len(seen) // 2)
    # 1 from each start, 10 from each of the two entries, 100 from each action: twice over.
    assert outcome.output == {"n": 242, "end": True}


async def test_nested_composites_are_one_row() -> None:
    seen: list[Any] = []
    hooks = CompositeHooks(
        CompositeHooks(Every("a", seen)), CompositeHooks(Every("b", seen), Every("c", seen))
    )
    await ran(machines.TWO_STATES, lambda: hooks)
    assert [fact[0] for fact in seen[:6]] == ["a", "b", "c", "a", "b", "c"]


async def test_the_first_error_target_wins_and_later_members_are_not_asked() -> None:
    seen: list[Any] = []

    class Target(Every):
        def on_error(self, state_name: str, error: Exception, context: Any) -> Any:
            super().on_error(state_name, error, context)
            return "end"

    hooks = CompositeHooks(Every("a", seen), Target("b", seen), Target("c", seen))
    assert (await ran(machines.FAILING, lambda: hooks)).status == "done"
    assert [fact[0] for fact in seen if fact[1] == "error"] == ["a", "b"]


async def test_an_exception_of_one_member_stops_the_row() -> None:
    seen: list[Any] = []

    class Broken(Every):
        def on_state_enter(self, state_name: str, context: Any) -> Any:
            raise ValueError("broken")

    outcome = await ran(machines.TWO_STATES, lambda: CompositeHooks(Broken("a", seen), Every("b", seen)))
    assert outcome.failure is not None
    assert outcome.failure.type == "ValueError"
    assert ("b", "state_enter", "start") not in seen


class Old(MachineHooks):
    """In the form of version 2: no state name."""

    def on_action(self, action_name: str, context: Any) -> Any:  # type: ignore[override]
        context["n"] += len(action_name)


class Partly:
    """Does not derive from anything, and has one method only."""

    async def on_action(self, state_name: str, action_name: str, context: Any) -> Any:
        return {**context, "n": context["n"] * 2}


@pytest.mark.parametrize(
    ("make", "n"),
    [
        (Old, 1), (Partly, 0), (lambda: CompositeHooks(Old(), Partly()), 2),
        (lambda: CompositeHooks(CompositeHooks(Old()), LoggingHooks(), MetricsHooks(), Old()), 2),
    ],
    ids=["two arguments", "a class of its own", "both in a composite", "among built-in ones"],
)  # fmt: skip
async def test_actions_are_called_in_the_form_they_were_written_in(make: Any, n: int) -> None:
    assert (await ran(machines.TWO_STATES, make)).output == {"n": n}


async def test_an_action_that_nobody_answers_is_refused_by_name() -> None:
    outcome = await ran(machines.TWO_STATES, lambda: CompositeHooks(MachineHooks(), Partial()))
    assert outcome.failure is not None
    assert '"a"' in outcome.failure.message
    with pytest.raises(BindingError, match='"a"'):
        call_action(MachineHooks(), "s", "a", {})


class Partial(MachineHooks):
    def on_state_enter(self, state_name: str, context: Any) -> Any: ...


def test_forms_of_actions_are_told_apart() -> None:
    assert action_takes_state(Every())
    assert not action_takes_state(Old())
    assert call_action(Old(), "state", "abc", context := {"n": 1}) is None
    assert context == {"n": 4}


def test_points_that_are_not_overridden_cost_nothing() -> None:
    assert steered_points(MachineHooks()) == frozenset()
    assert steered_points(Partial()) == {"state_enter"}
    assert steered_points(Partly()) == frozenset()
    assert steered_points(CompositeHooks(Partial(), Old())) == {"state_enter"}
    assert steered_points(Every()) == set(POINTS) - {"tool_calls", "tool_result"}
    assert not overrides(Partly(), "on_state_enter")


def test_a_class_derived_from_composite_steers_at_its_own_points_too() -> None:
    class Mine(CompositeHooks):
        async def on_transition(self, from_state: str, to_state: str, context: Any) -> Any:
            return to_state

    assert steered_points(Mine(Partial())) == {"state_enter", "transition"}
    assert steered_points(CompositeHooks(Mine())) == {"transition"}


async def test_the_first_tool_provider_wins() -> None:
    class Provides(MachineHooks):
        def __init__(self, provider: Any) -> None:
            self.provider = provider

        def get_tool_provider(self, state_name: str) -> Any:
            return self.provider and f"{self.provider} of {state_name}"

    hooks = CompositeHooks(MachineHooks(), Provides(None), Provides("x"), Provides("y"))
    assert hooks.get_tool_provider("s") == "x of s"
    assert CompositeHooks(MachineHooks(), Partly()).get_tool_provider("s") is None


async def test_tool_points_hand_the_context_on() -> None:
    class Tools(MachineHooks):
        async def on_tool_calls(self, state_name: str, tool_calls: Any, context: Any) -> Any:
            return {**context, "calls": len(tool_calls)}

        def on_tool_result(self, state_name: str, tool_result: Any, context: Any) -> Any:
            context["last"] = tool_result["content"]

    hooks = CompositeHooks(Tools(), LoggingHooks())
    assert await hooks.on_tool_calls("s", [{"name": "t"}], {"n": 1}) == {"n": 1, "calls": 1}
    assert await hooks.on_tool_result("s", {"content": "c"}, {"n": 1}) == {"n": 1, "last": "c"}
    assert steered_points(hooks) >= {"tool_calls", "tool_result"}


class Watching(MachineHooks):
    """Watches everything, tries to change it, and returns nonsense."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @observer
    def on_machine_start(self, context: Any) -> Any:
        self.seen.append("machine_start")

    @observer
    def on_state_enter(self, state_name: str, context: Any) -> Any:
        self.seen.append(("enter", state_name))
        context["n"] = -1000
        return {}

    @observer
    async def on_error(self, state_name: str, error: Exception, context: Any) -> Any:
        self.seen.append(("error", state_name))
        context["n"] = -1000
        return "end"

    @observer
    def on_tool_result(self, state_name: str, tool_result: Any, context: Any) -> Any:
        context["list"].append("mine")
        raise ValueError("observers may break")


async def test_observers_change_nothing_and_hear_once() -> None:
    watching = Watching()

    class Steers(Old):
        def on_state_enter(self, state_name: str, context: Any) -> Any:
            context["n"] += 1

    outcome = await ran(machines.TWO_STATES, lambda: CompositeHooks(watching, Steers()))
    assert outcome.output == {"n": 3}
    assert watching.seen == ["machine_start", ("enter", "start"), ("enter", "end")]


async def test_an_observer_of_errors_is_told_and_cannot_steer() -> None:
    watching = Watching()

    class Fails(Watching):
        def on_action(self, *args: Any) -> Any:
            raise KeyError("no")

    outcome = await ran(machines.FAILING, lambda: CompositeHooks(watching, Fails()))
    assert outcome.status == "failed"
    assert outcome.context["n"] == 0
    assert ("error", "start") in watching.seen


async def test_an_observer_of_tools_that_raises_is_logged_and_leaves_the_context(caplog: Any) -> None:
    hooks = Watching()
    context = {"list": ["theirs"]}
    assert await CompositeHooks(hooks).on_tool_result("s", {}, context) == {"list": ["theirs"]}
    assert "on_tool_result of Watching raised" in caplog.text
    assert observed_points(hooks) == {"machine_start", "state_enter"}
    assert steered_points(hooks) == {"error", "tool_result"}


async def test_what_hooks_do_in_the_background_lasts_as_long_as_the_run(caplog: Any) -> None:
    import anyio

    began, ended = anyio.Event(), anyio.Event()
    contexts: list[Any] = []

    class Beside(MachineHooks):
        async def on_background(self, context: Any) -> None:
            contexts.append(context)
            began.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.set()

        async def on_action(self, state_name: str, action_name: str, context: Any) -> Any:
            await began.wait()
            assert not ended.is_set()

    class Breaks(MachineHooks):
        async def on_background(self, context: Any) -> None:
            raise ValueError("breaks")

    async with Runtime(MemoryStore()) as runtime:
        made = machines.machine(machines.TWO_STATES, lambda: CompositeHooks(Beside(), Breaks()), {"n": 5})
        outcome = await runtime.start(made, execution_id="e1")
        await ended.wait()
    assert outcome.output == {"n": 5}
    assert contexts == [{"n": 5, "machine": {"execution_id": "e1"}}]
    assert "on_background of Breaks raised" in caplog.text


async def test_metrics_count_states_transitions_and_errors() -> None:
    metrics = MetricsHooks()
    await ran(machines.TWO_STATES, lambda: metrics)
    await ran(machines.FAILING, lambda: CompositeHooks(metrics, Every()))
    assert metrics.get_metrics() == {
        "state_counts": {"start": 2, "end": 1}, "transition_counts": {"start->end": 1},
        "total_states_executed": 3, "error_count": 1,
    }  # fmt: skip


async def test_each_action_and_hook_has_a_key_that_tells_it_from_all_others() -> None:
    keys: list[str] = []

    class Keys(MachineHooks):
        def on_state_enter(self, state_name: str, context: Any) -> Any:
            keys.append(context["machine"]["idempotency_key"])
            return context

        def on_action(self, state_name: str, action_name: str, context: Any) -> Any:
            keys.append(context["machine"]["idempotency_key"])
            return context

    states = {
        "a": {"action": "go", "transitions": [{"to": "b"}]},
        "b": {"action": "go", "transitions": [{"to": "c"}]},
        "c": {"type": "final"},
    }
    outcome = await ran(states, Keys)
    steps = ["1/enter", "1/action", "2/enter", "2/action", "3/enter"]
    assert keys == [f"{outcome.execution_id}/0/{step}" for step in steps]
