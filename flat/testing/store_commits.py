"""Checks of the writing half of a store: commits and what they bring, cancellation, deletion."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import anyio

from flat.backends.protocols import Head
from flat.errors import BackendError, StaleSnapshot
from flat.testing.store_case import (
    BOB,
    TTL,
    Checks,
    Place,
    begin,
    birth,
    execution,
    newest,
    refused,
    signal,
    signal_ids,
    step,
    waiting,
)

LONE = Checks()
SHARED = Checks()


@LONE
async def commits_append_bodies_in_order(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for seq in range(1, 6):
        await store.commit(step(lease, seq))
    assert [body for _, _, body in await store.bodies("e1")] == [f"body {n}".encode() for n in range(6)]


@LONE
async def a_plain_commit_changes_number_and_time_and_no_other_column(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    before = await execution(store)
    await store.commit(step(lease, 1))
    assert await execution(store) == replace(before, seq=1, updated_at=1001.0)


@LONE
async def a_taken_number_is_refused(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1))
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 1, b"other"))
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 0, b"other"))
    assert await store.bodies("e1") == [(0, True, b"body 0"), (1, False, b"body 1")]


@LONE
async def a_gap_is_refused(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 2))
    await store.commit(step(lease, 1))
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 3))
    assert await newest(store) == 1


@LONE
async def a_refused_commit_may_be_followed_by_the_right_one(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 5, head=waiting("c1")))
    await store.commit(step(lease, 1, head=waiting("c2")))
    assert (await execution(store)).channels == ("c2",)


@LONE
async def a_commit_can_give_the_lease_back(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, head=waiting("c1"), release=True))
    found = await execution(store)
    assert (found.owner, found.status, found.seq) == (None, "waiting", 1)
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 2))
    await store.commit(step(await store.acquire("e1", BOB, now=1000, ttl=TTL), 2))


@LONE
async def a_head_changes_status_timer_and_channels(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, head=waiting("a", "b", wake_at=7.25)))
    found = await execution(store)
    assert (found.status, found.wake_at, found.channels) == ("waiting", 7.25, ("a", "b"))
    await store.commit(step(lease, 2, head=Head(status="running")))
    found = await execution(store)
    assert (found.status, found.wake_at, found.channels) == ("running", None, ())


@LONE
async def a_commit_stores_everything_it_brings(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("in"))
    await store.commit(
        step(
            lease, 1, base=True, head=waiting("x"), log=(b"one", b"two"), blobs={"d1": b"blob"},
            consume=("in",), send=(signal("out", "c2"),), births=(birth("child", parent="e1"),),
        )
    )  # fmt: skip
    stored = await store.load("e1")
    assert stored is not None
    assert stored.bodies == [(1, b"body 1")]
    assert stored.log == [b"one", b"two"]
    assert await store.get_blob("d1") == b"blob"
    assert await signal_ids(store) == ["out"]
    assert (await execution(store, "child")).parent == "e1"


@LONE
async def a_refused_commit_stores_nothing(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("in"))
    async with refused(StaleSnapshot):
        await store.commit(
            step(
                lease, 7, head=waiting("x"), log=(b"one",), consume=("in",),
                send=(signal("out"),), births=(birth("child"),),
            )
        )  # fmt: skip
    stored = await store.load("e1")
    assert stored is not None
    assert (stored.execution.status, stored.execution.channels) == ("running", ())
    assert (stored.bodies, list(stored.log)) == ([(0, b"body 0")], [])
    assert await signal_ids(store) == ["in"]
    assert await store.get("child") is None


@LONE
async def consuming_a_signal_that_is_gone_fails_the_whole_commit(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("here"))
    async with refused(StaleSnapshot):
        await store.commit(
            step(
                lease, 1, head=waiting("x"), log=(b"line",), consume=("here", "gone"),
                send=(signal("out"),), births=(birth("child"),),
            )
        )  # fmt: skip
    assert await signal_ids(store) == ["here"]
    assert await store.get("child") is None
    assert await newest(store) == 0
    assert (await execution(store)).status == "running"
    await store.commit(step(lease, 1, consume=("here",)))


@LONE
async def a_signal_is_consumed_by_one_of_two(place: Place) -> None:
    store = place.open()
    first, second = await begin(store, "e1"), await begin(store, "e2")
    await store.send(signal("s"))
    await store.commit(step(first, 1, consume=("s",)))
    async with refused(StaleSnapshot):
        await store.commit(step(second, 1, consume=("s",)))
    assert await newest(store, "e2") == 0


@LONE
async def a_signal_consumed_twice_in_one_commit_fails_it(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("s"))
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 1, consume=("s", "s")))
    assert await signal_ids(store) == ["s"]


@LONE
async def a_commit_does_not_bear_again_what_lives_already(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.create(birth("child", b"first"))
    await store.commit(step(lease, 1, births=(birth("child", b"second"), birth("other"))))
    assert await store.bodies("child") == [(0, True, b"first")]
    assert await store.get("other") is not None


@LONE
async def a_commit_does_not_send_again_what_was_sent(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("s", body=b"first"))
    await store.commit(step(lease, 1, send=(signal("s", body=b"second"), signal("t"))))
    assert {one.signal_id: one.body for one in await store.signals()} == {"s": b"first", "t": b"payload"}


@LONE
async def one_commit_may_name_the_same_new_thing_twice(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    twice = (birth("child", b"first"), birth("child", b"second"))
    await store.commit(step(lease, 1, births=twice, send=(signal("s", body=b"1"), signal("s", body=b"2"))))
    assert await store.bodies("child") == [(0, True, b"first")]
    assert [one.body for one in await store.signals()] == [b"1"]


@LONE
async def a_request_to_cancel_reaches_the_owner(place: Place) -> None:
    store = place.open()
    await begin(store, "e1")
    await begin(store, "e2", BOB)
    assert await store.request_cancel("e1")
    assert await store.request_cancel("e1")
    assert list(await store.cancel_requested("alice")) == ["e1"]
    assert list(await store.cancel_requested("bob")) == []


@LONE
async def a_request_to_cancel_waits_for_the_next_owner(place: Place) -> None:
    store = place.open()
    await store.create(birth())
    assert await store.request_cancel("e1")
    assert list(await store.cancel_requested("bob")) == []
    await store.acquire("e1", BOB, now=0, ttl=TTL)
    assert list(await store.cancel_requested("bob")) == ["e1"]


@LONE
async def a_request_to_cancel_is_answered_by_becoming_cancelled(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.request_cancel("e1")
    await store.commit(step(lease, 1, head=Head(status="running")))
    assert list(await store.cancel_requested("alice")) == ["e1"]
    await store.commit(step(lease, 2, head=Head(status="cancelled")))
    assert list(await store.cancel_requested("alice")) == []


@LONE
async def what_does_not_exist_cannot_be_cancelled(place: Place) -> None:
    assert not await place.open().request_cancel("nobody")


@LONE
async def a_deleted_execution_is_gone(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, log=(b"line",), head=waiting("c1", wake_at=1.0)))
    assert await store.delete("e1")
    assert not await store.delete("e1")
    assert await store.get("e1") is None
    assert await store.load("e1") is None
    assert list(await store.bodies("e1")) == []
    assert [one async for one in store.find()] == []
    assert [one async for one in store.find(channel="c1")] == []
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 2))


@LONE
async def a_closed_store_may_be_closed_again_and_fails_only_as_a_store_fails(place: Place) -> None:
    store = place.open()
    await begin(store)
    await store.close()
    await store.close()
    with contextlib.suppress(BackendError):
        await store.create(birth("e2"))


@LONE
async def many_executions_commit_at_once(place: Place) -> None:
    store = place.open()
    names = [f"e{number}" for number in range(24)]

    async def drive(name: str) -> None:
        lease = await begin(store, name)
        for seq in range(1, 9):
            await store.commit(step(lease, seq, f"{name}/{seq}".encode(), log=(b"line",) if seq == 4 else ()))
        await store.release(lease)

    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(drive, name)
    for name in names:
        assert [body for _, _, body in await store.bodies(name)][1:] == [
            f"{name}/{seq}".encode() for seq in range(1, 9)
        ]


@LONE
async def one_number_is_won_by_one_of_many(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await begin(store, "bystander")
    won: list[int] = []

    async def try_it(number: int) -> None:
        try:
            await store.commit(step(lease, 1, str(number).encode()))
        except StaleSnapshot:
            return
        won.append(number)

    async with anyio.create_task_group() as group:
        for number in range(12):
            group.start_soon(try_it, number)
    assert len(won) == 1
    assert await store.bodies("e1") == [(0, True, b"body 0"), (1, False, str(won[0]).encode())]


@SHARED
async def an_execution_outlives_its_store_object(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, log=(b"line",), head=waiting("c1", wake_at=9.0), blobs={"d": b"blob"}))
    before, stored = await execution(store), await store.load("e1")
    await store.send(signal("s"))
    await store.put_config("p", b"text")
    await store.request_cancel("e1")
    store = await place.reopen(store)
    assert await execution(store) == before
    assert await store.load("e1") == stored
    assert await signal_ids(store) == ["s"]
    assert await store.get_config("p") == b"text"
    assert await store.get_blob("d") == b"blob"
    assert list(await store.cancel_requested("alice")) == ["e1"]


@SHARED
async def two_store_objects_see_each_others_writes(place: Place) -> None:
    one, other = place.open(), place.open()
    lease = await begin(one)
    for seq in range(1, 7):
        await (one if seq % 2 else other).commit(step(lease, seq))
    assert await newest(one) == await newest(other) == 6
    assert await one.bodies("e1") == await other.bodies("e1")


@SHARED
async def a_signal_is_consumed_by_one_of_two_store_objects(place: Place) -> None:
    one, other = place.open(), place.open()
    first, second = await begin(one, "e1"), await begin(other, "e2")
    await one.send(signal("s"))
    await other.commit(step(second, 1, consume=("s",)))
    async with refused(StaleSnapshot):
        await one.commit(step(first, 1, consume=("s",)))
