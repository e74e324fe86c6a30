"""`python -m benchmarks.fleet [sqlite redis postgres dynamodb] [--jobs N] [--workers N] [--kills N]`

Queue ten thousand jobs in each store, and have them run by eight processes, which are killed and replaced at random;
then check that none was lost, and none done twice without need. `flat.testing.fleet_drill` does it, and says what is
checked. A job is an execution of two actions that do nothing: what is measured is the queue, the leases and commits.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from flat.testing.fleet_drill import FleetReport, drill
from flat.testing.store_servers import store_servers

HEADS = (
    "store", "jobs", "queued/s", "run/s", "killed", "stopped", "done again after a kill", "lost", "wrong",
    "too late for", "looks",
)  # fmt: skip


STORES = ("sqlite", "redis", "postgres", "dynamodb")
USUAL = ("sqlite", "redis", "postgres")


def row(name: str, report: FleetReport) -> str:
    cells = (
        name, f"{report.jobs:,}", f"{report.jobs / report.enqueue_seconds:,.0f}",
        f"{report.jobs / report.seconds:,.0f}", report.killed, report.stopped, report.repeated,
        report.jobs - report.done, report.wrong + report.failed, f"{report.lost_claims:,}", f"{report.looks:,}",
    )  # fmt: skip
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fleet", description=__doc__)
    parser.add_argument("stores", nargs="*", metavar="store", help=f"some of {' '.join(STORES)}")
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=8, help="what each worker runs at a time")
    parser.add_argument("--backend", choices=("asyncio", "trio"), default="asyncio")
    asked = parser.parse_args()
    if unknown := set(asked.stores) - set(STORES):
        parser.error(f"there is no store {', '.join(sorted(unknown))}; choose from {', '.join(STORES)}")
    print("| " + " | ".join(HEADS) + " |\n|" + " --- |" * len(HEADS), flush=True)
    clean = True
    for name in asked.stores or USUAL:
        with store_servers() as servers:
            report = drill(
                servers.url(name), jobs=asked.jobs, workers=asked.workers, kills=asked.kills,
                concurrency=asked.concurrency, backend=asked.backend,
            )  # fmt: skip
        print(row(name, report), flush=True)
        if not report.clean:
            clean = False
            print(json.dumps(asdict(report)), file=sys.stderr)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
