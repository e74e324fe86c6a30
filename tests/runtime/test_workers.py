"""Workers on a store: what they take, what they leave, and how they make way for each other."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from runtime_machines import acting, config, machine

from flat import FileStore, MachineHooks, MemoryStore, Runtime, SQLiteStore, load
from flat.backends.liveness import this_process
from flat.backends.protocols import Birth, CheckpointStore, Execution, Owner, Signal
from flat.backends.work import WorkerFilter, WorkerRecord
from flat.drivers.dispatch import Declined, Report
from flat.drivers.fleet import POOL
from flat.drivers.stranded import is_buried, is_queued
from flat.errors import BackendError, DefinitionError, ExecutionBusy, ExecutionNotFound
from flat.runtime import Machine
from flat.runtime.history import LOOKING
from flat.runtime.queue import PROCESS, at_work, register_of
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio

KINDS: dict[str, Callable[[Path], CheckpointStore]] = {
    "memory": lambda folder: MemoryStore(),
    "files": lambda folder: FileStore(folder / "store"),
    "sqlite": lambda folder: SQLiteStore(folder / "store.db"),
}
GONE = Owner(owner="gone", host="elsewhere", pid=1)
"""A worker on another host, of which nothing is heard any more."""


class Place:
    """A store, and runtimes on it as other processes would have them."""

    def __init__(self, store: CheckpointStore, clock: VirtualClock, stack: AsyncExitStack) -> None:
        self.store, self.clock, self._stack = store, clock, stack
        self.did: list[str] = []
        """The actions that were done, as `job/action`."""

    async def runtime(self, *machines: Machine, **more: Any) -> Runtime:
        known = {one.name: one for one in machines}
        runtime = Runtime(self.store, clock=self.clock, machines=known, **more)
        return await self._stack.enter_async_context(runtime)

    def job(self, *actions: str, during: Callable[[str, str], Any] | None = None) -> Machine:
        """A machine that does these actions; `during` is called in the middle of each, and may wait."""
        did = self.did

        class Doing(MachineHooks):
            async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> Any:
                did.append(f"{context['job']}/{action_name}")
                if during is not None and (waiting := during(context["job"], action_name)) is not None:
                    await waiting
                return {**context, "n": context["n"] + 1}

        return machine(acting(*actions), Doing, {"n": 0, "job": "{{ input.job }}"})

    async def enqueue(self, made: Machine, *ids: str) -> None:
        runtime = await self.runtime()
        for id_ in ids:
            assert await runtime.enqueue(made, {"job": id_}, execution_id=id_) == id_

    async def die(self, id_: str, *, ttl: float = 30.0) -> None:
        """Have a worker on another host take an execution, and never be heard of again."""
        await self.store.acquire(id_, GONE, now=self.clock.now(), ttl=ttl)

    async def get(self, id_: str) -> Execution:
        found = await self.store.get(id_)
        assert found is not None
        return found

    async def statuses(self) -> dict[str, str]:
        return {e.execution_id: e.status async for e in self.store.find()}


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        store = KINDS[request.param](tmp_path)
        stack.push_async_callback(store.close)
        yield Place(store, VirtualClock(), stack)


# -- queued ------------------------------------------------------------------------------------


async def test_a_queued_run_is_stored_and_nothing_of_it_is_done(place: Place) -> None:
    runtime = await place.runtime()
    id_ = await runtime.enqueue(place.job("a"), {"job": "x"})
    execution = await place.get(id_)
    assert is_queued(execution)
    assert (execution.seq, execution.owner, place.did) == (0, None, [])
    assert (await runtime.inspect(id_)).root.context == {"n": 0, "job": "x"}


async def test_a_lone_worker_runs_what_is_queued_in_its_order(place: Place) -> None:
    job = place.job("a", "b")
    await place.enqueue(job, "x", "y", "z")
    tally = await (await place.runtime(job)).worker(concurrency=1).drain()
    assert place.did == ["x/a", "x/b", "y/a", "y/b", "z/a", "z/b"]
    assert set((await place.statuses()).values()) == {"done"}
    assert (tally.ran, tally.taken_over, tally.lost) == (3, 0, 0)


async def test_so_many_run_at_a_time_and_no_more(place: Place) -> None:
    now = most = 0

    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await anyio.lowlevel.checkpoint()
        await place.clock.sleep_until(place.clock.now() + 1)
        now -= 1

    job = place.job("a", during=lambda job, action: count())
    await place.enqueue(job, *"abcdefgh")
    await (await place.runtime(job)).worker(concurrency=3).drain()
    assert most == 3
    assert len(place.did) == 8


async def test_an_id_that_is_taken_is_refused(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, "x")
    with pytest.raises(ExecutionBusy, match="exists already"):
        await place.enqueue(job, "x")


async def test_an_input_that_is_no_mapping_is_refused(place: Place) -> None:
    runtime = await place.runtime()
    with pytest.raises(DefinitionError, match="is a mapping, not list"):
        await runtime.enqueue(place.job("a"), [1])  # type: ignore[arg-type]


async def test_limits_given_to_the_queue_hold_for_the_worker(place: Place) -> None:
    job = place.job("a", "b", "c")
    await (await place.runtime()).enqueue(job, {"job": "x"}, execution_id="x", max_steps=2)
    await (await place.runtime(job)).worker().drain()
    assert (await place.get("x")).status == "limit"
    assert place.did == ["x/a"]


async def test_whoever_queues_a_run_needs_none_of_its_hooks(place: Place) -> None:
    """The place where a program begins depends on its hooks, and the queue has none."""
    job = place.job("a")
    bare = load(config=config(acting("a"), {"n": 0, "job": "{{ input.job }}"}, hooks="h"))
    await (await place.runtime()).enqueue(bare, {"job": "x"}, execution_id="x")
    await (await place.runtime(job)).worker().drain()
    assert (await place.get("x")).status == "done"
    assert place.did == ["x/a"]


async def test_hooks_hear_of_the_beginning_of_a_queued_run_once(place: Place) -> None:
    heard: list[str] = []

    class Hearing(MachineHooks):
        def on_machine_start(self, context: dict[str, Any]) -> dict[str, Any]:
            heard.append("start")
            return context

        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            heard.append(action_name)
            return context

    made = machine(acting("a"), Hearing)
    await (await place.runtime()).enqueue(made, execution_id="x")
    await (await place.runtime(made)).worker().drain()
    assert heard == ["start", "a"]


async def test_a_queued_run_can_be_cancelled(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, "x")
    assert await (await place.runtime()).cancel("x", "changed my mind")
    tally = await (await place.runtime(job)).worker().drain()
    assert (await place.get("x")).status == "cancelled"
    assert (tally.ran, place.did) == (0, [])


async def test_a_worker_that_takes_some_leaves_the_rest(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, *"abcde")
    tally = await (await place.runtime(job)).worker(concurrency=2).run_some()
    assert tally.ran == 2
    assert sorted((await place.statuses()).values()) == ["done"] * 2 + ["waiting"] * 3


# -- woken -------------------------------------------------------------------------------------


def waiter(**more: Any) -> Machine:
    wait = {"wait_for": "c", "output_to_context": {"n": "{{ output.value }}"}, "transitions": [{"to": "end"}]}
    states = {
        "start": {"type": "initial", **wait, **more},
        "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
    }
    return machine(states)


async def test_a_worker_runs_a_queued_wait_up_to_its_signal_and_then_on(place: Place) -> None:
    made = waiter()
    runtime = await place.runtime(made)
    await runtime.enqueue(made, execution_id="x")
    assert (await runtime.worker().drain()).ran == 1
    assert ((await place.get("x")).status, (await place.get("x")).channels) == ("waiting", ("c",))
    await runtime.signal("c", {"value": 7})
    assert (await runtime.worker().drain()).ran == 1
    assert (await runtime.inspect("x")).output == {"n": 7}


async def test_a_worker_at_work_takes_what_becomes_due(place: Place) -> None:
    made = waiter(timeout=50, on_error="end")
    runtime = await place.runtime(made)
    begun = place.clock.now()
    await runtime.enqueue(made, execution_id="x")
    worker = runtime.worker(poll=20)
    finished: list[str] = []

    def told(report: Report) -> None:
        finished.extend(report.resumed)
        if len(finished) == 2:
            worker.stop()

    await worker.run(told=told)
    assert (await place.get("x")).status == "done"
    assert place.clock.now() - begun == pytest.approx(50, abs=1)


async def test_signals_for_all_who_wait_reach_each_of_them(place: Place) -> None:
    made = waiter()
    runtime = await place.runtime(made)
    for id_ in "xyz":
        await runtime.enqueue(made, execution_id=id_)
    await runtime.worker().drain()
    await runtime.signal("c", {"value": 1})
    await runtime.worker(concurrency=2).drain()
    assert set((await place.statuses()).values()) == {"done"}


# -- stranded ----------------------------------------------------------------------------------


async def test_what_a_dead_worker_drove_is_taken_over_when_its_lease_has_ended(place: Place) -> None:
    job = place.job("a", "b")
    await place.enqueue(job, "x")
    await place.die("x", ttl=30.0)
    runtime = await place.runtime(job)
    place.clock.advance(29)
    assert (await runtime.worker().drain()).ran == 0
    place.clock.advance(2)
    tally = await runtime.worker().drain()
    assert (tally.ran, tally.taken_over) == (1, 1)
    assert (await place.get("x")).status == "done"
    assert await place.store.dead() == []


async def test_a_worker_that_notices_a_death_too_late_leaves_nothing_behind(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, "x")
    await place.die("x", ttl=1.0)
    place.clock.advance(10)
    slow, quick = await place.runtime(job), await place.runtime(job)
    send = place.store.send

    async def overtaken(signal: Signal) -> bool:
        """Between finding the stranded execution and counting the death, another worker runs all of it."""
        place.store.send = send  # type: ignore[method-assign]
        assert (await quick.worker().drain()).ran == 1
        return await send(signal)

    place.store.send = overtaken  # type: ignore[method-assign]
    tally = await slow.worker().drain()
    assert (tally.ran, tally.taken_over, tally.lost) == (0, 0, 1)
    assert place.did == ["x/a"]
    assert await place.store.dead() == []


async def test_what_a_live_worker_drives_is_left_to_it(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, "x")
    alive = await place.runtime(job)
    lease = await place.store.acquire("x", alive.owner, now=place.clock.now(), ttl=30)
    other = await place.runtime(job)
    assert (await other.worker().drain()).ran == 0
    assert place.did == []
    await place.store.release(lease)
    assert (await other.worker().drain()).ran == 1


async def test_what_was_interrupted_and_given_back_on_purpose_is_left_alone(place: Place) -> None:
    """Ctrl-C during `flat run` is somebody's wish; a lease that ended is nobody's."""
    halt = anyio.Event()

    async def stop() -> None:
        halt.set()
        await anyio.sleep_forever()

    job = place.job("a", during=lambda job, action: stop())
    runtime = await place.runtime(job)
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: runtime.start(job, {"job": "x"}, execution_id="x"))
        await halt.wait()
        group.cancel_scope.cancel()
    assert ((await place.get("x")).status, (await place.get("x")).owner) == ("running", None)
    place.clock.advance(1000)
    assert (await (await place.runtime(job)).worker().drain()).ran == 0
    assert (await place.get("x")).status == "running"


async def dies(place: Place, made: Machine, times: int) -> None:
    """Have so many workers, one after the other, take the execution `x` and die of it in the middle of an action."""
    for _ in range(times):
        runtime = await place.runtime(made)
        with pytest.raises(BaseExceptionGroup):
            await runtime.worker().drain()
        # A process that is gone gives nothing back: the lease is as it was, and nobody keeps it up.
        await place.die("x", ttl=1.0)
        place.clock.advance(10)


class Killed(BaseException):
    """Stands for the end of a process."""


def kill() -> None:
    raise Killed


def fatal(place: Place) -> Machine:
    return place.job("a", "b", during=lambda job, action: kill() if action == "b" else None)


async def test_an_execution_that_takes_every_worker_with_it_is_buried(place: Place) -> None:
    made = fatal(place)
    await place.enqueue(made, "x")
    await dies(place, made, 3)
    told: list[Report] = []
    tally = await (await place.runtime(made)).worker().drain(told=told.append)
    assert tally.ran == 0
    assert is_buried(await place.get("x"))
    assert [report.set_aside for report in told] == [{"x": "its worker died 3 times at the same place"}]
    assert place.did == ["x/a", "x/b", "x/b", "x/b"]
    place.clock.advance(1000)
    assert (await (await place.runtime(made)).worker().drain()).ran == 0


async def test_a_buried_execution_that_is_revived_goes_on_where_it_stood(place: Place) -> None:
    made = fatal(place)
    await place.enqueue(made, "x")
    await dies(place, made, 3)
    await (await place.runtime(made)).worker().drain()
    mended = place.job("a", "b")
    runtime = await place.runtime(mended)
    assert await runtime.revive("x")
    assert is_queued(await place.get("x"))
    assert await place.store.dead() == []
    assert (await runtime.worker().drain()).ran == 1
    assert (await place.get("x")).status == "done"
    assert place.did.count("x/a") == 1
    assert not await runtime.revive("x")
    with pytest.raises(ExecutionNotFound):
        await runtime.revive("nobody")


async def test_retrying_the_dead_letter_of_a_buried_execution_revives_it_too(place: Place) -> None:
    made = fatal(place)
    await place.enqueue(made, "x")
    await dies(place, made, 3)
    await (await place.runtime(made)).worker().drain()
    letter = (await place.store.dead())[0]
    assert await place.store.revive(letter.signal.signal_id)
    await (await place.runtime(place.job("a", "b"))).worker().drain()
    assert (await place.get("x")).status == "done"
    assert [*await place.store.dead(), *await place.store.signals()] == []


async def test_deaths_with_progress_in_between_bury_nobody(place: Place) -> None:
    """Two workers die of each action; all get it done in the end."""
    left = {"a": 2, "b": 2, "c": 2}

    def sometimes(job: str, action: str) -> None:
        if left[action]:
            left[action] -= 1
            raise Killed

    made = place.job("a", "b", "c", during=sometimes)
    await place.enqueue(made, "x")
    await dies(place, made, 6)
    tally = await (await place.runtime(made)).worker().drain()
    assert (tally.ran, (await place.get("x")).status) == (1, "done")
    assert await place.store.dead() == []


async def test_a_launched_execution_that_nobody_began_with_is_found(place: Place) -> None:
    """Its parent's process died between the commit in which it was born and its first step."""
    job = place.job("a")
    await place.enqueue(job, "x")
    born = await place.store.load("x")
    assert born is not None
    orphan = replace(born.execution, execution_id="child", parent="p", status="running", wake_at=None)
    snapshot = await (await place.runtime()).inspect("x")
    body = LOOKING.first(replace(snapshot, execution_id="child", status="running", parent="p", launched=True))
    assert await place.store.create(Birth(execution=orphan, body=body))
    await (await place.runtime(job)).worker().drain()
    assert (await place.get("child")).status == "running"
    place.clock.advance(61)
    await (await place.runtime(job)).worker().drain()
    assert (await place.get("child")).status == "done"


