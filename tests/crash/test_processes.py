"""Real processes: killed at random moments, racing for one execution, and stopped until they are zombies."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import anyio
import pytest

from flat import Runtime
from flat.backends import open_store
from flat.core.snapshot import Snapshot
from flat.testing.store_servers import StoreServers

WORKER = Path(__file__).parent / "worker.py"
KILLS = {"sqlite": 200, "redis": 30, "postgres": 40, "dynamodb": 10}
"""Each store takes its time. For a proof rather than a check, in all of them: `FLAT_KILL_ROUNDS=1000`."""
RACES = {
    "sqlite": {2: 6, 8: 4, 32: 2},
    "redis": {8: 3, 32: 2},
    "postgres": {8: 3, 32: 2},
    "dynamodb": {8: 1, 32: 1},
}
"""How often so many processes race for an execution. For more: `FLAT_RACE_ROUNDS=20`."""
ZOMBIES = {"sqlite": 4, "redis": 4, "postgres": 2, "dynamodb": 1}
MORE_ROUNDS = int(os.environ.get("FLAT_KILL_FAMILY_ROUNDS", "25"))
"""Kills of a family, and of a tool loop. For a proof rather than a check: `FLAT_KILL_FAMILY_ROUNDS=500`."""
STEPS = 50
LINE = len("step 1234567 a 10\n")
"""About."""
BUSY, STALE = 8, 9
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")


class Workers:
    """A server of workers on one store and one ledger."""

    def __init__(self, folder: Path, url: str) -> None:
        self.url, self.ledger = url, folder / "ledger"
        self.ledger.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), url, str(self.ledger)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.read = 0

    def ask(self, line: str) -> list[int]:
        """The pids of the workers that a command started."""
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        word, *pids = self._answer()
        assert word == "pid"
        return [int(pid) for pid in pids]

    def hear(self) -> tuple[str, int]:
        """What happens next: a worker has `stopped`, with its pid; or `ended`, with its code."""
        word, number = self._answer()
        return word, int(number)

    def ended(self) -> int:
        word, code = self.hear()
        assert word == "ended"
        return code

    def _answer(self) -> list[str]:
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        return stdout.readline().split()

    def kill(self, pid: int, lines: int, seconds: float) -> int:
        """Kill a worker some time after it has written so many lines, unless it ends before; give its code."""
        wanted = self.read + lines * LINE
        with contextlib.suppress(ProcessLookupError):
            while self.ledger.stat().st_size < wanted:
                os.kill(pid, 0)
                time.sleep(0.001)
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        code = self.ended()
        assert code in (0, -signal.SIGKILL)
        return code

    def news(self) -> list[list[str]]:
        """What was written to the ledger since the last time."""
        with self.ledger.open() as file:
            file.seek(self.read)
            text = file.read()
            self.read = file.tell()
        return [line.split() for line in text.splitlines()]

    def stored(self, execution: str) -> Snapshot | None:
        async def look() -> Snapshot | None:
            store = open_store(self.url)
            try:
                async with Runtime(store) as runtime:
                    known = await store.get(execution)
                    return None if known is None else await runtime.inspect(execution)
            finally:
                await store.close()

        return anyio.run(look)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def url(kind: str, servers: StoreServers) -> str:
    return servers.url(kind)


@pytest.fixture
def start(url: str, tmp_path: Path) -> Iterator[Callable[[], Workers]]:
    """Starts another server on the same store and ledger: each waits for its own workers only."""
    with contextlib.ExitStack() as started:

        def start_one() -> Workers:
            return started.enter_context(contextlib.closing(Workers(tmp_path, url)))

        yield start_one


@pytest.fixture
def workers(start: Callable[[], Workers]) -> Workers:
    return start()


class Story:
    """What one execution has done so far, as its ledger tells, checked against what its store says."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lost, self.repeated, self.desync, self.unreported = 0, 0, 0, 0
        self.done: list[int] = []
        self.recorded = 0
        self.pending: tuple[str, ...] = ()

    def life(self, lines: list[list[str]], snapshot: Snapshot | None) -> None:
        """One worker's life has ended: its lines, and what is stored then."""
        steps = [(state, int(n)) for kind, _, state, n in (x for x in lines if x[0] == "step") if kind]
        doubts = [line for line in lines if line[0] == "doubt"]
        if self.pending and steps and len(doubts) != 1:
            self.unreported += 1
        if len(doubts) > 1:
            self.unreported += 1
        for i, (state, n) in enumerate(steps):
            if n <= self.recorded:
                self.repeated += 1
            if n != self.recorded + 1 + i:
                self.lost += 1
            if state != "ba"[n % 2]:
                self.desync += 1
            self.done.append(n)
        if snapshot is None:
            return
        root = snapshot.root
        self.recorded, self.pending = root.context["n"], snapshot.pending
        expected = [f"{'ba'[n % 2]}{n}" for n in range(1, self.recorded + 1)]
        if root.context["trail"] != expected:
            self.desync += 1
        if steps and self.recorded > steps[-1][1]:
            self.desync += 1


def steps(lines: list[list[str]]) -> list[tuple[int, int]]:
    """Who took which step."""
    return [(int(line[1]), int(line[3])) for line in lines if line[0] == "step"]


