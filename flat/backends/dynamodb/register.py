"""The register of workers, and locks, in a table of DynamoDB: one item for each name, changed by conditions."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import anyio
import orjson

from flat.backends.aws import Address, parse_url
from flat.backends.dynamodb.table import OLD, Item, Table, hashed, key, text, whole
from flat.backends.work import (
    Clock,
    Filtering,
    Registering,
    WorkerRecord,
    checked_lease,
    checked_name,
    checked_worker,
    encode,
    passes,
    registration_of,
)
from flat.errors import BackendError, WorkerNotFound

EXAMPLE = "dynamodb://flat?region=eu-central-1"
WORKERS = "workers"
RENEWALS = 3
"""Renewals within one ttl of a lock."""


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


class DynamoLock:
    """Locks by name, which end by themselves: `DynamoLock("dynamodb://flat?region=eu-central-1", owner="host-1")`.

    It is an `ExecutionLock`. A lock lasts `ttl` seconds from its last `acquire` or `renew`; `keep`, in a task of its
    own, renews all that is held. Without a name for the owner, each object is one. Ends are compared with the caller's
    clock, so clocks that differ by more than the ttl break it. `tokens` has the number under which each lock is held,
    which is higher than that of everybody before: give it to what the lock protects, because who wakes late still
    believes that it holds the lock.
    """

    def __init__(
        self, address: str | Address, *, owner: str | None = None, ttl: float = 60.0, clock: Clock = time.time
    ) -> None:
        self.table = Table(parse_url("dynamodb", address, EXAMPLE) if isinstance(address, str) else address)
        self.owner, self.clock = checked_worker(owner or uuid.uuid4().hex), clock
        seconds = checked_lease(ttl)
        if seconds is None:
            raise BackendError("a lock lasts a number of seconds, not for ever: its holder may die")
        self.ttl = seconds
        self.tokens: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"DynamoLock({self.table!r}, owner={self.owner!r})"

    async def close(self) -> None:
        """Give back all that is held, as far as the table can be reached."""
        with anyio.CancelScope(shield=True):
            with suppress(BackendError):
                for key in tuple(self.tokens):
                    await self.release(key)
            await self.table.close()

    async def acquire(self, key: str) -> bool:
        """True if the lock is ours, now or still. False when somebody else has it."""
        doing = "acquiring a lock"
        while True:
            item = await self.table.get(doing, *_lock_key(key))
            now = self.clock()
            until = text(repr(now + self.ttl))
            if item is None:
                fresh = {**_key(key), "own": text(self.owner), "til": until, "tok": whole(1), "ver": whole(1)}
                change, token = self.table.put(fresh, "attribute_not_exists(pk)"), 1
            else:
                holder = item.get("own", {}).get("S")
                if holder not in (None, self.owner) and float(item["til"]["S"]) >= now:
                    self.tokens.pop(key, None)
                    return False
                ours = holder == self.owner and float(item["til"]["S"]) >= now and key in self.tokens
                token = int(item["tok"]["N"]) + (not ours)
                change = self.table.update(
                    _key(key), "SET own = :own, til = :til, tok = :tok, ver = ver + :one", "ver = :ver",
                    own=text(self.owner), til=until, tok=whole(token), one=whole(1), ver=item["ver"],
                )  # fmt: skip
            if await self.table.try_write(doing, [change]):
                self.tokens[key] = token
                return True

    async def renew(self, key: str) -> bool:
        """Hold it for another `ttl`, as long as nobody else has acquired it. False if somebody has."""
        if (token := self.tokens.get(key)) is None:
            return False
        change = self.table.update(
            _key(key), "SET til = :til, ver = ver + :one", "own = :own AND tok = :tok",
            til=text(repr(self.clock() + self.ttl)), one=whole(1), own=text(self.owner), tok=whole(token),
        )  # fmt: skip
        if renewed := await self.table.try_write("renewing a lock", [change]):
            return renewed
        if self.tokens.get(key) == token:
            del self.tokens[key]
        return False

    async def keep(self) -> None:
        """Renew all that is held until cancelled, or until something is lost."""
        heard = anyio.current_time()
        while True:
            await anyio.sleep(self.ttl / RENEWALS)
            try:
                for key in tuple(self.tokens):
                    if not await self.renew(key) and key not in self.tokens:
                        return
                heard = anyio.current_time()
            except BackendError:
                if anyio.current_time() - heard > self.ttl:
                    self.tokens.clear()
                    return

    async def release(self, key: str) -> None:
        """Give a lock back. Does nothing when it is no longer ours."""
        if (token := self.tokens.pop(key, None)) is not None:
            change = self.table.update(
                _key(key), "SET ver = ver + :one REMOVE own", f"{OLD} AND own = :own AND tok = :tok",
                one=whole(1), own=text(self.owner), tok=whole(token),
            )  # fmt: skip
            await self.table.try_write("releasing a lock", [change])


def _lock_key(name: str) -> tuple[str, str]:
    return hashed("z", name, "key"), "z"


def _key(name: str) -> Item:
    return key(*_lock_key(name))
