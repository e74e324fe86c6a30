"""Which store a machine file asks for: `persistence`, or else `settings.backends`.

    persistence: {backend: sqlite, db_path: runs.db}      # local: files in .checkpoints; memory
    settings: {backends: {persistence: sqlite, sqlite_path: runs.db}}
    settings: {backends: {persistence: "redis://localhost:6379/0"}}

Paths are relative to the folder where the process runs. What is given on the command line or in Python wins over
the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

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
        return _url("persistence.backend", str(backend), persistence.get("db_path"))
    if (backend := backends.get("persistence")) and backend != "memory":
        return _url("settings.backends.persistence", str(backend), backends.get("sqlite_path"))
    return None


def _url(field: str, backend: str, path: Any) -> str:
    if backend == "local":
        return LOCAL
    if backend == "sqlite":
        place = path or os.environ.get(SQLITE_VARIABLE) or SQLITE_PATH
        return f"sqlite:///{quote(os.path.expanduser(str(place)))}"
    if ":" not in backend:
        raise BadStoreURL(
            f'{field} is "{backend}": that does not say where; write a URL there, such as "{backend}://…", '
            "or choose the store when you run it (--store, FLAT_STORE, persistence=…)"
        )
    try:
        store_opener(backend)
    except FlatError as error:
        raise BadStoreURL(f'{field} is "{backend}": {error}') from error
    return backend
