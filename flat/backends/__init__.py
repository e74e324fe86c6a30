"""Stores: executions at rest.

    store = open_store("sqlite:///runs.db")      # or "memory:", "file:runs/", "runs.db"

`protocols.py` says what a store must do, and `flat.testing.stores` checks one of your own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote

from flat.backends.liveness import this_process
from flat.backends.protocols import (
    Birth,
    CheckpointStore,
    Commit,
    DeadSignal,
    Execution,
    Head,
    Lease,
    Owner,
    Signal,
    Stored,
)
from flat.errors import BadStoreURL, UnknownName

if TYPE_CHECKING:
    from flat.backends.dynamodb.store import DynamoStore
    from flat.backends.files.store import FileStore
    from flat.backends.memory.store import MemoryStore
    from flat.backends.postgres.store import PostgresStore
    from flat.backends.redis.store import RedisStore
    from flat.backends.s3.store import S3Store
    from flat.backends.sqlite.store import SQLiteStore

__all__ = [
    "Birth",
    "CheckpointStore",
    "Commit",
    "DeadSignal",
    "DynamoStore",
    "Execution",
    "FileStore",
    "Head",
    "Lease",
    "MemoryStore",
    "Owner",
    "PostgresStore",
    "RedisStore",
    "S3Store",
    "SQLiteStore",
    "Signal",
    "Stored",
    "open_store",
    "store_opener",
    "this_process",
]

T = TypeVar("T")

# Loaded when used: a run in memory should not pay for the import of a database.
_HOMES = {
    "DynamoStore": "dynamodb.store", "FileStore": "files.store", "MemoryStore": "memory.store",
    "PostgresStore": "postgres.store", "RedisStore": "redis.store", "S3Store": "s3.store",
    "SQLiteStore": "sqlite.store",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(f"flat.backends.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


Opener = Callable[[], CheckpointStore]


def open_store(url: str) -> CheckpointStore:
    """The store at a URL.

    `memory:` · `sqlite:///relative.db` · `sqlite:////absolute.db` · `file:folder` · a path that ends in
    `.db`, `.sqlite` or `.sqlite3`. Options follow a question mark: `sqlite:///runs.db?synchronous=FULL`,
    `file:runs?fsync=true`. In a server: `redis://host:6379/0?prefix=flat`, `rediss://:${env:PASSWORD}@host/0`,
    `postgresql://user:${env:PASSWORD}@host/database?schema=flat`. In AWS: `dynamodb://table?region=eu-central-1`,
    `s3://bucket/folder?region=eu-central-1`.
    Raises `BadStoreURL`.
    """
    return store_opener(url)()


def store_opener(url: str) -> Opener:
    """What opens the store at a URL. The URL is checked here; nothing is touched before it is opened."""
    scheme, colon, rest = url.partition(":")
    # One letter before a colon is a drive.
    if not colon or len(scheme) == 1 or any(mark in scheme for mark in "/\\."):
        if url.endswith((".db", ".sqlite", ".sqlite3")):
            return _sqlite(url, {})
        raise UnknownName(
            "store", url, [f"{name}:" for name in (*SCHEMES, *SERVERS)] + ["a path ending in .db"]
        )
    if scheme in SERVERS:
        return SERVERS[scheme](url)
    if scheme not in SCHEMES:
        raise UnknownName("kind of store", scheme, [*SCHEMES, *SERVERS])
    path, _, query = rest.partition("?")
    return SCHEMES[scheme](unquote(path), dict(parse_qsl(query, keep_blank_values=True)))


def _memory(path: str, options: dict[str, str]) -> Opener:
    from flat.backends.memory.store import MemoryStore

    if path.strip("/"):
        raise BadStoreURL(f"memory: takes no path; for one that is kept, write file:{path}")
    _refuse_rest("memory", options)
    return MemoryStore


def _file(path: str, options: dict[str, str]) -> Opener:
    from flat.backends.files.store import FileStore

    fsync = _choose("fsync", options.pop("fsync", "false"), {"true": True, "false": False})
    _refuse_rest("file", options)
    return partial(FileStore, _path(path, "file:runs"), fsync=fsync)


def _sqlite(path: str, options: dict[str, str]) -> Opener:
    from flat.backends.sqlite.schema import Synchronous
    from flat.backends.sqlite.store import SQLiteStore

    levels: dict[str, Synchronous] = {"NORMAL": "NORMAL", "FULL": "FULL"}
    synchronous = _choose("synchronous", options.pop("synchronous", "NORMAL").upper(), levels)
    _refuse_rest("sqlite", options)
    return partial(SQLiteStore, _path(path, "sqlite:///runs.db"), synchronous)


def _redis(url: str) -> Opener:
    from flat.backends.redis.address import parse_url

    address = parse_url(url)

    def opener() -> CheckpointStore:
        from flat.backends.redis.store import RedisStore

        return RedisStore(address)

    return opener


def _postgres(url: str) -> Opener:
    from flat.backends.postgres.schema import client
    from flat.backends.postgres.store import PostgresStore
    from flat.backends.postgres.url import Address

    address = Address.parse(url)
    client()
    return partial(PostgresStore, address)


def _dynamodb(path: str, options: dict[str, str]) -> Opener:
    from flat.backends.dynamodb.store import parse

    return parse(path, options)


def _s3(path: str, options: dict[str, str]) -> Opener:
    from flat.backends.s3.store import parse

    return parse(path, options)


SCHEMES: dict[str, Callable[[str, dict[str, str]], Opener]] = {
    "memory": _memory,
    "file": _file,
    "files": _file,
    "sqlite": _sqlite,
    "dynamodb": _dynamodb,
    "s3": _s3,
}
SERVERS: dict[str, Callable[[str], Opener]] = {
    "redis": _redis,
    "rediss": _redis,
    "postgresql": _postgres,
    "postgres": _postgres,
}
"""Stores whose URL names a host, with a user and a password perhaps, and so is read as a whole."""


def _path(path: str, example: str) -> str:
    # `sqlite:///a` is the relative path `a`, `sqlite:////a` the absolute `/a`; `sqlite:a` is `a` too.
    if path.startswith("//"):
        host, slash, path = path[2:].partition("/")
        if host or not slash:
            raise BadStoreURL(f'a store has no host, and "{host}" stands where one would; write {example}')
    if not path:
        raise BadStoreURL(f"the URL names no path; write for example {example}")
    return path


def _choose(name: str, value: str, choices: dict[str, T]) -> T:
    if value not in choices:
        raise BadStoreURL(f'the option {name} of a store is {" or ".join(choices)}, not "{value}"')
    return choices[value]


def _refuse_rest(scheme: str, options: dict[str, str]) -> None:
    if options:
        raise BadStoreURL(f"a {scheme} store has no option {', '.join(options)}")
