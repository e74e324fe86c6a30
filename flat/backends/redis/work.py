"""Work pools and the register of workers in a Redis or Valkey server, for any number of hosts.

    work = RedisWorkBackend("redis://localhost:6379/0?prefix=flat")

They may stand under the same prefix as a store. Every method is one script and one round trip, and a claim takes the
head of a sorted set, so that it costs the same however many jobs wait. What the server promises about keeping it all
is said in `backends.redis.store`; calls that are ready together share a round trip, and one whose connection broke is
made again and done once.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import orjson

from flat.backends.redis import work_lua as lua
from flat.backends.redis.address import Address
from flat.backends.redis.connection import Client, Script, Word
from flat.backends.work import (
    STATUSES,
    Clock,
    Filtering,
    Registering,
    WorkerRecord,
    WorkItem,
    WorkStatus,
    check_status,
    checked_lease,
    checked_limit,
    checked_name,
    checked_retries,
    checked_worker,
    encode,
    error_text,
    log_poisoned,
    not_held,
    number_in,
    passes,
    registration_of,
)
from flat.errors import WorkerNotFound, WorkItemNotFound, WorkNotHeld

META = "m:"
"""Before the name of a worker's fact in its hash, so that it meets no field of ours."""
LUA_DIGITS = 15
"""Of the largest number of a job: a number in Lua holds no more without loss."""


class _Backend:
    """What the two backends of this module share: a server, a clock, and an end."""

    def __init__(self, address: str | Address, *, clock: Clock = time.time) -> None:
        self.clock = clock
        self.client = Client(address)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.client.address)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.client.close()


class RedisWorkBackend(_Backend):
    """Pools in a Redis server. With `keep_done`, completed jobs stay with their results."""

    def __init__(self, address: str | Address, *, keep_done: bool = False, clock: Clock = time.time) -> None:
        super().__init__(address, clock=clock)
        self.keep_done = keep_done

    def pool(self, name: str) -> RedisWorkPool:
        return RedisWorkPool(self, checked_name("pool", name))

    async def pools(self) -> Sequence[str]:
        found = await self.client.run("listing the pools", lua.POOLS)
        return sorted(name.decode() for name in found)


class RedisWorkPool:
    """One queue in the server."""

    def __init__(self, backend: RedisWorkBackend, name: str) -> None:
        self.name = name
        self._backend = backend

    async def _run(self, doing: str, script: Script, *values: Word) -> Any:
        return await self._backend.client.run(doing, script, self.name, *values)

    async def _sweeping(self, doing: str, script: Script, *values: Word) -> Any:
        """Run a script that ends leases first, and log what that poisoned."""
        result, poisoned, *more = await self._run(doing, script, *values)
        for num, attempts, error in poisoned:
            log_poisoned(self.name, num.decode(), int(attempts), error.decode())
        return (result, *more) if more else result

    # -- in and out ---------------------------------------------------------------------------

    async def push(
        self, item: Any, options: Mapping[str, Any] | None = None, *, max_retries: int | None = None
    ) -> str:
        return (await self.push_many((item,), max_retries=checked_retries(options, max_retries)))[0]

    async def push_many(self, items: Sequence[Any], *, max_retries: int | None = None) -> Sequence[str]:
        retries = checked_retries(None, max_retries)
        bodies = [encode(item, "item") for item in items]
        if not bodies:
            return []
        now = self._backend.clock()
        last = int(await self._run("pushing jobs", lua.PUSH, now, retries, len(bodies), *bodies))
        return [str(num) for num in range(last - len(bodies) + 1, last + 1)]

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> WorkItem | None:
        mine = b"" if key is None else orjson.dumps([worker_id, checked_name("key", key)])
        given = await self._claim(worker_id, lease, mine, 1)
        return given[0] if given else None

    async def claim_many(
        self, worker_id: str, limit: int, *, lease: float | None = None
    ) -> Sequence[WorkItem]:
        return await self._claim(worker_id, lease, b"", checked_limit(limit))

    async def _claim(self, worker_id: str, lease: float | None, key: bytes, limit: int) -> Sequence[WorkItem]:
        checked_worker(worker_id)
        seconds, now = checked_lease(lease), self._backend.clock()
        ends = None if seconds is None else now + seconds
        rows = await self._sweeping("claiming jobs", lua.CLAIM, worker_id, now, ends, key, limit)
        return [_item(row) for row in rows]

    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool:
        seconds, now = checked_lease(lease), self._backend.clock()
        values = (now, _num(item_id), checked_worker(worker_id), now + (seconds or 0.0))
        return bool(await self._sweeping("renewing a lease", lua.RENEW, *values) == b"1")

    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None:
        await self.complete_many({item_id: result}, worker_id=worker_id)

    async def complete_many(self, results: Mapping[str, Any], *, worker_id: str | None = None) -> None:
        values: list[Word] = [*self._named(worker_id), int(self._backend.keep_done), len(results)]
        for item_id, result in results.items():
            values += (self._known(item_id), encode(result, "result"))
        self._refuse(await self._sweeping("completing jobs", lua.COMPLETE, *values), worker_id)

    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> WorkStatus:
        said = error_text(error)
        values = (*self._named(worker_id), self._known(item_id), "" if said is None else f"={said}")
        found = await self._sweeping("failing a job", lua.FAIL, *values)
        self._refuse(found, worker_id)
        return "poisoned" if found == b"poisoned" else "pending"

    def _named(self, worker_id: str | None) -> tuple[Word, ...]:
        return self._backend.clock(), int(worker_id is not None), checked_name("worker_id", worker_id or "")

    def _known(self, item_id: str) -> str:
        if (num := _num(item_id)) == "0":
            raise WorkItemNotFound(item_id, self.name)
        return num

    def _refuse(self, found: Any, worker_id: str | None) -> None:
        """Raise what a refusal means; anything else is a result."""
        if not isinstance(found, tuple):
            return
        what, num, *more = found
        item_id = num.decode()
        if what == b"missing":
            raise WorkItemNotFound(item_id, self.name)
        status, holder = _text(more[0]), _text(more[1])
        raise not_held(item_id, status or "", holder, worker_id)

    async def release_by_worker(self, worker_id: str) -> int:
        doing = "releasing a worker's jobs"
        return int(await self._run(doing, lua.RELEASE_WORKER, checked_worker(worker_id)))

    # -- looking ------------------------------------------------------------------------------

    async def size(self) -> int:
        return int(await self._sweeping("counting jobs", lua.SIZE, self._backend.clock()))

    async def get(self, item_id: str) -> WorkItem | None:
        row = await self._sweeping("reading a job", lua.GET, self._backend.clock(), _num(item_id))
        return _item(row) if row else None

    async def items(
        self, *, status: WorkStatus | None = None, limit: int | None = None
    ) -> Sequence[WorkItem]:
        check_status(status)
        most = -1 if limit is None else limit
        rows = await self._sweeping("listing jobs", lua.ITEMS, self._backend.clock(), status, most)
        return [_item(row) for row in rows]

    async def retry(self, item_id: str) -> None:
        status = _text(await self._run("retrying a job", lua.RETRY, _num(item_id)))
        if not status:
            raise WorkItemNotFound(item_id, self.name)
        if status != "poisoned":
            raise WorkNotHeld(item_id, f"it is {status}, not poisoned")

    async def discard(self, item_id: str) -> bool:
        found = await self._run("discarding a job", lua.DISCARD, _num(item_id))
        if found[0] == b"held":
            raise WorkNotHeld(item_id, f"worker {_text(found[1])} holds it")
        return bool(found[0] == b"ok")


