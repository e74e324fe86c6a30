"""Checks of work pools: in and out, failures, who holds a job, leases, names, and many at once."""

from __future__ import annotations

import math
from typing import Any

import anyio

from flat.backends.work import WorkPool
from flat.errors import BackendError, FlatError, NotStorable, WorkItemNotFound, WorkNotHeld
from flat.testing.store_case import refused
from flat.testing.store_queries import HOSTILE
from flat.testing.work_case import START, WorkChecks, WorkPlace

LONE = WorkChecks()
SHARED = WorkChecks()


async def _drained(pool: WorkPool, worker: str = "drain") -> list[Any]:
    """The data of all pending jobs, in the order in which they are claimed."""
    found = []
    while (item := await pool.claim(worker)) is not None:
        found.append(item.data)
    return found


async def _claimed(pool: WorkPool, worker: str = "w1", **options: Any) -> str:
    item = await pool.claim(worker, **options)
    assert item is not None, "there was a pending job, and none was given"
    return item.id


# -- pools: in and out ---------------------------------------------------------------------------


@LONE
async def jobs_are_claimed_in_the_order_of_their_pushes(place: WorkPlace) -> None:
    pool = place.pool()
    for i in range(20):
        await pool.push({"i": i})
        place.now -= 0.5  # a clock may go back; the order is that of the pushes
    assert [data["i"] for data in await _drained(pool)] == list(range(20))


@LONE
async def a_claimed_job_says_what_it_is(place: WorkPlace) -> None:
    pool = place.pool()
    pushed = await pool.push({"url": "x", "tags": [1, None]}, {"max_retries": 5})
    place.now += 10
    item = await pool.claim("w1")
    assert item is not None
    assert (item.id, item.data, item.status) == (pushed, {"url": "x", "tags": [1, None]}, "claimed")
    assert (item.claimed_by, item.attempts, item.max_retries) == ("w1", 1, 5)
    assert (item.created_at, item.claimed_at, item.lease_until) == (START, START + 10, None)
    assert await pool.get(pushed) == item


