"""Work pools and the register of workers in a SQLite file, for one machine and any number of its processes.

The tables stand in a store's file: the one that executions are kept in, or one of their own, which is a store's
file as well. Pushing, claiming and completing are one statement each, which SQLite runs as a transaction. A claim
takes the head of a partial index of pending jobs, so that it costs the same however many wait, and leases and
keys have indexes that hold only the jobs that have them.

A job's number is the time of its push in microseconds, or one more than the highest there is: so jobs stand in
the order of their commits, whatever process pushed them, and the id of a job that was deleted does not come back.

SQLite runs on the event loop's own thread, for the reasons given in `backends.sqlite.store`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import orjson

from flat.backends.sqlite.schema import Synchronous
from flat.backends.sqlite.work_file import DB_PATH, FileBackend
from flat.backends.work import (
    CLAIMED,
    DONE,
    PENDING,
    POISONED,
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
    expired,
    item_of,
    log_poisoned,
    not_held,
    number_in,
    registration_of,
    statuses,
)
from flat.errors import WorkerNotFound, WorkItemNotFound, WorkNotHeld

COLUMNS = (
    "num, data, status, worker, attempts, max_retries, created_at, claimed_at, lease_until, error, result"
)
NEXT = "max(?, 1 + coalesce((SELECT max(num) FROM work_jobs), 0))"
INTO = "INSERT INTO work_jobs (num, pool, status, attempts, max_retries, created_at, data) VALUES"
PUSH = f"{INTO} ({NEXT}, ?, 0, 0, ?, ?, ?) RETURNING num"
FIRST = f"SELECT {NEXT}"
PUSH_AS = f"{INTO} (?, ?, 0, 0, ?, ?, ?)"
HEAD = "(SELECT num FROM work_jobs WHERE pool = ? AND status = 0 ORDER BY num LIMIT 1)"
CLAIM = f"""
UPDATE work_jobs SET status = 1, worker = ?, attempts = attempts + 1, claimed_at = ?, lease_until = ?, claim_key = ?
WHERE num = {HEAD} RETURNING num, data, attempts, max_retries, created_at, error
"""
CLAIM_MANY = f"""
UPDATE work_jobs SET status = 1, worker = ?, attempts = attempts + 1, claimed_at = ?, lease_until = ?
WHERE num IN (SELECT num FROM work_jobs WHERE pool = ? AND status = 0 ORDER BY num LIMIT ?) RETURNING {COLUMNS}
"""
CLAIMED_WITH = (
    f"SELECT {COLUMNS} FROM work_jobs WHERE pool = ? AND claim_key = ? AND worker = ? AND status = 1"
)
OVERDUE = "SELECT 1 FROM work_jobs WHERE pool = ? AND lease_until <= ? LIMIT 1"
HELD = "num = ?1 AND pool = ?2 AND status < 2 AND (?3 IS NULL OR worker = ?3)"
KEEP_DONE = f"""
UPDATE work_jobs SET status = 2, result = ?4, worker = coalesce(?3, worker), lease_until = NULL, claim_key = NULL
WHERE {HELD}
"""
DELETE = f"DELETE FROM work_jobs WHERE {HELD}"
FREE = "worker = NULL, claimed_at = NULL, lease_until = NULL, claim_key = NULL"


class SQLiteWorkBackend(FileBackend):
    """Pools in one file: `SQLiteWorkBackend("workers.sqlite")`. With `keep_done`, results are kept."""

    def __init__(
        self, db_path: str | PathLike[str] = DB_PATH, *, synchronous: Synchronous = "NORMAL",
        keep_done: bool = False, clock: Clock = time.time,
    ) -> None:  # fmt: skip
        super().__init__(db_path, synchronous=synchronous, clock=clock)
        self.keep_done = keep_done
        self.last = 0
        """The highest number that this object has given to a job."""

    def next_number(self) -> int:
        """The least number for the next job, so that no id comes back after its job was deleted."""
        return max(time.time_ns() // 1000, self.last + 1)

    def pool(self, name: str) -> SQLiteWorkPool:
        return SQLiteWorkPool(self, checked_name("pool", name))

    async def pools(self) -> Sequence[str]:
        query = """
        SELECT name FROM work_pools p WHERE EXISTS (SELECT 1 FROM work_jobs WHERE pool = p.num AND status = 0)
        OR EXISTS (SELECT 1 FROM work_jobs WHERE pool = p.num AND status = 1)
        OR EXISTS (SELECT 1 FROM work_jobs WHERE pool = p.num AND status > 1) ORDER BY name
        """
        return [name for (name,) in self.file.rows("listing the pools", query, ())]


class SQLiteWorkPool:
    """One queue in the file."""

    def __init__(self, backend: SQLiteWorkBackend, name: str) -> None:
        self.name = name
        self._backend, self._file = backend, backend.file
        self._pool_number = 0

    @property
    def _number(self) -> int:
        """The pool's number. Pools are never taken out again."""
        if not self._pool_number:
            with self._file.transaction("naming a pool"):
                self._file.execute(
                    "INSERT INTO work_pools (name) VALUES (?) ON CONFLICT (name) DO NOTHING", (self.name,)
                )
                query = "SELECT num FROM work_pools WHERE name = ?"
                (self._pool_number,) = self._file.execute(query, (self.name,)).fetchone()
        return self._pool_number

    # -- in and out -------------------------------------------------------------------------

    async def push(
        self, item: Any, options: Mapping[str, Any] | None = None, *, max_retries: int | None = None
    ) -> str:
        retries = checked_retries(options, max_retries)
        await self._file.turn()
        body = encode(item, "item")
        row = (self._backend.next_number(), self._number, retries, self._backend.clock(), body)
        num: int = self._file.rows("pushing a job", PUSH, row)[0][0]
        self._backend.last = num
        return str(num)

    async def push_many(self, items: Sequence[Any], *, max_retries: int | None = None) -> Sequence[str]:
        retries, number, at = checked_retries(None, max_retries), self._number, self._backend.clock()
        bodies = [encode(item, "item") for item in items]
        await self._file.turn()
        with self._file.transaction(f"pushing {len(bodies)} jobs"):
            (first,) = self._file.execute(FIRST, (self._backend.next_number(),)).fetchone()
            rows = [(first + i, number, retries, at, body) for i, body in enumerate(bodies)]
            self._file.connection.executemany(PUSH_AS, rows)
        if rows:
            self._backend.last = rows[-1][0]
        return [str(row[0]) for row in rows]

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> WorkItem | None:
        checked_worker(worker_id)
        seconds, now = checked_lease(lease), self._backend.clock()
        await self._file.turn()
        self._sweep(now)
        if key is not None:
            values = (self._number, checked_name("key", key), worker_id)
            if held := self._file.rows("claiming a job", CLAIMED_WITH, values):
                return item_of(held[0])
        until = None if seconds is None else now + seconds
        rows = self._file.rows("claiming a job", CLAIM, (worker_id, now, until, key, self._number))
        if not rows:
            return None
        num, data, attempts, max_retries, created_at, error = rows[0]
        return WorkItem(
            id=str(num), data=orjson.loads(data), status="claimed", claimed_by=worker_id, attempts=attempts,
            max_retries=max_retries, created_at=created_at, claimed_at=now, lease_until=until, error=error,
        )  # fmt: skip

    async def claim_many(
        self, worker_id: str, limit: int, *, lease: float | None = None
    ) -> Sequence[WorkItem]:
        checked_worker(worker_id)
        seconds, now = checked_lease(lease), self._backend.clock()
        await self._file.turn()
        self._sweep(now)
        until = None if seconds is None else now + seconds
        values = (worker_id, now, until, self._number, checked_limit(limit))
        # SQLite promises no order of what it returns.
        return [item_of(row) for row in sorted(self._file.rows("claiming jobs", CLAIM_MANY, values))]

    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool:
        seconds, now = checked_lease(lease), self._backend.clock()
        self._sweep(now)
        query = (
            "UPDATE work_jobs SET lease_until = ? WHERE num = ? AND pool = ? AND status = 1 AND worker = ?"
        )
        values = (now + (seconds or 0.0), number_in(item_id), self._number, checked_worker(worker_id))
        return self._file.changed("renewing a lease", query, values) == 1

    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None:
        body = encode(result, "result")
        await self._file.turn()
        self._sweep(self._backend.clock())
        self._complete(item_id, body, worker_id)

    async def complete_many(self, results: Mapping[str, Any], *, worker_id: str | None = None) -> None:
        bodies = {item_id: encode(result, "result") for item_id, result in results.items()}
        await self._file.turn()
        self._sweep(self._backend.clock())
        with self._file.transaction(f"completing {len(bodies)} jobs"):
            rows = [(number_in(item_id), self._number, worker_id, body) for item_id, body in bodies.items()]
            query = KEEP_DONE if self._backend.keep_done else f"{DELETE} AND ?4 IS NOT NULL"
            self._file.execute("SAVEPOINT together")
            if self._file.connection.executemany(query, rows).rowcount < len(rows):
                self._file.execute("ROLLBACK TO together")
                # Some were done before, which is no harm, or are not to be had: one by one it is told which.
                for item_id, body in bodies.items():
                    self._complete(item_id, body, worker_id)

    def _complete(self, item_id: str, body: bytes, worker_id: str | None) -> None:
        values = (number_in(item_id), self._number, worker_id)
        if self._backend.keep_done:
            changed = self._file.changed("completing a job", KEEP_DONE, (*values, body))
        else:
            changed = self._file.changed("completing a job", DELETE, values)
        if not changed:
            status, holder = self._standing(item_id)
            if not (status == DONE and worker_id in (None, holder)):
                raise not_held(item_id, STATUSES[status], holder, worker_id)

    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> WorkStatus:
        query = f"""
        UPDATE work_jobs SET {FREE}, status = CASE WHEN attempts >= max_retries THEN 3 ELSE 0 END, error = ?4
        WHERE {HELD} RETURNING status, attempts
        """
        self._sweep(self._backend.clock())
        values = (number_in(item_id), self._number, worker_id, error_text(error))
        rows = self._file.rows("failing a job", query, values)
        if not rows:
            found, holder = self._standing(item_id)
            raise not_held(item_id, STATUSES[found], holder, worker_id)
        status, attempts = rows[0]
        if status == POISONED:
            log_poisoned(self.name, item_id, attempts, values[3])
        return STATUSES[int(status)]

    async def release_by_worker(self, worker_id: str) -> int:
        query = f"UPDATE work_jobs SET {FREE}, status = 0 WHERE pool = ? AND status = 1 AND worker = ?"
        values = (self._number, checked_worker(worker_id))
        return self._file.changed("releasing a worker's jobs", query, values)

    # -- looking ------------------------------------------------------------------------------

    async def size(self) -> int:
        self._sweep(self._backend.clock())
        query = "SELECT count(*) FROM work_jobs WHERE pool = ? AND status = 0"
        return int(self._file.rows("counting jobs", query, (self._number,))[0][0])

    async def get(self, item_id: str) -> WorkItem | None:
        self._sweep(self._backend.clock())
        query = f"SELECT {COLUMNS} FROM work_jobs WHERE num = ? AND pool = ?"
        rows = self._file.rows("reading a job", query, (number_in(item_id), self._number))
        return item_of(rows[0]) if rows else None

    async def items(
        self, *, status: WorkStatus | None = None, limit: int | None = None
    ) -> Sequence[WorkItem]:
        check_status(status)
        self._sweep(self._backend.clock())
        # A status in the text of the query is what lets SQLite use the partial index of that status.
        condition = "" if status is None else f" AND status = {STATUSES.index(status)}"
        if status in ("done", "poisoned"):
            condition += " AND status > 1"
        query = f"SELECT {COLUMNS} FROM work_jobs WHERE pool = ?{condition} ORDER BY num LIMIT ?"
        values = (self._number, -1 if limit is None else limit)
        return [item_of(row) for row in self._file.rows("listing jobs", query, values)]

    async def retry(self, item_id: str) -> None:
        query = "UPDATE work_jobs SET status = 0, attempts = 0 WHERE num = ? AND pool = ? AND status = 3"
        if not self._file.changed("retrying a job", query, (number_in(item_id), self._number)):
            status, _ = self._standing(item_id)
            raise WorkNotHeld(item_id, f"it is {STATUSES[status]}, not poisoned")

    async def discard(self, item_id: str) -> bool:
        query = "DELETE FROM work_jobs WHERE num = ? AND pool = ? AND status <> 1"
        if self._file.changed("discarding a job", query, (number_in(item_id), self._number)):
            return True
        try:
            _, holder = self._standing(item_id)
        except WorkItemNotFound:
            return False
        raise WorkNotHeld(item_id, f"worker {holder} holds it")

    # -- inside ---------------------------------------------------------------------------------

    def _standing(self, item_id: str) -> tuple[int, str | None]:
        """Status and holder of a job that must be there."""
        query = "SELECT status, worker FROM work_jobs WHERE num = ? AND pool = ?"
        rows = self._file.rows("reading a job", query, (number_in(item_id), self._number))
        if not rows:
            raise WorkItemNotFound(item_id, self.name)
        status, worker = rows[0]
        return status, worker

    def _sweep(self, now: float) -> None:
        """End the claims whose lease is over. Whether there are any is asked without the write lock."""
        if not self._file.rows("looking for leases", OVERDUE, (self._number, now)):
            return
        with self._file.transaction("ending leases"):
            query = f"""
            SELECT num, worker, attempts, attempts >= max_retries FROM work_jobs
            WHERE pool = ? AND lease_until <= ? AND status = {CLAIMED} ORDER BY num
            """
            ended = self._file.execute(query, (self._number, now)).fetchall()
            for num, worker, attempts, spent in ended:
                error = expired(worker, attempts)
                status = POISONED if spent else PENDING
                update = f"UPDATE work_jobs SET {FREE}, status = ?, error = ? WHERE num = ?"
                self._file.execute(update, (status, error, num))
        for num, worker, attempts, spent in ended:
            if spent:
                log_poisoned(self.name, str(num), attempts, expired(worker, attempts))


