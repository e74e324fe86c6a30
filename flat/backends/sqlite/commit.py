"""The statements that write executions into a SQLite store, and the transaction around them.

Nothing in here awaits, and everything but `Transaction` expects the caller to hold the store's lock.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType

import orjson

from flat.backends.checks import CANCELLED, check_commit
from flat.backends.protocols import Birth, Commit, Head, Lease
from flat.backends.sqlite.schema import explain
from flat.backends.sqlite.signals import Mail
from flat.errors import NotStorable, SignalGone, StaleSnapshot

APPEND = "INSERT INTO bodies SELECT ?, ?, ?, ? FROM executions WHERE num = ? AND token = ?"
BEAR = """
INSERT INTO executions (id, name, kind, program, status, created_at, parent, wake_at, channels, owner, token)
SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?10, token + (?10 IS NOT NULL) FROM floor WHERE true ON CONFLICT (id) DO NOTHING
RETURNING num, token
"""
KEEP = "INSERT OR IGNORE INTO kept VALUES (?, ?, ?)"
SET_HEAD = """
UPDATE executions
SET status = ?, wake_at = ?, channels = ?, program = coalesce(?, program), cancel = cancel AND ?,
    owner = CASE WHEN ?6 THEN NULL ELSE owner END, token = token + ?6
WHERE num = ?
"""
RELEASE = "UPDATE executions SET owner = NULL, token = token + 1 WHERE num = ?"
GIVE_BACK = "UPDATE executions SET owner = NULL, token = token + 1 WHERE id = ? AND token = ?"


class Held:
    """What this process knows of an execution that it drives; `seq` -1 means that it must look again."""

    __slots__ = ("born", "channels", "num", "seq", "token")

    def __init__(self, num: int, token: int, born: float) -> None:
        self.num, self.token, self.born, self.seq = num, token, born, -1
        self.channels: tuple[str, ...] = ()


class Writer:
    """Writes rows through one connection, and remembers what it holds leases on (by execution id)."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.held: dict[str, Held] = {}
        self._connection = connection
        self._execute = connection.execute
        self.mail = Mail(connection)

    def append(self, commit: Commit) -> Held:
        """Store the body, if seq and token fit. One statement: good as a transaction of its own."""
        lease, seq = commit.lease, commit.seq
        held = self.held.get(lease.execution_id)
        if held is None or held.token != lease.token:
            held = self._look_up(lease, seq)
        if held.seq != seq - 1:
            self.refresh(held)
            if held.seq != seq - 1:
                raise StaleSnapshot(lease.execution_id, seq)
        num, at = held.num, since(held.born, commit.at)
        row = (num << 32 | seq, at, commit.base, commit.body, num, held.token)
        try:
            stored = self._execute(APPEND, row).rowcount
        except sqlite3.IntegrityError as error:
            self.forget(lease)
            raise StaleSnapshot(lease.execution_id, seq) from error
        if stored != 1:
            self.forget(lease)
            raise StaleSnapshot(lease.execution_id, seq)
        held.seq = seq
        return held

    def apply(self, commit: Commit) -> None:
        """Store all of a commit. If anything fails, the caller rolls back and forgets the lease."""
        check_commit(commit)
        held = self.append(commit)
        for signal_id in commit.consume:
            if not self.mail.spend(signal_id):
                raise SignalGone(commit.lease.execution_id)
        if commit.log:
            self._extend_log(held.num, commit.seq, commit.log)
        if commit.blobs:
            rows = [("blob", digest, body) for digest, body in commit.blobs.items()]
            self._connection.executemany(KEEP, rows)
        for signal in commit.send:
            self.mail.send(signal)
        for birth in commit.births:
            self.bear(birth)
        if commit.head is not None:
            self._set_head(held, commit.head, commit.release)
        elif commit.release:
            self._execute(RELEASE, (held.num,))
        if commit.release:
            self.forget(commit.lease)

    def bear(self, birth: Birth, owner: str | None = None) -> Held | None:
        """Store a new execution, which `owner` holds from the start; None if there is one of this id."""
        new, channels = birth.execution, tuple(birth.execution.channels)
        row = (new.execution_id, new.name, new.kind, new.program, new.status, new.created_at)
        born = self._execute(BEAR, (*row, new.parent, new.wake_at, pack_channels(channels), owner)).fetchone()
        if born is None:
            return None
        num, token = born
        at = since(new.created_at, new.updated_at)
        self._execute("INSERT INTO bodies VALUES (?, ?, 1, ?)", (num << 32, at, birth.body))
        self._wait(num, channels)
        held = Held(num, token, new.created_at)
        held.seq, held.channels = 0, channels
        return held

    def give_back(self, lease: Lease) -> None:
        """End a lease; nothing if it has ended."""
        self._execute(GIVE_BACK, (lease.execution_id, lease.token))

    def delete(self, execution_id: str) -> bool:
        """Remove an execution and its rows; False if there is none of this id."""
        row = self._execute(
            "SELECT num, token, channels FROM executions WHERE id = ?", (execution_id,)
        ).fetchone()
        if row is None:
            return False
        num, token, channels = row
        # An execution born later under this id, or this num, starts above every token given out so far.
        self._execute("UPDATE floor SET token = max(token, ?)", (token + 1,))
        self._execute("DELETE FROM bodies WHERE id BETWEEN ? AND ?", keys(num))
        self._execute("DELETE FROM log WHERE id BETWEEN ? AND ?", keys(num))
        self._stop_waiting(num, unpack_channels(channels))
        self._execute("DELETE FROM executions WHERE num = ?", (num,))
        self.held.pop(execution_id, None)
        return True

    def refresh(self, held: Held) -> None:
        """Read again what others may have changed."""
        (newest,) = self._execute(
            "SELECT max(id) FROM bodies WHERE id BETWEEN ? AND ?", keys(held.num)
        ).fetchone()
        held.seq = -1 if newest is None else newest & 0xFFFFFFFF
        row = self._execute("SELECT channels FROM executions WHERE num = ?", (held.num,)).fetchone()
        held.channels = unpack_channels(row[0]) if row else ()

    def forget(self, lease: Lease) -> None:
        """Drop what is known of a lease, after a refusal or a rollback: the next commit looks again."""
        held = self.held.get(lease.execution_id)
        if held is not None and held.token == lease.token:
            del self.held[lease.execution_id]

    def _look_up(self, lease: Lease, seq: int) -> Held:
        """Find an execution that another store object of this file acquired."""
        row = self._execute(
            "SELECT num, token, created_at FROM executions WHERE id = ?", (lease.execution_id,)
        ).fetchone()
        if row is None or row[1] != lease.token:
            raise StaleSnapshot(lease.execution_id, seq)
        held = self.held[lease.execution_id] = Held(*row)
        return held

    def _extend_log(self, num: int, seq: int, rows: Sequence[bytes]) -> None:
        first, last = keys(num)
        (newest,) = self._execute(
            "SELECT max(id) FROM log WHERE id BETWEEN ? AND ?", (first, last)
        ).fetchone()
        start = first if newest is None else newest + 1
        self._connection.executemany(
            "INSERT INTO log VALUES (?, ?, ?)", [(start + n, seq, row) for n, row in enumerate(rows)]
        )

    def _set_head(self, held: Held, head: Head, release: bool) -> None:
        packed = pack_channels(head.channels)
        answered = head.status == CANCELLED
        values = (head.status, head.wake_at, packed, head.program, not answered, release, held.num)
        self._execute(SET_HEAD, values)
        if (channels := tuple(head.channels)) != held.channels:
            self._stop_waiting(held.num, held.channels)
            self._wait(held.num, channels)
            held.channels = channels

    def _wait(self, num: int, channels: Iterable[str]) -> None:
        for channel in channels:
            self._execute("INSERT OR IGNORE INTO waits VALUES (?, ?)", (channel, num))

    def _stop_waiting(self, num: int, channels: Iterable[str]) -> None:
        for channel in channels:
            self._execute("DELETE FROM waits WHERE channel = ? AND num = ?", (channel, num))


