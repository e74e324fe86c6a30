"""`python -m benchmarks [w1 w2 …] [--rounds N] [--quick]`: measure, and write the tables."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import sqlite3
import sys
import tempfile
from pathlib import Path

from benchmarks import harness
from benchmarks.harness import Workload

WORKLOADS = ("w1", "w2", "w2c", "w3", "w4", "w5", "w6", "w7", "w8", "stores", "wtree", "history", "compile")
SHOWN = (
    "flat",
    "flatmachines",
    "langgraph",
    "langgraph-checkpoint-sqlite",
    "apache-burr",
    "anyio",
    "orjson",
    "pyyaml",
)


def workload(name: str) -> Workload:
    found: Workload = importlib.import_module(f"benchmarks.{name}").WORKLOAD
    return found


def versions() -> str:
    """The machine and what is installed, in one line."""
    parts = [platform.platform(), f"{os.cpu_count()} cores", f"Python {platform.python_version()}"]
    parts.append(f"SQLite {sqlite3.sqlite_version}")
    for name in SHOWN:
        try:
            parts.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            parts.append(f"{name} not installed")
    return ", ".join(parts)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        _, _, name, case, sizes = sys.argv
        print("\n" + json.dumps(harness.measure(workload(name), case, json.loads(sizes))))
        return
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "workloads", nargs="*", metavar="workload", help=f"some of {' '.join(WORKLOADS)}; default: all"
    )
    parser.add_argument("--rounds", type=int, default=0, help="default: 5, or 1 with --quick")
    parser.add_argument("--quick", action="store_true", help="small sizes: does everything still run?")
    parser.add_argument("--results", type=Path, default=Path(tempfile.gettempdir()) / "flat-benchmarks")
    options = parser.parse_args()
    names = options.workloads or WORKLOADS
    if unknown := [name for name in names if name not in WORKLOADS]:
        parser.error(f"no workload {unknown[0]}; there are {' '.join(WORKLOADS)}")
    rounds = options.rounds or (1 if options.quick else 5)
    options.results.mkdir(parents=True, exist_ok=True)
    print(f"{versions()}; {rounds} rounds\n", flush=True)
    for name in names:
        work = workload(name)
        measured = harness.run(
            work, rounds, options.quick, lambda line: print(line, file=sys.stderr, flush=True)
        )
        load = os.getloadavg()[0]
        print(harness.tables(work, measured) + f"\nLoad of the machine at the end: {load:.1f}\n", flush=True)
        raw = {"versions": versions(), "load": load, "measured": [[m.sizes, m.records] for m in measured]}
        (options.results / f"{name}.json").write_text(json.dumps(raw, indent=1))


if __name__ == "__main__":
    main()
