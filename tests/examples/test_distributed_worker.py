"""The example with workers: real processes, one of which is killed; and a boss that is killed too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import pytest

import flat
from flat import Runtime, create_registration_backend
from flat.cli.project import find_project
from flat.hooks import Notice
from flat.hooks.distributed import _started

from .conftest import Commands

pytestmark = pytest.mark.parametrize("name", ["distributed_worker"])

RESULTS = {
    "1000036000099": [1000003, 1000033],
    "1000070001221": [1000033, 1000037],
    "1000076001443": [1000037, 1000039],
    "1000120003159": [1000039, 1000081],
    "1000180008019": [1000081, 1000099],
    "1000216011583": [1000099, 1000117],
    "600851475143": [71, 839, 1471, 6857],
    "999999999989": [999999999989],
}


class Walk:
    def __init__(self) -> None:
        self.path: list[str] = []

    def notify(self, notice: Notice) -> None:
        if notice.kind == "enter":
            self.path.append(notice.node)


async def check(output: Any) -> None:
    """All is done, by three workers: two have left, and one was lost."""
    assert output == {"results": RESULTS, "lost": 1}
    register = create_registration_backend("sqlite", db_path="workers.db")
    assert sorted(worker.status for worker in await register.list()) == ["lost", "terminated", "terminated"]
    await register.close()
    for process in _started:  # they have left the pool, and are about to end
        process.wait(10)


@pytest.mark.anyio
async def test_three_workers_do_all_jobs_and_one_of_them_is_lost(copied: Path) -> None:
    project, walk = find_project(copied), Walk()
    machine = flat.load(project.machine, hooks=project.registry())
    async with Runtime("sqlite:///flat.db", observers=[walk]) as runtime:
        outcome = (await runtime.start(machine, project.input)).raise_for_failure()
    await check(outcome.output)
    assert walk.path[:6] == ["put", "look", "plan", "hire", "watch", "count"]
    assert walk.path.count("bury") == 1
    assert walk.path[-2:] == ["close", "done"]


def test_a_boss_that_is_killed_goes_on_and_starts_nobody_twice(copied: Path, commands: Commands) -> None:
    said = commands(copied, ["run", ".", "--id", "boss", "--plain"], die_at="hire: action spawn_workers done")
    assert said.code == -9, said.text
    said = commands(copied, ["resume", "boss", "--json"])
    assert said.code == 0, said.text
    anyio.run(check, json.loads(said.text.splitlines()[-1])["output"])
