"""The peers: their libraries, imported when a case runs, and the counting loop as each of them writes it."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from benchmarks.machines import Action, Context, increment
from benchmarks.states import Counter


def peer(module: str) -> Any:
    """A module of a peer, which may not be installed where types are checked."""
    return importlib.import_module(module)


def flatmachines_hooks(action: Action = increment) -> Any:
    """A registry whose every action is the function."""
    library = peer("flatmachines")

    async def on_action(self: Any, state_name: str, action_name: str, context: Context) -> Context:
        await action(state_name, context)
        return context

    registry = library.HooksRegistry()
    registry.register("counter", type("Hooks", (library.MachineHooks,), {"on_action": on_action}))
    return registry


def langgraph_counter(n: int, step: Callable[[Counter], Any], checkpointer: Any = None) -> Any:
    """A graph of one node that returns to itself until `i` is `n`."""
    graph = peer("langgraph.graph")
    builder = graph.StateGraph(Counter)
    builder.add_node("inc", step)
    builder.add_edge(graph.START, "inc")
    builder.add_conditional_edges("inc", lambda s: "inc" if s["i"] < n else graph.END, ["inc", graph.END])
    return builder.compile(checkpointer=checkpointer)


def burr_counter(n: int, step: Callable[[Any], Any]) -> Any:
    """The builder of an application whose one action returns to itself until `i` is `n`."""
    core = peer("burr.core")

    def done(state: Any) -> Any:
        return state

    async def done_async(state: Any) -> Any:
        return state

    last = done_async if inspect.iscoroutinefunction(step) else done
    inc = core.action(reads=["i"], writes=["i"])(step)
    over = ("inc", "done", core.expr(f"i >= {n}"))
    return (
        core.ApplicationBuilder()
        .with_state(i=0)
        .with_actions(inc=inc, done=core.action(reads=["i"], writes=[])(last))
        .with_transitions(over, ("inc", "inc", core.default))
        .with_entrypoint("inc")
    )
