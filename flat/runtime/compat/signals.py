"""Signals as the seed system names them, over this engine's stores, triggers and dispatching.

A signal backend is a store of which only the signals are used. Give the machines and the dispatcher one whose file is
that of the checkpoints, and a signal is consumed in the very commit by which a machine goes on. Where it is another
store, a signal first moves to where the checkpoints are, under the same id.

New code has `Runtime.signal` and `Runtime.dispatcher`.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import anyio
import orjson

from flat.backends import MemoryStore, SQLiteStore, open_store
from flat.backends import protocols as stores
from flat.backends.triggers import SocketTrigger, TriggerBackend
from flat.core.codec import Codec
from flat.core.program import Program
from flat.drivers.broadcast import NOBODY
from flat.errors import BadStoreURL, ExecutionNotFound, IncompatibleSnapshot, UnknownName
from flat.hooks import HooksRegistry
from flat.runtime.machine import Machine, program_of
from flat.runtime.outcome import Outcome
from flat.runtime.reading import signal_data
from flat.runtime.runtime import Runtime

log = logging.getLogger("flat")


@dataclass(frozen=True, slots=True)
class Signal:
    """A message that waits on a channel."""

    id: str
    channel: str
    data: Any
    created_at: str


@runtime_checkable
class SignalBackend(Protocol):
    """Keeps signals until somebody takes them, oldest first on each channel."""

    async def send(self, channel: str, data: Any) -> str: ...

    async def consume(self, channel: str) -> Signal | None: ...

    async def peek(self, channel: str) -> list[Signal]: ...

    async def channels(self) -> list[str]: ...


class StoreSignals:
    """The signals of a store, whatever kind it is."""

    def __init__(self, store: stores.CheckpointStore) -> None:
        self.store = store

    async def send(self, channel: str, data: Any) -> str:
        """Keep a signal; gives its id."""
        signal_id, now = str(uuid.uuid4()), datetime.now(UTC).timestamp()
        body = orjson.dumps(Codec().plain(data, "data", None))
        await self.store.send(stores.Signal(signal_id=signal_id, channel=channel, body=body, created_at=now))
        return signal_id

    async def consume(self, channel: str) -> Signal | None:
        """Take the oldest signal on a channel. Of several that try, one gets it."""
        while found := await self.store.signals(channel, to=NOBODY, limit=1):
            if await self.store.take(found[0].signal_id):
                return _shown(found[0])
        return None

    async def peek(self, channel: str) -> list[Signal]:
        """Every signal on a channel, without taking any."""
        return [_shown(signal) for signal in await self.store.signals(channel)]

    async def channels(self) -> list[str]:
        """The channels that have signals."""
        return sorted({signal.channel for signal in await self.store.signals()})


class MemorySignalBackend(StoreSignals):
    """Signals of this process."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())


class SQLiteSignalBackend(StoreSignals):
    """Signals in a SQLite file."""

    def __init__(self, db_path: str | PathLike[str] = "flatmachines.sqlite") -> None:
        super().__init__(SQLiteStore(db_path))


def create_signal_backend(
    type: str = "memory", *, db_path: str | PathLike[str] = "flatmachines.sqlite", url: str | None = None
) -> StoreSignals:
    """A signal backend by name: `create_signal_backend("sqlite", db_path="runs.db")`, or in a store at a URL."""
    if url is not None:
        return StoreSignals(open_store(url))
    if type == "memory":
        return MemorySignalBackend()
    if type == "sqlite":
        return SQLiteSignalBackend(db_path)
    if type in ("redis", "postgres", "dynamodb"):
        raise BadStoreURL(
            f'signals in {type} need to know where: create_signal_backend("{type}", url="{type}://…")'
        )
    raise UnknownName("kind of signal backend", type, ["memory", "sqlite", "redis", "postgres", "dynamodb"])


def _shown(signal: stores.Signal) -> Signal:
    at = datetime.fromtimestamp(signal.created_at, UTC).isoformat()
    return Signal(signal.signal_id, signal.channel, signal_data(signal), at)


