"""Work pools and register in Redis pass the public kits against a real server, on every event loop."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import anyio
import pytest

from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.locks import LockLost
from flat.backends.redis.lock import RedisLock
from flat.backends.redis.work import RedisRegistrationBackend, RedisWorkBackend
from flat.backends.work import WorkBackend
from flat.errors import BackendError
from flat.testing.faults_proxy import FAULTS, Fault, Proxy
from flat.testing.servers import RedisServer, redis_server
from flat.testing.store_queries import HOSTILE
from flat.testing.work import REGISTRATION_CHECKS, WORK_CHECKS, Clock, WorkCheck, WorkPlace

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.mark.parametrize("check", WORK_CHECKS, ids=name)
async def test_pools(check: WorkCheck, server: RedisServer) -> None:
    url = server.url()

    def work(clock: Clock, keep_done: bool) -> WorkBackend:
        return RedisWorkBackend(url, clock=clock, keep_done=keep_done)

    async with WorkPlace(work=work) as place:
        await check(place)


@pytest.mark.parametrize("check", REGISTRATION_CHECKS, ids=name)
async def test_register(check: WorkCheck, server: RedisServer) -> None:
    url = server.url()
    async with WorkPlace(registration=lambda clock: RedisRegistrationBackend(url, clock=clock)) as place:
        await check(place)


# -- locks ------------------------------------------------------------------------------------------


async def test_a_lock_is_held_by_one_until_it_is_given_back(server: RedisServer) -> None:
    url = server.url()
    async with RedisLock(url) as mine, RedisLock(url) as theirs:
        for name in HOSTILE:
            assert await mine.acquire(name)
            assert not await mine.acquire(name)
            assert not await theirs.acquire(name)
            assert not await theirs.renew(name)
            await theirs.release(name)
            assert await mine.renew(name)
            assert not await theirs.acquire(name)
        for name in HOSTILE:
            await mine.release(name)
            assert await theirs.acquire(name)
            assert not await mine.renew(name)


async def test_a_lock_ends_with_its_time(server: RedisServer) -> None:
    url = server.url()
    async with RedisLock(url, ttl=0.001) as dead, RedisLock(url) as heir:
        assert await dead.acquire("k")
        with anyio.fail_after(10):
            while not await heir.acquire("k"):
                pass
        assert not await dead.renew("k")
        await dead.release("k")
        assert not await dead.acquire("k")


async def test_of_many_that_want_a_lock_one_gets_it_whatever_breaks(server: RedisServer) -> None:
    with Proxy(server.port) as proxy:
        for fault in FAULTS[:4]:
            url = server.url(port=proxy.port)
            async with RedisLock(url) as lock:
                assert await lock.acquire("warm")
                proxy.plan(fault, 0)
                assert await lock.acquire("k"), f"{fault}: the lock is ours, and we were told otherwise"
                proxy.plan(fault, 0)
                assert not await lock.acquire("k"), f"{fault}: acquired twice"
                proxy.plan(fault, 0)
                assert await lock.renew("k")
                proxy.plan(fault, 0)
                await lock.release("k")
                assert await lock.acquire("k")


async def test_whoever_holds_a_lock_later_has_a_higher_token(server: RedisServer) -> None:
    url = server.url()
    tokens: list[int] = []
    async with RedisLock(url) as one, RedisLock(url) as two:
        for turn in range(10):
            lock = (one, two)[turn % 2]
            lease = await lock.lease("k")
            assert lease is not None
            assert (lease.key, await lock.holds(lease), await (two, one)[turn % 2].lease("k")) == (
                "k",
                True,
                None,
            )
            tokens.append(lease.token)
            await lock.release("k")
            assert not await lock.holds(lease)
    async with RedisLock(url) as another:
        lease = await another.lease("k")
        assert lease is not None
        tokens.append(lease.token)
    assert sorted(set(tokens)) == tokens


async def test_a_holder_whose_time_ran_out_is_told_apart_by_its_token(server: RedisServer) -> None:
    """What a lock protects refuses the smaller token; the zombie learns of its loss as soon as it asks."""
    url = server.url()
    async with RedisLock(url, ttl=0.001) as zombie, RedisLock(url) as heir:
        late = await zombie.lease("k")
        assert late is not None
        with anyio.fail_after(10):
            while (lease := await heir.lease("k")) is None:
                pass
        assert lease.token > late.token
        assert not await zombie.holds(late)
        await zombie.release("k")  # of the heir's lock, nothing is given back
        assert await heir.holds(lease)
        assert zombie.held == {}


async def test_a_lock_is_held_for_a_block_and_waited_for(server: RedisServer) -> None:
    url, order = server.url(), []
    async with RedisLock(url, ttl=0.3) as one, RedisLock(url) as two, anyio.create_task_group() as group:
        inside = anyio.Event()

        async def first() -> None:
            async with one.hold("k") as lease:
                inside.set()
                for _ in range(5):
                    await one._client.command("waiting", "PING")
                order.append(lease.token)

        async def second() -> None:
            await inside.wait()
            async with two.hold("k") as lease:
                order.append(lease.token)

        group.start_soon(first)
        group.start_soon(second)
    assert order == sorted(order)
    assert len(order) == 2


async def _lose(lock: RedisLock, other: RedisLock) -> None:
    async with lock.hold("k"):
        with anyio.move_on_after(0.5):
            await anyio.sleep_forever()
        assert not await other.acquire("k"), "it ended, though it was kept"
        await lock._client.command("losing it", "FLUSHDB")
        with anyio.fail_after(10):
            await anyio.sleep_forever()


async def _break(lock: RedisLock) -> None:
    async with lock.hold("k"):
        raise ValueError("mine")


async def test_a_lock_that_is_kept_does_not_end_and_one_that_is_lost_cancels_its_block(
    server: RedisServer,
) -> None:
    url = server.url()
    async with RedisLock(url, ttl=0.2) as lock, RedisLock(url) as other:
        with pytest.raises(LockLost, match="not renewed in time"):
            await _lose(lock, other)
        with pytest.raises(ValueError, match="mine"):
            await _break(lock)
        assert await other.acquire("k")
    copy = pickle.loads(pickle.dumps(LockLost("k", "why")))
    assert (copy.key, str(copy)) == ("k", 'the lock "k" was lost: why')


# -- faults -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS[:4])
async def test_a_connection_that_breaks_loses_and_doubles_no_job(server: RedisServer, fault: Fault) -> None:
    with Proxy(server.port) as proxy:
        async with RedisWorkBackend(server.url(port=proxy.port), keep_done=True) as work:
            pool = work.pool("jobs")
            await pool.push("before")

            proxy.plan(fault, 0)
            ids = await pool.push_many([1, 2, 3])
            assert [item.id for item in await pool.items()][1:] == ids
            proxy.plan(fault, 0)
            first = await pool.claim("w")
            assert first is not None
            assert (first.data, first.attempts, await pool.size()) == ("before", 1, 3)
            proxy.plan(fault, 0)
            assert [item.data for item in await pool.claim_many("w", 2)] == [1, 2]
            proxy.plan(fault, 0)
            await pool.complete(first.id, "result", worker_id="w")
            proxy.plan(fault, 0)
            assert await pool.fail(ids[0], "why", worker_id="w") == "pending"
            proxy.plan(fault, 0)
            assert await pool.release_by_worker("w") == 1
            proxy.plan(fault, 0)
            assert await pool.discard(ids[2])
            assert [(item.status, item.attempts) for item in await pool.items()] == [
                ("done", 1), ("pending", 1), ("pending", 1),
            ]  # fmt: skip


async def test_both_kinds_are_made_by_name(server: RedisServer) -> None:
    url = server.url()
    work, register = create_work_backend("redis", url=url), create_registration_backend("redis", url=url)
    assert isinstance(work, RedisWorkBackend)
    assert isinstance(register, RedisRegistrationBackend)
    await work.pool("jobs").push(1)
    assert (list(await work.pools()), list(await register.list())) == (["jobs"], [])
    await work.close()
    await register.close()
    with pytest.raises(BackendError, match="no db_path"):
        create_work_backend("redis", db_path="x.db")