class Transaction:
    """A transaction and the store's lock; errors of the database come out explained."""

    __slots__ = ("_begin", "_connection", "_doing", "_lock", "_path")

    def __init__(
        self, connection: sqlite3.Connection, lock: threading.RLock, path: str, doing: str, begin: str
    ) -> None:
        self._connection, self._lock, self._path = connection, lock, path
        self._doing, self._begin = doing, begin

    def __enter__(self) -> None:
        self._lock.acquire()
        try:
            self._connection.execute(self._begin)
        except BaseException as error:
            self._lock.release()
            if isinstance(error, sqlite3.Error):
                raise explain(error, self._path, self._doing) from error
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                try:
                    self._connection.execute("COMMIT")
                    return
                except sqlite3.Error as failed:
                    error = failed
            # Some errors, a full disk for one, have rolled back already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            if isinstance(error, sqlite3.Error):
                raise explain(error, self._path, self._doing) from error
            if isinstance(error, UnicodeEncodeError):
                raise NotStorable("name", "text with half a character") from error
        finally:
            self._lock.release()


def keys(num: int) -> tuple[int, int]:
    """The first and the last key that the bodies, or log rows, of an execution can have."""
    return num << 32, (num + 1 << 32) - 1


def since(born: float, at: float) -> int:
    """How a body's time is stored: milliseconds after the birth take one to four bytes, not eight."""
    return round((at - born) * 1000)


def pack_channels(channels: Iterable[str]) -> str:
    return orjson.dumps(list(channels)).decode() if channels else ""


def unpack_channels(text: str) -> tuple[str, ...]:
    return tuple(orjson.loads(text)) if text else ()
