"""Checks of what becomes of claimed jobs: failures, who holds a job, and leases."""

from __future__ import annotations

import math

from flat.errors import BackendError, FlatError, WorkItemNotFound, WorkNotHeld
from flat.testing.store_case import refused
from flat.testing.store_values import HOSTILE
from flat.testing.work_case import WorkChecks, WorkPlace, claimed, drained

LONE = WorkChecks()


# -- failures ---------------------------------------------------------------------------------


@LONE
async def a_failed_job_returns_to_its_place(place: WorkPlace) -> None:
    pool = place.pool()
    first, second = await pool.push_many(["first", "second"])
    held = await claimed(pool)
    assert held == first
    assert await pool.fail(held, "it broke", worker_id="w1") == "pending"
    item = await pool.get(first)
    assert item is not None
    assert (item.status, item.claimed_by, item.attempts, item.error) == ("pending", None, 1, "it broke")
    assert [await claimed(pool), await claimed(pool)] == [first, second]


@LONE
async def a_job_that_fails_too_often_is_poisoned_and_kept(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push("bad", {"max_retries": 2})
    assert await pool.fail(await claimed(pool), "once") == "pending"
    held = await claimed(pool)
    assert await pool.fail(held, ValueError("twice")) == "poisoned"
    assert await pool.claim("w1") is None
    assert await pool.size() == 0
    (item,) = await pool.items(status="poisoned")
    assert (item.id, item.attempts, item.error, item.data) == (held, 2, "ValueError: twice", "bad")


@LONE
async def a_job_without_retries_is_poisoned_by_its_first_failure(place: WorkPlace) -> None:
    pool = place.pool()
    for retries in (0, 1):
        await pool.push("bad", max_retries=retries)
        assert await pool.fail(await claimed(pool)) == "poisoned"


@LONE
async def a_poisoned_job_can_be_tried_again_or_discarded(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push_many(["a", "b"], max_retries=1)
    for _ in range(2):
        await pool.fail(await claimed(pool), "no")
    a, b = (item.id for item in await pool.items(status="poisoned"))
    async with refused(WorkNotHeld):
        await pool.complete(a)
    await pool.retry(a)
    assert await pool.discard(b)
    assert not await pool.discard(b)
    assert await pool.size() == 1
    item = await pool.claim("w1")
    assert item is not None
    assert (item.id, item.attempts) == (a, 1)
    async with refused(WorkNotHeld):
        await pool.retry(a)
    async with refused(WorkNotHeld):
        await pool.discard(a)
    async with refused(WorkItemNotFound):
        await pool.retry(b)


@LONE
async def bad_numbers_are_refused(place: WorkPlace) -> None:
    pool = place.pool()
    for retries in (-1, 1.5, True, "3", 2**40):
        async with refused(BackendError):
            await pool.push(1, {"max_retries": retries})
    async with refused(FlatError):
        await pool.push(1, {"max_retrys": 2})
    async with refused(FlatError):
        await pool.items(status="finished")  # type: ignore[arg-type]
    await pool.push(1)
    for lease in (0, -1, math.inf, math.nan, True):
        async with refused(BackendError):
            await pool.claim("w1", lease=lease)
    async with refused(BackendError):
        await pool.claim("")
    assert await pool.size() == 1


@LONE
async def ids_that_cannot_be_are_not_found(place: WorkPlace) -> None:
    pool = place.pool()
    held = await pool.push(1)
    for bad in (
        *HOSTILE,
        "0",
        "-1",
        "0" + held,
        " " + held,
        held + "\n",
        "9" * 40,
        "9" * 5000,
        "1e3",
        "²",
        "١",
    ):
        assert await pool.get(bad) is None, bad
        assert not await pool.discard(bad)
        async with refused(WorkItemNotFound):
            await pool.complete(bad)
        async with refused(WorkItemNotFound):
            await pool.fail(bad)
        assert not await pool.renew(bad, "w1", lease=5)
    assert await pool.size() == 1


# -- who holds a job -----------------------------------------------------------------------------


@LONE
async def only_the_holder_ends_a_job_when_it_gives_its_name(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await claimed(pool)
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="w2")
    async with refused(WorkNotHeld):
        await pool.fail(held, worker_id="w2")
    assert not await pool.renew(held, "w2", lease=10)
    await pool.complete(held, worker_id="w1")


@LONE
async def who_gives_no_name_may_end_any_job(place: WorkPlace) -> None:
    pool = place.pool()
    pending = await pool.push(1)
    await pool.complete(pending)
    await pool.push(2)
    await pool.complete(await claimed(pool))
    assert await pool.size() == 0


@LONE
async def a_worker_that_was_reaped_cannot_end_what_its_successor_does(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await claimed(pool, "dead")
    assert await pool.release_by_worker("dead") == 1
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="dead")
    assert await claimed(pool, "heir") == held
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="dead")
    await pool.complete(held, worker_id="heir")


@LONE
async def releasing_keeps_attempts_and_order_and_never_poisons(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many([1, 2, 3], max_retries=1)
    for worker in ("dead", "other", "dead"):
        await claimed(pool, worker)
    assert await pool.release_by_worker("dead") == 2
    assert await pool.release_by_worker("dead") == 0
    item = await pool.claim("heir")
    assert item is not None
    assert (item.id, item.attempts, item.status) == (ids[0], 2, "claimed")
    assert await claimed(pool) == ids[2]


@LONE
async def a_claim_can_be_repeated_with_its_key(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many([1, 2, 3])
    first = await pool.claim("w1", key="run/7")
    assert first is not None
    again = await pool.claim("w1", key="run/7")
    assert again == first
    assert again.attempts == 1
    assert await claimed(pool, "w1", key="run/8") == ids[1]
    assert await claimed(pool, "w2", key="run/7") == ids[2]
    await pool.complete(first.id, worker_id="w1")
    assert await pool.claim("w1", key="run/7") is None


@LONE
async def a_released_job_is_no_more_under_its_key(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await claimed(pool, "w1", key="k")
    await pool.release_by_worker("w1")
    assert await claimed(pool, "w2") == held
    assert await pool.claim("w1", key="k") is None


# -- leases -----------------------------------------------------------------------------------------


@LONE
async def a_claim_ends_with_its_lease(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push_many(["leased", "next"])
    held = await claimed(pool, "w1", lease=30)
    place.now += 29.9
    assert await pool.size() == 1
    place.now += 0.2
    assert await pool.size() == 2
    item = await pool.claim("w2", lease=30)
    assert item is not None
    assert (item.id, item.attempts, item.lease_until) == (held, 2, place.now + 30)
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="w1")
    await pool.complete(held, worker_id="w2")


@LONE
async def a_renewed_lease_lasts_longer(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await claimed(pool, "w1", lease=30)
    for _ in range(5):
        place.now += 20
        assert await pool.renew(held, "w1", lease=30)
        assert await pool.claim("w2") is None
    place.now += 31
    assert not await pool.renew(held, "w1", lease=30)
    assert await claimed(pool, "w2") == held


@LONE
async def a_claim_without_a_lease_lasts(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await claimed(pool)
    place.now += 1e8
    assert await pool.claim("w2") is None
    await pool.complete(held, worker_id="w1")


@LONE
async def a_job_that_kills_its_workers_is_poisoned(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push("deadly", max_retries=2)
    for _ in range(2):
        held = await claimed(pool, "victim", lease=10)
        place.now += 11
    assert await pool.claim("w1") is None
    item = await pool.get(held)
    assert item is not None
    assert (item.status, item.attempts) == ("poisoned", 2)
    assert item.error is not None
    assert "victim" in item.error


@LONE
async def leases_end_in_their_own_pools(place: WorkPlace) -> None:
    work = place.work()
    a, b = work.pool("a"), work.pool("b")
    await a.push("a")
    await b.push("b")
    await claimed(a, "w1", lease=10)
    await claimed(b, "w1", lease=100)
    place.now += 50
    assert await drained(b) == []
    assert await drained(a) == ["a"]
