"""Dying on one Redis server: machines at every point, and real processes killed, racing, stopped until zombies."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flat.backends.redis.store import RedisStore
from flat.testing.crash import Opener, sweep
from flat.testing.servers import RedisServer, redis_server
from flat.testing.work_drill import drill

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
ROUNDS = int(os.environ.get("FLAT_KILL_ROUNDS", "30"))
"""Kills in the sweep: a thousand or more, where there is time."""
JOBS = int(os.environ.get("FLAT_DRILL_JOBS", "10000"))


def _stories(name: str) -> ModuleType:
    """Tests of crashes on a file, which tell what is done and check it; here they get another store."""
    path = Path(__file__).parent.parent / "crash" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"crash_{name}_on_redis", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stories, sweeps = _stories("test_processes"), _stories("test_sweep")
vars(stories)["ROUNDS"] = ROUNDS


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.fixture
def url(server: RedisServer) -> str:
    return server.url()


@pytest.fixture
def workers(tmp_path: Path, url: str) -> Iterator[Any]:
    started = stories.Workers(tmp_path, url)
    yield started
    started.close()


@pytest.fixture
def others(tmp_path: Path, url: str) -> Iterator[Any]:
    started = stories.Workers(tmp_path, url)
    yield started
    started.close()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", sweeps.SCENARIOS)
async def test_a_machine_survives_every_crash(name: str, server: RedisServer) -> None:
    def place() -> Opener:
        return partial(RedisStore, server.url())

    report = await sweep(sweeps.SCENARIOS[name], place, every=sweeps.every(name, 3))
    report.check()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("name", sweeps.FAMILIES)
async def test_a_family_survives_crashes(name: str, server: RedisServer) -> None:
    def place() -> Opener:
        return partial(RedisStore, server.url())

    report = await sweep(sweeps.FAMILIES[name], place, every=sweeps.every(name) * (1 if sweeps.FULL else 5))
    report.check()


def test_killed_processes_lose_nothing_and_repeat_nothing_recorded(workers: Any) -> None:
    stories.test_killed_processes_lose_nothing_and_repeat_nothing_recorded(workers)


@pytest.mark.parametrize(("processes", "rounds"), [(8, 3), (32, 2)])
def test_of_many_processes_exactly_one_drives_an_execution(workers: Any, processes: int, rounds: int) -> None:
    stories.test_of_many_processes_exactly_one_drives_an_execution(workers, processes, rounds)


def test_a_zombie_cannot_commit(workers: Any, others: Any) -> None:
    stories.test_a_zombie_cannot_commit(workers, others)


def test_eight_workers_that_are_killed_lose_no_job_and_double_none(url: str) -> None:
    report = drill(
        "flat.backends.by_name:create_work_backend", {"type": "redis", "url": url}, workers=8, jobs=JOBS, kills=10,
        seed=7,
    )  # fmt: skip
    assert report.clean, report
    assert report.killed >= 5
    assert len(report.by_worker) >= 8
