"""Taking finished executions out of a store, and then whatever nothing refers to any more.

Families are removed whole or not at all. A family is up for it when its top has one of the wanted statuses and
nobody in it lives: what runs, waits or is being driven keeps all of its family, because it may still need
what its relatives hold. A family is as old as the last change in it.

Of a family the top goes last, so that a prune that dies half-way has left nothing without its top, and the next one
removes the rest. Signals for removed executions, and dead letters for them, go with them.

**Blobs and programs** are shared, so that what to remove is found by looking at all that stays (`collect`). That
is done only while nobody drives anything, because somebody who does may at this moment store a body that refers
to an old blob. A process that is idle at the time of the prune may hold a program to be stored still; it stores it
again after a minute (`Runtime.keep_config`), and programs of executions younger than that are spared.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from anyio.lowlevel import checkpoint

from flat.backends.liveness import this_process
from flat.backends.protocols import CheckpointStore, Execution, Lease
from flat.backends.sweeping import Compactable, Sweepable
from flat.core.snapshot import FINISHED
from flat.drivers.keeper import IMPORTING
from flat.errors import ExecutionBusy, ExecutionNotFound
from flat.runtime.references import blob_names

PRUNABLE = ("done", "failed", "cancelled", "limit", "in_doubt")
"""Statuses that may be asked for; in the others somebody, or something, is still expected."""
USUAL = PRUNABLE[:3]
LIVING = frozenset({"running", "waiting"})
TTL = 30.0
"""Seconds that our leases last."""
LOOKS = 3
"""How often to look for changes made while everything was looked at, before giving up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to remove."""

    statuses: Collection[str] = USUAL
    before: float | None = None
    """Only families that have not changed since this moment."""
    keep: int = 0
    """Of the families that match, the newest so many stay."""


class _One(NamedTuple):
    """The little that is remembered of each execution."""

    parent: str | None
    status: str
    updated_at: float
    owned: bool
    name: str


@dataclass(frozen=True, slots=True)
class Doomed:
    """A family that is to be removed."""

    top: str
    name: str
    status: str
    updated_at: float
    members: Sequence[str]
    """Children before their parents."""


@dataclass(slots=True)
class Plan:
    """What a prune would remove, and why the rest stays."""

    families: list[Doomed] = field(default_factory=list)
    halves: list[str] = field(default_factory=list)
    """Executions that an import which died has left by half."""
    living: int = 0
    """Families that stay because somebody in them lives."""
    others: int = 0
    """Families that stay because they were not asked for."""

    @property
    def executions(self) -> int:
        return sum(len(family.members) for family in self.families) + len(self.halves)

    def statuses(self) -> Mapping[str, int]:
        """How many families of each status."""
        return dict(Counter(family.status for family in self.families))


@dataclass(slots=True)
class Pruned:
    """What a prune removed."""

    families: int = 0
    executions: int = 0
    signals: int = 0
    skipped: list[str] = field(default_factory=list)
    """Families that somebody took up while the prune was at work."""
    collected: Collected | None = None
    compacted: bool = False
    """Whether the store's file was made smaller."""


@dataclass(slots=True)
class Collected:
    """What nothing referred to any more."""

    blobs: int = 0
    programs: int = 0
    refused: str = ""
    """Why nothing was collected, for people; else empty."""


# -- what to remove --------------------------------------------------------------------------------


async def plan(store: CheckpointStore, wanted: Wanted, *, now: float) -> Plan:
    """Look at all executions and say which would go."""
    known: dict[str, _One] = {}
    found = Plan()
    async for e in store.find():
        if e.status == IMPORTING:
            if not await _driven(store, e, now):
                found.halves.append(e.execution_id)
            continue
        known[e.execution_id] = _One(e.parent, e.status, e.updated_at, e.owner is not None, e.name)
    # `find` begins with the newest, so that children come before their parents: the order to delete in.
    members: dict[str, list[str]] = {}
    tops: dict[str, str] = {}
    for id_ in known:
        members.setdefault(_top_of(id_, known, tops), []).append(id_)
    ready: list[Doomed] = []
    for top, ids in members.items():
        one = known[top]
        if await _lives(store, ids, known, now):
            found.living += 1
        elif one.status not in wanted.statuses:
            found.others += 1
        else:
            newest = max(known[id_].updated_at for id_ in ids)
            ids.remove(top)
            ready.append(Doomed(top, one.name, one.status, newest, (*ids, top)))
    ready.sort(key=lambda family: family.updated_at, reverse=True)
    old = [f for f in ready[wanted.keep :] if wanted.before is None or f.updated_at < wanted.before]
    found.others += len(ready) - len(old)
    found.families = old
    return found


def _top_of(id_: str, known: Mapping[str, _One], tops: dict[str, str]) -> str:
    line = [id_]
    while line[-1] not in tops and (above := known[line[-1]].parent) is not None and above in known:
        if above in line:  # no engine makes such a family, but a damaged store may hold one
            break
        line.append(above)
    top = tops.get(line[-1], line[-1])
    tops.update(dict.fromkeys(line, top))
    return top