@pytest.mark.parametrize("kind", KILLS)
def test_killed_processes_lose_nothing_and_repeat_nothing_recorded(workers: Workers, kind: str) -> None:
    rounds = int(os.environ.get("FLAT_KILL_ROUNDS", KILLS[kind]))
    chance = random.Random(20_240_229)
    kills = finished = doubtful = 0
    story = Story("e0")
    began = time.monotonic()
    while kills < rounds or not finished:
        (pid,) = workers.ask(f"run {story.name} {STEPS} 30")
        if kills < rounds:
            # Before its first step, while it begins; or in the middle of one.
            lines = chance.randrange(16)
            code = workers.kill(pid, lines, chance.uniform(0.0, 0.01 if lines else 0.06))
        else:
            code = workers.ended()
            assert code == 0
        kills += code == -signal.SIGKILL
        snapshot = workers.stored(story.name)
        story.life(workers.news(), snapshot)
        doubtful += bool(story.pending)
        assert (story.lost, story.repeated, story.desync, story.unreported) == (0, 0, 0, 0), vars(story)
        if snapshot is not None and snapshot.status == "done":
            assert sorted(set(story.done)) == list(range(1, STEPS + 1))
            finished += 1
            story = Story(f"e{finished}")
    print(
        f"{kills} kills, {finished} executions, {doubtful} effects in doubt, {time.monotonic() - began:.0f} s"
    )


@pytest.mark.parametrize(
    ("kind", "processes"), [(kind, processes) for kind, races in RACES.items() for processes in races]
)
def test_of_many_processes_exactly_one_drives_an_execution(
    workers: Workers, kind: str, processes: int
) -> None:
    for number in range(int(os.environ.get("FLAT_RACE_ROUNDS", RACES[kind][processes]))):
        name = f"race{number}"
        workers.ask(f"run {name} {STEPS} 600 SIGKILL 5")
        assert workers.ended() == -signal.SIGKILL
        before = workers.stored(name)
        assert before is not None
        assert before.root.context["n"] == 4
        workers.news()
        # Whoever has it stops in its first step, and goes on when the others have given up.
        pids = workers.ask(f"race {name} {processes} 5")
        heard = [workers.hear() for _ in pids]
        winners = [pid for word, pid in heard if word == "stopped"]
        assert len(winners) == 1, heard
        assert [code for word, code in heard if word == "ended"] == [BUSY] * (processes - 1)
        os.kill(winners[0], signal.SIGCONT)
        assert workers.ended() == 0
        assert steps(workers.news()) == [(winners[0], n) for n in range(5, STEPS + 1)]


@pytest.mark.parametrize("kind", ZOMBIES)
def test_a_zombie_cannot_commit(workers: Workers, start: Callable[[], Workers], kind: str) -> None:
    others = start()
    for number in range(ZOMBIES[kind]):
        name = f"zombie{number}"
        (pid,) = workers.ask(f"run {name} {STEPS} 0.5 SIGSTOP 3")
        assert workers.hear() == ("stopped", pid)
        while True:
            (heir,) = others.ask(f"run {name} {STEPS} 30")
            if (code := others.ended()) != BUSY:  # until the lease has ended
                break
        assert code == 0
        finished = workers.stored(name)
        os.kill(pid, signal.SIGCONT)
        assert workers.ended() == STALE
        assert workers.stored(name) == finished
        assert finished is not None
        assert finished.status == "done"
        assert finished.root.context["trail"] == [f"{'ba'[n % 2]}{n}" for n in range(1, STEPS + 1)]
        by_both = [(pid, n) for n in (1, 2, 3)] + [(heir, n) for n in range(3, STEPS + 1)]
        assert steps(workers.news()) == by_both


def dwindling(workers: Workers, kind: str, count: int, whole: set[str]) -> None:
    """Kill workers at random moments until an execution is over, as often as it takes; look at all that was done.

    Every effect of `whole` has to be done, and one that is done again must have been in flight when somebody died.
    """
    chance = random.Random(kind)
    kills = finished = 0
    while kills < MORE_ROUNDS or not finished:
        name = f"{kind}{finished}"
        done: list[str] = []
        doubts = lives = 0
        while True:
            (pid,) = workers.ask(f"{kind} {name} {count} 0.002")
            code = workers.kill(pid, 0, chance.uniform(0.005, 0.05) * (1 + lives / 4))
            kills, lives = kills + (code != 0), lives + 1
            news = workers.news()
            done += [what for word, _, what, _ in news if word == "step"]
            doubts += sum(word == "doubt" for word, *_ in news)
            if code == 0:
                break
        assert set(done) == whole
        # Each that was done again was in flight at a death, and said so. One may be in doubt and not have begun.
        expected = Counter(whole_of(whole))
        again = sum((Counter(done) - expected).values())
        assert again <= doubts
        snapshot = workers.stored(name)
        assert snapshot is not None
        assert snapshot.status == "done"
        finished += 1
    print(f"{kills} kills, {finished} executions")


def whole_of(whole: set[str]) -> list[str]:
    """The effects as often as an undisturbed run has them: what is launched twice comes twice."""
    return [what for what in whole for _ in range(2 if what.startswith("launched") else 1)]


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_family_of_killed_processes_loses_nothing(workers: Workers) -> None:
    whole = {f"{v}:{n}" for v in [*range(6), "launched"] for n in (1, 2, 3)}
    dwindling(workers, "family", 6, whole)


@pytest.mark.parametrize("kind", ["sqlite"])
def test_a_tool_loop_of_killed_processes_goes_on_at_its_tool(workers: Workers) -> None:
    whole = {f"model{turn}" for turn in range(13)} | {
        f"tool{turn}.{n}" for turn in range(12) for n in range(2)
    }
    dwindling(workers, "talk", 12, whole)
