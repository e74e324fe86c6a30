"""The built-in hooks `distributed-worker`: where hooks and work backends meet.

hooks: {name: distributed-worker, args: {db_path: workers.sqlite, lease_seconds: 60}}
"""

from __future__ import annotations

import os
from functools import cache, partial
from pathlib import Path

from flat.backends.work import (
    RegistrationBackend,
    WorkBackend,
    create_registration_backend,
    create_work_backend,
)
from flat.hooks.distributed import HEARTBEAT_SECONDS, DistributedWorkerHooks, start_process

DB_PATH = "workers.sqlite"


def distributed_worker(
    db_path: str = DB_PATH, *, backend: str = "sqlite", keep_done: bool = False, store: str | None = None,
    heartbeat_seconds: float = HEARTBEAT_SECONDS, lease_seconds: float | None = None,
    worker_config_path: str | None = None,
) -> DistributedWorkerHooks:  # fmt: skip
    """The hooks on the backends at `db_path`, which is relative to the folder where the process runs.

    `store` is where started workers keep their executions. With the backend `memory`, one queue serves the process.
    """
    place = str(Path(db_path).expanduser().absolute()) if backend == "sqlite" else ""
    registration, work = _backends(backend, place, keep_done, os.getpid())
    return DistributedWorkerHooks(
        registration,
        work,
        heartbeat_seconds=heartbeat_seconds,
        lease_seconds=lease_seconds,
        worker_config_path=worker_config_path,
        start_worker=partial(start_process, store=store),
    )


@cache
def _backends(backend: str, place: str, keep_done: bool, pid: int) -> tuple[RegistrationBackend, WorkBackend]:
    """One pair for each file in a process: a connection must not cross a fork, so the process is part of the key."""
    where = {"db_path": place} if place else {}
    work = create_work_backend(backend, keep_done=keep_done, **where)
    return create_registration_backend(backend, **where), work
