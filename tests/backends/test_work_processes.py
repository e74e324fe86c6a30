"""Real processes drain one pool while they are killed: nothing is given twice, and nothing is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flat.testing.store_servers import StoreServers
from flat.testing.work_drill import drill

MAKE = "flat.backends.by_name:create_work_backend"
SIZES = {
    "sqlite": (10_000, 8, 20),
    "redis": (10_000, 8, 10),
    "postgres": (1_000, 8, 8),
    "dynamodb": (120, 4, 4),
}
"""Jobs, workers and kills that take some seconds in each store. `FLAT_DRILL_JOBS=10000`: so many jobs in all of them,
with eight workers."""
BACKLOGS = {"dynamodb": 500}
"""The imitation of DynamoDB looks through all jobs that wait at each claim, and answers ten thousand too late."""


@pytest.mark.parametrize("kind", SIZES)
def test_no_job_is_lost_or_given_twice_when_workers_are_killed(kind: str, servers: StoreServers) -> None:
    jobs, workers, kills = SIZES[kind]
    if asked := os.environ.get("FLAT_DRILL_JOBS"):
        jobs, workers, kills = int(asked), 8, max(kills, 20)
    url = servers.url(kind)
    place = {"db_path": url.partition(":")[2]} if kind == "sqlite" else {"url": url}
    report = drill(
        MAKE,
        {"type": kind, **place},
        workers=workers,
        jobs=jobs,
        kills=kills,
        seed=7,
        backlog=BACKLOGS.get(kind),
    )
    assert report.clean, report
    assert report.killed >= kills // 2
    assert report.released >= 1
    assert sum(report.by_worker.values()) >= jobs - report.killed
    assert len(report.by_worker) >= workers // 2


def test_the_drill_finds_a_pool_that_gives_jobs_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "careless.py").write_text(CARELESS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    arguments = {"db_path": str(tmp_path / "w.sqlite")}
    report = drill("careless:open_work", arguments, workers=4, jobs=200, kills=0, seed=7)
    assert not report.clean
    assert report.given_twice > 0


CARELESS = '''
import anyio
from dataclasses import replace
from flat.backends.sqlite.work import SQLiteWorkBackend


class Careless(SQLiteWorkBackend):
    """Looks first and takes later, as if it were alone."""

    def pool(self, name):
        pool = super().pool(name)

        async def claim(worker_id):
            found = await pool.items(status="pending", limit=1)
            if not found:
                return None
            await anyio.sleep(0.001)
            pool._file.execute(
                "UPDATE work_jobs SET status = 1, worker = ?, attempts = ? WHERE num = ?",
                (worker_id, found[0].attempts + 1, int(found[0].id)),
            )
            return replace(found[0], attempts=found[0].attempts + 1)

        async def complete(item_id, result, worker_id=None):
            pool._file.execute("UPDATE work_jobs SET status = 2 WHERE num = ?", (int(item_id),))

        pool.claim, pool.complete = claim, complete
        return pool


def open_work(**arguments):
    return Careless(**arguments)
'''
