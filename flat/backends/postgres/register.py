"""The register of workers in a PostgreSQL database: a row for each, and one statement for each change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from flat.backends.postgres.names import key
from flat.backends.postgres.work_tables import DatabaseBackend
from flat.backends.work import (
    Filtering,
    Registering,
    WorkerRecord,
    checked_name,
    encode,
    registration_of,
    statuses,
)
from flat.errors import WorkerNotFound

REGISTER = """
INSERT INTO work_workers VALUES ($1, $2, $3, $4, $5, $6, $7, 'active', $8, NULL, $9) ON CONFLICT (key) DO UPDATE
SET host = $3, pid = $4, capabilities = $5, pool_id = $6, started_at = $7, status = 'active', last_heartbeat = $8,
    current_task_id = NULL, metadata = $9
"""
BEAT = """
UPDATE work_workers SET last_heartbeat = $2, metadata = $3, current_task_id = $4
WHERE key = $1 AND metadata = $5 AND current_task_id IS NOT DISTINCT FROM $6 RETURNING 1
"""
WORKERS = """
SELECT worker_id, host, pid, capabilities, pool_id, started_at, status, last_heartbeat, current_task_id, metadata
FROM work_workers
"""


class PostgresRegistrationBackend(DatabaseBackend):
    """The register of workers in a database: `PostgresRegistrationBackend("postgresql://user@host/db")`."""

    async def register(self, worker: Registering) -> WorkerRecord:
        said = registration_of(worker)
        names = said.__dataclass_fields__
        record = WorkerRecord(**{n: getattr(said, n) for n in names}, last_heartbeat=self.clock())
        await self.rows(
            "registering a worker", REGISTER, key(said.worker_id), said.worker_id, said.host, said.pid,
            list(said.capabilities), said.pool_id, said.started_at, record.last_heartbeat, b"{}",
        )  # fmt: skip
        return record

    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None:
        more = orjson.loads(encode(dict(metadata or {}), "metadata"))
        task = None if current_task_id is None else checked_name("current_task_id", current_task_id)
        name = key(checked_name("worker_id", worker_id))
        while True:
            query = "SELECT metadata, current_task_id FROM work_workers WHERE key = $1"
            rows = await self.rows("reading a worker", query, name)
            if not rows:
                raise WorkerNotFound(worker_id)
            body, current = rows[0]
            merged = orjson.dumps({**orjson.loads(body), **more})
            wanted = current if task is None else task or None
            values = (name, self.clock(), merged, wanted, body, current)
            if await self.rows("sending a worker's heartbeat", BEAT, *values):
                return

    async def update_status(self, worker_id: str, status: str) -> None:
        query = "UPDATE work_workers SET status = $2 WHERE key = $1 RETURNING 1"
        values = (key(checked_name("worker_id", worker_id)), checked_name("status", status))
        if not await self.rows("setting a worker's status", query, *values):
            raise WorkerNotFound(worker_id)

    async def get(self, worker_id: str) -> WorkerRecord | None:
        name = key(checked_name("worker_id", worker_id))
        rows = await self.rows("reading a worker", f"{WORKERS} WHERE key = $1", name)
        return _record(rows[0]) if rows else None

    async def list(self, filter: Filtering | None = None) -> Sequence[WorkerRecord]:
        conditions: dict[str, Any] = {}
        if filter is not None:
            if (allowed := statuses(filter.status)) is not None:
                conditions["status = ANY ({}::text[])"] = [checked_name("status", one) for one in allowed]
            if filter.stale_threshold_seconds:
                conditions["last_heartbeat < {}"] = self.clock() - filter.stale_threshold_seconds
            if filter.pool_id is not None:
                conditions["pool_id = {}"] = checked_name("pool_id", filter.pool_id)
            if filter.capability is not None:
                conditions["{} = ANY (capabilities)"] = checked_name("capability", filter.capability)
        tests = [test.format(f"${place}") for place, test in enumerate(conditions, 1)]
        query = f"{WORKERS} WHERE {' AND '.join(['true', *tests])}"
        records = [_record(row) for row in await self.rows("listing workers", query, *conditions.values())]
        return sorted(records, key=lambda record: record.worker_id)


def _record(row: Sequence[Any]) -> WorkerRecord:
    return WorkerRecord(
        worker_id=row[0], host=row[1], pid=row[2], capabilities=tuple(row[3]), pool_id=row[4], started_at=row[5],
        status=row[6], last_heartbeat=row[7], current_task_id=row[8], metadata=orjson.loads(row[9]),
    )  # fmt: skip
