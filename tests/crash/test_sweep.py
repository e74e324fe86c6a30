"""Every reference machine dies at every point, on every store, and comes to the same end."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from flat.backends import FileStore, SQLiteStore
from flat.backends.protocols import CheckpointStore
from flat.testing.crash import Scenario, folder_places, memory_places, sweep

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
