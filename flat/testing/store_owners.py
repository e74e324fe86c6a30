"""Who may write when things go wrong, as checks for every store, whether it is in a server or not.

Clocks that do not agree, owners that were thought dead and come back (*zombies*), leases that are lost while commits
are on their way, and places that are left and entered again. `store_faults` adds what can happen to a connection.

    class MyPlace:
        def direct(self): return MyStore(self.path)     # another store object on the same data
        def restart(self): …                            # end whatever serves it, and begin again; or nothing
        def close(self): …

    @pytest.mark.parametrize("check", OWNER_CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check: OwnerCheck) -> None:
        await check(MyPlace)                            # each `MyPlace()` is new and empty
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel

from flat.backends.protocols import CheckpointStore, Head, Lease, Owner
from flat.errors import ExecutionBusy, StaleSnapshot
from flat.testing.store_case import ALICE, BOB, TTL, birth, execution, refused, signal, step, waiting

__all__ = ["OWNER_CHECKS", "OwnerCheck", "StorePlace"]


class StorePlace(Protocol):
    """An empty place for data, which several store objects can be opened on."""

    def direct(self) -> CheckpointStore: ...

    def restart(self) -> None:
        """End what serves the data without warning, and start it again; nothing, where nothing serves them."""
        ...

    def close(self) -> None: ...


MakePlace = Callable[[], StorePlace]
OwnerCheck = Callable[[MakePlace], Awaitable[None]]
OWNER_CHECKS: list[OwnerCheck] = []
P = TypeVar("P", bound=StorePlace)


def _check(check: OwnerCheck) -> OwnerCheck:
    OWNER_CHECKS.append(check)
    return check


@asynccontextmanager
async def entered(make: Callable[[], P]) -> AsyncIterator[P]:
    """A new place, closed at the end."""
    place = make()
    try:
        yield place
    finally:
        place.close()


@asynccontextmanager
async def opened(store: CheckpointStore) -> AsyncIterator[CheckpointStore]:
    """A store, closed at the end, whatever ends it."""
    try:
        yield store
    finally:
        with anyio.CancelScope(shield=True):
            await store.close()


# -- clocks ------------------------------------------------------------------------------------------


@_check
async def clocks_that_disagree_never_give_an_execution_two_owners_that_commit(make: MakePlace) -> None:
    async with entered(make) as place, opened(place.direct()) as one, opened(place.direct()) as two:
        for number, skew in enumerate((-1e6, -TTL, -1.0, 0.0, 1.0, TTL + 1, 1e6, 1e9)):
            name = f"e{number}"
            await one.create(birth(name))
            mine = await one.acquire(name, ALICE, now=1000.0, ttl=TTL)
            await one.commit(step(mine, 1))
            try:
                theirs = await two.acquire(name, BOB, now=1000.0 + skew, ttl=TTL)
            except ExecutionBusy:
                assert skew <= TTL, "an owner that is silent for longer than its ttl was kept"
                await one.commit(step(mine, 2))
                continue
            assert skew > TTL, "a clock that is slow or a little fast took a lease away"
            async with refused(StaleSnapshot):
                await one.commit(step(mine, 2, b"from the past"))
            await one.heartbeat(ALICE, now=1001.0, ttl=TTL)
            await two.commit(step(theirs, 2))
            assert len(await one.bodies(name)) == 3


@_check
async def times_far_away_are_times_like_any_other(make: MakePlace) -> None:
    async with entered(make) as place, opened(place.direct()) as store:
        # Negative times: a clock that was never set, in a zone west of Greenwich.
        for number, now in enumerate((-3600.0, 0.0, 0.1 + 0.2, 1e9 + 1 / 3, 4e9, 9e15)):
            name = f"e{number}"
            lease = await store.begin(
                birth(name, created_at=now, updated_at=now), Owner(owner=name, host="elsewhere", pid=1),
                now=now, ttl=TTL,
            )  # fmt: skip
            assert lease is not None
            await store.commit(step(lease, 1, head=waiting("c", wake_at=now))._replace(at=now))
            found = await execution(store, name)
            assert (found.created_at, found.wake_at) == (now, now)
            assert math.isclose(found.updated_at, now, abs_tol=0.001)
            assert name in [one.execution_id for one in await store.ready(now=now)]
            earlier = math.nextafter(now, -math.inf)
            assert name not in [one.execution_id for one in await store.ready(now=earlier)]


# -- zombies -----------------------------------------------------------------------------------------


@_check
async def a_zombie_is_refused_whatever_it_brings(make: MakePlace) -> None:
    async with entered(make) as place, opened(place.direct()) as one, opened(place.direct()) as two:
        await one.create(birth())
        zombie = await one.acquire("e1", ALICE, now=1000.0, ttl=TTL)
        await one.commit(step(zombie, 1))
        await one.send(signal("s"))
        heir = await two.acquire("e1", BOB, now=1001.0 + TTL, ttl=TTL)
        assert heir.token > zombie.token
        late = (
            step(zombie, 2, b"late"),
            step(zombie, 2, b"late", base=True, head=Head(status="done"), release=True),
            step(zombie, 2, b"late", log=(b"late",), blobs={"late": b"late"}),
            step(zombie, 2, b"late", consume=("s",), send=(signal("late"),)),
            step(zombie, 2, b"late", births=(birth("child"),), head=waiting("c", wake_at=1.0)),
        )
        for commit in late:
            async with refused(StaleSnapshot):
                await one.commit(commit)
        await one.release(zombie)  # not its to give back any more
        found = await execution(two)
        assert (found.owner, found.status, found.seq, found.channels) == ("bob", "running", 1, ())
        assert [item.signal_id for item in await two.signals()] == ["s"]
        assert await two.get("child") is None
        assert await two.get_blob("late") is None
        stored = await two.load("e1")
        assert stored is not None
        assert list(stored.log) == []
        await two.commit(step(heir, 2, b"in time", consume=("s",)))
        assert [body for _, _, body in await one.bodies("e1")] == [b"body 0", b"body 1", b"in time"]


@_check
async def a_zombie_that_was_born_before_a_deletion_stays_one(make: MakePlace) -> None:
    """The tokens of an execution that is born again under an old id begin above the old ones."""
    async with entered(make) as place, opened(place.direct()) as one, opened(place.direct()) as two:
        zombie = await one.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert zombie is not None
        assert await two.delete("e1")
        async with refused(StaleSnapshot):
            await one.commit(step(zombie, 1))
        heir = await two.begin(birth(), BOB, now=1000.0, ttl=TTL)
        assert heir is not None
        async with refused(StaleSnapshot):
            await one.commit(step(zombie, 1, b"late"))
        await two.commit(step(heir, 1))


@_check
async def leases_lost_while_commits_are_on_their_way_leave_one_history(make: MakePlace) -> None:
    """Owners take the execution from one another in the middle of each other's commits; nobody is asked first."""
    async with entered(make) as place, opened(place.direct()) as one, opened(place.direct()) as two:
        await one.create(birth())
        stored: list[bytes] = []
        late: list[bytes] = []
        turns = 12

        async def commit(store: CheckpointStore, lease: Lease, seq: int) -> None:
            body = f"{lease.token}/{seq}".encode()
            try:
                await store.commit(step(lease, seq, body, log=(body,), births=(birth(body.decode()),)))
                stored.append(body)
            except StaleSnapshot:
                late.append(body)

        for turn in range(turns):
            now = 1000.0 + turn * 4 * TTL
            mine, theirs = (one, two) if turn % 2 else (two, one)
            lease = await mine.acquire("e1", Owner(owner=f"a{turn}", host="x", pid=1), now=now, ttl=TTL)
            seq = (await execution(mine)).seq + 1

            async def take_over(store: CheckpointStore = theirs, now: float = now, turn: int = turn) -> None:
                for _ in range(turn % 4):
                    await anyio.lowlevel.checkpoint()
                heir = Owner(owner=f"b{turn}", host="x", pid=2)
                await store.acquire("e1", heir, now=now + 2 * TTL, ttl=TTL)

            async with anyio.create_task_group() as group:
                group.start_soon(commit, mine, lease, seq)
                group.start_soon(take_over)
                group.start_soon(commit, mine, lease, seq + 1)
        bodies = [body for _, _, body in await one.bodies("e1")][1:]
        # Who of several that commit at once is first is not known, so their order may differ from what they heard.
        assert sorted(bodies) == sorted(stored)
        assert len(set(bodies)) == len(bodies)
        assert not set(late) & set(bodies)
        found = await two.load("e1")
        assert found is not None
        assert list(found.log) == bodies
        born = {one.execution_id async for one in two.find()} - {"e1"}
        assert born == {body.decode() for body in bodies}
        assert len(stored) + len(late) == 2 * turns
        tokens = [int(body.partition(b"/")[0]) for body in bodies]
        assert tokens == sorted(tokens), "an earlier owner committed after a later one"


