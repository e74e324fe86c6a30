"""Looking into a store: what its executions hold and held, read without running any of their code."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from flat.backends.protocols import CheckpointStore, Execution, Owner, Signal
from flat.core.codec import Codec
from flat.core.snapshot import Snapshot
from flat.drivers.clock import Clock
from flat.drivers.keeper import collect_blobs, logged
from flat.errors import DefinitionError, ExecutionNotFound, IncompatibleSnapshot
from flat.runtime import history
from flat.runtime.history import LOOKING, Diff, Place
from flat.runtime.machine import Machine, program_of


class Reader:
    """The part of a `Runtime` that looks into its store, and forks what it finds there."""

    machines: Mapping[str, Machine]
    clock: Clock
    owner: Owner
    lease_seconds: float

    def opened(self) -> CheckpointStore:
        """The store."""
        raise NotImplementedError

    async def signals(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[Signal]:
        """The signals that nobody has taken yet, oldest first. `signal_data` reads one."""
        return await self.opened().signals(channel, limit=limit)

    async def inspect(self, execution_id: str, *, at: Place | None = None) -> Snapshot:
        """The snapshot of an execution: the newest, or the one at a commit number, `"seq:N"` or `"step:N"`.

        Runs none of its code.
        """
        return await self.stored(execution_id, LOOKING, at)

    async def stored(self, execution_id: str, codec: Codec, at: Place | None = None) -> Snapshot:
        return (await history.moment(self.opened(), execution_id, at, codec)).snapshot

    async def context(self, execution_id: str, *, at: Place | None = None) -> Mapping[str, Any]:
        """The context as it was at a moment, named as for `inspect`."""
        return (await self.inspect(execution_id, at=at)).root.context

    async def messages(self, execution_id: str) -> Sequence[Any]:
        """The messages of an execution's log, oldest first."""
        stored = await self.opened().load(execution_id)
        if stored is None:
            raise ExecutionNotFound(execution_id)
        return await logged(self.opened(), LOOKING, stored, await self.inspect(execution_id))

    async def diff(self, execution_id: str, a: Place, b: Place | None = None) -> Diff:
        """What is different at moment `b` (the newest one, if left out) from moment `a`."""
        store = self.opened()
        before = await history.moment(store, execution_id, a)
        return history.diff(before, await history.moment(store, execution_id, b))

    async def fork(
        self,
        execution_id: str,
        *,
        at: Place | None = None,
        set: Mapping[str, Any] | None = None,
        new_id: str | None = None,
    ) -> str:
        """Make a new execution of what another one held at a moment, and give its id. Nothing runs: resume it.

        `set` changes entries of its context. The original goes on as if nothing had happened.
        """
        if set is not None and not isinstance(set, Mapping):
            raise DefinitionError(f"what a fork sets is a mapping of context keys, not {type(set).__name__}")
        store = self.opened()
        execution = await store.get(execution_id)
        text = None if execution is None else await store.get_config(execution.program)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        if text is None:
            raise IncompatibleSnapshot(f'the program of execution "{execution_id}" is not in this store')
        machine = self.machines.get(execution.name)
        codec = LOOKING if machine is None else Codec(machine.bindings.types, opaque=True)
        source = await history.moment(store, execution_id, at, codec)
        forked = await history.fork(
            store, execution, program_of(text)[0], source, new_id=new_id or str(uuid.uuid4()), set=set or {},
            codec=codec, owner=self.owner, now=self.clock.now(), ttl=self.lease_seconds,
        )  # fmt: skip
        return forked.execution_id

    async def snapshots(self, execution_id: str) -> Sequence[tuple[int, Snapshot]]:
        """Every snapshot that was stored, with its commit number, oldest first."""
        store, codec = self.opened(), LOOKING
        found: deque[tuple[int, Snapshot]] = deque()
        blobs: dict[str, bytes] = {}
        for seq, base, body in await store.bodies(execution_id):
            await collect_blobs(store, body, blobs)
            snapshot = codec.snapshot(body, blobs) if base else codec.applied(found[-1][1], body, blobs)
            found.append((seq, snapshot))
        if not found:
            raise ExecutionNotFound(execution_id)
        return tuple(found)

    async def origin(self, execution_id: str) -> Path | None:
        """Where the machine of an execution was loaded from, as far as its store knows."""
        execution = await self.opened().get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        text = await self.opened().get_config(execution.program)
        return None if text is None else program_of(text)[1]

    async def list(
        self, *, status: str | None = None, parent: str | None = None, limit: int | None = None
    ) -> Sequence[Execution]:
        """The executions of the store, newest first; with `parent`, those that it started."""
        return [e async for e in self.opened().find(status=status, parent=parent, limit=limit)]


def signal_data(signal: Signal) -> Any:
    """What a stored signal says."""
    return LOOKING.value(orjson.loads(signal.body), {})
