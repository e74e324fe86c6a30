"""Machines that run other machines: one, a list, one for each item; what they cost; how they park, fail and end."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from runtime_machines import agents, config, machine

import flat
from flat import FileStore, HooksRegistry, Machine, MachineHooks, MemoryStore, Outcome, Runtime, SQLiteStore
from flat.backends.protocols import CheckpointStore
from flat.errors import StaleSnapshot
from flat.testing.agents import After, ScriptedAgent
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["none", "memory", "file", "sqlite"])
async def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Runtime]:
    """A runtime on each kind of store, and on none."""
    made: dict[str, Any] = {
        "none": lambda: None,
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "runs"),
        "sqlite": lambda: SQLiteStore(tmp_path / "runs.db"),
    }
    store = made[request.param]()
    async with Runtime(store, clock=VirtualClock()) as opened:
        yield opened
    if store is not None:
        await store.close()


@pytest.fixture
async def memory() -> AsyncIterator[Runtime]:
    async with Runtime(MemoryStore(), clock=VirtualClock()) as opened:
        yield opened


def to(target: str) -> list[dict[str, str]]:
    return [{"to": target}]


SHOUT = config({"s": {"type": "final", "output": {"said": "{{ context.v }}!"}}}, {"v": "{{ input.v }}"})
ECHO = config({"s": {"type": "final", "output": {"v": "context.v"}}}, {"v": "{{ input.v }}"})
FAIL = config({"s": {"action": "fail", "transitions": to("e")}, "e": {"type": "final"}}, hooks="h")
WAITER = config(
    {
        "w": {
            "wait_for": "go/{{ context.v }}",
            "output_to_context": {"got": "output.value"},
            "transitions": to("e"),
        },
        "e": {"type": "final", "output": {"got": "context.got"}},
    },
    {"v": "{{ input.v }}"},
)
ASKER = config(
    {
        "s": {"agent": "helper", "output_to_context": {"a": "output.content"}, "transitions": to("e")},
        "e": {"type": "final", "output": {"a": "context.a"}},
    },
    agents=agents("helper"),
)
TWICE = config(
    {
        "s": {"agent": "helper", "transitions": to("t")},
        "t": {"agent": "helper", "transitions": to("e")},
        "e": {"type": "final", "output": {"ok": True}},
    },
    agents=agents("helper"),
)
CHILDREN = {"shout": SHOUT, "echo": ECHO, "fail": FAIL, "waiter": WAITER, "asker": ASKER, "twice": TWICE}


class Failing(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("m")


class Hanging(MachineHooks):
    """An action that says that it was reached, and never ends."""

    reached: anyio.Event

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        type(self).reached.set()
        await anyio.sleep_forever()
        return context


def parent(
    state: Mapping[str, Any], context: Mapping[str, Any] | None = None, *, helper: Any = None,
    hooks: Any = Failing, **data: Any,
) -> Machine:  # fmt: skip
    """A machine of one state that runs children, and an end that shows what they gave."""
    states = {
        "work": {"output_to_context": {"got": "output"}, "transitions": to("end"), **state},
        "end": {"type": "final", "output": {"got": "context.got"}},
    }
    children = {name: CHILDREN.get(name, ECHO) for name in CHILDREN} | data.pop("machines", {})
    whole = config(states, {"got": None, **(context or {})}, machines=children, **data)
    return flat.load(
        config=whole, hooks=HooksRegistry({"h": hooks}), agents={} if helper is None else {"helper": helper}
    )


async def got(runtime: Runtime, tested: Machine, input: Mapping[str, Any] | None = None) -> Any:
    outcome = await runtime.start(tested, input)
    assert outcome.status == "done", outcome
    return outcome.output["got"]


async def statuses(runtime: Runtime) -> dict[str, str]:
    """Every execution but the roots, by the end of its id."""
    return {
        e.execution_id[e.execution_id.rindex(".0-") + 1 :]: e.status for e in await runtime.list() if e.parent
    }


# -- results ---------------------------------------------------------------------------------


async def test_a_single_machine_gives_its_output(runtime: Runtime) -> None:
    assert await got(runtime, parent({"machine": "shout", "input": {"v": "hi"}})) == {"said": "hi!"}


async def test_the_failure_of_a_single_machine_is_the_states(runtime: Runtime) -> None:
    outcome = await runtime.start(parent({"machine": "fail"}))
    assert (outcome.status, outcome.failure and outcome.failure.type) == ("failed", "ValueError")
    routed = parent({"machine": "fail", "on_error": {"ValueError": "end"}, "output_to_context": {}})
    outcome = await runtime.start(routed)
    assert outcome.status == "done"
    assert outcome.context["last_error"] == "m"
    assert outcome.context["last_error_type"] == "ValueError"


async def test_a_list_gives_results_by_name_and_failures_as_entries(runtime: Runtime) -> None:
    tested = parent({"machine": ["shout", "fail", "echo"], "input": {"v": "x"}})
    assert await got(runtime, tested) == {
        "shout": {"said": "x!"},
        "fail": {"_error": "m", "_error_type": "ValueError"},
        "echo": {"v": "x"},
    }


async def test_an_entry_of_a_list_has_input_of_its_own(memory: Runtime) -> None:
    entries = [{"name": "shout", "input": {"v": "{{ context.own }}"}}, {"name": "echo"}]
    tested = parent({"machine": entries, "input": {"v": "shared"}}, {"own": "own"})
    assert await got(memory, tested) == {"shout": {"said": "own!"}, "echo": {"v": "shared"}}


async def test_of_two_entries_of_one_name_the_last_is_run(memory: Runtime) -> None:
    entries = [{"name": "echo", "input": {"v": 1}}, {"name": "echo", "input": {"v": 2}}]
    assert await got(memory, parent({"machine": entries})) == {"echo": {"v": 2}}
    assert len(await memory.list()) == 2


async def test_a_list_may_mix_names_and_entries(memory: Runtime) -> None:
    tested = parent({"machine": ["echo", {"name": "shout", "input": {"v": "y"}}], "input": {"v": "x"}})
    assert await got(memory, tested) == {"echo": {"v": "x"}, "shout": {"said": "y!"}}


async def test_foreach_gives_a_list_in_the_order_of_the_items(runtime: Runtime) -> None:
    def slow(request: Any) -> Any:
        return After(10 - int(request.input["v"]), str(request.input["v"]))

    asker = config(
        {"s": {"agent": "helper", "input": {"v": "{{ context.v }}"}, "output_to_context": {"a": "output.content"},
               "transitions": to("e")}, "e": {"type": "final", "output": {"a": "context.a"}}},
        {"v": "{{ input.v }}"}, agents=agents("helper"),
    )  # fmt: skip
    state = {"foreach": "context.items", "machine": "slow", "input": {"v": "{{ item }}"}}
    helper = ScriptedAgent(slow, clock=runtime.clock)
    tested = parent(state, {"items": [3, 1, 2]}, helper=helper, machines={"slow": asker})
    assert await got(runtime, tested) == [{"a": "3"}, {"a": "1"}, {"a": "2"}]


async def test_a_failed_branch_does_not_eat_its_siblings(runtime: Runtime) -> None:
    def on_action(self: Any, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        if context["v"] == 2:
            raise ValueError("two")
        return context

    picky = type("Picky", (MachineHooks,), {"on_action": on_action})
    child = config(
        {"s": {"action": "check", "transitions": to("e")}, "e": {"type": "final", "output": {"v": "context.v"}}},
        {"v": "{{ input.v }}"}, hooks="h",
    )  # fmt: skip
    state = {"foreach": "context.items", "machine": "picky", "input": {"v": "{{ item }}"}}
    tested = parent(state, {"items": [1, 2, 3]}, hooks=picky, machines={"picky": child})
    assert await got(runtime, tested) == [{"v": 1}, {"_error": "two", "_error_type": "ValueError"}, {"v": 3}]


async def test_foreach_with_a_key_gives_a_mapping(runtime: Runtime) -> None:
    state = {
        "foreach": "context.items", "as": "it", "key": "{{ it.id }}", "machine": "echo",
        "input": {"v": "{{ it.id }}"},
    }  # fmt: skip
    tested = parent(state, {"items": [{"id": "b"}, {"id": "a"}]})
    assert await got(runtime, tested) == {"b": {"v": "b"}, "a": {"v": "a"}}


async def test_items_that_share_a_key_are_an_error_that_names_them(memory: Runtime) -> None:
    state = {"foreach": "context.items", "key": "{{ item }}", "machine": "echo"}
    outcome = await memory.start(parent(state, {"items": ["x", "y", "x"]}))
    assert outcome.status == "failed"
    assert outcome.failure is not None
    assert 'items 0 and 2 have the same key "x"' in outcome.failure.message
    assert len(await memory.list()) == 1


@pytest.mark.parametrize("foreach", ["context.items", "{{ context.items }}", "{{ context.items[:2] }}"])
async def test_foreach_takes_a_path_or_one_expression(memory: Runtime, foreach: str) -> None:
    state = {"foreach": foreach, "machine": "echo", "input": {"v": "{{ item }}"}}
    assert await got(memory, parent(state, {"items": [1, {"q": 2}]})) == [{"v": 1}, {"v": {"q": 2}}]


async def test_without_native_types_an_item_arrives_as_text(memory: Runtime) -> None:
    state = {"foreach": "context.items", "machine": "plain", "input": {"v": "{{ item }}"}}
    plain = config({"s": {"type": "final", "output": {"v": "context.v"}}}, {"v": "input.v"}, settings={})
    tested = parent(state, {"items": [1, {"q": 2}]}, settings={}, machines={"plain": plain})
    assert await got(memory, tested) == [{"v": "1"}, {"v": '{"q": 2}'}]


async def test_the_context_can_be_read_in_the_input_of_an_item(memory: Runtime) -> None:
    state = {"foreach": "context.items", "machine": "echo", "input": {"v": "{{ context.word }}{{ item }}"}}
    assert await got(memory, parent(state, {"items": ["1"], "word": "w"})) == [{"v": "w1"}]


@pytest.mark.parametrize(
    ("extra", "empty"), [({}, []), ({"key": "{{ item }}"}, {}), ({"mode": "any"}, []), ({"timeout": 1}, [])]
)
async def test_nothing_to_do_is_an_empty_result(memory: Runtime, extra: Any, empty: Any) -> None:
    assert (
        await got(memory, parent({"foreach": "context.items", "machine": "echo", **extra}, {"items": []}))
        == empty
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [("text", 'text ("text")'), (None, "nothing"), ({"a": 1}, "a mapping"), (5, "the number 5")],
)
async def test_foreach_over_something_else_is_an_error_of_the_state(
    memory: Runtime, value: Any, said: str
) -> None:
    outcome = await memory.start(parent({"foreach": "context.items", "machine": "echo"}, {"items": value}))
    assert outcome.failure is not None
    assert said in outcome.failure.message


# -- modes and time --------------------------------------------------------------------------


async def test_any_is_the_first_success_and_the_losers_are_cancelled(memory: Runtime) -> None:
    def by_speed(request: Any) -> Any:
        return After(100, "slow") if request.input["v"] == "slow" else "fast"

    child = config(
        {"s": {"agent": "helper", "input": {"v": "{{ context.v }}"}, "output_to_context": {"a": "output.content"},
               "transitions": to("e")}, "e": {"type": "final", "output": {"a": "context.a"}}},
        {"v": "{{ input.v }}"}, agents=agents("helper"),
    )  # fmt: skip
    helper = ScriptedAgent(by_speed, clock=memory.clock)
    before = memory.clock.now()
    state = {"foreach": "context.items", "machine": "c", "input": {"v": "{{ item }}"}, "mode": "any"}
    tested = parent(state, {"items": ["slow", "fast", "slow"]}, helper=helper, machines={"c": child})
    assert await got(memory, tested) == [{"a": "fast"}]
    assert memory.clock.now() < before + 100
    assert await statuses(memory) == {
        "0-1-children.0": "cancelled", "0-1-children.1": "done", "0-1-children.2": "cancelled"
    }  # fmt: skip


async def test_any_cancels_a_loser_that_waits_for_a_signal(runtime: Runtime) -> None:
    tested = parent({"machine": ["waiter", "echo"], "input": {"v": "x"}, "mode": "any"})
    assert await got(runtime, tested) == {"echo": {"v": "x"}}
    if runtime.kept is not None:
        assert await statuses(runtime) == {"0-1-children.0": "cancelled", "0-1-children.1": "done"}


async def test_any_looks_past_failures(runtime: Runtime) -> None:
    tested = parent({"machine": ["fail", "echo"], "input": {"v": "x"}, "mode": "any"})
    assert await got(runtime, tested) == {"echo": {"v": "x"}}


async def test_any_gives_all_errors_when_all_fail(runtime: Runtime) -> None:
    error = {"_error": "m", "_error_type": "ValueError"}
    tested = parent({"foreach": "context.items", "machine": "fail", "mode": "any"}, {"items": [1, 2]})
    assert await got(runtime, tested) == [error, error]


def slow(runtime: Runtime, state: Mapping[str, Any], context: Mapping[str, Any] | None = None) -> Machine:
    return parent(state, context, helper=ScriptedAgent(After(60, "late"), clock=runtime.clock))


async def test_a_single_machine_that_takes_too_long_is_cancelled(runtime: Runtime) -> None:
    outcome = await runtime.start(slow(runtime, {"machine": "asker", "timeout": 5}))
    assert outcome.failure is not None
    assert outcome.failure.type == "TimeoutError"
    assert outcome.failure.message == 'machine "asker" was not done within 5 s'
    if runtime.kept is not None:
        assert await statuses(runtime) == {"0-1-children": "cancelled"}


async def test_a_timeout_is_an_entry_where_there_are_several(runtime: Runtime) -> None:
    tested = slow(runtime, {"machine": ["echo", "asker"], "input": {"v": "x"}, "timeout": 5})
    entries = await got(runtime, tested)
    assert entries["echo"] == {"v": "x"}
    assert entries["asker"]["_error_type"] == "TimeoutError"


async def test_any_without_success_in_time_is_a_timeout(runtime: Runtime) -> None:
    state = {"foreach": "context.items", "machine": "asker", "mode": "any", "timeout": 5}
    outcome = await runtime.start(slow(runtime, state, {"items": [1, 2]}))
    assert outcome.failure is not None
    assert outcome.failure.type == "TimeoutError"


async def test_children_whose_turn_never_came_end_with_the_others(memory: Runtime) -> None:
    state = {"foreach": "context.items", "machine": "asker", "timeout": 5}
    tested = parent(
        state, {"items": [1, 2, 3]}, helper=ScriptedAgent(After(60, "late"), clock=memory.clock),
        settings={"max_concurrency": 1},
    )  # fmt: skip
    assert [entry["_error_type"] for entry in await got(memory, tested)] == ["TimeoutError"] * 3


async def test_no_more_children_run_at_once_than_the_settings_say(memory: Runtime) -> None:
    running, most = 0, 0

    class Watching(MachineHooks):
        async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await memory.clock.sleep_until(memory.clock.now() + 1)
            running -= 1

    state = {"foreach": "context.items", "machine": "fail"}
    tested = parent(state, {"items": list(range(10))}, hooks=Watching, settings={"max_concurrency": 3})
    assert len(await got(memory, tested)) == 10
    assert most == 3


# -- accounting ------------------------------------------------------------------------------


async def test_calls_and_costs_of_children_are_their_parents_too(runtime: Runtime) -> None:
    middle = config(
        {"s": {"machine": "asker", "transitions": to("e")}, "e": {"type": "final"}}, machines={"asker": ASKER}
    )
    state = {"machine": ["asker", "twice", "middle"]}
    outcome = await runtime.start(parent(state, helper=ScriptedAgent("ok"), machines={"middle": middle}))
    assert (outcome.spent.calls, round(outcome.spent.cost, 6)) == (4, 0.004)


async def test_what_a_failed_child_spent_counts(memory: Runtime) -> None:
    child = config(
        {"s": {"agent": "helper", "transitions": to("f")}, "f": {"action": "fail", "transitions": to("e")},
         "e": {"type": "final"}}, agents=agents("helper"), hooks="h",
    )  # fmt: skip
    outcome = await memory.start(
        parent({"machine": ["c"]}, helper=ScriptedAgent("ok"), machines={"c": child})
    )
    assert outcome.output["got"]["c"]["_error"] == "m"
    assert outcome.spent.calls == 1


@pytest.mark.parametrize("limit", [1, 2, 3, 5])
async def test_a_family_never_calls_models_more_often_than_its_root_may(memory: Runtime, limit: int) -> None:
    helper = ScriptedAgent("ok")
    state = {"foreach": "context.items", "machine": "twice"}
    tested = parent(state, {"items": [1, 2, 3, 4]}, helper=helper)
    outcome = await memory.start(tested, max_agent_calls=limit)
    assert len(helper.requests) == limit
    assert (outcome.status, outcome.reason) == ("limit", f"max_agent_calls ({limit}) reached")
    outcome = await memory.resume(outcome.execution_id, tested, max_agent_calls=limit + 1)
    assert (outcome.status, len(helper.requests)) == ("limit", limit + 1)
    outcome = await memory.resume(outcome.execution_id, tested, max_agent_calls=100)
    assert outcome.status == "done", outcome
    assert outcome.output == {"got": [{"ok": True}] * 4}
    assert (len(helper.requests), outcome.spent.calls) == (8, 8)


async def test_the_calls_of_a_child_that_waited_are_counted_once(memory: Runtime) -> None:
    class Waking(MachineHooks):
        async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
            await memory.clock.sleep_until(memory.clock.now() + 1)
            await memory.signal("go/x")
            await memory.resume("p.0-1-children.0")

    talks = config(
        {"s": {"agent": "helper", "transitions": to("w")}, "w": {"wait_for": "go/x", "transitions": to("e")},
         "e": {"type": "final"}}, agents=agents("helper"),
    )  # fmt: skip
    states = {
        "work": {"machine": ["talks", "fail"], "transitions": to("ask")},
        "ask": {"type": "final", "agent": "helper", "output": {"ok": 1}},
    }
    whole = config(states, machines={"talks": talks, "fail": FAIL}, agents=agents("helper"), hooks="h")
    tested = flat.load(
        config=whole, hooks=HooksRegistry({"h": Waking}), agents={"helper": ScriptedAgent("ok")}
    )
    memory.machines = {tested.name: tested}
    outcome = await memory.start(tested, execution_id="p", max_agent_calls=2)
    assert (outcome.output, outcome.spent.calls) == ({"ok": 1}, 2)


async def test_a_machine_may_go_no_deeper_than_max_depth(memory: Runtime) -> None:
    def nested(depth: int) -> dict[str, Any]:
        if not depth:
            return config({"s": {"type": "final", "output": {"ok": True}}})
        states = {
            "s": {"machine": "next", "output_to_context": {"got": "output"}, "transitions": to("e")},
            "e": {"type": "final", "output": {"got": "context.got"}},
        }
        return config(states, machines={"next": nested(depth - 1)})

    tested = parent({"machine": "n"}, machines={"n": nested(2)}, settings={"max_depth": 3})
    assert (await memory.start(tested)).status == "done"
    tested = parent({"machine": "n"}, machines={"n": nested(2)}, settings={"max_depth": 2})
    outcome = await memory.start(tested)
    assert outcome.failure is not None
    assert outcome.failure.type == "LimitExceeded"
    assert "at depth 3, and max_depth is 2" in outcome.failure.message
    depths = sorted([(await memory.inspect(e.execution_id)).depth for e in await memory.list()])
    assert depths == [0, 0, 1, 1, 2, 2, 3]


async def test_a_depth_that_was_not_limited_ends_at_ten(memory: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "self.yml"
    path.write_text(
        "spec: flatmachine\nspec_version: '4.2.1'\ndata:\n  name: self\n  machines: {self: ./self.yml}\n"
        "  states:\n    s: {machine: self, transitions: [{to: e}]}\n    e: {type: final}\n"
    )
    outcome = await memory.start(flat.load(path))
    assert outcome.failure is not None
    assert "depth 11, and max_depth is 10" in outcome.failure.message
    assert len(await memory.list()) == 11


# -- parking ---------------------------------------------------------------------------------


async def dispatched(runtime: Runtime, tested: Machine, execution_id: str) -> Outcome:
    """Wake whoever has something to go on with, as a dispatcher does, until the execution is over."""
    while ready := await runtime.opened().ready(now=runtime.clock.now()):
        for execution in ready:
            outcome = await runtime.resume(execution.execution_id)
            if execution.execution_id == execution_id:
                return outcome
    raise AssertionError("nobody woke it")


@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
async def test_a_child_that_waits_parks_its_parent_and_wakes_it_in_another_process(
    kind: Any, tmp_path: Path
) -> None:
    state = {"machine": ["waiter", "echo"], "input": {"v": "x"}}
    place = tmp_path / "runs"
    store: CheckpointStore = kind(place)
    async with Runtime(store, clock=VirtualClock()) as first:
        outcome = await first.start(parent(state), execution_id="p")
        assert (outcome.status, outcome.waiting_on) == ("waiting", ("go/x",))
    await store.close()
    store = kind(place)
    tested = parent(state)
    async with Runtime(store, clock=VirtualClock(), machines={tested.name: tested}) as second:
        await second.signal("go/x", "hello")
        outcome = await dispatched(second, tested, "p")
        assert outcome.output == {"got": {"waiter": {"got": "hello"}, "echo": {"v": "x"}}}
        assert await second.signals() == []
        assert (await second.resume("p")).output == outcome.output
    await store.close()


async def test_a_signal_that_is_there_already_does_not_park(memory: Runtime) -> None:
    await memory.signal("go/x", "early")
    assert await got(memory, parent({"machine": "waiter", "input": {"v": "x"}})) == {"got": "early"}


async def test_a_parent_can_be_resumed_before_its_child_has_its_signal(memory: Runtime) -> None:
    tested = parent({"machine": "waiter", "input": {"v": "x"}})
    await memory.start(tested, execution_id="p")
    assert (await memory.resume("p", tested)).status == "waiting"
    await memory.signal("go/x", 1)
    assert (await memory.resume("p", tested)).output == {"got": {"got": 1}}


async def test_a_grandchild_that_waits_parks_everybody_above(memory: Runtime) -> None:
    middle = config(
        {"s": {"machine": "waiter", "input": {"v": "x"}, "output_to_context": {"r": "output"}, "transitions": to("e")},
         "e": {"type": "final", "output": {"r": "context.r"}}}, machines={"waiter": WAITER},
    )  # fmt: skip
    tested = parent({"machine": "middle"}, machines={"middle": middle})
    outcome = await memory.start(tested, execution_id="p")
    assert outcome.waiting_on == ("go/x",)
    assert {e.status for e in await memory.list()} == {"waiting"}
    await memory.signal("go/x", "deep")
    assert (await dispatched(memory, tested, "p")).output == {"got": {"r": {"got": "deep"}}}


async def test_a_parked_child_whose_time_is_over_is_cancelled(memory: Runtime) -> None:
    clock = memory.clock
    assert isinstance(clock, VirtualClock)
    tested = parent({"machine": "waiter", "input": {"v": "x"}, "timeout": 30})
    outcome = await memory.start(tested, execution_id="p")
    assert outcome.status == "waiting"
    assert not await memory.opened().ready(now=clock.now())
    clock.advance(31)
    outcome = await dispatched(memory, tested, "p")
    assert outcome.failure is not None
    assert outcome.failure.type == "TimeoutError"
    assert await statuses(memory) == {"0-1-children": "cancelled"}


# -- cancellation ----------------------------------------------------------------------------


async def test_cancelling_a_parent_cancels_its_running_children(memory: Runtime) -> None:
    Hanging.reached = anyio.Event()
    outcomes: list[Outcome] = []
    middle = config(
        {"s": {"machine": "fail", "transitions": to("e")}, "e": {"type": "final"}}, machines={"fail": FAIL}
    )
    tested = parent({"machine": ["fail", "middle"]}, hooks=Hanging, machines={"middle": middle})

    async def run() -> None:
        outcomes.append(await memory.start(tested, execution_id="p"))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await Hanging.reached.wait()
        await anyio.wait_all_tasks_blocked()
        assert await memory.cancel("p", "enough")
    assert (outcomes[0].status, outcomes[0].reason) == ("cancelled", "enough")
    assert [e.status for e in await memory.list()] == ["cancelled"] * 4


async def test_cancelling_a_parked_parent_cancels_what_it_waits_for(memory: Runtime) -> None:
    tested = parent({"machine": "waiter", "input": {"v": "x"}})
    await memory.start(tested, execution_id="p")
    assert await memory.cancel("p", "no")
    assert [e.status for e in await memory.list()] == ["cancelled"] * 2


async def test_a_child_that_is_cancelled_fails_for_its_parent(memory: Runtime) -> None:
    tested = parent({"machine": ["waiter", "echo"], "input": {"v": "x"}})
    await memory.start(tested, execution_id="p")
    await memory.cancel("p.0-1-children.0", "by hand")
    outcome = await memory.resume("p", tested)
    entry = outcome.output["got"]["waiter"]
    assert entry == {"_error": 'machine "waiter" was cancelled: by hand', "_error_type": "Cancelled"}


# -- in doubt --------------------------------------------------------------------------------


async def test_an_effect_of_a_child_in_doubt_is_told_with_the_parents_outcome(tmp_path: Path) -> None:
    """And one that has to be asked about parks the parent, until somebody decides about the child."""
    Hanging.reached = anyio.Event()
    asking = config(
        {
            "s": {"action": "pay", "in_doubt": "ask", "transitions": to("e")},
            "e": {"type": "final", "output": {"x": 1}},
        },
        hooks="h",
    )
    clock = VirtualClock()
    store = SQLiteStore(tmp_path / "s.db")
    async with Runtime(store, clock=clock) as first, anyio.create_task_group() as group:

        async def run() -> None:
            tested = parent({"machine": ["fail", "asking"]}, hooks=Hanging, machines={"asking": asking})
            await first.start(tested, execution_id="p")

        group.start_soon(run)
        await Hanging.reached.wait()
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    tested = parent({"machine": ["fail", "asking"]}, machines={"asking": asking})
    async with Runtime(store, clock=clock, machines={tested.name: tested}) as second:
        outcome = await second.resume("p", tested)
        assert outcome.status == "waiting"
        assert sorted((d.execution_id, d.policy) for d in outcome.in_doubt) == [
            ("p.0-1-children.0", "retry"), ("p.0-1-children.1", "ask"),
        ]  # fmt: skip
        child = await second.resume("p.0-1-children.1", decisions={"0/1/action": True})
        assert child.output == {"x": 1}
        outcome = await dispatched(second, tested, "p")
        assert outcome.output["got"]["asking"] == {"x": 1}
    await store.close()


# -- errors of ours --------------------------------------------------------------------------


async def test_a_child_file_that_is_broken_is_an_error_of_the_state(memory: Runtime, tmp_path: Path) -> None:
    (tmp_path / "broken.yml").write_text("spec: flatmachine\ndata: {states: {s: {trnsitions: []}}}\n")
    (tmp_path / "m.yml").write_text(
        "spec: flatmachine\nspec_version: '4.2.1'\ndata:\n  machines: {b: ./broken.yml}\n  states:\n"
        "    s: {machine: b, on_error: r, transitions: [{to: e}]}\n    e: {type: final}\n"
        "    r: {type: final, output: {why: context.last_error}}\n"
    )
    outcome = await memory.start(flat.load(tmp_path / "m.yml"))
    assert outcome.status == "done"
    assert "trnsitions" in outcome.output["why"]


async def test_a_store_that_refuses_ends_the_run_with_its_own_error(memory: Runtime) -> None:
    """Not with a group of errors, whatever runs side by side underneath."""
    store = memory.opened()
    commit = store.commit

    async def refuse(what: Any) -> None:
        if what.lease.execution_id != "p":
            raise StaleSnapshot(what.lease.execution_id, what.seq)
        await commit(what)

    store.commit = refuse  # type: ignore[method-assign]
    with pytest.raises(StaleSnapshot):
        await memory.start(parent({"machine": ["echo", "shout"], "input": {"v": 1}}), execution_id="p")


# -- launches --------------------------------------------------------------------------------


def launching(state: Mapping[str, Any] | None = None, **data: Any) -> Machine:
    own = {"launch": "echo", "launch_input": {"v": "L"}, "output_to_context": {}, **(state or {})}
    return parent(own, **data)


async def test_a_launched_machine_runs_beside_its_parent_which_ends_after_it(runtime: Runtime) -> None:
    outcome = await runtime.start(launching({"launch": ["echo", "shout"]}))
    assert (outcome.status, outcome.output) == ("done", {"got": None})
    if runtime.kept is not None:
        assert await statuses(runtime) == {"0-1-launch.0": "done", "0-1-launch.1": "done"}
        (echo,) = [e for e in await runtime.list() if e.execution_id.endswith("launch.0")]
        assert (await runtime.inspect(echo.execution_id)).output == {"v": "L"}


async def test_action_launch_machine_and_agent_of_one_state_run_in_this_order(memory: Runtime) -> None:
    trace: list[str] = []

    class Tracing(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            trace.append("action")
            return context

    def ask(request: Any) -> str:
        trace.append("agent")
        assert request.context["got"] == {"v": 1}
        return "words"

    states = {
        "work": {
            "action": "x", "launch": "echo", "launch_input": {"v": 2}, "machine": "echo", "input": {"v": 1},
            "agent": "helper", "output_to_context": {"got": "output"}, "transitions": to("end"),
        },
        "end": {"type": "final", "output": {"got": "context.got"}},
    }  # fmt: skip
    tested = machine(
        states, Tracing, {"got": None}, answering={"helper": ScriptedAgent(ask)}, machines={"echo": ECHO}
    )
    assert (await memory.start(tested)).output == {"got": {"content": "words"}}
    assert trace == ["action", "agent"]
    assert await statuses(memory) == {"0-1-launch": "done", "0-1-children": "done"}


async def test_the_failure_of_a_launched_machine_is_told_to_the_log_alone(
    memory: Runtime, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "flat"):
        outcome = await memory.start(launching({"launch": "fail"}))
    assert outcome.status == "done"
    assert await statuses(memory) == {"0-1-launch": "failed"}
    assert 'launched machine "fail"' in caplog.text


async def test_a_launch_that_cannot_begin_does_not_hold_up_the_others(
    memory: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "broken.yml").write_text("spec: flatmachine\ndata: {states: {s: {trnsitions: []}}}\n")
    (tmp_path / "ok.yml").write_text("spec: flatmachine\ndata: {states: {s: {type: final}}}\n")
    (tmp_path / "m.yml").write_text(
        "spec: flatmachine\nspec_version: '4.2.1'\ndata:\n  machines: {b: ./broken.yml, ok: ./ok.yml}\n"
        "  states:\n    s: {launch: [b, ok], transitions: [{to: e}]}\n    e: {type: final, output: {x: 1}}\n"
    )
    with caplog.at_level(logging.ERROR, "flat"):
        outcome = await memory.start(flat.load(tmp_path / "m.yml"))
    assert outcome.output == {"x": 1}
    assert await statuses(memory) == {"0-1-launch.1": "done"}
    assert 'launched machine "b" could not begin' in caplog.text


async def test_what_a_child_launches_is_awaited_by_the_root(runtime: Runtime) -> None:
    ended: list[str] = []

    class Slow(MachineHooks):
        async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
            await runtime.clock.sleep_until(runtime.clock.now() + 5)
            ended.append(state_name)

    child = config(
        {"s": {"launch": "fail", "transitions": to("e")}, "e": {"type": "final", "output": {"x": 1}}},
        machines={"fail": FAIL},
    )
    assert await got(runtime, parent({"machine": "c"}, hooks=Slow, machines={"c": child})) == {"x": 1}
    assert ended == ["s"]


async def test_a_launched_machine_of_a_dead_process_goes_on_when_its_parent_is_resumed(
    tmp_path: Path,
) -> None:
    Hanging.reached = anyio.Event()
    clock = VirtualClock()
    states = {
        "l": {"launch": "fail", "transitions": to("w")},
        "w": {"wait_for": "go", "transitions": to("e")},
        "e": {"type": "final", "output": {"ok": 1}},
    }

    def tested(hooks: Any) -> Machine:
        whole = config(states, machines={"fail": FAIL})
        return flat.load(config=whole, hooks=HooksRegistry({"h": hooks}))

    store = SQLiteStore(tmp_path / "s.db")
    with anyio.CancelScope() as life:
        async with Runtime(store, clock=clock) as first, anyio.create_task_group() as group:
            group.start_soon(lambda: first.start(tested(Hanging), execution_id="p"))
            await Hanging.reached.wait()
            life.cancel()
    done: list[str] = []

    class Good(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            done.append(state_name)
            return context

    async with Runtime(store, clock=clock) as second:
        assert (await second.inspect("p")).status == "waiting"
        assert await statuses(second) == {"0-1-launch": "running"}
        await second.signal("go")
        outcome = await second.resume("p", tested(Good))
        assert outcome.output == {"ok": 1}
        assert await statuses(second) == {"0-1-launch": "done"}
    assert done == ["s"]
    await store.close()


async def test_children_that_nobody_waits_for_any_more_are_ended_on_resume(memory: Runtime) -> None:
    """As after a crash between the winner's commit and the end of the losers."""
    states = {
        "r": {"machine": ["waiter", "echo"], "mode": "any", "input": {"v": "x"}, "transitions": to("w")},
        "w": {"wait_for": "go", "transitions": to("e")},
        "e": {"type": "final", "output": {"ok": 1}},
    }
    tested = flat.load(config=config(states, machines={"waiter": WAITER, "echo": ECHO}))
    cancel = memory.cancel

    async def forget(execution_id: str, reason: str = "") -> bool:
        return True

    memory.cancel = forget  # type: ignore[method-assign]
    await memory.start(tested, execution_id="p")
    memory.cancel = cancel  # type: ignore[method-assign]
    assert await statuses(memory) == {"0-1-children.0": "waiting", "0-1-children.1": "done"}
    await memory.signal("go")
    assert (await memory.resume("p", tested)).output == {"ok": 1}
    assert await statuses(memory) == {"0-1-children.0": "cancelled", "0-1-children.1": "done"}


