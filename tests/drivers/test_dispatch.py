"""The dispatcher, with real machines on every kind of store."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat import FileStore, MemoryStore, Runtime, SQLiteStore
from flat.backends.protocols import CheckpointStore, Execution
from flat.backends.triggers import FileTrigger, SocketTrigger, TriggerBackend
from flat.drivers.clock import SystemClock
from flat.drivers.dispatch import Declined, Dispatcher, Report
from flat.errors import BackendError, ExecutionBusy
from flat.runtime import Machine, load
from flat.runtime.reading import signal_data
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio

KINDS: dict[str, Callable[[Path], CheckpointStore]] = {
    "memory": lambda folder: MemoryStore(),
    "files": lambda folder: FileStore(folder / "store"),
    "sqlite": lambda folder: SQLiteStore(folder / "store.db"),
}


def config(wait: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    states = {"wait": {"type": "initial", "on_error": "late", **wait}, **more}
    states["late"] = {"type": "final", "output": {"got": "late"}}
    return {
        "spec": "flatmachine", "spec_version": "4.0.0",
        "data": {"name": "waiter", "context": {"channel": "{{ input.channel }}", "got": []}, "states": states},
    }  # fmt: skip


def waiter(times: int = 1, **more: Any) -> Machine:
    """Waits so many times on the channel in its input, and gives all it got."""
    wait = {
        "wait_for": "{{ context.channel }}",
        "output_to_context": {"got": "{{ context.got + [output.value] }}"},
        "transitions": [{"condition": f"context.n == {times}", "to": "done"}, {"to": "wait"}],
        **more,
    }
    made = config(wait, {"done": {"type": "final", "output": {"got": "{{ context.got }}"}}})
    made["data"]["settings"] = {"native_types": True}
    made["data"]["context"]["n"] = 0
    made["data"]["states"]["wait"]["output_to_context"]["n"] = "{{ context.n + 1 }}"
    return load(config=made)


class Place:
    """A store, a runtime on it, and a machine to park there."""

    def __init__(self, store: CheckpointStore, runtime: Runtime, clock: VirtualClock) -> None:
        self.store, self.runtime, self.clock = store, runtime, clock
        self.resumed: list[str] = []
        self.woken = anyio.Event()
        """Set when an execution was resumed; whoever has seen that makes a new one."""

    def dispatcher(self, resume: Callable[[str], Any] | None = None, **more: Any) -> Dispatcher:
        return Dispatcher(self.store, resume or self.resume, self.clock, **more)

    async def resume(self, execution_id: str) -> None:
        self.resumed.append(execution_id)
        await self.runtime.resume(execution_id)
        self.woken.set()

    async def wait_woken(self) -> None:
        with anyio.fail_after(30):
            await self.woken.wait()
        self.woken = anyio.Event()

    async def park(self, execution_id: str, channel: str = "c", machine: Machine | None = None) -> None:
        outcome = await self.runtime.start(
            machine or waiter(), {"channel": channel}, execution_id=execution_id
        )
        assert outcome.status == "waiting"

    async def got(self, execution_id: str) -> Any:
        snapshot = await self.runtime.inspect(execution_id)
        return snapshot.output["got"] if snapshot.status == "done" else snapshot.status

    async def backlog(self) -> list[str]:
        return [one.signal_id for one in await self.store.signals()]


@asynccontextmanager
async def opened(store: CheckpointStore) -> AsyncIterator[Place]:
    clock = VirtualClock()
    async with Runtime(store, clock=clock) as runtime:
        yield Place(store, runtime, clock)
    await store.close()


@pytest.fixture(params=KINDS)
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    async with opened(KINDS[request.param](tmp_path)) as made:
        yield made


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Place]:
    """A place for what does not depend on the kind of store."""
    async with opened(MemoryStore()) as made:
        yield made


# -- delivery ----------------------------------------------------------------------------------


async def test_a_signal_wakes_the_one_who_waits(place: Place) -> None:
    for name in ("e1", "e2"):
        await place.park(name, f"for/{name}")
    await place.runtime.signal("for/e2", 7)
    report = await place.dispatcher().dispatch_once()
    assert report == Report(resumed=["e2"])
    assert (await place.got("e1"), await place.got("e2")) == ("waiting", [7])
    assert await place.backlog() == []


async def test_without_a_signal_nobody_is_woken(place: Place) -> None:
    await place.park("e1")
    await place.runtime.signal("elsewhere")
    assert not await place.dispatcher().dispatch_once()
    assert place.resumed == []
    assert len(await place.backlog()) == 1


async def test_a_signal_goes_to_everybody_who_waits(place: Place) -> None:
    for name in ("e1", "e2", "e3"):
        await place.park(name)
    await place.runtime.signal("c", "news", signal_id="s")
    report = await place.dispatcher().dispatch_once()
    assert report.fanned_out == ["s"]
    assert sorted(report.resumed) == ["e1", "e2", "e3"]
    assert [await place.got(name) for name in ("e1", "e2", "e3")] == [["news"]] * 3
    assert await place.backlog() == []


async def test_the_second_signal_is_kept_for_those_who_wait_next(place: Place) -> None:
    for name in ("e1", "e2"):
        await place.park(name)
    await place.runtime.signal("c", 1)
    await place.runtime.signal("c", 2)
    await place.dispatcher().dispatch_once()
    assert [await place.got(name) for name in ("e1", "e2")] == [[1], [1]]
    assert len(await place.backlog()) == 1
    outcome = await place.runtime.start(waiter(), {"channel": "c"}, execution_id="e3")
    assert outcome.output == {"got": [2]}


async def test_signals_are_taken_in_the_order_in_which_they_were_sent(place: Place) -> None:
    await place.park("e1", machine=waiter(5))
    for number in range(5):
        await place.runtime.signal("c", number)
    await place.dispatcher().dispatch_once()
    assert await place.got("e1") == [0, 1, 2, 3, 4]


async def test_an_addressed_signal_and_one_for_all_keep_their_order(place: Place) -> None:
    for name in ("e1", "e2"):
        await place.park(name, machine=waiter(2))
    await place.runtime.signal("c", "only you", to="e1")
    await place.runtime.signal("c", "all")
    await place.runtime.signal("c", "you again", to="e2")
    await place.dispatcher().dispatch_once()
    assert await place.got("e1") == ["only you", "all"]
    assert await place.got("e2") == ["all", "you again"]


async def test_what_is_woken_may_wake_others(place: Place) -> None:
    for number in range(4):
        await place.park(f"e{number}", f"c{number}")

    async def resume(execution_id: str) -> None:
        await place.resume(execution_id)
        if execution_id != "e3":
            await place.runtime.signal(f"c{int(execution_id[1]) + 1}", execution_id)

    await place.runtime.signal("c0", "first")
    report = await place.dispatcher(resume).dispatch_once()
    assert report.resumed == ["e0", "e1", "e2", "e3"]


async def test_a_due_timer_wakes(place: Place) -> None:
    await place.park("e1", machine=waiter(timeout=60))
    await place.park("e2", machine=waiter(timeout=3600))
    assert not await place.dispatcher().dispatch_once()
    place.clock.advance(61)
    report = await place.dispatcher().dispatch_once()
    assert report.resumed == ["e1"]
    assert (await place.got("e1"), await place.got("e2")) == ("late", "waiting")


async def test_a_signal_that_came_in_time_beats_the_timer(place: Place) -> None:
    await place.park("e1", machine=waiter(timeout=60))
    await place.runtime.signal("c", "in time")
    place.clock.advance(61)
    await place.dispatcher().dispatch_once()
    assert await place.got("e1") == ["in time"]


async def test_many_are_woken_page_by_page(one: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flat.drivers.dispatch.PAGE", 7)
    names = [f"e{number:02}" for number in range(30)]
    for number, name in enumerate(names):
        await one.park(name, f"c{number // 3}")
    for number in range(10):
        await one.runtime.signal(f"c{number}", number)
        one.clock.advance(1)
    report = await one.dispatcher(concurrency=1).dispatch_once()
    assert report.resumed == names
    assert [await one.got(name) for name in names] == [[number // 3] for number in range(30)]


async def test_no_more_than_so_many_run_at_once_and_they_begin_in_order(one: Place) -> None:
    names = [f"e{number}" for number in range(9)]
    for name in names:
        await one.park(name, name)
        await one.runtime.signal(name)
        one.clock.advance(1)
    running, most = 0, 0

    async def resume(execution_id: str) -> None:
        nonlocal running, most
        running, most = running + 1, max(most, running + 1)
        await one.clock.sleep_until(one.clock.now() + 10)
        await one.resume(execution_id)
        running -= 1

    await one.dispatcher(resume, concurrency=4).dispatch_once()
    assert most == 4
    assert [await one.got(name) for name in names] == [[None]] * 9
    assert sorted(one.resumed[:4]) == names[:4]


# -- what goes wrong ---------------------------------------------------------------------------


async def test_one_that_cannot_be_resumed_is_tried_thrice_and_its_signal_buried(place: Place) -> None:
    await place.park("bad", "a")
    await place.park("good", "b")
    await place.runtime.signal("a", signal_id="s")
    await place.runtime.signal("b", "fine")

    async def resume(execution_id: str) -> None:
        await (place.resume(execution_id) if execution_id == "good" else fail(execution_id))

    async def fail(execution_id: str) -> None:
        place.resumed.append(execution_id)
        raise ValueError("no such agent")

    report = await place.dispatcher(resume).dispatch_once()
    assert place.resumed.count("bad") == 3
    assert (await place.got("good"), await place.got("bad")) == (["fine"], "waiting")
    (buried,) = report.buried
    assert (buried.signal_id, buried.channel, buried.execution_id) == ("s", "a", "bad")
    (letter,) = await place.store.dead()
    assert letter.signal.signal_id == "s"
    assert "execution bad: ValueError: no such agent (tried 3 times)" in letter.reason
    assert not await place.dispatcher(resume).dispatch_once()
    assert await place.store.revive("s")
    await place.dispatcher().dispatch_once()
    assert await place.got("bad") == [None]


async def test_one_that_recovers_takes_its_signal(one: Place) -> None:
    await one.park("e1")
    await one.runtime.signal("c", 1)
    began = one.clock.now()

    async def resume(execution_id: str) -> None:
        if len(one.resumed) < 2:
            one.resumed.append(execution_id)
            raise OSError("the disk is full")
        await one.resume(execution_id)

    report = await one.dispatcher(resume).dispatch_once()
    assert report == Report(resumed=["e1"])
    assert await one.got("e1") == [1]
    assert 0.2 < one.clock.now() - began < 5


async def test_a_resume_that_takes_nothing_does_not_spin(one: Place) -> None:
    await one.park("e1")
    await one.runtime.signal("c", signal_id="s")

    async def resume(execution_id: str) -> None:
        one.resumed.append(execution_id)

    report = await one.dispatcher(resume).dispatch_once()
    assert len(one.resumed) <= 5
    assert [buried.signal_id for buried in report.buried] == ["s"]
    assert "took nothing" in report.buried[0].reason


async def test_a_failing_one_in_a_crowd_costs_its_own_copy_alone(place: Place) -> None:
    for name in ("e1", "e2"):
        await place.park(name, machine=waiter(2))
    for number in (1, 2):
        await place.runtime.signal("c", number, signal_id=f"s{number}")

    async def resume(execution_id: str) -> None:
        if execution_id == "e1":
            raise ValueError("broken")
        await place.resume(execution_id)

    report = await place.dispatcher(resume).dispatch_once()
    assert await place.got("e2") == [1, 2]
    assert [buried.signal_id for buried in report.buried][:1] == ["s1@e1"]
    assert {buried.execution_id for buried in report.buried} == {"e1"}


async def test_a_timer_that_cannot_be_served_is_left(one: Place) -> None:
    await one.park("e1", machine=waiter(timeout=60))
    one.clock.advance(61)

    async def resume(execution_id: str) -> None:
        one.resumed.append(execution_id)
        raise ValueError("broken")

    report = await one.dispatcher(resume).dispatch_once()
    assert len(one.resumed) == 3
    assert report.left == {"e1": "ValueError: broken (tried 3 times)"}
    assert not report.buried


async def test_one_that_somebody_else_drives_is_left_alone(place: Place) -> None:
    await place.park("e1")
    await place.runtime.signal("c", "mine")
    with place.runtime.claimed("e1"):
        report = await place.dispatcher().dispatch_once()
    assert list(report.left) == ["e1"]
    assert not report.buried
    assert len(await place.backlog()) == 1
    await place.dispatcher().dispatch_once()
    assert await place.got("e1") == ["mine"]


async def test_one_that_is_just_parking_is_not_missed(one: Place) -> None:
    """A run stores its wait, looks, finds nothing, and only then gives its lease back: we come in between."""
    await one.park("e1")
    await one.runtime.signal("c", "between")

    async def resume(execution_id: str) -> None:
        if not one.resumed:
            one.resumed.append(execution_id)
            raise ExecutionBusy(execution_id, "a run that is parking")
        await one.resume(execution_id)

    report = await one.dispatcher(resume).dispatch_once()
    assert report == Report(resumed=["e1"])


async def test_what_is_declined_is_left_with_its_signal(one: Place) -> None:
    await one.park("theirs", "a")
    await one.park("ours", "b")
    for channel in ("a", "b"):
        await one.runtime.signal(channel)

    async def resume(execution_id: str) -> None:
        if execution_id == "theirs":
            raise Declined("it belongs to another project")
        await one.resume(execution_id)

    report = await one.dispatcher(resume).dispatch_once()
    assert report == Report(resumed=["ours"], left={"theirs": "it belongs to another project"})
    assert len(await one.backlog()) == 1


async def test_one_that_is_gone_is_forgotten(one: Place) -> None:
    await one.park("e1")
    await one.runtime.signal("c")

    async def resume(execution_id: str) -> None:
        await one.store.delete(execution_id)
        await one.resume(execution_id)

    assert await one.dispatcher(resume).dispatch_once() == Report()


async def test_an_exit_in_somebodys_code_does_not_end_the_dispatcher(one: Place) -> None:
    for name in ("e1", "e2"):
        await one.park(name, name)
        await one.runtime.signal(name)

    async def resume(execution_id: str) -> None:
        if execution_id == "e1":
            raise SystemExit(1)
        await one.resume(execution_id)

    report = await one.dispatcher(resume).dispatch_once()
    assert report.resumed == ["e2"]
    assert "SystemExit" in report.buried[0].reason


async def test_an_execution_that_fails_has_had_its_signal(one: Place) -> None:
    bad = config(
        {"wait_for": "{{ context.channel }}", "transitions": [{"to": "bad"}], "on_error": None},
        {"bad": {"action": "explode", "transitions": [{"to": "late"}]}},
    )
    del bad["data"]["states"]["wait"]["on_error"]
    await one.park("e1", machine=load(config=bad))
    await one.runtime.signal("c")
    report = await one.dispatcher().dispatch_once()
    assert report.resumed == ["e1"]
    assert await one.got("e1") == "failed"
    assert await one.backlog() == []


async def test_two_dispatchers_deliver_once(place: Place) -> None:
    names = [f"e{number}" for number in range(12)]
    for name in names:
        await place.park(name, name if int(name[1:]) % 2 else "shared", waiter(2))
    for number in range(2):
        for channel in [*names[1::2], "shared"]:
            await place.runtime.signal(channel, number)
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(place.dispatcher(concurrency=4).dispatch_once)
    await place.dispatcher().dispatch_once()
    odd = [await place.got(name) for name in names[1::2]]
    assert odd == [[0, 1]] * 6
    for name in names[::2]:
        snapshot = await place.runtime.inspect(name)
        assert snapshot.root.context["got"] == sorted(set(snapshot.root.context["got"])), (
            "once each, in order"
        )
        assert snapshot.root.context["got"][:1] == [0]


@pytest.mark.parametrize("wrong", [{"concurrency": 0}, {"attempts": 0}])
async def test_a_dispatcher_that_would_do_nothing_is_refused(one: Place, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        one.dispatcher(**wrong)


# -- watching ----------------------------------------------------------------------------------


@asynccontextmanager
async def watching(
    dispatcher: Dispatcher, trigger: TriggerBackend | None = None
) -> AsyncIterator[list[Report]]:
    reports: list[Report] = []
    async with anyio.create_task_group() as group:
        group.start_soon(lambda: dispatcher.watch(trigger, told=reports.append))
        yield reports
        group.cancel_scope.cancel()


async def test_watching_looks_now_and_then_without_being_told(one: Place) -> None:
    await one.park("e1")
    async with watching(one.dispatcher(poll_interval=30.0)):
        await one.clock.sleep_until(one.clock.now() + 1)
        await one.runtime.signal("c", 1)
        began = one.clock.now()
        await one.wait_woken()
    assert one.clock.now() - began <= 30
    assert await one.got("e1") == [1]


async def test_watching_wakes_at_the_next_timer(one: Place) -> None:
    began = one.clock.now()
    await one.park("e1", machine=waiter(timeout=100))
    async with watching(one.dispatcher(poll_interval=3600.0)):
        await one.wait_woken()
    assert one.clock.now() - began == 100
    assert await one.got("e1") == "late"


@pytest.mark.parametrize("kind", ["file", "socket"])
async def test_watching_is_woken_by_the_trigger(one: Place, kind: str, tmp_path: Path) -> None:
    trigger: TriggerBackend = FileTrigger(tmp_path) if kind == "file" else SocketTrigger(tmp_path / "s")
    dispatcher = Dispatcher(one.store, one.resume, SystemClock(), poll_interval=3600.0)
    await one.park("e1", machine=waiter(3))
    async with watching(dispatcher, trigger) as reports:
        for number in range(3):
            await one.runtime.signal("c", number)
            await trigger.notify("c")
            await one.wait_woken()
    assert [report.resumed for report in reports] in ([["e1"]] * 2, [["e1"]] * 3)
    assert await one.got("e1") == [0, 1, 2]


class Unreachable:
    """A store that cannot be reached for a while."""

    def __init__(self, store: CheckpointStore, failures: int) -> None:
        self.store, self.failures = store, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    async def ready(self, *, now: float, limit: int | None = None) -> Any:
        self.failures -= 1
        if self.failures >= 0:
            raise BackendError("the store is locked")
        return await self.store.ready(now=now, limit=limit)


async def test_watching_outlives_a_store_that_is_away(one: Place) -> None:
    await one.park("e1")
    await one.runtime.signal("c", 1)
    store: Any = Unreachable(one.store, 3)
    async with watching(Dispatcher(store, one.resume, one.clock)):
        await one.wait_woken()
    assert await one.got("e1") == [1]
    with pytest.raises(BackendError, match="locked"):
        await Dispatcher(Unreachable(one.store, 1), one.resume, one.clock).dispatch_once()  # type: ignore[arg-type]


async def test_ending_a_watch_gives_back_what_it_held(one: Place) -> None:
    await one.park("e1")
    await one.runtime.signal("c", 1)
    began = anyio.Event()

    async def resume(execution_id: str) -> None:
        began.set()
        await anyio.sleep_forever()

    async with watching(one.dispatcher(resume)):
        await began.wait()
    found: Execution | None = await one.store.get("e1")
    assert found is not None
    assert (found.status, found.owner) == ("waiting", None)
    assert len(await one.backlog()) == 1


# -- the runtime's own -------------------------------------------------------------------------


class Bell:
    """A trigger that notes who rang."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    async def notify(self, channel: str) -> None:
        self.rung.append(channel)

    def listen(self) -> Any:
        raise NotImplementedError


async def test_a_runtime_tells_its_trigger_of_every_signal_after_it_is_stored(one: Place) -> None:
    bell = Bell()
    async with Runtime(one.store, clock=one.clock, trigger=bell) as runtime:
        await runtime.signal("c", 1, signal_id="s")
        await runtime.signal("d", {"x": [2]}, to="e9")
        assert bell.rung == ["c", "d"]
        first, second = await runtime.signals()
        assert (first.signal_id, first.to, signal_data(first)) == ("s", None, 1)
        assert (second.channel, second.to, signal_data(second)) == ("d", "e9", {"x": [2]})
        assert [one.signal_id for one in await runtime.signals("c")] == ["s"]


async def test_a_runtime_has_a_dispatcher_of_its_own(one: Place) -> None:
    await one.park("e1")
    await one.runtime.signal("c", "yes")
    assert await one.runtime.dispatcher().dispatch_once() == Report(resumed=["e1"])
    assert await one.got("e1") == ["yes"]
