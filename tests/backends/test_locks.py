"""Locks by name, wherever they are kept: one holder, tokens that rise, and an end by themselves."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

import flat
from flat.backends.dynamodb.lock import DynamoLock
from flat.backends.locks import LeaseLock, LockLost
from flat.backends.postgres.lock import PostgresLock
from flat.backends.redis.lock import RedisLock
from flat.backends.sqlite.lock import SQLiteLock
from flat.errors import BackendError, NotStorable
from flat.testing.servers import AwsServer, PostgresServer
from flat.testing.store_values import HOSTILE

pytestmark = pytest.mark.anyio

MakeLock = Callable[..., LeaseLock]


@pytest.fixture(params=["sqlite", "postgres", "redis", "dynamodb"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> MakeLock:
    """What opens another lock at one and the same place."""
    match request.param:
        case "sqlite":
            return lambda **more: SQLiteLock(tmp_path / "locks.db", **more)
        case "postgres":
            server: PostgresServer = request.getfixturevalue("postgres")
            url = server.url()
            return lambda **more: PostgresLock(url, **more)
        case "dynamodb":
            account: AwsServer = request.getfixturevalue("aws")
            table = account.url()
            return lambda **more: DynamoLock(table, **more)
    server_url = request.getfixturevalue("redis").url()
    return lambda **more: RedisLock(server_url, **more)


async def test_a_lock_is_held_by_one_until_it_is_given_back_whatever_its_name(make: MakeLock) -> None:
    async with make() as mine, make() as theirs:
        for name in HOSTILE:
            assert await mine.acquire(name), name
            assert not await mine.acquire(name)
            assert not await theirs.acquire(name)
            assert not await theirs.renew(name)
            await theirs.release(name)
            assert await mine.renew(name)
            assert not await theirs.acquire(name)
        for name in HOSTILE:
            await mine.release(name)
            assert await theirs.acquire(name), name
            assert not await mine.renew(name)
        with pytest.raises(NotStorable):
            await mine.acquire("half \ud83d")


async def test_a_lock_ends_with_its_time_and_the_late_holder_has_a_smaller_token(make: MakeLock) -> None:
    async with make(ttl=0.001) as zombie, make() as heir:
        late = await zombie.lease("k")
        assert late is not None
        with anyio.fail_after(10):
            while (lease := await heir.lease("k")) is None:
                pass
        assert lease.token > late.token
        assert not await zombie.holds(late)
        await zombie.release("k")  # of the heir's lock, nothing is given back
        assert await heir.holds(lease)
        assert not await zombie.renew("k")
        assert not await zombie.acquire("k")
        assert zombie.held == {}


async def test_tokens_rise_whoever_holds_the_lock_also_after_it_was_free(make: MakeLock) -> None:
    tokens: list[int] = []
    for turn in range(6):
        async with make() as lock:
            lease = await lock.lease("k")
            assert lease is not None
            tokens.append(lease.token)
            if turn % 2:
                await lock.release("k")
                assert not await lock.holds(lease)
    assert sorted(set(tokens)) == tokens, "close gives back what is held, and no token comes twice"


async def test_of_many_that_want_a_lock_at_once_one_gets_it(make: MakeLock) -> None:
    won: list[str] = []
    together = threading.Barrier(6)

    async def want() -> None:
        lock = make(ttl=60)
        for n in range(5):
            if await lock.acquire(f"k{n}"):
                won.append(f"k{n}")

    def thread() -> None:
        together.wait(20)
        anyio.run(want)

    threads = [threading.Thread(target=thread) for _ in range(6)]
    for one in threads:
        one.start()
    for one in threads:
        await anyio.to_thread.run_sync(one.join)
    assert sorted(won) == [f"k{n}" for n in range(5)]


async def test_a_lock_is_held_for_a_block_and_waited_for(make: MakeLock) -> None:
    tokens: list[int] = []
    async with make() as one, make() as two:

        async def second() -> None:
            async with two.hold("k") as lease:
                tokens.append(lease.token)

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group, one.hold("k") as lease:
                group.start_soon(second)
                for _ in range(20):
                    assert await one.holds(lease)
                tokens.append(lease.token)
    assert len(tokens) == 2
    assert tokens == sorted(tokens)


async def _lose(lock: LeaseLock, other: LeaseLock) -> None:
    async with lock.hold("k") as lease:
        with anyio.move_on_after(1.2 * lock.ttl):
            await anyio.sleep_forever()
        assert not await other.acquire("k"), "it ended, though it was kept"
        await lock._place.give_back(lease)  # behind its back
        with anyio.fail_after(10):
            await anyio.sleep_forever()


async def _break(lock: LeaseLock) -> None:
    async with lock.hold("k"):
        raise ValueError("mine")


async def test_a_lock_that_is_kept_does_not_end_and_one_that_is_lost_cancels_its_block(
    make: MakeLock,
) -> None:
    async with make(ttl=1.0) as lock, make(ttl=60) as other:
        lock.pause = 0.05  # a busy machine may be late many times over
        with pytest.raises(LockLost, match="not renewed in time"):
            await _lose(lock, other)
        with pytest.raises(ValueError, match="mine"):
            await _break(lock)
        assert await other.acquire("k")
        with pytest.raises(BackendError, match="would wait for itself"):
            async with other.hold("k"):
                pass
    with pytest.raises(BackendError, match="above 0"):
        make(ttl=0)
    copy = pickle.loads(pickle.dumps(LockLost("k", "why")))
    assert (copy.key, str(copy)) == ("k", 'the lock "k" was lost: why')


async def test_objects_of_one_owner_are_one_holder(tmp_path: Path, postgres: PostgresServer) -> None:
    url = postgres.url()
    for made in (
        lambda owner: SQLiteLock(tmp_path / "x.db", owner=owner),
        lambda o: PostgresLock(url, owner=o),
    ):
        async with made("one") as first, made("one") as again, made("two") as other:
            before, after = await first.lease("k"), await again.lease("k")
            assert before is not None
            assert after is not None
            assert after.token > before.token
            assert not await first.holds(before)
            assert await other.lease("k") is None


async def test_the_seed_systems_lease_lock_keeps_other_owners_out(tmp_path: Path) -> None:
    path = tmp_path / "locks.sqlite"
    one, other = flat.SQLiteLeaseLock(path, "one", ttl_seconds=1), flat.SQLiteLeaseLock(path, "other")
    assert (one.ttl, one.pause) == (30, 10)
    assert await one.acquire("e1")
    assert await one.acquire("e1"), "its owner may take it again"
    assert not await other.acquire("e1")
    await one.release("e1")
    assert await other.acquire("e1")
    await other.close()
