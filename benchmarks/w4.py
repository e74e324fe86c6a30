"""W4: a fan-out. One state runs a child machine for each of n items, and gets the results in their order.

Each child has a context of its own and one final state. In flat every child is an execution with an id; with a
store each of them is kept, and can be inspected and resumed. The limits do nothing but run n coroutines.
"""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload
from benchmarks.machines import SPEC, Context
from benchmarks.peers import peer
from benchmarks.w2 import FILE
from flat import MemoryStore, Runtime, SQLiteStore, load

LIMIT, STORED = "limit: asyncio.gather", "limit: one row per child"
FLAT, SQLITE = "flat", "flat, SQLiteStore"


def child() -> Context:
    final = {"type": "final", "output": {"r": "context.v"}}
    data = {"name": "child", "context": {"v": "{{ input.v }}"}, "states": {"s": final}}
    return {**SPEC, "data": data}


def fan_out(foreach: str = "context.items") -> Context:
    each = {
        "type": "initial", "foreach": foreach, "as": "item", "machine": "child", "input": {"v": "{{ item }}"},
        "output_to_context": {"results": "output"}, "transitions": [{"to": "done"}],
    }  # fmt: skip
    states = {"each": each, "done": {"type": "final", "output": {"results": "context.results"}}}
    context = {"items": "input.items", "results": None}
    return {
        **SPEC,
        "data": {"name": "fan-out", "context": context, "machines": {"child": child()}, "states": states},
    }


def _peak() -> float:
    """The most memory that the process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _record(n: int, results: Sequence[Any], before: float) -> Record:
    assert [r["r"] for r in results] == [str(i) for i in range(n)]
    return {"operations": n, "grown": _peak() - before}


def _rate(size: int, case: str = FLAT) -> Any:
    def value(measured: Sequence[Measured]) -> float:
        return 1e6 / measured[size].best(case, "cpu")

    return value


def _growth(measured: Sequence[Measured]) -> float:
    return measured[-1].best(FLAT, "cpu") / measured[0].best(FLAT, "cpu")


WORKLOAD = Workload(
    "w4", "fan-out", "child", [{"n": 1000}, {"n": 10_000}], [{"n": 200}, {"n": 1000}], LIMIT,
    columns=[("peak over start, MB", lambda m, case: f"{m.median(case, 'grown'):.1f}")],
    targets=[
        Target("children a second of CPU, 1,000", 10_000, 50_000, _rate(0), at_least=True),
        Target("children a second of CPU, 10,000", 10_000, 50_000, _rate(-1), at_least=True),
        Target("memory over the start at 10,000, MB", 60, 30, lambda m: m[-1].median(FLAT, "grown")),
        Target("the same with a store, MB", 60, 30, lambda m: m[-1].median(SQLITE, "grown")),
        Target("CPU a child at 10,000 ÷ at 1,000", 1.3, None, _growth),
    ],
)  # fmt: skip


@WORKLOAD.case(LIMIT, "gather of n tasks")
def gathered(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]

    async def one(v: int) -> dict[str, str]:
        return {"r": str(v)}

    async def go() -> Record:
        before = _peak()
        with meter:
            results = await asyncio.gather(*(one(i) for i in range(n)))
        return _record(n, results, before)

    return asyncio.run(go())


@WORKLOAD.case(STORED, "raw sqlite NORMAL: one transaction begins a child, one ends it")
def rows(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    connection = sqlite3.connect(FILE, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE child (id TEXT PRIMARY KEY, status TEXT, body BLOB)")
    before, results = _peak(), []
    with meter:
        for i in range(n):
            connection.execute("INSERT INTO child VALUES (?, 'running', ?)", (f"e1.{i}", b'{"v":%d}' % i))
            connection.execute(
                "UPDATE child SET status = 'done', body = ? WHERE id = ?", (b'{"r":1}', f"e1.{i}")
            )
            results.append({"r": str(i)})
    connection.close()
    return _record(n, results, before)


def _flat(sizes: Sizes, meter: Meter, store: Any) -> Record:
    n = sizes["n"]
    machine = load(config=fan_out())

    async def go() -> Record:
        await anyio.lowlevel.checkpoint()  # anyio imports its backend when it is first used
        async with Runtime(store) as runtime:
            await runtime.start(machine, {"items": [1, 2]})
            before = _peak()
            with meter:
                outcome = await runtime.start(machine, {"items": list(range(n))})
        return _record(n, outcome.output["results"], before)

    return asyncio.run(go())


@WORKLOAD.case(FLAT, "foreach + machine, nothing kept")
def flat_unstored(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, None)


@WORKLOAD.case("flat, MemoryStore", "every child an execution that is kept in memory")
def flat_memory(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, MemoryStore())


@WORKLOAD.case(SQLITE, "every child an execution that is kept on disk", limit=STORED)
def flat_sqlite(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, SQLiteStore(FILE))


# -- peers -----------------------------------------------------------------------------------


@WORKLOAD.case("flatmachines foreach", "the same machines, checkpoint_on: []", needs=["flatmachines"])
def flatmachines_foreach(sizes: Sizes, meter: Meter) -> Record:
    n, library, config = sizes["n"], peer("flatmachines"), fan_out()
    config["data"]["persistence"] = {"enabled": True, "backend": "memory", "checkpoint_on": []}
    config["data"]["machines"]["child"]["data"]["persistence"] = config["data"]["persistence"]

    async def go() -> Record:
        machine = library.FlatMachine(config_dict=config)
        before = _peak()
        with meter:
            result = await machine.execute({"items": list(range(n))})
        return _record(n, result["results"], before)

    return asyncio.run(go())


@WORKLOAD.case("langgraph Send", "one superstep of n Send tasks, operator.add", needs=["langgraph"])
def langgraph_send(sizes: Sizes, meter: Meter) -> Record:
    import operator
    from typing import Annotated, TypedDict

    graph, types = peer("langgraph.graph"), peer("langgraph.types")
    n = sizes["n"]
    fields = {"items": list[int], "results": Annotated[list[Any], operator.add]}
    fan = TypedDict("fan", fields)  # type: ignore[misc]
    builder = graph.StateGraph(fan)
    builder.add_node("child", lambda state: {"results": [{"r": str(state["v"])}]})
    builder.add_conditional_edges(
        graph.START, lambda state: [types.Send("child", {"v": v}) for v in state["items"]], ["child"]
    )
    builder.add_edge("child", graph.END)
    runnable = builder.compile()

    async def go() -> Record:
        before = _peak()
        with meter:
            state = await runnable.ainvoke({"items": list(range(n)), "results": []}, {"recursion_limit": 10})
        return _record(n, state["results"], before)

    return asyncio.run(go())
