"""Which backends a machine file asks for: `persistence`, or else `settings.backends`.

    persistence: {backend: sqlite, db_path: runs.db}      # local: files in .checkpoints; memory
    settings: {backends: {persistence: sqlite, sqlite_path: runs.db}}
    settings: {backends: {persistence: "redis://localhost:6379/0"}}
    settings: {backends: {persistence: redis, redis_url: "redis://localhost:6379/0", locking: redis, results: redis}}
    settings: {backends: {persistence: dynamodb, dynamodb_table: runs, aws_region: eu-central-1}}

Every role takes a URL, or a bare name. A server with a bare name is where its field says (`redis_url`, `postgres_url`,
`consul_url`), or else where executions are kept, if that is a server of the kind, or else where the environment says
(`FLAT_REDIS_URL`, …). Paths are relative to the folder where the process runs. What is given on the command line or in
Python wins over the file. `roles` makes the backends.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

from flat.backends import store_opener
from flat.core.program import Program
from flat.errors import BadStoreURL, FlatError

MEMORY = "memory:"
LOCAL = "file:.checkpoints"
SQLITE_PATH = "flatmachines.sqlite"
"""Where the seed system keeps a database that has no name."""
SQLITE_VARIABLE = "FLATMACHINES_DB_PATH"


def configured_store(program: Program) -> str | None:
    """The URL of the store that the file asks for, or None when it leaves that open.

    `memory`, which is the seed system's default, leaves it open. Raises `BadStoreURL`.
    """
    persistence: Mapping[str, Any] = program.settings.get("persistence") or {}
    backends: Mapping[str, Any] = program.settings.get("backends") or {}
    if persistence.get("enabled") is False:
        return MEMORY
    if backend := persistence.get("backend"):
        field = "persistence.backend"
        return _url(field, place_of(field, str(backend), backends), persistence.get("db_path"))
    if (backend := backends.get("persistence")) and backend != "memory":
        field = "settings.backends.persistence"
        return _url(field, place_of(field, str(backend), backends), backends.get("sqlite_path"))
    return None


KINDS = {"rediss": "redis", "postgresql": "postgres", "files": "file"}
"""Schemes of URLs that go by another name in a file."""


def kind_of(place: str) -> str:
    """What kind of backend a name or a URL means: `redis`, `sqlite`, …"""
    scheme, colon, _ = place.partition(":")
    if not colon and place.endswith((".db", ".sqlite", ".sqlite3")):
        return "sqlite"
    return KINDS.get(scheme, scheme)


def place_of(field: str, named: str, backends: Mapping[str, Any], store: str | None = None) -> str:
    """The URL of a server or table that a file names, or the name itself where it says enough. `store`: a URL nearby.

    Raises `BadStoreURL`, with the name of the field.
    """
    if ":" in named or named not in ("redis", "postgres", "consul", "s3", "dynamodb"):
        return named
    if named == "dynamodb" and (table := backends.get("dynamodb_table")):
        return _table(str(table), backends.get("aws_region"))
    variable = f"FLAT_{named.upper()}_URL"
    near = store if store is not None and ":" in store and kind_of(store) == named else None
    if found := backends.get(f"{named}_url") or near or os.environ.get(variable):
        return str(found)
    beside = "dynamodb_table" if named == "dynamodb" else f"{named}_url"
    raise BadStoreURL(
        f'{field} is "{named}": that does not say where; write a URL there, such as "{named}://…", or {beside} '
        f"beside it, or set {variable}"
        + (
            ", or choose the store when you run it (--store, FLAT_STORE, persistence=…)"
            if field.endswith("persistence")
            else ""
        )
    )


def sqlite_place(backends: Mapping[str, Any]) -> str:
    """The database file of whatever in a file is `sqlite`."""
    place = backends.get("sqlite_path") or os.environ.get(SQLITE_VARIABLE) or SQLITE_PATH
    return os.path.expanduser(str(place))


WORKER_PLACES = frozenset(("backend", "db_path", "url", "registration"))


def with_places(args: Mapping[str, Any], settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The arguments of the hooks `distributed-worker`, with what the file says of work and registration.

    Hooks that say where their queue is are left alone.
    """
    backends: Mapping[str, Any] = settings.get("backends") or {}
    work, registration = backends.get("work"), backends.get("registration")
    if not (work or registration) or WORKER_PLACES & set(args):
        return args
    store = backends.get("persistence")
    queue = _place_args("work", str(work or registration), backends, store)
    register = _place_args("registration", str(registration or work), backends, store)
    return {**args, **queue, **({} if register == queue else {"registration": register})}


def _place_args(role: str, named: str, backends: Mapping[str, Any], store: Any) -> dict[str, str]:
    if kind_of(named) == "memory":
        return {"backend": "memory"}
    if named == "sqlite":
        return {"backend": "sqlite", "db_path": sqlite_place(backends)}
    field = f"settings.backends.{role}"
    url = place_of(field, named, backends, None if store is None else str(store))
    if kind_of(url) == "sqlite":
        return {"backend": "sqlite", "db_path": sqlite_file(field, url)}
    return {"backend": kind_of(url), "url": url}


def sqlite_file(field: str, url: str) -> str:
    """The path in a URL of a SQLite database, for what takes a path."""
    path = unquote(url.removeprefix("sqlite:").partition("?")[0])
    if path.startswith("//"):
        path = path[2:].removeprefix("/")
    if not path:
        raise BadStoreURL(f'{field} is "{url}", which names no path; write for example sqlite:///flat.db')
    return path


def _table(name: str, region: Any) -> str:
    """A table's URL. Without a region, it is where the usual places of AWS say."""
    return f"dynamodb://{quote(name)}" + (f"?region={quote(str(region))}" if region else "")


def _url(field: str, backend: str, path: Any) -> str:
    if backend == "local":
        return LOCAL
    if backend == "sqlite":
        return f"sqlite:///{quote(sqlite_place({'sqlite_path': path}))}"
    try:
        store_opener(backend)
    except FlatError as error:
        raise BadStoreURL(f'{field} is "{backend}": {error}') from error
    return backend