# -- size ------------------------------------------------------------------------------------

TEN_THOUSAND = """
import anyio, gc, resource, sys
from flat import MemoryStore, Runtime, SQLiteStore, load
def file(states, context, **data):
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": {"context": context, "states": states, **data}}
child = file({"s": {"type": "final", "output": {"r": "{{ context.v }}"}}}, {"v": "{{ input.v }}"})
parent = file(
    {"f": {"machine": "c", "foreach": "context.items", "input": {"v": "{{ item }}"},
           "output_to_context": {"all": "output"}, "transitions": [{"to": "z"}]},
     "z": {"type": "final", "output": {"n": "{{ context.all | length }}", "last": "{{ context.all[-1].r }}"}}},
    {"items": "input.items"}, machines={"c": child})
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
async def main():
    store = {"none": lambda: None, "sqlite": lambda: SQLiteStore(sys.argv[2])}[sys.argv[1]]()
    machine = load(config=parent)
    async with Runtime(store) as runtime:
        assert (await runtime.start(machine, {"items": [1, 2]})).status == "done"
        before = peak()
        outcome = await runtime.start(machine, {"items": list(range(10_000))})
        assert outcome.output == {"n": "10000", "last": "9999"}, outcome
        print(peak() - before)
    if store is not None:
        await store.close()
anyio.run(main)
"""


