"""The queue of a store, and the workers on it: what `Runtime.enqueue`, `Runtime.worker` and `Runtime.revive` do.

A queued execution is an execution like any other, stored as it is before its first step. There is no queue beside the
store: what is stored is queued, and what is queued is stored.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from flat.backends.by_name import create_registration_backend
from flat.backends.liveness import is_gone
from flat.backends.protocols import CheckpointStore, Execution, Owner
from flat.backends.triggers import TriggerBackend
from flat.backends.work import Clock, RegistrationBackend, WorkerRecord
from flat.core.advance import begin, stopped
from flat.core.codec import Codec
from flat.core.events import Started
from flat.core.snapshot import FINISHED
from flat.drivers.draft import settle
from flat.drivers.keeper import birth_of
from flat.drivers.pool import Worker
from flat.drivers.stranded import forget_deaths, put_back
from flat.errors import DefinitionError, ExecutionBusy, ExecutionNotFound
from flat.runtime.given import check_id, check_limits, check_machine
from flat.runtime.machine import Machine

if TYPE_CHECKING:
    from flat.runtime.runtime import Runtime

_IN_MEMORY: WeakKeyDictionary[CheckpointStore, RegistrationBackend] = WeakKeyDictionary()
"""The register of each store in memory."""


PROCESS = "process"
"""What a worker tells its register: which process it is, in all that `is_gone` needs to know."""


def at_work(record: WorkerRecord) -> str:
    """The status of a worker, which is `gone` when its process was of this host and has died since it was heard of."""
    process = record.metadata.get(PROCESS)
    if record.status != "active" or not isinstance(process, Mapping):
        return record.status
    known = {name: process[name] for name in Owner.__dataclass_fields__ if name in process}
    return "gone" if is_gone(Owner(**known)) else record.status


async def enqueue(
    runtime: Runtime, machine: Machine, input: Mapping[str, Any] | None, *, execution_id: str | None,
    max_steps: int | None, max_agent_calls: int | None,
) -> str:  # fmt: skip
    """Store an execution for a worker to begin with, and give its id. Nothing of it runs here."""
    if input is not None and not isinstance(input, Mapping):
        raise DefinitionError(f"the input of a machine is a mapping, not {type(input).__name__}")
    check_machine(machine)
    check_limits(max_steps, max_agent_calls)
    if execution_id is not None:
        check_id(execution_id)
    store, now, limits = runtime.opened(), runtime.clock.now(), machine.program.limits
    execution_id = execution_id or str(uuid.uuid4())
    snapshot = begin(
        machine.program,
        execution_id,
        Started(settle(input or {}), now),
        max_steps=limits.max_steps if max_steps is None else max_steps,
        max_agent_calls=limits.max_agent_calls if max_agent_calls is None else max_agent_calls,
    )
    await runtime.keep_config(machine)
    birth = birth_of(machine.program, stopped(snapshot, "waiting", "", now), Codec(machine.bindings.types))
    birth = replace(birth, execution=replace(birth.execution, status="waiting", wake_at=now))
    if not await store.create(birth):
        raise ExecutionBusy(execution_id, hint="an execution with this id exists already; resume it")
    await wake(runtime)
    return execution_id


async def wake(runtime: Runtime) -> None:
    """Wake workers that are asleep, wherever they are."""
    store = runtime.opened()
    if isinstance(store, TriggerBackend):
        await store.notify("")
    if runtime.trigger is not None:
        await runtime.trigger.notify("")


def worker(
    runtime: Runtime, *, concurrency: int, attempts: int, poll: float, grace: float | None, name: str
) -> Worker:
    """A worker on the store of a runtime, which pauses what it runs when it is told to stop."""
    store = runtime.opened()
    made = Worker(
        store, runtime.resume, runtime.clock, concurrency, attempts, poll, owner=runtime.owner,
        lease_seconds=runtime.lease_seconds, name=name, register=register_of(store, runtime.clock.now), grace=grace,
        facts={PROCESS: asdict(runtime.owner)},
    )  # fmt: skip
    runtime.pausing = made.is_stopping
    return made


async def revive(runtime: Runtime, execution_id: str) -> bool:
    """Queue an execution that is buried, or that nobody drives. False if it is over."""
    store = runtime.opened()
    execution: Execution | None = await store.get(execution_id)
    if execution is None:
        raise ExecutionNotFound(execution_id)
    if execution.status in FINISHED:
        return False
    with runtime.claimed(execution_id):
        done = await put_back(
            store, execution_id, runtime.owner, now=runtime.clock.now(), ttl=runtime.lease_seconds
        )
    if done:
        # After it is queued, so that a process that dies in between has not lost the reason.
        await forget_deaths(store, execution_id)
        await wake(runtime)
    return done


def register_of(store: CheckpointStore, clock: Clock) -> Callable[[], RegistrationBackend] | None:
    """What opens the register of workers that stands beside the executions of a store. None: it has none."""
    kind = type(store).__name__
    place: Any = store
    if kind == "MemoryStore":
        return lambda: _IN_MEMORY.setdefault(store, create_registration_backend("memory", clock=clock))
    if kind == "SQLiteStore":
        return partial(
            create_registration_backend, "sqlite", db_path=place.path, synchronous=place.synchronous,
            clock=clock,
        )  # fmt: skip
    if kind in ("RedisStore", "PostgresStore"):
        named = kind.removesuffix("Store").lower()
        return partial(create_registration_backend, named, url=place.address, clock=clock)
    if kind == "DynamoStore":
        from flat.backends.dynamodb.register import DynamoRegistrationBackend

        return partial(DynamoRegistrationBackend, place.table.address, clock=clock)
    return None