async def _lives(store: CheckpointStore, ids: Sequence[str], known: Mapping[str, _One], now: float) -> bool:
    if any(known[id_].status in LIVING for id_ in ids):
        return True
    for id_ in ids:
        if known[id_].owned and not await store.abandoned(id_, now=now):
            return True
    return False


# -- removing it -----------------------------------------------------------------------------------


async def prune(
    store: CheckpointStore, found: Plan, *, now: float, spare_since: float | None = None
) -> Pruned:
    """Remove what a plan says, then the blobs and programs that nothing refers to.

    Programs of executions that began after `spare_since` stay this time.
    """
    told = Pruned()
    removed: set[str] = set()
    spared: set[str] = set()
    for family in found.families:
        standing = await _as_planned(store, family, now)
        if standing is None:
            told.skipped.append(family.top)
            continue
        for execution in standing:
            if spare_since is not None and execution.created_at > spare_since:
                spared.add(execution.program)
        for id_ in family.members:
            told.executions += await store.delete(id_)
            removed.add(id_)
        told.families += 1
        await checkpoint()
    for id_ in found.halves:
        told.executions += await store.delete(id_)
    told.signals = await _drop_signals(store, removed) if removed else 0
    told.collected = await collect(store, now=now, spared=spared)
    if told.executions and isinstance(store, Compactable):
        told.compacted = await store.compact()
    return told


async def _as_planned(store: CheckpointStore, family: Doomed, now: float) -> Sequence[Execution] | None:
    """The top, unless it is gone; None if somebody has taken it up since the plan was made."""
    lease: Lease | None = None
    if family.status not in FINISHED:
        # It could be resumed at any moment: from here on by nobody else.
        try:
            lease = await store.acquire(family.top, this_process(), now=now, ttl=TTL)
        except ExecutionNotFound:
            return ()
        except ExecutionBusy:
            return None
    top = await store.get(family.top)
    if top is None:
        return ()
    same = top.status == family.status and top.updated_at <= family.updated_at
    if same and (lease is not None or not await _driven(store, top, now)):
        return (top,)
    if lease is not None:
        await store.release(lease)
    return None


async def _driven(store: CheckpointStore, execution: Execution, now: float) -> bool:
    return execution.owner is not None and not await store.abandoned(execution.execution_id, now=now)


async def _drop_signals(store: CheckpointStore, removed: Collection[str]) -> int:
    dropped = 0
    for signal in await store.signals():
        if signal.to in removed:
            dropped += await store.take(signal.signal_id)
    for letter in await store.dead():
        if letter.signal.to in removed and await store.revive(letter.signal.signal_id):
            dropped += await store.take(letter.signal.signal_id)
    return dropped


# -- what nothing refers to --------------------------------------------------------------------------


async def collect(store: CheckpointStore, *, now: float, spared: Collection[str] = ()) -> Collected:
    """Remove blobs and programs that no execution refers to, if nobody is driving anything."""
    if not isinstance(store, Sweepable):
        return Collected(refused="this kind of store keeps blobs and programs for ever")
    try:
        return await _collect(store, store, now, spared)
    except ExecutionBusy as busy:
        return Collected(
            refused=f'"{busy.execution_id}" is being driven; when nothing runs: flat runs prune --leftovers'
        )


async def _collect(
    store: CheckpointStore, sweeper: Sweepable, now: float, spared: Collection[str]
) -> Collected:
    # First what there is, then who refers to it: what is stored meanwhile is not among the names.
    names, programs = await sweeper.kept("blob"), await sweeper.kept("config")
    blobs_used: set[str] = set()
    programs_used = set(spared)
    seen: dict[str, int] = {}
    for _ in range(LOOKS):
        changed = 0
        for id_, seq, program, owned in [
            (e.execution_id, e.seq, e.program, e.owner is not None) async for e in store.find()
        ]:
            if owned and not await store.abandoned(id_, now=now):
                raise ExecutionBusy(id_)
            if seen.get(id_) == seq and program in programs_used:
                continue
            changed += 1
            seen[id_] = seq
            programs_used.add(program)
            if names:
                blobs_used.update(await _blobs_of(store, id_))
        if not changed:
            return Collected(
                blobs=await sweeper.drop("blob", names, but=blobs_used) if names else 0,
                programs=await sweeper.drop("config", programs, but=programs_used) if programs else 0,
            )
    return Collected(refused="executions come and go too fast; prune again when nothing runs")


async def _blobs_of(store: CheckpointStore, execution_id: str) -> set[str]:
    """The blobs that any moment of an execution refers to, its log included."""
    used: set[str] = set()
    for _, _, body in await store.bodies(execution_id):
        used.update(blob_names(body))
    stored = await store.load(execution_id)
    for row in () if stored is None else stored.log:
        used.update(blob_names(row))
    return used
