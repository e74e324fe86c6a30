"""The tables of a SQLite store, how the file is opened, and what a database error means to people.

Bodies and log rows live in plain rowid tables whose key is `num << 32 | seq`: the rows of one execution lie
next to each other in order, appending touches one page, and no second index has to be kept.

What a transaction costs is mostly how many pages it touches, so there is no index that every move would have
to keep for a question asked once in a while: `find(status=...)` walks the executions, newest first.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import Literal

from flat.backends.sqlite.signals import SCHEMA as SIGNALS
from flat.errors import BackendError

Synchronous = Literal["NORMAL", "FULL"]

VERSION = 2
APPLICATION = 0x666C6174
"""`flat` in ASCII, in the file's header: tells our files from other people's."""

OLDEST = (3, 35)
"""The first release of SQLite (2021) with RETURNING and MATERIALIZED."""
BUSY_TIMEOUT = 5.0
"""Seconds to wait for another process's write before giving up."""

PAGE_SIZE = 1024
"""A quarter of SQLite's default: every commit logs whole pages, and most change some tens of bytes in a few.

A lone step takes 15 us in place of 19, parking and waking 210 us in place of 290, and a body of 1 KiB, with
an overflow page, 1.16 KB in place of 1.40. Bodies of 10 KB pay for it with 84 us in place of 64.
"""
CHECKPOINT_BYTES = 4_096_000
"""Size of the write-ahead log at which SQLite folds it into the file: its default, with its own pages."""

SCHEMA = """
CREATE TABLE executions (
    num INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL, kind TEXT NOT NULL, program TEXT NOT NULL, status TEXT NOT NULL,
    created_at REAL NOT NULL, parent TEXT, wake_at REAL, channels TEXT NOT NULL,
    owner TEXT, token INTEGER NOT NULL, cancel INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX executions_wake_at ON executions (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX executions_parent ON executions (parent) WHERE parent IS NOT NULL;
CREATE INDEX executions_cancel ON executions (owner) WHERE cancel = 1;
CREATE TABLE bodies (id INTEGER PRIMARY KEY, at INTEGER NOT NULL, base INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE log (id INTEGER PRIMARY KEY, seq INTEGER NOT NULL, body BLOB NOT NULL);
CREATE TABLE waits (channel TEXT NOT NULL, num INTEGER NOT NULL, PRIMARY KEY (channel, num)) WITHOUT ROWID;
CREATE TABLE owners (
    owner TEXT PRIMARY KEY, host TEXT NOT NULL, pid INTEGER NOT NULL,
    boot TEXT NOT NULL, started TEXT NOT NULL, seen REAL NOT NULL, ttl REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE kept (kind TEXT NOT NULL, digest TEXT NOT NULL, body BLOB NOT NULL, UNIQUE (kind, digest));
CREATE TABLE floor (token INTEGER NOT NULL);
INSERT INTO floor VALUES (0);
"""


def open_database(path: str, synchronous: Synchronous) -> sqlite3.Connection:
    """Open a store's file, creating it and its tables if need be."""
    if sqlite3.sqlite_version_info < OLDEST:
        raise BackendError(
            f"this Python comes with SQLite {sqlite3.sqlite_version}, and a store needs {'.'.join(map(str, OLDEST))} "
            "or newer: use another build of Python, or another store"
        )
    try:
        if path != ":memory:":
            Path(path).resolve().parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
        )
    except (OSError, ValueError, sqlite3.Error) as error:
        raise explain(error, path, "opening it") from error
    try:
        _prepare(connection, path, synchronous)
    except BaseException as error:
        connection.close()
        if isinstance(error, sqlite3.Error):
            raise explain(error, path, "opening it") from error
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str, synchronous: Synchronous) -> None:
    version = _version(connection)
    if version == 0:
        _refuse_foreign(connection, path)
    elif version != VERSION:
        raise BackendError(
            f"{path} has store format {version}, this version of flat writes format {VERSION}; "
            "use the version of flat that wrote it, or another file"
        )
    connection.execute(f"PRAGMA page_size = {PAGE_SIZE}")
    _enter_wal(connection)
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_BYTES // PAGE_SIZE}").fetchone()
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    if synchronous == "FULL":
        # On macOS an ordinary fsync does not reach the disk; elsewhere this does nothing.
        connection.execute("PRAGMA fullfsync = 1")
    if version == 0:
        _create(connection)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def _refuse_foreign(connection: sqlite3.Connection, path: str) -> None:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = [
        row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 4")
    ]
    if tables and application != APPLICATION and _version(connection) == 0:
        raise BackendError(
            f"{path} is a SQLite database of another program (tables {', '.join(tables)}); "
            "give the store its own file"
        )


def _enter_wal(connection: sqlite3.Connection) -> None:
    # Several processes that open a new file at once may deadlock on this switch; SQLite then answers "locked"
    # without waiting for the busy timeout.
    deadline = time.monotonic() + BUSY_TIMEOUT
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
        except sqlite3.OperationalError as error:
            if _code(error) not in ("SQLITE_BUSY", "SQLITE_LOCKED") or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Somebody else may have been quicker.
        if _version(connection) == 0:
            for statement in (SCHEMA + SIGNALS).split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _code(error: BaseException) -> str:
    """The primary SQLite result code, for example `SQLITE_FULL`; extended codes are cut to their family."""
    name = str(getattr(error, "sqlite_errorname", ""))
    return "_".join(name.split("_")[:2])


def explain(error: BaseException, path: str, doing: str) -> BackendError:
    """Say what a database error means, where it happened, and what to do about it."""
    match _code(error):
        case "SQLITE_BUSY" | "SQLITE_LOCKED":
            text = (
                f"is locked: another process kept a write transaction open for more than {BUSY_TIMEOUT:g} s; "
                f"see who has it open (`fuser {path}`), end that transaction, and try again"
            )
        case "SQLITE_FULL":
            text = (
                "cannot grow: the disk is full; free some space and resume, everything stored before is safe"
            )
        case "SQLITE_READONLY" | "SQLITE_PERM":
            text = (
                "cannot be written: the file or its folder is read-only for "
                f"{_user()}; change the permissions of both, or choose another path"
            )
        case "SQLITE_NOTADB":
            text = "is not a SQLite database; choose another path, or move that file away"
        case "SQLITE_CORRUPT":
            text = f"is damaged; restore a backup, or try `sqlite3 {path} .recover` on a copy"
        case "SQLITE_CANTOPEN":
            text = f"cannot be opened by {_user()}; check that its folder exists and may be written"
        case "SQLITE_IOERR":
            text = "cannot be read or written: the disk reports an error; check the disk and the system log"
        case _ if isinstance(error, sqlite3.ProgrammingError) and "closed" in str(error):
            text = "is closed; open the store again"
        case _:
            text = "failed"
    return BackendError(f"the store {path} {text} [while {doing}: {error}]")


def _user() -> str:
    return f"user {os.geteuid()}" if hasattr(os, "geteuid") else "this user"
