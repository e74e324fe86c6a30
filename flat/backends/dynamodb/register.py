"""The register of workers in a table of DynamoDB: one item for each, changed by conditions."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import orjson

from flat.backends.aws import Address, parse_url
from flat.backends.dynamodb.table import Item, Table, hashed, key
from flat.backends.work import (
    Clock,
    Filtering,
    Registering,
    WorkerRecord,
    checked_name,
    encode,
    passes,
    registration_of,
)
from flat.errors import WorkerNotFound

EXAMPLE = "dynamodb://flat?region=eu-central-1"
WORKERS = "workers"


class DynamoRegistrationBackend:
    """A register of workers in a table: `DynamoRegistrationBackend("dynamodb://flat?region=eu-central-1")`."""

    def __init__(self, address: str | Address, *, clock: Clock = time.time) -> None:
        self.table = Table(parse_url("dynamodb", address, EXAMPLE) if isinstance(address, str) else address)
        self.clock = clock

    def __repr__(self) -> str:
        return f"DynamoRegistrationBackend({self.table!r})"

    async def close(self) -> None:
        await self.table.close()

    async def register(self, worker: Registering) -> WorkerRecord:
        said = registration_of(worker)
        record = WorkerRecord(
            **{name: getattr(said, name) for name in said.__dataclass_fields__}, last_heartbeat=self.clock()
        )
        await self.table.put_now("registering a worker", _item(record))
        return record

    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None:
        more = orjson.loads(encode(dict(metadata or {}), "metadata"))
        while True:
            item, record = await self._found(worker_id)
            task = record.current_task_id if current_task_id is None else current_task_id or None
            heard = replace(
                record, last_heartbeat=self.clock(), metadata={**record.metadata, **more}, current_task_id=task,
            )  # fmt: skip
            if await self._replace(item, heard):
                return

    async def update_status(self, worker_id: str, status: str) -> None:
        checked_name("status", status)
        while True:
            item, record = await self._found(worker_id)
            if await self._replace(item, replace(record, status=status)):
                return

    async def get(self, worker_id: str) -> WorkerRecord | None:
        item = await self.table.get("reading a worker", WORKERS, hashed("", worker_id, "worker_id"))
        return None if item is None else _record(item)

    async def list(self, filter: Filtering | None = None) -> Sequence[WorkerRecord]:
        records = [_record(item) for item in await self.table.query("listing workers", WORKERS)]
        now = self.clock()
        found = [record for record in records if passes(record, filter, now)]
        return sorted(found, key=lambda record: record.worker_id)

    async def _found(self, worker_id: str) -> tuple[Item, WorkerRecord]:
        item = await self.table.get("reading a worker", WORKERS, hashed("", worker_id, "worker_id"))
        if item is None:
            raise WorkerNotFound(worker_id)
        return item, _record(item)

    async def _replace(self, was: Item, record: WorkerRecord) -> bool:
        """Store a record if it is still as it was read."""
        change = self.table.put(_item(record), "doc = :doc", doc=was["doc"])
        return await self.table.try_write("changing a worker", [change])


def _item(record: WorkerRecord) -> Item:
    return {
        **key(WORKERS, hashed("", record.worker_id, "worker_id")), "doc": {"B": orjson.dumps(record.to_dict())},
    }  # fmt: skip


def _record(item: Item) -> WorkerRecord:
    return WorkerRecord.from_dict(orjson.loads(bytes(item["doc"]["B"])))