class SQLiteRegistrationBackend(FileBackend):
    """The register of workers in one file: `SQLiteRegistrationBackend("workers.sqlite")`."""

    async def register(self, worker: Registering) -> WorkerRecord:
        said = registration_of(worker)
        names = said.__dataclass_fields__
        record = WorkerRecord(**{n: getattr(said, n) for n in names}, last_heartbeat=self.clock())
        self.file.changed(
            "registering a worker",
            "INSERT OR REPLACE INTO work_workers VALUES (?, ?, ?, ?, ?, ?, 'active', ?, NULL, '{}')",
            (
                said.worker_id, said.host, said.pid, orjson.dumps(list(said.capabilities)).decode(),
                said.pool_id, said.started_at, record.last_heartbeat,
            ),
        )  # fmt: skip
        return record

    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None:
        more = orjson.loads(encode(dict(metadata or {}), "metadata"))
        task = None if current_task_id is None else checked_name("current_task_id", current_task_id)
        with self.file.transaction("sending a worker's heartbeat"):
            query = "SELECT metadata, current_task_id FROM work_workers WHERE worker_id = ?"
            row = self.file.execute(query, (checked_name("worker_id", worker_id),)).fetchone()
            if row is None:
                raise WorkerNotFound(worker_id)
            merged = orjson.dumps({**orjson.loads(row[0]), **more}).decode()
            update = "UPDATE work_workers SET last_heartbeat = ?, metadata = ?, current_task_id = ? WHERE worker_id = ?"
            task = row[1] if task is None else task or None
            self.file.execute(update, (self.clock(), merged, task, worker_id))

    async def update_status(self, worker_id: str, status: str) -> None:
        values = (checked_name("status", status), checked_name("worker_id", worker_id))
        query = "UPDATE work_workers SET status = ? WHERE worker_id = ?"
        if not self.file.changed("setting a worker's status", query, values):
            raise WorkerNotFound(worker_id)

    async def get(self, worker_id: str) -> WorkerRecord | None:
        query = "SELECT * FROM work_workers WHERE worker_id = ?"
        rows = self.file.rows("reading a worker", query, (checked_name("worker_id", worker_id),))
        return _record(rows[0]) if rows else None

    async def list(self, filter: Filtering | None = None) -> Sequence[WorkerRecord]:
        conditions = ["true"]
        values: list[Any] = []
        if filter is not None:
            if (allowed := statuses(filter.status)) is not None:
                conditions.append(f"status IN ({', '.join('?' * len(allowed))})")
                values += [checked_name("status", status) for status in allowed]
            if filter.stale_threshold_seconds:
                conditions.append("last_heartbeat < ?")
                values.append(self.clock() - filter.stale_threshold_seconds)
            if filter.pool_id is not None:
                conditions.append("pool_id = ?")
                values.append(checked_name("pool_id", filter.pool_id))
        query = f"SELECT * FROM work_workers WHERE {' AND '.join(conditions)} ORDER BY worker_id"
        records = [_record(row) for row in self.file.rows("listing workers", query, values)]
        wanted = None if filter is None else filter.capability
        return [one for one in records if wanted is None or wanted in one.capabilities]


def _record(row: Sequence[Any]) -> WorkerRecord:
    return WorkerRecord(
        worker_id=row[0], host=row[1], pid=row[2], capabilities=tuple(orjson.loads(row[3])), pool_id=row[4],
        started_at=row[5], status=row[6], last_heartbeat=row[7], current_task_id=row[8],
        metadata=orjson.loads(row[9]),
    )  # fmt: skip
