"""Pruning removes what is over and old, by whole families, and then what nothing refers to; all else stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from runtime_machines import acting, machine

from flat import FileStore, MachineHooks, MemoryStore, Runtime, SQLiteStore
from flat.backends.liveness import this_process
from flat.backends.protocols import CheckpointStore, Head
from flat.drivers.keeper import IMPORTING
from flat.errors import BackendError
from flat.runtime.prune import Wanted, collect, plan, prune
from flat.testing.clock import VirtualClock
from flat.testing.store_case import ALICE, TTL, birth, signal, step

pytestmark = pytest.mark.anyio
NOW = 100_000.0
P1, P2, B1, B2, B3 = (letter * 32 for letter in "01abc")


@pytest.fixture(params=["memory", "file", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CheckpointStore]:
    made: dict[str, Callable[[], CheckpointStore]] = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "runs"),
        "sqlite": lambda: SQLiteStore(tmp_path / "runs.db"),
    }
    opened = made[request.param]()
    yield opened
    await opened.close()


async def put(
    store: CheckpointStore, id_: str, status: str = "done", *, at: float = 1000.0, parent: str | None = None,
    blob: str | None = None, program: str = P1, log: str | None = None, **more: Any,
) -> None:  # fmt: skip
    """Store an execution that came to a status at a time; its middle body, or a row of its log, refers to a blob."""
    await store.put_config(program, b'{"origin":null}')
    assert await store.create(birth(id_, parent=parent, program=program))
    lease = await store.acquire(id_, ALICE, now=at, ttl=TTL)
    reference = b'{"$":["blob","%s"]}'
    body = reference % blob.encode() if blob else b"{}"
    rows = [reference % log.encode()] if log else []
    blobs = {name: name.encode() for name in (blob, log) if name}
    await store.commit(step(lease, 1, body, blobs=blobs, log=rows))
    head = Head(status=status, **more)
    await store.commit(step(lease, 2, b"{}", head=head, release=True)._replace(at=at))


async def left(store: CheckpointStore) -> list[str]:
    return sorted([e.execution_id async for e in store.find()])


async def pruned(store: CheckpointStore, **wanted: Any) -> list[str]:
    """Prune, and say what is left."""
    await prune(store, await plan(store, Wanted(**wanted), now=NOW), now=NOW)
    return await left(store)


async def test_only_what_is_over_goes(store: CheckpointStore) -> None:
    for status in ("running", "waiting", "done", "failed", "cancelled", "limit", "in_doubt"):
        await put(store, status, status)
    assert await pruned(store) == ["in_doubt", "limit", "running", "waiting"]
    assert await pruned(store, statuses=("limit", "in_doubt")) == ["running", "waiting"]


async def test_parked_and_running_stay_whatever_is_asked_for(store: CheckpointStore) -> None:
    await put(store, "parked", "waiting", channels=("inbox",))
    await put(store, "running", "running")
    assert await pruned(store, statuses=("waiting", "running", "done")) == ["parked", "running"]


async def test_age_and_number_are_reckoned_by_the_last_change_in_a_family(store: CheckpointStore) -> None:
    for number in range(5):
        await put(store, f"e{number}", at=2000.0 + number)
    await put(store, "child", at=50_000.0, parent="e0")
    assert await pruned(store, before=2003.0) == ["child", "e0", "e3", "e4"]
    assert await pruned(store, keep=2) == ["child", "e0", "e4"]
    assert await pruned(store, keep=2) == ["child", "e0", "e4"]
    assert await pruned(store, keep=2, before=0.0) == ["child", "e0", "e4"]
    assert await pruned(store) == []


async def test_a_family_goes_whole_or_stays_whole(store: CheckpointStore) -> None:
    await put(store, "top", "waiting")
    await put(store, "child", parent="top")
    await put(store, "grandchild", "failed", parent="child")
    await put(store, "over")
    await put(store, "launched", "running", parent="over")
    await put(store, "all over", "failed")
    await put(store, "its child", parent="all over")
    await put(store, "given up", "limit", parent="its child")
    await put(store, "orphan", parent="gone")
    assert await pruned(store) == ["child", "grandchild", "launched", "over", "top"]


async def test_what_somebody_drives_stays(store: CheckpointStore) -> None:
    await put(store, "e", "limit")
    await store.acquire("e", this_process(), now=NOW, ttl=TTL)
    found = await plan(store, Wanted(statuses=("limit",)), now=NOW)
    assert (found.families, found.living) == ([], 1)


async def test_what_was_taken_up_after_the_plan_stays(store: CheckpointStore) -> None:
    await put(store, "e", "limit")
    await put(store, "f", "limit")
    found = await plan(store, Wanted(statuses=("limit",)), now=NOW)
    lease = await store.acquire("e", this_process(), now=NOW, ttl=TTL)
    await store.commit(step(lease, 3, head=Head(status="running")))
    told = await prune(store, found, now=NOW)
    assert (told.skipped, told.executions) == (["e"], 1)
    assert await left(store) == ["e"]


async def test_what_came_to_something_else_after_the_plan_stays_and_is_free(store: CheckpointStore) -> None:
    await put(store, "e", "limit")
    found = await plan(store, Wanted(statuses=("limit",)), now=NOW)
    lease = await store.acquire("e", ALICE, now=NOW, ttl=TTL)
    head = Head(status="waiting", channels=("inbox",))
    await store.commit(step(lease, 3, head=head, release=True)._replace(at=NOW))
    assert (await prune(store, found, now=NOW)).skipped == ["e"]
    assert await store.acquire("e", ALICE, now=NOW, ttl=TTL)


async def test_a_plan_changes_nothing_and_tells_what_would_go(store: CheckpointStore) -> None:
    await put(store, "a", at=3000.0)
    await put(store, "b", "failed", at=4000.0)
    await put(store, "b2", parent="b")
    await put(store, "c", "waiting")
    found = await plan(store, Wanted(), now=NOW)
    assert [(f.top, f.status, tuple(f.members)) for f in found.families] == [
        ("b", "failed", ("b2", "b")),
        ("a", "done", ("a",)),
    ]
    assert (found.executions, found.living, found.others) == (3, 1, 0)
    assert found.statuses() == {"done": 1, "failed": 1}
    assert await left(store) == ["a", "b", "b2", "c"]


async def test_a_prune_that_dies_has_left_no_child_without_its_top(store: CheckpointStore) -> None:
    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def delete(self, execution_id: str) -> bool:
            if execution_id == "top":
                raise BackendError("the disk is gone")
            return await store.delete(execution_id)

    await put(store, "top")
    await put(store, "child", parent="top")
    await put(store, "grandchild", parent="child")
    with pytest.raises(BackendError):
        await prune(Failing(), await plan(store, Wanted(), now=NOW), now=NOW)
    assert await left(store) == ["top"]
    assert await pruned(store) == []


async def test_signals_for_what_is_removed_go_too(store: CheckpointStore) -> None:
    await put(store, "e")
    await put(store, "waiter", "waiting", channels=("inbox",))
    for id_, to in (("a", "e"), ("b", None), ("c", "waiter"), ("d", "e"), ("f", None)):
        await store.send(signal(id_, "inbox", to=to))
    await store.bury("d", "nobody", NOW)
    await store.bury("f", "nobody", NOW)
    told = await prune(store, await plan(store, Wanted(), now=NOW), now=NOW)
    assert told.signals == 2
    assert [s.signal_id for s in await store.signals("inbox")] == ["b", "c"]
    assert [d.signal.signal_id for d in await store.dead()] == ["f"]


async def test_half_an_import_goes_when_its_process_is_gone(store: CheckpointStore) -> None:
    for id_ in ("half", "in progress"):
        assert await store.create(birth(id_, status=IMPORTING))
    await store.acquire("in progress", this_process(), now=NOW, ttl=TTL)
    assert await pruned(store, keep=100) == ["in progress"]


# -- blobs and programs --------------------------------------------------------------------------------


async def test_what_only_the_removed_referred_to_goes(store: CheckpointStore) -> None:
    await put(store, "old", blob=B1, log=B2, program=P1)
    await put(store, "parked", "waiting", blob=B2, log=B3, program=P2)
    told = await prune(store, await plan(store, Wanted(), now=NOW), now=NOW)
    assert told.collected is not None
    assert (told.collected.blobs, told.collected.programs) == (1, 1)
    assert [await store.get_blob(name) for name in (B1, B2, B3)] == [None, B2.encode(), B3.encode()]
    assert await store.get_config(P1) is None
    assert await store.get_config(P2) is not None


async def test_nothing_is_collected_while_somebody_drives(store: CheckpointStore) -> None:
    await put(store, "old", blob=B1)
    await put(store, "e", "running")
    await store.acquire("e", this_process(), now=NOW, ttl=TTL)
    told = await prune(store, await plan(store, Wanted(), now=NOW), now=NOW)
    assert told.executions == 1
    assert told.collected is not None
    assert '"e" is being driven' in told.collected.refused
    assert await store.get_blob(B1) is not None
    # A process that died drives nothing.
    assert (await collect(store, now=NOW + 10 * TTL)).blobs == 1


async def test_what_comes_while_everything_is_looked_at_is_seen() -> None:
    class Busy(MemoryStore):
        """Between the looks at its bodies, somebody else runs an execution that refers to an old blob."""

        met = False

        async def bodies(self, execution_id: str) -> Any:
            if not self.met:
                self.met = True
                await put(self, "new", blob=B1, program=P2)
            return await super().bodies(execution_id)

    busy = Busy()
    await put(busy, "old", blob=B1, program=P2)
    await busy.delete("old")
    await put(busy, "stays", blob=B2)
    told = await collect(busy, now=NOW)
    assert (told.blobs, told.programs, told.refused) == (0, 0, "")
    assert await busy.get_blob(B1) is not None
    assert await busy.get_config(P2) is not None


async def test_programs_of_what_began_just_now_are_spared(store: CheckpointStore) -> None:
    await put(store, "e")
    found = await plan(store, Wanted(), now=NOW)
    told = await prune(store, found, now=NOW, spare_since=900.0)
    assert told.collected is not None
    assert told.collected.programs == 0
    assert (await collect(store, now=NOW)).programs == 1


async def test_a_runtime_that_stays_open_stores_its_program_again(store: CheckpointStore) -> None:
    class Hooks(MachineHooks):
        def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            return context

    made, clock = machine(acting("a"), hooks=Hooks), VirtualClock()
    async with Runtime(store, clock=clock) as runtime:
        first = await runtime.start(made, execution_id="first")
        await clock.sleep_until(clock.now() + 600)
        now = clock.now()
        told = await prune(
            store, await plan(store, Wanted(), now=now), now=now, spare_since=now - 120
        )  # fmt: skip
        assert told.collected is not None
        assert told.collected.programs == 1
        second = await runtime.start(made, execution_id="second")
        assert first.status == second.status == "done"
        assert await store.get_config(made.program.digest) is not None


async def test_the_file_gets_smaller(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    store = SQLiteStore(path)
    for number in range(50):
        await put(store, f"e{number}", blob=f"{number:032x}")
        lease = await store.acquire(f"e{number}", ALICE, now=1.0, ttl=TTL)
        await store.commit(step(lease, 3, b"x" * 100_000, release=True))
    told = await prune(store, await plan(store, Wanted(), now=NOW), now=NOW)
    assert (told.executions, told.compacted) == (50, True)
    await store.close()
    assert path.stat().st_size < 100_000


async def test_ten_thousand_executions_take_little_memory() -> None:
    import tracemalloc

    store = MemoryStore()
    for number in range(10_000):
        await store.create(
            birth(
                f"e{number}",
                b"x" * 500,
                status="done",
                parent=f"e{number - number % 10}" if number % 10 else None,
            )
        )
    tracemalloc.start()
    found = await plan(store, Wanted(keep=10), now=NOW)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (len(found.families), found.executions) == (990, 9_900)
    assert peak < 10_000 * 700
