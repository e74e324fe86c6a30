"""Checkpoints and locks as the seed system names them, over this engine's stores.

A backend here is a store to give to `FlatMachine(persistence=…)`, and a view of it: what is stored can be listed, read
and removed in the seed system's terms. Checkpoints are written by the engine alone, each in one transaction.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import orjson

from flat.backends import FileStore, MemoryStore, SQLiteStore
from flat.backends.protocols import CheckpointStore, Execution
from flat.backends.sqlite.lock import SQLiteLock
from flat.core.snapshot import Snapshot
from flat.errors import DefinitionError, ExecutionNotFound
from flat.runtime.runtime import Runtime

EVENTS = {"done": "machine_end", "failed": "machine_end", "cancelled": "machine_end", "waiting": "waiting"}
STATUSES = {"machine_end": "done", "waiting": "waiting"}
LEAST_TTL, LEAST_PAUSE = 30, 5
"""Seconds that a lease lock in SQLite lasts, and between its renewals, at the least."""


@dataclass
class MachineSnapshot:
    """One execution at one moment."""

    execution_id: str
    machine_name: str
    spec_version: str
    current_state: str
    context: dict[str, Any]
    step: int
    created_at: str = ""
    event: str | None = None
    output: Any = None
    total_api_calls: int | None = None
    total_cost: float | None = None
    parent_execution_id: str | None = None
    pending_launches: list[Any] | None = None
    waiting_channel: str | None = None
    tool_loop_state: dict[str, Any] | None = None
    config_hash: str | None = None
    depth: int = 0


class StoreView:
    """What the backends of this module have in common. Keys are `ID/latest` and `ID/step_000001_EVENT.json`."""

    def __init__(self, store: CheckpointStore) -> None:
        self.store = store

    async def save(self, key: str, value: bytes) -> None:
        """Refused: nothing but the engine writes checkpoints."""
        del value
        raise DefinitionError(
            f"the checkpoint {key} cannot be written by hand; run, resume or fork an execution"
        )

    async def load(self, key: str) -> bytes | None:
        """The newest snapshot of an execution as JSON, or under `ID/latest` its key."""
        execution_id, _, name = key.rpartition("/")
        snapshot = await CheckpointManager(self, execution_id).load_latest()
        if snapshot is None:
            return None
        newest = f"step_{snapshot.step:06d}_{snapshot.event}.json"
        if name == "latest":
            return f"{execution_id}/{newest}".encode()
        return orjson.dumps(asdict(snapshot), default=str) if name == newest else None

    async def delete(self, key: str) -> None:
        """Remove the execution that the key belongs to."""
        await self.delete_execution(key.rpartition("/")[0])

    async def list_execution_ids(
        self, *, event: str | None = None, waiting_channel: str | None = None
    ) -> list[str]:
        """Ids of the executions whose newest checkpoint has this event, or waits on this channel."""
        found = self.store.find(status=STATUSES.get(event or ""), channel=waiting_channel)
        return sorted([e.execution_id async for e in found if event is None or event_of(e) == event])

    async def delete_execution(self, execution_id: str) -> None:
        await self.store.delete(execution_id)

    async def prune(self, *, max_age_seconds: float | None = None, max_count: int | None = None) -> int:
        """Remove executions last written longer ago, then all but the most recent. Gives how many went.

        Executions that run or wait are spared.
        """
        for name, limit in (("max_age_seconds", max_age_seconds), ("max_count", max_count)):
            if limit is not None and limit < 0:
                raise ValueError(f"{name} must be non-negative")
        oldest = None if max_age_seconds is None else datetime.now(UTC).timestamp() - max_age_seconds
        found = [e async for e in self.store.find() if event_of(e) == "machine_end"]
        found.sort(key=lambda e: (e.updated_at, e.execution_id), reverse=True)
        kept = [e for e in found if oldest is None or e.updated_at >= oldest][:max_count]
        gone = {e.execution_id for e in found} - {e.execution_id for e in kept}
        for execution_id in gone:
            await self.store.delete(execution_id)
        return len(gone)


PersistenceBackend = StoreView


class MemoryBackend(StoreView):
    """Checkpoints of this process."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())


class LocalFileBackend(StoreView):
    """Checkpoints in files."""

    def __init__(self, base_dir: str | Path = ".checkpoints") -> None:
        super().__init__(FileStore(str(base_dir)))


class SQLiteCheckpointBackend(StoreView):
    """Checkpoints in a SQLite file."""

    def __init__(self, db_path: str | Path = "flatmachines.sqlite") -> None:
        super().__init__(SQLiteStore(str(db_path)))

    @property
    def config_store(self) -> StoreConfigs:
        """Configs in the same file."""
        return StoreConfigs(self.store)


