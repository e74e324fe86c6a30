"""Work pools in a PostgreSQL database, for any number of machines and processes.

Each method is one statement, and so one transaction. A claim takes the head of a partial index of pending jobs with
`FOR UPDATE SKIP LOCKED`: claimers do not wait for each other, and it costs the same however many jobs wait. It also
says whether some lease is over; only then is there a second statement, which ends it.

A statement whose answer was lost is sent again (`postgres.pool`). A claim finds the job that it took by its key, or
by a random one. A push finds its jobs by their stamps; only one that was done and deleted in those few moments is
stored twice. What else is repeated changes nothing the second time.

The tables are in `postgres.work_tables`.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from flat.backends.postgres.answers import Answer, Unreachable
from flat.backends.postgres.commit import new_stamp
from flat.backends.postgres.names import key, maybe_key
from flat.backends.postgres.url import Address
from flat.backends.postgres.work_tables import URL, DatabaseBackend
from flat.backends.work import (
    DONE,
    PENDING,
    POISONED,
    STATUSES,
    Clock,
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
    item_of,
    log_poisoned,
    not_held,
    number_in,
)
from flat.errors import WorkItemNotFound, WorkNotHeld

NAME_POOL = """
WITH made AS (INSERT INTO work_pools (key, name) VALUES ($1, $2) ON CONFLICT (key) DO NOTHING RETURNING num)
SELECT num FROM made UNION ALL SELECT num FROM work_pools WHERE key = $1
"""
COLUMNS = (
    "num, data, status, worker, attempts, max_retries, created_at, claimed_at, lease_until, error, result"
)
INSERT = "INSERT INTO work_jobs (pool, max_retries, created_at, stamp, data)"
KNOWN = "ON CONFLICT (stamp) DO UPDATE SET stamp = excluded.stamp RETURNING num"
PUSH_ONE = f"{INSERT} VALUES ($1, $2, $3, $4, $5) {KNOWN}"
PUSH = f"""
{INSERT} SELECT $1, $2, $3, stamp, body
FROM unnest($4::bigint[], $5::bytea[]) WITH ORDINALITY AS new (stamp, body, place)
ORDER BY place {KNOWN}
"""
CLAIM_ONE = f"""
UPDATE work_jobs SET status = 1, worker_key = $2, worker = $3, attempts = attempts + 1, claimed_at = $4,
    lease_until = $5, claim_key = $6
