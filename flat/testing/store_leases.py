"""Checks of births and leases: who may drive an execution, since when, and until when."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import anyio

from flat.backends.liveness import this_process
from flat.backends.protocols import Lease, Owner
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, StaleSnapshot
from flat.testing.store_case import (
    ALICE,
    BOB,
    TTL,
    Checks,
    Place,
    begin,
    birth,
    execution,
    ids,
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
async def a_new_execution_is_stored_with_its_columns_and_first_body(place: Place) -> None:
    store = place.open()
    new = birth(
        "e1",
        name="n",
        kind="tree",
        program="p",
        status="waiting",
        parent="e0",
        wake_at=5.5,
        channels=("a", "b"),
    )
    assert await store.create(new)
    assert await execution(store) == replace(new.execution, token=(await execution(store)).token)
    assert await store.bodies("e1") == [(0, True, b"body 0")]


@LONE
async def an_id_is_born_once(place: Place) -> None:
    store = place.open()
    assert await store.create(birth(body=b"first"))
    assert not await store.create(birth(body=b"second", status="done"))
    assert await store.bodies("e1") == [(0, True, b"first")]
    assert (await execution(store)).status == "running"


@LONE
async def a_newborn_has_no_owner_whatever_its_columns_say(place: Place) -> None:
    store = place.open()
    await store.create(birth(owner="somebody", token=77))
    assert (await execution(store)).owner is None
    await store.acquire("e1", ALICE, now=0, ttl=TTL)


@LONE
async def a_begun_execution_is_stored_and_owned_at_once(place: Place) -> None:
    store = place.open()
    new = birth(name="n", kind="tree", program="p", parent="e0", wake_at=5.5, channels=("a", "b"))
    lease = await store.begin(new, ALICE, now=1000.0, ttl=TTL)
    assert lease is not None
    assert (lease.execution_id, lease.owner) == ("e1", "alice")
    assert await execution(store) == replace(new.execution, owner="alice", token=lease.token)
    assert await store.bodies("e1") == [(0, True, b"body 0")]
    assert await ids(store.find(channel="a")) == ["e1"]
    await store.commit(step(lease, 1, log=(b"line",)))
    await store.commit(step(lease, 2, head=waiting("c")))
    assert await ids(store.find(channel="a")) == []
    assert await newest(store) == 2


@LONE
async def a_begun_execution_is_busy_for_others_while_its_owner_lives(place: Place) -> None:
    store = place.open()
    assert await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
    async with refused(ExecutionBusy):
        await store.acquire("e1", BOB, now=1000 + TTL - 1, ttl=TTL)
    await store.heartbeat(ALICE, now=1000 + TTL, ttl=TTL)
    async with refused(ExecutionBusy):
        await store.acquire("e1", BOB, now=1000 + TTL + 1, ttl=TTL)
    assert (await store.acquire("e1", BOB, now=1001 + 2 * TTL, ttl=TTL)).owner == "bob"


@LONE
async def beginning_what_exists_changes_nothing(place: Place) -> None:
    store = place.open()
    first = await store.begin(birth(body=b"first"), ALICE, now=1000.0, ttl=TTL)
    assert first is not None
    before = await execution(store)
    for owner in (ALICE, BOB):
        assert await store.begin(birth(body=b"second", status="done"), owner, now=1001.0, ttl=TTL) is None
    assert not await store.create(birth(body=b"third"))
    assert await execution(store) == before
    assert await store.bodies("e1") == [(0, True, b"first")]
    await store.commit(step(first, 1))
    await store.create(birth("free"))
    assert await store.begin(birth("free"), ALICE, now=1001.0, ttl=TTL) is None
    assert (await execution(store, "free")).owner is None


@LONE
async def the_lease_of_a_begun_execution_is_fenced_like_any_other(place: Place) -> None:
    store = place.open()
    old = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
    assert old is not None
    async with refused(StaleSnapshot):
        await store.commit(step(old, 2))
    for token in (old.token - 1, old.token + 1):
        async with refused(StaleSnapshot):
            await store.commit(step(replace(old, token=token), 1))
    new = await store.acquire("e1", BOB, now=2000, ttl=TTL)
    assert new.token > old.token
    async with refused(StaleSnapshot):
        await store.commit(step(old, 1))
    await store.commit(step(new, 1, release=True))
    async with refused(StaleSnapshot):
        await store.commit(step(new, 2))


@LONE
async def a_namesake_begun_after_a_deletion_does_not_fit_the_old_lease(place: Place) -> None:
    store = place.open()
    old = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
    assert old is not None
    await store.commit(step(old, 1))
    assert await store.delete("e1")
    new = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
    assert new is not None
    assert new.token > old.token
    for seq in (1, 2):
        async with refused(StaleSnapshot):
            await store.commit(step(old, seq))
    await store.commit(step(new, 1))


@LONE
async def many_begin_at_once_and_each_id_once(place: Place) -> None:
    store = place.open()
    leases: list[Lease] = []

    async def drive(number: int, owner: Owner) -> None:
        lease = await store.begin(birth(f"e{number}"), owner, now=1000.0 + number, ttl=TTL)
        if lease is not None:
            leases.append(lease)
            for seq in range(1, 4):
                await store.commit(step(lease, seq))

    async with anyio.create_task_group() as group:
        for number in range(24):
            group.start_soon(drive, number, ALICE)
            group.start_soon(drive, number, BOB)
    assert sorted(lease.execution_id for lease in leases) == sorted(f"e{number}" for number in range(24))
    for lease in leases:
        found = await execution(store, lease.execution_id)
        assert (found.owner, found.token, found.seq) == (lease.owner, lease.token, 3)


@LONE
async def a_begun_execution_with_half_a_character_is_refused_alone(place: Place) -> None:
    store = place.open()
    begun: list[str] = []

    async def drive(execution_id: str, owner: Owner) -> None:
        with contextlib.suppress(BackendError):
            if await store.begin(birth(execution_id), owner, now=1000.0, ttl=TTL):
                begun.append(execution_id)

    async with anyio.create_task_group() as group:
        group.start_soon(drive, "good", ALICE)
        group.start_soon(drive, "half \ud83d", ALICE)
        group.start_soon(drive, "nobody's", replace(BOB, owner="half \ud83d"))
    assert begun == ["good"]
    assert await ids(store.find()) == ["good"]


@LONE
async def every_acquisition_has_a_higher_token(place: Place) -> None:
    store = place.open()
    await store.create(birth())
    tokens = [(await store.acquire("e1", ALICE, now=n, ttl=TTL)).token for n in range(4)]
    assert tokens == sorted(set(tokens))
    assert (await execution(store)).token == tokens[-1]
    assert (await execution(store)).owner == "alice"


@LONE
async def an_older_lease_of_the_same_owner_is_refused(place: Place) -> None:
    store = place.open()
    old = await begin(store)
    new = await store.acquire("e1", ALICE, now=1001, ttl=TTL)
    async with refused(StaleSnapshot):
        await store.commit(step(old, 1))
    await store.commit(step(new, 1))


@LONE
async def an_invented_lease_is_refused(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for token in (lease.token + 1, lease.token - 1):
        async with refused(StaleSnapshot):
            await store.commit(step(replace(lease, token=token), 1))
    async with refused(StaleSnapshot):
        await store.commit(step(Lease(execution_id="nobody", owner="alice", token=1), 1))
    assert await newest(store) == 0


@LONE
async def an_execution_that_is_driven_cannot_be_acquired(place: Place) -> None:
    store = place.open()
    await begin(store, now=1000)
    async with refused(ExecutionBusy):
        await store.acquire("e1", BOB, now=1000 + TTL - 1, ttl=TTL)
    assert (await execution(store)).owner == "alice"


@LONE
async def an_owner_that_is_silent_for_longer_than_its_ttl_loses_the_execution(place: Place) -> None:
    store = place.open()
    zombie = await begin(store, now=1000)
    lease = await store.acquire("e1", BOB, now=1000 + TTL + 1, ttl=TTL)
    async with refused(StaleSnapshot):
        await store.commit(step(zombie, 1, b"from the dead"))
    await store.commit(step(lease, 1))
    assert await store.bodies("e1") == [(0, True, b"body 0"), (1, False, b"body 1")]


@LONE
async def the_ttl_that_counts_is_the_owners_own(place: Place) -> None:
    store = place.open()
    await store.create(birth())
    await store.acquire("e1", ALICE, now=1000, ttl=500)
    async with refused(ExecutionBusy):
        await store.acquire("e1", BOB, now=1400, ttl=1)


@LONE
async def a_heartbeat_keeps_all_leases_of_its_owner(place: Place) -> None:
    store = place.open()
    for name in ("e1", "e2", "e3"):
        await begin(store, name, now=1000)
    await store.heartbeat(ALICE, now=1000 + TTL, ttl=TTL)
    for name in ("e1", "e2", "e3"):
        async with refused(ExecutionBusy):
            await store.acquire(name, BOB, now=1000 + TTL + 10, ttl=TTL)
    await store.acquire("e1", BOB, now=1001 + 2 * TTL, ttl=TTL)


@LONE
async def a_living_process_of_this_host_keeps_its_lease(place: Place) -> None:
    store = place.open()
    await begin(store, owner=this_process("us"), now=1000)
    async with refused(ExecutionBusy):
        await store.acquire("e1", BOB, now=1001, ttl=TTL)


@LONE
async def a_dead_process_of_this_host_loses_its_lease_at_once(place: Place) -> None:
    store = place.open()
    us = this_process("dead")
    reused = replace(us, started="1", boot=us.boot) if us.started else replace(us, pid=2**22 + 12345)
    await begin(store, owner=reused, now=1000)
    await store.acquire("e1", BOB, now=1000, ttl=TTL)


@LONE
async def nobody_can_acquire_what_does_not_exist(place: Place) -> None:
    async with refused(ExecutionNotFound):
        await place.open().acquire("nobody", ALICE, now=0, ttl=TTL)


@LONE
async def a_released_execution_is_free(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.release(lease)
    assert (await execution(store)).owner is None
    taken = await store.acquire("e1", BOB, now=1000, ttl=TTL)
    assert taken.token > lease.token


@LONE
async def a_lease_that_was_given_back_no_longer_commits(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.release(lease)
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 1))
    assert await newest(store) == 0


@LONE
async def releasing_a_lost_lease_does_not_disturb_the_new_owner(place: Place) -> None:
    store = place.open()
    old = await begin(store)
    new = await store.acquire("e1", BOB, now=2000, ttl=TTL)
    await store.release(old)
    await store.release(replace(new, execution_id="nobody"))
    assert (await execution(store)).owner == "bob"
    await store.commit(step(new, 1))


@LONE
async def a_lease_on_a_deleted_execution_does_not_fit_its_namesake(place: Place) -> None:
    store = place.open()
    old = await begin(store)
    await store.delete("e1")
    await store.create(birth())
    async with refused(StaleSnapshot):
        await store.commit(step(old, 1))
    new = await store.acquire("e1", BOB, now=0, ttl=TTL)
    assert new.token > old.token
    async with refused(StaleSnapshot):
        await store.commit(step(old, 1))
    await store.commit(step(new, 1))
    stored = await store.load("e1")
    assert stored is not None
    assert (stored.bodies, list(stored.log)) == ([(0, b"body 0"), (1, b"body 1")], [])


@LONE
async def an_execution_is_abandoned_when_its_owner_is_heard_of_no_more(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    assert not await store.abandoned("e1", now=1000.0 + TTL)
    assert await store.abandoned("e1", now=1001.0 + TTL)
    await store.heartbeat(ALICE, now=1020.0, ttl=TTL)
    assert not await store.abandoned("e1", now=1020.0 + TTL)
    await store.release(lease)
    assert not await store.abandoned("e1", now=9999.0)
    assert not await store.abandoned("nobody", now=9999.0)


@SHARED
async def a_lease_outlives_its_store_object(place: Place) -> None:
    store = place.open()
    lease = await begin(store, now=1000)
    await store.commit(step(lease, 1))
    store = await place.reopen(store)
    async with refused(ExecutionBusy):
        await store.acquire("e1", BOB, now=1001, ttl=TTL)
    async with refused(StaleSnapshot):
        await store.commit(step(lease, 3))
    await store.commit(step(lease, 2))
    assert await newest(store) == 2


@SHARED
async def an_execution_begun_in_one_store_object_exists_in_the_other(place: Place) -> None:
    one, other = place.open(), place.open()
    lease = await one.begin(birth(body=b"first"), ALICE, now=1000.0, ttl=TTL)
    assert lease is not None
    assert await other.begin(birth(body=b"second"), BOB, now=1000.0, ttl=TTL) is None
    async with refused(ExecutionBusy):
        await other.acquire("e1", BOB, now=1001.0, ttl=TTL)
    await other.commit(step(lease, 1))
    one = await place.reopen(one)
    await one.commit(step(lease, 2))
    assert [body for _, _, body in await other.bodies("e1")] == [b"first", b"body 1", b"body 2"]
    taken = await other.acquire("e1", BOB, now=1001.0 + TTL, ttl=TTL)
    async with refused(StaleSnapshot):
        await one.commit(step(lease, 3))
    await other.commit(step(taken, 3))


@SHARED
async def two_store_objects_do_not_both_own(place: Place) -> None:
    one, other = place.open(), place.open()
    await begin(one, now=1000)
    async with refused(ExecutionBusy):
        await other.acquire("e1", BOB, now=1001, ttl=TTL)
    await one.heartbeat(ALICE, now=1000 + TTL, ttl=TTL)
    async with refused(ExecutionBusy):
        await other.acquire("e1", BOB, now=1001 + TTL, ttl=TTL)


@SHARED
async def a_zombie_in_another_store_object_is_refused(place: Place) -> None:
    one, other = place.open(), place.open()
    zombie = await begin(one, now=1000)
    await one.commit(step(zombie, 1))
    lease = await other.acquire("e1", BOB, now=1001 + TTL, ttl=TTL)
    for rest in ({}, {"head": waiting("c1")}, {"log": (b"line",)}, {"send": (signal(),)}):
        async with refused(StaleSnapshot):
            await one.commit(step(zombie, 2, b"from the dead", **rest))
    await other.commit(step(lease, 2))
    async with refused(StaleSnapshot):
        await one.commit(step(zombie, 3))
    assert await newest(one) == 2
    assert await signal_ids(one) == []


@SHARED
async def a_namesake_born_elsewhere_is_not_taken_for_the_deleted_one(place: Place) -> None:
    one, other = place.open(), place.open()
    old = await begin(one)
    await one.commit(step(old, 1))
    await other.delete("e1")
    new = await begin(other, owner=BOB)
    await other.commit(step(new, 1))
    async with refused(StaleSnapshot):
        await one.commit(step(old, 2))
    assert await newest(one) == 1