class CheckpointManager:
    """The checkpoints of one execution."""

    def __init__(self, backend: StoreView, execution_id: str) -> None:
        self.backend, self.execution_id = backend, execution_id

    async def load_latest(self) -> MachineSnapshot | None:
        """The newest snapshot, or None when there is no such execution."""
        execution = await self.backend.store.get(self.execution_id)
        if execution is None:
            return None
        async with Runtime(self.backend.store) as runtime:
            return shown(await runtime.inspect(self.execution_id), execution)

    async def load_status(self) -> tuple[str, str] | None:
        """Event and state of the newest snapshot."""
        snapshot = await self.load_latest()
        return None if snapshot is None else (str(snapshot.event), snapshot.current_state)

    async def save_checkpoint(self, snapshot: MachineSnapshot) -> None:
        """Refused, like `StoreView.save`."""
        await self.backend.save(f"{snapshot.execution_id}/step_{snapshot.step:06d}", b"")

    async def prune_checkpoints(
        self, max_age_seconds: float | None = None, max_count: int | None = None
    ) -> int:
        """Prune the whole backend, not this execution alone."""
        return await self.backend.prune(max_age_seconds=max_age_seconds, max_count=max_count)


def event_of(execution: Execution) -> str:
    """What the seed system calls the moment at which an execution stands."""
    return EVENTS.get(execution.status, "state_enter")


def shown(snapshot: Snapshot, execution: Execution) -> MachineSnapshot:
    """A snapshot in the seed system's terms."""
    root = snapshot.root
    return MachineSnapshot(
        execution_id=snapshot.execution_id,
        machine_name=execution.name,
        spec_version="",
        current_state=root.node,
        context=dict(root.context),
        step=snapshot.steps,
        created_at=datetime.fromtimestamp(snapshot.at, UTC).isoformat(),
        event=event_of(execution),
        output=snapshot.output,
        total_api_calls=snapshot.spent.calls,
        total_cost=snapshot.spent.cost,
        parent_execution_id=snapshot.parent,
        waiting_channel=execution.channels[0] if execution.channels else None,
        config_hash=execution.program,
        depth=snapshot.depth,
    )


async def clone_snapshot(
    snapshot: MachineSnapshot, new_execution_id: str, persistence: StoreView
) -> MachineSnapshot:
    """A new execution that stands where the given one stands."""
    async with Runtime(persistence.store) as runtime:
        await runtime.fork(snapshot.execution_id, new_id=new_execution_id)
    cloned = await CheckpointManager(persistence, new_execution_id).load_latest()
    if cloned is None:
        raise ExecutionNotFound(new_execution_id)
    return cloned


# -- configs ------------------------------------------------------------------------------


def config_hash(text: str) -> str:
    """SHA-256 of a config's text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


class ConfigStore(Protocol):
    """Texts by their own hash."""

    async def put(self, raw: str) -> str: ...

    async def get(self, hash: str) -> str | None: ...


class StoreConfigs:
    """The configs of a store."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    async def put(self, raw: str) -> str:
        digest = config_hash(raw)
        await self._store.put_config(digest, raw.encode())
        return digest

    async def get(self, hash: str) -> str | None:
        found = await self._store.get_config(hash)
        return None if found is None else found.decode()


class MemoryConfigStore(StoreConfigs):
    """Configs of this process."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())


class LocalFileConfigStore(StoreConfigs):
    """Configs in files."""

    def __init__(self, base_dir: str | Path = ".checkpoints") -> None:
        super().__init__(FileStore(str(base_dir)))


class SQLiteConfigStore(StoreConfigs):
    """Configs in a SQLite file."""

    def __init__(self, db_path: str | Path = "flatmachines.sqlite") -> None:
        super().__init__(SQLiteStore(str(db_path)))


# -- locks ----------------------------------------------------------------------------------


class ExecutionLock(Protocol):
    """A lock on an execution, besides the lease that each run has anyway."""

    async def acquire(self, key: str) -> bool: ...

    async def release(self, key: str) -> None: ...


class NoOpLock:
    """No lock but the lease."""

    async def acquire(self, key: str) -> bool:
        return True

    async def release(self, key: str) -> None:
        return None


@dataclass
class LocalFileLock:
    """Nobody else on this host drives the execution while this is held: an exclusive lock on a file."""

    lock_dir: str | Path = ".locks"
    _held: dict[str, Any] = field(default_factory=dict, repr=False)

    async def acquire(self, key: str) -> bool:
        """False when somebody has it, also if that is this very object."""
        import fcntl

        if key in self._held:
            return False
        folder = Path(self.lock_dir)
        folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - as short as the call after it
        name = key if key.replace("-", "").replace("_", "").isalnum() else config_hash(key)
        file = (folder / f"{name}.lock").open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._held[key] = file
        return True

    async def release(self, key: str) -> None:
        if (file := self._held.pop(key, None)) is not None:
            file.close()


class SQLiteLeaseLock(SQLiteLock):
    """A lock in a SQLite file, by the name the seed system gave it. Objects of one owner are one holder."""

    def __init__(
        self,
        db_path: str | Path,
        owner_id: str,
        phase: str = "machine",
        ttl_seconds: int = 300,
        renew_interval_seconds: int = 100,
    ) -> None:
        super().__init__(db_path, ttl=max(LEAST_TTL, ttl_seconds), owner=owner_id)
        self.pause = min(self.pause, max(LEAST_PAUSE, renew_interval_seconds))
        self.owner_id, self.phase = owner_id, phase
        self.ttl_seconds, self.renew_interval_seconds = ttl_seconds, renew_interval_seconds
