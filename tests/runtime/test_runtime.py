"""Starting, resuming, cancelling and inspecting executions, on asyncio and trio."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from runtime_machines import acting, machine, start

import flat
from flat import (
    AgentFailed,
    Bindings,
    DefinitionError,
    ExecutionBusy,
    ExecutionError,
    ExecutionNotFound,
    MachineHooks,
    MemoryStore,
    Notice,
    NotStorable,
    Runtime,
    SQLiteStore,
)
from flat.backends.protocols import Commit
from flat.core.events import Spent
from flat.drivers.doubts import RETRY
from flat.errors import IncompatibleSnapshot
from flat.testing.agents import After, ScriptedAgent
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


class Count(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        context["n"] += 1
        return context


class Hang(MachineHooks):
    """Says when it is reached, and then takes for ever, the first time."""

    def __init__(self) -> None:
        self.reached, self.times = anyio.Event(), 0

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        self.times += 1
        self.reached.set()
        if self.times == 1:
            await anyio.sleep_forever()
        context["n"] += 1
        return context


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime(MemoryStore(), clock=VirtualClock()) as opened:
        yield opened


async def test_a_run_ends_with_its_output(runtime: Runtime) -> None:
    outcome = await runtime.start(machine(acting("a", "b"), Count))
    assert (outcome.status, outcome.output, outcome.steps, outcome.node) == ("done", {"n": 2}, 4, "end")
    assert outcome.raise_for_failure() is outcome
    again = await runtime.resume(outcome.execution_id)
    assert (again.status, again.output) == ("done", {"n": 2})
    with pytest.raises(ExecutionBusy):
        await runtime.start(machine(acting("a"), Count), execution_id=outcome.execution_id)
    with pytest.raises(ExecutionNotFound):
        await runtime.resume("nobody")


async def test_nothing_is_kept_without_a_store() -> None:
    async with Runtime(None) as runtime:
        assert (await runtime.start(machine(acting("a"), Count))).output == {"n": 1}
        with pytest.raises(ExecutionError, match="keeps nothing"):
            await runtime.list()


async def test_the_input_may_be_changed_by_its_owner_afterwards(runtime: Runtime) -> None:
    given = {"items": [1]}

    class Spoil(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
            given["items"].append(2)

    spoiled = machine(acting("a"), Spoil, {"n": "{{ input.items }}"})
    assert (await runtime.start(spoiled, given)).output == {"n": [1]}


async def test_cancelling_a_run_in_this_process_ends_it_for_good(runtime: Runtime) -> None:
    hang = Hang()
    outcomes = []

    async def run() -> None:
        outcomes.append(await runtime.start(machine(acting("a"), lambda: hang), execution_id="e"))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await hang.reached.wait()
        with pytest.raises(ExecutionBusy):
            await runtime.resume("e")
        assert await runtime.cancel("e", "enough")
    assert (outcomes[0].status, outcomes[0].reason) == ("cancelled", "enough")
    assert (await runtime.inspect("e")).status == "cancelled"
    assert not await runtime.cancel("e")
    with pytest.raises(ExecutionNotFound):
        await runtime.cancel("nobody")


async def test_cancelling_from_another_runtime_reaches_the_one_that_drives(tmp_path: Path) -> None:
    hang = Hang()
    outcomes = []
    one, two = SQLiteStore(tmp_path / "s.db"), SQLiteStore(tmp_path / "s.db")
    async with Runtime(one, lease_seconds=0.05) as driving, Runtime(two) as other:

        async def run() -> None:
            outcomes.append(await driving.start(machine(acting("a"), lambda: hang), execution_id="e"))

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(run)
                await hang.reached.wait()
                assert await other.cancel("e")
    assert outcomes[0].status == "cancelled"
    await one.close()
    await two.close()


async def test_a_parked_execution_is_cancelled_at_once(runtime: Runtime) -> None:
    states = {
        "start": start("w"),
        "w": {"wait_for": "c", "transitions": [{"to": "end"}]},
        "end": {"type": "final"},
    }
    outcome = await runtime.start(machine(states, context={"n": 0, "at": 1}), execution_id="e")
    assert (outcome.status, outcome.waiting_on) == ("waiting", ("c",))
    assert await runtime.cancel("e", "no")
    assert (await runtime.resume("e")).status == "cancelled"


async def test_cancellation_from_outside_leaves_a_run_that_resumes(runtime: Runtime) -> None:
    hang = Hang()
    tested = machine(acting("a", "b"), lambda: hang)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.start, tested, None)
            await hang.reached.wait()
            scope.cancel()
    (execution,) = await runtime.list()
    assert execution.status == "running"
    outcome = await runtime.resume(execution.execution_id, tested)
    assert (outcome.output, [d.what for d in outcome.in_doubt]) == ({"n": 2}, ["action a"])


async def test_a_state_timeout_is_an_error_like_any_other() -> None:
    clock = VirtualClock()
    slow = ScriptedAgent(After(60, "late"), clock=clock)
    states = {
        "start": start("ask"),
        "ask": {
            "agent": "a",
            "timeout": 5,
            "on_error": {"TimeoutError": "end"},
            "transitions": [{"to": "never"}],
        },
        "never": {"type": "final"},
        "end": {"type": "final", "output": {"why": "{{ context.last_error }}"}},
    }
    async with Runtime(MemoryStore(), clock=clock) as runtime:
        outcome = await runtime.start(machine(states, answering={"a": slow}))
    assert outcome.output == {"why": "not done within 5 s"}
    assert clock.now() == VirtualClock().now() + 5
    assert slow.requests[0].timeout == 5


async def test_pauses_take_virtual_time_only() -> None:
    clock = VirtualClock()
    agent = ScriptedAgent(AgentFailed("busy", retryable=True), AgentFailed("busy", retryable=True), "ok")
    states = {
        "start": start("ask"),
        "ask": {
            "agent": "a",
            "execution": {"type": "retry", "backoffs": [600, 6000], "jitter": 0},
            "transitions": [{"to": "end"}],
        },
        "end": {"type": "final", "output": {"n": 1}},
    }
    async with Runtime(MemoryStore(), clock=clock) as runtime:
        outcome = await runtime.start(machine(states, answering={"a": agent}))
    assert outcome.output == {"n": 1}
    assert outcome.cause is None
    assert clock.now() == VirtualClock().now() + 6600
    assert len({request.idempotency_key for request in agent.requests}) == 3


async def test_observers_see_everything_once_and_one_that_raises_is_switched_off(caplog: Any) -> None:
    class Seeing:
        def __init__(self) -> None:
            self.seen: list[tuple[str, str]] = []

        def notify(self, notice: Notice) -> None:
            self.seen.append((notice.kind, notice.node))

    class Broken:
        times = 0

        def notify(self, notice: Notice) -> None:
            self.times += 1
            raise RuntimeError("broken")

    seeing, broken = Seeing(), Broken()
    states = {
        "start": start("w"),
        "w": {"wait_for": "c", "transitions": [{"to": "a"}]},
        "a": {"action": "x", "transitions": [{"to": "end"}]},
        "end": {"type": "final"},
    }
    async with Runtime(MemoryStore(), observers=[broken, seeing]) as runtime:
        await runtime.signal("c", {"x": 1})
        outcome = await runtime.start(machine(states, Count))
    assert outcome.status == "done"
    assert broken.times == 1
    assert "switched off" in caplog.text
    assert [one for one in seeing.seen if one[0] in ("enter", "leave")] == [
        ("enter", "start"),
        ("leave", "start"),
        ("enter", "w"),
        ("leave", "w"),
        ("enter", "a"),
        ("leave", "a"),
        ("enter", "end"),
        ("leave", "end"),
    ]
    assert ("answered", "a") in seeing.seen
    assert seeing.seen[-1] == ("stopped", "")


# -- effects in doubt ------------------------------------------------------------------------


async def in_doubt(policy: str, runtime: Runtime, bindings: Bindings | None = None, **resume: Any) -> Any:
    """A run whose action was interrupted under a policy, resumed."""
    hang = Hang()
    states = acting("a")
    states["a"] = {**states["a"], "in_doubt": policy, "on_error": {"InDoubt": "end"}}
    tested = machine(states, lambda: hang, bindings=bindings)
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.start, tested)
            await hang.reached.wait()
            scope.cancel()
    (execution,) = await runtime.list()
    outcome = await runtime.resume(execution.execution_id, tested, **resume)
    return outcome, hang.times, tested


async def test_retry_performs_again_and_reports(runtime: Runtime) -> None:
    outcome, times, _ = await in_doubt("retry", runtime)
    assert (outcome.output, times, [d.policy for d in outcome.in_doubt]) == ({"n": 1}, 2, ["retry"])


async def test_fail_is_an_error_that_can_be_routed(runtime: Runtime) -> None:
    outcome, times, _ = await in_doubt("fail", runtime)
    assert (outcome.output, times, outcome.context["last_error_type"]) == ({"n": 0}, 1, "InDoubt")


async def test_ask_stops_until_somebody_decides(runtime: Runtime) -> None:
    outcome, times, tested = await in_doubt("ask", runtime)
    assert (outcome.status, times, outcome.reason) == ("in_doubt", 1, "0/2/action")
    again = await runtime.resume(outcome.execution_id, tested)
    assert again.status == "in_doubt"
    decided = await runtime.resume(outcome.execution_id, tested, decisions={"0/2/action": {"n": 40}})
    assert (decided.status, decided.output) == ("done", {"n": 40})


async def test_a_decision_to_retry_performs_again(runtime: Runtime) -> None:
    outcome, times, _ = await in_doubt("ask", runtime, decisions={"0/2/action": RETRY})
    assert (outcome.output, times) == ({"n": 1}, 2)


@pytest.mark.parametrize(
    ("answer", "output", "times"),
    [({"n": 7}, {"n": 7}, 1), (True, {"n": 0}, 1), (None, {"n": 1}, 2), (False, {"n": 1}, 2)],
)
async def test_a_verifier_tells(runtime: Runtime, answer: Any, output: Any, times: int) -> None:
    asked = []

    async def verify(key: str, effect: Any) -> Any:
        asked.append(key)
        return answer

    outcome, performed, _ = await in_doubt("verify:ledger", runtime, Bindings(verifiers={"ledger": verify}))
    assert (outcome.output, performed) == (output, times)
    assert asked == [f"{outcome.execution_id}/0/2/action"]


async def test_a_call_may_be_decided_with_its_answer(runtime: Runtime) -> None:
    reached = anyio.Event()

    class Hanging:
        async def call(self, request: Any) -> Any:
            reached.set()
            await anyio.sleep_forever()

    states = {
        "start": start("ask"),
        "ask": {
            "agent": "a",
            "in_doubt": "ask",
            "output_to_context": {"n": "{{ output.n }}"},
            "transitions": [{"to": "end"}],
        },
        "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
    }
    tested = machine(states, answering={"a": Hanging()})
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.start, tested)
            await reached.wait()
            scope.cancel()
    (execution,) = await runtime.list()
    decided = await runtime.resume(execution.execution_id, tested, decisions={"0/2/call": {"n": 3}})
    assert decided.output == {"n": 3}


# -- other programs ----------------------------------------------------------------------------


async def interrupted(runtime: Runtime, tested: flat.Machine, hang: Hang) -> str:
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            group.start_soon(runtime.start, tested)
            await hang.reached.wait()
            scope.cancel()
    (execution,) = await runtime.list()
    return execution.execution_id


async def test_a_changed_program_is_refused_unless_it_is_adopted(runtime: Runtime) -> None:
    hang = Hang()
    execution = await interrupted(runtime, machine(acting("a"), lambda: hang), hang)
    longer = machine(acting("a", "b"), Count)
    with pytest.raises(IncompatibleSnapshot, match="another version"):
        await runtime.resume(execution, longer)
    with pytest.raises(IncompatibleSnapshot, match='no state "a"'):
        await runtime.resume(execution, machine(acting("b"), Count), adopt=True)
    assert (await runtime.inspect(execution)).status == "running"
    assert (await runtime.resume(execution, longer, adopt=True)).output == {"n": 2}


@pytest.mark.parametrize("url", ["memory:", "sqlite:///{0}/flat.db", "file:{0}/runs"])
async def test_an_adopted_program_is_the_one_that_the_execution_has_from_then_on(
    url: str, tmp_path: Path
) -> None:
    async with Runtime(url.format(tmp_path)) as runtime:
        hang = Hang()
        execution = await interrupted(runtime, machine(acting("a"), lambda: hang), hang)
        longer = machine(acting("a", "b"), Count)
        parked = await runtime.resume(execution, longer, adopt=True, max_steps=1)
        assert parked.status == "limit"
        assert (await runtime.resume(execution, longer, max_steps=10)).output == {"n": 2}
        (row,) = await runtime.list()
        assert row.program == longer.program.digest


async def test_hooks_that_lack_the_point_where_a_run_stands_are_refused(runtime: Runtime) -> None:
    reached = anyio.Event()

    class Entering(Count):
        async def on_state_enter(self, state_name: str, context: dict[str, Any]) -> None:
            if state_name == "a" and not reached.is_set():
                reached.set()
                await anyio.sleep_forever()

    hang = Hang()
    hang.reached = reached
    tested = machine(acting("a"), Entering)
    execution = await interrupted(runtime, tested, hang)
    with pytest.raises(IncompatibleSnapshot, match="a/enter"):
        await runtime.resume(execution, machine(acting("a"), Count))
    assert (await runtime.resume(execution, tested)).output == {"n": 1}


async def test_an_execution_resumes_by_id_alone_with_registered_hooks(runtime: Runtime) -> None:
    hang = Hang()
    execution = await interrupted(runtime, machine(acting("a"), lambda: hang), hang)
    runtime.machines = {"tested": machine(acting("a", "b"), Count)}
    assert (await runtime.resume(execution)).output == {"n": 1}


# -- what is stored -------------------------------------------------------------------------------


async def test_what_cannot_be_stored_is_refused_at_the_write_and_the_run_resumes(runtime: Runtime) -> None:
    class Bad(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            return {**context, "user": {"seen": object()}}

    with pytest.raises(NotStorable, match=r"context\.user\.seen"):
        await runtime.start(machine(acting("a"), Bad), execution_id="e")
    assert (await runtime.resume("e", machine(acting("a"), Count))).output == {"n": 1}


async def test_typed_values_come_back_and_can_be_looked_at_without_their_types(runtime: Runtime) -> None:
    class Typed(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            if action_name == "a":
                return {**context, "when": datetime.date(2024, 2, 29), "seen": {1}}
            assert context["when"] == datetime.date(2024, 2, 29)
            context["seen"].add(2)
            return context

    states = acting("a", "b")
    states["a"]["transitions"] = [{"to": "wait"}]
    states["wait"] = {"wait_for": "c", "transitions": [{"to": "b"}]}
    tested = machine(states, Typed)
    outcome = await runtime.start(tested)
    assert (await runtime.inspect(outcome.execution_id)).root.context["seen"] == {1}
    await runtime.signal("c", {"$odd": (1, 2**70)})
    last = await runtime.resume(outcome.execution_id, tested)
    assert last.context["seen"] == {1, 2}
    assert [s.root.context.get("seen") for _, s in await runtime.snapshots(outcome.execution_id)][-1] == {
        1,
        2,
    }


class Counting(MemoryStore):
    """Counts the bytes that it is given to store."""

    written = 0

    async def commit(self, commit: Commit) -> None:
        self.written += len(commit.body) + sum(map(len, commit.log)) + sum(map(len, commit.blobs.values()))
        await super().commit(commit)


async def test_a_growing_history_is_written_once_and_any_step_can_be_rebuilt() -> None:
    class Append(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> None:
            context["n"] += 1
            context["history"].append({"number": context["n"], "text": "x" * 1024})

    states = {
        "start": start("a"),
        "a": {"action": "x", "transitions": [{"condition": "context.n >= 800", "to": "end"}, {"to": "a"}]},
        "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
    }
    store = Counting()
    async with Runtime(store) as runtime:
        outcome = await runtime.start(machine(states, Append, {"n": 0, "history": []}), execution_id="e")
        assert outcome.output == {"n": 800}
        assert store.written <= 2 * 800 * 1024
        for at in (0, 1, 17, 400, 799, 801):
            then = await runtime.inspect("e", at=at)
            assert len(then.root.context["history"]) == max(0, min(800, at - 1))
        assert (await runtime.inspect("e")).root.context == outcome.context


async def test_spent_is_summed_and_limits_keep_what_was_done(runtime: Runtime) -> None:
    states = {"start": start("ask"), "ask": {"agent": "a", "transitions": [{"to": "ask"}]}}
    agent = ScriptedAgent("x")
    tested = machine(states, answering={"a": agent})
    outcome = await runtime.start(tested, execution_id="e", max_agent_calls=3)
    assert (outcome.status, outcome.spent.calls, outcome.spent.input_tokens) == ("limit", 3, 30)
    again = await runtime.resume("e", tested, max_agent_calls=5)
    assert again.spent == Spent(calls=5, input_tokens=50, output_tokens=25, cost=pytest.approx(0.005))


async def test_errors_in_the_body_leave_the_runtime_as_they_are() -> None:
    with pytest.raises(ZeroDivisionError):
        async with Runtime(MemoryStore()):
            raise ZeroDivisionError


@pytest.mark.parametrize("given", ["machine.yml", None, 3])
async def test_what_is_no_machine_is_refused(runtime: Runtime, given: Any) -> None:
    with pytest.raises(DefinitionError, match=r"a machine is what flat\.load gives"):
        await runtime.start(given, {})


async def test_a_runtime_that_is_not_open_keeps_nothing_and_says_so() -> None:
    with pytest.raises(ExecutionError, match="this runtime is not open"):
        await Runtime("memory:").start(machine(acting("a"), Count))


async def test_an_id_is_taken_once(runtime: Runtime) -> None:
    await runtime.start(machine(acting("a"), Count), execution_id="one")
    with pytest.raises(
        ExecutionBusy, match='there is an execution "one" already; resume it, or choose another id'
    ):
        await runtime.start(machine(acting("a"), Count), execution_id="one")


@pytest.mark.parametrize("given", ["", "  ", 5])
async def test_an_id_is_a_text_that_is_not_blank(runtime: Runtime, given: Any) -> None:
    with pytest.raises(DefinitionError, match="an execution's id is a text that is not blank"):
        await runtime.start(machine(acting("a"), Count), execution_id=given)
    with pytest.raises(DefinitionError, match="an execution's id is a text that is not blank"):
        await runtime.resume(given)


@pytest.mark.parametrize("given", ["", None, 5])
async def test_a_channel_is_a_text_that_is_not_empty(runtime: Runtime, given: Any) -> None:
    with pytest.raises(DefinitionError, match="a channel is a text that is not empty"):
        await runtime.signal(given, 1)


@pytest.mark.parametrize("limits", [{"max_steps": -1}, {"max_agent_calls": "3"}])
async def test_limits_are_checked_on_resume_too(runtime: Runtime, limits: Any) -> None:
    with pytest.raises(DefinitionError, match="is a whole number, 0 or more"):
        await runtime.resume("any", **limits)


@pytest.mark.parametrize("at", [1.5, True, None])
async def test_a_moment_is_a_number_or_a_name(runtime: Runtime, at: Any) -> None:
    await runtime.start(machine(acting("a"), Count), execution_id="one")
    if at is None:
        with pytest.raises(DefinitionError, match="what a fork sets is a mapping"):
            await runtime.fork("one", set=[1])  # type: ignore[arg-type]
    else:
        with pytest.raises(DefinitionError, match="names no moment"):
            await runtime.context("one", at=at)
