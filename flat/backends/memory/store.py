"""A store in this process's memory, for tests and for runs that need not outlive the process.

Nothing in here awaits, so every method is one uninterrupted step: checking first and writing last makes a
commit atomic. Each `MemoryStore` is a world of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, MutableSequence, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Self

from flat.backends.checks import (
    CANCELLED,
    WAITING,
    check_birth,
    check_commit,
    check_signal,
    check_text,
    is_plain,
    readable,
)
from flat.backends.liveness import describe, may_take_over
from flat.backends.memory.signals import Mailbox
from flat.backends.protocols import (
    Birth,
    Commit,
    DeadSignal,
    Execution,
    Lease,
    Owner,
    Signal,
    Stored,
)
from flat.backends.sweeping import DIGEST_LENGTH, Kind
from flat.errors import ExecutionBusy, ExecutionNotFound, SignalGone, StaleSnapshot


@dataclass(slots=True)
class _Row:
    columns: Execution
    """All columns as they were when the head last changed; owner, token, seq and updated_at live below."""
    number: int
    token: int
    updated_at: float
    bodies: MutableSequence[tuple[bool, bytes]]
    owner: str | None = None
    cancel: bool = False
    log: MutableSequence[tuple[int, bytes]] = field(default_factory=list)

    def execution(self) -> Execution:
        return replace(
            self.columns,
            seq=len(self.bodies) - 1,
            updated_at=self.updated_at,
            owner=self.owner,
            token=self.token,
        )


class MemoryStore:
    """A store that ends with the process: `MemoryStore()`."""

    def __init__(self) -> None:
        self._rows: dict[str, _Row] = {}
        self._numbers = 0
        self._floor = 0
        self._owners: dict[str, tuple[Owner, float, float]] = {}
        self._waiting: dict[str, set[str]] = {}
        self._mail = Mailbox()
        self._blobs: dict[str, bytes] = {}
        self._configs: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"MemoryStore({len(self._rows)} executions)"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Nothing to close: what is stored lives as long as this object."""

    async def commit(self, commit: Commit) -> None:
        lease, seq = commit.lease, commit.seq
        row = self._rows.get(lease.execution_id)
        if row is None or row.token != lease.token or seq != len(row.bodies):
            raise StaleSnapshot(lease.execution_id, seq)
        if not is_plain(commit):
            check_commit(commit)
            if len(set(commit.consume)) != len(commit.consume) or not self._mail.has(commit.consume):
                raise SignalGone(lease.execution_id)
            self._write_rest(row, commit)
        row.bodies.append((commit.base, commit.body))
        row.updated_at = commit.at

    def _write_rest(self, row: _Row, commit: Commit) -> None:
        for signal_id in commit.consume:
            self._mail.spend(signal_id)
        row.log.extend((commit.seq, line) for line in commit.log)
        for digest, blob in commit.blobs.items():
            self._blobs.setdefault(digest, blob)
        for signal in commit.send:
            self._mail.send(signal)
        for birth in commit.births:
            self._insert(birth)
        if (head := commit.head) is not None:
            self._set_channels(row.columns.execution_id, row.columns.channels, head.channels)
            row.columns = replace(
                row.columns,
                status=head.status,
                wake_at=head.wake_at,
                channels=tuple(head.channels),
                program=head.program or row.columns.program,
            )
            row.cancel = row.cancel and head.status != CANCELLED
        if commit.release:
            row.owner, row.token = None, row.token + 1

    def _set_channels(self, execution_id: str, old: Sequence[str], new: Sequence[str]) -> None:
        for channel in old:
            waiting = self._waiting.get(channel, set())
            waiting.discard(execution_id)
            if not waiting:
                self._waiting.pop(channel, None)
        for channel in new:
            self._waiting.setdefault(channel, set()).add(execution_id)

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        return self._insert(birth)

    def _insert(self, birth: Birth) -> bool:
        new = birth.execution
        if new.execution_id in self._rows:
            return False
        self._numbers += 1
        self._rows[new.execution_id] = _Row(
            columns=replace(new, channels=tuple(new.channels)), number=self._numbers, token=self._floor,
            updated_at=new.updated_at, bodies=[(True, birth.body)],
        )  # fmt: skip
        self._set_channels(new.execution_id, (), new.channels)
        return True

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        check_text("owner", owner.owner)
        if not self._insert(birth):
            return None
        return self._own(self._rows[birth.execution.execution_id], owner, now, ttl)

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        row = self._rows.get(execution_id)
        if row is None:
            raise ExecutionNotFound(execution_id)
        if row.owner not in (None, owner.owner) and (known := self._owners.get(row.owner or "")):
            holder, seen, kept_for = known
            if not may_take_over(holder, seen=seen, ttl=kept_for, now=now):
                left = f"its lease ends in {seen + kept_for - now:.0f} s unless it is kept up"
                raise ExecutionBusy(execution_id, describe(holder), left)
        return self._own(row, owner, now, ttl)

    def _own(self, row: _Row, owner: Owner, now: float, ttl: float) -> Lease:
        row.owner, row.token = owner.owner, row.token + 1
        self._owners[owner.owner] = (owner, now, ttl)
        return Lease(execution_id=row.columns.execution_id, owner=owner.owner, token=row.token)

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        self._owners[owner.owner] = (owner, now, ttl)

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        row = self._rows.get(execution_id)
        if row is None or row.owner is None:
            return False
        holder, seen, ttl = self._owners[row.owner]
        return may_take_over(holder, seen=seen, ttl=ttl, now=now)

    async def release(self, lease: Lease) -> None:
        row = self._rows.get(lease.execution_id)
        if row is not None and row.token == lease.token:
            row.owner, row.token = None, row.token + 1

    async def request_cancel(self, execution_id: str) -> bool:
        row = self._rows.get(execution_id)
        if row is None:
            return False
        row.cancel = True
        return True

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        return [name for name, row in self._rows.items() if row.cancel and row.owner == owner]

    async def delete(self, execution_id: str) -> bool:
        row = self._rows.pop(execution_id, None)
        if row is None:
            return False
        # An execution born later under this id starts above every token that was ever given out.
        self._floor = max(self._floor, row.token + 1)
        self._set_channels(execution_id, row.columns.channels, ())
        return True

    async def get(self, execution_id: str) -> Execution | None:
        check_text("execution_id", execution_id)
        row = self._rows.get(execution_id)
        return row.execution() if row else None

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        row = self._rows.get(execution_id)
        if row is None:
            return None
        wanted = len(row.bodies) - 1 if at is None else at
        if not 0 <= wanted < len(row.bodies):
            return None
        start = next(seq for seq in range(wanted, -1, -1) if row.bodies[seq][0])
        return Stored(
            execution=row.execution(),
            bodies=[(seq, row.bodies[seq][1]) for seq in range(start, wanted + 1)],
            log=[line for seq, line in row.log if seq <= wanted],
        )

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        row = self._rows.get(execution_id)
        return [(seq, base, body) for seq, (base, body) in enumerate(row.bodies)] if row else []

    async def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        if channel is None:
            candidates = list(reversed(self._rows.values()))
        else:
            found = [self._rows[name] for name in self._waiting.get(channel, ())]
            candidates = sorted(found, key=lambda row: row.number, reverse=True)
        left = -1 if limit is None else limit
        for row in candidates:
            if left == 0:
                return
            columns = row.columns
            if (
                (status is None or columns.status == status)
                and (due is None or (columns.wake_at is not None and columns.wake_at <= due))
                and (parent is None or columns.parent == parent)
            ):
                left -= 1
                yield row.execution()

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        since: dict[str, float] = {}
        for channel, waiting in self._waiting.items():
            for execution_id, at in self._mail.heads(channel, waiting):
                since[execution_id] = min(at, since.get(execution_id, at))
        for execution_id, row in self._rows.items():
            if row.columns.wake_at is not None and row.columns.wake_at <= now:
                at = row.columns.wake_at
                since[execution_id] = min(at, since.get(execution_id, at))
        found = [(at, row.number, row) for name, at in since.items() if (row := self._rows[name])]
        waiting_rows = [
            one for one in sorted(found, key=lambda one: one[:2]) if one[2].columns.status == WAITING
        ]
        return [row.execution() for _, _, row in waiting_rows[:limit]]

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        return self._mail.send(signal)

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        return self._mail.open(channel, to)[:limit]

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        for execution_id in to:
            check_text("to", execution_id)
        return self._mail.fan_out(signal_id, to)

    async def take(self, signal_id: str) -> bool:
        if not self._mail.has((signal_id,)):
            return False
        self._mail.spend(signal_id)
        return True

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        return self._mail.bury(signal_id, readable(reason), at)

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        return self._mail.dead(channel)[:limit]

    async def revive(self, signal_id: str) -> bool:
        return self._mail.revive(signal_id)

    async def put_config(self, digest: str, text: bytes) -> None:
        self._configs.setdefault(digest, text)

    async def get_config(self, digest: str) -> bytes | None:
        return self._configs.get(digest)

    async def get_blob(self, digest: str) -> bytes | None:
        return self._blobs.get(digest)

    async def kept(self, kind: Kind) -> Sequence[str]:
        names = self._blobs if kind == "blob" else self._configs
        return [digest for digest in names if len(digest) == DIGEST_LENGTH]

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        kept = self._blobs if kind == "blob" else self._configs
        found = [digest for digest in names if digest in kept and digest not in but]
        for digest in found:
            del kept[digest]
        return len(found)
