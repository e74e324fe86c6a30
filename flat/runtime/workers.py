"""The built-in hooks `distributed-worker`: where hooks and work backends meet.

hooks: {name: distributed-worker, args: {db_path: workers.sqlite, lease_seconds: 60}}
hooks: {name: distributed-worker, args: {backend: redis, url: "redis://localhost:6379/0"}}

Where the arguments do not say, `settings.backends.work` and `registration` of the machine file do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.work import RegistrationBackend, WorkBackend
from flat.hooks.distributed import HEARTBEAT_SECONDS, DistributedWorkerHooks, start_process

DB_PATH = "workers.sqlite"


def distributed_worker(
    db_path: str = DB_PATH, *, backend: str = "sqlite", url: str | None = None, keep_done: bool = False,
    store: str | None = None, heartbeat_seconds: float = HEARTBEAT_SECONDS, lease_seconds: float | None = None,
    worker_config_path: str | None = None, registration: Mapping[str, str] | None = None,
) -> DistributedWorkerHooks:  # fmt: skip
    """The hooks on the backends at `db_path`, which is relative to the folder where the process runs, or at `url`.

    `store` is where started workers keep their executions. With the backend `memory`, one queue serves the process.
    `registration` says where workers register, if that is elsewhere: it has `backend`, and `db_path` or `url`.
    """
    where = _place(backend, db_path, url)
    there = (backend, *where) if registration is None else _registered_at(**registration)
    register, work = _backends(there, (backend, *where), keep_done, os.getpid())
    return DistributedWorkerHooks(
        register,
        work,
        heartbeat_seconds=heartbeat_seconds,
        lease_seconds=lease_seconds,
        worker_config_path=worker_config_path,
        start_worker=partial(start_process, store=store),
    )


def _place(backend: str, db_path: str, url: str | None) -> tuple[str, str]:
    """The argument that says where a backend is, and its value."""
    if url is not None:
        return "url", url
    return ("db_path", str(Path(db_path).expanduser().absolute())) if backend == "sqlite" else ("", "")


def _registered_at(
    backend: str = "sqlite", db_path: str = DB_PATH, url: str | None = None
) -> tuple[str, str, str]:
    return (backend, *_place(backend, db_path, url))


@cache
def _backends(
    register: tuple[str, str, str], work: tuple[str, str, str], keep_done: bool, pid: int
) -> tuple[RegistrationBackend, WorkBackend]:
    """One pair for each place in a process: a connection must not cross a fork, so the process is part of the key."""
    made = create_work_backend(work[0], keep_done=keep_done, **_named(work))
    return create_registration_backend(register[0], **_named(register)), made


def _named(place: tuple[str, str, str]) -> dict[str, Any]:
    return {place[1]: place[2]} if place[1] else {}
