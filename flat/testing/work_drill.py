"""A drill for work backends that several processes share: workers drain a pool while they are killed at random.

    report = drill("flat.backends.by_name:create_work_backend", {"type": "sqlite", "db_path": "w.sqlite"})
    assert report.clean, report

`make` is `module:function` of a function that opens the backend, and the mapping holds its arguments, as JSON,
to which `keep_done` is added. Workers write a line to one pipe at every claim and every completion. Who reads the
pipe knows what was given to whom, in which attempt: a job that was given to two workers at once shows by two
claims of one attempt. The pool is filled when all workers are there, so that none has done all before the others begin.
"""

from __future__ import annotations

import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, Any

import anyio

from flat.backends.work import WorkBackend

POOL = "drill"
SILENCE = 1.0
"""Seconds without a word after which the workers are looked at."""
LOOK_EVERY = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class DrillReport:
    """What a drill came to."""

    jobs: int
    done: int
    """Jobs that the backend keeps as done. Less than `jobs`: some were lost."""
    given_twice: int
    """Attempts that were handed to more than one worker."""
    ended_twice: int
    """Jobs whose completion was accepted more than once."""
    killed: int
    released: int
    """Jobs that were put back because their worker had been killed."""
    failed: int
    """Workers that ended with an error of their own."""
    seconds: float
    """From the first claim to the last word of a worker."""
    by_worker: Mapping[str, int] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        """Nothing lost, nothing given or ended twice, and nobody failed."""
        return self.done == self.jobs and not (self.given_twice or self.ended_twice or self.failed)


def drill(
    make: str, arguments: Mapping[str, Any], *, workers: int = 8, jobs: int = 1000, kills: int = 10,
    seed: int | None = None, backlog: int | None = None,
) -> DrillReport:  # fmt: skip
    """Fill a pool, and have it drained by processes, `kills` of which are killed and replaced.

    `backlog`: how many jobs wait at a time, at most; for a server that gets slow by their number.
    """
    made = _Drill(make, {**arguments, "keep_done": True}, workers, jobs, kills, random.Random(seed))
    made.backlog = backlog or jobs
    return made.run()