async def send_and_notify(
    signal_backend: SignalBackend, trigger_backend: TriggerBackend, channel: str, data: Any
) -> str:
    """Keep a signal, then wake whoever listens. That nobody could be woken is no error: the signal is there."""
    signal_id = await signal_backend.send(channel, data)
    try:
        await trigger_backend.notify(channel)
    except Exception as error:
        log.debug("nobody was woken for %r: %s", channel, error)
    return signal_id


def same_store(one: object, other: object) -> bool:
    """Whether two store objects keep the same data: they are one, or are two on one file."""
    if isinstance(one, SQLiteStore) and isinstance(other, SQLiteStore):
        return one is other or (
            ":memory:" not in (one.path, other.path)
            and Path(one.path).resolve() == Path(other.path).resolve()
        )
    return one is other


async def move_signals(backend: Any, store: stores.CheckpointStore, channel: str | None = None) -> None:
    """Move the signals of a backend into the store where checkpoints are, and a commit can consume them.

    They are sent before they are taken out, under the same id: whatever happens in between, none is lost or doubled.
    """
    if isinstance(backend, StoreSignals):
        if not same_store(backend.store, store):
            for signal in await backend.store.signals(channel):
                if not await store.send(signal) and await _share_signals(backend.store, store):
                    return  # two objects on one place: what was "moved" would be gone
                await backend.store.take(signal.signal_id)
        return
    for name in await backend.channels() if channel is None else (channel,):
        while waiting := await backend.peek(name):
            # What a backend of somebody else's gives is taken out by its place alone: send the one that comes first.
            first = waiting[0]
            body = orjson.dumps(Codec().plain(first.data, "data", None))
            now = datetime.now(UTC).timestamp()
            await store.send(stores.Signal(signal_id=first.id, channel=name, body=body, created_at=now))
            if await backend.consume(name) is None:
                break


async def _share_signals(one: stores.CheckpointStore, other: stores.CheckpointStore) -> bool:
    """Whether what is sent to one store can be taken from another: whatever their addresses say, they are one place."""
    probe = stores.Signal(
        signal_id=f"probe/{uuid.uuid4()}", channel="flat/probe", body=b"null", created_at=0.0
    )
    await one.send(probe)
    return await other.take(probe.signal_id) or not await one.take(probe.signal_id)


# -- dispatching -------------------------------------------------------------------------------

ResumeFunction = Callable[[str, Any], Awaitable[Any]]


class MachineResumer:
    """Takes up an execution that a signal has come for. Override `resume`."""

    async def resume(self, execution_id: str, signal_data: Any) -> Any:
        raise NotImplementedError


class SignalDispatcher:
    """Gives each signal to everybody who waits on its channel, and resumes them.

    `resume_fn(execution_id, signal_data)`, or a resumer, takes an execution up; it consumes its copy itself. Without
    either nothing is resumed: the ids are returned, and the copies stay.
    """

    def __init__(
        self, signal_backend: Any, persistence_backend: Any, resume_fn: ResumeFunction | None = None, *,
        resumer: MachineResumer | None = None,
    ) -> None:  # fmt: skip
        self.signal_backend, self.persistence_backend = signal_backend, persistence_backend
        self._resume = resumer.resume if resumer is not None else resume_fn
        self._store = opened_store(persistence_backend)

    async def dispatch(self, channel: str) -> list[str]:
        """Deliver one signal. Gives the ids of those who were resumed."""
        return await self._dispatch(channel, set())

    async def dispatch_channel(self, channel: str, *, max_signals: int | None = None) -> list[str]:
        """Deliver until nobody is resumed any more, or so many signals were delivered."""
        resumed: list[str] = []
        served: set[tuple[str, str]] = set()
        count = 0
        while max_signals is None or count < max_signals:
            woken = await self._dispatch(channel, served)
            if not woken:
                break
            resumed += woken
            count += 1
        return resumed

    async def dispatch_all(self) -> dict[str, list[str]]:
        """Deliver what is there now, on every channel. Gives those who were resumed, by channel."""
        names = set(await self.signal_backend.channels())
        names |= {signal.channel for signal in await self._store.signals()}
        found: dict[str, list[str]] = {}
        for name in sorted(names):
            backlog = len(await self._store.signals(name))
            if not same_store(getattr(self.signal_backend, "store", None), self._store):
                backlog += len(await self.signal_backend.peek(name))
            if resumed := await self.dispatch_channel(name, max_signals=backlog):
                found[name] = resumed
        return found

    async def listen(self, socket_path: str | PathLike[str] | None = None, stop_event: Any = None) -> None:
        """Deliver all there is whenever somebody notifies the socket, until the event is set.

        An error while delivering is logged; the next notice may find it mended.
        """
        async with SocketTrigger(socket_path).listen() as woken, anyio.create_task_group() as group:

            async def stop() -> None:
                await stop_event.wait()
                group.cancel_scope.cancel()

            if stop_event is not None:
                group.start_soon(stop)
            while True:
                await woken.wait()
                try:
                    await self.dispatch_all()
                except Exception:
                    log.exception("the signals could not be delivered")

    async def _dispatch(self, channel: str, served: set[tuple[str, str]]) -> list[str]:
        store = self._store
        waiting = sorted([e.execution_id async for e in store.find(status="waiting", channel=channel)])
        if not waiting:
            return []
        await move_signals(self.signal_backend, store, channel)
        if oldest := await store.signals(channel, to=NOBODY, limit=1):
            await store.fan_out(oldest[0].signal_id, waiting)
        resumed = []
        for execution_id in waiting:
            copies = await store.signals(channel, to=execution_id, limit=1)
            if not copies or (execution_id, copies[0].signal_id) in served:
                continue
            served.add((execution_id, copies[0].signal_id))
            if await self._wake(execution_id, copies[0]):
                resumed.append(execution_id)
        return resumed

    async def _wake(self, execution_id: str, copy: stores.Signal) -> bool:
        if self._resume is None:
            return True
        try:
            await self._resume(execution_id, signal_data(copy))
        except Exception:
            log.exception("execution %s could not be resumed; its signal stays", execution_id)
            return False
        return True


