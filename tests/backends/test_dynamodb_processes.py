"""What real processes do to one table in DynamoDB: races for an execution, zombies, and sudden death at any moment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import anyio
import pytest

from flat.backends import open_store
from flat.backends.dynamodb.store import DynamoStore
from flat.testing.crash import Opener, Places, sweep
from flat.testing.servers import AwsServer
from flat.testing.work_drill import drill

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
TESTS = Path(__file__).parents[1]
KILLS = int(os.environ.get("FLAT_KILL_ROUNDS", "10"))
"""Kills in the sweep: hundreds, where there is time."""
EVERY = int(os.environ.get("FLAT_CRASH_EVERY", "4"))
"""Of the points at which a machine can die, one in so many is tried. For all of them: 1."""
JOBS = int(os.environ.get("FLAT_DRILL_JOBS", "120"))


def module(path: str) -> ModuleType:
    """Another module of the tests, under a name of its own."""
    name = f"for_dynamodb_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TESTS / path)
        assert spec is not None
        assert spec.loader is not None
        made = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(made)
    return sys.modules[name]


stories = module("crash/test_processes.py")


@pytest.fixture
def url(aws: AwsServer) -> str:
    """A table that is there: workers that are killed early should not be killed while they make it."""
    made = aws.url()

    async def make() -> None:
        async with DynamoStore(made) as store:
            await store.table.create()

    anyio.run(make)
    return made


@pytest.fixture
def workers(tmp_path: Path, url: str) -> Iterator[Any]:
    started = stories.Workers(tmp_path, url)
    yield started
    started.close()


@pytest.fixture
def others(tmp_path: Path, url: str) -> Iterator[Any]:
    """A second server on the same table: one server waits for its own workers only."""
    started = stories.Workers(tmp_path, url)
    yield started
    started.close()


def test_killed_processes_lose_nothing_and_repeat_nothing_recorded(workers: Any) -> None:
    chance = random.Random(20_240_229)
    kills = finished = 0
    story = stories.Story("e0")
    while kills < KILLS or not finished:
        (pid,) = workers.ask(f"run {story.name} {stories.STEPS} 0 30")
        if kills < KILLS:
            # It takes a while to begin: half of them die before the first step, or in the middle of one.
            time.sleep(chance.uniform(0.1, 0.6))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        code = workers.ended()
        assert code in (0, -signal.SIGKILL)
        kills += code == -signal.SIGKILL
        snapshot = workers.stored(story.name)
        story.life(workers.news(), snapshot)
        assert (story.lost, story.repeated, story.desync, story.unreported) == (0, 0, 0, 0), vars(story)
        if snapshot is not None and snapshot.status == "done":
            assert sorted(set(story.done)) == list(range(1, stories.STEPS + 1))
            finished += 1
            story = stories.Story(f"e{finished}")


@pytest.mark.parametrize("processes", [8, 32])
def test_of_many_processes_exactly_one_drives_an_execution(workers: Any, processes: int) -> None:
    stories.test_of_many_processes_exactly_one_drives_an_execution(workers, processes, 1)


def test_a_zombie_cannot_commit(workers: Any, others: Any) -> None:
    (pid,) = workers.ask(f"run zombie {stories.STEPS} 0.05 1.0")
    while not workers.news():
        time.sleep(0.002)
    time.sleep(0.1)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(1.2)
    (heir,) = others.ask(f"run zombie {stories.STEPS} 0 30")
    assert others.ended() == 0
    finished = workers.stored("zombie")
    os.kill(pid, signal.SIGCONT)
    assert workers.ended() == stories.STALE
    assert workers.stored("zombie") == finished
    assert finished is not None
    assert finished.status == "done"
    steps = [int(line[3]) for line in workers.news() if line[0] == "step" and int(line[1]) == heir]
    assert steps == list(range(steps[0], stories.STEPS + 1))


@pytest.mark.anyio
@pytest.mark.parametrize(("name", "anyio_backend"), [("signals", "asyncio"), ("blobs", "trio")])
async def test_a_machine_survives_crashes(name: str, aws: AwsServer) -> None:
    def places() -> Places:
        def place() -> Opener:
            url = aws.url()
            return lambda: open_store(url)

        return place

    report = await sweep(module("crash/machines.py").SCENARIOS[name], places(), every=EVERY)
    report.check()
    assert report.points


def test_no_job_is_lost_or_given_twice_when_workers_are_killed(url: str) -> None:
    arguments = {"type": "dynamodb", "url": url}
    report = drill(
        "flat.backends.by_name:create_work_backend", arguments, workers=4, jobs=JOBS, kills=4, seed=7
    )
    assert report.clean, report
    assert report.killed >= 2
    assert len(report.by_worker) >= 2