class _Drill:
    """One drill, as seen by the process that starts the workers."""

    def __init__(
        self, make: str, arguments: Mapping[str, Any], workers: int, jobs: int, kills: int, chance: random.Random
    ) -> None:  # fmt: skip
        self.make, self.arguments, self.jobs, self.chance = make, arguments, jobs, chance
        self.alive: dict[str, subprocess.Popen[bytes]] = {}
        self.killed = self.released = self.failed = self.started = 0
        self.ready = self.pushed = self.ended = 0
        """Workers that are there; jobs that were pushed, and those that were completed."""
        self.backlog = jobs
        # Half of those that die do so while they hold a job, the others whenever it happens.
        self.suicides = kills // 2
        self.moments = sorted(chance.randrange(1, 2 * jobs) for _ in range(kills - self.suicides))
        self.workers = workers

    def run(self) -> DrillReport:
        with _pipe() as (hearing, self.telling), _pipe() as (self.filled, self.filling):
            try:
                for _ in range(self.workers):
                    self._start()
                lines = self._listen(hearing.fileno())
            finally:
                for process in self.alive.values():
                    process.kill()
                    process.wait()
        claims = Counter((job, attempt) for _, what, _, job, attempt in lines if what == "claimed")
        ends = Counter(job for _, what, _, job, _ in lines if what == "done")
        return DrillReport(
            jobs=self.jobs, done=anyio.run(self._done), killed=self.killed, released=self.released,
            failed=self.failed, given_twice=sum(n > 1 for n in claims.values()),
            ended_twice=sum(n > 1 for n in ends.values()),
            seconds=lines[-1][0] - next((at for at, what, *_ in lines if what == "claimed"), lines[-1][0]),
            by_worker=Counter(worker for _, what, worker, _, _ in lines if what == "done"),
        )  # fmt: skip

    def _listen(self, hearing: int) -> list[tuple[float, str, str, str, str]]:
        """Read what the workers say until the last of them has ended; kill and replace meanwhile."""
        lines: list[tuple[float, str, str, str, str]] = []
        rest = b""
        while self.alive:
            if self.ready + self.failed >= self.workers:
                self._fill_up()
            ready, _, _ = select.select([hearing], [], [], SILENCE)
            if not ready:
                self._bury_the_silent()
                continue
            *whole, rest = (rest + os.read(hearing, 65_536)).split(b"\n")
            for line in whole:
                what, worker, job, attempt = line.decode().split()
                lines.append((time.perf_counter(), what, worker, job, attempt))
                self._react(what, worker, len(lines))
        return lines

    def _react(self, what: str, worker: str, number: int) -> None:
        if what == "ended":
            self._bury(worker)
        elif what == "ready":
            self.ready += 1
        elif what == "dying":
            self._replace(worker)
        elif self.moments and number >= self.moments[0] and self.alive:
            self.moments.pop(0)
            self._replace(self.chance.choice(sorted(self.alive)), kill=True)
        self.ended += what == "done"

    def _fill_up(self) -> None:
        """Push jobs when half of those that may wait have been done; tell the workers when these were the last."""
        left = self.jobs - self.pushed
        more = min(left, self.backlog - (self.pushed - self.ended))
        if left and more >= min(left, self.backlog // 2):
            anyio.run(self._fill, range(self.pushed, self.pushed + more))
            self.pushed += more
        if self.pushed == self.jobs:
            self.filling.close()

    def _bury_the_silent(self) -> None:
        """Workers that ended without a word, such as those that could not even begin."""
        for worker in [name for name, process in self.alive.items() if process.poll() is not None]:
            self._bury(worker)

    def _start(self) -> None:
        self.started += 1
        worker = f"w{self.started}"
        dies = 0
        if self.suicides and self.started > 1:
            self.suicides -= 1
            dies = self.chance.randrange(1, max(2, self.jobs // (4 * self.workers)))
        ends = [self.telling.fileno(), self.filled.fileno()]
        command = [
            sys.executable, "-m", "flat.testing.work_drill", self.make, json.dumps(self.arguments), worker,
            *map(str, ends), str(dies),
        ]  # fmt: skip
        self.alive[worker] = subprocess.Popen(command, pass_fds=ends)

    def _bury(self, worker: str) -> None:
        if (process := self.alive.pop(worker, None)) is not None and process.wait() != 0:
            self.failed += 1

    def _replace(self, worker: str, *, kill: bool = False) -> None:
        """Reap a worker that is dead, or is to be, and start another one."""
        process = self.alive.pop(worker, None)
        if process is None:
            return
        if kill:
            process.kill()
        if process.wait() != -signal.SIGKILL:  # it had just ended of itself
            self.failed += process.returncode != 0
            return
        self.killed += 1
        self.released += anyio.run(self._release, worker)
        self._start()

    # -- in the pool --------------------------------------------------------------------------

    async def _fill(self, numbers: range) -> None:
        backend = _open(self.make, self.arguments)
        await backend.pool(POOL).push_many([{"n": n} for n in numbers], max_retries=1_000_000)
        await backend.close()

    async def _release(self, worker: str) -> int:
        backend = _open(self.make, self.arguments)
        released = await backend.pool(POOL).release_by_worker(worker)
        await backend.close()
        return released

    async def _done(self) -> int:
        backend = _open(self.make, self.arguments)
        items = await backend.pool(POOL).items(status="done")
        await backend.close()
        return len({item.data["n"] for item in items})


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Both ends of a pipe, closed in the end."""
    reading, writing = os.pipe()
    with open(reading, "rb", 0) as one, open(writing, "wb", 0) as other:
        yield one, other


def _open(make: str, arguments: Mapping[str, Any]) -> WorkBackend:
    module, _, function = make.partition(":")
    backend: WorkBackend = getattr(importlib.import_module(module), function)(**arguments)
    return backend


async def _work(
    make: str, arguments: Mapping[str, Any], worker: str, pipe: int, filled: int, dies: int
) -> None:
    """What a worker process does: claim and complete until there is nothing left, and nothing more to come."""
    backend = _open(make, arguments)
    pool = backend.pool(POOL)
    claims = 0

    def say(what: str, job: str = "-", attempt: int = 0) -> None:
        os.write(pipe, f"{what} {worker} {job} {attempt}\n".encode())  # short enough to be written whole

    await pool.size()
    say("ready")
    while True:
        over = bool(select.select([filled], [], [], 0)[0])
        if (item := await pool.claim(worker)) is None:
            if over:
                break
            await anyio.sleep(LOOK_EVERY)
            continue
        say("claimed", item.id, item.attempts)
        claims += 1
        if claims == dies:
            say("dying")
            os.kill(os.getpid(), signal.SIGKILL)
        await pool.complete(item.id, worker, worker_id=worker)
        say("done", item.id, item.attempts)
    await backend.close()
    say("ended")


if __name__ == "__main__":
    make, arguments, worker, pipe, filled, dies = sys.argv[1:]
    anyio.run(_work, make, json.loads(arguments), worker, int(pipe), int(filled), int(dies))