WHERE num = (
    SELECT num FROM work_jobs WHERE pool = $1 AND status = 0 ORDER BY num + 0 LIMIT 1 FOR UPDATE SKIP LOCKED
) AND NOT EXISTS (SELECT 1 FROM work_jobs WHERE pool = $1 AND lease_until <= $4) RETURNING {COLUMNS}
"""
CLAIM = f"""
WITH overdue AS (SELECT 1 FROM work_jobs WHERE pool = $1 AND lease_until <= $4 LIMIT 1),
held AS (SELECT {COLUMNS} FROM work_jobs WHERE pool = $1 AND claim_key = $6 AND worker_key = $2 AND status = 1),
heads AS (
    SELECT num FROM work_jobs WHERE pool = $1 AND status = 0
        AND NOT EXISTS (SELECT 1 FROM overdue) AND NOT EXISTS (SELECT 1 FROM held)
    ORDER BY num + 0 LIMIT $7 FOR UPDATE SKIP LOCKED
),
taken AS (
    UPDATE work_jobs SET status = 1, worker_key = $2, worker = $3, attempts = attempts + 1, claimed_at = $4,
        lease_until = $5, claim_key = $6
    WHERE num IN (SELECT num FROM heads) RETURNING {COLUMNS}
)
SELECT EXISTS (SELECT 1 FROM overdue), j.*
FROM (SELECT 1) AS one LEFT JOIN (SELECT * FROM taken UNION ALL SELECT * FROM held) AS j ON true ORDER BY j.num
"""
FREE = "worker = NULL, worker_key = NULL, claimed_at = NULL, lease_until = NULL, claim_key = NULL"
ENDED = (
    """'the lease of worker ' || worker || ' ran out in attempt ' || attempts || ', and no attempt is left'"""
)
SWEEP = f"""
WITH over AS (
    SELECT num FROM work_jobs WHERE pool = $1 AND lease_until <= $2 AND status = 1 ORDER BY num FOR UPDATE SKIP LOCKED
)
UPDATE work_jobs SET {FREE}, status = CASE WHEN attempts >= max_retries THEN 3 ELSE 0 END, error = {ENDED}
WHERE num IN (SELECT num FROM over) RETURNING num, attempts, status, error
"""
HELD = """
pool = $1 AND status < 2 AND ($2::bytea IS NULL OR worker_key = $2) AND (lease_until IS NULL OR lease_until > $3)
"""
COMPLETE = f"""
WITH given AS (SELECT * FROM unnest($4::bigint[], $5::bytea[]) AS given (num, result)),
held AS (SELECT num FROM work_jobs WHERE {HELD} AND num = ANY ($4) ORDER BY num FOR UPDATE),
fits AS (
    SELECT (SELECT count(*) FROM held) + (SELECT count(*) FROM work_jobs WHERE pool = $1 AND num = ANY ($4)
        AND status = 2 AND ($2 IS NULL OR worker_key = $2)) = (SELECT count(*) FROM given) AS all_of_them
),
changed AS ({{change}})
SELECT all_of_them FROM fits
"""
MINE = "j.num IN (SELECT num FROM held) AND (SELECT all_of_them FROM fits)"
DELETE_DONE = COMPLETE.format(change=f"DELETE FROM work_jobs j WHERE {MINE}")
KEEP_DONE = COMPLETE.format(
    change="UPDATE work_jobs j SET status = 2, result = given.result, worker_key = coalesce($2, worker_key), "
    "worker = coalesce($6, worker), lease_until = NULL, claim_key = NULL "
    f"FROM given WHERE given.num = j.num AND {MINE}"
)
DELETE_ONE = f"DELETE FROM work_jobs WHERE {HELD} AND num = $4 RETURNING 1"
FAIL = f"""
UPDATE work_jobs SET {FREE}, status = CASE WHEN attempts >= max_retries THEN 3 ELSE 0 END, error = $5
WHERE {HELD} AND num = $4 RETURNING status, attempts
"""
RENEW = f"UPDATE work_jobs SET lease_until = $5 WHERE {HELD} AND num = $4 AND status = 1 RETURNING 1"
RELEASE = f"""
WITH freed AS (UPDATE work_jobs SET {FREE}, status = 0 WHERE pool = $1 AND status = 1 AND worker_key = $2 RETURNING 1)
SELECT count(*) FROM freed
"""


class PostgresWorkBackend(DatabaseBackend):
    """Pools in a database: `PostgresWorkBackend("postgresql://user@host/db")`. With `keep_done`, results are kept."""

    def __init__(
        self, address: str | Address = URL, *, keep_done: bool = False, clock: Clock = time.time
    ) -> None:
        super().__init__(address, clock=clock)
        self.keep_done = keep_done

    def pool(self, name: str) -> PostgresWorkPool:
        return PostgresWorkPool(self, checked_name("pool", name))

    async def pools(self) -> Sequence[str]:
        query = "SELECT name FROM work_pools p WHERE " + " OR ".join(
            f"EXISTS (SELECT 1 FROM work_jobs WHERE pool = p.num AND status {which})"
            for which in ("= 0", "= 1", "> 1")
        )
        return sorted(name for (name,) in await self.rows("listing the pools", query))


class PostgresWorkPool:
    """One queue in the database."""

    def __init__(self, backend: PostgresWorkBackend, name: str) -> None:
        self.name = name
        self._backend = backend
        self._rows = backend.rows
        self._pool_number = 0

    async def _number(self) -> int:
        """The pool's number. Pools are never taken out again."""
        while not self._pool_number:
            # Nothing comes back when somebody else named it in this very moment.
            for (number,) in await self._rows("naming a pool", NAME_POOL, key(self.name), self.name):
                self._pool_number = number
        return self._pool_number

    # -- in and out -------------------------------------------------------------------------

    async def push(
        self, item: Any, options: Mapping[str, Any] | None = None, *, max_retries: int | None = None
    ) -> str:
        retries = checked_retries(options, max_retries)
        return (await self._push([encode(item, "item")], retries))[0]

    async def push_many(self, items: Sequence[Any], *, max_retries: int | None = None) -> Sequence[str]:
        retries = checked_retries(None, max_retries)
        return await self._push([encode(item, "item") for item in items], retries)

    async def _push(self, bodies: list[bytes], retries: int) -> list[str]:
        facts, doing = (await self._number(), retries, self._backend.clock()), f"pushing {len(bodies)} jobs"
        if len(bodies) == 1:
            rows = await self._rows(doing, PUSH_ONE, *facts, new_stamp(), bodies[0])
        else:
            rows = await self._rows(doing, PUSH, *facts, [new_stamp() for _ in bodies], bodies)
        return [str(num) for (num,) in rows]

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> WorkItem | None:
        found = await self._claim(worker_id, 1, lease, key)
        return found[0] if found else None

    async def claim_many(
        self, worker_id: str, limit: int, *, lease: float | None = None
    ) -> Sequence[WorkItem]:
        return await self._claim(worker_id, checked_limit(limit), lease, None)

    async def _claim(
        self, worker_id: str, limit: int, lease: float | None, name: str | None
    ) -> list[WorkItem]:
        checked_worker(worker_id)
        seconds, now = checked_lease(lease), self._backend.clock()
        until = None if seconds is None else now + seconds
        claim_key = secrets.token_bytes(24) if name is None else key(checked_name("key", name))
        values = (await self._number(), key(worker_id), worker_id, now, until, claim_key, limit)
        if name is None and limit == 1:
            # The usual case by itself: no lease is over, and there is a job.
            answer = Answer()
            with suppress(Unreachable):
                await self._backend.database.ask(
                    answer, "claiming a job", CLAIM_ONE, values[:-1], again=False
                )
            if answer.rows:
                return [item_of(answer.rows[0])]
        while True:
            rows = await self._rows("claiming jobs", CLAIM, *values)
            if not rows[0][0]:
                return [item_of(row[1:]) for row in rows if row[1] is not None]
            await self._sweep(now)

    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool:
        seconds, now = checked_lease(lease), self._backend.clock()
        values = (await self._number(), key(checked_worker(worker_id)), now, number_in(item_id))
        return bool(await self._rows("renewing a lease", RENEW, *values, now + (seconds or 0.0)))

    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None:
        if not self._backend.keep_done:
            encode(result, "result")
            # The usual case by itself; whatever else there is to say is said by the other.
            values = (await self._number(), maybe_key(worker_id), self._backend.clock(), number_in(item_id))
            answer = Answer()
            await self._backend.database.ask(answer, "completing a job", DELETE_ONE, values)
            if answer.rows or answer.repeated:
                return
        await self.complete_many({item_id: result}, worker_id=worker_id)

    async def complete_many(self, results: Mapping[str, Any], *, worker_id: str | None = None) -> None:
        bodies = {item_id: encode(result, "result") for item_id, result in results.items()}
        if not bodies:
            return
        nums, keep = [number_in(item_id) for item_id in bodies], self._backend.keep_done
        values = (
            await self._number(),
            maybe_key(worker_id),
            self._backend.clock(),
            nums,
            list(bodies.values()),
        )
        answer, doing = Answer(), f"completing {len(bodies)} jobs"
        for swept in (False, True):
            if keep:
                await self._backend.database.ask(answer, doing, KEEP_DONE, (*values, worker_id))
            else:
                await self._backend.database.ask(answer, doing, DELETE_DONE, values)
            if answer.rows == [(True,)]:
                return
            if not swept:
                await self._sweep(self._backend.clock())
        for item_id in bodies:
            try:
                status, holder = await self._standing(item_id)
            except WorkItemNotFound:
                if answer.repeated and not keep:
                    # Our own doing, of which we did not hear.
                    continue
                raise
            # What was done before by the same hands does not stand in the way of the others.
            if status == POISONED or (status == DONE and worker_id not in (None, holder)):
                raise not_held(item_id, STATUSES[status], holder, worker_id)
            if status != DONE and worker_id not in (None, holder):
                raise not_held(item_id, STATUSES[status], holder, worker_id)

    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> WorkStatus:
        text, answer = error_text(error), Answer()
        await self._sweep(self._backend.clock())
        values = (await self._number(), maybe_key(worker_id), self._backend.clock(), number_in(item_id), text)
        await self._backend.database.ask(answer, "failing a job", FAIL, values)
        if not answer.rows:
            status, holder = await self._standing(item_id)
            if answer.repeated and holder is None and status in (PENDING, POISONED):
                return STATUSES[status]
            raise not_held(item_id, STATUSES[status], holder, worker_id)
        status, attempts = answer.rows[0]
        if status == POISONED:
            log_poisoned(self.name, item_id, attempts, text)
        return STATUSES[status]

    async def release_by_worker(self, worker_id: str) -> int:
        values = (await self._number(), key(checked_worker(worker_id)))
        ((count,),) = await self._rows("releasing a worker's jobs", RELEASE, *values)
        return int(count)

    # -- looking ------------------------------------------------------------------------------

    async def size(self) -> int:
        await self._sweep(self._backend.clock())
        query = "SELECT count(*) FROM work_jobs WHERE pool = $1 AND status = 0"
        return int((await self._rows("counting jobs", query, await self._number()))[0][0])

    async def get(self, item_id: str) -> WorkItem | None:
        await self._sweep(self._backend.clock())
        query = f"SELECT {COLUMNS} FROM work_jobs WHERE num = $2 AND pool = $1"
        rows = await self._rows("reading a job", query, await self._number(), number_in(item_id))
        return item_of(rows[0]) if rows else None

    async def items(
        self, *, status: WorkStatus | None = None, limit: int | None = None
    ) -> Sequence[WorkItem]:
        check_status(status)
        await self._sweep(self._backend.clock())
        # A status in the text of the query is what lets the server use the partial index of that status.
        condition = "" if status is None else f" AND status = {STATUSES.index(status)}"
        if status in ("done", "poisoned"):
            condition += " AND status > 1"
        query = f"SELECT {COLUMNS} FROM work_jobs WHERE pool = $1{condition} ORDER BY num LIMIT $2"
        return [item_of(row) for row in await self._rows("listing jobs", query, await self._number(), limit)]

    async def retry(self, item_id: str) -> None:
        query = "UPDATE work_jobs SET status = 0, attempts = 0 WHERE num = $2 AND pool = $1 AND status = 3 RETURNING 1"
        answer, values = Answer(), (await self._number(), number_in(item_id))
        await self._backend.database.ask(answer, "retrying a job", query, values)
        if not answer.rows:
            status, _ = await self._standing(item_id)
            if not (answer.repeated and status != DONE):
                raise WorkNotHeld(item_id, f"it is {STATUSES[status]}, not poisoned")

    async def discard(self, item_id: str) -> bool:
        query = "DELETE FROM work_jobs WHERE num = $2 AND pool = $1 AND status <> 1 RETURNING 1"
        answer, values = Answer(), (await self._number(), number_in(item_id))
        await self._backend.database.ask(answer, "discarding a job", query, values)
        if answer.rows:
            return True
        try:
            _, holder = await self._standing(item_id)
        except WorkItemNotFound:
            return answer.repeated
        raise WorkNotHeld(item_id, f"worker {holder} holds it")

    # -- inside ---------------------------------------------------------------------------------

    async def _standing(self, item_id: str) -> tuple[int, str | None]:
        """Status and holder of a job that must be there."""
        query = "SELECT status, worker FROM work_jobs WHERE num = $2 AND pool = $1"
        rows = await self._rows("reading a job", query, await self._number(), number_in(item_id))
        if not rows:
            raise WorkItemNotFound(item_id, self.name)
        return rows[0][0], rows[0][1]

    async def _sweep(self, now: float) -> None:
        """End the claims whose lease is over."""
        for num, attempts, status, error in await self._rows(
            "ending leases", SWEEP, await self._number(), now
        ):
            if status == POISONED:
                log_poisoned(self.name, str(num), attempts, error)
