"""W2c: 64 executions at once in one process and one SQLite file, a durable commit per step of each.

Every step gives way to the event loop once, as a call to a model would, so that those that are ready together
can share a transaction and its fsync; each goes on only when its own step is committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
from typing import Any

import anyio
import anyio.lowlevel
import orjson

from benchmarks.harness import Meter, Record, Sizes, Target, Workload
from benchmarks.machines import counter, flat_machine
from benchmarks.peers import burr_counter, flatmachines_hooks, langgraph_counter, peer
from benchmarks.states import Counter
from benchmarks.w1 import times
from benchmarks.w2 import FILE, FILE_COLUMN, WRITTEN_COLUMN, Synchronous, stored
from flat import Runtime, SQLiteStore

GROUP_NORMAL = "limit: group commit NORMAL"
GROUP_FULL = "limit: group commit FULL"
FLAT = "flat NORMAL"
FLAT_FULL = "flat FULL"
LANGGRAPH = "langgraph sync FULL"
BURR = "burr NORMAL"

WORKLOAD = Workload(
    "w2c", "many executions at once, a commit per step in SQLite", "step",
    [{"m": 64, "n": 25}], [{"m": 8, "n": 10}], GROUP_NORMAL, columns=[FILE_COLUMN, WRITTEN_COLUMN],
    targets=[
        Target("wall a step FULL, µs", 100, 50, lambda m: m[0].best(FLAT_FULL, "wall")),
        Target("× group commit FULL, wall", None, 2.5, lambda m: m[0].ratio(FLAT_FULL, GROUP_FULL, "wall")),
        Target("times quicker than langgraph", 25, 50, times(FLAT_FULL, LANGGRAPH, "wall"), at_least=True),
        Target("times quicker than burr NORMAL", 2, 4, times(FLAT_FULL, BURR, "wall"), at_least=True),
    ],
)  # fmt: skip


async def give_way(state: str, context: dict[str, Any]) -> None:
    await asyncio.sleep(0)
    context["i"] += 1


# -- limits --------------------------------------------------------------------------------


def _raw(sizes: Sizes, meter: Meter, synchronous: Synchronous, group: bool) -> Record:
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={synchronous}")
    columns = "execution INTEGER, step INTEGER, data BLOB, PRIMARY KEY (execution, step)"
    connection.execute(f"CREATE TABLE steps ({columns}) WITHOUT ROWID")
    insert = "INSERT INTO steps VALUES (?, ?, ?)"
    batch: list[tuple[int, int, bytes]] = []
    written: asyncio.Future[None] | None = None

    def write() -> None:
        nonlocal written
        connection.execute("BEGIN")
        connection.executemany(insert, batch)
        connection.execute("COMMIT")
        batch.clear()
        assert written is not None
        written.set_result(None)
        written = None

    async def save(row: tuple[int, int, bytes]) -> None:
        nonlocal written
        if not group:
            connection.execute(insert, row)
            return
        batch.append(row)
        if written is None:
            loop = asyncio.get_running_loop()
            written = loop.create_future()
            loop.call_soon(write)  # after everything that is ready now
        await written

    async def one(number: int) -> None:
        context: dict[str, Any] = {"i": 0}
        while context["i"] < sizes["n"]:
            await give_way("loop", context)
            await save((number, context["i"], orjson.dumps(context)))

    async def go() -> None:
        await asyncio.gather(*(one(number) for number in range(sizes["m"])))

    with meter:
        asyncio.run(go())
    steps = sizes["m"] * sizes["n"]
    assert connection.execute("SELECT count(*) FROM steps").fetchone()[0] == steps
    connection.close()
    return stored(steps)


@WORKLOAD.case(GROUP_NORMAL, "raw sqlite, one transaction for all that are ready together")
def raw_group_normal(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes, meter, "NORMAL", group=True)


@WORKLOAD.case(GROUP_FULL, "the same, one fsync for all that are ready together", limit=GROUP_FULL)
def raw_group_full(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes, meter, "FULL", group=True)


@WORKLOAD.case("limit: commit per step FULL", "raw sqlite, one fsync per step", limit=GROUP_FULL)
def raw_full(sizes: Sizes, meter: Meter) -> Record:
    return _raw(sizes, meter, "FULL", group=False)


# -- flat ------------------------------------------------------------------------------------


def _flat(sizes: Sizes, meter: Meter, synchronous: Synchronous) -> Record:
    n, m = sizes["n"], sizes["m"]
    machine = flat_machine(counter(n, {"enabled": True, "backend": "sqlite"}), give_way)

    async def go() -> None:
        await anyio.lowlevel.checkpoint()  # anyio imports its backend when it is first used
        async with SQLiteStore(FILE, synchronous) as store, Runtime(store) as runtime:
            with meter:
                runs = (runtime.start(machine, execution_id=f"e{k}", max_steps=n + 10) for k in range(m))
                outcomes = await asyncio.gather(*runs)
        assert all(outcome.output == {"i": n} for outcome in outcomes)
        async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
            done = await runtime.list(status="done")
            last = await runtime.inspect(f"e{m - 1}")
        assert (len(done), last.output) == (m, {"i": n})

    asyncio.run(go())
    return stored(n * m)


@WORKLOAD.case(FLAT, "one Runtime, one store; starting and ending the executions included")
def flat_normal(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, "NORMAL")


@WORKLOAD.case(FLAT_FULL, 'the same, synchronous="FULL"', limit=GROUP_FULL)
def flat_full(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, "FULL")


# -- peers -----------------------------------------------------------------------------------


@WORKLOAD.case(
    "flatmachines, state_enter", "one SQLiteCheckpointBackend, no lock, WAL NORMAL", needs=["flatmachines"]
)
def flatmachines_least(sizes: Sizes, meter: Meter) -> Record:
    library, persistence = peer("flatmachines"), peer("flatmachines.persistence")
    config = counter(sizes["n"], {"enabled": True, "checkpoint_on": ["state_enter"]})

    async def go() -> None:
        backend, hooks = persistence.SQLiteCheckpointBackend(str(FILE)), flatmachines_hooks(give_way)
        with meter:
            machines = [
                library.FlatMachine(
                    config_dict=config, hooks_registry=hooks, persistence=backend, lock=library.NoOpLock()
                )
                for _ in range(sizes["m"])
            ]
            outputs = await asyncio.gather(
                *(machine.execute(max_steps=sizes["n"] + 10) for machine in machines)
            )
        assert all(output["i"] == sizes["n"] for output in outputs)

    asyncio.run(go())
    return stored(sizes["n"] * sizes["m"])


@WORKLOAD.case(
    LANGGRAPH, "AsyncSqliteSaver, ainvoke, durability=sync", limit=GROUP_FULL,
    needs=["langgraph.checkpoint.sqlite", "aiosqlite"],
)  # fmt: skip
def langgraph_full(sizes: Sizes, meter: Meter) -> Record:
    saver, aiosqlite = peer("langgraph.checkpoint.sqlite.aio"), peer("aiosqlite")
    n = sizes["n"]

    async def inc(state: Counter) -> Counter:
        await asyncio.sleep(0)
        return {"i": state["i"] + 1}

    async def go() -> None:
        async with aiosqlite.connect(str(FILE)) as connection:
            checkpointer = saver.AsyncSqliteSaver(connection)
            await checkpointer.setup()
            runnable = langgraph_counter(n, inc, checkpointer)

            def thread(number: int) -> dict[str, Any]:
                return {"configurable": {"thread_id": f"t{number}"}, "recursion_limit": n + 10}

            with meter:
                runs = (runnable.ainvoke({"i": 0}, thread(k), durability="sync") for k in range(sizes["m"]))
                results = await asyncio.gather(*runs)
        assert all(result["i"] == n for result in results)

    asyncio.run(go())
    return stored(n * sizes["m"])


@WORKLOAD.case(BURR, "AsyncSQLitePersister, arun, WAL", needs=["burr", "aiosqlite"])
def burr_normal(sizes: Sizes, meter: Meter) -> Record:
    persisters = peer("burr.integrations.persisters.b_aiosqlite")
    n = sizes["n"]

    async def inc(state: Any) -> Any:
        await asyncio.sleep(0)
        return state.update(i=state["i"] + 1)

    def builder(number: int, persister: Any) -> Any:
        named = burr_counter(n, inc).with_identifiers(app_id=f"e{number}", partition_key="p")
        return named.with_state_persister(persister)

    async def go() -> None:
        async with persisters.AsyncSQLitePersister.from_values(str(FILE)) as persister:
            await persister.initialize()
            await persister.connection.execute("PRAGMA journal_mode=WAL")
            await persister.connection.execute("PRAGMA synchronous=NORMAL")
            with meter:
                applications = [await builder(k, persister).abuild() for k in range(sizes["m"])]
                results = await asyncio.gather(*(a.arun(halt_after=["done"]) for a in applications))
        assert all(state["i"] == n for _, _, state in results)

    asyncio.run(go())
    return stored(n * sizes["m"])
