"""What real processes do to one store in PostgreSQL: races, zombies, and sudden death at any moment."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import anyio
import pytest

from flat.backends import PostgresStore, Stored, open_store, this_process
from flat.testing.crash import Opener, sweep
from flat.testing.servers import PostgresServer
from flat.testing.store_case import birth, step
from flat.testing.store_case import signal as message
from flat.testing.work_drill import drill

TESTS = Path(__file__).parents[1]
KILLS = int(os.environ.get("FLAT_KILL_ROUNDS", "40"))
JOBS = int(os.environ.get("FLAT_DRILL_JOBS", "1000"))
Child = subprocess.Popen[str]
Start = Callable[[str], Child]


def module(path: str) -> ModuleType:
    """Another module of the tests, under a name of its own."""
    name = f"for_postgres_{Path(path).stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, TESTS / path)
    assert spec is not None
    assert spec.loader is not None
    made = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url()


@pytest.fixture
def start(url: str) -> Iterator[Start]:
    children: list[Child] = []

    def start_one(case: str) -> Child:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("children.py")), case, url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        )  # fmt: skip
        children.append(child)
        return child

    yield start_one
    for child in children:
        child.kill()
        child.communicate()


def hear(child: Child) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: Child) -> None:
    assert child.stdin is not None
    child.stdin.write("go\n")
    child.stdin.flush()


async def create(url: str) -> None:
    async with PostgresStore(url) as store:
        await store.create(birth())


async def load(url: str, execution_id: str = "e1") -> Stored:
    async with PostgresStore(url) as store:
        stored = await store.load(execution_id)
    assert stored is not None
    return stored


async def take_over(url: str, *, later: float = 0.0) -> None:
    async with PostgresStore(url) as store:
        lease = await store.acquire("e1", this_process(), now=time.time() + later, ttl=60)
        await store.commit(step(lease, 2))


def test_one_of_32_processes_becomes_the_owner(url: str, start: Start) -> None:
    anyio.run(create, url)
    children = [start("acquire") for _ in range(32)]
    assert {hear(child) for child in children} == {"ready"}
    for child in children:
        tell(child)
    assert sorted(hear(child) for child in children) == ["busy"] * 31 + ["owner"]
    for child in children:
        tell(child)
    assert anyio.run(load, url).bodies == [(0, b"body 0"), (1, b"body 1")]


def test_many_processes_open_a_new_schema_and_write_at_once(url: str, start: Start) -> None:
    children = [start("append") for _ in range(8)]
    assert {hear(child) for child in children} == {"done"}
    for child in children:
        stored = anyio.run(load, url, f"e{child.pid}")
        assert stored.execution.seq == 40
        assert len(stored.log) == 10


def test_a_killed_owner_is_replaced_at_once(url: str, start: Start) -> None:
    anyio.run(create, url)
    child = start("die")
    assert hear(child) == "owner"
    child.wait()
    anyio.run(take_over, url)
    assert [seq for seq, _ in anyio.run(load, url).bodies] == [0, 1, 2]


def test_a_stopped_owner_is_replaced_after_its_ttl_and_cannot_commit_when_it_wakes(
    url: str, start: Start
) -> None:
    anyio.run(create, url)
    child = start("zombie")
    assert hear(child) == "owner"
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    anyio.run(partial(take_over, url, later=1.0))
    child.send_signal(signal.SIGCONT)
    tell(child)
    assert hear(child) == "stale"
    assert anyio.run(load, url).bodies == [(0, b"body 0"), (1, b"body 1"), (2, b"body 2")]


def test_every_signal_is_taken_fanned_out_or_buried_by_one_of_many_processes(url: str, start: Start) -> None:
    names = [f"{kind}{number}" for number in range(30) for kind in "sfb"]

    async def send() -> None:
        async with PostgresStore(url) as store:
            for signal_id in names:
                assert await store.send(message(signal_id))

    async def left() -> list[str]:
        async with PostgresStore(url) as store:
            return [one.signal_id for one in await store.signals()]

    anyio.run(send)
    children = [start("take") for _ in range(4)]
    assert {hear(child) for child in children} == {"ready"}
    for child in children:
        tell(child)
    got = [name for child in children for name in hear(child).split()]
    assert sorted(got) == sorted(names)
    copies = anyio.run(left)
    assert len(copies) == 60
    assert {copy.partition("@")[0] for copy in copies} == {f"f{number}" for number in range(30)}


def test_killed_processes_lose_nothing_and_repeat_nothing_recorded(url: str, tmp_path: Path) -> None:
    processes = module("crash/test_processes.py")
    workers = processes.Workers(tmp_path, url)
    chance = random.Random(20_240_229)
    kills, story, finished = 0, processes.Story("e0"), 0
    try:
        while kills < KILLS:
            (pid,) = workers.ask(f"run {story.name} {processes.STEPS} 0 30")
            time.sleep(chance.uniform(0.0, 0.15))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            code = workers.ended()
            assert code in (0, -signal.SIGKILL)
            kills += code == -signal.SIGKILL
            snapshot = workers.stored(story.name)
            story.life(workers.news(), snapshot)
            assert (story.lost, story.repeated, story.desync, story.unreported) == (0, 0, 0, 0), vars(story)
            if snapshot is not None and snapshot.status == "done":
                assert sorted(set(story.done)) == list(range(1, processes.STEPS + 1))
                finished += 1
                story = processes.Story(f"e{finished}")
    finally:
        workers.close()
    assert finished


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["retries", "signals", "blobs"])
async def test_a_machine_survives_every_crash(name: str, postgres: PostgresServer) -> None:
    schemas: list[str] = []

    def place() -> Opener:
        if schemas:
            postgres.give_back(schemas.pop())
        schemas.append(postgres.borrow())
        url = postgres.url(schemas[0])
        return lambda: open_store(url)

    report = await sweep(module("crash/machines.py").SCENARIOS[name], place)
    report.check()


def test_no_job_is_lost_or_given_twice_when_workers_are_killed(url: str) -> None:
    arguments = {"type": "postgres", "url": url}
    report = drill(
        "flat.backends.by_name:create_work_backend", arguments, workers=8, jobs=JOBS, kills=8, seed=7
    )
    assert report.clean, report
    assert report.killed >= 4
    assert len(report.by_worker) >= 2
