"""Reads what flatmachines keeps: a folder of checkpoints, or its SQLite file. Nothing is written there.

Both hold, for each execution, snapshots as JSON under `<id>/step_<number>_<event>.json`, and the key of the newest
under `<id>/latest`; and the texts of configs by their SHA-256. The file has leases, signals and jobs as well.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

from flat.errors import BackendError

ORDER = ("machine_start", "state_enter", "execute", "tool_call", "waiting", "state_exit", "machine_end")
"""Events in the order in which one step may have them."""
LATEST = "latest"
CONFIGS = "_configs"
_STEP = re.compile(r"step_([0-9]+)_(.+)\.json", re.DOTALL)


class NotFlatmachines(BackendError):
    """The path holds nothing that flatmachines wrote."""

    exit_code = 2


class Lease(NamedTuple):
    """Who drives an execution, and until when (seconds since the epoch)."""

    owner: str
    until: float


class OldSignal(NamedTuple):
    """A signal that nobody has taken."""

    id: str
    channel: str
    data: str
    created_at: str


@dataclass(frozen=True, slots=True)
class Old:
    """One execution: the key of its newest snapshot, and all keys in the order in which they were written."""

    execution_id: str
    latest: str | None
    keys: Sequence[str]


class Source(Protocol):
    """A place where flatmachines keeps executions."""

    def executions(self) -> Iterator[Old]: ...
    def read(self, key: str) -> bytes | None: ...
    def config(self, digest: str) -> str | None: ...
    def lease(self, execution_id: str) -> Lease | None: ...
    def signals(self) -> Sequence[OldSignal]: ...

    def jobs(self) -> int:
        """How many jobs wait in pools."""
        ...

    def close(self) -> None: ...


def open_source(path: Path) -> Source:
    """What flatmachines keeps at a path. Raises `NotFlatmachines`."""
    if path.is_dir():
        return Folder(path)
    if not path.is_file():
        raise NotFlatmachines(f"there is neither a folder nor a file {path}")
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\0":
            raise NotFlatmachines(f"{path} is no SQLite file, and no folder of checkpoints")
    return Database(path)


def in_order(keys: Sequence[str]) -> list[str]:
    """Keys of one execution, oldest first."""

    def place(key: str) -> tuple[int, int, str]:
        found = _STEP.fullmatch(key.rpartition("/")[2])
        if found is None:
            return -1, 0, key
        event = found[2]
        return int(found[1]), ORDER.index(event) if event in ORDER else len(ORDER), event

    return sorted((key for key in keys if _STEP.fullmatch(key.rpartition("/")[2])), key=place)


class Folder:
    """`base_dir/<id>/latest` and `base_dir/<id>/step_….json`; configs in `base_dir/_configs/<hash>.yml`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not any(True for _ in self._folders()) and not (root / CONFIGS).is_dir():
            raise NotFlatmachines(f"{root} holds no checkpoints of flatmachines")

    def _folders(self) -> Iterator[Path]:
        """Folders of executions. An id with slashes in it is a path of folders."""
        for folder in sorted({file.parent for file in self.root.rglob("step_*.json")} | self._pointed()):
            parts = folder.relative_to(self.root).parts
            if parts and not any(part.startswith(".") for part in parts) and parts[0] != CONFIGS:
                yield folder

    def _pointed(self) -> set[Path]:
        return {file.parent for file in self.root.rglob(LATEST)}

    def executions(self) -> Iterator[Old]:
        for folder in self._folders():
            id_ = folder.relative_to(self.root).as_posix()
            latest = folder / LATEST
            pointer = latest.read_text("utf-8").strip() if latest.is_file() else None
            yield Old(id_, pointer, in_order([f"{id_}/{file.name}" for file in folder.glob("step_*.json")]))

    def read(self, key: str) -> bytes | None:
        path = self.root / key
        if ".." in key or key.startswith("/") or not path.is_file():
            return None
        return path.read_bytes()

    def config(self, digest: str) -> str | None:
        path = self.root / CONFIGS / f"{digest}.yml"
        if not re.fullmatch(r"[0-9a-f]+", digest) or not path.is_file():
            return None
        return path.read_text("utf-8")

    def lease(self, execution_id: str) -> Lease | None:
        return None

    def signals(self) -> Sequence[OldSignal]:
        return ()

    def jobs(self) -> int:
        return 0

    def close(self) -> None:
        """Nothing is kept open."""


class Database:
    """The tables of its SQLite file. Those of signals, leases and jobs are there only if they were used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._connection = sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)
        try:
            found = self._rows("SELECT name FROM sqlite_master WHERE type = 'table'")
        except NotFlatmachines:
            self._connection.close()
            raise
        self._tables = {row[0] for row in found}
        if not {"machine_checkpoints", "machine_latest"} <= self._tables:
            self._connection.close()
            raise NotFlatmachines(f"{path} has no checkpoints of flatmachines in it")

    def _rows(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise NotFlatmachines(f"{self.path} cannot be read: {error}") from error

    def executions(self) -> Iterator[Old]:
        query = """
            SELECT execution_id FROM machine_checkpoints UNION SELECT execution_id FROM machine_latest ORDER BY 1
        """
        for (id_,) in self._rows(query):
            keys = self._rows("SELECT checkpoint_key FROM machine_checkpoints WHERE execution_id = ?", id_)
            latest = self._rows("SELECT latest_key FROM machine_latest WHERE execution_id = ?", id_)
            yield Old(id_, latest[0][0] if latest else None, in_order([row[0] for row in keys]))

    def read(self, key: str) -> bytes | None:
        rows = self._rows("SELECT snapshot_json FROM machine_checkpoints WHERE checkpoint_key = ?", key)
        if not rows:
            return None
        return rows[0][0].encode() if isinstance(rows[0][0], str) else bytes(rows[0][0])

    def config(self, digest: str) -> str | None:
        if "machine_configs" not in self._tables:
            return None
        rows = self._rows("SELECT config_raw FROM machine_configs WHERE config_hash = ?", digest)
        return str(rows[0][0]) if rows else None

    def lease(self, execution_id: str) -> Lease | None:
        if "execution_leases" not in self._tables:
            return None
        query = "SELECT owner_id, lease_until FROM execution_leases WHERE execution_id = ?"
        rows = self._rows(query, execution_id)
        return Lease(str(rows[0][0]), float(rows[0][1])) if rows else None

    def signals(self) -> Sequence[OldSignal]:
        if "signals" not in self._tables:
            return ()
        query = "SELECT id, channel, data_json, created_at FROM signals ORDER BY channel, created_at, rowid"
        return [OldSignal(*(str(value) for value in row)) for row in self._rows(query)]

    def jobs(self) -> int:
        if "work_pool" not in self._tables:
            return 0
        return int(self._rows("SELECT count(*) FROM work_pool WHERE status IN ('pending', 'claimed')")[0][0])

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()
