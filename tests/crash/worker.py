"""A process that forks workers on demand, so that a fresh one costs milliseconds; run as a script.

Lines on stdin: `run ID STEPS PAUSE LEASE` forks one worker, `race ID COUNT` forks several that begin at once.
The answers are `pid N …`, and `ended CODE` for each worker as it ends. Workers write what they do to the
ledger, one O_APPEND write a line.
"""

from __future__ import annotations

import os
import sys
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
    SQLiteStore,
    StaleSnapshot,
)

BUSY, STALE = 8, 9


def note(ledger: int, *words: object) -> None:
    os.write(ledger, (" ".join(map(str, words)) + "\n").encode())


class Stepping(MachineHooks):
    """One step of the A/B machine: writes down where it is, and goes on."""

    def __init__(self, ledger: int) -> None:
        self.ledger = ledger

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        note(self.ledger, "step", os.getpid(), state_name, context["n"] + 1)
        if context["pause"]:
            await anyio.sleep(context["pause"])
        context["n"] += 1
        context["trail"].append(f"{state_name}{context['n']}")
        return context


class Doubts:
    """Notes the effects in doubt, also when the run does not live to give its outcome."""

    def __init__(self, ledger: int) -> None:
        self.ledger = ledger

    def notify(self, notice: Notice) -> None:
        if notice.kind == "in_doubt":
            note(self.ledger, "doubt", os.getpid(), notice.step)


def ab_machine(ledger: int) -> Machine:
    def state(other: str) -> dict[str, Any]:
        return {
            "action": "step",
            "transitions": [{"condition": "context.n >= context.steps", "to": "end"}, {"to": other}],
        }

    data = {
        "name": "ab", "hooks": "stepping",
        "context": {"n": 0, "steps": "{{ input.steps }}", "pause": "{{ input.pause }}", "trail": []},
        "settings": {"native_types": True},
        "states": {
            "start": {"type": "initial", "transitions": [{"to": "a"}]},
            "a": state("b"), "b": state("a"),
            "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
        },
    }  # fmt: skip
    config = {"spec": "flatmachine", "spec_version": "2.5.0", "data": data}
    return flat.load(config=config, hooks=HooksRegistry({"stepping": lambda: Stepping(ledger)}))


async def work(database: str, ledger: int, execution: str, steps: int, pause: float, lease: float) -> int:
    machine = ab_machine(ledger)
    store = SQLiteStore(database)
    try:
        async with Runtime(store, observers=[Doubts(ledger)], lease_seconds=lease) as runtime:
            try:
                found = await store.get(execution)
                if found is None:
                    await runtime.start(machine, {"steps": steps, "pause": pause}, execution_id=execution)
                    return 0
                outcome = await runtime.resume(execution, machine, max_steps=1000)
            except StaleSnapshot:
                return STALE
            except ExecutionBusy:
                return BUSY
            return 0 if outcome.status == "done" else 1
    finally:
        await store.close()


def fork(arguments: tuple[Any, ...], gate: tuple[int, int] | None = None) -> int:
    """A worker's pid. Behind a gate it begins when the gate's other end is closed everywhere."""
    if pid := os.fork():
        return pid
    code = 70
    try:
        if gate is not None:
            os.close(gate[1])
            os.read(gate[0], 1)
        code = anyio.run(work, *arguments)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    os._exit(code)


async def warm() -> None:
    """Import, here and not in every worker, all that a run needs. No thread may be left when we fork."""
    async with Runtime(MemoryStore()) as runtime:
        await runtime.start(ab_machine(os.open(os.devnull, os.O_WRONLY)), {"steps": 2, "pause": 0})


def main() -> None:
    database, path = sys.argv[1:]
    ledger = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    anyio.run(warm)
    for line in sys.stdin:
        match line.split():
            case ["run", execution, steps, pause, lease]:
                pids = [fork((database, ledger, execution, int(steps), float(pause), float(lease)))]
            case ["race", execution, count]:
                gate = os.pipe()
                pids = [fork((database, ledger, execution, 0, 0.0, 30.0), gate) for _ in range(int(count))]
                os.close(gate[1])
                os.close(gate[0])
            case _:
                raise SystemExit(f"what is {line!r}?")
        print("pid", *pids, flush=True)
        for _ in pids:
            _, status = os.wait()
            print("ended", os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