# -- stopping ----------------------------------------------------------------------------------


async def test_a_worker_that_is_stopped_finishes_the_step_in_hand_and_hands_the_rest_on(place: Place) -> None:
    in_hand, go = anyio.Event(), anyio.Event()

    async def hold() -> None:
        in_hand.set()
        await go.wait()

    job = place.job("a", "b", during=lambda job, action: hold() if action == "a" else None)
    await place.enqueue(job, "x", "y")
    worker = (await place.runtime(job)).worker(concurrency=1)
    async with anyio.create_task_group() as group:
        group.start_soon(worker.run)
        await in_hand.wait()
        worker.stop()
        go.set()
    assert place.did == ["x/a"]
    execution = await place.get("x")
    assert is_queued(execution)
    assert execution.owner is None
    tally = await (await place.runtime(job)).worker(concurrency=1).drain()
    assert (tally.ran, tally.taken_over) == (2, 0)
    assert sorted(place.did) == ["x/a", "x/b", "y/a", "y/b"]


async def test_a_step_that_takes_longer_than_the_grace_is_broken_off_and_taken_up(place: Place) -> None:
    in_hand = anyio.Event()
    patient = True

    async def hang() -> None:
        in_hand.set()
        if patient:
            await anyio.sleep_forever()

    job = place.job("a", during=lambda job, action: hang())
    await place.enqueue(job, "x")
    worker = (await place.runtime(job)).worker(grace=5)
    began = place.clock.now()
    async with anyio.create_task_group() as group:
        group.start_soon(worker.run)
        await in_hand.wait()
        worker.stop()
    assert place.clock.now() - began >= 5
    patient = False
    await (await place.runtime(job)).worker().drain()
    assert (await place.get("x")).status == "done"
    assert place.did == ["x/a", "x/a"]