# -- places that are left and entered again ------------------------------------------------------------


@_check
async def a_place_that_is_left_at_any_moment_is_found_as_it_was(make: MakePlace) -> None:
    """Between any two writes the store is closed, what serves it is ended, and another store goes on."""
    async with entered(make) as place:
        async with opened(place.direct()) as store:
            lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
            assert lease is not None
            await store.send(signal("s"))
        commits = (
            step(lease, 1, log=(b"one",)),
            step(lease, 2, base=True, blobs={"d": b"blob"}, send=(signal("t", "c2"),)),
            step(lease, 3, consume=("s",), births=(birth("child", parent="e1"),)),
            step(lease, 4, head=waiting("c2", wake_at=5000.0), log=(b"two", b"three"), release=True),
        )
        for number, commit in enumerate(commits):
            place.restart()
            async with opened(place.direct()) as store:
                found = await execution(store)
                assert (found.seq, found.owner, found.token) == (number, "alice", lease.token)
                await store.commit(commit)
                async with refused(StaleSnapshot):
                    await store.commit(commit._replace(body=b"again"))
        place.restart()
        async with opened(place.direct()) as store:
            found = await execution(store)
            assert (found.status, found.owner, found.channels) == ("waiting", None, ("c2",))
            stored = await store.load("e1")
            assert stored is not None
            assert list(stored.log) == [b"one", b"two", b"three"]
            assert [seq for seq, _ in stored.bodies] == [2, 3, 4]
            assert (await store.get_blob("d"), await store.take("s")) == (b"blob", False)
            assert [one.execution_id for one in await store.ready(now=0.0)] == ["e1"]
            assert [one.execution_id async for one in store.find(parent="e1")] == ["child"]
