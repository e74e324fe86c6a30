"""Every reference machine dies at every point, on every store, and comes to the same end."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flat.backends import FileStore, SQLiteStore
from flat.backends.protocols import CheckpointStore
from flat.testing.crash import Scenario, folder_places, memory_places, sweep

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("crash_machines", HERE / "machines.py")
assert _spec is not None
assert _spec.loader is not None
machines = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = machines
_spec.loader.exec_module(machines)

SCENARIOS: dict[str, Scenario] = machines.SCENARIOS
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
