"""Pools, the register and locks in DynamoDB: the public kits, large jobs, and names that mean harm."""

from __future__ import annotations

import anyio
import pytest

from flat.backends.dynamodb.lock import DynamoLock
from flat.backends.dynamodb.register import DynamoRegistrationBackend
from flat.backends.dynamodb.work import DynamoWorkBackend
from flat.backends.work import WorkBackend
from flat.testing.servers import AwsServer
from flat.testing.work import REGISTRATION_CHECKS, WORK_CHECKS, Clock, WorkCheck, WorkPlace


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


ONE_LOOP = {
    "many_tasks_share_a_pool_without_losing_or_doubling": "asyncio",
    "ids_do_not_come_back": "trio",
}
"""Checks that take long on a server which is written in Python: each is made on one of the event loops."""
CASES = [
    pytest.param(check, loop, id=f"{loop}-{check.__name__}")
    for check in WORK_CHECKS
    for loop in ("asyncio", "trio")
    if ONE_LOOP.get(check.__name__, loop) == loop
]


@pytest.mark.anyio
@pytest.mark.parametrize(("check", "anyio_backend"), CASES)
async def test_pools_pass_the_kit(check: WorkCheck, aws: AwsServer) -> None:
    url = aws.url()

    def work(clock: Clock, keep_done: bool) -> WorkBackend:
        return DynamoWorkBackend(url, clock=clock, keep_done=keep_done)

    async with WorkPlace(work=work) as place:
        await check(place)


@pytest.mark.anyio
@pytest.mark.parametrize("check", REGISTRATION_CHECKS, ids=name)
async def test_the_register_passes_the_kit(check: WorkCheck, aws: AwsServer) -> None:
    url = aws.url()
    async with WorkPlace(registration=lambda clock: DynamoRegistrationBackend(url, clock=clock)) as place:
        await check(place)


@pytest.mark.anyio
async def test_a_large_job_and_its_result_come_back_whole_and_leave_nothing(aws: AwsServer) -> None:
    async with DynamoWorkBackend(aws.url(), keep_done=True) as work:
        pool = work.pool("jobs")
        large = "x" * 900_000
        pushed = await pool.push({"text": large})
        item = await pool.claim("w1")
        assert item is not None
        assert item.data == {"text": large}
        await pool.complete(pushed, large, worker_id="w1")
        done = await pool.get(pushed)
        assert done is not None
        assert done.result == large
        assert await pool.discard(pushed)
        assert await work.table.query("looking", f"jv#{int(pushed):020d}") == []


# -- locks: what is theirs alone; the rest is in test_locks -----------------------------------------


class At:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.anyio
async def test_a_lock_ends_by_the_clock_of_whoever_wants_it(aws: AwsServer) -> None:
    url, clock = aws.url(), At()
    async with DynamoLock(url, ttl=10, clock=clock) as one, DynamoLock(url, ttl=10, clock=clock) as other:
        assert await one.acquire("k")
        for _ in range(3):
            clock.now += 9
            assert await one.renew("k")
            assert not await other.acquire("k")
        clock.now += 11
        assert not await one.renew("k"), "it had ended"
        first = await other.lease("k")
        assert first is not None
        clock.now += 11
        assert await one.acquire("k")
        assert one.held["k"].token > first.token
        assert not await other.holds(first)
        with anyio.fail_after(10):
            other.ttl = other.pause = 0.01
            await other.keep()
        assert other.held == {}
