"""A process that forks workers on demand, so that a fresh one costs milliseconds; run as a script.

Lines on stdin: `run ID STEPS LEASE` forks one worker, `run ID STEPS LEASE SIGNAL AT` one that sends itself a signal in
the middle of a step, `race ID COUNT AT` forks several that begin at once and stop in that step, `family ID COUNT PAUSE`
and `talk ID COUNT PAUSE` fork one that drives a machine with children, or with a tool loop. The answers are `pid N …`,
`stopped PID` when a worker stops, and `ended CODE` for each as it ends. Workers write what they do to the ledger, one
O_APPEND write a line.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

import flat
from flat import (
    ExecutionBusy,
    HooksRegistry,
    Machine,
    MachineHooks,
    MemoryStore,
    Notice,
    Runtime,
    StaleSnapshot,
)
from flat.agents.protocol import AgentResult, Usage
from flat.backends import open_store

BUSY, STALE = 8, 9
UNDISTURBED = (signal.SIGCONT, 0)
"""No step has the number 0."""


def note(ledger: int, *words: object) -> None:
    os.write(ledger, (" ".join(map(str, words)) + "\n").encode())


class Stepping(MachineHooks):
    """One step of the A/B machine: writes down where it is, and goes on."""

    def __init__(self, ledger: int, disturbed: tuple[signal.Signals, int]) -> None:
        self.ledger, (self.signal, self.at) = ledger, disturbed

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        context["n"] += 1
        note(self.ledger, "step", os.getpid(), state_name, context["n"])
        if context["n"] == self.at:
            os.kill(os.getpid(), self.signal)
        context["trail"].append(f"{state_name}{context['n']}")
        return context


class Doubts:
    """Notes the effects in doubt, also when the run does not live to give its outcome."""

    def __init__(self, ledger: int) -> None:
        self.ledger = ledger

    def notify(self, notice: Notice) -> None:
        if notice.kind == "in_doubt":
            note(self.ledger, "doubt", os.getpid(), notice.step)


def ab_machine(ledger: int, disturbed: tuple[signal.Signals, int] = UNDISTURBED) -> Machine:
    def state(other: str) -> dict[str, Any]:
        return {
            "action": "step",
            "transitions": [{"condition": "context.n >= context.steps", "to": "end"}, {"to": other}],
        }

    data = {
        "name": "ab", "hooks": "stepping",
        "context": {"n": 0, "steps": "{{ input.steps }}", "trail": []},
        "settings": {"native_types": True},
        "states": {
            "start": {"type": "initial", "transitions": [{"to": "a"}]},
            "a": state("b"), "b": state("a"),
            "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
        },
    }  # fmt: skip
    config = {"spec": "flatmachine", "spec_version": "2.5.0", "data": data}
    return flat.load(config=config, hooks=HooksRegistry({"stepping": lambda: Stepping(ledger, disturbed)}))


def family_machine(ledger: int, count: int, pause: float) -> Machine:
    """A child for each of so many items, which takes three steps of its own; and two that are launched."""

    class Counting(MachineHooks):
        async def on_action(
            self, state_name: str, action_name: str, context: dict[str, Any]
        ) -> dict[str, Any]:
            note(ledger, "step", os.getpid(), f"{context['v']}:{context['n'] + 1}", context["n"] + 1)
            await anyio.sleep(pause)
            context["n"] += 1
            return context

    def file(states: Any, context: Any, **data: Any) -> dict[str, Any]:
        whole = {
            "name": "family", "states": states, "context": context, "settings": {"native_types": True}, **data
        }  # fmt: skip
        return {"spec": "flatmachine", "spec_version": "2.5.0", "data": whole}

    again = [{"condition": "context.n >= 3", "to": "end"}, {"to": "s"}]
    states: dict[str, Any] = {
        "s": {"action": "step", "transitions": again},
        "end": {"type": "final", "output": {"n": "context.n", "v": "context.v"}},
    }
    child = file(states, {"n": 0, "v": "{{ input.v }}"}, hooks="counting")
    states = {
        "l": {"launch": ["child", "child"], "launch_input": {"v": "launched"}, "transitions": [{"to": "each"}]},
        "each": {
            "foreach": "context.items", "machine": "child", "input": {"v": "{{ item }}"},
            "output_to_context": {"all": "output"}, "transitions": [{"to": "end"}],
        },
        "end": {"type": "final", "output": {"all": "context.all"}},
    }  # fmt: skip
    whole = file(states, {"items": list(range(count)), "all": None}, machines={"child": child})
    return flat.load(config=whole, hooks=HooksRegistry({"counting": Counting}))


def talking_machine(ledger: int, count: int, pause: float) -> Machine:
    """A tool loop of so many turns, with two tools each."""

    class Model:
        async def call(self, request: flat.AgentRequest) -> AgentResult:
            turn = int(request.idempotency_key.rpartition("model")[2])
            note(ledger, "step", os.getpid(), f"model{turn}", turn)
            if turn == count:
                return AgentResult(content="done", finish_reason="stop")
            calls = [{"id": f"{turn}.{n}", "name": "look", "arguments": {}} for n in range(2)]
            return AgentResult(
                tool_calls=calls,
                finish_reason="tool_use",
                rendered_user_prompt="go",
                usage=Usage(api_calls=1),
            )

    class Tools:
        def get_tool_definitions(self) -> list[Any]:
            return []

        async def execute_tool(self, name: str, tool_call_id: str, arguments: Any) -> str:
            note(ledger, "step", os.getpid(), f"tool{tool_call_id}", 0)
            await anyio.sleep(pause)
            return f"{tool_call_id} seen"

    agent = {"name": "a", "model": {"provider": "x", "name": "y"}, "system": "s", "user": "u"}
    data = {
        "name": "talk", "context": {},
        "agents": {"a": {"spec": "flatagent", "spec_version": "2.5.0", "data": agent}},
        "states": {"s": {"type": "final", "agent": "a", "tool_loop": True}},
    }  # fmt: skip
    config = {"spec": "flatmachine", "spec_version": "2.5.0", "data": data}
    return flat.load(config=config, agents={"a": Model()}, tool_provider=Tools())


class Doubtful(Doubts):
    """Notes which effect of which execution is in doubt."""

    def notify(self, notice: Notice) -> None:
        if notice.kind == "in_doubt":
            note(self.ledger, "doubt", os.getpid(), f"{notice.execution_id}/{notice.facts['effect_id']}", 0)


async def drive(database: str, ledger: int, execution: str, machine: Machine) -> int:
    """Start or resume any machine, and go on until it is over."""
    store = open_store(database)
    try:
        async with Runtime(store, observers=[Doubtful(ledger)]) as runtime:
            if await store.get(execution) is None:
                outcome = await runtime.start(machine, execution_id=execution)
            else:
                outcome = await runtime.resume(execution, machine)
            return 0 if outcome.status == "done" else 1
    finally:
        await store.close()


async def work_at(database: str, ledger: int, execution: str, kind: str, count: int, pause: float) -> int:
    make = family_machine if kind == "family" else talking_machine
    return await drive(database, ledger, execution, make(ledger, count, pause))


async def work(
    database: str, ledger: int, execution: str, steps: int, lease: float,
    disturbed: tuple[signal.Signals, int] = UNDISTURBED,
) -> int:  # fmt: skip
    machine = ab_machine(ledger, disturbed)
    store = open_store(database)
    try:
        async with Runtime(store, observers=[Doubts(ledger)], lease_seconds=lease) as runtime:
            try:
                found = await store.get(execution)
                if found is None:
                    await runtime.start(machine, {"steps": steps}, execution_id=execution)
                    return 0
                outcome = await runtime.resume(execution, machine, max_steps=1000)
            except StaleSnapshot:
                return STALE
            except ExecutionBusy:
                return BUSY
            return 0 if outcome.status == "done" else 1
    finally:
        await store.close()


def fork(
    arguments: tuple[Any, ...], gate: tuple[int, int] | None = None, job: Callable[..., Awaitable[int]] = work
) -> int:
    """A worker's pid. Behind a gate it begins when the gate's other end is closed everywhere."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        if gate is not None:
            os.close(gate[1])
            os.read(gate[0], 1)
        code = anyio.run(job, *arguments)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    os._exit(code)


