"""Commits that are ready together share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.backends import Lease, SQLiteStore
from flat.errors import BackendError, StaleSnapshot
from flat.testing.store_case import begin, birth, newest, signal, signal_ids, step, waiting

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


async def test_a_cancelled_commit_is_stored_or_raises_and_never_both(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(8)]
    returned: set[str] = set()

    async def commit(lease: Lease, scope: anyio.CancelScope) -> None:
        with scope:
            await store.commit(step(lease, 1))
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
    assert stored == returned
    assert stored >= {"e2", "e4", "e6", "e7"}
    assert not stored & {"e0", "e3"}


async def test_a_cancelled_group_leaves_the_store_usable(store: SQLiteStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(4)]
    async with anyio.create_task_group() as group:
        for lease in leases:
            group.start_soon(store.commit, step(lease, 1))
        group.cancel_scope.cancel()
    for lease in leases:
        await store.commit(step(lease, await newest(store, lease.execution_id) + 1))


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
