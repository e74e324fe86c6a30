"""The tables in which work pools and the register of workers stand, and what the backends on them share.

They are in the schema of a store, or in one of their own.
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

from flat.backends.postgres.answers import Rows
from flat.backends.postgres.schema import Part, open_database
from flat.backends.postgres.url import Address
from flat.backends.work import Clock

URL = "postgresql:///"

SCHEMA = """
CREATE TABLE work_pools (
    num BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, key BYTEA NOT NULL UNIQUE, name TEXT NOT NULL
);
CREATE TABLE work_jobs (
    num BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, pool BIGINT NOT NULL, status SMALLINT NOT NULL DEFAULT 0,
    attempts INT NOT NULL DEFAULT 0, max_retries INT NOT NULL, created_at FLOAT8 NOT NULL, stamp BIGINT NOT NULL,
    worker_key BYTEA, worker TEXT, claimed_at FLOAT8, lease_until FLOAT8, claim_key BYTEA, error TEXT,
    data BYTEA NOT NULL, result BYTEA
);
-- In an order that no other index has: the planner would walk those, past all jobs that are not pending.
CREATE INDEX work_pending ON work_jobs (pool, (num + 0)) WHERE status = 0;
CREATE INDEX work_claimed ON work_jobs (pool, worker_key) WHERE status = 1;
CREATE INDEX work_ended ON work_jobs (pool, status, num) WHERE status > 1;
CREATE INDEX work_leases ON work_jobs (pool, lease_until) WHERE lease_until IS NOT NULL;
CREATE INDEX work_keys ON work_jobs (claim_key) WHERE claim_key IS NOT NULL;
CREATE UNIQUE INDEX work_stamps ON work_jobs (stamp);
CREATE TABLE work_workers (
    key BYTEA PRIMARY KEY, worker_id TEXT NOT NULL, host TEXT NOT NULL, pid BIGINT NOT NULL,
    capabilities TEXT[] NOT NULL, pool_id TEXT NOT NULL, started_at FLOAT8 NOT NULL, status TEXT NOT NULL,
    last_heartbeat FLOAT8 NOT NULL,
    current_task_id TEXT, metadata BYTEA NOT NULL
);
"""
WORK: Part = ("work", 1, (SCHEMA,))


class DatabaseBackend:
    """An address and its connections."""

    def __init__(self, address: str | Address = URL, *, clock: Clock = time.time) -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        self.clock = clock
        self.database = open_database(self.address, WORK)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.database.close()

    async def rows(self, doing: str, statement: str, *values: Any) -> Rows:
        return await self.database.rows(doing, statement, *values)
