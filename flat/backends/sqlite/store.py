"""A store in one SQLite file, for one machine and any number of its processes.

**One step is one statement.** A commit that brings a body and nothing else is a single autocommit INSERT
that checks the fencing token on its way: one page of write-ahead log, nothing rewritten. Whatever else a
commit may bring goes with it into one `BEGIN IMMEDIATE` transaction. The number and time of the newest body
are never copied to the execution's row; they are looked up when somebody asks.

**Steps that are ready together share a transaction** (`group.py`). While this store holds more than one
lease, a commit joins the open batch and lets the event loop go round once, and so does every start and every
taking up. A refused member is refused alone; a database error fails all members, and nothing of the batch is
stored.

That turn of the loop is an ordinary one, in which a cancellation may come. A commit that it interrupts was
written by another member or was not; a lease that it interrupts is given back if it was. To shield the
turn would tell the two apart, and cost as much as the rest of a commit's way through Python.

**SQLite runs on the event loop's own thread**, fsync included. With `FULL`, a step of 64 executions at once
costs 17 us on the loop and 15-18 us through a worker thread; of 4 at once, 65-90 us and 95-130 us; and for
one at a time the hop to a thread costs several times the commit itself. A thread would buy a loop that goes
on during an fsync, but there is at most one fsync in a turn.

`NORMAL`, the default, survives the death of the process at any moment; when the *machine* loses power the
newest commits may be missing, never half there. `FULL` waits for the disk.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Collection, Sequence
from functools import cache
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Self

from anyio.lowlevel import checkpoint

from flat.backends.checks import check_birth, check_signal, is_plain
from flat.backends.liveness import may_take_over
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
from flat.backends.rows import execution_of
from flat.backends.sqlite.commit import KEEP, Transaction, keys, unpack_channels
from flat.backends.sqlite.group import HOLDER, Group, Return, Start, Step, Take
from flat.backends.sqlite.schema import Synchronous, explain, open_database
from flat.backends.sqlite.signals import READY, dead_letters, dead_of, listing, signal_of
from flat.backends.sweeping import DIGEST_LENGTH, Kind
from flat.errors import BackendError, NotStorable

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
BODIES = """
SELECT b.id & 4294967295, b.base, b.body
FROM executions e JOIN bodies b ON b.id BETWEEN e.num << 32 AND (e.num + 1 << 32) - 1
WHERE e.id = ? ORDER BY b.id
"""
NEWEST_FIRST = "SELECT id, base, body FROM bodies WHERE id BETWEEN ? AND ? ORDER BY id DESC"
LOG = "SELECT body FROM log WHERE id BETWEEN ? AND ? AND seq <= ? ORDER BY id"

PAGE = 256
"""Executions that `find` reads at a time, so that no read transaction is open while the caller works."""
LONE_COMMITS_PER_TURN = 64
"""A lone execution does not yield in its commits, save once in this many: heartbeats must get their turn."""


class SQLiteStore:
    """A durable store in one file: `SQLiteStore("runs.db")`, `SQLiteStore("runs.db", synchronous="FULL")`."""

    def __init__(self, path: str | PathLike[str], synchronous: Synchronous = "NORMAL") -> None:
        if synchronous not in ("NORMAL", "FULL"):
            raise BackendError(f'synchronous is "NORMAL" or "FULL", not {synchronous!r}')
        self.path = fspath(path)
        self.synchronous = synchronous
        self._connection = open_database(self.path, synchronous)
        self._execute = self._connection.execute
        # One store may serve event loops in several threads.
        self._lock = threading.RLock()
        self._group = Group(self._connection, self._lock, self._transaction, self._give_back)
        self._writer = self._group.writer
        self._mail = self._writer.mail
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
        if self._group.busy:
            await self._group.write(Step(commit))
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

    # Births and leases

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        with self._transaction("creating an execution"):
            return self._writer.bear(birth) is not None

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        start = Start(birth, owner, now, ttl)
        await self._group.write(start)
        return start.lease()

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        take = Take(execution_id, owner, now, ttl)
        await self._group.write(take)
        lease = take.lease()
        assert lease is not None
        return lease

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        with self._transaction("sending a heartbeat"):
            self._group.owners.beat(owner, now, ttl)
        self._group.owners.beats[owner.owner] = (now, ttl)

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        found = await self.get(execution_id)
        if found is None or found.owner is None:
            return False
        rows = self._read(HOLDER, (found.owner,))
        if not rows:
            return True
        host, pid, boot, started, seen, ttl = rows[0]
        holder = Owner(owner=found.owner, host=host, pid=pid, boot=boot, started=started)
        return may_take_over(holder, seen=seen, ttl=ttl, now=now)

    async def release(self, lease: Lease) -> None:
        if not self._group.busy:
            self._give_back(lease)
            return
        try:
            await self._group.write(Return(lease))
        except BaseException:
            self._give_back(lease)  # it does no harm twice, and a lease that is kept does
            raise

    def _give_back(self, lease: Lease) -> None:
        with self._transaction("releasing an execution"):
            self._writer.give_back(lease)
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
        # No transaction: what is there up to a number never changes, and whatever is deleted goes together. The bodies
        # are read last: if they are there, the log was.
        rows = self._read(ONE, (execution_id,))
        if not rows:
            return None
        execution, (first, last) = _execution(rows[0]), keys(rows[0][-1])
        wanted = execution.seq if at is None else at
        if not 0 <= wanted <= execution.seq:
            return None
        log = [body for (body,) in self._read(LOG, (first, last, wanted))]
        bodies = self._chain(first, first + wanted)
        if not bodies or bodies[-1][0] != wanted:
            return None  # deleted meanwhile
        return Stored(execution=execution, bodies=bodies, log=log)

    def _chain(self, first: int, last: int) -> list[tuple[int, bytes]]:
        """The newest base up to a key, and all deltas on it."""
        chain: list[tuple[int, bytes]] = []
        with self._lock:
            try:
                for key, base, body in self._execute(NEWEST_FIRST, (first, last)):
                    chain.append((key - first, body))
                    if base:
                        break
            except sqlite3.Error as error:
                raise explain(error, self.path, "reading") from error
        chain.reverse()
        return chain

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
        query = _search(source, key, *given)
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
        # Configs are hardly ever taken out again, and every start of a machine puts the same one.
        if digest in self._configs:
            return
        with self._transaction("storing a config"):
            self._execute(KEEP, ("config", digest, text))
        self._configs.add(digest)

    async def get_config(self, digest: str) -> bytes | None:
        text = self._fetch("config", digest)
        if text is not None:
            self._configs.add(digest)
        else:
            self._configs.discard(digest)
        return text

    async def get_blob(self, digest: str) -> bytes | None:
        return self._fetch("blob", digest)

    async def kept(self, kind: Kind) -> Sequence[str]:
        query = "SELECT digest FROM kept WHERE kind = ? AND length(digest) = ?"
        return [row[0] for row in self._read(query, (kind, DIGEST_LENGTH))]

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        removed = [name for name in names if name not in but]
        with self._transaction(f"removing {kind}s"):
            for name in removed:
                self._execute("DELETE FROM kept WHERE kind = ? AND digest = ?", (kind, name))
        self._configs.difference_update(removed)
        return len(removed)

    async def compact(self) -> bool:
        """Give the disk back what deleted rows took up. False if another process has the file in use just now."""
        with self._lock:
            try:
                self._execute("VACUUM")
                self._execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.OperationalError:
                return False
        return True

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


@cache
def _search(source: str, key: str, *conditions: str) -> str:
    """The query for a page of executions below a number."""
    select = SELECT.format(source=source, conditions=" AND ".join((*conditions, f"{key} < ?")))
    return f"{select}ORDER BY {key} DESC LIMIT ?"


def _execution(row: Sequence[Any]) -> Execution:
    return execution_of(row, unpack_channels(row[10]))
