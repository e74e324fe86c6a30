"""A drill for stores that a fleet of workers shares: processes run what is queued while they are killed at random.

    report = drill("postgresql://…", jobs=10_000, workers=8, kills=100)
    assert report.clean, report

Each job is an execution of two actions. Workers write a line at the beginning of each action, and the moment of every
kill is known. An action may be done twice only when the worker that did it first was killed before the second one
began: that is what "at least once" means for what is outside. In the store everything happens exactly once.

The workers are forked by a process that has imported everything and runs no event loop: this one, as a script.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio

from flat.backends import open_store
from flat.hooks import HooksRegistry, MachineHooks
from flat.runtime import Machine, Runtime, load

ACTIONS = ("first", "second")
GENTLE = 0.3
"""The share of those who are replaced that are asked to stop, and not killed."""
LOOK_EVERY = 0.02
PATIENCE = 30.0
ENQUEUED_AT_ONCE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReport:
    """What a drill came to."""

    jobs: int
    done: int
    """Executions that ended as they should. Less than `jobs`: some were lost."""
    wrong: int
    """Actions that were done again though nobody had been killed over them, and outputs that are not right."""
    repeated: int
    """Actions that were done again because their worker was killed."""
    killed: int
    stopped: int
    """Workers that were asked to stop."""
    failed: int
    """Workers that ended with an error of their own, or did not stop."""
    enqueue_seconds: float
    seconds: float
    """From the first action to the last."""
    lost_claims: int = 0
    """How often a worker was too late for what another one had taken."""
    looks: int = 0
    by_worker: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing done twice without need, and nobody failed."""
        return self.done == self.jobs and not (self.wrong or self.failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How a drill is to go."""

    url: str
    jobs: int
    workers: int
    kills: int
    concurrency: int = 8
    lease: float = 6.0
    pause: float = 0.0
    """Seconds that each action takes."""
    seed: int | None = None
    backend: str = "asyncio"


def drill(
    url: str, *, jobs: int = 300, workers: int = 4, kills: int = 10, concurrency: int = 8, lease: float = 6.0,
    pause: float = 0.0, seed: int | None = None, backend: str = "asyncio",
) -> FleetReport:  # fmt: skip
    """Queue jobs in a store, and have them run by processes, `kills` of which are killed, or stopped, and replaced."""
    plan = Plan(
        url=url, jobs=jobs, workers=workers, kills=kills, concurrency=concurrency, lease=lease, pause=pause, seed=seed,
        backend=backend,
    )  # fmt: skip
    command = [sys.executable, "-m", "flat.testing.fleet_drill", json.dumps(dataclasses.asdict(plan))]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the drill broke off:\n{run.stdout}{run.stderr}")
    sys.stderr.write(run.stderr)
    return FleetReport(**json.loads(run.stdout.splitlines()[-1]))


def job_machine(plan: Plan, ledger: int) -> Machine:
    """Two actions that note that they began, one after the other."""

    class Noting(MachineHooks):
        async def on_action(
            self, state_name: str, action_name: str, context: dict[str, Any]
        ) -> dict[str, Any]:
            line = f"{context['job']} {action_name} {os.getpid()} {time.monotonic()}\n"
            os.write(ledger, line.encode())  # appended whole
            if plan.pause:
                await anyio.sleep(plan.pause)
            return {**context, "did": [*context["did"], action_name]}

    first, second = ACTIONS
    states = {
        "a": {"type": "initial", "action": first, "transitions": [{"to": "b"}]},
        "b": {"action": second, "transitions": [{"to": "c"}]},
        "c": {"type": "final", "output": {"did": "{{ context.did }}", "job": "{{ context.job }}"}},
    }
    data = {
        "name": "drill", "context": {"job": "{{ input.job }}", "did": []}, "states": states,
        "settings": {"native_types": True}, "hooks": "noting",
    }  # fmt: skip
    return load(
        config={"spec": "flatmachine", "spec_version": "4.2.1", "data": data},
        hooks=HooksRegistry({"noting": Noting}),
    )


# -- in the process that forks ------------------------------------------------------------------------


class _Drill:
    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder, self.chance = plan, folder, random.Random(plan.seed)
        self.path = folder / "ledger"
        self.ledger = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        self.alive: dict[int, float] = {}
        self.killed: dict[int, float] = {}
        """When each was killed."""
        self.stopped: set[int] = set()
        self.failed = 0
        self.seen = 0
        """How much of the ledger has been read."""
        self.begun: set[bytes] = set()

    def run(self) -> FleetReport:
        before = time.monotonic()
        self._in_child(self._enqueue)
        enqueued = time.monotonic() - before
        try:
            for _ in range(self.plan.workers):
                self._start()
            self._replace_some()
            while self.alive:
                self._ask(self.alive.popitem()[0])
            self._in_child(self._drain)  # whoever was killed last may have left something
        finally:
            for pid in self.alive:  # still there only when something is wrong
                os.kill(pid, signal.SIGKILL)
        return self._report(enqueued, json.loads(self._in_child(self._outcome)))

    def _start(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until the new one can hear it
        if pid := os.fork():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            self.alive[pid] = time.monotonic()
            return
        code = 70
        try:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            anyio.run(self._work, backend=self.plan.backend)
            code = 0
        except BaseException as error:
            print(f"worker {os.getpid()}:", file=sys.stderr)
            traceback.print_exception(error)
            sys.stderr.flush()
        os._exit(code)

    def _replace_some(self) -> None:
        """Kill and replace workers at random moments, until every job has done its last action."""
        wanted = self.plan.jobs * len(ACTIONS)
        moments = sorted(self.chance.randrange(1, wanted) for _ in range(self.plan.kills))
        while (done := self._progress()) < wanted:
            for pid in [p for p in self.alive if os.waitpid(p, os.WNOHANG)[0]]:
                self.failed += 1  # none ends by itself
                del self.alive[pid]
                self._start()
            if moments and done >= moments[0]:
                moments.pop(0)
                self._replace(self.chance.choice(sorted(self.alive)))
            time.sleep(LOOK_EVERY)

    def _progress(self) -> int:
        """How many actions have begun, at least once."""
        new = os.pread(self.ledger, os.fstat(self.ledger).st_size - self.seen, self.seen)
        self.seen += len(new)
        self.begun.update(b" ".join(line.split()[:2]) for line in new.splitlines())
        return len(self.begun)

    def _replace(self, pid: int) -> None:
        if self.killed and self.chance.random() < GENTLE:  # the first one is killed in any case
            self._ask(pid)
        else:
            self.killed[pid] = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self.alive.pop(pid)
        self._start()

    def _ask(self, pid: int) -> None:
        """Have a worker stop in order."""
        os.kill(pid, signal.SIGTERM)
        ended, status, until = 0, 0, time.monotonic() + PATIENCE
        while not ended and time.monotonic() < until:
            ended, status = os.waitpid(pid, os.WNOHANG)
            time.sleep(0 if ended else LOOK_EVERY)
        if not ended:
            print(f"worker {pid} did not stop", file=sys.stderr, flush=True)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
        self.stopped.add(pid)
        self.failed += os.waitstatus_to_exitcode(status) != 0

    def _lines(self) -> list[tuple[str, str, int, float]]:
        whole = (line.split() for line in self.path.read_text().splitlines())
        return [(job, action, int(pid), float(at)) for job, action, pid, at in whole]

    def _report(self, enqueued: float, outcome: Mapping[str, Any]) -> FleetReport:
        times: defaultdict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
        lines = self._lines()
        for job, action, pid, at in lines:
            times[job, action].append((at, pid))
        wrong = repeated = 0
        for begun in times.values():
            begun.sort()
            for (_, first), (again, _) in pairwise(begun):
                needed = first in self.killed and self.killed[first] <= again
                repeated, wrong = repeated + needed, wrong + (not needed)
        moments = [at for *_, at in lines]
        return FleetReport(
            jobs=self.plan.jobs, done=outcome["done"], wrong=wrong + outcome["wrong"], repeated=repeated,
            killed=len(self.killed), stopped=len(self.stopped), failed=self.failed, enqueue_seconds=enqueued,
            seconds=max(moments) - min(moments), lost_claims=outcome["lost"], looks=outcome["looks"],
            by_worker=dict(Counter(str(pid) for _, action, pid, _ in lines if action == ACTIONS[-1])),
        )  # fmt: skip

    # -- in processes of their own ---------------------------------------------------------------

    def _in_child(self, work: Any) -> str:
        """Do something with the store in another process, which shares nothing with those that are forked later."""
        answer = self.folder / "answer"
        if (pid := os.fork()) == 0:
            code = 70
            try:
                answer.write_text(anyio.run(work))
                code = 0
            except BaseException as error:
                print(f"{work.__name__}: {error!r}", file=sys.stderr, flush=True)
            os._exit(code)
        _, status = os.waitpid(pid, 0)
        if status:
            raise SystemExit(f"{work.__name__} failed")
        return answer.read_text()

    async def _enqueue(self) -> str:
        machine = job_machine(self.plan, self.ledger)
        jobs = iter(range(self.plan.jobs))
        async with Runtime(self.plan.url) as runtime:

            async def some() -> None:
                for job in jobs:
                    await runtime.enqueue(machine, {"job": job}, execution_id=f"job-{job}")

            async with anyio.create_task_group() as group:
                for _ in range(ENQUEUED_AT_ONCE):
                    group.start_soon(some)
        return ""

    async def _work(self) -> None:
        machine = job_machine(self.plan, self.ledger)
        store = open_store(self.plan.url)
        async with Runtime(store, machines={"drill": machine}, lease_seconds=self.plan.lease) as runtime:
            # A job that is unlucky enough may be killed over and over.
            worker = runtime.worker(concurrency=self.plan.concurrency, attempts=1000, poll=0.5)

            async def stop() -> None:
                with anyio.open_signal_receiver(signal.SIGTERM) as signals:
                    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
                    async for _ in signals:
                        worker.stop()

            async with anyio.create_task_group() as group:
                group.start_soon(stop)
                tally = await worker.run()
                group.cancel_scope.cancel()
        await store.close()
        (self.folder / f"tally-{os.getpid()}").write_text(f"{tally.lost} {tally.looks}")

    async def _drain(self) -> str:
        machine = job_machine(self.plan, self.ledger)
        async with Runtime(self.plan.url, machines={"drill": machine}) as runtime:
            await runtime.worker(attempts=1000).drain()
        return ""

    async def _outcome(self) -> str:
        done = wrong = 0
        async with Runtime(self.plan.url) as runtime:
            for execution in await runtime.list(status="done"):
                output = (await runtime.inspect(execution.execution_id)).output
                right = output == {
                    "did": list(ACTIONS),
                    "job": int(execution.execution_id.rpartition("-")[2]),
                }
                done, wrong = done + right, wrong + (not right)
        tallies = [file.read_text().split() for file in self.folder.glob("tally-*")]
        lost, looks = (sum(int(one[i]) for one in tallies) for i in range(2))
        return json.dumps({"done": done, "wrong": wrong, "lost": lost, "looks": looks})


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="flat-fleet-") as name:
        print(json.dumps(dataclasses.asdict(_Drill(Plan(**json.loads(sys.argv[1])), Path(name)).run())))
