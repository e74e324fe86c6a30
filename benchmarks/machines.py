"""The machines that are measured, as plain configuration: `flat` and flatmachines run the very same ones.

Also how `flat` gets them, and small things that several workloads share.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from flat import HooksRegistry, Machine, MachineHooks, load

Context = dict[str, Any]
Action = Callable[[str, Context], Awaitable[None]]
SPEC = {"spec": "flatmachine", "spec_version": "4.2.1"}


def counter(n: int, persistence: Context, *, agent: bool = False, more: Context | None = None) -> Context:
    """One state that returns to itself until `context.i` is `n`: an action, or an agent, and a condition."""
    loop: Context = {"type": "initial"}
    data: Context = {"name": "counter", "context": {"i": 0, **(more or {})}, "persistence": persistence}
    if agent:
        loop |= {"agent": "worker", "input": {"i": "context.i"}, "output_to_context": {"i": "output.i"}}
        models = {"model_profiles": {"none": {"provider": "none", "name": "none"}}, "default": "none"}
        profile = {"spec": "flatprofile", "spec_version": "4.0.0", "data": models}
        agent_data = {"prompt": {"user": "x"}, "profile": profile}
        data["agents"] = {"worker": {"spec": "flatagent", "spec_version": "4.0.0", "data": agent_data}}
    else:
        loop |= {"action": "inc", "hooks": "counter"}
    loop["transitions"] = [{"condition": f"context.i >= {n}", "to": "done"}, {"to": "loop"}]
    data["states"] = {"loop": loop, "done": {"type": "final", "output": {"i": "context.i"}}}
    return {**SPEC, "data": data}


def alternating(n: int, persistence: Context) -> Context:
    """Two states that take turns until `context.i` is `n`."""

    def state(other: str) -> Context:
        transitions = [{"condition": f"context.i >= {n}", "to": "done"}, {"to": other}]
        return {"action": "inc", "hooks": "counter", "transitions": transitions}

    states = {
        "A": {"type": "initial", **state("B")}, "B": state("A"),
        "done": {"type": "final", "output": {"i": "context.i"}},
    }  # fmt: skip
    data = {"name": "ab", "context": {"i": 0}, "persistence": persistence, "states": states}
    return {**SPEC, "data": data}


def chain_yaml(k: int) -> str:
    """A YAML file with `k` states in a row; each can stop early, when `context.stop` is set."""
    lines = [
        "spec: flatmachine", 'spec_version: "4.2.1"', "data:", "  name: chain", "  context:", "    i: 0",
        "    stop: false", "  persistence:", "    enabled: false", "    checkpoint_on: []", "  states:",
    ]  # fmt: skip
    for number in range(k):
        following = f"s{number + 1}" if number + 1 < k else "done"
        lines += [f"    s{number}:", *(["      type: initial"] if number == 0 else [])]
        lines += [
            "      action: inc", "      hooks: counter", "      transitions:",
            '        - condition: "context.stop == true"', "          to: done", f"        - to: {following}",
        ]  # fmt: skip
    return "\n".join(
        [*lines, "    done:", "      type: final", "      output:", '        i: "context.i"', ""]
    )


def message(number: int) -> dict[str, str]:
    """A chat message of 1 KiB or so, that can be told from the others."""
    return {"role": "assistant", "content": f"{number:08d}" + "x" * 1000}


async def increment(state: str, context: Context) -> None:
    context["i"] += 1


def flat_machine(config: Context, action: Action = increment, **options: Any) -> Machine:
    """A machine for `flat` whose every action is the function."""

    class Hooks(MachineHooks):
        async def on_action(self, state_name: str, action_name: str, context: Context) -> Context:
            await action(state_name, context)
            return context

    registry = HooksRegistry()
    registry.register("counter", Hooks)
    return load(config=config, hooks=registry, **options)


def file_bytes(path: str | Path) -> int:
    """The size of a SQLite file once its write-ahead log is folded in."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return os.path.getsize(path)
