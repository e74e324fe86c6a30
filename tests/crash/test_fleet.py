"""Fleets of real processes on one store: killed at random, and nothing is lost, and nothing done twice without need."""

from __future__ import annotations

import os

import pytest

from flat.testing.fleet_drill import drill
from flat.testing.store_servers import StoreServers

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are forked")
JOBS = int(os.environ.get("FLAT_FLEET_JOBS", "300"))
WORKERS = int(os.environ.get("FLAT_FLEET_WORKERS", "4"))
KILLS = int(os.environ.get("FLAT_FLEET_KILLS", "10"))
"""`python -m benchmarks.fleet` does the same with ten thousand jobs, and tells how fast."""


STORES = ("sqlite", "redis", "postgres", "dynamodb")
SLOW = {"dynamodb": 5}
"""By how much fewer jobs are enough where the server is an imitation, and slow."""


@pytest.mark.parametrize(
    ("kind", "backend"),
    [(kind, "asyncio") for kind in STORES] + [("sqlite", "trio"), ("redis", "trio")],
)
def test_no_job_is_lost_or_done_twice_when_workers_are_killed(
    kind: str, backend: str, servers: StoreServers
) -> None:
    fewer = SLOW.get(kind, 1)
    report = drill(
        servers.url(kind), jobs=JOBS // fewer, workers=WORKERS, kills=max(3, KILLS // fewer), pause=0.1, seed=7,
        backend=backend,
    )  # fmt: skip
    assert report.clean, report
    assert report.killed >= 1
    assert report.repeated <= 8 * report.killed  # what each had in hand
    assert len(report.by_worker) >= 2
