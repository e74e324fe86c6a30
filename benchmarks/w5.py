"""W5: executions that are parked until a signal comes. All are parked, all get a signal, a dispatcher resumes all.

Between parking and dispatching everything is closed: what is parked is rows in a file. *look-up* is the question
who is ready, asked while only a few of the parked have a signal; *over start* is the memory that the process has
taken since it began to park.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload, figure
from benchmarks.machines import SPEC, file_bytes
from flat import Runtime, SQLiteStore, load

LIMIT = "limit: raw sqlite, commit per event"
TOGETHER = "limit: raw sqlite, one transaction each"
FLAT = "flat"
ALONE = "flat, one at a time"
FILE = "flat.db"
FEW = 5

MACHINE: dict[str, Any] = {
    **SPEC,
    "data": {
        "name": "waiter",
        "context": {"task": "{{ input.task }}"},
        "states": {
            "ask": {
                "type": "initial", "wait_for": "approval/{{ context.task }}",
                "output_to_context": {"answer": "{{ output.value }}"}, "transitions": [{"to": "done"}],
            },
            "done": {"type": "final", "output": {"answer": "{{ context.answer }}"}},
        },
    },
}  # fmt: skip


def _column(key: str) -> Callable[[Measured, str], str]:
    return lambda measured, case: figure(measured.best(case, key))


def _rate(measured: Measured) -> float:
    return 1e6 / measured.best(FLAT, "wall")


WORKLOAD = Workload(
    "w5", "waiting", "park, signal and resume",
    [{"n": 1000}, {"n": 10_000}], [{"n": 100}], LIMIT,
    columns=[
        ("park µs", _column("park")), ("signal µs", _column("signal")), ("resume µs", _column("resume")),
        ("look-up ms", _column("lookup")), ("over start MB", _column("grown")), ("file B", _column("file")),
    ],
    targets=[
        Target("park + signal + resume a second, 10,000 parked", 2000, None, lambda m: _rate(m[-1]), at_least=True),
        Target("CPU µs for the three, one at a time", None, 145, lambda m: m[-1].best(ALONE, "cpu")),
        Target("× the limit, one at a time", None, 1.5, lambda m: m[-1].ratio(ALONE, LIMIT, "cpu")),
        Target("look-up of a few ready among 10,000 parked, ms", 10, 1, lambda m: m[-1].best(FLAT, "lookup")),
        Target("memory over the start, MB", 10, 5, lambda m: m[-1].best(FLAT, "grown")),
    ],
)  # fmt: skip


def _memory() -> float:
    """Megabytes of this process that are in memory."""
    gc.collect()
    try:
        facts = Path("/proc/self/status").read_text()
    except OSError:
        return 0.0
    return int(facts.split("VmRSS:")[1].split()[0]) / 1024


class _Phases:
    """Times the parts of the work, in microseconds for each execution."""

    def __init__(self, n: int) -> None:
        self.n, self.began, self.found = n, time.perf_counter(), dict[str, float]()

    def end(self, name: str) -> None:
        now = time.perf_counter()
        self.found[name] = (now - self.began) / self.n * 1e6
        self.began = now


# -- limits ------------------------------------------------------------------------------------


def _raw(n: int, meter: Meter, *, together: bool) -> Record:
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE parked (id INTEGER PRIMARY KEY, channel TEXT, data TEXT)")
    connection.execute("CREATE INDEX parked_channel ON parked (channel) WHERE channel IS NOT NULL")
    connection.execute("CREATE TABLE signals (id INTEGER PRIMARY KEY, channel TEXT, data TEXT)")

    def each(work: Callable[[int], None]) -> None:
        if together:
            connection.execute("BEGIN")
        for number in range(n):
            work(number)
        if together:
            connection.execute("COMMIT")

    def park(number: int) -> None:
        connection.execute("INSERT INTO parked VALUES (?, ?, ?)", (number, f"approval/{number}", "{}"))

    def signal(number: int) -> None:
        connection.execute("INSERT INTO signals VALUES (?, ?, ?)", (number, f"approval/{number}", "true"))

    def resume(number: int) -> None:
        if not together:
            connection.execute("BEGIN")
        (data,) = connection.execute("SELECT data FROM signals WHERE id = ?", (number,)).fetchone()
        connection.execute("DELETE FROM signals WHERE id = ?", (number,))
        connection.execute("UPDATE parked SET channel = NULL, data = ? WHERE id = ?", (data, number))
        if not together:
            connection.execute("COMMIT")

    before, phases = _memory(), None
    with meter:
        phases = _Phases(n)
        each(park)
        phases.end("park")
        grown = _memory() - before
        each(signal)
        phases.end("signal")
        look = "SELECT p.id FROM signals s JOIN parked p ON p.channel = s.channel LIMIT ?"
        began = time.perf_counter()
        assert len(connection.execute(look, (FEW,)).fetchall()) == FEW
        lookup = (time.perf_counter() - began) * 1000
        each(resume)
        phases.end("resume")
    assert connection.execute("SELECT count(*) FROM parked WHERE data = 'true'").fetchone() == (n,)
    connection.close()
    return {"lookup": lookup, "grown": grown, "file": file_bytes(FILE) / n, **phases.found}


@WORKLOAD.case(LIMIT, "one commit per park, per signal and per resume, WAL NORMAL")
def raw(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes["n"], meter, together=False)


@WORKLOAD.case(TOGETHER, "all parks in one transaction, all signals, all resumes: what batching can reach")
def raw_together(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes["n"], meter, together=True)


# -- flat --------------------------------------------------------------------------------------


async def _each(n: int, concurrency: int, work: Callable[[int], Awaitable[object]]) -> None:
    """Do the work for every number, so many at a time."""
    numbers = iter(range(n))

    async def one(numbers: Iterable[int]) -> None:
        for number in numbers:
            await work(number)

    async with anyio.create_task_group() as group:
        for _ in range(concurrency):
            group.start_soon(one, numbers)


async def _flat(n: int, meter: Meter, concurrency: int) -> Record:
    await anyio.lowlevel.checkpoint()  # anyio imports its backend when it is first used
    machine = load(config=MACHINE)
    lookup = 0.0

    async def park(runtime: Runtime, number: int) -> None:
        outcome = await runtime.start(machine, {"task": number}, execution_id=f"e{number}")
        assert outcome.status == "waiting"

    async with SQLiteStore("warm.db") as store, Runtime(store) as runtime:
        for number in range(20):
            await park(runtime, number)
    before = _memory()
    with meter:
        phases = _Phases(n)
        async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
            await _each(n, concurrency, lambda number: park(runtime, number))
        phases.end("park")
        grown = _memory() - before
        phases.began = time.perf_counter()
        async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
            for number in range(n):
                await runtime.signal(f"approval/{number}", number)
                if number == FEW:
                    began = time.perf_counter()
                    assert len(await store.ready(now=time.time())) == FEW + 1
                    lookup = (time.perf_counter() - began) * 1000
        phases.end("signal")
        async with SQLiteStore(FILE) as store, Runtime(store, machines={"waiter": machine}) as runtime:
            report = await runtime.dispatcher(concurrency=concurrency).dispatch_once()
        phases.end("resume")
    assert len(report.resumed) == n, report
    async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
        for number in (0, n // 2, n - 1):
            found = await runtime.inspect(f"e{number}")
            assert (found.status, json.loads(str(found.output["answer"]))) == ("done", number), found
        assert not await store.signals()
    return {"lookup": lookup, "grown": grown, "file": file_bytes(FILE) / n, **phases.found}


@WORKLOAD.case(FLAT, "SQLiteStore NORMAL; 16 at a time; Dispatcher", limit=TOGETHER)
def flat_together(sizes: Sizes, meter: Meter) -> Record:
    return asyncio.run(_flat(sizes["n"], meter, 16))


@WORKLOAD.case(ALONE, "the same, concurrency 1: a transaction for every write")
def flat_alone(sizes: Sizes, meter: Meter) -> Record:
    return asyncio.run(_flat(sizes["n"], meter, 1))
