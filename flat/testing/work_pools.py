"""Checks of work pools: in and out, names, and many at once. What becomes of claims is in `work_claims`."""

from __future__ import annotations

import math

import anyio

from flat.errors import BackendError, NotStorable, WorkItemNotFound, WorkNotHeld
from flat.testing.store_case import refused
from flat.testing.store_values import HOSTILE
from flat.testing.work_case import START, WorkChecks, WorkPlace, claimed, drained

LONE = WorkChecks()
SHARED = WorkChecks()


# -- in and out ---------------------------------------------------------------------------


@LONE
async def jobs_are_claimed_in_the_order_of_their_pushes(place: WorkPlace) -> None:
    pool = place.pool()
    for i in range(20):
        await pool.push({"i": i})
        place.now -= 0.5  # a clock may go back; the order is that of the pushes
    assert [data["i"] for data in await drained(pool)] == list(range(20))


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
    assert await drained(b) == ["of b"]
    assert await drained(a) == ["of a"]


@LONE
async def many_jobs_are_pushed_in_order_or_not_at_all(place: WorkPlace) -> None:
    pool = place.pool()
    ids = await pool.push_many(list(range(50)), max_retries=1)
    assert len(set(ids)) == 50
    async with refused(NotStorable):
        await pool.push_many([1, 2, object()])
    assert list(await pool.push_many([])) == []
    assert await drained(pool) == list(range(50))


@LONE
async def only_pending_jobs_count(place: WorkPlace) -> None:
    pool = place.pool()
    await pool.push_many([1, 2, 3])
    held = await claimed(pool)
    assert await pool.size() == 2
    await pool.fail(held)
    assert await pool.size() == 3
    await pool.complete(await claimed(pool))
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
    held = await claimed(pool)
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
    held = await claimed(pool)
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
    await claimed(pool, "w2")
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
    await claimed(pool, "w1")
    await claimed(pool, "w2")
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
        held = await claimed(pool)
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


# -- names and many at once -----------------------------------------------------------------------------


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
    assert await claimed(theirs, "w2") == job
    assert await mine.claim("w1") is None
    async with refused(WorkNotHeld):
        await mine.complete(job, worker_id="w1")
    await mine.push("later")
    await theirs.complete(job, worker_id="w2")
    assert await drained(mine) == ["later"]


@SHARED
async def jobs_outlive_the_object_that_pushed_them(place: WorkPlace) -> None:
    work = place.work(keep_done=True)
    await work.pool("jobs").push_many(["a", "b", "c"], max_retries=1)
    done = await claimed(work.pool("jobs"))
    await work.pool("jobs").complete(done, "result")
    bad = await claimed(work.pool("jobs"))
    await work.pool("jobs").fail(bad, "why")
    pool = place.pool()
    kept = {item.id: (item.status, item.result, item.error) for item in await pool.items()}
    assert kept[done] == ("done", "result", None)
    assert kept[bad] == ("poisoned", None, "why")
    assert await drained(pool) == ["c"]


@SHARED
async def pushes_of_several_objects_stand_in_one_order(place: WorkPlace) -> None:
    pools = [place.pool() for _ in range(3)]
    for i in range(30):
        await pools[i % 3].push(i)
    assert await drained(pools[0]) == list(range(30))
