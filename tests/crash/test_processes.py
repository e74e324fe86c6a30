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
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import anyio
import pytest

from flat import Runtime
from flat.backends import open_store
from flat.core.snapshot import Snapshot

WORKER = Path(__file__).parent / "worker.py"
ROUNDS = int(os.environ.get("FLAT_KILL_ROUNDS", "200"))
MORE_ROUNDS = int(os.environ.get("FLAT_KILL_FAMILY_ROUNDS", "25"))
"""Kills of a family, and of a tool loop. For a proof rather than a check: `FLAT_KILL_FAMILY_ROUNDS=500`."""
STEPS = 50
BUSY, STALE = 8, 9
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")


class Workers:
    """A server of workers on one database and one ledger."""

    def __init__(self, folder: Path, database: str | None = None) -> None:
        self.database, self.ledger = database or str(folder / "runs.db"), folder / "ledger"
        self.ledger.touch()
        self.process = subprocess.Popen(
            [sys.executable, str(WORKER), self.database, str(self.ledger)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
        )  # fmt: skip
        self.read = 0

    def ask(self, line: str) -> list[int]:
        """The pids of the workers that a command started."""
        stdin: IO[str] | None = self.process.stdin
        assert stdin is not None
        stdin.write(line + "\n")
        return [int(pid) for pid in self._answer("pid")]

    def ended(self) -> int:
        return int(self._answer("ended")[0])

    def _answer(self, word: str) -> list[str]:
        stdout: IO[str] | None = self.process.stdout
        assert stdout is not None
        first, *rest = stdout.readline().split()
        assert first == word
        return rest

    def news(self) -> list[list[str]]:
        """What was written to the ledger since the last time."""
        with self.ledger.open() as file:
            file.seek(self.read)
            text = file.read()
            self.read = file.tell()
        return [line.split() for line in text.splitlines()]

    def stored(self, execution: str) -> Snapshot | None:
        async def look() -> Snapshot | None:
            store = open_store(self.database)
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
        self.process.wait(10)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def workers(tmp_path: Path) -> Iterator[Workers]:
    started = Workers(tmp_path)
    yield started
    started.close()


@pytest.fixture
def others(tmp_path: Path) -> Iterator[Workers]:
    """A second server on the same files: one server waits for its own workers only."""
    started = Workers(tmp_path)
    yield started
    started.close()


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


def test_killed_processes_lose_nothing_and_repeat_nothing_recorded(workers: Workers) -> None:
    chance = random.Random(20_240_229)
    kills = finished = doubtful = 0
    story = Story("e0")
    began = time.monotonic()
    while kills < ROUNDS:
        (pid,) = workers.ask(f"run {story.name} {STEPS} 0 30")
        time.sleep(chance.uniform(0.0, 0.06))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        code = workers.ended()
        kills += code == -signal.SIGKILL
        snapshot = workers.stored(story.name)
        story.life(workers.news(), snapshot)
        doubtful += bool(story.pending)
        assert (story.lost, story.repeated, story.desync, story.unreported) == (0, 0, 0, 0), vars(story)
        assert code in (0, -signal.SIGKILL)
        if snapshot is not None and snapshot.status == "done":
            assert sorted(set(story.done)) == list(range(1, STEPS + 1))
            finished += 1
            story = Story(f"e{finished}")
    print(
        f"{kills} kills, {finished} executions, {doubtful} effects in doubt, {time.monotonic() - began:.0f} s"
    )
    assert finished or ROUNDS < 50


@pytest.mark.parametrize(("processes", "rounds"), [(2, 6), (8, 4), (32, 2)])
def test_of_many_processes_exactly_one_drives_an_execution(
    workers: Workers, processes: int, rounds: int
) -> None:
    for number in range(rounds):
        name = f"race{number}"
        (pid,) = workers.ask(f"run {name} {STEPS} 0.002 30")
        while len([line for line in workers.news() if line[0] == "step"]) == 0:
            time.sleep(0.002)
        os.kill(pid, signal.SIGKILL)
        workers.ended()
        before = workers.stored(name)
        assert before is not None
        workers.news()
        pids = workers.ask(f"race {name} {processes}")
        codes = [workers.ended() for _ in pids]
        steps = [
            (int(pid), int(n)) for kind, pid, _, n in (x for x in workers.news() if x[0] == "step") if kind
        ]
        assert len({pid for pid, _ in steps}) == 1
        assert [n for _, n in steps] == list(range(before.root.context["n"] + 1, STEPS + 1))
        assert set(codes) <= {0, BUSY}
        assert 0 in codes


def test_a_zombie_cannot_commit(workers: Workers, others: Workers) -> None:
    for number in range(4):
        name = f"zombie{number}"
        (pid,) = workers.ask(f"run {name} {STEPS} 0.01 0.3")
        while not workers.news():
            time.sleep(0.002)
        time.sleep(0.03)
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.45)
        (heir,) = others.ask(f"run {name} {STEPS} 0 30")
        assert others.ended() == 0
        finished = workers.stored(name)
        os.kill(pid, signal.SIGCONT)
        assert workers.ended() == STALE
        assert workers.stored(name) == finished
        assert finished is not None
        assert finished.status == "done"
        assert finished.root.context["trail"] == [f"{'ba'[n % 2]}{n}" for n in range(1, STEPS + 1)]
        by_heir = [
            int(n) for kind, pid, _, n in (x for x in workers.news() if x[0] == "step") if int(pid) == heir
        ]
        assert by_heir == list(range(by_heir[0], STEPS + 1))


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
            time.sleep(chance.uniform(0.005, 0.05) * (1 + lives / 4))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = workers.ended()
            assert code in (0, -signal.SIGKILL)
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


def test_a_family_of_killed_processes_loses_nothing(workers: Workers) -> None:
    whole = {f"{v}:{n}" for v in [*range(6), "launched"] for n in (1, 2, 3)}
    dwindling(workers, "family", 6, whole)


def test_a_tool_loop_of_killed_processes_goes_on_at_its_tool(workers: Workers) -> None:
    whole = {f"model{turn}" for turn in range(13)} | {
        f"tool{turn}.{n}" for turn in range(12) for n in range(2)
    }
    dwindling(workers, "talk", 12, whole)
