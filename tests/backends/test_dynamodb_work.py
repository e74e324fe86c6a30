"""Pools, the register and locks in DynamoDB: the public kits, large jobs, and names that mean harm."""

from __future__ import annotations

import anyio
import pytest

from flat.backends.dynamodb.register import DynamoLock, DynamoRegistrationBackend
from flat.backends.dynamodb.work import DynamoWorkBackend
from flat.backends.work import WorkBackend
from flat.errors import BackendError, NotStorable
from flat.testing.servers import AwsServer
from flat.testing.store_signals import MEANT_HARM
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


# -- locks ------------------------------------------------------------------------------------------


class At:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.anyio
async def test_a_lock_has_one_holder_and_tokens_that_rise(aws: AwsServer) -> None:
    url, clock = aws.url(), At()
    one = DynamoLock(url, owner="one", ttl=10, clock=clock)
    other = DynamoLock(url, owner="other", ttl=10, clock=clock)
    assert await one.acquire("k")
    assert not await other.acquire("k")
    first = one.tokens["k"]
    clock.now += 9
    assert await one.acquire("k")
    assert one.tokens["k"] == first, "it was kept, and did not change hands"
    clock.now += 9
    assert not await other.acquire("k")
    clock.now += 2
    assert await other.acquire("k")
    assert other.tokens["k"] > first
    await one.release("k")
    assert not await one.acquire("k")
    await other.release("k")
    assert await one.acquire("k")
    assert one.tokens["k"] > first + 1
    await one.close()
    await other.close()


@pytest.mark.anyio
async def test_a_lock_is_renewed_until_somebody_else_has_it(aws: AwsServer) -> None:
    url, clock = aws.url(), At()
    one, other = DynamoLock(url, ttl=10, clock=clock), DynamoLock(url, ttl=10, clock=clock)
    assert not await one.renew("k")
    assert await one.acquire("k")
    for _ in range(3):
        clock.now += 9
        assert await one.renew("k")
    clock.now += 11
    assert await one.renew("k"), "it was over, and nobody had it since"
    assert not await other.acquire("k")
    clock.now += 11
    assert await other.acquire("k")
    with anyio.fail_after(10):
        one.ttl = 0.03
        await one.keep()
    assert one.tokens == {}
    await one.release("k")
    await other.close()
    assert await one.acquire("k"), "what was held was given back"
    await one.close()


@pytest.mark.anyio
async def test_of_many_that_want_a_lock_one_gets_it(aws: AwsServer) -> None:
    url, won = aws.url(), []
    locks = [DynamoLock(url, owner=f"o{n}") for n in range(8)]

    async def want(lock: DynamoLock, key: str) -> None:
        if await lock.acquire(key):
            won.append(key)

    async with anyio.create_task_group() as group:
        for n in range(5):
            for lock in locks:
                group.start_soon(want, lock, f"k{n}")
    assert sorted(won) == [f"k{n}" for n in range(5)]
    for lock in locks:
        await lock.close()


@pytest.mark.anyio
async def test_hostile_names_are_locks_like_any_other(aws: AwsServer) -> None:
    url = aws.url()
    one, other = DynamoLock(url, owner="one"), DynamoLock(url, owner="other")
    for key in MEANT_HARM[:40]:
        assert await one.acquire(key), key
        assert not await other.acquire(key), key
    with pytest.raises(NotStorable):
        await one.acquire("half \ud83d")
    with pytest.raises(BackendError, match="above 0"):
        DynamoLock(url, owner="x", ttl=0)
    await one.close()
    await other.close()
