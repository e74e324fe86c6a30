"""Queues, registers and triggers by the names that files give them. A client library is imported when it is needed."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from typing import Any

from flat.backends.triggers import FileTrigger, NoOpTrigger, SocketTrigger, TriggerBackend
from flat.backends.work import RegistrationBackend, WorkBackend
from flat.errors import BackendError, UnknownName

POOLS = {
    "memory": "memory.work:MemoryWorkBackend", "sqlite": "sqlite.work:SQLiteWorkBackend",
    "redis": "redis.work:RedisWorkBackend", "postgres": "postgres.work:PostgresWorkBackend",
    "dynamodb": "dynamodb.work:DynamoWorkBackend",
}  # fmt: skip
REGISTERS = {
    "memory": "memory.work:MemoryRegistrationBackend", "sqlite": "sqlite.work:SQLiteRegistrationBackend",
    "redis": "redis.work:RedisRegistrationBackend", "postgres": "postgres.register:PostgresRegistrationBackend",
    "dynamodb": "dynamodb.register:DynamoRegistrationBackend",
}  # fmt: skip
TRIGGERS = ("none", "file", "socket", "redis", "postgres")
SERVERS = {
    "redis": "redis://localhost:6379/0",
    "postgres": "postgresql:///",
    "dynamodb": "dynamodb://flat",
}
"""Kinds that have an address, and the one they have when none is given."""


def create_work_backend(
    type: str = "memory", *, db_path: str | os.PathLike[str] | None = None, **options: Any
) -> WorkBackend:
    """A work backend by its kind: `create_work_backend("sqlite", db_path="workers.sqlite")`."""
    made: WorkBackend = _class("work backend", type, POOLS)(**_placed(type, db_path, options))
    return made


def create_registration_backend(
    type: str = "memory", *, db_path: str | os.PathLike[str] | None = None, **options: Any
) -> RegistrationBackend:
    """A register of workers by its kind: `create_registration_backend("sqlite", db_path="workers.sqlite")`."""
    made: RegistrationBackend = _class("registration backend", type, REGISTERS)(
        **_placed(type, db_path, options)
    )
    return made


def create_trigger_backend(
    type: str = "none",
    *,
    base_path: str | os.PathLike[str] | None = None,
    socket_path: str | os.PathLike[str] | None = None,
    url: str | None = None,
    **more: Any,
) -> TriggerBackend:
    """A trigger by name: `create_trigger_backend("file", base_path="triggers")`."""
    if more:
        raise UnknownName("option of a trigger", next(iter(more)), ["base_path", "socket_path", "url"])
    match type:
        case "none":
            return NoOpTrigger()
        case "file":
            return FileTrigger(base_path)
        case "socket":
            return SocketTrigger(socket_path)
        case "redis":
            from flat.backends.redis.trigger import RedisTrigger

            return RedisTrigger(url or SERVERS["redis"])
        case "postgres":
            from flat.backends.postgres.trigger import PostgresTrigger

            return PostgresTrigger(url or SERVERS["postgres"])
    raise UnknownName("kind of trigger", type, TRIGGERS)


def _class(what: str, kind: str, known: Mapping[str, str]) -> Any:
    if kind not in known:
        raise UnknownName(f"kind of {what}", kind, list(known))
    module, _, name = known[kind].partition(":")
    return getattr(importlib.import_module(f"flat.backends.{module}"), name)


def _placed(kind: str, db_path: Any, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options, with the place that a backend of this kind needs."""
    if kind in SERVERS:
        if db_path is not None:
            raise BackendError(f'a backend in a server has no db_path; give url="{SERVERS[kind]}"')
        options = dict(options)
        return {"address": options.pop("url", SERVERS[kind]), **options}
    if db_path is None:
        return options
    if kind == "memory":
        raise BackendError('a backend in memory has no db_path; for one that is kept, choose "sqlite"')
    return {**options, "db_path": db_path}
