"""A lock by name in a SQLite file, for the processes of one host, whatever they keep their executions in.

    lock = SQLiteLock("locks.sqlite", ttl=30)

`backends.locks` has what it can do. One holder at a time, by this host's clock: a lock that is not renewed ends after
its `ttl`. Tokens come from a number in the file that only rises, in the transaction that takes the lock.

The tables stand in a store's file: the one that executions are kept in, or one of their own. It is opened when it is
first needed, and closed when nothing is held, because a lock made for one run is not told of its end.
"""

from __future__ import annotations

import time
from os import PathLike, fspath

from flat.backends.locks import TTL, LeaseLock, LockLease
from flat.backends.sqlite.work_file import DB_PATH, WorkFile
from flat.backends.work import Clock

SCHEMA = """
CREATE TABLE IF NOT EXISTS locks (
    key TEXT PRIMARY KEY, holder TEXT NOT NULL, token INTEGER NOT NULL, until REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lock_fence (one INTEGER PRIMARY KEY CHECK (one = 1), token INTEGER NOT NULL);
INSERT OR IGNORE INTO lock_fence VALUES (1, 0);
"""
FORGET = "DELETE FROM locks WHERE until <= ?"
NEXT = "UPDATE lock_fence SET token = token + 1 RETURNING token"
TAKE = """
INSERT INTO locks (key, holder, token, until) VALUES (?, ?, ?, ?)
ON CONFLICT (key) DO UPDATE SET token = excluded.token, until = excluded.until WHERE holder = excluded.holder
RETURNING 1
"""
THIS = "key = ? AND holder = ? AND token = ? AND until > ?"
EXTEND = f"UPDATE locks SET until = ? WHERE {THIS}"
GIVE_BACK = f"DELETE FROM locks WHERE {THIS}"
HOLDS = f"SELECT 1 FROM locks WHERE {THIS}"


class SQLiteLock(LeaseLock):
    """Locks by name in one file."""

    def __init__(
        self, db_path: str | PathLike[str] = DB_PATH, *, ttl: float = TTL, owner: str = "",
        clock: Clock = time.time,
    ) -> None:  # fmt: skip
        self.db_path = fspath(db_path)
        super().__init__(_File(self.db_path, clock), ttl=ttl, owner=owner)

    def __repr__(self) -> str:
        return f"SQLiteLock({self.db_path!r})"


class _File:
    def __init__(self, path: str, clock: Clock) -> None:
        self._path, self._clock = path, clock
        self._open: WorkFile | None = None
        self._taken: set[LockLease] = set()

    def _file(self) -> WorkFile:
        if self._open is None:
            file = WorkFile(self._path, "NORMAL")
            try:
                with file.transaction("creating the tables for locks"):
                    for statement in SCHEMA.split(";"):
                        file.execute(statement)
            except BaseException:
                file.close()
                raise
            self._open = file
        return self._open

    def _left(self) -> None:
        if not self._taken and self._open is not None:
            self._open.close()
            self._open = None

    async def take(self, key: str, holder: str, ttl: float) -> int | None:
        try:
            file, now = self._file(), self._clock()
            with file.transaction("acquiring a lock"):
                file.execute(FORGET, (now,))
                ((token,),) = file.execute(NEXT).fetchall()
                if not file.execute(TAKE, (key, holder, token, now + ttl)).fetchall():
                    return None
            self._taken = {lease for lease in self._taken if lease.key != key}
            self._taken.add(LockLease(key=key, holder=holder, token=token))
            return int(token)
        finally:
            self._left()

    async def extend(self, lease: LockLease, ttl: float) -> bool:
        now = self._clock()
        if extended := self._file().changed("renewing a lock", EXTEND, (now + ttl, *_this(lease, now))):
            return bool(extended)
        self._taken.discard(lease)
        self._left()
        return False

    async def give_back(self, lease: LockLease) -> None:
        try:
            self._file().changed("releasing a lock", GIVE_BACK, _this(lease, self._clock()))
        finally:
            self._taken.discard(lease)
            self._left()

    async def holds(self, lease: LockLease) -> bool:
        try:
            return bool(self._file().rows("looking at a lock", HOLDS, _this(lease, self._clock())))
        finally:
            self._left()

    async def close(self) -> None:
        self._taken.clear()
        self._left()


def _this(lease: LockLease, now: float) -> tuple[str, str, int, float]:
    return (lease.key, lease.holder, lease.token, now)
