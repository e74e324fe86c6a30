"""Trees: a step of 1, 10 and 100 workers, a session of 1,000 turns, and 10,000 workers that come and go.

The answers are scripted, so that what is measured is the engine. A worker's step is a model call, a tool call that
writes its state, and its part of what the step commits. The limit makes the same calls and keeps nothing.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload, figure
from benchmarks.machines import file_bytes
from flat import Runtime, SQLiteStore
from flat.agents.protocol import AgentRequest
from flat.runtime.tree_steps import RunOptions
from flat.runtime.trees import TreeMachine, create_machine, run_machine
from flat.testing.executor import ScriptedExecutor, call, say
from flat.tree import Charter, Ctx, Instance, Node, Spawn, SpawnTarget, cede, spawn, tool, transition
from flat.tree.messages import message_data

LIMIT, FLAT, SQLITE = "limit: the calls alone", "flat", "flat, SQLiteStore"
FILE, EXECUTION = "flat.db", "e"
TEXT = "x" * 500
ANY = {"type": "object"}
NOTHING = {"early": math.nan, "late": math.nan, "bytes": math.nan, "file": math.nan}
EARLY, LATE = slice(5, 25), slice(-40, None)


@tool("Count")
def count(ctx: Ctx) -> str:
    ctx.update_state({"n": ctx.state.get("n", 0) + 1})
    return "counted"


@transition("Hand over")
def report(text: str) -> Any:
    return cede(text)


worker = Node("Count.", ANY, name="worker", worker=True, tools=[count], transitions=[report])


def working(workers: int) -> tuple[Charter, Instance[Any]]:
    """So many leaves that use a tool in every step; one is the primary itself."""
    desk = Node("Wait.", ANY, name="desk", initial_state={}, tools=[count])
    executor = ScriptedExecutor(lambda request: say("", call("count")))
    below = [Instance(worker, {}, id=f"w{i}") for i in range(workers)] if workers > 1 else []
    return Charter("working", executor=executor, nodes=[desk, worker]), Instance(desk, {}, below, id="r")


def hiring(number: int) -> tuple[Charter, Instance[Any]]:
    """One leaf that starts so many workers, each of which hands over at once."""

    @transition("Start them")
    def hire() -> Spawn:
        return spawn([SpawnTarget(worker, {}) for _ in range(number)])

    def answer(request: Any) -> Any:
        if request.input["node"] == "worker":
            return say("", call("transition_report", text="done"))
        done = "done" in str(request.messages[-1])
        return say("All are done.") if done else say("", call("transition", to="hire"))

    desk = Node("Hire.", ANY, name="desk", initial_state={}, transitions=[hire])
    return Charter("hiring", executor=ScriptedExecutor(answer), nodes=[desk, worker]), Instance(
        desk, {}, id="r"
    )


def talking() -> tuple[Charter, Instance[Any]]:
    """One leaf that answers."""
    desk = Node("Talk.", ANY, name="desk", initial_state={})
    return Charter("talking", executor=ScriptedExecutor(TEXT), nodes=[desk]), Instance(desk, {}, id="r")


# -- what is reached --------------------------------------------------------------------------


def _where(key: str, value: int | None = None) -> Callable[[Sequence[Measured]], Measured]:
    def find(measured: Sequence[Measured]) -> Measured:
        return next(m for m in measured if key in m.sizes and value in (None, m.sizes[key]))

    return find


def _late_over_early(case: str) -> Callable[[Sequence[Measured]], float]:
    def value(measured: Sequence[Measured]) -> float:
        found = _where("turns")(measured)
        return min((r["late"] / r["early"] for r in found.good(case)), default=math.nan)

    return value


def _exponent(measured: Sequence[Measured]) -> float:
    """How the CPU of all workers that come and go grows with their number: 1 is linear."""
    waves = [m for m in measured if "wave" in m.sizes]
    first, last = waves[0], waves[-1]
    growth = last.best(FLAT, "cpu") / first.best(FLAT, "cpu")
    return 1 + math.log(growth) / math.log(last.sizes["wave"] / first.sizes["wave"])


def _rate(workers: int, case: str) -> Callable[[Sequence[Measured]], float]:
    return lambda measured: 1e6 / _where("workers", workers)(measured).best(case, "cpu")


def _rows_over_messages(measured: Sequence[Measured]) -> float:
    return _where("turns")(measured).median(SQLITE, "bytes")


def _column(key: str) -> Callable[[Measured, str], str]:
    return lambda measured, case: figure(measured.median(case, key))


WORKLOAD = Workload(
    "wtree", "trees", "step of one leaf",
    [
        {"workers": 1, "n": 300}, {"workers": 10, "n": 300}, {"workers": 100, "n": 600},
        {"turns": 1000, "n": 1000}, {"wave": 1000, "n": 1000}, {"wave": 10_000, "n": 10_000},
    ],
    [{"workers": 1, "n": 20}, {"workers": 10, "n": 40}, {"workers": 100, "n": 100}, {"turns": 60, "n": 60},
     {"wave": 50, "n": 50}, {"wave": 200, "n": 200}],
    LIMIT,
    columns=[
        ("early µs", _column("early")), ("late µs", _column("late")),
        ("rows ÷ messages", _column("bytes")), ("file ÷ messages", _column("file")),
    ],
    targets=[
        Target("steps of a leaf a second of CPU, 1 worker", 300, 1000, _rate(1, FLAT), at_least=True),
        Target("… 100 workers", 300, 1000, _rate(100, FLAT), at_least=True),
        Target("… 100 workers, SQLiteStore", 300, 1000, _rate(100, SQLITE), at_least=True),
        Target("turn 1,000 ÷ turn 10, CPU", 1.2, 1.0, _late_over_early(FLAT)),
        Target("… with SQLiteStore", 1.2, 1.0, _late_over_early(SQLITE)),
        Target("bytes of all rows ÷ messages, 1,000 turns", 2, 1.5, _rows_over_messages),
        Target("exponent of the CPU of workers that come and go", 1.25, 1.1, _exponent),
    ],
)  # fmt: skip


# -- the work ------------------------------------------------------------------------------------


async def _work(machine: TreeMachine[Any], sizes: Sizes, meter: Meter) -> Record:
    if "turns" in sizes:
        return await _turns(machine, sizes["turns"], meter)
    if "wave" in sizes:
        with meter:
            last = [step async for step in run_machine(machine, "Go")][-1]
        assert last.response == "All are done.", last
        assert last.instance.children == ()
        return {**NOTHING, "operations": sizes["wave"]}
    steps = max(1, sizes["n"] // sizes["workers"])
    with meter:
        async with machine.run("Go", RunOptions(max_steps=steps + 1)) as running:
            for _ in range(steps):
                step = await anext(running)
    assert step.yield_reason == "tool_use", step
    leaves = step.instance.children or (step.instance,)
    assert {leaf.state["n"] for leaf in leaves} == {steps}
    return {**NOTHING, "operations": steps * sizes["workers"]}


async def _turns(machine: TreeMachine[Any], turns: int, meter: Meter) -> Record:
    took = []
    with meter:
        for _ in range(turns):
            began = time.process_time()
            async for _step in run_machine(machine, TEXT):
                pass
            took.append((time.process_time() - began) * 1e6)
    assert len(machine.history) == 2 * turns
    payload = sum(len(orjson.dumps(message_data(message))) for message in machine.history)
    early, late = statistics.median(took[EARLY]), statistics.median(took[LATE])
    return {**NOTHING, "operations": turns, "early": early, "late": late, "payload": payload}


def _tree(sizes: Sizes) -> tuple[Charter, Instance[Any]]:
    if "turns" in sizes:
        return talking()
    return hiring(sizes["wave"]) if "wave" in sizes else working(sizes["workers"])


async def _in_memory(sizes: Sizes, meter: Meter) -> Record:
    return await _work(create_machine(*_tree(sizes)), sizes, meter)


async def _stored(sizes: Sizes, meter: Meter) -> Record:
    async with SQLiteStore(FILE) as store, Runtime(store) as runtime:
        record = await _work(
            create_machine(*_tree(sizes), runtime=runtime, execution_id=EXECUTION), sizes, meter
        )
        if payload := record.pop("payload", 0):
            rows = sum([len(body) for _, _, body in await store.bodies(EXECUTION)])
            record["bytes"] = (payload + rows) / payload
    record["file"] = file_bytes(FILE) / payload if payload else math.nan
    return record


async def _calls(executor: ScriptedExecutor, number: int) -> None:
    request = AgentRequest(input={"node": "worker"}, messages=[{"role": "user", "content": "done"}])
    for _ in range(number):
        await executor.call(request)


@WORKLOAD.case(LIMIT, "the executor and the tool, called in a loop; nothing is decided, said or kept")
def calls_alone(sizes: Sizes, meter: Meter) -> Record:
    executor = _tree(sizes)[0].executor
    assert isinstance(executor, ScriptedExecutor)
    with meter:
        asyncio.run(_calls(executor, sizes["n"]))
    return {**NOTHING, "operations": sizes["n"]}


@WORKLOAD.case(FLAT, "MemoryStore, which every machine has that is given no other")
def flat_memory(sizes: Sizes, meter: Meter) -> Record:
    return asyncio.run(_in_memory(sizes, meter))


@WORKLOAD.case(SQLITE, "SQLiteStore NORMAL", only=lambda sizes: sizes.get("wave", 0) <= 1000)
def flat_stored(sizes: Sizes, meter: Meter) -> Record:
    return asyncio.run(_stored(sizes, meter))
