"""Writes what flatmachines keeps, in its two layouts, as its tables and keys are."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

TABLES = """
CREATE TABLE machine_checkpoints (
    checkpoint_key TEXT PRIMARY KEY, execution_id TEXT NOT NULL, machine_name TEXT, event TEXT, current_state TEXT,
    waiting_channel TEXT, snapshot_json BLOB NOT NULL, created_at TEXT NOT NULL
);
CREATE TABLE machine_latest (execution_id TEXT PRIMARY KEY, latest_key TEXT NOT NULL, updated_at TEXT NOT NULL);
CREATE TABLE machine_configs (
    config_hash TEXT PRIMARY KEY, machine_name TEXT, spec_version TEXT, config_raw TEXT NOT NULL, created_at TEXT
);
CREATE TABLE execution_leases (
    execution_id TEXT PRIMARY KEY, owner_id TEXT NOT NULL, phase TEXT, lease_until INTEGER NOT NULL,
    fencing_token INTEGER NOT NULL DEFAULT 1, acquired_at TEXT, updated_at TEXT
);
CREATE TABLE signals (id TEXT PRIMARY KEY, channel TEXT NOT NULL, data_json TEXT NOT NULL, created_at TEXT NOT NULL);
CREATE TABLE work_pool (
    item_id TEXT PRIMARY KEY, pool_name TEXT NOT NULL, data TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'pending',
    claimed_by TEXT, claimed_at TEXT, attempts INTEGER DEFAULT 0, max_retries INTEGER DEFAULT 3, created_at TEXT,
    error TEXT
);
"""


def moment(number: int) -> str:
    """A time as flatmachines writes it."""
    return f"2026-01-01T00:00:{number:02}.250000+00:00"


def snapshot(execution_id: str, step: int, event: str, state: str, **more: Any) -> dict[str, Any]:
    """A snapshot with all of its fields."""
    context = {"n": 0, **more.pop("context", {}), "machine": {"execution_id": execution_id, "step": step}}
    return {
        "execution_id": execution_id, "machine_name": "counter", "spec_version": "2.5.0", "current_state": state,
        "context": context, "step": step, "created_at": moment(step), "event": event, "output": None,
        "total_api_calls": 0, "total_cost": 0.0, "parent_execution_id": None, "pending_launches": None,
        "waiting_channel": None, "tool_loop_state": None, "config_hash": None, **more,
    }  # fmt: skip


class Layout(Protocol):
    path: Path

    def save(self, data: dict[str, Any], *, latest: bool = True) -> str: ...
    def raw(self, key: str, body: bytes) -> None: ...
    def point(self, execution_id: str, key: str) -> None: ...
    def config(self, digest: str, text: str) -> None: ...


def key_of(data: dict[str, Any]) -> str:
    return f"{data['execution_id']}/step_{data['step']:06d}_{data['event']}.json"


class Files:
    """`LocalFileBackend`: `.checkpoints`."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / ".checkpoints"
        self.path.mkdir()

    def save(self, data: dict[str, Any], *, latest: bool = True) -> str:
        key = key_of(data)
        self.raw(key, json.dumps(data).encode())
        if latest:
            self.point(data["execution_id"], key)
        return key

    def raw(self, key: str, body: bytes) -> None:
        path = self.path / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)

    def point(self, execution_id: str, key: str) -> None:
        self.raw(f"{execution_id}/latest", key.encode())

    def config(self, digest: str, text: str) -> None:
        self.raw(f"_configs/{digest}.yml", text.encode())


class Tables:
    """`SQLiteCheckpointBackend`: one file with all tables."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "flatmachines.sqlite"
        with closing(sqlite3.connect(self.path)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(TABLES)

    def execute(self, query: str, *values: Any) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute(query, values)

    def save(self, data: dict[str, Any], *, latest: bool = True) -> str:
        key = key_of(data)
        self.execute(
            "INSERT OR REPLACE INTO machine_checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            key, data["execution_id"], data["machine_name"], data["event"], data["current_state"],
            data["waiting_channel"], json.dumps(data).encode(), data["created_at"],
        )  # fmt: skip
        if latest:
            self.point(data["execution_id"], key)
        return key

    def raw(self, key: str, body: bytes) -> None:
        self.execute(
            "INSERT OR REPLACE INTO machine_checkpoints VALUES (?, ?, '', '', '', NULL, ?, ?)",
            key, key.rpartition("/")[0], body, moment(0),
        )  # fmt: skip

    def point(self, execution_id: str, key: str) -> None:
        self.execute("INSERT OR REPLACE INTO machine_latest VALUES (?, ?, ?)", execution_id, key, moment(0))

    def config(self, digest: str, text: str) -> None:
        self.execute(
            "INSERT INTO machine_configs VALUES (?, 'counter', '2.5.0', ?, ?)", digest, text, moment(0)
        )
