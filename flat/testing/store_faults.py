"""What every store in a server must survive, as checks that anybody can run against a store of their own.

Connections that break at each call, answers that do not come, a server that is away or is killed and started again,
clocks that do not agree, and a lease that is lost while a commit is on its way. Each must end in success or in one
`BackendError`; afterwards nothing is stored by halves, and whoever comes next can go on to the same end.

    class MyFaults:
        def __init__(self, server): self.proxy = Proxy(server.port)
        def through(self, patience): return MyStore(port=self.proxy.port, timeout=patience)
        def direct(self): return MyStore(port=server.port)
        def restart(self): …                # kill the server, and start it with its data

    @pytest.mark.parametrize("check", FAULT_CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check: FaultCheck) -> None:
        await check(MyFaults)               # each `MyFaults()` is a new and empty place

What can happen without a connection, too, is in `store_owners`, and part of `FAULT_CHECKS`: a store in files or in
memory runs those. A server that refuses for a while what it does not want to do now is told from one that is broken:
stores whose place makes such refusals (`Proxy(port, refusal)`) run `THROTTLE_CHECKS` as well.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from flat.backends.protocols import CheckpointStore, Lease
from flat.errors import BackendError, ExecutionBusy, StaleSnapshot
from flat.testing.faults_proxy import FAULTS, Fault, Proxy
from flat.testing.store_case import ALICE, BOB, TTL, birth, refused, signal, step
from flat.testing.store_owners import OWNER_CHECKS, StorePlace, entered, opened
from flat.testing.store_story import HOLDING, STORY, Teller, look

__all__ = ["FAULTS", "FAULT_CHECKS", "THROTTLE_CHECKS", "Fault", "FaultCheck", "Faults", "Proxy"]

BREAKS: tuple[Fault, ...] = ("request lost", "request cut in two", "reply lost", "reply cut in two")
HELD: tuple[Fault, ...] = ("request held", "reply held")
SHORT, LONG = 0.08, 10.0
"""Patience of a store that is to give up, and of one that is not."""
TELLINGS = 6
"""A busy machine may use up a short patience before the call that is meant; then it is tried with a longer one."""
FEW = 20
"""One of so many calls, and one more, may never come again: a client that waits for a `100 Continue` says a call in
one piece or in two, as the server is slow or not."""


class Faults(StorePlace, Protocol):
    """An empty place in a running server, and what can be done to the way there."""

    @property
    def proxy(self) -> Proxy: ...

    def through(self, patience: float) -> CheckpointStore:
        """A store whose connections go through the proxy, and which gives a call up after so many seconds."""
        ...

    def direct(self) -> CheckpointStore:
        """A store on the same data that reaches the server directly."""
        ...


MakeFaults = Callable[[], Faults]
FaultCheck = Callable[[MakeFaults], Awaitable[None]]
FAULT_CHECKS: list[FaultCheck] = []
THROTTLE_CHECKS: list[FaultCheck] = []


def _check(check: FaultCheck) -> FaultCheck:
    FAULT_CHECKS.append(check)
    return check


# -- the story, told with faults -----------------------------------------------------------------------


@dataclass
class _Script:
    """How the story goes when nothing disturbs it."""

    results: list[Any]
    states: list[Any]
    """`states[n]` is what is stored before act n; the last one, what is stored in the end."""
    calls: list[int]
    """How many calls each act makes in a store object that is new, and connects first."""


async def _undisturbed(make: MakeFaults) -> _Script:
    script, teller = _Script([], [], []), Teller()
    async with entered(make) as place, opened(place.direct()) as eye:
        for act in STORY:
            script.states.append(await look(eye))
            async with opened(place.through(LONG)) as store:
                place.proxy.count()
                script.results.append(await act(store, teller))
                script.calls.append(place.proxy.calls)
        script.states.append(await look(eye))
    return script


async def _tell(
    make: MakeFaults, script: _Script, fault: Fault, which: int, call: int, patience: float
) -> int | None:
    """Tell the story with a fault at one call of one act: 1 if it failed, 0 if not, None if the call never came."""
    for _ in range(TELLINGS):
        if (failed := await _tell_once(make, script, fault, which, call, patience)) is not None:
            return failed
        patience = min(2 * patience, LONG)
    return None


async def _tell_once(
    make: MakeFaults, script: _Script, fault: Fault, which: int, call: int, patience: float
) -> int | None:
    """As `_tell`, tried once."""
    act, failed, refused_it = STORY[which], 0, False
    async with (
        entered(make) as place,
        opened(place.direct()) as eye,
        opened(place.through(patience)) as store,
    ):
        teller = Teller()
        for number in range(which):
            await STORY[number](eye, teller)
        place.proxy.plan(fault, call)
        where = f"{act.__name__.strip('_')}, call {call}: {fault}"
        try:
            with anyio.fail_after(40 * patience + 5):
                result = await act(store, teller)
            assert result == script.results[which], where
            following = which + 1
        except BackendError as error:
            failed, following = 1, which
            refused_it = isinstance(error, (StaleSnapshot, ExecutionBusy))
        assert not refused_it, f"{where}: refused, though nobody else was there"
        if not place.proxy.struck:
            return None
        place.proxy.heal()
        if failed:
            # What was held may be done now, after its caller gave it up.
            await anyio.to_thread.run_sync(place.proxy.wait_settled)
        state = await look(eye)
        before, after = script.states[which], script.states[which + 1]
        if failed:
            assert state in (before, after), f"{where}: stored by halves"
            following = which + (state == after and before != after)
        else:
            assert state == after, f"{where}: said to be done"
        if failed and following in HOLDING:
            teller.lease = await eye.acquire("e1", ALICE, now=1006.0, ttl=TTL)
        # The same store object goes on when the server can be reached again: at once, if it is a patient one.
        if patience < LONG:
            await _wait_reached(store)
        narrator = eye if patience < LONG else store
        for number in range(following, len(STORY)):
            result = await STORY[number](narrator, teller)
            assert result == script.results[number], f"{where}; later: {STORY[number].__name__}"
        assert await look(eye) == script.states[-1], where
    return failed


async def _wait_reached(store: CheckpointStore) -> None:
    """A store that has little patience may need several attempts on a busy machine."""
    with anyio.fail_after(LONG):
        while True:
            try:
                await store.get("e1")
            except BackendError:
                continue
            return


async def _sweep(make: MakeFaults, faults: Sequence[Fault], patience: float) -> tuple[int, int]:
    """Every fault at every call of every act. Gives how many there were, and how many acts failed.

    A place may have a number `every`, where all of them would take too long: then it is every so many-th of them.
    """
    async with entered(make) as place:
        every = int(getattr(place, "every", 1))
    await _undisturbed(make)  # what a server does once and for all, it has done then
    script = await _undisturbed(make)
    told = failed = passed = 0
    missed: list[str] = []
    for fault in faults:
        for which, calls in enumerate(script.calls):
            for call in range(max(1, calls)):
                passed += 1
                if passed % every:
                    continue
                struck = await _tell(make, script, fault, which, call, patience)
                if struck is None:
                    missed.append(f"{STORY[which].__name__.strip('_')}, call {call}: {fault}")
                else:
                    failed, told = failed + struck, told + 1
    assert passed >= len(faults) * len(STORY)
    assert told + len(missed) == passed // every > 0
    assert len(missed) <= 1 + told // FEW, f"there were no such calls: {missed}"
    return told, failed


@_check
async def a_connection_that_breaks_at_any_call_loses_and_doubles_nothing(make: MakeFaults) -> None:
    told, failed = await _sweep(make, BREAKS, LONG)
    assert failed == 0, f"{failed} of {told} acts failed, though the server could be reached again at once"


@_check
async def an_answer_that_does_not_come_ends_in_time(make: MakeFaults) -> None:
    await _sweep(make, HELD, SHORT)


@_check
async def a_server_that_goes_away_at_any_call_is_one_clear_error(make: MakeFaults) -> None:
    told, failed = await _sweep(make, ("down",), SHORT)
    assert failed == told


async def a_server_that_refuses_for_a_while_is_asked_again(make: MakeFaults) -> None:
    """At each call of each act, the server says three times that it is busy."""
    told, failed = await _sweep(make, ("throttled",), LONG)
    assert failed == 0, f"{failed} of {told} acts failed, though the server was only busy for a moment"


async def a_server_that_refuses_for_too_long_is_one_clear_error(make: MakeFaults) -> None:
    async with entered(make) as place, opened(place.direct()) as eye, opened(place.through(SHORT)) as store:
        lease = await eye.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        await _wait_reached(store)
        place.proxy.plan("throttled", 0, times=1_000_000)
        with anyio.fail_after(40 * SHORT + 5):
            async with refused(BackendError):
                await store.commit(step(lease, 1))
        place.proxy.heal()
        await _wait_reached(store)
        assert len(await eye.bodies("e1")) == 1, "what was refused was stored"
        await eye.commit(step(lease, 1))


THROTTLE_CHECKS += [
    a_server_that_refuses_for_a_while_is_asked_again,
    a_server_that_refuses_for_too_long_is_one_clear_error,
]


@_check
async def a_server_that_is_away_from_the_start_is_one_clear_error(make: MakeFaults) -> None:
    async with entered(make) as place, opened(place.through(SHORT)) as store:
        place.proxy.refuse()
        with anyio.fail_after(40 * SHORT + 5):
            async with refused(BackendError):
                await store.get("e1")
        place.proxy.heal()
        await _wait_reached(store)


@_check
async def a_server_that_is_killed_and_started_again_goes_on_with_its_data(make: MakeFaults) -> None:
    script, teller = await _undisturbed(make), Teller()
    async with entered(make) as place, opened(place.through(LONG)) as store:
        for number, act in enumerate(STORY):
            assert await look(store) == script.states[number]
            place.restart()
            assert await act(store, teller) == script.results[number]
        assert await look(store) == script.states[-1]


@_check
async def many_that_commit_at_once_lose_nothing_when_the_connection_breaks(make: MakeFaults) -> None:
    async with entered(make) as place, opened(place.through(LONG)) as store:
        names = [f"e{number}" for number in range(12)]
        leases: dict[str, Lease] = {}
        for name in names:
            lease = await store.begin(birth(name), ALICE, now=1000.0, ttl=TTL)
            assert lease is not None
            leases[name] = lease

        async def drive(name: str) -> None:
            for seq in range(1, 13):
                await store.commit(step(leases[name], seq, f"{name}/{seq}".encode(), log=(b"line",)))

        async def disturb() -> None:
            for fault in BREAKS:
                place.proxy.plan(fault, 1)
                await anyio.to_thread.run_sync(place.proxy.wait_struck)

        async with anyio.create_task_group() as group:
            group.start_soon(disturb)
            for name in names:
                group.start_soon(drive, name)
            # The disturber needs calls to disturb until it has done its part.
            extra = await store.begin(birth("extra"), ALICE, now=1000.0, ttl=TTL)
            assert extra is not None
            for seq in range(1, 40):
                await store.commit(step(extra, seq))
        for name in names:
            stored = await store.load(name)
            assert stored is not None
            assert stored.log == [b"line"] * 12
            assert [body for _, _, body in await store.bodies(name)][1:] == [
                f"{name}/{seq}".encode() for seq in range(1, 13)
            ]


@_check
async def a_commit_on_its_way_when_the_lease_is_lost_is_refused(make: MakeFaults) -> None:
    async with entered(make) as place, opened(place.direct()) as other, opened(place.through(LONG)) as store:
        await store.create(birth())
        zombie = await store.acquire("e1", ALICE, now=1000.0, ttl=TTL)
        await store.send(signal("s"))
        place.proxy.plan("request held", 0)
        heard: list[BaseException | None] = []

        async def late() -> None:
            try:
                await store.commit(
                    step(zombie, 1, b"late", log=(b"late",), consume=("s",), births=(birth("child"),))
                )
                heard.append(None)
            except BackendError as error:
                heard.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(late)
            await anyio.to_thread.run_sync(place.proxy.wait_struck)
            heir = await other.acquire("e1", BOB, now=1001.0 + TTL, ttl=TTL)
            await other.commit(step(heir, 1, b"in time"))
            place.proxy.heal()
        assert isinstance(heard[0], StaleSnapshot), heard
        assert await other.bodies("e1") == [(0, True, b"body 0"), (1, False, b"in time")]
        assert [one.signal_id for one in await other.signals()] == ["s"]
        assert await other.get("child") is None
        async with refused(StaleSnapshot):
            await store.commit(step(zombie, 2))
        await other.commit(step(heir, 2, consume=("s",)))


@_check
async def a_commit_that_was_stored_before_the_lease_was_lost_is_stored(make: MakeFaults) -> None:
    async with entered(make) as place, opened(place.direct()) as other, opened(place.through(LONG)) as store:
        await store.create(birth())
        first = await store.acquire("e1", ALICE, now=1000.0, ttl=TTL)
        place.proxy.plan("reply held", 0)
        async with anyio.create_task_group() as group:
            group.start_soon(store.commit, step(first, 1, b"stored"))
            await anyio.to_thread.run_sync(place.proxy.wait_struck)
            heir = await other.acquire("e1", BOB, now=1001.0 + TTL, ttl=TTL)
            await other.commit(step(heir, 2, b"heir"))
            place.proxy.cut()  # so that the first asks again, when much has happened since
            place.proxy.heal()
        assert [body for _, _, body in await other.bodies("e1")] == [b"body 0", b"stored", b"heir"]


@_check
async def a_cancelled_caller_leaves_others_unharmed_and_no_lease_behind(make: MakeFaults) -> None:
    async with entered(make) as place, opened(place.direct()) as other, opened(place.through(LONG)) as store:
        bystander = await store.begin(birth("bystander"), ALICE, now=1000.0, ttl=TTL)
        assert bystander is not None
        for number, fault in enumerate(HELD):
            name = f"e{number}"
            place.proxy.plan(fault, 0)
            async with anyio.create_task_group() as group:
                begun = anyio.CancelScope()

                async def begin(name: str = name, begun: anyio.CancelScope = begun) -> None:
                    with begun:
                        await store.begin(birth(name), ALICE, now=1000.0, ttl=TTL)

                group.start_soon(begin)
                await anyio.to_thread.run_sync(place.proxy.wait_struck)
                group.start_soon(store.commit, step(bystander, number + 1))
                begun.cancel()
                await anyio.lowlevel.checkpoint()
                place.proxy.heal()
            found = await other.get(name)
            assert found is None or found.owner is None, f"{fault}: {found} is owned by nobody who knows"
        assert len(await other.bodies("bystander")) == 3


FAULT_CHECKS += OWNER_CHECKS
