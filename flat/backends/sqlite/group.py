"""Group commit for a SQLite store: writes that are ready in the same turn of the event loop share one transaction.

Whoever is resumed first writes the batch for everybody, and the others find their result. Nobody has to be woken, so
the order of resumption (which trio shuffles) does not matter, and no cancelled task can leave a batch behind: it takes
its own write out of one that is still open, and finds the others' written in one that is not.

A batch is first written as if nobody would be refused. If somebody is, the transaction is rolled back and written again
with a savepoint around each member, so that a refused one leaves no trace and does not disturb the others: savepoints
would cost every batch what only a few need.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable

from anyio.lowlevel import checkpoint

from flat.backends.checks import is_plain
from flat.backends.liveness import describe, may_take_over
from flat.backends.protocols import Birth, Commit, Lease, Owner
from flat.backends.sqlite.commit import Held, Transaction, Writer, unpack_channels
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, FlatError, NotStorable

FORGET_OWNERS_AFTER = 86_400.0
STANDING = """
SELECT num, token, created_at, owner, channels,
       (SELECT max(id) FROM bodies WHERE id BETWEEN num << 32 AND (num + 1 << 32) - 1) & 4294967295
FROM executions WHERE id = ?
"""
HOLDER = "SELECT host, pid, boot, started, seen, ttl FROM owners WHERE owner = ?"


class _Refused(Exception):
    """A member cannot be written, as opposed to: the database fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class Owners:
    """The rows that say which processes live, and when this store last wrote those of its own."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.beats: dict[str, tuple[float, float]] = {}
        self._execute = connection.execute

    def is_fresh(self, owner: Owner, now: float, ttl: float) -> bool:
        """True when the owner's row needs no write: it was written a moment ago for another execution."""
        seen, kept_for = self.beats.get(owner.owner, (0.0, -1.0))
        return kept_for == ttl and seen <= now < seen + ttl / 4

    def beat(self, owner: Owner, now: float, ttl: float) -> None:
        """Write the owner's row, in the caller's transaction; `beats` is told when that is stored."""
        if owner.owner not in self.beats:
            self._execute("DELETE FROM owners WHERE seen + ttl < ?", (now - FORGET_OWNERS_AFTER,))
        self._execute(
            "INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?, ?, ?, ?)",
            (owner.owner, owner.host, owner.pid, owner.boot, owner.started, now, ttl),
        )

    def refuse_living(self, execution_id: str, current: str, now: float) -> None:
        """Raise `ExecutionBusy` if the owner that an execution has may be alive."""
        row = self._execute(HOLDER, (current,)).fetchone()
        if row is None:
            return
        host, pid, boot, started, seen, ttl = row
        holder = Owner(owner=current, host=host, pid=pid, boot=boot, started=started)
        if not may_take_over(holder, seen=seen, ttl=ttl, now=now):
            left = f"its lease ends in {seen + ttl - now:.0f} s unless it is kept up"
            raise ExecutionBusy(execution_id, describe(holder), left)


class Step:
    """A commit in a batch, and what became of it."""

    __slots__ = ("commit", "error", "plain", "stored")

    def __init__(self, commit: Commit) -> None:
        self.commit, self.plain, self.stored = commit, is_plain(commit), False
        self.error: Exception | None = None

    def write(self, group: Group) -> None:
        if self.plain:
            group.writer.append(self.commit)
        else:
            group.writer.apply(self.commit)

    def settle(self, group: Group) -> None:
        if not self.stored:
            group.writer.forget(self.commit.lease)


class Claim:
    """What makes an owner hold an execution: its lease is known when the transaction is stored."""

    __slots__ = ("beaten", "error", "held", "id", "now", "owner", "stored", "ttl")

    def __init__(self, execution_id: str, owner: Owner, now: float, ttl: float) -> None:
        self.id, self.owner, self.now, self.ttl = execution_id, owner, now, ttl
        self.stored = self.beaten = False
        self.error: Exception | None = None
        self.held: Held | None = None

    def lease(self) -> Lease | None:
        if self.held is None or not self.stored:
            return None
        return Lease(execution_id=self.id, owner=self.owner.owner, token=self.held.token)

    def write(self, group: Group) -> None:
        self.beaten, self.held = False, self.take(group)
        if self.held is not None and not group.owners.is_fresh(self.owner, self.now, self.ttl):
            group.owners.beat(self.owner, self.now, self.ttl)
            # The others of the batch need not write the row again.
            group.owners.beats[self.owner.owner] = (self.now, self.ttl)
            self.beaten = True

    def take(self, group: Group) -> Held | None:
        raise NotImplementedError

    def settle(self, group: Group) -> None:
        """Know what was claimed, or unlearn the heartbeat that was rolled back with it."""
        if not self.stored:
            if self.beaten:
                group.owners.beats.pop(self.owner.owner, None)
        elif self.held is not None:
            group.writer.held[self.id] = self.held


