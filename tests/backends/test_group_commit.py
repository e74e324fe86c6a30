"""Commits that are ready together share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.backends import Head, Lease, SQLiteStore
from flat.errors import BackendError, ExecutionBusy, StaleSnapshot
from flat.testing.store_case import ALICE, BOB, TTL, begin, birth, newest, signal, signal_ids, step, waiting

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(tmp_path: Path, anyio_backend: str) -> AsyncIterator[SQLiteStore]:
    async with SQLiteStore(tmp_path / "store.db", "FULL") as opened:
        yield opened


def count_transactions(store: SQLiteStore) -> list[str]:
    seen: list[str] = []
    store._connection.set_trace_callback(
        lambda text: seen.append(text) if text.startswith("COMMIT") else None
    )
    return seen


async def test_commits_of_one_turn_share_a_transaction(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(16)]
    transactions = count_transactions(store)

    async def drive(lease: Lease) -> None:
        for seq in range(1, 6):
            await store.commit(step(lease, seq))

    async with anyio.create_task_group() as group:
        for lease in leases:
            group.start_soon(drive, lease)
    assert len(transactions) <= 3 * 5
    assert [await newest(store, f"e{number}") for number in range(16)] == [5] * 16


async def test_a_lone_execution_commits_without_yielding(store: SQLiteStore) -> None:
    lease = await begin(store)
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    async with anyio.create_task_group() as group:
        group.start_soon(count_turns)
        await anyio.lowlevel.checkpoint()
        before = turns
        for seq in range(1, 51):
            await store.commit(step(lease, seq))
        assert turns == before
        for seq in range(51, 300):
            await store.commit(step(lease, seq))
        assert turns > before
        group.cancel_scope.cancel()


async def test_a_stale_member_fails_alone(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(6)]
    refused: list[str] = []

    async def commit(lease: Lease, seq: int, **rest: Any) -> None:
        try:
            await store.commit(step(lease, seq, **rest))
        except StaleSnapshot as error:
            refused.append(error.execution_id)

    transactions = count_transactions(store)
    async with anyio.create_task_group() as group:
        group.start_soon(commit, leases[0], 1)
        group.start_soon(commit, leases[1], 9)
        bad: dict[str, Any] = {
            "consume": ("gone",),
            "send": (signal("never"),),
            "births": (birth("never"),),
            "log": (b"x",),
        }
        group.start_soon(lambda: commit(leases[2], 1, head=waiting("never"), **bad))
        group.start_soon(lambda: commit(leases[3], 1, head=waiting("yes"), send=(signal("sent"),)))
        group.start_soon(commit, Lease(execution_id="e4", owner="x", token=0), 1)
        group.start_soon(commit, leases[5], 1)
    assert sorted(refused) == ["e1", "e2", "e4"]
    assert [await newest(store, f"e{number}") for number in range(6)] == [1, 0, 0, 1, 0, 1]
    assert await signal_ids(store) == ["sent"]
    assert await store.get("never") is None
    assert len(transactions) == 1
    for lease in (leases[1], leases[2], leases[4]):
        await store.commit(step(lease, 1))


async def test_a_value_that_cannot_be_stored_fails_alone(store: SQLiteStore) -> None:
    good, bad = await begin(store, "e1"), await begin(store, "e2")

    async def commit_badly() -> None:
        with pytest.raises(BackendError, match="half a character"):
            await store.commit(step(bad, 1, head=waiting("half \ud83d")))

    async with anyio.create_task_group() as group:
        group.start_soon(commit_badly)
        group.start_soon(store.commit, step(good, 1))
    assert (await newest(store, "e1"), await newest(store, "e2")) == (1, 0)


async def test_two_commits_of_one_execution_in_one_batch_both_count(store: SQLiteStore) -> None:
    lease, other = await begin(store, "e1"), await begin(store, "e2")
    results: list[int] = []

    async def commit(seq: int) -> None:
        try:
            await store.commit(step(lease, seq))
            results.append(seq)
        except StaleSnapshot:
            results.append(-seq)

    async with anyio.create_task_group() as group:
        for seq in (1, 2, 3):
            group.start_soon(commit, seq)
        group.start_soon(store.commit, step(other, 1))
    stored = [seq for seq, _, _ in await store.bodies("e1")]
    assert stored == [0, *sorted(seq for seq in results if seq > 0)]


async def test_a_cancelled_commit_is_stored_whole_or_not_and_disturbs_nobody(store: SQLiteStore) -> None:
    """A commit that is cancelled in the very turn that it shares may be stored although it raised.

    To rule that out takes a shielded turn for every commit. What drives an execution reads the store again
    after a cancellation in any case, because it may have been cancelled just before or just after a commit.
    """
    leases = [await begin(store, f"e{number}") for number in range(8)]
    returned: set[str] = set()

    async def commit(lease: Lease, scope: anyio.CancelScope) -> None:
        with scope:
            await store.commit(step(lease, 1, log=(b"line",)))
            returned.add(lease.execution_id)

    scopes = [anyio.CancelScope() for _ in leases]
    for number in (0, 3):
        scopes[number].cancel()
    async with anyio.create_task_group() as group:
        for lease, scope in zip(leases, scopes, strict=True):
            group.start_soon(commit, lease, scope)
        await anyio.lowlevel.cancel_shielded_checkpoint()
        for number in (1, 5):
            scopes[number].cancel()
    stored = {f"e{number}" for number in range(8) if await newest(store, f"e{number}") == 1}
    assert stored >= returned >= {"e2", "e4", "e6", "e7"}
    assert not returned & {"e0", "e3"}
    for lease in leases:
        found = await store.load(lease.execution_id)
        assert found is not None
        assert len(found.bodies) - 1 == len(found.log) == (lease.execution_id in stored)
        await store.commit(step(lease, len(found.bodies)))


async def test_starts_and_commits_share_transactions(store: SQLiteStore) -> None:
    transactions = count_transactions(store)

    async def drive(number: int) -> None:
        await store.put_config("digest", b"text")
        lease = await store.begin(birth(f"e{number}"), ALICE, now=1000.0 + number, ttl=TTL)
        assert lease is not None
        for seq in range(1, 6):
            await store.commit(step(lease, seq, head=Head(status="done"), release=seq == 5))

    async with anyio.create_task_group() as group:
        for number in range(64):
            group.start_soon(drive, number)
    assert len(transactions) <= 3 * 6 + 1
    for number in range(64):
        found = await store.get(f"e{number}")
        assert found is not None
        assert (found.seq, found.owner, found.status) == (5, None, "done")


async def test_a_refused_start_fails_alone(store: SQLiteStore) -> None:
    await store.create(birth("taken", b"first"))
    lease = await begin(store, "driven")
    results: dict[str, object] = {}

    async def start(execution_id: str, **columns: Any) -> None:
        try:
            new = birth(execution_id, **columns)
            results[execution_id] = await store.begin(new, BOB, now=1000.0, ttl=TTL)
        except BackendError as error:
            results[execution_id] = str(error)

    transactions = count_transactions(store)
    async with anyio.create_task_group() as group:
        group.start_soon(start, "taken")
        group.start_soon(start, "new")
        group.start_soon(lambda: start("bad", name="half \ud83d"))
        group.start_soon(store.commit, step(lease, 1))
    assert len(transactions) == 1
    assert results["taken"] is None
    assert "half a character" in str(results["bad"])
    assert results["new"] == Lease(execution_id="new", owner="bob", token=1)
    assert await store.get("bad") is None
    assert (await newest(store, "driven"), await newest(store, "new")) == (1, 0)
    assert await store.bodies("taken") == [(0, True, b"first")]


async def test_a_start_that_fails_with_its_group_owns_nothing_and_may_be_repeated(store: SQLiteStore) -> None:
    store._connection.execute("PRAGMA query_only = 1")
    failed: list[str] = []

    async def start(execution_id: str) -> None:
        try:
            await store.begin(birth(execution_id), ALICE, now=1000.0, ttl=TTL)
        except BackendError as error:
            failed.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(start, "e1")
        group.start_soon(start, "e2")
    assert len(failed) == 2
    store._connection.execute("PRAGMA query_only = 0")
    lease = await store.begin(birth("e1"), ALICE, now=1000.0, ttl=TTL)
    assert lease is not None
    # The heartbeat was rolled back with the start; it must have been written again.
    with pytest.raises(ExecutionBusy):
        await store.acquire("e1", BOB, now=1001.0, ttl=TTL)
    await store.commit(step(lease, 1))


async def test_a_cancelled_start_leaves_nobody_owning_it(store: SQLiteStore) -> None:
    returned: dict[str, Lease] = {}

    async def start(number: int, scope: anyio.CancelScope) -> None:
        with scope:
            lease = await store.begin(birth(f"e{number}"), ALICE, now=1000.0, ttl=TTL)
            assert lease is not None
            returned[f"e{number}"] = lease

    scopes = [anyio.CancelScope() for _ in range(8)]
    for number in (0, 3):
        scopes[number].cancel()
    async with anyio.create_task_group() as group:
        for number, scope in enumerate(scopes):
            group.start_soon(start, number, scope)
        await anyio.lowlevel.cancel_shielded_checkpoint()
        for number in (1, 5):
            scopes[number].cancel()
    assert returned.keys() >= {"e2", "e4", "e6", "e7"}
    for number in range(8):
        found = await store.get(f"e{number}")
        if (lease := returned.get(f"e{number}")) is not None:
            await store.commit(step(lease, 1))
        elif found is not None:
            assert found.owner is None
            await store.acquire(f"e{number}", BOB, now=1000.0, ttl=TTL)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("victim", [0, 2])
async def test_killing_a_start_from_outside_anyio_leaves_nobody_owning_it(
    store: SQLiteStore, victim: int
) -> None:
    starts = [store.begin(birth(f"e{number}"), ALICE, now=1000.0, ttl=TTL) for number in range(4)]
    tasks = [asyncio.ensure_future(start) for start in starts]
    await asyncio.sleep(0)
    tasks[victim].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results].count(True) == 1
    found = await store.get(f"e{victim}")
    assert found is None or found.owner is None
    assert found is None or victim > 0
    for result in results:
        if isinstance(result, Lease):
            await store.commit(step(result, 1))


async def test_releases_of_one_turn_share_a_transaction(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(16)]
    transactions = count_transactions(store)
    async with anyio.create_task_group() as group:
        for lease in leases:
            group.start_soon(store.release, lease)
    assert len(transactions) <= 2  # the last one is alone
    found = [one async for one in store.find()]
    assert [(one.owner, one.token) for one in found] == [(None, leases[0].token + 1)] * 16


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("victim", [0, 2])
async def test_killing_a_release_from_outside_anyio_ends_the_lease_all_the_same(
    store: SQLiteStore, victim: int
) -> None:
    leases = [await begin(store, f"e{number}") for number in range(4)]
    tasks = [asyncio.ensure_future(store.release(lease)) for lease in leases]
    await asyncio.sleep(0)
    tasks[victim].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results].count(True) == 1
    for number in range(4):
        await store.acquire(f"e{number}", BOB, now=1000.0, ttl=TTL)


async def test_a_config_that_this_store_has_put_or_read_costs_no_transaction(
    store: SQLiteStore, tmp_path: Path
) -> None:
    await store.put_config("d1", b"text")
    async with SQLiteStore(tmp_path / "store.db") as other:
        transactions = count_transactions(other)
        assert await other.get_config("d1") == b"text"
        assert await other.get_config("d2") is None
        await other.put_config("d1", b"text")
        assert transactions == []
        await other.put_config("d2", b"more")
        await other.put_config("d2", b"more")
        assert len(transactions) == 1
    assert await store.get_config("d2") == b"more"


async def test_a_cancelled_group_leaves_the_store_usable(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(4)]
    async with anyio.create_task_group() as group:
        for lease in leases:
            group.start_soon(store.commit, step(lease, 1))
        group.cancel_scope.cancel()
    for lease in leases:
        stored = await newest(store, lease.execution_id)
        assert stored in (0, 1)
        await store.commit(step(lease, stored + 1))
        assert await newest(store, lease.execution_id) == stored + 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("victim", [0, 2])
async def test_killing_a_task_from_outside_anyio_does_not_lose_the_others(
    store: SQLiteStore, victim: int
) -> None:
    leases = [await begin(store, f"e{number}") for number in range(4)]
    tasks = [asyncio.ensure_future(store.commit(step(lease, 1))) for lease in leases]
    await asyncio.sleep(0)
    tasks[victim].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results].count(True) == 1
    numbers = [await newest(store, f"e{number}") for number in range(4)]
    assert [number for place, number in enumerate(numbers) if place != victim] == [1, 1, 1]
    await store.commit(step(leases[victim], numbers[victim] + 1))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_event_loops_in_several_threads_may_share_a_store(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(12)]

    async def drive(some: list[Lease]) -> None:
        async def one(lease: Lease) -> None:
            for seq in range(1, 31):
                await store.commit(step(lease, seq, log=(b"x",) if seq % 3 == 0 else ()))

        async with anyio.create_task_group() as group:
            for lease in some:
                group.start_soon(one, lease)

    async with anyio.create_task_group() as group:
        for part in range(3):
            group.start_soon(anyio.to_thread.run_sync, anyio.run, drive, leases[part::3])
    assert [await newest(store, f"e{number}") for number in range(12)] == [30] * 12
