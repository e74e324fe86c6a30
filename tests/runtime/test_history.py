"""Any moment of an execution, what changed between two, and forks, on asyncio and trio."""

from __future__ import annotations

import datetime
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
from pydantic import BaseModel
from runtime_machines import acting, agents, config, machine, start

from flat import (
    AgentFailed,
    Bindings,
    DefinitionError,
    ExecutionBusy,
    ExecutionNotFound,
    Machine,
    MachineHooks,
    MemoryStore,
    NotStorable,
    Runtime,
    SQLiteStore,
)
from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.backends.protocols import Commit
from flat.bindings import storable
from flat.core.codec import Codec
from flat.core.events import Spent
from flat.errors import IncompatibleSnapshot
from flat.runtime.costs import own, shares
from flat.runtime.history import ABSENT, Change, NoSuchMoment, forked_from
from flat.runtime.machine import program_of
from flat.spec.schema import schema
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


class Count(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        context["n"] += 1
        context.setdefault("seen", []).append(action_name)
        return context


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime(MemoryStore(), clock=VirtualClock()) as opened:
        yield opened


async def counted(runtime: Runtime, *names: str, id: str = "e", **more: Any) -> Machine:
    made = machine(acting(*names), Count)
    await runtime.start(made, execution_id=id, **more)
    runtime.machines = {"tested": made}
    return made


# -- moments ---------------------------------------------------------------------------------------


async def test_a_step_is_shown_as_it_was_when_its_node_was_entered(runtime: Runtime) -> None:
    await counted(runtime, "a", "b")
    assert (await runtime.inspect("e", at="step:3")).root.node == "b"
    assert await runtime.context("e", at="step:3") == {"n": 1, "seen": ["a"]}
    assert (await runtime.context("e"))["n"] == 2
    assert (await runtime.context("e", at="seq:0"))["n"] == 0
    assert (await runtime.context("e", at=0))["n"] == 0


async def test_a_step_that_made_no_commit_is_told_from_one_that_never_was(runtime: Runtime) -> None:
    await counted(runtime, "a", "b")
    # The first state only goes on: what begins it is the very first commit.
    assert (await runtime.inspect("e", at="step:1")).steps == 0
    with pytest.raises(NoSuchMoment, match="has not come to step 9; its last one is 4"):
        await runtime.inspect("e", at="step:9")
    with pytest.raises(NoSuchMoment, match="no commit 99; its commits are 0 to"):
        await runtime.inspect("e", at=99)
    for wrong in ("3", "step:-1", "step:x", -1, "step:٣"):
        with pytest.raises(DefinitionError, match="names no moment"):
            await runtime.inspect("e", at=wrong)
    with pytest.raises(ExecutionNotFound):
        await runtime.inspect("nobody", at="step:1")
    with pytest.raises(ExecutionNotFound):
        await runtime.inspect("nobody")


async def test_a_step_passed_without_an_effect_names_the_one_that_followed(runtime: Runtime) -> None:
    states = acting("a", "b")
    states["a"]["transitions"] = [{"to": "mid"}]
    states["mid"] = {"transitions": [{"to": "b"}]}
    await runtime.start(machine(states, Count), execution_id="e")
    with pytest.raises(NoSuchMoment, match=r"passed on the way to step 4; name that one, or seq:\d+ for"):
        await runtime.inspect("e", at="step:3")


@pytest.mark.parametrize("size", [10, 700])
async def test_every_moment_is_the_same_however_it_is_rebuilt(tmp_path: Path, size: int) -> None:
    class Grow(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            context["n"] += 1
            # Long enough for bases to be written in between, and for texts that are kept apart.
            context["last"] = f"{context['n']}" * size
            context["big"] = "y" * 20_000 + str(context["n"] // 50)
            return context

    states = {
        "start": start("a"), "end": {"type": "final"},
        "a": {"action": "go", "transitions": [{"condition": "context.n >= 300", "to": "end"}, {"to": "a"}]},
    }  # fmt: skip
    async with Runtime(SQLiteStore(tmp_path / "s.db"), clock=VirtualClock()) as runtime:
        await runtime.start(machine(states, Grow), execution_id="e")
        everything = await runtime.snapshots("e")
        for seq, snapshot in everything[::23]:
            assert await runtime.inspect("e", at=seq) == snapshot
        by_step = {s.root.step: s for _, s in reversed(everything)}
        for step in (2, 150, 299):
            assert await runtime.inspect("e", at=f"step:{step}") == by_step[step]
        bases = [seq for seq, base, _ in await runtime.opened().bodies("e") if base]
        assert len(bases) == 1 if size == 10 else len(bases) > 1


# -- differences --------------------------------------------------------------------------------------


async def test_a_diff_names_what_was_added_changed_and_removed(runtime: Runtime) -> None:
    class Mix(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            context["deep"]["x"] = [1, 3, 4]
            del context["gone"]
            context["flag"] = 1
            return context

    made = machine(acting("a"), Mix, {"n": 0, "deep": {"x": [1, 2]}, "gone": "g", "flag": True, "same": [1]})
    await runtime.start(made, execution_id="e")
    found = await runtime.diff("e", "step:2")
    assert set(found.context) == {
        Change(("deep", "x", 1), 2, 3), Change(("deep", "x", 2), ABSENT, 4),
        Change(("gone",), "g", ABSENT), Change(("flag",), True, 1),
    }  # fmt: skip
    assert {c.kind for c in found.context} == {"added", "changed", "removed"}
    assert found.status == Change((), "running", "done")
    assert found.cursors == [Change(("0",), "a/action", "end/finish")]
    assert (found.a.step, found.b.step, found.a.node, found.b.node) == (2, 3, "a", "end")
    assert not await runtime.diff("e", "step:2", "step:2")


# -- forks ----------------------------------------------------------------------------------------------


async def test_a_fork_goes_on_from_its_step_with_what_was_set(runtime: Runtime) -> None:
    await counted(runtime, "a", "b", "c")
    before = await runtime.snapshots("e")
    new = await runtime.fork("e", at="step:3", set={"n": 10}, new_id="f")
    assert new == "f"
    stored = await runtime.opened().get("f")
    assert stored is not None
    original = await runtime.opened().get("e")
    assert original is not None
    assert (stored.status, stored.parent, stored.seq, stored.owner) == ("running", None, 0, None)
    assert (stored.program, stored.name, stored.kind) == (original.program, original.name, original.kind)
    outcome = await runtime.resume("f")
    assert (outcome.status, outcome.output, outcome.steps) == ("done", {"n": 12}, 5)
    assert outcome.context["seen"] == ["a", "b", "c"]
    assert outcome.in_doubt == ()
    assert await runtime.snapshots("e") == before


async def test_a_fork_asks_for_what_was_pending_under_its_own_key(runtime: Runtime) -> None:
    asked: list[str | None] = []

    class Once:
        async def call(self, request: AgentRequest) -> AgentResult:
            asked.append(request.idempotency_key)
            if len(asked) == 1:
                raise AgentFailed("busy", code="overloaded", retryable=True)
            return AgentResult(content=str(request.input["word"]), usage=Usage())

    states = {
        "start": {**start("end"), "agent": "x", "input": {"word": "{{ context.n }}"}, "in_doubt": "ask",
                  "output_to_context": {"said": "{{ output.content }}"},
                  "execution": {"type": "retry", "backoffs": [1]}},
        "end": {"type": "final", "output": {"said": "{{ context.said }}"}},
    }  # fmt: skip
    made = machine(states, answering={"x": Once()})
    runtime.machines = {"tested": made}
    await runtime.start(made, execution_id="e")
    assert asked == ["e/0/1/call", "e/0/1/call.1"]
    # A call that never began in the fork is not in doubt there, whatever its policy.
    await runtime.fork("e", at="step:1", set={"n": 7}, new_id="f")
    outcome = await runtime.resume("f")
    assert (outcome.status, outcome.output, outcome.in_doubt) == ("done", {"said": "7"}, ())
    assert asked[2:] == ["f/0/1/call"]


async def test_a_failed_execution_is_tried_again_in_its_fork(runtime: Runtime) -> None:
    class Picky(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            if context["n"] < 5:
                raise ValueError("too small")
            return context

    made = machine(acting("a"), Picky)
    runtime.machines = {"tested": made}
    assert (await runtime.start(made, execution_id="e")).status == "failed"
    assert (await runtime.resume(await runtime.fork("e"))).status == "failed"
    outcome = await runtime.resume(await runtime.fork("e", set={"n": 5}))
    assert (outcome.status, outcome.output, outcome.failure) == ("done", {"n": 5}, None)


async def test_a_finished_execution_is_copied_or_its_output_made_again(runtime: Runtime) -> None:
    await counted(runtime, "a")
    copy = await runtime.resume(await runtime.fork("e"))
    assert (copy.status, copy.output) == ("done", {"n": 1})
    again = await runtime.fork("e", set={"n": 9})
    assert (await runtime.inspect(again)).status == "running"
    assert (await runtime.resume(again)).output == {"n": 9}


async def test_forks_of_limited_and_cancelled_executions_can_go_on(runtime: Runtime) -> None:
    await counted(runtime, "a", "b", max_steps=2)
    fork = await runtime.fork("e")
    assert ((await runtime.inspect(fork)).status, (await runtime.inspect(fork)).reason) == (
        "limit", "max_steps (2) reached",
    )  # fmt: skip
    assert (await runtime.resume(fork, max_steps=9)).output == {"n": 2}
    await runtime.cancel("e")
    assert (await runtime.resume(await runtime.fork("e"), max_steps=9)).output == {"n": 2}


def waiting(to: str = "go/{{ context.who }}", **more: Any) -> Machine:
    states = {
        "start": {**start("end"), "wait_for": to, "output_to_context": {"got": "{{ output.value }}"}, **more},
        "end": {"type": "final", "output": {"got": "{{ context.got }}"}},
    }
    return machine(states, context={"who": "ann"})


async def test_a_fork_of_a_waiting_execution_waits_on_the_channel_that_it_would_ask_for(
    runtime: Runtime,
) -> None:
    await runtime.start(waiting(), execution_id="e")
    same, other = await runtime.fork("e"), await runtime.fork("e", set={"who": "bob"})
    found = {e.execution_id: (e.status, e.channels) for e in await runtime.list()}
    assert found[same] == ("waiting", ("go/ann",))
    assert found[other] == ("waiting", ("go/bob",))
    await runtime.signal("go/bob", 5)
    assert (await runtime.resume(other)).output == {"got": 5}
    assert (await runtime.resume(same)).status == "waiting"


async def test_a_time_limit_begins_anew_with_what_was_left_of_it() -> None:
    clock = VirtualClock()
    async with Runtime(MemoryStore(), clock=clock) as runtime:
        await runtime.start(waiting(timeout=60), execution_id="e")
        clock.advance(1000)
        stored = await runtime.opened().get(await runtime.fork("e"))
        assert stored is not None
        assert stored.wake_at == clock.now() + 60


async def test_a_fork_says_what_it_was_made_of(runtime: Runtime) -> None:
    await counted(runtime, "a", "b")
    fork = await runtime.fork("e", at="step:3")
    origin = await forked_from(runtime.opened(), fork)
    assert origin is not None
    assert (origin.execution_id, origin.step) == ("e", 3)
    (_, _, body), *_ = await runtime.opened().bodies(fork)
    jsonschema.Draft7Validator(schema("checkpoint")).validate(orjson.loads(body))
    await runtime.resume(fork)
    assert await forked_from(runtime.opened(), fork) == origin
    assert await forked_from(runtime.opened(), "e") is None
    with pytest.raises(NoSuchMoment, match="begins with step 3; step 2 is its original's"):
        await runtime.inspect(fork, at="step:2")
    again = await runtime.fork(fork, at="step:4")
    assert (await runtime.resume(again)).output == {"n": 2}


async def test_what_cannot_be_set_is_refused_before_anything_is_stored(runtime: Runtime) -> None:
    await counted(runtime, "a")
    with pytest.raises(NotStorable, match=r"context\.n\.at"):
        await runtime.fork("e", set={"n": {"at": object()}})
    with pytest.raises(DefinitionError, match="cannot be set"):
        await runtime.fork("e", set={"machine": 1})
    with pytest.raises(ExecutionBusy, match="choose another id"):
        await runtime.fork("e", new_id="e")
    with pytest.raises(ExecutionNotFound):
        await runtime.fork("nobody")
    assert len(await runtime.list()) == 1


class Card(BaseModel):
    text: str


async def test_values_of_the_users_types_are_carried_over_by_who_knows_them_not(runtime: Runtime) -> None:
    """Also a long text inside of one, which is kept apart from the snapshot in the original."""

    class Keep(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            context["card"] = Card(text="\ud800" + "long " * 5000)
            context["day"] = datetime.date(2026, 2, 3)
            return context

    bindings = Bindings()
    storable(bindings.types, Card)
    made = machine(acting("a", "b"), Keep, bindings=bindings)
    await runtime.start(made, execution_id="e")
    fork = await runtime.fork("e", at="step:3")
    (_, _, body), *more = await runtime.opened().bodies(fork)
    assert (more, b'["blob"' in body) == ([], False)
    outcome = await runtime.resume(fork, made)
    assert outcome.context["card"] == Card(text="\ud800" + "long " * 5000)
    runtime.machines = {"tested": made}
    set_ = await runtime.fork("e", at="step:3", set={"other": Card(text="x")})
    assert (await runtime.resume(set_)).context["other"] == Card(text="x")


async def test_the_log_that_belongs_to_the_moment_goes_along(runtime: Runtime) -> None:
    """Rows that came later do not."""
    await runtime.start(waiting(), execution_id="e")
    store = runtime.opened()
    lease = await store.acquire("e", runtime.owner, now=runtime.clock.now(), ttl=30)
    at, head = runtime.clock.now(), await store.get("e")
    assert head is not None
    for length, rows in ((2, [b'"one"', b'"two"']), (3, [b'"three"'])):
        old = await runtime.inspect("e")
        body, _ = Codec().delta(old, replace(old, log_length=length))
        seq = head.seq + length - 1
        await store.commit(Commit(lease=lease, seq=seq, at=at, body=body, log=rows))
    await store.release(lease)
    fork = await runtime.fork("e", at=head.seq + 1)
    stored = await store.load(fork)
    assert stored is not None
    assert list(stored.log) == [b'"one"', b'"two"']
    assert (stored.execution.status, stored.execution.channels) == ("waiting", ("go/ann",))
    assert stored.execution.owner is None
    await runtime.signal("go/ann", 1)
    assert (await runtime.resume(fork)).output == {"got": 1}
    with pytest.raises(ExecutionBusy):
        await runtime.fork("e", new_id=fork)


async def test_a_fork_needs_the_place_in_the_program_that_the_original_has_now(runtime: Runtime) -> None:
    await counted(runtime, "a", "b", max_steps=2)
    other = machine(acting("b"), Count)
    await runtime.resume("e", other, adopt=True, max_steps=9)
    with pytest.raises(IncompatibleSnapshot, match=r'has now has no "a/action"'):
        await runtime.fork("e", at="step:2")
    assert (await runtime.resume(await runtime.fork("e", at="step:3"), other)).status == "done"


# -- what it cost ------------------------------------------------------------------------------------------


class Priced:
    """Fails once, and is paid for that too."""

    def __init__(self, cost: float | None) -> None:
        self.cost, self.times = cost, 0

    async def call(self, request: AgentRequest) -> AgentResult:
        self.times += 1
        usage = Usage(input_tokens=10, output_tokens=2, api_calls=1, cost=self.cost)
        if self.times == 1:
            raise AgentFailed("busy", code="overloaded", retryable=True, usage=usage)
        return AgentResult(content="x", usage=usage)


def priced_states() -> Mapping[str, Any]:
    retry = {"type": "retry", "backoffs": [1]}
    return {
        "start": {**start("two"), "agent": "x", "execution": retry},
        "two": {"agent": "y", "execution": retry, "transitions": [{"to": "three"}]},
        "three": {"agent": "x", "transitions": [{"to": "end"}]},
        "end": {"type": "final"},
    }


async def test_costs_are_told_by_state_and_agent(runtime: Runtime) -> None:
    made = machine(priced_states(), answering={"x": Priced(0.5), "y": Priced(None)})
    runtime.machines = {"tested": made}
    outcome = await runtime.start(made, execution_id="e")
    text = await runtime.opened().get_config((await runtime.list())[0].program)
    assert text is not None
    program, _ = program_of(text)
    found = shares([s for _, s in await runtime.snapshots("e")], program)
    assert [(s.node, s.agent, s.spent.calls, s.spent.cost, s.spent.priced) for s in found] == [
        ("start", "x", 2, 1.0, True), ("two", "y", 2, 0.0, False), ("three", "x", 1, 0.5, True),
    ]  # fmt: skip
    assert own(found) == outcome.spent
    fork = await runtime.fork("e", at="step:3")
    await runtime.resume(fork)
    later = shares([s for _, s in await runtime.snapshots(fork)], None)
    assert [(s.node, s.agent, s.spent.calls) for s in later] == [
        ("(before the fork)", None, 4), ("three", None, 1),
    ]  # fmt: skip
    assert own(later) == Spent(calls=1, input_tokens=10, output_tokens=2, cost=0.5)


async def test_what_children_used_is_told_apart_and_their_fork_starts_its_own(runtime: Runtime) -> None:
    agent = Priced(0.5)
    agent.times = 1  # it fails no more
    kid = config(
        {"k": {**start("end"), "agent": "x"}, "end": {"type": "final"}}, name="kid", agents=agents("x")
    )
    states = {
        "start": {**start("one"), "agent": "x"},
        "one": {"machine": ["kid"], "transitions": [{"to": "each"}]},
        "each": {"foreach": "{{ [1, 2] }}", "machine": "kid", "transitions": [{"to": "end"}]},
        "end": {"type": "final"},
    }
    made = machine(states, answering={"x": agent}, machines={"kid": kid})
    runtime.machines = {"tested": made}
    outcome = await runtime.start(made, execution_id="e")
    assert (outcome.status, outcome.spent.calls) == ("done", 4)
    found = shares([s for _, s in await runtime.snapshots("e")], made.program)
    assert [(s.node, s.agent, s.machine, s.spent.calls) for s in found] == [
        ("start", "x", None, 1), ("one", None, "kid", 1), ("each", None, "kid", 2),
    ]  # fmt: skip
    assert own(found).calls == 1
    await runtime.fork("e", at="step:2", new_id="f")
    assert (await runtime.resume("f")).spent.calls == 4
    born = [e.execution_id for e in await runtime.list(parent="f")]
    assert len(born) == 3
    assert all(name.startswith("f.") for name in born)