class Start(Claim):
    """A `begin` in a batch: `held` is None if the id was taken."""

    __slots__ = ("birth",)

    def __init__(self, birth: Birth, owner: Owner, now: float, ttl: float) -> None:
        super().__init__(birth.execution.execution_id, owner, now, ttl)
        self.birth = birth

    def take(self, group: Group) -> Held | None:
        return group.writer.bear(self.birth, self.owner.owner)


class Take(Claim):
    """An `acquire` in a batch."""

    __slots__ = ()

    def take(self, group: Group) -> Held | None:
        execute = group.connection.execute
        row = execute(STANDING, (self.id,)).fetchone()
        if row is None:
            raise ExecutionNotFound(self.id)
        num, token, born, current, channels, newest = row
        if current is not None and current != self.owner.owner:
            group.owners.refuse_living(self.id, current, self.now)
        values = (self.owner.owner, token + 1, num)
        execute("UPDATE executions SET owner = ?, token = ? WHERE num = ?", values)
        held = Held(num, token + 1, born)
        held.seq, held.channels = newest, unpack_channels(channels)
        return held


class Return:
    """A `release` in a batch."""

    __slots__ = ("error", "lease", "stored")

    def __init__(self, lease: Lease) -> None:
        self.lease, self.stored = lease, False
        self.error: Exception | None = None

    def write(self, group: Group) -> None:
        group.writer.give_back(self.lease)

    def settle(self, group: Group) -> None:
        group.writer.forget(self.lease)


Member = Step | Claim | Return


class _Batch:
    """Writes that will share a transaction; closed once somebody has begun to write them."""

    __slots__ = ("closed", "members")

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.closed = False


class Group:
    """The open batch of one store."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        lock: threading.RLock,
        transaction: Callable[[str], Transaction],
        give_back: Callable[[Lease], None],
    ) -> None:
        self.connection = connection
        self.writer = Writer(connection)
        self.owners = Owners(connection)
        self._lock, self._transaction, self._give_back = lock, transaction, give_back
        self._batch: _Batch | None = None

    @property
    def busy(self) -> bool:
        """Whether a write has company: others are ready, or may be in the same turn of the loop."""
        return len(self.writer.held) > 1 or self._batch is not None

    async def write(self, member: Member) -> None:
        """Have a write stored with whatever else is ready in this turn of the event loop."""
        with self._lock:
            batch = self._batch
            if batch is None:
                batch = self._batch = _Batch()
            batch.members.append(member)
        try:
            await checkpoint()
        except BaseException:
            self._withdraw(batch, member)
            raise
        # Whoever is writing in another thread's event loop has the lock until all is known.
        with self._lock:
            if not batch.closed:
                self._write(batch)
        if member.error is not None:
            raise member.error
        if not member.stored:
            raise BackendError("a write was not stored: the transaction that it shared was interrupted")

    def _withdraw(self, batch: _Batch, member: Member) -> None:
        """A task was cancelled: take its write back if nobody has begun to store it."""
        with self._lock:
            if not batch.closed:
                batch.members.remove(member)
                if not batch.members:
                    batch.closed, self._batch = True, None
            elif isinstance(member, Claim) and (lease := member.lease()) is not None:
                # Nobody will ever hear of this lease, and our heartbeats would keep it.
                with contextlib.suppress(BackendError):
                    self._give_back(lease)

    def _write(self, batch: _Batch) -> None:
        batch.closed, self._batch = True, None
        members = batch.members
        stored = False
        try:
            stored = self._all_at_once(members) or self._each_apart(members)
        except BackendError as error:
            for member in members:
                # One exception object raised in many tasks would collect all their tracebacks.
                member.error = member.error or type(error)(*error.args)
        finally:
            for member in members:
                member.stored = stored and member.error is None
                member.settle(self)

    def _all_at_once(self, members: list[Member]) -> bool:
        """Write all; False, and nothing is written, if one of them is refused."""
        try:
            with self._transaction(f"storing {len(members)} writes"):
                for member in members:
                    self._write_member(member)
        except _Refused as refused:
            for member in members:
                member.settle(self)
            if len(members) == 1:
                members[0].error = refused.error
            return len(members) == 1
        return True

    def _each_apart(self, members: list[Member]) -> bool:
        """Write all but the refused ones."""
        with self._transaction(f"storing {len(members)} writes"):
            for member in members:
                self.connection.execute("SAVEPOINT member")
                try:
                    self._write_member(member)
                except _Refused as refused:
                    self.connection.execute("ROLLBACK TO member")
                    member.error = refused.error
                finally:
                    if self.connection.in_transaction:
                        self.connection.execute("RELEASE member")
        return True

    def _write_member(self, member: Member) -> None:
        try:
            member.write(self)
        except FlatError as error:
            raise _Refused(error) from error
        except UnicodeEncodeError as error:
            raise _Refused(NotStorable("name", "text with half a character")) from error
