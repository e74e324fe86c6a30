"""Keeps an execution's snapshots in a store: what a commit holds, and when a whole snapshot is worth writing.

A commit is a delta on the one before. Reading an execution means reading its newest base and all deltas after
it, so a base is written now and then; but only when it is small beside the deltas that it makes unnecessary,
so that history is never written twice (a base of at most 1/16 of the bytes since the last one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import anyio

from flat.backends.protocols import (
    Birth,
    CheckpointStore,
    Commit,
    Execution,
    Head,
    Lease,
    Owner,
    Signal,
    Stored,
)
from flat.core.codec import Codec
from flat.core.effects import child_channel
from flat.core.program import Program
from flat.core.snapshot import FINISHED, Snapshot
from flat.errors import ExecutionNotFound, IncompatibleSnapshot

BASE_AFTER = 65_536
"""Bytes of deltas after which a base is considered for the first time."""
BASE_SHARE = 16
FLAG = b'{"$":["blob","'
IMPORTING = "importing"
"""Status of an execution that is being copied from another store, and must not run before it is whole."""


@dataclass
class Keeper:
    """The open execution: who owns it, what is stored, and how to store the next."""

    store: CheckpointStore
    codec: Codec
    lease: Lease
    seq: int
    stored: Snapshot
    since_base: int = 0
    base_at: int = BASE_AFTER
    released: bool = False
    log: Sequence[Any] = ()
    """The messages that were stored when this run began."""
    adopted: str | None = None
    """Digest of another program that the next commit is to name."""
    attached: bool = False
    """True for a child whose parent runs in this process and hears from it directly."""

    async def keep(
        self,
        snapshot: Snapshot,
        *,
        waits: Sequence[Waits] = (),
        consume: tuple[str, ...] = (),
        log: Sequence[Any] = (),
        births: Sequence[Birth] = (),
        release: bool = False,
    ) -> None:
        """Store the snapshot. When this returns, it is as durable as the store promises."""
        if snapshot is self.stored and not consume:
            return
        before = self.stored
        body, blobs = self.codec.delta(before, snapshot)
        base, head = False, None
        rows: Sequence[bytes] = ()
        self.since_base += len(body)
        if self.since_base >= self.base_at:
            body, blobs, base = self._base_if_small(snapshot, body, blobs)
        if log:
            rows, more = self.codec.rows(log)
            blobs = {**blobs, **more}
        if snapshot.status != before.status or snapshot.status == "waiting" or self.adopted:
            head = head_of(snapshot, waits, self.adopted)
        send = () if snapshot.parent is None else self._told_parent(snapshot)
        seq = self.seq + 1
        # By position: naming twelve fields costs as much as the delta.
        await self.store.commit(
            Commit(
                self.lease, seq, snapshot.at, body, base, head, rows, blobs, consume, send, births, release
            )
        )
        self.seq = seq
        self.stored = snapshot
        self.released = release
        self.adopted = None

    def _told_parent(self, snapshot: Snapshot) -> tuple[Signal, ...]:
        """A child that ends where its parent does not run says so on a channel that the parent waits on."""
        if (
            snapshot.launched
            or self.attached
            or snapshot.status not in FINISHED
            or self.stored.status in FINISHED
        ):
            return ()
        id_ = child_channel(snapshot.execution_id)
        return (Signal(signal_id=id_, channel=id_, body=b"null", created_at=snapshot.at, to=snapshot.parent),)

    def _base_if_small(
        self, snapshot: Snapshot, delta: bytes, blobs: dict[str, bytes]
    ) -> tuple[bytes, dict[str, bytes], bool]:
        whole, whole_blobs = self.codec.base(snapshot)
        if len(whole) * BASE_SHARE > self.since_base:
            self.base_at = self.since_base * 2
            return delta, blobs, False
        self.since_base, self.base_at = 0, BASE_AFTER
        return whole, whole_blobs, True

    async def refresh(self) -> Snapshot:
        """Read again what is stored: for when a commit was interrupted and may have happened or not."""
        stored = await self.store.load(self.lease.execution_id)
        if stored is None:
            raise ExecutionNotFound(self.lease.execution_id)
        self.stored, self.seq = await rebuilt(self.store, self.codec, stored), stored.bodies[-1][0]
        return self.stored

    async def release(self) -> None:
        """Give the lease back, unless the last commit did."""
        if not self.released:
            await self.store.release(self.lease)


class Waits(Protocol):
    """What a parked execution waits for."""

    @property
    def channel(self) -> str: ...
    @property
    def deadline(self) -> float | None: ...


def head_of(snapshot: Snapshot, waits: Sequence[Waits], program: str | None = None) -> Head:
    """The columns that a store searches by."""
    if snapshot.status != "waiting":
        return Head(status=snapshot.status, program=program)
    wake_at = min((w.deadline for w in waits if w.deadline is not None), default=None)
    channels = tuple(dict.fromkeys(w.channel for w in waits))
    return Head(status="waiting", wake_at=wake_at, channels=channels, program=program)


async def create(
    store: CheckpointStore, codec: Codec, program: Program, snapshot: Snapshot, owner: Owner, *, ttl: float
) -> Keeper | None:
    """Store a fresh execution and own it. None if there is one with this id already."""
    birth = birth_of(program, snapshot, codec)
    lease = await store.begin(birth, owner, now=snapshot.started_at, ttl=ttl)
    return None if lease is None else Keeper(store, codec, lease, 0, snapshot)


def birth_of(program: Program, snapshot: Snapshot, codec: Codec) -> Birth:
    """What a store needs to begin with an execution."""
    execution = Execution(
        execution_id=snapshot.execution_id,
        name=program.name,
        kind=program.kind,
        program=program.digest,
        status="running",
        seq=0,
        created_at=snapshot.started_at,
        updated_at=snapshot.started_at,
        parent=snapshot.parent,
    )
    return Birth(execution=execution, body=codec.first(snapshot))


async def take_up(
    store: CheckpointStore,
    codec: Codec,
    execution_id: str,
    owner: Owner,
    *,
    now: float,
    ttl: float,
    read: Stored | None = None,
) -> Keeper:
    """Own a stored execution and read its newest snapshot; `read` is what the caller has just read of it."""
    lease = await store.acquire(execution_id, owner, now=now, ttl=ttl)
    try:
        stored = read if _still_newest(read, lease) else await store.load(execution_id)
        if stored is None:
            raise ExecutionNotFound(execution_id)
        if stored.execution.status == IMPORTING:
            raise IncompatibleSnapshot(
                f'execution "{execution_id}" was imported by half; import its file again'
            )
        snapshot = await rebuilt(store, codec, stored)
        messages = await logged(store, codec, stored, snapshot) if stored.log else []
    except BaseException:
        with anyio.CancelScope(shield=True):
            await store.release(lease)
        raise
    keeper = Keeper(store, codec, lease, stored.bodies[-1][0], snapshot, log=messages)
    keeper.since_base = sum(len(body) for _, body in stored.bodies[1:])
    keeper.base_at = max(BASE_AFTER, keeper.since_base * 2) if keeper.since_base > BASE_AFTER else BASE_AFTER
    return keeper


def _still_newest(read: Stored | None, lease: Lease) -> bool:
    """Whether nobody has written since: it had no owner then, and ours is the very next token."""
    return read is not None and read.execution.owner is None and lease.token == read.execution.token + 1


async def rebuilt(store: CheckpointStore, codec: Codec, stored: Stored) -> Snapshot:
    """The snapshot that a chain of bodies stands for."""
    if not stored.bodies:
        raise IncompatibleSnapshot(f'execution "{stored.execution.execution_id}" has no stored snapshot')
    blobs: dict[str, bytes] = {}
    for _, body in stored.bodies:
        await collect_blobs(store, body, blobs)
    (_, first), *rest = stored.bodies
    snapshot = codec.snapshot(first, blobs)
    for _, body in rest:
        snapshot = codec.applied(snapshot, body, blobs)
    return snapshot


async def logged(store: CheckpointStore, codec: Codec, stored: Stored, snapshot: Snapshot) -> list[Any]:
    """The messages that belong to a snapshot."""
    rows = stored.log[: snapshot.log_length]
    blobs: dict[str, bytes] = {}
    for row in rows:
        await collect_blobs(store, row, blobs)
    return [codec.message(row, blobs) for row in rows]


async def collect_blobs(store: CheckpointStore, body: bytes, blobs: dict[str, bytes]) -> None:
    """Fetch what the body refers to. The marker is searched as bytes: most bodies have none."""
    at = body.find(FLAG)
    while at >= 0:
        end = body.index(b'"', at + len(FLAG))
        name = body[at + len(FLAG) : end].decode()
        if name not in blobs and (data := await store.get_blob(name)) is not None:
            blobs[name] = data
        at = body.find(FLAG, end)


def finished(snapshot: Snapshot) -> bool:
    return snapshot.status in FINISHED