@pytest.mark.parametrize("given_back", [True, False])
async def test_what_a_store_that_was_away_made_a_worker_drop_is_queued_again(
    place: Place, given_back: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was given back, or is still the worker's: to everybody else it looks interrupted, or driven."""
    fails: list[str] = []

    def failing(name: str) -> Callable[..., Any]:
        real = getattr(place.store, name)

        async def call(*args: Any, **more: Any) -> Any:
            if name in fails:
                fails.remove(name)
                raise BackendError("the store is away")
            return await real(*args, **more)

        return call

    for name in ("commit", "release", "get"):
        monkeypatch.setattr(place.store, name, failing(name))

    def breaks(job: str, action: str) -> None:
        if action == "b" and "x/b" not in place.did[:-1]:
            fails.extend(["commit", "get"] if given_back else ["commit", "release", "get"])

    job = place.job("a", "b", "c", during=breaks)
    await place.enqueue(job, "x")
    tally = await (await place.runtime(job)).worker().drain()
    assert fails == []
    assert (await place.get("x")).status == "done"
    assert place.did == ["x/a", "x/b", "x/b", "x/c"]
    assert tally.ran == 1


async def test_what_can_never_be_stored_is_buried_in_the_end(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refusing = place.store.commit, False

    async def commit(commit: Any) -> None:
        nonlocal refusing
        if refusing:
            refusing = False
            raise BackendError("too large for this store")
        await real(commit)

    def breaks(job: str, action: str) -> None:
        nonlocal refusing
        refusing = True

    monkeypatch.setattr(place.store, "commit", commit)
    job = place.job("a", during=breaks)
    await place.enqueue(job, "x")
    await (await place.runtime(job)).worker(attempts=3).drain()
    assert place.did == ["x/a"] * 3
    assert is_buried(await place.get("x"))


async def test_a_family_that_is_stopped_is_finished_by_another_worker(place: Place) -> None:
    """Children pause as well, are queued on their own, and tell their parent when they are done."""
    busy, go = anyio.Event(), anyio.Event()
    did: list[str] = []

    class Stepping(MachineHooks):
        async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> Any:
            did.append(f"{context['v']}/{action_name}")
            busy.set()
            await go.wait()
            return context

    child = config(acting("a", "b"), {"n": 0, "v": "{{ input.v }}"}, hooks="h", name="child")
    states = {
        "start": {
            "type": "initial", "foreach": "context.items", "machine": "child", "input": {"v": "{{ item }}"},
            "output_to_context": {"all": "output"}, "transitions": [{"to": "end"}],
        },
        "end": {"type": "final", "output": {"all": "context.all"}},
    }  # fmt: skip
    made = machine(states, Stepping, {"items": [1, 2], "all": None}, machines={"child": child})
    await (await place.runtime()).enqueue(made, execution_id="x")
    worker = (await place.runtime(made)).worker()
    async with anyio.create_task_group() as group:
        group.start_soon(worker.run)
        await busy.wait()
        worker.stop()
        go.set()
    assert "done" not in (await place.statuses()).values()
    await (await place.runtime(made)).worker().drain()
    assert set((await place.statuses()).values()) == {"done"}
    assert sorted(did) == ["1/a", "1/b", "2/a", "2/b"]


# -- many --------------------------------------------------------------------------------------


async def test_64_workers_share_a_queue_and_hardly_fight_for_it(place: Place) -> None:
    if isinstance(place.store, FileStore):
        return
    job = place.job("a")
    await place.enqueue(job, *(f"j{n}" for n in range(320)))
    workers = [(await place.runtime(job)).worker(concurrency=2, name=f"w{n}") for n in range(64)]
    async with anyio.create_task_group() as group:
        for worker in workers:
            group.start_soon(worker.drain)
    assert sorted(place.did) == sorted(f"j{n}/a" for n in range(320))
    assert set((await place.statuses()).values()) == {"done"}
    assert sum(worker.tally.ran for worker in workers) == 320
    # If all went for the oldest, each would be lost 63 times.
    assert sum(worker.tally.lost for worker in workers) < 640
    assert sum(worker.tally.looks for worker in workers) < 1000
    assert sum(worker.tally.sweeps for worker in workers) < 256


async def test_idle_workers_look_seldom_and_not_all_at_once(place: Place) -> None:
    if isinstance(place.store, FileStore):
        return  # nobody there knows how many others there are
    looks: list[float] = []
    runtimes = [await place.runtime() for _ in range(4)]
    workers = [runtime.worker(poll=10, name=f"w{n}") for n, runtime in enumerate(runtimes)]
    begun = place.clock.now()
    asked = place.store.ready

    async def ready(*, now: float, limit: int | None = None) -> Any:
        looks.append(now - begun)
        return await asked(now=now, limit=limit)

    place.store.ready = ready  # type: ignore[method-assign]
    async with anyio.create_task_group() as group:
        for worker in workers:
            group.start_soon(worker.run)
        await place.clock.sleep_until(begun + 60)
        for worker in workers:
            worker.stop()
    # A look, the look for the next timer, and a sweep now and then, for each poll of each worker.
    assert len(looks) < 4 * 6 * 4
    late = [moment for moment in looks if moment > 20]
    assert len({round(moment, 1) for moment in late}) > len(late) / 4


# -- what cannot be run ------------------------------------------------------------------------


async def test_a_drain_does_not_wait_for_what_is_declined(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, "mine", "theirs")
    runtime = await place.runtime(job)
    worker = runtime.worker(concurrency=1)

    async def resume(id_: str) -> None:
        if id_ == "theirs":
            raise Declined("it is not for us")
        await runtime.resume(id_)

    worker.resume = resume
    began, told = place.clock.now(), list[Report]()
    await worker.drain(told=told.append)
    assert await place.statuses() == {"mine": "done", "theirs": "waiting"}
    assert [r.left for r in told if r.left] == [{"theirs": "it is not for us"}]
    assert place.clock.now() - began < 10


async def test_one_that_cannot_be_resumed_is_tried_some_times_and_keeps_nobody_waiting(place: Place) -> None:
    job = place.job("a")
    await place.enqueue(job, "bad", "good")
    runtime = await place.runtime(job)
    worker, tried = runtime.worker(concurrency=1), list[str]()

    async def resume(id_: str) -> None:
        tried.append(id_)
        if id_ == "bad":
            raise ValueError("broken")
        await runtime.resume(id_)

    worker.resume = resume
    told = list[Report]()
    await worker.drain(told=told.append)
    assert tried == ["bad", "good", "bad", "bad"]
    assert [r.left for r in told if r.left] == [{"bad": "ValueError: broken (tried 3 times)"}]


async def test_a_store_that_is_away_for_a_while_is_asked_again(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    job = place.job("a")
    await place.enqueue(job, "x")
    runtime = await place.runtime(job)
    worker, asked, failures = runtime.worker(), place.store.ready, iter(range(3))

    async def ready(*, now: float, limit: int | None = None) -> Any:
        if next(failures, None) is not None:
            raise OSError("no route to host")
        return await asked(now=now, limit=limit)

    place.store.ready = ready  # type: ignore[method-assign]
    await worker.run(told=lambda report: worker.stop())
    assert (await place.get("x")).status == "done"
    assert "no route to host" in caplog.text


# -- the register ------------------------------------------------------------------------------


async def test_workers_enter_themselves_and_tell_what_they_run(place: Place) -> None:
    opener = register_of(place.store, place.clock.now)
    if isinstance(place.store, FileStore):
        assert opener is None
        return
    assert opener is not None
    register, busy, go = opener(), anyio.Event(), anyio.Event()

    async def hold() -> None:
        busy.set()
        await go.wait()

    job = place.job("a", during=lambda job, action: hold())
    await place.enqueue(job, "x")
    worker = (await place.runtime(job)).worker(name="w1", concurrency=4)
    async with anyio.create_task_group() as group:
        group.start_soon(worker.run)
        await busy.wait()
        await place.clock.sleep_until(place.clock.now() + 15)
        (record,) = await register.list(WorkerFilter(status="active", pool_id=POOL))
        assert (record.worker_id, record.current_task_id) == ("w1", "x")
        assert (record.metadata["running"], record.metadata["concurrency"]) == (1, 4)
        assert record.metadata["runs"] == ["x"]
        go.set()
        worker.stop()
    (record,) = await register.list()
    assert (record.status, record.metadata["ran"], record.metadata["running"]) == ("terminated", 1, 0)
    await register.close()


async def test_a_worker_that_was_not_heard_of_is_marked_as_lost_by_the_next(place: Place) -> None:
    opener = register_of(place.store, place.clock.now)
    if opener is None:
        return
    register = opener()
    dead = await place.runtime()
    worker = dead.worker(name="dead")
    await worker._enter()  # and then its process is gone
    place.clock.advance(61)
    await (await place.runtime()).worker(name="next").drain()
    assert {w.worker_id: w.status for w in await register.list()} == {"dead": "lost", "next": "terminated"}
    await register.close()


US = this_process()


@pytest.mark.parametrize(
    ("said", "status", "seen"),
    [
        (asdict(US), "active", "active"),
        (asdict(replace(US, started="1")), "active", "gone"),
        ({**asdict(replace(US, started="1")), "of": "a later release"}, "active", "gone"),
        (asdict(replace(US, started="1")), "terminated", "terminated"),
        (asdict(replace(US, started="1", host="elsewhere")), "active", "active"),
        (None, "active", "active"),
    ],
)
def test_a_worker_is_gone_when_its_process_was_here_and_is_no_more(
    said: dict[str, Any] | None, status: str, seen: str
) -> None:
    metadata = {} if said is None else {PROCESS: said}
    assert at_work(WorkerRecord(worker_id="w", status=status, metadata=metadata)) == seen


async def test_a_worker_tells_the_register_which_process_it_is(place: Place) -> None:
    runtime = await place.runtime()
    assert runtime.worker().facts[PROCESS]["pid"] == US.pid