async def warm() -> None:
    """Import, here and not in every worker, all that a run needs. No thread may be left when we fork."""
    async with Runtime(MemoryStore()) as runtime:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        await runtime.start(ab_machine(nowhere), {"steps": 2})
        await runtime.start(family_machine(nowhere, 2, 0))
        await runtime.start(talking_machine(nowhere, 1, 0))


def main() -> None:
    database, path = sys.argv[1:]
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    anyio.run(warm)
    open_store(database)  # imports its client, and connects to nothing
    for line in sys.stdin:
        match line.split():
            case ["run", execution, steps, lease, *disturbed]:
                how = (signal.Signals[disturbed[0]], int(disturbed[1])) if disturbed else UNDISTURBED
                pids = [fork((database, ledger, execution, int(steps), float(lease), how))]
            case ["race", execution, count, at]:
                gate, stops = os.pipe(), (signal.SIGSTOP, int(at))
                pids = [fork((database, ledger, execution, 0, 600.0, stops), gate) for _ in range(int(count))]
                os.close(gate[1])
                os.close(gate[0])
            case ["family" | "talk" as kind, execution, count, pause]:
                arguments = (database, ledger, execution, kind, int(count), float(pause))
                pids = [fork(arguments, job=work_at)]
            case _:
                raise SystemExit(f"what is {line!r}?")
        print("pid", *pids, flush=True)
        left = len(pids)
        while left:
            pid, status = os.waitpid(-1, os.WUNTRACED)
            if os.WIFSTOPPED(status):
                print("stopped", pid, flush=True)
            else:
                left -= 1
                print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
