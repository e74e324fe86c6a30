"""Every reference machine dies at every point, on every store, and comes to the same end."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

import pytest

from flat.backends import FileStore, SQLiteStore, open_store
from flat.backends.protocols import CheckpointStore
from flat.testing.crash import Opener, Places, Scenario, folder_places, memory_places, sweep
from flat.testing.store_servers import StoreServers

HERE = Path(__file__).parent


def beside(name: str) -> ModuleType:
    """A module of this folder, importable by a name that is its own."""
    spec = importlib.util.spec_from_file_location(f"crash_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCENARIOS: dict[str, Scenario] = beside("machines").SCENARIOS
FAMILIES: dict[str, Scenario] = beside("families").FAMILIES
FULL = os.environ.get("FLAT_SWEEP") == "full"
"""With `FLAT_SWEEP=full` the larger scenarios die at every point, and not at every so many: some minutes."""
LARGE = {"nested": 5, "tools": 5, "left": 3, "everything": 23}
pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_machine_survives_every_crash_in_memory(name: str) -> None:
    report = await sweep(SCENARIOS[name], memory_places())
    report.check()
    assert report.in_doubt > 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_a_machine_survives_every_crash_on_disk(
    name: str, kind: Callable[[Path], CheckpointStore], tmp_path: Path
) -> None:
    report = await sweep(SCENARIOS[name], folder_places(tmp_path, kind))
    report.check()


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
@pytest.mark.parametrize("name", ["retries", "signals", "blobs"])
async def test_a_machine_survives_every_crash_on_disk_with_trio(
    name: str, kind: Callable[[Path], CheckpointStore], tmp_path: Path
) -> None:
    report = await sweep(SCENARIOS[name], folder_places(tmp_path, kind))
    report.check()


def every(name: str, others: int = 2) -> int:
    return 1 if FULL else LARGE.get(name, others)


@pytest.mark.parametrize("name", FAMILIES)
async def test_a_family_survives_every_crash_in_memory(name: str) -> None:
    report = await sweep(FAMILIES[name], memory_places(), every=every(name, 1))
    report.check()
    assert report.in_doubt > 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("kind", [FileStore, SQLiteStore])
@pytest.mark.parametrize("name", FAMILIES)
async def test_a_family_survives_crashes_on_disk(
    name: str, kind: Callable[[Path], CheckpointStore], tmp_path: Path
) -> None:
    report = await sweep(
        FAMILIES[name], folder_places(tmp_path, kind), every=every(name) * (1 if FULL else 3)
    )
    report.check()


# -- in servers ------------------------------------------------------------------------------------------

BOTH = ("asyncio", "trio")
IN_SERVERS: dict[str, tuple[dict[str, Sequence[str]], int]] = {
    "redis": (dict.fromkeys(SCENARIOS, ("asyncio",)), 3),
    "postgres": ({"retries": BOTH, "signals": BOTH, "blobs": BOTH}, 1),
    "dynamodb": ({"signals": ("asyncio",), "blobs": ("trio",)}, 4),
}
"""Which machines die there on which loops, and at every which point, while there is little time."""
CASES = [
    (kind, name, loop)
    for kind, (few, _) in IN_SERVERS.items()
    for name, loops in (dict.fromkeys(SCENARIOS, BOTH) if FULL else few).items()
    for loop in loops
]


def server_places(kind: str, servers: StoreServers) -> Places:
    """Places in a server; in PostgreSQL one that is emptied, because making a new one takes long."""
    used: list[str] = []

    def place() -> Opener:
        if kind == "postgres":
            if used:
                servers.postgres.give_back(used.pop())
            used.append(servers.postgres.borrow())
            url = servers.postgres.url(used[0])
        else:
            url = servers.url(kind)
        return lambda: open_store(url)

    return place


@pytest.mark.parametrize(("kind", "name", "anyio_backend"), CASES)
async def test_a_machine_survives_crashes_in_a_server(kind: str, name: str, servers: StoreServers) -> None:
    step = every(name, IN_SERVERS[kind][1])
    report = await sweep(SCENARIOS[name], server_places(kind, servers), every=step)
    report.check()


@pytest.mark.parametrize("anyio_backend", ["trio"])
@pytest.mark.parametrize("kind", IN_SERVERS if FULL else ["redis"])
@pytest.mark.parametrize("name", FAMILIES)
async def test_a_family_survives_crashes_in_a_server(kind: str, name: str, servers: StoreServers) -> None:
    step = every(name) * (1 if FULL else 5)
    report = await sweep(FAMILIES[name], server_places(kind, servers), every=step)
    report.check()
