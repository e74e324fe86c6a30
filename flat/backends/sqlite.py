"""A store in one SQLite file, for one machine and any number of its processes.

**One step is one statement.** A commit that brings a body and nothing else is a single autocommit INSERT
that checks the fencing token on its way: one page of write-ahead log, nothing rewritten. Whatever else a
commit may bring goes with it into one `BEGIN IMMEDIATE` transaction. The number and time of the newest body
are never copied to the execution's row; they are looked up when somebody asks.

**Steps that are ready together share a transaction.** While this store holds more than one lease, a commit
joins the open batch and lets the event loop go round once, and so does every start. Whoever is resumed first
writes the batch for everybody, and the others find their result. Nobody has to be woken, so the order of
resumption (which trio shuffles) does not matter, and no cancelled task can leave a batch behind: it takes its
own write out of one that is still open, and finds the others' written in one that is not. A refused member is
refused alone; a database error fails all members, and nothing of the batch is stored.

That turn of the loop is an ordinary one, in which a cancellation may come. A commit that it interrupts was
written by another member or was not; a start that it interrupts gives its lease back if it was. To shield the
turn would tell the two apart, and cost as much as the rest of a commit's way through Python.

**SQLite runs on the event loop's own thread**, fsync included. With `FULL`, a step of 64 executions at once
costs 17 us on the loop and 15-18 us through a worker thread; of 4 at once, 65-90 us and 95-130 us; and for
one at a time the hop to a thread costs several times the commit itself. A thread would buy a loop that goes
on during an fsync, but there is at most one fsync in a turn.

`NORMAL`, the default, survives the death of the process at any moment; when the *machine* loses power the
newest commits may be missing, never half there. `FULL` waits for the disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Sequence
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Self

from anyio.lowlevel import checkpoint

from flat.backends.checks import check_birth, check_signal, is_plain
from flat.backends.liveness import describe, may_take_over
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
from flat.backends.sqlite_commit import KEEP, Held, Transaction, Writer, keys, unpack_channels
from flat.backends.sqlite_schema import Synchronous, explain, open_database
from flat.backends.sqlite_signals import READY, dead_letters, dead_of, listing, signal_of
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, FlatError, NotStorable

SELECT = """
SELECT e.id, e.name, e.kind, e.program, e.status, b.id & 4294967295, e.created_at,
       e.created_at + b.at / 1000.0, e.parent, e.wake_at, e.channels, e.owner, e.token, e.num
FROM {source} JOIN bodies b
    ON b.id = (SELECT max(id) FROM bodies WHERE id BETWEEN e.num << 32 AND (e.num + 1 << 32) - 1)
WHERE {conditions}
"""
READY_ROWS = READY + SELECT.format(source="due r CROSS JOIN executions e ON e.num = r.num", conditions="true")
READY_ROWS += "ORDER BY r.since, r.num"
ONE = SELECT.format(source="executions e", conditions="e.id = ?")
STANDING = """
SELECT num, token, created_at, owner, channels,
       (SELECT max(id) FROM bodies WHERE id BETWEEN num << 32 AND (num + 1 << 32) - 1) & 4294967295
