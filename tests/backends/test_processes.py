"""What real processes do to one store: races, sudden death, and zombies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest

from flat.backends import Stored, open_store, this_process
from flat.testing.store_case import birth, step
from flat.testing.store_case import signal as message
from flat.testing.store_servers import StoreServers

ROOT = Path(__file__).parents[2]
Child = subprocess.Popen[str]
Start = Callable[[str], Child]
RACES = {"sqlite": (2, 8, 32), "file": (2, 8, 32), "redis": (8,), "postgres": (32,), "dynamodb": (8,)}
"""How many processes race in each store."""
SLOW = 4
"""By how much less is enough where the server is an imitation, and slow."""


@pytest.fixture(params=RACES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, servers: StoreServers) -> str:
    return servers.url(kind)


@pytest.fixture
def much(kind: str) -> int:
    """How much a child does of what it does many times."""
    return 40 // SLOW if kind == "dynamodb" else 40


@pytest.fixture
def start(url: str, much: int) -> Iterator[Start]:
    children: list[Child] = []

    def start_one(case: str) -> Child:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("children.py")), case, url, str(much)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
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
    store = open_store(url)
    await store.create(birth())
    await store.close()


async def take_over(url: str, *, later: float = 0.0) -> None:
    store = open_store(url)
    lease = await store.acquire("e1", this_process(), now=time.time() + later, ttl=60)
    await store.commit(step(lease, 2))
    await store.close()


async def load(url: str, execution_id: str = "e1") -> Stored:
    store = open_store(url)
    stored = await store.load(execution_id)
    await store.close()
    assert stored is not None
    return stored


@pytest.mark.parametrize(("kind", "count"), [(kind, n) for kind, counts in RACES.items() for n in counts])
def test_one_of_many_processes_becomes_the_owner(url: str, start: Start, count: int) -> None:
    anyio.run(create, url)
    children = [start("acquire") for _ in range(count)]
    assert {hear(child) for child in children} == {"ready"}
    for child in children:
        tell(child)
    assert sorted(hear(child) for child in children) == ["busy"] * (count - 1) + ["owner"]
    for child in children:
        tell(child)
    assert anyio.run(load, url).bodies == [(0, b"body 0"), (1, b"body 1")]


def test_many_processes_open_a_new_store_and_write_at_once(url: str, start: Start, much: int) -> None:
    children = [start("append") for _ in range(8)]
    assert {hear(child) for child in children} == {"done"}
    for child in children:
        stored = anyio.run(load, url, f"e{child.pid}")
        assert stored.execution.seq == much
        assert len(stored.log) == much // 4


def test_a_killed_owner_is_replaced_at_once(url: str, start: Start) -> None:
    anyio.run(create, url)
    child = start("die")
    assert hear(child) == "owner"
    child.wait()
    anyio.run(take_over, url)
    assert [seq for seq, _ in anyio.run(load, url).bodies] == [0, 1, 2]


def test_an_owner_that_is_dead_but_not_yet_buried_is_replaced_at_once(url: str, start: Start) -> None:
    anyio.run(create, url)
    child = start("die")
    assert hear(child) == "owner"
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    anyio.run(take_over, url)


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


async def send(url: str, *ids: str) -> None:
    store = open_store(url)
    for signal_id in ids:
        assert await store.send(message(signal_id))
    await store.close()


async def left(url: str) -> list[str]:
    store = open_store(url)
    found = [one.signal_id for one in await store.signals()]
    await store.close()
    return found


def test_every_signal_is_taken_fanned_out_or_buried_by_one_of_many_processes(
    url: str, start: Start, much: int
) -> None:
    names = [f"{what}{number}" for number in range(much) for what in "sfb"]
    anyio.run(partial(send, url, *names))
    children = [start("take") for _ in range(4)]
    assert {hear(child) for child in children} == {"ready"}
    for child in children:
        tell(child)
    got = [name for child in children for name in hear(child).split()]
    assert sorted(got) == sorted(names)
    copies = anyio.run(left, url)
    assert len(copies) == 2 * much
    assert {copy.partition("@")[0] for copy in copies} == {f"f{number}" for number in range(much)}


def test_what_was_fanned_out_outlives_its_process(url: str, start: Start) -> None:
    anyio.run(partial(send, url, "s"))
    child = start("fan_out_and_die")
    assert hear(child) == "True"
    child.wait()
    assert sorted(anyio.run(left, url)) == ["s@e1", "s@e2"]


@pytest.mark.parametrize("kind", ["file"])
def test_a_file_that_may_not_grow_fails_one_commit_and_keeps_the_others(url: str, start: Start) -> None:
    child = start("fill")
    said = hear(child)
    assert "cannot grow" in said
    assert hear(child) == "resumed"
    stored = anyio.run(load, url)
    assert stored.execution.seq == int(said.split()[0]) + 1 > 4
    assert stored.bodies[-1][1] == b"small"
