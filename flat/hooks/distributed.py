"""Actions with which machines share work: a queue of jobs, the workers that take them, and who looks after those.

    register_worker, claim_job, complete_job, fail_job, deregister_worker, heartbeat      what a worker does
    get_pool_state, calculate_spawn, spawn_workers                                        what a checker does
    list_stale_workers, reap_worker, reap_stale_workers                                   what a reaper does

All of them read their arguments from the context and write their results there; other actions pass. An action
that is done again after a crash finds what it did the first time: the same job is claimed, the same workers are
started. While a machine runs, its worker is heard of without its doing (`heartbeat_seconds`), so that a long job
does not look like a dead worker.

The queue and the register of workers are handed over; `flat.create_work_backend` and
`flat.create_registration_backend` make them. By name: `{name: distributed-worker, args: {db_path: workers.sqlite}}`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import anyio
import anyio.to_thread

from flat.errors import (
    ActionFailed,
    BackendError,
    DefinitionError,
    WorkerNotFound,
    WorkItemNotFound,
    WorkNotHeld,
)
from flat.hooks.base import Context, MachineHooks

HEARTBEAT_SECONDS = 15.0
STALE_SECONDS = 60.0
MAX_WORKERS = 3
log = logging.getLogger("flat.work")


class Job(Protocol):
    """What these hooks want to know of a job."""

    @property
    def id(self) -> str: ...
    @property
    def data(self) -> Any: ...
    @property
    def attempts(self) -> int: ...


class Pool(Protocol):
    """What these hooks want of a work pool."""

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> Job | None: ...
    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool: ...
    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None: ...
    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> Any: ...
    async def release_by_worker(self, worker_id: str) -> int: ...
    async def size(self) -> int: ...


class Work(Protocol):
    """What these hooks want of a work backend."""

    def pool(self, name: str) -> Pool: ...


class Worker(Protocol):
    """What these hooks want to know of a registered worker."""

    @property
    def worker_id(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def pool_id(self) -> str: ...
    @property
    def last_heartbeat(self) -> float: ...


class Register(Protocol):
    """What these hooks want of a registration backend."""

    async def register(self, worker: Any) -> Any: ...
    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None: ...
    async def update_status(self, worker_id: str, status: str) -> None: ...
    async def get(self, worker_id: str) -> Worker | None: ...
    async def list(self, filter: Any = None) -> Sequence[Worker]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Registration:
    """What a worker says about itself, in the shape that a registration backend takes."""

    worker_id: str
    host: str
    pid: int
    capabilities: tuple[str, ...]
    pool_id: str
    started_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which workers to list, in the shape that a registration backend takes."""

    status: str = "active"
    capability: str | None = None
    stale_threshold_seconds: float | None = None
    pool_id: str | None = None


StartWorker = Callable[[str, Mapping[str, Any], str], Awaitable[None]]
"""Starts a machine: (path, input, execution id). It does not wait for its end."""


