"""W1: a loop in memory. One asynchronous no-op step and one condition per step, nothing stored."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import anyio
import anyio.lowlevel

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload
from benchmarks.machines import counter, flat_machine
from benchmarks.peers import burr_counter, flatmachines_hooks, langgraph_counter, peer
from benchmarks.states import Counter
from flat import AgentRequest, AgentResult, MemoryStore, Runtime, SQLiteStore

TABLE = "limit: table engine"
FLAT = "flat"
FLAT_AGENT = "flat, agent"
FASTEST = "flatmachines, agent, no checkpoints"
LANGGRAPH = "langgraph async"
REPEATS = 100
"""The limits are so short that one run of them is lost in the clock's noise."""


def times(case: str, other: str, key: str = "cpu") -> Any:
    """How many times cheaper than another."""

    def value(measured: Sequence[Measured]) -> float:
        return measured[-1].ratio(other, case, key)

    return value


WORKLOAD = Workload(
    "w1", "loop in memory", "step", [{"n": 2000}], [{"n": 200}], TABLE,
    targets=[
        Target("CPU a step, µs", 10, 3, lambda m: m[0].best(FLAT, "cpu")),
        Target("× the table engine, CPU", None, 7, lambda m: m[0].ratio(FLAT, TABLE, "cpu")),
        Target("times cheaper than flatmachines at its fastest", 2.8, 9, times(FLAT, FASTEST), at_least=True),
        Target("… with an agent in flat too", None, None, times(FLAT_AGENT, FASTEST), at_least=True),
        Target("times cheaper than langgraph async", 50, 100, times(FLAT, LANGGRAPH), at_least=True),
    ],
)  # fmt: skip


# -- the limit --------------------------------------------------------------------------


@WORKLOAD.case(TABLE, "a table of states, compiled conditions, a step counter; nothing else")
def table_engine(sizes: Sizes, meter: Meter) -> Record:
    n = sizes["n"]

    async def step(context: dict[str, int]) -> dict[str, int]:
        return {"i": context["i"] + 1}

    over = eval(f"lambda context: context['i'] >= {n}")
    states: dict[str, Any] = {"loop": (step, "i", ((over, "done"), (None, "loop"))), "done": None}

    async def execute() -> dict[str, int]:
        context, current, steps = {"i": 0}, "loop", 0
        while (state := states[current]) is not None:
            act, key, transitions = state
            steps += 1
            output = await act(context)
            context[key] = output[key]
            for condition, target in transitions:
                if condition is None or condition(context):
                    current = target
                    break
        return context

    async def go() -> None:
        for _ in range(REPEATS):
            assert await execute() == {"i": n}

    with meter:
        asyncio.run(go())
    return {"operations": n * REPEATS}


# -- flat --------------------------------------------------------------------------------


class AddOne:
    """An agent without a model."""

    async def call(self, request: AgentRequest) -> AgentResult:
        return AgentResult(output={"i": request.input["i"] + 1})


def _flat(sizes: Sizes, meter: Meter, store: MemoryStore | SQLiteStore | None, agent: bool = False) -> Record:
    config = counter(sizes["n"], {"enabled": False}, agent=agent)
    machine = flat_machine(config, agents={"worker": AddOne()} if agent else {})

    async def go() -> None:
        await anyio.lowlevel.checkpoint()  # anyio imports its backend when it is first used
        async with Runtime(store) as runtime:
            with meter:
                outcome = await runtime.start(machine, max_steps=sizes["n"] + 10)
        assert outcome.output == {"i": sizes["n"]}, outcome

    asyncio.run(go())
    return {}


@WORKLOAD.case(FLAT, "an asynchronous on_action hook; Runtime(None)")
def flat_action(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, None)


@WORKLOAD.case(FLAT_AGENT, "an agent without a model, input and output mapping; Runtime(None)")
def flat_agent(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, None, agent=True)


@WORKLOAD.case("flat, MemoryStore", "the action; every step encoded and kept in memory")
def flat_memory(sizes: Sizes, meter: Meter) -> Record:
    return _flat(sizes, meter, MemoryStore())


# -- peers -------------------------------------------------------------------------------


def _flatmachines(sizes: Sizes, meter: Meter, persistence: dict[str, Any], agent: bool) -> Record:
    library, agents = peer("flatmachines"), peer("flatmachines.agents")

    async def execute(self: Any, input_data: Any, context: Any = None, session_id: Any = None) -> Any:
        return agents.AgentResult(output={"i": input_data["i"] + 1})

    executor = type("Executor", (), {"metadata": {}, "execute": execute})
    adapter = type("Adapter", (), {"type_name": "flatagent", "create_executor": lambda self, **_: executor()})
    named = (
        {"agent_registry": agents.AgentAdapterRegistry([adapter()])}
        if agent
        else {"hooks_registry": flatmachines_hooks()}
    )

    async def go() -> None:
        machine = library.FlatMachine(config_dict=counter(sizes["n"], persistence, agent=agent), **named)
        with meter:
            output = await machine.execute(max_steps=sizes["n"] + 10)
        assert output["i"] == sizes["n"]

    asyncio.run(go())
    return {}


NO_CHECKPOINTS = {"enabled": False, "checkpoint_on": []}


@WORKLOAD.case("flatmachines, action, no checkpoints", "checkpoint_on: []", needs=["flatmachines"])
def flatmachines_action(sizes: Sizes, meter: Meter) -> Record:
    return _flatmachines(sizes, meter, NO_CHECKPOINTS, agent=False)


@WORKLOAD.case(
    FASTEST, "checkpoint_on: []; an agent without a model: its fastest setting", needs=["flatmachines"]
)
def flatmachines_agent(sizes: Sizes, meter: Meter) -> Record:
    return _flatmachines(sizes, meter, NO_CHECKPOINTS, agent=True)


def _add(state: Counter) -> Counter:
    return {"i": state["i"] + 1}


async def _add_async(state: Counter) -> Counter:
    return _add(state)


@WORKLOAD.case(LANGGRAPH, "StateGraph, ainvoke, no checkpointer", needs=["langgraph"])
def langgraph_async(sizes: Sizes, meter: Meter) -> Record:
    graph = langgraph_counter(sizes["n"], _add_async)

    async def go() -> None:
        with meter:
            result = await graph.ainvoke({"i": 0}, {"recursion_limit": sizes["n"] + 10})
        assert result["i"] == sizes["n"]

    asyncio.run(go())
    return {}


@WORKLOAD.case("langgraph sync", "StateGraph, invoke, no checkpointer", needs=["langgraph"])
def langgraph_sync(sizes: Sizes, meter: Meter) -> Record:
    graph = langgraph_counter(sizes["n"], _add)
    with meter:
        result = graph.invoke({"i": 0}, {"recursion_limit": sizes["n"] + 10})
    assert result["i"] == sizes["n"]
    return {}


@WORKLOAD.case("burr async", "arun, no tracker, no persister", needs=["burr"])
def burr_async(sizes: Sizes, meter: Meter) -> Record:
    async def inc(state: Any) -> Any:
        return state.update(i=state["i"] + 1)

    async def go() -> None:
        application = burr_counter(sizes["n"], inc).build()
        with meter:
            _, _, state = await application.arun(halt_after=["done"])
        assert state["i"] == sizes["n"]

    asyncio.run(go())
    return {}
