"""The process that W8 kills: `python -m benchmarks.crashing SYSTEM N start|resume`, where its files are.

Two states A and B take turns. Each step appends `STATE i` to the file `effects` before it returns, so that
the file shows what really ran. Imports stay inside the functions: a system must not pay for another's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Effects:
    """What a step does to the world."""

    def __init__(self) -> None:
        self.file = os.open("effects", os.O_CREAT | os.O_WRONLY | os.O_APPEND)

    def __call__(self, state: str, i: int) -> None:
        os.write(self.file, f"{state} {i}\n".encode())


def raw(n: int, resume: bool, effect: Effects) -> dict[str, Any]:
    import orjson

    connection = sqlite3.connect("x.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=NORMAL")
    connection.execute("CREATE TABLE IF NOT EXISTS steps (step INTEGER PRIMARY KEY, state TEXT, data BLOB)")
    context, current = {"i": 0}, "A"
    if resume:
        query = "SELECT state, data FROM steps ORDER BY step DESC LIMIT 1"
        current, data = connection.execute(query).fetchone()
        context = orjson.loads(data)
    while context["i"] < n:
        effect(current, context["i"])
        context["i"] += 1
        current = "B" if current == "A" else "A"
        connection.execute(
            "INSERT INTO steps VALUES (?, ?, ?)", (context["i"], current, orjson.dumps(context))
        )
    return {"i": context["i"]}


def flat(n: int, resume: bool, effect: Effects) -> dict[str, Any]:
    from flat import HooksRegistry, MachineHooks, Runtime, load

    class Hooks(MachineHooks):
        async def on_action(
            self, state_name: str, action_name: str, context: dict[str, Any]
        ) -> dict[str, Any]:
            effect(state_name, context["i"])
            context["i"] += 1
            return context

    registry = HooksRegistry()
    registry.register("counter", Hooks)
    machine = load("machine.yml", hooks=registry)

    async def go() -> dict[str, Any]:
        async with Runtime("sqlite:///x.db") as runtime:
            if resume:
                outcome = await runtime.resume("e", machine)
            else:
                outcome = await runtime.start(machine, execution_id="e", max_steps=n + 50)
        doubts = [int(doubt.effect_id.split("/")[1]) - 1 for doubt in outcome.in_doubt]
        return {"i": outcome.output["i"], "in_doubt": doubts}

    return asyncio.run(go())


def flatmachines(n: int, resume: bool, effect: Effects) -> dict[str, Any]:
    from benchmarks.machines import alternating
    from benchmarks.peers import flatmachines_hooks, peer

    library = peer("flatmachines")

    async def act(state: str, context: dict[str, Any]) -> None:
        effect(state, context["i"])
        context["i"] += 1

    execution = Path("execution")
    stored = {"enabled": True, "backend": "sqlite", "db_path": "x.db", "checkpoint_on": ["state_enter"]}

    async def go(**options: Any) -> dict[str, Any]:
        return dict(await machine.execute(max_steps=n + 50, **options))

    machine = library.FlatMachine(
        config_dict=alternating(n, stored), hooks_registry=flatmachines_hooks(act), lock=library.NoOpLock()
    )
    if resume:
        return asyncio.run(go(resume_from=execution.read_text()))
    execution.write_text(machine.execution_id)
    return asyncio.run(go())


def langgraph(n: int, resume: bool, effect: Effects) -> dict[str, Any]:
    from benchmarks.peers import peer
    from benchmarks.states import Counter

    graph, saver = peer("langgraph.graph"), peer("langgraph.checkpoint.sqlite")
    builder = graph.StateGraph(Counter)

    def node(name: str) -> Callable[[Counter], Counter]:
        def run(state: Counter) -> Counter:
            effect(name, state["i"])
            return {"i": state["i"] + 1}

        return run

    def following(name: str) -> Callable[[Counter], str]:
        return lambda state: name if state["i"] < n else graph.END

    for name, other in ("AB", "BA"):
        builder.add_node(name, node(name))
        builder.add_conditional_edges(name, following(other), [other, graph.END])
    builder.add_edge(graph.START, "A")
    connection = sqlite3.connect("x.db", check_same_thread=False)
    connection.execute("PRAGMA synchronous=NORMAL")
    checkpointer = saver.SqliteSaver(connection)
    checkpointer.setup()
    thread = {"configurable": {"thread_id": "t"}, "recursion_limit": n + 10}
    result = builder.compile(checkpointer=checkpointer).invoke(
        None if resume else {"i": 0}, thread, durability="sync"
    )
    return {"i": result["i"]}


def burr(n: int, resume: bool, effect: Effects) -> dict[str, Any]:
    from benchmarks.peers import peer

    core, persistence = peer("burr.core"), peer("burr.core.persistence")

    def action(name: str) -> Any:
        def run(state: Any) -> Any:
            effect(name, state["i"])
            return state.update(i=state["i"] + 1)

        return core.action(reads=["i"], writes=["i"])(run)

    def done(state: Any) -> Any:
        return state

    persister = persistence.SQLitePersister("x.db")
    persister.initialize()
    persister.connection.execute("PRAGMA journal_mode=WAL")
    persister.connection.execute("PRAGMA synchronous=NORMAL")
    over = core.expr(f"i >= {n}")
    turns = [("A", "done", over), ("A", "B", core.default), ("B", "done", over), ("B", "A", core.default)]
    actions = {"A": action("A"), "B": action("B"), "done": core.action(reads=["i"], writes=[])(done)}
    start = {"resume_at_next_action": True, "default_state": {"i": 0}, "default_entrypoint": "A"}
    builder = core.ApplicationBuilder().with_actions(**actions).with_transitions(*turns)
    builder = builder.with_identifiers(app_id="e", partition_key="p").with_state_persister(persister)
    application = builder.initialize_from(persister, **start).build()
    _, _, state = application.run(halt_after=["done"])
    return {"i": state["i"]}


SYSTEMS = {function.__name__: function for function in (raw, flat, flatmachines, langgraph, burr)}


def main() -> None:
    _, name, n, phase = sys.argv
    began = time.perf_counter()
    result = SYSTEMS[name](int(n), phase == "resume", Effects())
    print("\n" + json.dumps({**result, "inside": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