def _num(item_id: Any) -> str:
    """The number in an id, as a script takes it: Lua's are exact up to 15 digits."""
    return str(number_in(item_id, LUA_DIGITS))


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def _float(value: bytes | None) -> float | None:
    return None if value is None else float(value)


def _item(row: Sequence[Any]) -> WorkItem:
    status: WorkStatus = next(one for one in STATUSES if one == row[2].decode())
    return WorkItem(
        id=row[0].decode(), data=orjson.loads(row[1]), status=status, claimed_by=_text(row[3]),
        attempts=int(row[4]), max_retries=int(row[5]), created_at=float(row[6]), claimed_at=_float(row[7]),
        lease_until=_float(row[8]), error=_text(row[9]),
        result=None if row[10] is None else orjson.loads(row[10]),
    )  # fmt: skip


class RedisRegistrationBackend(_Backend):
    """The register of workers in a Redis server."""

    async def register(self, worker: Registering) -> WorkerRecord:
        said = registration_of(worker)
        facts = {name: getattr(said, name) for name in said.__dataclass_fields__}
        record = WorkerRecord(**facts, last_heartbeat=self.clock())
        body = orjson.dumps({**facts, "capabilities": list(said.capabilities)})
        await self.client.run(
            "registering a worker", lua.REGISTER, said.worker_id, body, record.last_heartbeat
        )
        return record

    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None:
        more: dict[str, Any] = orjson.loads(encode(dict(metadata or {}), "metadata"))
        task = "" if current_task_id is None else "=" + checked_name("current_task_id", current_task_id)
        values: list[Word] = [checked_name("worker_id", worker_id), self.clock(), task, len(more)]
        for name, value in more.items():
            values += (META + name, orjson.dumps(value))
        if await self.client.run("sending a worker's heartbeat", lua.HEARTBEAT, *values) != b"1":
            raise WorkerNotFound(worker_id)

    async def update_status(self, worker_id: str, status: str) -> None:
        values = (checked_name("worker_id", worker_id), checked_name("status", status))
        if await self.client.run("setting a worker's status", lua.SET_STATUS, *values) != b"1":
            raise WorkerNotFound(worker_id)

    async def get(self, worker_id: str) -> WorkerRecord | None:
        row = await self.client.run("reading a worker", lua.WORKER, checked_name("worker_id", worker_id))
        return _record(row) if row else None

    async def list(self, filter: Filtering | None = None) -> Sequence[WorkerRecord]:
        rows = await self.client.run("listing workers", lua.WORKERS)
        now = self.clock()
        records = sorted((_record(row) for row in rows if row), key=lambda record: record.worker_id)
        return [record for record in records if passes(record, filter, now)]


def _record(row: Sequence[bytes]) -> WorkerRecord:
    facts = {row[i].decode(): row[i + 1] for i in range(0, len(row), 2)}
    said = orjson.loads(facts["said"])
    metadata = {
        name.removeprefix(META): orjson.loads(value) for name, value in facts.items() if name.startswith(META)
    }
    return WorkerRecord(
        **{**said, "capabilities": tuple(said["capabilities"])},
        status=facts["status"].decode(),
        last_heartbeat=float(facts["seen"]),
        current_task_id=_text(facts.get("task")),
        metadata=metadata,
    )
