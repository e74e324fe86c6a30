"""Work pools and register in Redis pass the public kits against a real server, on every event loop."""

from __future__ import annotations

import pytest

from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.redis.lock import RedisLock
from flat.backends.redis.work import RedisRegistrationBackend, RedisWorkBackend
from flat.backends.work import WorkBackend
from flat.errors import BackendError
from flat.testing.faults_proxy import FAULTS, Fault, Proxy
from flat.testing.servers import RedisServer
from flat.testing.work import REGISTRATION_CHECKS, WORK_CHECKS, Clock, WorkCheck, WorkPlace

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.mark.parametrize("check", WORK_CHECKS, ids=name)
async def test_pools(check: WorkCheck, redis: RedisServer) -> None:
    url = redis.url()

    def work(clock: Clock, keep_done: bool) -> WorkBackend:
        return RedisWorkBackend(url, clock=clock, keep_done=keep_done)

    async with WorkPlace(work=work) as place:
        await check(place)


@pytest.mark.parametrize("check", REGISTRATION_CHECKS, ids=name)
async def test_register(check: WorkCheck, redis: RedisServer) -> None:
    url = redis.url()
    async with WorkPlace(registration=lambda clock: RedisRegistrationBackend(url, clock=clock)) as place:
        await check(place)


# -- faults; of locks, besides, in `test_locks` ------------------------------------------------------


async def test_of_many_that_want_a_lock_one_gets_it_whatever_breaks(redis: RedisServer) -> None:
    with Proxy(redis.port) as proxy:
        for fault in FAULTS[:4]:
            url = redis.url(port=proxy.port)
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


@pytest.mark.parametrize("fault", FAULTS[:4])
async def test_a_connection_that_breaks_loses_and_doubles_no_job(redis: RedisServer, fault: Fault) -> None:
    with Proxy(redis.port) as proxy:
        async with RedisWorkBackend(redis.url(port=proxy.port), keep_done=True) as work:
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


async def test_both_kinds_are_made_by_name(redis: RedisServer) -> None:
    url = redis.url()
    work, register = create_work_backend("redis", url=url), create_registration_backend("redis", url=url)
    assert isinstance(work, RedisWorkBackend)
    assert isinstance(register, RedisRegistrationBackend)
    await work.pool("jobs").push(1)
    assert (list(await work.pools()), list(await register.list())) == (["jobs"], [])
    await work.close()
    await register.close()
    with pytest.raises(BackendError, match="no db_path"):
        create_work_backend("redis", db_path="x.db")