class DistributedWorkerHooks(MachineHooks):
    """The actions of workers, checkers and reapers, on a register of workers and a work backend.

    With `lease_seconds`, a claimed job returns to the queue by itself when its worker is no longer heard of; without,
    a reaper returns it. `start_worker` says how a worker is started; by default as `flat run PATH` in a process of
    its own, where the project file beside the machine names its hooks.
    """

    ACTIONS: ClassVar[frozenset[str]] = frozenset(
        {
            "get_pool_state",
            "claim_job",
            "complete_job",
            "fail_job",
            "register_worker",
            "deregister_worker",
            "heartbeat",
            "list_stale_workers",
            "reap_worker",
            "reap_stale_workers",
            "calculate_spawn",
            "spawn_workers",
        }
    )

    def __init__(
        self,
        registration: Register,
        work: Work,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        lease_seconds: float | None = None,
        worker_config_path: str | None = None,
        start_worker: StartWorker | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if heartbeat_seconds <= 0 or (lease_seconds is not None and lease_seconds <= 0):
            raise DefinitionError("heartbeat_seconds and lease_seconds are numbers of seconds above 0")
        self.registration, self.work, self.clock = registration, work, clock
        self.lease_seconds, self.worker_config_path = lease_seconds, worker_config_path
        self.heartbeat_seconds = min(heartbeat_seconds, (lease_seconds or heartbeat_seconds * 3) / 3)
        self.start_worker: StartWorker = start_worker or start_process
        self._workers: dict[str, str] = {}
        """The workers that this object speaks for, and the execution that each of them is."""
        self._jobs: dict[str, tuple[str, str]] = {}
        """Pool and job in the hands of each of them."""

    async def on_action(self, state_name: str, action_name: str, context: Context) -> Context:
        if action_name in self.ACTIONS:
            await getattr(self, action_name)(context)
        return context

    # -- workers ------------------------------------------------------------------------------

    async def register_worker(self, context: Context) -> None:
        worker_id = _text(context, "worker_id") or f"worker-{_digest(context, 'worker')[:8]}"
        given = context.get("capabilities") or ()
        now = self.clock()
        await self.registration.register(
            Registration(
                worker_id=worker_id,
                host=socket.gethostname(),
                pid=os.getpid(),
                capabilities=(given,) if isinstance(given, str) else tuple(map(str, given)),
                pool_id=_pool_id(context),
                started_at=now,
            )
        )
        self._workers[worker_id] = _execution(context)
        context.update(worker_id=worker_id, status="active", registered_at=_moment(now))

    async def deregister_worker(self, context: Context) -> None:
        worker_id = _required(context, "worker_id", "deregister_worker")
        self._workers.pop(worker_id, None)
        self._jobs.pop(worker_id, None)
        await self.registration.update_status(worker_id, "terminated")

    async def heartbeat(self, context: Context) -> None:
        worker_id = _required(context, "worker_id", "heartbeat")
        self._workers[worker_id] = _execution(context)
        await self.registration.heartbeat(worker_id)

    async def claim_job(self, context: Context) -> None:
        """Take a job. Done again after a crash, by the same visit of a state, it takes the same job."""
        worker_id, pool_id = _required(context, "worker_id", "claim_job"), _pool_id(context)
        place = _place(context)
        item = await self.work.pool(pool_id).claim(worker_id, lease=self.lease_seconds, key=place or None)
        if item is None:
            context.update(job=None, job_id=None, job_attempt=None)
            return
        self._workers[worker_id] = _execution(context)
        self._jobs[worker_id] = (pool_id, item.id)
        context.update(job=item.data, job_id=item.id, job_attempt=item.attempts)

    async def complete_job(self, context: Context) -> None:
        """The job is done. Raises `WorkNotHeld` when it has been given to another worker meanwhile."""
        pool_id, job_id = _pool_id(context), _required(context, "job_id", "complete_job")
        worker_id = _text(context, "worker_id") or None
        self._let_go(worker_id)
        try:
            await self.work.pool(pool_id).complete(job_id, context.get("result"), worker_id=worker_id)
        except WorkItemNotFound:
            # A completed job is gone. Most likely it was us, and the process died before that was recorded.
            log.warning("job %s of pool %s is not there: it was completed before", job_id, pool_id)

    async def fail_job(self, context: Context) -> None:
        """The attempt failed, for the reason in `error` or, where a state's error led here, in `last_error`."""
        pool_id, job_id = _pool_id(context), _required(context, "job_id", "fail_job")
        worker_id = _text(context, "worker_id") or None
        error = context.get("error")
        self._let_go(worker_id)
        try:
            reason = context.get("last_error") if error is None else error
            await self.work.pool(pool_id).fail(job_id, reason, worker_id=worker_id)
        except (WorkItemNotFound, WorkNotHeld) as gone:
            log.warning("job %s of pool %s is not ours to fail any more: %s", job_id, pool_id, gone)

    def _let_go(self, worker_id: str | None) -> None:
        if worker_id is not None:
            self._jobs.pop(worker_id, None)

    # -- reapers ------------------------------------------------------------------------------------

    async def list_stale_workers(self, context: Context) -> None:
        threshold = _number(context, "stale_threshold_seconds", STALE_SECONDS)
        stale = [
            {
                "worker_id": record.worker_id,
                "last_heartbeat": _moment(record.last_heartbeat),
                "host": record.host,
                "pool_id": record.pool_id,
            }
            for record in await self.registration.list(Wanted(stale_threshold_seconds=threshold))
        ]
        # The document of the seed system has both names, one for writing and one for reading.
        context.update(workers=stale, stale_workers=list(stale), stale_count=len(stale))

    async def reap_worker(self, context: Context) -> None:
        worker = context.get("worker")
        if not isinstance(worker, Mapping) or not worker.get("worker_id"):
            raise _missing('a "worker" with a worker_id', "reap_worker")
        released = await self._reap(worker, context)
        reaped = None if released is None else str(worker["worker_id"])
        context.update(reaped_worker_id=reaped, jobs_released=released or 0)

    async def reap_stale_workers(self, context: Context) -> None:
        listed = context.get("stale_workers") or context.get("workers") or []
        reaped, total = [], 0
        for worker in listed:
            released = await self._reap(worker, context)
            if released is not None:
                reaped.append(str(worker["worker_id"]))
                total += released
        context.update(reaped_workers=reaped, reaped_count=len(reaped), total_jobs_released=total)

    async def _reap(self, worker: Mapping[str, Any], context: Context) -> int | None:
        """Declare a worker lost and put its jobs back; None for one that was heard of since it was listed."""
        worker_id = str(worker["worker_id"])
        record = await self.registration.get(worker_id)
        listed = worker.get("last_heartbeat")
        if record is not None and listed is not None and _moment(record.last_heartbeat) != listed:
            log.info("worker %s was heard of again and is not reaped", worker_id)
            return None
        pool_id = str(worker.get("pool_id") or (record.pool_id if record else "") or _pool_id(context))
        # In this order: who dies in between leaves a lost worker whose jobs are put back by doing it again.
        if record is not None:
            await self.registration.update_status(worker_id, "lost")
        return await self.work.pool(pool_id).release_by_worker(worker_id)

    # -- checkers -------------------------------------------------------------------------------------

    async def get_pool_state(self, context: Context) -> None:
        pool_id = _pool_id(context)
        active = await self.registration.list(Wanted(pool_id=pool_id))
        context.update(queue_depth=await self.work.pool(pool_id).size(), active_workers=len(active))

    async def calculate_spawn(self, context: Context) -> None:
        """How many workers to start: one for each job up to `max_workers`. Override it for another rule."""
        depth, active = _count(context, "queue_depth", 0), _count(context, "active_workers", 0)
        needed = min(depth, _count(context, "max_workers", MAX_WORKERS))
        missing = max(0, needed - active)
        context.update(workers_needed=needed, workers_to_spawn=missing, spawn_list=list(range(missing)))

    async def spawn_workers(self, context: Context) -> None:
        """Start `workers_to_spawn` workers. Done again after a crash, it starts none a second time."""
        count = _count(context, "workers_to_spawn", 0)
        path = _text(context, "worker_config_path") or self.worker_config_path
        if count > 0 and not path:
            raise _missing("worker_config_path, the worker's machine file", "spawn_workers")
        spawned = []
        for i in range(count):
            digest = _digest(context, str(i))
            worker_id = f"worker-{digest[:8]}"
            given = {"pool_id": _pool_id(context), "worker_id": worker_id}
            await self.start_worker(str(path), given, f"{worker_id}-{digest[8:24]}")
            spawned.append(worker_id)
        context.update(spawned_ids=spawned, spawned_count=len(spawned))

    # -- being heard of -----------------------------------------------------------------------------------

    async def on_background(self, context: Context) -> None:
        """Send heartbeats, and keep leases, while a machine runs. One that was resumed goes on where it stood."""
        worker_id, job_id, execution = (
            _text(context, "worker_id"),
            _text(context, "job_id"),
            _execution(context),
        )
        if worker_id:
            self._workers[worker_id] = execution
            if job_id:
                self._jobs.setdefault(worker_id, (_pool_id(context), job_id))
        try:
            while True:
                await anyio.sleep(self.heartbeat_seconds)
                await self.beat(execution)
        finally:
            for mine in [one for one, its in self._workers.items() if its == execution]:
                del self._workers[mine]
                self._jobs.pop(mine, None)

    async def beat(self, execution_id: str = "") -> None:
        """One heartbeat for every worker that this object speaks for, or for those of one execution."""
        for worker_id in [one for one, its in self._workers.items() if execution_id in ("", its)]:
            pool_id, job_id = self._jobs.get(worker_id, ("", ""))
            try:
                await self.registration.heartbeat(worker_id, current_task_id=job_id)
                if job_id and self.lease_seconds is not None:
                    await self._renew(pool_id, job_id, worker_id, self.lease_seconds)
            except WorkerNotFound:
                continue  # it is named in the context, and registers later
            except (BackendError, OSError) as error:
                log.warning("the heartbeat of worker %s failed, and is tried again: %s", worker_id, error)

    async def _renew(self, pool_id: str, job_id: str, worker_id: str, lease: float) -> None:
        if not await self.work.pool(pool_id).renew(job_id, worker_id, lease=lease):
            if self._jobs.get(worker_id) == (pool_id, job_id):
                del self._jobs[worker_id]
            log.warning("worker %s does not hold job %s of pool %s any more", worker_id, job_id, pool_id)


async def start_process(
    path: str, given: Mapping[str, Any], execution_id: str, *, store: str | None = None
) -> None:
    """Run a machine in a process of its own that outlives this one: `flat run PATH`, in the same folder.

    What it says goes to a file among the temporary ones. An execution id that exists already is not run again.
    """
    await anyio.to_thread.run_sync(partial(_start, path, given, execution_id, store))


_started: list[subprocess.Popen[bytes]] = []
"""Processes started and not yet seen to have ended: each would be a zombie until somebody asks for its end."""


def _start(path: str, given: Mapping[str, Any], execution_id: str, store: str | None) -> None:
    machine = Path(path).expanduser()
    if not machine.exists():
        message = f"worker_config_path names {machine.absolute()}, and there is no such file or folder"
        raise ActionFailed(message, type="FileNotFoundError")
    _started[:] = [process for process in _started if process.poll() is None]
    command = [sys.executable, "-m", "flat.cli", "run", str(machine), "--id", execution_id, "--json"]
    command += ["--input", json.dumps(dict(given)), *(("--store", store) if store else ())]
    detached: dict[str, Any] = (
        {"creationflags": 0x00000208} if sys.platform == "win32" else {"start_new_session": True}
    )
    said, name = tempfile.mkstemp(
        prefix=f"flat-{re.sub('[^A-Za-z0-9-]', '_', execution_id)[:60]}-", suffix=".log"
    )
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, **detached
        )
    finally:
        os.close(said)
    _started.append(process)
    log.info("worker %s started as process %d; what it says is in %s", execution_id, process.pid, name)


