"""The backends of a machine file besides its store, made as `settings.backends` says.

    settings:
      backends:
        persistence: sqlite
        locking: redis            # beside the lease that every run has anyway
        results: redis            # outputs by URI, for whoever has no store in common with us
        signal: redis             # signals that come from elsewhere, and move into the store
        trigger: file             # told of every signal that is sent here
        redis_url: redis://localhost:6379/0

Where executions are kept decides much: a store has the leases, the signals and the outputs of its executions in itself,
and what commits them is one transaction. So a role that names the very place of the store needs nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import orjson

from flat.backends import open_store
from flat.backends.by_name import create_trigger_backend, create_work_backend
from flat.backends.results import PoolResults, ResultStore
from flat.backends.triggers import TriggerBackend
from flat.core.codec import Codec
from flat.errors import ExecutionBusy, UnknownName
from flat.runtime.compat.results import parse_uri
from flat.runtime.configured import kind_of, place_of, sqlite_file, sqlite_place
from flat.runtime.machine import Machine

log = logging.getLogger("flat")
T = TypeVar("T")


@dataclass
class Roles:
    """What surrounds the executions of a machine, each None where the store is enough."""

    lock: Any = None
    results: Any = None
    signals: Any = None
    trigger: TriggerBackend | None = None

    async def close(self) -> None:
        """Close what this made."""
        for one in (self.lock, self.results, getattr(self.signals, "store", None)):
            if (close := getattr(one, "close", None)) is not None:
                await close()

    def around(self, go: Callable[[Any], Awaitable[T]], execution_id: str) -> Callable[[Any], Awaitable[T]]:
        """`go`, with the lock held and the signals brought in, and everything closed afterwards."""

        async def guarded(runtime: Any) -> T:
            runtime.results = runtime.results or self.results
            runtime.trigger = runtime.trigger or self.trigger
            try:
                async with locked(self.lock, execution_id):
                    await take_signals(self.signals, runtime.kept)
                    return await go(runtime)
            finally:
                with anyio.CancelScope(shield=True):
                    await self.close()

        return guarded


@asynccontextmanager
async def locked(lock: Any, execution_id: str) -> AsyncIterator[None]:
    """Hold a lock for the block, and keep it if it wants to be kept. Raises `ExecutionBusy`.

    That a lock is lost meanwhile ends nothing: the lease of the store refuses whoever lost that.
    """
    if lock is None:
        yield
        return
    if not await lock.acquire(execution_id):
        raise ExecutionBusy(execution_id, hint="its lock is held")
    failed: BaseException | None = None
    try:
        async with anyio.create_task_group() as group:
            if (keep := getattr(lock, "keep", None)) is not None:
                group.start_soon(_keep, keep, execution_id)
            try:
                yield
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # raised below, where no group wraps it
                failed = error
            group.cancel_scope.cancel()
    finally:
        with anyio.CancelScope(shield=True):
            await lock.release(execution_id)
    if failed is not None:
        raise failed


async def _keep(keep: Callable[[], Awaitable[None]], execution_id: str) -> None:
    await keep()
    log.warning(
        "the lock on execution %s was lost; its lease in the store still keeps others out", execution_id
    )


async def take_signals(backend: Any, store: Any) -> None:
    """Move the signals of a backend of their own into the store, where a commit can consume them."""
    if backend is not None and store is not None:
        from flat.runtime.compat.signals import move_signals

        await move_signals(backend, store)


class StoredResults:
    """Results by URI in a result store of any kind: what `ResultBackend` asks for."""

    def __init__(self, store: ResultStore, codec: Codec | None = None) -> None:
        self.store = store
        self._codec = codec or Codec()

    async def write(self, uri: str, data: Any) -> None:
        parse_uri(uri)
        await self.store.put(uri, orjson.dumps(self._codec.plain(data, "result", None)))

    async def read(self, uri: str, block: bool = True, timeout: float | None = None) -> Any:
        """The result; when it is not there, wait for it at most `timeout` seconds, or give None at once."""
        parse_uri(uri)
        body: bytes | None = None
        if not block:
            body = await self.store.get(uri)
            return None if body is None else self._codec.value(orjson.loads(body), {})
        with anyio.move_on_after(timeout):
            body = await self.store.wait(uri)
        if body is None:
            raise TimeoutError(f"Timeout waiting for result at {uri}")
        return self._codec.value(orjson.loads(body), {})

    async def exists(self, uri: str) -> bool:
        return await self.store.get(uri) is not None

    async def delete(self, uri: str) -> None:
        await self.store.discard(uri)

    async def close(self) -> None:
        await self.store.close()


# -- by name --------------------------------------------------------------------------------------------


def configured_roles(machine: Machine, store: Any, *, given: Collection[str] = ()) -> Roles:
    """What a file asks for besides its store, which is at the URL `store`, or an object. Raises `BadStoreURL`.

    `given` are roles that somebody has backends for already: what the file says of those does not count.
    """
    said: Mapping[str, Any] = machine.program.settings.get("backends") or {}
    backends = {name: value for name, value in said.items() if name not in given}
    near = store if isinstance(store, str) else None
    made = _Making(backends, near, Codec(machine.bindings.types))
    return Roles(made.lock(), made.results(), made.signals(), made.trigger())


@dataclass(frozen=True, slots=True)
class _Making:
    backends: Mapping[str, Any]
    store: str | None
    codec: Codec

    def _place(self, role: str) -> tuple[str, str] | None:
        """The kind and the URL (or the name) of what a role is to be, or None if the file does not say."""
        named = self.backends.get(role)
        if not named:
            return None
        place = place_of(f"settings.backends.{role}", str(named), self.backends, self.store)
        return kind_of(place), place

    def _work(self, role: str, kind: str, place: str) -> Any:
        if kind == "sqlite":
            return create_work_backend("sqlite", db_path=self._file(role, place))
        return create_work_backend(kind, url=place)

    def _file(self, role: str, place: str) -> str:
        return (
            sqlite_place(self.backends)
            if place == "sqlite"
            else sqlite_file(f"settings.backends.{role}", place)
        )

    def lock(self) -> Any:
        if (found := self._place("locking")) is None:
            return None
        kind, place = found
        match kind:
            case "none":
                return None
            case "local":
                from flat.runtime.compat.persistence import LocalFileLock

                return LocalFileLock()
            case "consul":
                from flat.backends.consul import ConsulLock

                return ConsulLock(place)
            case _ if kind == kind_of(self.store or "") and place in (kind, self.store):
                return None  # the lease that the store has on each of its executions
            case "redis":
                from flat.backends.redis.lock import RedisLock

                return RedisLock(place)
            case "dynamodb":
                from flat.backends.dynamodb.lock import DynamoLock

                return DynamoLock(place)
            case "sqlite":
                from flat.backends.sqlite.lock import SQLiteLock

                return SQLiteLock(self._file("locking", place))
            case "postgres":
                from flat.backends.postgres.lock import PostgresLock

                return PostgresLock(place)
        raise UnknownName(
            "kind of lock", kind, ["none", "local", "sqlite", "redis", "consul", "dynamodb", "postgres"]
        )

    def results(self) -> Any:
        if (found := self._place("results")) is None or found[0] == "memory":
            return None
        kind, place = found
        if kind == "redis":
            from flat.backends.redis.results import RedisResults

            return StoredResults(RedisResults(place), self.codec)
        if kind == "postgres":
            from flat.backends.postgres.results import PostgresResults

            return StoredResults(PostgresResults(place), self.codec)
        if kind not in ("sqlite", "dynamodb"):
            raise UnknownName("kind of results", kind, ["memory", "sqlite", "redis", "postgres", "dynamodb"])
        return StoredResults(PoolResults(self._work("results", kind, place)), self.codec)

    def signals(self) -> Any:
        if (found := self._place("signal")) is None or found[0] == "memory":
            return None
        from flat.runtime.compat.signals import StoreSignals

        _, place = found
        if place == "sqlite":
            place = f"sqlite:///{sqlite_place(self.backends)}"
        if place == self.store:
            return None
        return StoreSignals(open_store(place))

    def trigger(self) -> TriggerBackend | None:
        if (found := self._place("trigger")) is None or found[0] == "none":
            return None
        kind, place = found
        path = place.partition(":")[2] or self.backends.get("trigger_path")
        if kind == "file":
            return create_trigger_backend(kind, base_path=path)
        if kind == "socket":
            return create_trigger_backend(kind, socket_path=path)
        if place == self.store:
            return None  # it wakes whoever listens in the very write that stores a signal
        return create_trigger_backend(kind, url=place)
