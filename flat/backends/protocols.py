"""What a store must do. A backend holds bytes and a few columns, and never looks inside them.

An execution at rest is a row of columns (`Execution`), a chain of numbered bodies (`seq` 0, 1, 2, …; each
either a *base*, which is a whole snapshot, or a *delta* on the body before it), and an append-only log.

The one write that matters is `commit`: everything in a `Commit` is stored in one transaction or not at all.
It is guarded twice. `seq` must be the next one (compare and swap), and `token` must be the token of the
execution's newest lease (fencing), so that a process that lost its lease can never write again.
A commit whose coroutine has returned is stored as durably as the store promises; one that raised an error is not
stored. Only one that was interrupted by a cancellation may be stored or not, whole in either case: whoever goes on
after that reads the store again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

Columns = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The columns of one execution. Times are seconds since the epoch."""

    execution_id: str
    name: str
    """The machine's name, for people."""
    kind: str
    """`yaml` or `tree`."""
    program: str
    """Digest of the program, a key of the config store."""
    status: str
    seq: int
    """Number of the newest body."""
    created_at: float
    updated_at: float
    parent: str | None = None
    wake_at: float | None = None
    """When a parked execution has a timer due, else None."""
    channels: Columns = ()
    """Channels that a parked execution waits on."""
    owner: str | None = None
    token: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Birth:
    """A new execution: its columns and its first body (seq 0, a base)."""

    execution: Execution
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The columns that a commit changes. Left out of a commit when they stay as they are."""

    status: str
    wake_at: float | None = None
    channels: Columns = ()
    program: str | None = None
    """Digest of another program that the execution goes on with, or None for the one it has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """A durable message from outside on a channel. Oldest first within a channel."""

    signal_id: str
    channel: str
    body: bytes
    created_at: float
    to: str | None = None
    """The one execution it is for, or None when whoever waits on the channel may take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadSignal:
    """A signal that could not be delivered, kept for people to look at."""

    signal: Signal
    reason: str
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to commit to one execution, until somebody acquires it with a higher token."""

    execution_id: str
    owner: str
    token: int


class Commit(NamedTuple):
    """One atomic write to one execution. A tuple, because one is made at every step, and that is cheap."""

    lease: Lease
    seq: int
    at: float
    body: bytes
    base: bool = False
    """True when `body` is a whole snapshot and older bodies need not be read to rebuild it."""
    head: Head | None = None
    log: Sequence[bytes] = ()
    """Rows to append to the execution's log."""
    blobs: Mapping[str, bytes] = MappingProxyType({})
    """Content-addressed values that the body refers to; storing one twice is no error and costs nothing."""
    consume: Columns = ()
    """Ids of signals that this commit takes out of their channels. One that is gone already fails the commit."""
    send: Sequence[Signal] = ()
    """Signals sent by this commit (an id that exists already is not sent again)."""
    births: Sequence[Birth] = ()
    """Executions started by this commit (an id that exists already is not started again)."""
    release: bool = False
    """Give the lease back in the same transaction: parking costs one write, not two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """An execution as loaded: `bodies` starts with a base at or before the wanted seq, oldest first."""

    execution: Execution
    bodies: Sequence[tuple[int, bytes]]
    log: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """A process that drives executions. `boot` and `started` tell a reused pid from the one that was meant."""

    owner: str
    host: str
    pid: int
    boot: str = ""
    started: str = ""


class CheckpointStore(Protocol):
    """Executions at rest, and the leases on them."""

    async def create(self, birth: Birth) -> bool:
        """Store a new execution. False, and nothing written, if the id exists already."""
        ...

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        """Store a new execution that is owned from the start: `create` and `acquire` in one write.

        None, and nothing written, if the id exists already, whoever owns it. When a cancellation interrupts it,
        the execution may be stored, but nobody is left owning it.
        """
        ...

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        """Become the owner, with a token higher than every earlier one.

        Allowed when nobody owns it, the same owner does, the owner's last heartbeat is more than its ttl ago, or
        the owner was a process of this host that is gone. Raises `ExecutionBusy`, `ExecutionNotFound`.
        """
        ...

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        """Keep all leases of this owner for another `ttl` seconds (one write, however many there are)."""
        ...

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        """Whether it has an owner that would not keep anybody from acquiring it: it died without giving it back."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give the lease back. Does nothing when it is no longer ours."""
        ...

    async def commit(self, commit: Commit) -> None:
        """Store all of it or nothing. Raises `StaleSnapshot` when seq or token do not fit.

        Interrupted by a cancellation it may have been stored or not, and nobody else's commit is any the worse.
        """
        ...

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        """The execution with the bodies needed to rebuild its newest snapshot (or the one at seq `at`)."""
        ...

    async def get(self, execution_id: str) -> Execution | None:
        """The columns alone."""
        ...

    def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        """Executions that match every given condition, newest first. `due`: wake_at at or before that time."""
        ...

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        """Every body from seq 0 on, as (seq, is_base, body): the whole story, for showing and forking."""
        ...

    async def delete(self, execution_id: str) -> bool:
        """Remove an execution with its bodies and log. False if there was none."""
        ...

    async def put_config(self, digest: str, text: bytes) -> None:
        """Keep a config under its digest; the first one stored under a digest stays, so that a repetition is free."""
        ...

    async def get_config(self, digest: str) -> bytes | None: ...

    async def get_blob(self, digest: str) -> bytes | None: ...

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        """Waiting executions that have something to go on with, whoever owns them.

        That is a signal that they may take on one of their channels, or a `wake_at` at or before `now`. Whoever has
        waited for the longest since then comes first.
        """
        ...

    async def send(self, signal: Signal) -> bool:
        """Store a signal. False if its id was sent before, also if that one is consumed, fanned out or dead."""
        ...

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        """Signals not yet consumed, oldest first within each channel. `to`: those that this execution may take."""
        ...

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        """Replace a signal that is for anybody by one copy for each of these executions, in its place in the order.

        The copies' ids are `<signal_id>@<execution_id>`. False, and nothing written, if the signal is gone or
        addressed already, or there is nobody to send it to.
        """
        ...

    async def take(self, signal_id: str) -> bool:
        """Consume a signal outside of any commit. False if it is gone: of several that try, one gets it."""
        ...

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        """Take a signal out of its channel as a dead letter. False if it is gone."""
        ...

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        """Dead letters, oldest first within each channel."""
        ...

    async def revive(self, signal_id: str) -> bool:
        """Put a dead letter back, in the place in the order that it had. False if there is none of this id."""
        ...

    async def request_cancel(self, execution_id: str) -> bool:
        """Ask whoever drives this execution to stop. False if there is no such execution."""
        ...

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        """Ids of the executions owned by `owner` that somebody asked to stop."""
        ...

    async def close(self) -> None: ...