@pytest.mark.parametrize("store", ["none", "sqlite"])
def test_ten_thousand_children_take_little_memory(store: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", TEN_THOUSAND, store, str(tmp_path / "s.db")],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) <= 60


async def test_the_children_of_a_mapping_are_looked_for_in_its_directory(tmp_path: Path) -> None:
    child = {
        "name": "child", "context": {"x": "{{ input.x }}"},
        "states": {"done": {"type": "final", "output": {"x": "{{ context.x }}"}}},
    }  # fmt: skip
    states = {
        "ask": {
            "type": "initial", "machine": "child", "input": {"x": 7},
            "output_to_context": {"x": "{{ output.x }}"}, "transitions": [{"to": "done"}],
        },
        "done": {"type": "final", "output": {"x": "{{ context.x }}"}},
    }  # fmt: skip
    parent = {
        "spec": "flatmachine", "spec_version": "4.2.1",
        "data": {"name": "parent", "context": {"x": None}, "machines": {"child": "child.yml"}, "states": states},
    }  # fmt: skip
    child_file = {"spec": "flatmachine", "spec_version": "4.2.1", "data": child}
    (tmp_path / "child.yml").write_text(json.dumps(child_file), encoding="utf-8")
    made = flat.load(config=parent, directory=tmp_path)
    async with Runtime(None) as runtime:
        outcome = await runtime.start(made)
    assert outcome.output == {"x": "7"}
