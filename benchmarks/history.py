"""History: any moment of a long execution, rebuilt from what is stored; and a fork made there.

An execution of `n` steps appends a message of 1 KiB at each. It is stored as one base and `n` deltas, because no
whole snapshot is small beside them: the worst that looking back can meet. The limit reads the same rows and parses
their JSON, and makes nothing of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import orjson

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload
from benchmarks.machines import Context, counter, flat_machine, message
from flat import Runtime

LIMIT = "limit: read and parse"
LAST, HALF, NEWEST, FORK = (
    "flat, the last step",
    "flat, a step halfway",
    "flat, a commit by number",
    "flat, fork",
)
REPEATED = 20
STORE = Path("history.db")


def _milliseconds(case: str) -> Callable[[Any], float]:
    def value(measured: list[Measured]) -> float:
        return next(m for m in measured if m.sizes["n"] == 1000).median(case, "wall") / 1000

    return value


WORKLOAD = Workload(
    "history", "looking back", "moment rebuilt",
    [{"n": 1000}], [{"n": 1000}], LIMIT,
    targets=[
        Target("the last step of 1,000, ms", 10, None, _milliseconds(LAST)),
        Target("a step halfway, ms", 10, None, _milliseconds(HALF)),
        Target("a commit by its number, ms", 10, None, _milliseconds(NEWEST)),
    ],
)  # fmt: skip


async def _append(state: str, context: Context) -> None:
    context["messages"].append(message(context["i"]))
    context["i"] += 1


async def _made(runtime: Runtime, n: int) -> None:
    machine = flat_machine(counter(n, {"enabled": True, "backend": "sqlite"}, more={"messages": []}), _append)
    outcome = await runtime.start(machine, execution_id="e", max_steps=n + 10)
    assert outcome.status == "done"


def _look(sizes: Sizes, meter: Meter, look: Callable[[Runtime], Awaitable[int]], expected: int) -> Record:
    async def go() -> None:
        async with Runtime(f"sqlite:///{STORE}") as runtime:
            await _made(runtime, sizes["n"])
            assert await look(runtime) == expected
            with meter:
                for _ in range(REPEATED):
                    await look(runtime)

    anyio.run(go)
    return {"operations": REPEATED}


async def _messages(runtime: Runtime, at: int | str) -> int:
    return len((await runtime.context("e", at=at))["messages"])


@WORKLOAD.case(LIMIT, "SELECT of all bodies, orjson.loads of each")
def raw(sizes: Sizes, meter: Meter) -> Record:
    async def make() -> None:
        async with Runtime(f"sqlite:///{STORE}") as runtime:
            await _made(runtime, sizes["n"])
            rows = [body for _, _, body in await runtime.opened().bodies("e")]
            connection = sqlite3.connect("raw.db")
            connection.execute("CREATE TABLE bodies (seq INTEGER PRIMARY KEY, body BLOB)")
            connection.executemany("INSERT INTO bodies VALUES (?, ?)", enumerate(rows))
            connection.commit()
            connection.close()

    anyio.run(make)
    connection = sqlite3.connect("raw.db")
    with meter:
        for _ in range(REPEATED):
            found = [
                orjson.loads(body) for (body,) in connection.execute("SELECT body FROM bodies ORDER BY seq")
            ]
    assert len(found) > sizes["n"]
    connection.close()
    return {"operations": REPEATED}


@WORKLOAD.case(LAST, "Runtime.context(at='step:n'): every body is read, the step is looked for")
def last(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    return _look(sizes, meter, lambda runtime: _messages(runtime, f"step:{n}"), n - 1)


@WORKLOAD.case(HALF, "the same for step n / 2")
def halfway(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"] // 2
    return _look(sizes, meter, lambda runtime: _messages(runtime, f"step:{n}"), n - 1)


@WORKLOAD.case(NEWEST, "Runtime.context(at=n): the newest but one, by the number of its commit")
def numbered(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]
    return _look(sizes, meter, lambda runtime: _messages(runtime, n), n - 1)


@WORKLOAD.case(FORK, "Runtime.fork(at='step:n/2'): rebuilt, and stored as a base of its own")
def forked(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"] // 2

    async def fork(runtime: Runtime) -> int:
        new = await runtime.fork("e", at=f"step:{n}")
        return (await runtime.opened().get(new) is not None) + 0

    return _look(sizes, meter, fork, 1)