# -- reading contexts -----------------------------------------------------------------------------------------


def _text(context: Context, key: str) -> str:
    value = context.get(key)
    return "" if value is None else str(value)


def _pool_id(context: Context) -> str:
    return _text(context, "pool_id") or "default"


def _missing(what: str, action: str) -> ActionFailed:
    return ActionFailed(f'the action "{action}" needs {what} in the context', type="ValueError")


def _required(context: Context, key: str, action: str) -> str:
    value = _text(context, key)
    if not value:
        raise _missing(f'"{key}"', action)
    return value


def _number(context: Context, key: str, default: float) -> float:
    value = context.get(key)
    try:
        return default if value is None or value == "" else float(value)
    except (TypeError, ValueError):
        raise ActionFailed(f'"{key}" in the context is not a number: {value!r}', type="ValueError") from None


def _count(context: Context, key: str, default: int) -> int:
    """A whole number from 0 on; a template may have made text of it."""
    return max(0, int(_number(context, key, default)))


def _place(context: Context) -> str:
    """The visit of a state that this action belongs to: the same when the action is done again after a crash."""
    execution_id = _execution(context)
    return f"{execution_id}/{context['machine'].get('step')}" if execution_id else ""


def _execution(context: Context) -> str:
    """The id of the execution that a context belongs to; empty where an action is called by hand."""
    facts = context.get("machine")
    return str(facts.get("execution_id") or "") if isinstance(facts, Mapping) else ""


def _digest(context: Context, what: str) -> str:
    return hashlib.sha256(f"{_place(context) or uuid.uuid4()}/{what}".encode()).hexdigest()


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()