@LONE
async def a_job_is_claimed_once(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    assert await pool.claim("w1") is not None
    assert await pool.claim("w2") is None
    assert await pool.claim("w1") is None


@LONE
async def an_empty_or_unknown_pool_has_nothing(place: WorkPlace) -> None:
    work = place.work()
    pool = work.pool("nobody pushes here")
    assert await pool.claim("w1") is None
    assert await pool.size() == 0
    assert list(await pool.items()) == []
    assert await pool.get("1") is None
    assert await pool.release_by_worker("w1") == 0
    assert list(await work.pools()) == []


@LONE
async def pools_do_not_mix(place: WorkPlace) -> None:
    work = place.work()
    a, b = work.pool("a"), work.pool("b")
    await a.push("of a")
    job = await b.push("of b")
    assert await a.get(job) is None
    with_a = refused(WorkItemNotFound)
    async with with_a:
        await a.complete(job)
    assert (await a.size(), await b.size()) == (1, 1)
    assert list(await work.pools()) == ["a", "b"]
    assert await _drained(b) == ["of b"]
    assert await _drained(a) == ["of a"]


@LONE
async def many_jobs_are_pushed_in_order_or_not_at_all(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many(list(range(50)), max_retries=1)
    assert len(set(ids)) == 50
    async with refused(NotStorable):
        await pool.push_many([1, 2, object()])
    assert list(await pool.push_many([])) == []
    assert await _drained(pool) == list(range(50))


@LONE
async def only_pending_jobs_count(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push_many([1, 2, 3])
    held = await _claimed(pool)
    assert await pool.size() == 2
    await pool.fail(held)
    assert await pool.size() == 3
    await pool.complete(await _claimed(pool))
    assert await pool.size() == 2


@LONE
async def data_are_copies(place: WorkPlace) -> None:
    pool = place.pool()
    data = {"list": [1]}
    await pool.push(data)
    data["list"].append(2)
    item = await pool.claim("w1")
    assert item is not None
    assert item.data == {"list": [1]}
    item.data["list"].append(3)
    again = await pool.get(item.id)
    assert again is not None
    assert again.data == {"list": [1]}


@LONE
async def data_that_would_come_back_as_something_else_are_refused(place: WorkPlace) -> None:
    pool = place.pool()
    for bad in ({1: "a"}, {"x": [math.nan]}, {"x": {1, 2}}, b"bytes", object(), 2**70, "half \ud800", {"x": START.as_integer_ratio}):  # noqa: E501 # fmt: skip
        async with refused(NotStorable):
            await pool.push(bad)
    held = await pool.push("good")
    async with refused(NotStorable):
        await pool.complete(held, {"x": math.inf})
    assert await pool.size() == 1


@LONE
async def completed_jobs_are_gone(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await _claimed(pool)
    await pool.complete(held, {"answer": 42}, worker_id="w1")
    assert await pool.get(held) is None
    async with refused(WorkItemNotFound):
        await pool.complete(held, worker_id="w1")
    async with refused(KeyError):
        await pool.fail(held)


@LONE
async def completed_jobs_are_kept_with_their_results_where_that_is_wanted(place: WorkPlace) -> None:
    pool = place.pool(keep_done=True)
    await pool.push(1)
    held = await _claimed(pool)
    await pool.complete(held, {"answer": 42}, worker_id="w1")
    await pool.complete(held, {"answer": 0}, worker_id="w1")
    await pool.complete(held)
    item = await pool.get(held)
    assert item is not None
    assert (item.status, item.result, item.claimed_by) == ("done", {"answer": 42}, "w1")
    assert [one.id for one in await pool.items(status="done")] == [held]
    assert await pool.claim("w2") is None
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="w2")
    async with refused(WorkNotHeld):
        await pool.fail(held, "too late")
    assert await pool.discard(held)
    assert await pool.get(held) is None


@LONE
async def many_jobs_are_claimed_at_once_oldest_first(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many(list(range(10)))
    first = await pool.claim_many("w1", 4, lease=30)
    assert [item.id for item in first] == ids[:4]
    assert {(item.claimed_by, item.attempts, item.lease_until) for item in first} == {("w1", 1, START + 30)}
    assert [item.data for item in await pool.claim_many("w2", 100)] == list(range(4, 10))
    assert list(await pool.claim_many("w3", 1)) == []
    place.now += 31
    assert [item.attempts for item in await pool.claim_many("w3", 9)] == [2] * 4
    for bad in (0, -1, True, 1.5):
        async with refused(BackendError):
            await pool.claim_many("w3", bad)  # type: ignore[arg-type]


@LONE
async def many_jobs_are_completed_all_or_none(place: WorkPlace) -> None:
    pool = place.pool(keep_done=True)
    a, b, c = await pool.push_many(["a", "b", "c"])
    await pool.claim_many("w1", 2)
    await _claimed(pool, "w2")
    for bad in ({a: 1, b: 2, c: 3}, {a: 1, "nothing": 2}, {a: 1, b: object()}):
        async with refused(WorkNotHeld, WorkItemNotFound, NotStorable):
            await pool.complete_many(bad, worker_id="w1")
    assert [item.status for item in await pool.items()] == ["claimed"] * 3
    await pool.complete_many({b: "of b", a: "of a"}, worker_id="w1")
    await pool.complete_many({a: "again"}, worker_id="w1")
    await pool.complete_many({})
    assert [(item.status, item.result) for item in await pool.items()] == [
        ("done", "of a"), ("done", "of b"), ("claimed", None),
    ]  # fmt: skip


@LONE
async def who_may_not_complete_many_is_told_which(place: WorkPlace) -> None:
    pool = place.pool()
    a, b = await pool.push_many(["a", "b"])
    await _claimed(pool, "w1")
    await _claimed(pool, "w2")
    refusal = ""
    try:
        await pool.complete_many({a: None, b: None}, worker_id="w1")
    except WorkNotHeld as error:
        refusal = error.item_id
    assert refusal == b, "the refusal does not name the job that another worker holds"
    assert len(await pool.items(status="claimed")) == 2
    await pool.complete_many({a: None}, worker_id="w1")
    assert [item.id for item in await pool.items()] == [b]


@LONE
async def ids_do_not_come_back(place: WorkPlace) -> None:
    pool = place.pool()
    seen = set()
    for _ in range(30):
        await pool.push(1)
        held = await _claimed(pool)
        assert held not in seen
        seen.add(held)
        await pool.complete(held)
    for _ in range(3):  # those of a batch must not come back either, when its last one is gone
        ids = await pool.push_many(list(range(1000)))
        assert not seen & set(ids)
        seen |= set(ids)
        await pool.complete(ids[-1])
        again = await pool.push(1)
        assert again not in seen
        seen.add(again)
        await pool.complete(again)


# -- pools: failures ---------------------------------------------------------------------------------


@LONE
async def a_failed_job_returns_to_its_place(place: WorkPlace) -> None:
    pool = place.pool()
    first, second = await pool.push_many(["first", "second"])
    held = await _claimed(pool)
    assert held == first
    assert await pool.fail(held, "it broke", worker_id="w1") == "pending"
    item = await pool.get(first)
    assert item is not None
    assert (item.status, item.claimed_by, item.attempts, item.error) == ("pending", None, 1, "it broke")
    assert [await _claimed(pool), await _claimed(pool)] == [first, second]


@LONE
async def a_job_that_fails_too_often_is_poisoned_and_kept(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push("bad", {"max_retries": 2})
    assert await pool.fail(await _claimed(pool), "once") == "pending"
    held = await _claimed(pool)
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
        assert await pool.fail(await _claimed(pool)) == "poisoned"


@LONE
async def a_poisoned_job_can_be_tried_again_or_discarded(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push_many(["a", "b"], max_retries=1)
    for _ in range(2):
        await pool.fail(await _claimed(pool), "no")
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


# -- pools: who holds a job -----------------------------------------------------------------------------


@LONE
async def only_the_holder_ends_a_job_when_it_gives_its_name(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await _claimed(pool)
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
    await pool.complete(await _claimed(pool))
    assert await pool.size() == 0


@LONE
async def a_worker_that_was_reaped_cannot_end_what_its_successor_does(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await _claimed(pool, "dead")
    assert await pool.release_by_worker("dead") == 1
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="dead")
    assert await _claimed(pool, "heir") == held
    async with refused(WorkNotHeld):
        await pool.complete(held, worker_id="dead")
    await pool.complete(held, worker_id="heir")


@LONE
async def releasing_keeps_attempts_and_order_and_never_poisons(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many([1, 2, 3], max_retries=1)
    for worker in ("dead", "other", "dead"):
        await _claimed(pool, worker)
    assert await pool.release_by_worker("dead") == 2
    assert await pool.release_by_worker("dead") == 0
    item = await pool.claim("heir")
    assert item is not None
    assert (item.id, item.attempts, item.status) == (ids[0], 2, "claimed")
    assert await _claimed(pool) == ids[2]


@LONE
async def a_claim_can_be_repeated_with_its_key(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many([1, 2, 3])
    first = await pool.claim("w1", key="run/7")
    assert first is not None
    again = await pool.claim("w1", key="run/7")
    assert again == first
    assert again.attempts == 1
    assert await _claimed(pool, "w1", key="run/8") == ids[1]
    assert await _claimed(pool, "w2", key="run/7") == ids[2]
    await pool.complete(first.id, worker_id="w1")
    assert await pool.claim("w1", key="run/7") is None


@LONE
async def a_released_job_is_no_more_under_its_key(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await _claimed(pool, "w1", key="k")
    await pool.release_by_worker("w1")
    assert await _claimed(pool, "w2") == held
    assert await pool.claim("w1", key="k") is None


# -- pools: leases -----------------------------------------------------------------------------------------


@LONE
async def a_claim_ends_with_its_lease(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push_many(["leased", "next"])
    held = await _claimed(pool, "w1", lease=30)
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
    held = await _claimed(pool, "w1", lease=30)
    for _ in range(5):
        place.now += 20
        assert await pool.renew(held, "w1", lease=30)
        assert await pool.claim("w2") is None
    place.now += 31
    assert not await pool.renew(held, "w1", lease=30)
    assert await _claimed(pool, "w2") == held


@LONE
async def a_claim_without_a_lease_lasts(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push(1)
    held = await _claimed(pool)
    place.now += 1e8
    assert await pool.claim("w2") is None
    await pool.complete(held, worker_id="w1")


@LONE
async def a_job_that_kills_its_workers_is_poisoned(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push("deadly", max_retries=2)
    for _ in range(2):
        held = await _claimed(pool, "victim", lease=10)
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
    await _claimed(a, "w1", lease=10)
    await _claimed(b, "w1", lease=100)
    place.now += 50
    assert await _drained(b) == []
    assert await _drained(a) == ["a"]


# -- pools: names and many at once -----------------------------------------------------------------------------


@LONE
async def hostile_names_are_names(place: WorkPlace) -> None:
    work = place.work()
    for name in HOSTILE:
        await work.pool(name).push({"name": name})
    assert sorted(await work.pools()) == sorted(HOSTILE)
    for name in HOSTILE:
        pool, worker = work.pool(name), name or "empty"
        item = await pool.claim(worker, key=name)
        assert item is not None
        assert (item.data, item.claimed_by) == ({"name": name}, worker)
        assert await pool.claim(worker, key=name) == item
        await pool.fail(item.id, f"{name} \ud800", worker_id=worker)
        assert await pool.size() == 1
    assert await work.pool(HOSTILE[0]).release_by_worker("%") == 0


@LONE
async def half_characters_are_refused(place: WorkPlace) -> None:
    work = place.work()
    async with refused(NotStorable):
        work.pool("half \ud800")
    pool = work.pool("jobs")
    await pool.push(1)
    async with refused(NotStorable):
        await pool.claim("half \ud800")
    async with refused(NotStorable):
        await pool.claim("w1", key="half \ud800")
    assert await pool.size() == 1


@LONE
async def many_tasks_share_a_pool_without_losing_or_doubling(place: WorkPlace) -> None:
    pool = place.pool()
    done: list[int] = []

    async def produce(base: int) -> None:
        for i in range(25):
            await pool.push(base + i)
            await anyio.lowlevel.checkpoint()

    async def consume(name: str) -> None:
        idle = 0
        while idle < 200:
            item = await pool.claim(name)
            await anyio.lowlevel.checkpoint()
            if item is None:
                idle += 1
                continue
            done.append(item.data)
            await pool.complete(item.id, worker_id=name)

    async with anyio.create_task_group() as group:
        for n in range(4):
            group.start_soon(produce, n * 100)
            group.start_soon(consume, f"w{n}")
    assert sorted(done) == [n * 100 + i for n in range(4) for i in range(25)]
    assert await pool.size() == 0


@SHARED
async def another_object_sees_the_same_pool(place: WorkPlace) -> None:
    mine, theirs = place.pool(), place.pool()
    job = await mine.push({"x": 1})
    assert await theirs.size() == 1
    assert await _claimed(theirs, "w2") == job
    assert await mine.claim("w1") is None
    async with refused(WorkNotHeld):
        await mine.complete(job, worker_id="w1")
    await mine.push("later")
    await theirs.complete(job, worker_id="w2")
    assert await _drained(mine) == ["later"]


@SHARED
async def jobs_outlive_the_object_that_pushed_them(place: WorkPlace) -> None:
    work = place.work(keep_done=True)
    await work.pool("jobs").push_many(["a", "b", "c"], max_retries=1)
    done = await _claimed(work.pool("jobs"))
    await work.pool("jobs").complete(done, "result")
    bad = await _claimed(work.pool("jobs"))
    await work.pool("jobs").fail(bad, "why")
    pool = place.pool()
    kept = {item.id: (item.status, item.result, item.error) for item in await pool.items()}
    assert kept[done] == ("done", "result", None)
    assert kept[bad] == ("poisoned", None, "why")
    assert await _drained(pool) == ["c"]


@SHARED
async def pushes_of_several_objects_stand_in_one_order(place: WorkPlace) -> None:
    pools = [place.pool() for _ in range(3)]
    for i in range(30):
        await pools[i % 3].push(i)
    assert await _drained(pools[0]) == list(range(30))
