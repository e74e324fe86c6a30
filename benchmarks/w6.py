"""W6: a queue of jobs in one SQLite file: push them all, then claim and complete them with four tasks at once.

The last case of flat is the drill: processes that are killed at random, and nothing lost or given twice.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
import orjson

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload, figure
from benchmarks.peers import peer
from flat.backends.sqlite.work import SQLiteWorkBackend
from flat.testing.work_drill import drill

FILE = Path("x.db")
WORKERS = 4
BATCH = 16
NORMAL = "limit: raw sqlite NORMAL"
FULL = "limit: raw sqlite FULL"
FLAT = "flat NORMAL"
FLAT_FULL = "flat FULL"
LEASED = "flat NORMAL, leases"
BATCHED = "flat NORMAL, 16 at a time"
RAW_BATCHED = "limit: raw sqlite NORMAL, 16 at a time"
BACKLOG = "flat NORMAL, beside 100,000 more"
DRILL = "flat, 8 processes, kill -9"
UPSTREAM = "flatmachines, WAL file"
Synchronous = Literal["NORMAL", "FULL"]


def _times(case: str, other: str) -> Any:
    def value(measured: Sequence[Measured]) -> float:
        return measured[0].ratio(case, other, "cpu")

    return value


def _wrong(measured: Sequence[Measured]) -> float:
    return sum(sum(m.values(DRILL, key)) for m in measured for key in ("lost", "twice"))


WORKLOAD = Workload(
    "w6", "work queue in SQLite", "job: push, claim, complete", [{"n": 5000, "drill": 80_000}],
    [{"n": 300, "drill": 500}], NORMAL,
    columns=[("killed", lambda m, case: figure(m.median(case, "killed")))],
    targets=[
        Target("× raw sqlite NORMAL, CPU", 2, 1.5, _times(FLAT, NORMAL)),
        Target("× raw sqlite FULL, wall", None, 1.5, lambda m: m[0].ratio(FLAT_FULL, FULL, "wall")),
        Target("µs a job, CPU", 150, None, lambda m: m[0].best(FLAT, "cpu")),
        Target("µs a job 16 at a time, CPU", 30, None, lambda m: m[0].best(BATCHED, "cpu")),
        Target("× raw sqlite NORMAL 16 at a time, CPU", 2, None, _times(BATCHED, RAW_BATCHED)),
        Target("times the cost beside 100,000 more jobs", 1.2, 1.1, _times(BACKLOG, FLAT)),
        Target("times cheaper than flatmachines", 12, None, _times(UPSTREAM, FLAT), at_least=True),
        Target("jobs lost or given twice, with workers killed", 0, 0, _wrong),
    ],
)  # fmt: skip


def _fewer(sizes: Sizes) -> int:
    """For those that wait for the disk."""
    return max(50, sizes["n"] // 10)


def _checked(done: list[int], n: int) -> Record:
    assert sorted(done) == list(range(n)), f"{len(done)} of {n} done, {len(set(done))} different"
    return {"operations": n, "killed": 0}


# -- limits -------------------------------------------------------------------------------------

CLAIM = """
UPDATE job SET state = 1, worker = ?, attempts = attempts + 1
WHERE id = (SELECT id FROM job WHERE state = 0 ORDER BY id LIMIT 1) RETURNING id, data
"""


def _raw(n: int, meter: Meter, synchronous: Synchronous) -> Record:
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    connection.execute(
        "CREATE TABLE job (id INTEGER PRIMARY KEY, state INTEGER NOT NULL, worker TEXT, "
        "attempts INTEGER DEFAULT 0, data BLOB)"
    )
    connection.execute("CREATE INDEX pending ON job (id) WHERE state = 0")
    done: list[int] = []

    async def work(worker: str) -> None:
        while row := connection.execute(CLAIM, (worker,)).fetchall():
            done.append(orjson.loads(row[0][1])["i"])
            await asyncio.sleep(0)
            connection.execute("DELETE FROM job WHERE id = ?", (row[0][0],))

    async def go() -> None:
        for i in range(n):
            connection.execute("INSERT INTO job (state, data) VALUES (0, ?)", (orjson.dumps({"i": i}),))
        await asyncio.gather(*(work(f"w{k}") for k in range(WORKERS)))

    with meter:
        asyncio.run(go())
    connection.close()
    return _checked(done, n)


@WORKLOAD.case(
    NORMAL, "one connection, UPDATE … RETURNING on a partial index, a commit per push, claim and complete"
)
def raw_normal(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes["n"], meter, "NORMAL")


@WORKLOAD.case(FULL, "the same; one fsync per commit, a tenth of the jobs", limit=FULL)
def raw_full(sizes: Sizes, meter: Meter) -> Record:
    return _raw(_fewer(sizes), meter, "FULL")


@WORKLOAD.case(RAW_BATCHED, "16 jobs per transaction", limit=RAW_BATCHED)
def raw_batched(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(
        "CREATE TABLE job (id INTEGER PRIMARY KEY, state INTEGER, worker TEXT, attempts INTEGER, data BLOB)"
    )
    connection.execute("CREATE INDEX pending ON job (id) WHERE state = 0")
    claim = CLAIM.replace("id = (", "id IN (").replace("LIMIT 1", f"LIMIT {BATCH}")
    done: list[int] = []
    with meter:
        for first in range(0, n, BATCH):
            rows = [(orjson.dumps({"i": i}),) for i in range(first, min(first + BATCH, n))]
            connection.execute("BEGIN")
            connection.executemany("INSERT INTO job VALUES (NULL, 0, NULL, 0, ?)", rows)
            connection.execute("COMMIT")
        while taken := connection.execute(claim, ("w",)).fetchall():
            done += [orjson.loads(data)["i"] for _, data in taken]
            connection.execute("BEGIN")
            connection.executemany("DELETE FROM job WHERE id = ?", [row[:1] for row in taken])
            connection.execute("COMMIT")
    connection.close()
    return _checked(done, n)


# -- flat -----------------------------------------------------------------------------------------


async def _drain(pool: Any, done: list[int], worker: str, lease: float | None) -> None:
    named = {} if lease is None else {"lease": lease}
    while (item := await pool.claim(worker, **named)) is not None:
        done.append(item.data["i"])
        await anyio.lowlevel.checkpoint()
        await pool.complete(item.id, worker_id=worker)


def _flat(
    n: int, meter: Meter, synchronous: Synchronous = "NORMAL", *, lease: float | None = None, beside: int = 0
) -> Record:
    done: list[int] = []

    async def go() -> None:
        async with SQLiteWorkBackend(FILE, synchronous=synchronous) as backend:
            pool = backend.pool("jobs")
            for name in ("jobs beside", "jobs"):
                # Half of them wait in another pool, half are taken by a worker that does not end them.
                await backend.pool(name).push_many([{"i": -1}] * (beside // 2))
            for _ in range(beside // 2):
                await pool.claim("absent")
            with meter:
                for i in range(n):
                    await pool.push({"i": i})
                async with anyio.create_task_group() as group:
                    for k in range(WORKERS):
                        group.start_soon(_drain, pool, done, f"w{k}", lease)
            assert await pool.size() == 0

    anyio.run(go)
    return _checked(done, n)


@WORKLOAD.case(FLAT, "SQLiteWorkBackend, completed by the worker's name")
def flat_normal(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes["n"], meter)


@WORKLOAD.case(FLAT_FULL, "the same with synchronous=FULL, a tenth of the jobs", limit=FULL)
def flat_full(sizes: Sizes, meter: Meter) -> Record:
    return _flat(_fewer(sizes), meter, "FULL")


@WORKLOAD.case(LEASED, "each claim with a lease of 60 s")
def flat_leased(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes["n"], meter, lease=60)


@WORKLOAD.case(BATCHED, "push_many, claim_many, complete_many", limit=RAW_BATCHED)
def flat_batched(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    done: list[int] = []

    async def go() -> None:
        async with SQLiteWorkBackend(FILE) as backend:
            pool = backend.pool("jobs")
            with meter:
                for first in range(0, n, BATCH):
                    await pool.push_many([{"i": i} for i in range(first, min(first + BATCH, n))])
                while items := await pool.claim_many("w", BATCH):
                    done.extend(item.data["i"] for item in items)
                    await pool.complete_many({item.id: None for item in items}, worker_id="w")

    anyio.run(go)
    return _checked(done, n)


@WORKLOAD.case(BACKLOG, "while 50,000 jobs wait in another pool and 50,000 are in somebody's hands")
def flat_beside(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes["n"], meter, beside=20 * sizes["n"])


@WORKLOAD.case(DRILL, "workers are processes; 40 of them are killed and replaced; wall clock of all")
def flat_drill(sizes: Sizes, meter: Meter) -> Record:
    jobs = sizes["drill"]
    arguments = {"type": "sqlite", "db_path": str(FILE.absolute())}
    with meter.children():
        report = drill(
            "flat.backends.by_name:create_work_backend", arguments, jobs=jobs, kills=min(40, jobs // 50)
        )
    assert not report.failed
    twice = report.given_twice + report.ended_twice
    return {"operations": jobs, "killed": report.killed, "lost": jobs - report.done, "twice": twice}


# -- peers --------------------------------------------------------------------------------------------


@WORKLOAD.case(
    UPSTREAM, "SQLiteWorkBackend on a file put into WAL beforehand; FULL, which cannot be set; a fifth of the jobs",
    limit=FULL, needs=["flatmachines"],
)  # fmt: skip
def flatmachines(sizes: Sizes, meter: Meter) -> Record:
    n = max(50, sizes["n"] // 5)
    connection = sqlite3.connect(FILE)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.close()
    pool = peer("flatmachines.work").SQLiteWorkBackend(str(FILE)).pool("jobs")
    done: list[int] = []

    async def work(worker: str) -> None:
        while (item := await pool.claim(worker)) is not None:
            done.append(item.data["i"])
            await asyncio.sleep(0)
            await pool.complete(item.id)

    async def go() -> None:
        for i in range(n):
            await pool.push({"i": i})
        await asyncio.gather(*(work(f"w{k}") for k in range(WORKERS)))

    with meter:
        asyncio.run(go())
    return _checked(done, n)
