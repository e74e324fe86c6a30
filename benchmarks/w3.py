"""W3: a chat that grows. One message of 1 KiB and one durable commit per step; reopened and checked.

A design that writes the whole history at each step is quadratic here, in bytes and in time.
"""

from __future__ import annotations

import asyncio
import math
import operator
import sqlite3
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypedDict

import anyio
import anyio.lowlevel
import orjson

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload
from benchmarks.machines import counter, flat_machine, message
from benchmarks.peers import flatmachines_hooks, peer
from benchmarks.w2 import FILE, FILE_COLUMN, WRITTEN_COLUMN, stored
from flat import Runtime, SQLiteStore

LIMIT = "limit: append-only table"
FLAT = "flat"
PAYLOAD = len(orjson.dumps(message(0)))


def _exponent(key: str) -> Callable[[Sequence[Measured]], float]:
    """How the total grows with the number of steps, from the smallest to the largest size: 1 is linear."""

    def value(measured: Sequence[Measured]) -> float:
        first, last = measured[0], measured[-1]
        if first is last:
            return math.nan
        growth = last.best(FLAT, key) * last.sizes["n"] / (first.best(FLAT, key) * first.sizes["n"])
        return math.log(growth) / math.log(last.sizes["n"] / first.sizes["n"])

    return value


def _growth(measured: Sequence[Measured]) -> float:
    return measured[-1].best(FLAT, "cpu") / measured[0].best(FLAT, "cpu")


WORKLOAD = Workload(
    "w3", "growing history", "step",
    [{"n": 100}, {"n": 500}, {"n": 1000}, {"n": 2000}], [{"n": 50}, {"n": 200}], LIMIT,
    columns=[FILE_COLUMN, WRITTEN_COLUMN],
    targets=[
        Target("bytes stored ÷ payload, 2,000 steps", 2, 1.6, lambda m: m[-1].median(FLAT, "file") / PAYLOAD),
        Target("exponent of the bytes, 100 to 2,000 steps", 1.1, None, _exponent("file")),
        Target("exponent of the CPU, 100 to 2,000 steps", 1.1, None, _exponent("cpu")),
        Target("CPU a step at 2,000 ÷ at 100", 1.2, None, _growth),
        Target("CPU a step at 2,000, µs", None, 50, lambda m: m[-1].best(FLAT, "cpu")),
    ],
)  # fmt: skip


def _check(messages: Sequence[Any], n: int) -> None:
    assert len(messages) == n, len(messages)
    assert messages[n // 2] == message(n // 2)
    assert messages[-1] == message(n - 1)


async def say(state: str, context: dict[str, Any]) -> None:
    context["messages"].append(message(context["i"]))
    context["i"] += 1


@WORKLOAD.case(LIMIT, "raw sqlite NORMAL, one row with one message per step")
def raw(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute(
        "CREATE TABLE log (seq INTEGER PRIMARY KEY, execution INTEGER, step INTEGER, data BLOB)"
    )

    async def step(history: list[Any]) -> dict[str, str]:
        return message(len(history))

    async def go() -> None:
        history: list[Any] = []
        while len(history) < n:
            new = await step(history)
            history.append(new)
            connection.execute("INSERT INTO log VALUES (NULL, 1, ?, ?)", (len(history), orjson.dumps(new)))

    with meter:
        asyncio.run(go())
    connection.close()
    connection = sqlite3.connect(FILE)
    _check([orjson.loads(row[0]) for row in connection.execute("SELECT data FROM log ORDER BY seq")], n)
    connection.close()
    return stored(n)


@WORKLOAD.case(FLAT, 'SQLiteStore NORMAL; context["messages"].append(…) in an action')
def flat_history(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    machine = flat_machine(counter(n, {"enabled": True, "backend": "sqlite"}, more={"messages": []}), say)

    async def go() -> None:
        await anyio.lowlevel.checkpoint()  # anyio imports its backend when it is first used
        async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
            with meter:
                await runtime.start(machine, execution_id="e1", max_steps=n + 10)
        async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
            _check((await runtime.inspect("e1")).root.context["messages"], n)

    asyncio.run(go())
    return stored(n)


# -- peers -----------------------------------------------------------------------------------


@WORKLOAD.case(
    "flatmachines, state_enter", "the whole history per step, WAL NORMAL; up to 500 steps",
    needs=["flatmachines"], only=lambda sizes: sizes["n"] <= 500,
)  # fmt: skip
def flatmachines_least(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    library, persistence = peer("flatmachines"), peer("flatmachines.persistence")
    stores = {"enabled": True, "backend": "sqlite", "db_path": str(FILE), "checkpoint_on": ["state_enter"]}
    config = counter(n, stores, more={"messages": []})

    async def go() -> None:
        machine = library.FlatMachine(config_dict=config, hooks_registry=flatmachines_hooks(say))
        with meter:
            await machine.execute(max_steps=n + 10)
        backend = persistence.SQLiteCheckpointBackend(str(FILE))
        snapshot = await persistence.CheckpointManager(backend, machine.execution_id).load_latest()
        _check(snapshot.context["messages"], n)

    asyncio.run(go())
    return stored(n)


def _fold(state: Sequence[Any], writes: Sequence[Sequence[Any]]) -> list[Any]:
    return [*state, *(item for write in writes for item in write)]


def _langgraph(sizes: Sizes, meter: Meter, channel: Any) -> Record:
    graph, saver = peer("langgraph.graph"), peer("langgraph.checkpoint.sqlite")
    n = sizes["n"]
    fields = {"messages": Annotated[list[Any], channel]}
    history = TypedDict("history", fields)  # type: ignore[misc]

    def speak(state: Any) -> Any:
        return {"messages": [message(len(state["messages"]))]}

    def compiled(checkpointer: Any) -> Any:
        builder = graph.StateGraph(history)
        builder.add_node("speak", speak)
        builder.add_edge(graph.START, "speak")
        more = ["speak", graph.END]
        builder.add_conditional_edges(
            "speak", lambda s: "speak" if len(s["messages"]) < n else graph.END, more
        )
        return builder.compile(checkpointer=checkpointer)

    thread = {"configurable": {"thread_id": "t1"}}
    connection = sqlite3.connect(FILE, check_same_thread=False)
    connection.execute("PRAGMA synchronous=NORMAL")
    checkpointer = saver.SqliteSaver(connection)
    checkpointer.setup()
    runnable = compiled(checkpointer)
    with meter:
        runnable.invoke({"messages": []}, {**thread, "recursion_limit": n + 10}, durability="sync")
    connection.close()
    with saver.SqliteSaver.from_conn_string(str(FILE)) as reopened:
        messages = compiled(reopened).get_state(thread).values["messages"]
    assert len(messages) == n, len(messages)
    return stored(n)


@WORKLOAD.case(
    "langgraph operator.add", "SqliteSaver NORMAL, durability=sync; up to 500 steps",
    needs=["langgraph.checkpoint.sqlite"], only=lambda sizes: sizes["n"] <= 500,
)  # fmt: skip
def langgraph_add(sizes: Sizes, meter: Meter) -> Record:
    return _langgraph(sizes, meter, operator.add)


@WORKLOAD.case(
    "langgraph DeltaChannel",
    "the same, with its append-only channel (beta)",
    needs=["langgraph.checkpoint.sqlite"],
)
def langgraph_delta(sizes: Sizes, meter: Meter) -> Record:
    return _langgraph(sizes, meter, peer("langgraph.channels").DeltaChannel(_fold))
