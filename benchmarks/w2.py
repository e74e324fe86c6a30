"""W2: the loop of W1, with a durable commit per step in one SQLite file; reopened and checked afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any, Literal

import anyio
import anyio.lowlevel
import orjson

from benchmarks.harness import Column, Measured, Meter, Record, Sizes, Target, Workload, figure
from benchmarks.machines import counter, file_bytes, flat_machine
from benchmarks.peers import burr_counter, flatmachines_hooks, langgraph_counter, peer
from benchmarks.states import Counter
from benchmarks.w1 import times
from flat import Runtime, SQLiteStore

FILE = Path("x.db")
NORMAL = "limit: raw sqlite NORMAL"
FULL = "limit: raw sqlite FULL"
FLAT = "flat NORMAL"
FLAT_FULL = "flat FULL"
BURR = "burr NORMAL"
LANGGRAPH = "langgraph sync NORMAL"
LANGGRAPH_FULL = "langgraph sync FULL"
Synchronous = Literal["NORMAL", "FULL"]

FILE_COLUMN: Column = ("file B", lambda m, case: figure(m.median(case, "file")))
WRITTEN_COLUMN: Column = ("written B", lambda m, case: figure(m.median(case, "written")))


def _bytes_a_step(measured: Any) -> float:
    first: Measured = measured[0]
    return first.median(FLAT, "file")


WORKLOAD = Workload(
    "w2", "loop with a commit per step in SQLite", "step", [{"n": 2000}], [{"n": 200}], NORMAL,
    columns=[FILE_COLUMN, WRITTEN_COLUMN],
    targets=[
        Target("× raw sqlite NORMAL, CPU", 2.5, 1.5, lambda m: m[0].ratio(FLAT, NORMAL, "cpu")),
        Target("× raw sqlite FULL, wall", None, 1.15, lambda m: m[0].ratio(FLAT_FULL, FULL, "wall")),
        Target("times cheaper than burr NORMAL", 4, 6, times(FLAT, BURR), at_least=True),
        Target("times cheaper than langgraph sync NORMAL", 15, 23, times(FLAT, LANGGRAPH), at_least=True),
        Target("bytes a step in the file", 100, 66, _bytes_a_step),
    ],
)  # fmt: skip


def stored(operations: int) -> Record:
    """The record of a run whose file is closed."""
    return {"file": file_bytes(FILE) / operations, "operations": operations}


def fewer(sizes: Sizes) -> Sizes:
    """For those that wait for the disk at each step."""
    return {**sizes, "n": max(50, sizes["n"] // 4)}


# -- limits --------------------------------------------------------------------------------


def _raw(sizes: Sizes, meter: Meter, synchronous: Synchronous) -> Record:
    n = sizes["n"]
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    columns = "execution TEXT, step INTEGER, state TEXT, data BLOB, PRIMARY KEY (execution, step)"
    connection.execute(f"CREATE TABLE steps ({columns}) WITHOUT ROWID")
    over = eval(f"lambda context: context['i'] >= {n}")

    async def step(context: dict[str, int]) -> dict[str, int]:
        return {"i": context["i"] + 1}

    async def go() -> None:
        context, steps = {"i": 0}, 0
        while not over(context):
            context.update(await step(context))
            steps += 1
            connection.execute(
                "INSERT INTO steps VALUES (?, ?, ?, ?)", ("e1", steps, "loop", orjson.dumps(context))
            )

    with meter:
        asyncio.run(go())
    connection.close()
    connection = sqlite3.connect(FILE)
    row = connection.execute("SELECT step, data FROM steps ORDER BY step DESC LIMIT 1").fetchone()
    connection.close()
    assert (row[0], orjson.loads(row[1])) == (n, {"i": n})
    return stored(n)


@WORKLOAD.case(NORMAL, "one autocommit INSERT of orjson(context) per step, WAL")
def raw_normal(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes, meter, "NORMAL")


@WORKLOAD.case(FULL, "the same; one fsync per step, a quarter of the steps", limit=FULL)
def raw_full(sizes: Sizes, meter: Meter) -> Record:
    return _raw(fewer(sizes), meter, "FULL")


# -- flat ------------------------------------------------------------------------------------


def _flat(sizes: Sizes, meter: Meter, synchronous: Synchronous) -> Record:
    n = sizes["n"]
    machine = flat_machine(counter(n, {"enabled": True, "backend": "sqlite"}))

    async def go() -> None:
        await anyio.lowlevel.checkpoint()  # anyio imports its backend when it is first used
        async with SQLiteStore(FILE, synchronous) as store, Runtime(store) as runtime:
            with meter:
                outcome = await runtime.start(machine, execution_id="e1", max_steps=n + 10)
        assert outcome.output == {"i": n}
        async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
            snapshot = await runtime.inspect("e1")
            halfway = await runtime.inspect("e1", at=n // 2)
        assert (snapshot.status, snapshot.output) == ("done", {"i": n})
        assert halfway.root.context["i"] == n // 2 - 1, "one commit per step"

    asyncio.run(go())
    return stored(n)


@WORKLOAD.case(FLAT, "SQLiteStore(path), its default; an asynchronous on_action hook")
def flat_normal(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, "NORMAL")


@WORKLOAD.case(FLAT_FULL, 'SQLiteStore(path, synchronous="FULL"); a quarter of the steps', limit=FULL)
def flat_full(sizes: Sizes, meter: Meter) -> Record:
    return _flat(fewer(sizes), meter, "FULL")


# -- peers -----------------------------------------------------------------------------------


def _flatmachines(sizes: Sizes, meter: Meter, more: dict[str, Any]) -> Record:
    library, persistence = peer("flatmachines"), peer("flatmachines.persistence")
    config = counter(sizes["n"], {"enabled": True, "backend": "sqlite", "db_path": str(FILE), **more})

    async def go() -> None:
        machine = library.FlatMachine(config_dict=config, hooks_registry=flatmachines_hooks())
        with meter:
            output = await machine.execute(max_steps=sizes["n"] + 10)
        assert output["i"] == sizes["n"]
        backend = persistence.SQLiteCheckpointBackend(str(FILE))
        snapshot = await persistence.CheckpointManager(backend, machine.execution_id).load_latest()
        assert snapshot.context["i"] == sizes["n"]

    asyncio.run(go())
    return stored(sizes["n"])


@WORKLOAD.case("flatmachines, default", "three snapshots per step, WAL NORMAL", needs=["flatmachines"])
def flatmachines_default(sizes: Sizes, meter: Meter) -> Record:
    return _flatmachines(sizes, meter, {})


@WORKLOAD.case(
    "flatmachines, state_enter", "checkpoint_on: [state_enter], WAL NORMAL", needs=["flatmachines"]
)
def flatmachines_least(sizes: Sizes, meter: Meter) -> Record:
    return _flatmachines(sizes, meter, {"checkpoint_on": ["state_enter"]})


def _langgraph(sizes: Sizes, meter: Meter, synchronous: Synchronous) -> Record:
    saver = peer("langgraph.checkpoint.sqlite")
    n = sizes["n"]

    def inc(state: Counter) -> Counter:
        return {"i": state["i"] + 1}

    thread = {"configurable": {"thread_id": "t1"}}
    connection = sqlite3.connect(FILE, check_same_thread=False)
    connection.execute(f"PRAGMA synchronous={synchronous}")
    checkpointer = saver.SqliteSaver(connection)
    checkpointer.setup()
    runnable = langgraph_counter(n, inc, checkpointer)
    with meter:
        runnable.invoke({"i": 0}, {**thread, "recursion_limit": n + 10}, durability="sync")
    connection.close()
    with saver.SqliteSaver.from_conn_string(str(FILE)) as reopened:
        assert langgraph_counter(n, inc, reopened).get_state(thread).values["i"] == n
    return stored(n)


@WORKLOAD.case(LANGGRAPH, "SqliteSaver, invoke, durability=sync", needs=["langgraph.checkpoint.sqlite"])
def langgraph_normal(sizes: Sizes, meter: Meter) -> Record:
    return _langgraph(sizes, meter, "NORMAL")


@WORKLOAD.case(
    LANGGRAPH_FULL, "the same, a quarter of the steps", limit=FULL, needs=["langgraph.checkpoint.sqlite"]
)
def langgraph_full(sizes: Sizes, meter: Meter) -> Record:
    return _langgraph(fewer(sizes), meter, "FULL")


@WORKLOAD.case(BURR, "SQLitePersister, run, with WAL and NORMAL set on its connection", needs=["burr"])
def burr_normal(sizes: Sizes, meter: Meter) -> Record:
    persistence = peer("burr.core.persistence")
    n = sizes["n"]

    def inc(state: Any) -> Any:
        return state.update(i=state["i"] + 1)

    persister = persistence.SQLitePersister(str(FILE))
    persister.initialize()
    persister.connection.execute("PRAGMA journal_mode=WAL")
    persister.connection.execute("PRAGMA synchronous=NORMAL")
    builder = burr_counter(n, inc).with_identifiers(app_id="e1", partition_key="p")
    application = builder.with_state_persister(persister).build()
    with meter:
        application.run(halt_after=["done"])
    persister.connection.close()
    assert persistence.SQLitePersister(str(FILE)).load("p", "e1")["state"]["i"] == n
    return stored(n)