def opened_store(persistence: Any) -> stores.CheckpointStore:
    """The store that an argument `persistence` means, opened."""
    store = getattr(persistence, "store", persistence)
    return open_store(store) if isinstance(store, str) else store


class ReferenceResolver(Protocol):
    """Finds what a configuration names by a path. Not needed here: stored programs are whole."""

    def __call__(
        self, *, machine_name: str, config_hash: str, ref_kind: str, ref_name: str, ref_value: str
    ) -> Any: ...


class ConfigStoreResumer(MachineResumer):
    """Takes executions up with the program that is stored with them, and the hooks given here.

    `config_store` and `ref_resolver` are accepted and not needed: what an execution was started with is in its store,
    with its agents and the machines it refers to.
    """

    def __init__(
        self,
        signal_backend: Any,
        persistence_backend: Any,
        config_store: Any = None,
        ref_resolver: ReferenceResolver | None = None,
        lifecycle_hooks: Any = None,
        hooks_registry: HooksRegistry | None = None,
        tool_provider: Any = None,
        *,
        hooks: Any = None,
    ) -> None:
        self.signal_backend, self.persistence_backend = signal_backend, persistence_backend
        self.config_store, self.ref_resolver = config_store, ref_resolver
        self.lifecycle_hooks, self.hooks, self.tool_provider = lifecycle_hooks, hooks, tool_provider
        self.hooks_registry = hooks_registry or HooksRegistry()
        self._store = opened_store(persistence_backend)

    def build_machine(self, execution_id: str, program: Program, origin: Path | None) -> Machine:
        """The machine to go on with. Override it for agents or actions of your own."""
        del execution_id
        return Machine(
            program,
            self.hooks_registry,
            shared_hooks=self.hooks,
            lifecycle_hooks=self.lifecycle_hooks,
            origin=origin,
            tool_provider=self.tool_provider,
        )

    async def resume(self, execution_id: str, signal_data: Any) -> Outcome:
        """Go on with an execution. The signal is not passed on: the machine consumes its own copy."""
        del signal_data
        execution = await self._store.get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        text = await self._store.get_config(execution.program)
        if text is None:
            raise IncompatibleSnapshot(f'the program of execution "{execution_id}" is not in this store')
        machine = self.build_machine(execution_id, *program_of(text))
        await move_signals(self.signal_backend, self._store)
        async with Runtime(self._store) as runtime:
            return await runtime.resume(execution_id, machine)


ConfigFileResumer = ConfigStoreResumer
