"""The file in which work pools and the register of workers stand: its tables, and its transactions.

The file is a store's: the one that executions are kept in, or one of its own.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from os import PathLike, fspath
from types import TracebackType
from typing import Any, Self

from anyio.lowlevel import checkpoint

from flat.backends.sqlite.schema import Synchronous, explain, open_database
from flat.backends.work import Clock
from flat.errors import BackendError

DB_PATH = "workers.sqlite"
FORMAT = 1
TURNS = 64
"""Operations after which the event loop gets a turn: a worker that finds job after job must not starve heartbeats."""

SCHEMA = """
CREATE TABLE work_format (format INTEGER NOT NULL);
INSERT INTO work_format VALUES (1);
CREATE TABLE work_pools (num INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE work_jobs (
    num INTEGER PRIMARY KEY, pool INTEGER NOT NULL, status INTEGER NOT NULL, attempts INTEGER NOT NULL,
    max_retries INTEGER NOT NULL, created_at REAL NOT NULL, worker TEXT, claimed_at REAL, lease_until REAL,
    claim_key TEXT, error TEXT, data BLOB NOT NULL, result BLOB
);
CREATE INDEX work_pending ON work_jobs (pool, num) WHERE status = 0;
CREATE INDEX work_claimed ON work_jobs (pool, worker) WHERE status = 1;
CREATE INDEX work_ended ON work_jobs (pool, status, num) WHERE status > 1;
CREATE INDEX work_leases ON work_jobs (pool, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX work_keys ON work_jobs (pool, claim_key) WHERE claim_key IS NOT NULL;
CREATE TABLE work_workers (
    worker_id TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL, capabilities TEXT NOT NULL,
    pool_id TEXT NOT NULL, started_at REAL NOT NULL, status TEXT NOT NULL, last_heartbeat REAL NOT NULL,
    current_task_id TEXT, metadata TEXT NOT NULL
) WITHOUT ROWID;
"""


class WorkFile:
    """An open file with the tables for work."""

    def __init__(self, path: str | PathLike[str], synchronous: Synchronous) -> None:
        self.path = fspath(path)
        if synchronous not in ("NORMAL", "FULL"):
            raise BackendError(f'synchronous is "NORMAL" or "FULL", not {synchronous!r}')
        self.connection = open_database(self.path, synchronous)
        self.execute = self.connection.execute
        self.lock = threading.RLock()
        self._operations = 0
        try:
            self._create()
        except BaseException:
            self.connection.close()
            raise

    def _create(self) -> None:
        with self.transaction("creating the tables for work"):
            there = self.execute("SELECT 1 FROM sqlite_master WHERE name = 'work_format'").fetchone()
            if there is None:
                for statement in SCHEMA.split(";"):
                    self.execute(statement)
            (found,) = self.execute("SELECT format FROM work_format").fetchone()
        if found != FORMAT:
            raise BackendError(
                f"the work tables in {self.path} have format {found}, this version of flat writes format {FORMAT}; "
                "use the version of flat that wrote them, or another file"
            )

    async def turn(self) -> None:
        """Let the event loop go round, once in a while."""
        self._operations += 1
        if self._operations % TURNS == 0:
            await checkpoint()

    @contextmanager
    def transaction(self, doing: str) -> Iterator[None]:
        """All statements of the block, or none."""
        with self.lock:
            try:
                self.execute("BEGIN IMMEDIATE")
                yield
                self.execute("COMMIT")
            except sqlite3.Error as error:
                self._roll_back()
                raise explain(error, self.path, doing) from error
            except BaseException:
                self._roll_back()
                raise

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):
            if self.connection.in_transaction:
                self.execute("ROLLBACK")

    def rows(self, doing: str, query: str, values: Sequence[Any]) -> list[Any]:
        """One statement, which is a transaction of its own."""
        with self.lock:
            try:
                return self.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise explain(error, self.path, doing) from error

    def changed(self, doing: str, query: str, values: Sequence[Any]) -> int:
        """How many rows one statement changed."""
        with self.lock:
            try:
                return self.execute(query, values).rowcount
            except sqlite3.Error as error:
                raise explain(error, self.path, doing) from error

    def close(self) -> None:
        with self.lock:
            self.connection.close()


class FileBackend:
    """What the backends in such a file share: the file, a clock, and an end."""

    def __init__(
        self, db_path: str | PathLike[str] = DB_PATH, *, synchronous: Synchronous = "NORMAL",
        clock: Clock = time.time,
    ) -> None:  # fmt: skip
        self.clock = clock
        self.file = WorkFile(db_path, synchronous)

    @property
    def db_path(self) -> str:
        return self.file.path

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.db_path!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self.file.close()