FROM executions WHERE id = ?
"""
BODIES = """
SELECT b.id & 4294967295, b.base, b.body
FROM executions e JOIN bodies b ON b.id BETWEEN e.num << 32 AND (e.num + 1 << 32) - 1
WHERE e.id = ? ORDER BY b.id
"""

PAGE = 256
"""Executions that `find` reads at a time, so that no read transaction is open while the caller works."""
LONE_COMMITS_PER_TURN = 64
"""A lone execution does not yield in its commits, save once in this many: heartbeats must get their turn."""
FORGET_OWNERS_AFTER = 86_400.0


class _Step:
    """A commit in a batch, and what became of it."""

    __slots__ = ("commit", "error", "stored")

    def __init__(self, commit: Commit) -> None:
        self.commit, self.stored = commit, False
        self.error: Exception | None = None


class _Start:
    """A `begin` in a batch, and what became of it: `held` is None if the id was taken."""

    __slots__ = ("birth", "error", "held", "now", "owner", "stored", "ttl")

    def __init__(self, birth: Birth, owner: Owner, now: float, ttl: float) -> None:
        self.birth, self.owner, self.now, self.ttl, self.stored = birth, owner, now, ttl, False
        self.error: Exception | None = None
        self.held: Held | None = None

    def lease(self) -> Lease | None:
        if self.held is None or not self.stored:
            return None
        execution_id = self.birth.execution.execution_id
        return Lease(execution_id=execution_id, owner=self.owner.owner, token=self.held.token)


_Member = _Step | _Start


class _Batch:
    """Writes that will share a transaction; closed once somebody has begun to write them."""

    __slots__ = ("closed", "members")

    def __init__(self) -> None:
        self.members: list[_Member] = []
        self.closed = False


class SQLiteStore:
    """A durable store in one file: `SQLiteStore("runs.db")`, `SQLiteStore("runs.db", synchronous="FULL")`."""

    def __init__(self, path: str | PathLike[str], synchronous: Synchronous = "NORMAL") -> None:
        if synchronous not in ("NORMAL", "FULL"):
            raise BackendError(f'synchronous is "NORMAL" or "FULL", not {synchronous!r}')
        self.path = fspath(path)
        self.synchronous = synchronous
        self._connection = open_database(self.path, synchronous)
        self._execute = self._connection.execute
        self._writer = Writer(self._connection)
        self._held, self._mail = self._writer.held, self._writer.mail
        # One store may serve event loops in several threads.
        self._lock = threading.RLock()
        self._heartbeats: dict[str, tuple[float, float]] = {}
        self._batch: _Batch | None = None
        self._configs: set[str] = set()
        self._lone_commits = 0

    def __repr__(self) -> str:
        return f"SQLiteStore({self.path!r}, synchronous={self.synchronous!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _transaction(self, doing: str, begin: str = "BEGIN IMMEDIATE") -> Transaction:
        return Transaction(self._connection, self._lock, self.path, doing, begin)

    # Commits

    async def commit(self, commit: Commit) -> None:
        if len(self._held) > 1 or self._batch is not None:
            await self._write_together(_Step(commit))
            return
        self._lone_commits += 1
        if self._lone_commits % LONE_COMMITS_PER_TURN == 0:
            await checkpoint()
        with self._lock:
            self._commit_alone(commit)

    def _commit_alone(self, commit: Commit) -> None:
        if is_plain(commit):
            try:
                self._writer.append(commit)
            except sqlite3.Error as error:
                raise explain(error, self.path, f"storing commit {commit.seq}") from error
            return
        try:
            with self._transaction(f"storing commit {commit.seq}"):
                self._writer.apply(commit)
        except BaseException:
            self._writer.forget(commit.lease)
            raise

    async def _write_together(self, member: _Member) -> None:
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

    def _withdraw(self, batch: _Batch, member: _Member) -> None:
        """A task was cancelled: take its write back if nobody has begun to store it."""
        with self._lock:
            if not batch.closed:
                batch.members.remove(member)
                if not batch.members:
                    batch.closed, self._batch = True, None
            elif isinstance(member, _Start) and (lease := member.lease()) is not None:
                # Nobody will ever hear of this lease, and our heartbeats would keep it.
                with contextlib.suppress(BackendError):
                    self._give_back(lease)

    def _write(self, batch: _Batch) -> None:
        batch.closed, self._batch = True, None
        members = batch.members
        stored = False
        try:
            with self._transaction(f"storing {len(members)} writes"):
                for member in members:
                    try:
                        self._write_member(member)
                    except FlatError as error:
                        member.error = error
            stored = True
        except BackendError as error:
            for member in members:
                # One exception object raised in many tasks would collect all their tracebacks.
                member.error = member.error or type(error)(*error.args)
        finally:
            for member in members:
                member.stored = stored and member.error is None
                if isinstance(member, _Start):
                    self._settle(member)
                elif not member.stored:
                    self._writer.forget(member.commit.lease)

    def _write_member(self, member: _Member) -> None:
        """Write one member of a batch; a refused one leaves no trace and does not disturb the others."""
        if isinstance(member, _Step) and is_plain(member.commit):
            self._writer.append(member.commit)
            return
        self._execute("SAVEPOINT member")
        try:
            if isinstance(member, _Step):
                self._writer.apply(member.commit)
            else:
                member.held = self._writer.begin(member.birth, member.owner.owner)
                if member.held is not None and not self._is_fresh(member.owner, member.now, member.ttl):
                    self._beat(member.owner, member.now, member.ttl)
                    self._heartbeats[member.owner.owner] = (member.now, member.ttl)
        except (FlatError, UnicodeEncodeError) as error:
            self._execute("ROLLBACK TO member")
            if isinstance(error, UnicodeEncodeError):
                raise NotStorable("name", "text with half a character") from error
            raise
        finally:
            if self._connection.in_transaction:
                self._execute("RELEASE member")

    def _settle(self, start: _Start) -> None:
        """Know what a start has acquired, or unlearn the heartbeat that was rolled back with it."""
        if not start.stored:
            self._heartbeats.pop(start.owner.owner, None)
        elif start.held is not None:
            self._held[start.birth.execution.execution_id] = start.held

    # Births and leases

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        with self._transaction("creating an execution"):
            return self._writer.bear(birth) != 0

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        start = _Start(birth, owner, now, ttl)
        await self._write_together(start)
        return start.lease()

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        with self._transaction("acquiring an execution"):
            row = self._execute(STANDING, (execution_id,)).fetchone()
            if row is None:
                raise ExecutionNotFound(execution_id)
            num, token, born, current, channels, newest = row
            if current is not None and current != owner.owner:
                self._refuse_living(execution_id, current, now)
            values = (owner.owner, token + 1, num)
            self._execute("UPDATE executions SET owner = ?, token = ? WHERE num = ?", values)
            if not (fresh := self._is_fresh(owner, now, ttl)):
                self._beat(owner, now, ttl)
        held = self._held[execution_id] = Held(num, token + 1, born)
        held.seq, held.channels = newest, unpack_channels(channels)
        if not fresh:
            self._heartbeats[owner.owner] = (now, ttl)
        return Lease(execution_id=execution_id, owner=owner.owner, token=token + 1)

    def _refuse_living(self, execution_id: str, current: str, now: float) -> None:
        row = self._execute(
            "SELECT host, pid, boot, started, seen, ttl FROM owners WHERE owner = ?", (current,)
        ).fetchone()
        if row is None:
            return
        host, pid, boot, started, seen, ttl = row
        holder = Owner(owner=current, host=host, pid=pid, boot=boot, started=started)
        if not may_take_over(holder, seen=seen, ttl=ttl, now=now):
            left = f"its lease ends in {seen + ttl - now:.0f} s unless it is kept up"
            raise ExecutionBusy(execution_id, describe(holder), left)

    def _is_fresh(self, owner: Owner, now: float, ttl: float) -> bool:
        """True when the owner's row needs no write: it was written a moment ago for another execution."""
        seen, kept_for = self._heartbeats.get(owner.owner, (0.0, -1.0))
        return kept_for == ttl and seen <= now < seen + ttl / 4

    def _beat(self, owner: Owner, now: float, ttl: float) -> None:
        if owner.owner not in self._heartbeats:
            self._execute("DELETE FROM owners WHERE seen + ttl < ?", (now - FORGET_OWNERS_AFTER,))
        self._execute(
            "INSERT OR REPLACE INTO owners VALUES (?, ?, ?, ?, ?, ?, ?)",
            (owner.owner, owner.host, owner.pid, owner.boot, owner.started, now, ttl),
        )

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        with self._transaction("sending a heartbeat"):
            self._beat(owner, now, ttl)
        self._heartbeats[owner.owner] = (now, ttl)

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        found = await self.get(execution_id)
        if found is None or found.owner is None:
            return False
        rows = self._read(
            "SELECT host, pid, boot, started, seen, ttl FROM owners WHERE owner = ?", (found.owner,)
        )
        if not rows:
            return True
        host, pid, boot, started, seen, ttl = rows[0]
        holder = Owner(owner=found.owner, host=host, pid=pid, boot=boot, started=started)
        return may_take_over(holder, seen=seen, ttl=ttl, now=now)

    async def release(self, lease: Lease) -> None:
        self._give_back(lease)

    def _give_back(self, lease: Lease) -> None:
        with self._transaction("releasing an execution"):
            self._execute(
                "UPDATE executions SET owner = NULL, token = token + 1 WHERE id = ? AND token = ?",
                (lease.execution_id, lease.token),
            )
            self._writer.forget(lease)

    async def request_cancel(self, execution_id: str) -> bool:
        with self._transaction("requesting a cancellation"):
            query = "UPDATE executions SET cancel = 1 WHERE id = ?"
            return self._execute(query, (execution_id,)).rowcount == 1

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        rows = self._read("SELECT id FROM executions WHERE cancel = 1 AND owner = ? ORDER BY num", (owner,))
        return [row[0] for row in rows]

    async def delete(self, execution_id: str) -> bool:
        with self._transaction("deleting an execution"):
            return self._writer.delete(execution_id)

    # Reading

    async def get(self, execution_id: str) -> Execution | None:
        rows = self._read(ONE, (execution_id,))
        return _execution(rows[0]) if rows else None

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        with self._transaction("loading an execution", "BEGIN"):
            row = self._execute(ONE, (execution_id,)).fetchone()
            if row is None:
                return None
            execution, (first, last) = _execution(row), keys(row[-1])
            wanted = execution.seq if at is None else at
            if not 0 <= wanted <= execution.seq:
                return None
            bodies: list[tuple[int, bytes]] = []
            query = "SELECT id, base, body FROM bodies WHERE id BETWEEN ? AND ? ORDER BY id DESC"
            for key, base, body in self._execute(query, (first, first + wanted)):
                bodies.append((key - first, body))
                if base:
                    break
            query = "SELECT body FROM log WHERE id BETWEEN ? AND ? AND seq <= ? ORDER BY id"
            log = [body for (body,) in self._execute(query, (first, last, wanted))]
        bodies.reverse()
        return Stored(execution=execution, bodies=bodies, log=log)

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        return [(seq, bool(base), body) for seq, base, body in self._read(BODIES, (execution_id,))]

    async def find(
        self,
        *,
        status: str | None = None,
        channel: str | None = None,
        due: float | None = None,
        parent: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Execution]:
        source, key = "executions e", "e.num"
        conditions = {"e.status = ?": status, "e.parent = ?": parent, "e.wake_at <= ?": due}
        if channel is not None:
            source, key = "waits w CROSS JOIN executions e ON e.num = w.num", "w.num"
            conditions = {"w.channel = ?": channel, **conditions}
        elif due is not None:
            # The plus keeps SQLite from walking all executions in order, in place of the few with timers.
            key = "+e.num"
        given = {condition: value for condition, value in conditions.items() if value is not None}
        query = SELECT.format(source=source, conditions=" AND ".join((*given, f"{key} < ?")))
        query += f"ORDER BY {key} DESC LIMIT ?"
        below, left = 1 << 62, limit
        while left is None or left > 0:
            wanted = PAGE if left is None else min(PAGE, left)
            rows = self._read(query, (*given.values(), below, wanted))
            for row in rows:
                yield _execution(row)
            if len(rows) < wanted:
                return
            below = rows[-1][-1]
            left = None if left is None else left - wanted
            await checkpoint()

    # Signals, configs, blobs

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        rows = self._read(READY_ROWS, (now, -1 if limit is None else limit))
        return [_execution(row) for row in rows]

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        with self._transaction("sending a signal"):
            return self._mail.send(signal)

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        return [signal_of(row) for row in self._read(*listing(channel, to, limit))]

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        with self._transaction("fanning a signal out"):
            return self._mail.fan_out(signal_id, to)

    async def take(self, signal_id: str) -> bool:
        with self._transaction("taking a signal"):
            return self._mail.spend(signal_id)

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        with self._transaction("burying a signal"):
            return self._mail.bury(signal_id, reason, at)

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        return [dead_of(row) for row in self._read(*dead_letters(channel, limit))]

    async def revive(self, signal_id: str) -> bool:
        with self._transaction("reviving a signal"):
            return self._mail.revive(signal_id)

    async def put_config(self, digest: str, text: bytes) -> None:
        # Configs are never taken out again, and every start of a machine puts the same one.
        if digest in self._configs:
            return
        with self._transaction("storing a config"):
            self._execute(KEEP, ("config", digest, text))
        self._configs.add(digest)

    async def get_config(self, digest: str) -> bytes | None:
        text = self._fetch("config", digest)
        if text is not None:
            self._configs.add(digest)
        return text

    async def get_blob(self, digest: str) -> bytes | None:
        return self._fetch("blob", digest)

    def _fetch(self, kind: str, digest: str) -> bytes | None:
        rows = self._read("SELECT body FROM kept WHERE kind = ? AND digest = ?", (kind, digest))
        return rows[0][0] if rows else None

    def _read(self, query: str, values: tuple[Any, ...]) -> list[Any]:
        with self._lock:
            try:
                return self._execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise explain(error, self.path, "reading") from error
            except UnicodeEncodeError as error:
                raise NotStorable("name", "text with half a character") from error


def _execution(row: Sequence[Any]) -> Execution:
    return Execution(
        execution_id=row[0],
        name=row[1],
        kind=row[2],
        program=row[3],
        status=row[4],
        seq=row[5],
        created_at=row[6],
        updated_at=row[7],
        parent=row[8],
        wake_at=row[9],
        channels=unpack_channels(row[10]),
        owner=row[11],
        token=row[12],
    )
