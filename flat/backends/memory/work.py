"""Work pools and the register of workers in this process's memory, for tests and for one process.

Nothing in here awaits while it holds the lock, so every method is one step. What is stored is JSON, as it is
elsewhere, so that a job that could not be kept is refused here too.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from flat.backends.work import (
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
    expired,
    log_poisoned,
    passes,
    refuse_foreign,
    registration_of,
)
from flat.errors import WorkerNotFound, WorkItemNotFound, WorkNotHeld


@dataclass(slots=True)
class _Job:
    num: int
    data: bytes
    max_retries: int
    created_at: float
    status: WorkStatus = "pending"
    worker: str | None = None
    attempts: int = 0
    claimed_at: float | None = None
    lease_until: float | None = None
    key: str | None = None
    error: str | None = None
    result: bytes = b"null"

    def item(self) -> WorkItem:
        return WorkItem(
            id=str(self.num), data=orjson.loads(self.data), status=self.status, claimed_by=self.worker,
            attempts=self.attempts, max_retries=self.max_retries, created_at=self.created_at,
            claimed_at=self.claimed_at, lease_until=self.lease_until, error=self.error,
            result=orjson.loads(self.result),
        )  # fmt: skip


class MemoryWorkBackend:
    """Pools that end with the process. With `keep_done`, completed jobs stay with their results."""

    def __init__(self, *, keep_done: bool = False, clock: Clock = time.time) -> None:
        self.keep_done, self.clock = keep_done, clock
        self.lock = threading.RLock()
        self._pools: dict[str, MemoryWorkPool] = {}
        self._numbers = 0

    def __repr__(self) -> str:
        return f"MemoryWorkBackend({len(self._pools)} pools)"

    def pool(self, name: str) -> MemoryWorkPool:
        with self.lock:
            if checked_name("pool", name) not in self._pools:
                self._pools[name] = MemoryWorkPool(self, name)
            return self._pools[name]

    async def pools(self) -> Sequence[str]:
        with self.lock:
            return sorted(name for name, pool in self._pools.items() if pool.jobs)

    async def close(self) -> None:
        """Nothing to close: what is stored lives as long as this object."""

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers


class MemoryWorkPool:
    """One queue. The pending and the leased are heaps that may hold what is so no more, and is passed over."""

    def __init__(self, backend: MemoryWorkBackend, name: str) -> None:
        self.name = name
        self.jobs: dict[str, _Job] = {}
        self._backend, self._lock = backend, backend.lock
        self._pending: list[int] = []
        self._leases: list[tuple[float, int]] = []
        self._keys: dict[tuple[str, str], _Job] = {}
        self._size = 0

    async def push(
        self, item: Any, options: Mapping[str, Any] | None = None, *, max_retries: int | None = None
    ) -> str:
        return (await self.push_many((item,), max_retries=checked_retries(options, max_retries)))[0]

    async def push_many(self, items: Sequence[Any], *, max_retries: int | None = None) -> Sequence[str]:
        retries = checked_retries(None, max_retries)
        bodies = [encode(item, "item") for item in items]
        with self._lock:
            return [self._add(body, retries) for body in bodies]

    def _add(self, body: bytes, retries: int) -> str:
        job = _Job(self._backend.next_number(), body, retries, self._backend.clock())
        self.jobs[str(job.num)] = job
        self._put_back(job)
        return str(job.num)

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> WorkItem | None:
        worker_id, lease, now = checked_worker(worker_id), checked_lease(lease), self._backend.clock()
        with self._lock:
            self._sweep(now)
            if (
                key is not None
                and (held := self._keys.get((worker_id, checked_name("key", key)))) is not None
            ):
                return held.item()
            return self._next(worker_id, now, lease, key)

    async def claim_many(
        self, worker_id: str, limit: int, *, lease: float | None = None
    ) -> Sequence[WorkItem]:
        worker_id, lease, now = checked_worker(worker_id), checked_lease(lease), self._backend.clock()
        wanted = checked_limit(limit)
        given: list[WorkItem] = []
        with self._lock:
            self._sweep(now)
            while len(given) < wanted and (item := self._next(worker_id, now, lease, None)) is not None:
                given.append(item)
        return given

    def _next(self, worker_id: str, now: float, lease: float | None, key: str | None) -> WorkItem | None:
        """Give the oldest pending job away."""
        while self._pending:
            job = self.jobs.get(str(heapq.heappop(self._pending)))
            if job is not None and job.status == "pending":
                return self._give(job, worker_id, now, lease, key)
        return None

    def _give(self, job: _Job, worker_id: str, now: float, lease: float | None, key: str | None) -> WorkItem:
        job.status, job.worker, job.claimed_at, job.key = "claimed", worker_id, now, key
        job.attempts += 1
        self._size -= 1
        if key is not None:
            self._keys[worker_id, key] = job
        if lease is not None:
            self._lease(job, now + lease)
        return job.item()

    def _lease(self, job: _Job, until: float) -> None:
        job.lease_until = until
        heapq.heappush(self._leases, (until, job.num))

    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool:
        seconds, now = checked_lease(lease), self._backend.clock()
        with self._lock:
            self._sweep(now)
            job = self.jobs.get(item_id)
            if job is None or job.status != "claimed" or job.worker != worker_id or seconds is None:
                return False
            self._lease(job, now + seconds)
            return True

    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None:
        await self.complete_many({item_id: result}, worker_id=worker_id)

    async def complete_many(self, results: Mapping[str, Any], *, worker_id: str | None = None) -> None:
        bodies = {item_id: encode(result, "result") for item_id, result in results.items()}
        with self._lock:
            self._sweep(self._backend.clock())
            jobs = [self._found(item_id) for item_id in bodies]
            ending = [job for job in jobs if not (job.status == "done" and worker_id in (None, job.worker))]
            for job in ending:
                refuse_foreign(str(job.num), job.status, job.worker, worker_id)
            for job in ending:
                self._end(job, bodies[str(job.num)], worker_id)

    def _end(self, job: _Job, body: bytes, worker_id: str | None) -> None:
        self._leave(job)
        if self._backend.keep_done:
            job.status, job.result, job.worker = "done", body, worker_id or job.worker
        else:
            del self.jobs[str(job.num)]

    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> WorkStatus:
        with self._lock:
            self._sweep(self._backend.clock())
            job = self._found(item_id)
            refuse_foreign(str(job.num), job.status, job.worker, worker_id)
            self._leave(job)
            job.worker, job.error = None, error_text(error)
            return self._again(job, "")

    async def release_by_worker(self, worker_id: str) -> int:
        with self._lock:
            held = [job for job in self.jobs.values() if job.status == "claimed" and job.worker == worker_id]
            for job in held:
                self._leave(job)
                job.worker = None
                self._put_back(job)
            return len(held)

    async def size(self) -> int:
        with self._lock:
            self._sweep(self._backend.clock())
            return self._size

    async def get(self, item_id: str) -> WorkItem | None:
        with self._lock:
            self._sweep(self._backend.clock())
            job = self.jobs.get(item_id)
            return None if job is None else job.item()

    async def items(
        self, *, status: WorkStatus | None = None, limit: int | None = None
    ) -> Sequence[WorkItem]:
        check_status(status)
        with self._lock:
            self._sweep(self._backend.clock())
            found = [job for job in self.jobs.values() if status in (None, job.status)]
            return [job.item() for job in found[:limit]]

    async def retry(self, item_id: str) -> None:
        with self._lock:
            job = self._found(item_id)
            if job.status != "poisoned":
                raise WorkNotHeld(item_id, f"it is {job.status}, not poisoned")
            job.attempts = 0
            self._put_back(job)

    async def discard(self, item_id: str) -> bool:
        with self._lock:
            job = self.jobs.get(item_id)
            if job is not None and job.status == "claimed":
                raise WorkNotHeld(item_id, f"worker {job.worker} holds it")
            if job is not None:
                self._leave(job)
            return self.jobs.pop(item_id, None) is not None

    # -- inside -------------------------------------------------------------------------

    def _found(self, item_id: str) -> _Job:
        job = self.jobs.get(item_id)
        if job is None:
            raise WorkItemNotFound(item_id, self.name)
        return job

    def _leave(self, job: _Job) -> None:
        """Take a job out of whatever its status keeps it in."""
        if job.status == "pending":
            self._size -= 1
        if job.key is not None and job.worker is not None:
            self._keys.pop((job.worker, job.key), None)
        job.key = job.lease_until = None

    def _put_back(self, job: _Job) -> None:
        job.status, job.claimed_at = "pending", None
        self._size += 1
        heapq.heappush(self._pending, job.num)

    def _again(self, job: _Job, why: str) -> WorkStatus:
        """After a failed attempt: pending, or poisoned when none is left."""
        if job.attempts < job.max_retries:
            self._put_back(job)
        else:
            job.status, job.claimed_at, job.error = "poisoned", None, why or job.error
            log_poisoned(self.name, str(job.num), job.attempts, job.error)
        return job.status

    def _sweep(self, now: float) -> None:
        """End the claims whose lease is over."""
        while self._leases and self._leases[0][0] <= now:
            until, num = heapq.heappop(self._leases)
            job = self.jobs.get(str(num))
            if job is not None and job.status == "claimed" and job.lease_until == until:
                self._leave(job)
                worker, job.worker = job.worker, None
                self._again(job, expired(worker, job.attempts))


class MemoryRegistrationBackend:
    """A register of workers that ends with the process."""

    def __init__(self, *, clock: Clock = time.time) -> None:
        self.clock = clock
        self._records: dict[str, WorkerRecord] = {}
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        return f"MemoryRegistrationBackend({len(self._records)} workers)"

    async def register(self, worker: Registering) -> WorkerRecord:
        said = registration_of(worker)
        record = WorkerRecord(
            **{name: getattr(said, name) for name in said.__dataclass_fields__}, last_heartbeat=self.clock()
        )
        with self._lock:
            self._records[said.worker_id] = record
        return record

    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None:
        more = orjson.loads(encode(dict(metadata or {}), "metadata"))
        with self._lock:
            record = self._found(worker_id)
            task = record.current_task_id if current_task_id is None else current_task_id or None
            self._records[worker_id] = replace(
                record,
                last_heartbeat=self.clock(),
                metadata={**record.metadata, **more},
                current_task_id=task,
            )

    async def update_status(self, worker_id: str, status: str) -> None:
        checked_name("status", status)
        with self._lock:
            self._records[worker_id] = replace(self._found(worker_id), status=status)

    async def get(self, worker_id: str) -> WorkerRecord | None:
        return self._records.get(worker_id)

    async def list(self, filter: Filtering | None = None) -> Sequence[WorkerRecord]:
        with self._lock:
            records = sorted(self._records.items())
        now = self.clock()
        return [record for _, record in records if passes(record, filter, now)]

    async def close(self) -> None:
        """Nothing to close."""

    def _found(self, worker_id: str) -> WorkerRecord:
        record = self._records.get(worker_id)
        if record is None:
            raise WorkerNotFound(worker_id)
        return record
