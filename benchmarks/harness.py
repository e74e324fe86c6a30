"""The harness: cases, one fresh process per measurement, interleaved rounds, ratios within a round, tables.

A `Workload` holds cases. A case is a function of the sizes and a `Meter`: it imports its library and gets
ready, does the work inside `with meter:` (only that is timed), verifies the result, and returns more figures.
Every measurement is a process of its own; the order of the cases changes from round to round, so that a busy
moment of the machine does not always hit the same one. A case is compared, within each round, with the limit
of the same durability class.
"""

from __future__ import annotations

import gc
import importlib.util
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

Sizes: TypeAlias = dict[str, int]
Record: TypeAlias = dict[str, Any]
ROOT = Path(__file__).resolve().parent.parent
QUIET = {
    "PYTHONHASHSEED": "0", "PYTHONWARNINGS": "ignore", "FLATAGENTS_LOG_LEVEL": "ERROR",
    "FLATAGENTS_METRICS_ENABLED": "false", "LANGSMITH_TRACING": "false", "BURR_TELEMETRY": "false",
    "HAMILTON_TELEMETRY_ENABLED": "false", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}  # fmt: skip
TIMEOUT = 300.0


class Meter:
    """Times its block: seconds of wall clock, of CPU (user and system, all threads), and bytes written."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.written = 0

    def __enter__(self) -> Self:
        gc.collect()
        self._written, self._cpu, self._wall = _written(), _cpu(resource.RUSAGE_SELF), time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.wall = time.perf_counter() - self._wall
        self.cpu = _cpu(resource.RUSAGE_SELF) - self._cpu
        self.written = _written() - self._written

    @contextmanager
    def children(self) -> Iterator[None]:
        """Times the processes that are started and waited for in the block, in place of this one."""
        cpu, wall = _cpu(resource.RUSAGE_CHILDREN), time.perf_counter()
        yield
        self.wall, self.cpu = time.perf_counter() - wall, _cpu(resource.RUSAGE_CHILDREN) - cpu


def _cpu(who: int) -> float:
    usage = resource.getrusage(who)
    return usage.ru_utime + usage.ru_stime


def _written() -> int:
    try:
        facts = Path("/proc/self/io").read_text()
    except OSError:
        return 0
    return int(facts.split("wchar:")[1].split()[0])


@dataclass(frozen=True)
class Case:
    """One system at one workload."""

    name: str
    run: Callable[[Sizes, Meter], Record]
    note: str
    limit: str
    """The case that it is compared with."""
    needs: Sequence[str]
    """Modules without which it is left out."""
    only: Callable[[Sizes], bool]

    @property
    def available(self) -> bool:
        return all(importlib.util.find_spec(name) for name in self.needs)


@dataclass(frozen=True)
class Measured:
    """The records of all cases at one size, by case; a record that failed has only an `error`."""

    sizes: Sizes
    records: Mapping[str, Sequence[Record]]

    def good(self, case: str) -> list[Record]:
        return [record for record in self.records.get(case, ()) if "error" not in record]

    def values(self, case: str, key: str) -> list[float]:
        return [record[key] for record in self.good(case)]

    def best(self, case: str, key: str) -> float:
        return min(self.values(case, key), default=math.nan)

    def median(self, case: str, key: str) -> float:
        values = self.values(case, key)
        return statistics.median(values) if values else math.nan

    def ratio(self, case: str, other: str, key: str) -> float:
        """How many times `other` the case costs: the median over the rounds, each with its own `other`."""
        others = {record["round"]: record[key] for record in self.good(other)}
        ratios = [
            record[key] / others[record["round"]] for record in self.good(case) if others.get(record["round"])
        ]
        return statistics.median(ratios) if ratios else math.nan


@dataclass(frozen=True)
class Target:
    """A figure to reach: `value` reads it from the measurements, one `Measured` per size."""

    name: str
    must: float | None
    goal: float | None
    value: Callable[[Sequence[Measured]], float]
    at_least: bool = False

    def reached(self, value: float, figure: float | None) -> bool:
        return figure is not None and (value >= figure if self.at_least else value <= figure)


Column: TypeAlias = tuple[str, Callable[[Measured, str], str]]


@dataclass
class Workload:
    """A piece of work, the systems that do it, and what is to be reached."""

    name: str
    title: str
    unit: str
    sizes: Sequence[Sizes]
    quick: Sequence[Sizes]
    limit: str
    columns: Sequence[Column] = ()
    targets: Sequence[Target] = ()
    cases: dict[str, Case] = field(default_factory=dict)

    def case(
        self, name: str, note: str = "", *, limit: str | None = None, needs: Sequence[str] = (),
        only: Callable[[Sizes], bool] = lambda sizes: True,
    ) -> Callable[[Callable[[Sizes, Meter], Record]], Callable[[Sizes, Meter], Record]]:  # fmt: skip
        def register(run: Callable[[Sizes, Meter], Record]) -> Callable[[Sizes, Meter], Record]:
            self.cases[name] = Case(name, run, note, limit or self.limit, needs, only)
            return run

        return register


# -- one measurement ----------------------------------------------------------------------


def measure(workload: Workload, case: str, sizes: Sizes) -> Record:
    """Run a case in this process. The times are per operation, in microseconds."""
    meter = Meter()
    record = workload.cases[case].run(sizes, meter)
    operations = record.pop("operations", sizes.get("n", 1))
    return {
        "wall": meter.wall / operations * 1e6, "cpu": meter.cpu / operations * 1e6,
        "written": meter.written / operations, **record,
    }  # fmt: skip


def environment() -> dict[str, str]:
    """For a measured process: quiet peers, this repository on the path, byte code kept out of it."""
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    byte_code = str(Path(tempfile.gettempdir()) / "flat-benchmarks-bytecode")
    return {**inherited, **QUIET, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": byte_code}


def _measure_apart(workload: Workload, case: str, sizes: Sizes) -> Record:
    """Run a case in a fresh process, with a folder of its own that goes away with it."""
    with tempfile.TemporaryDirectory(prefix="flat-bench-") as folder:
        command = [sys.executable, "-m", "benchmarks", "--measure", workload.name, case, json.dumps(sizes)]
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment(),
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"not done in {TIMEOUT:g} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1][:200]}
    record: Record = json.loads(done.stdout.strip().splitlines()[-1])
    return record


# -- rounds and tables ----------------------------------------------------------------------


def run(workload: Workload, rounds: int, quick: bool, report: Callable[[str], None]) -> list[Measured]:
    """Measure every available case at every size, in interleaved rounds."""
    return [
        _run_size(workload, sizes, rounds, report) for sizes in (workload.quick if quick else workload.sizes)
    ]


def _run_size(workload: Workload, sizes: Sizes, rounds: int, report: Callable[[str], None]) -> Measured:
    names = [case.name for case in workload.cases.values() if case.available and case.only(sizes)]
    records: dict[str, list[Record]] = {name: [] for name in names}
    for number in range(rounds):
        turn = number % len(names)
        order = (names[turn:] + names[:turn])[:: -1 if number % 2 else 1]
        for name in order:
            if any("error" in record for record in records[name]):
                continue
            record = {**_measure_apart(workload, name, sizes), "round": number}
            records[name].append(record)
            shown = record.get("error") or figure(record["cpu"])
            report(f"{workload.name} {sizes} round {number}: {name}: {shown}")
    return Measured(sizes, records)


def tables(workload: Workload, measured: Sequence[Measured]) -> str:
    """The measurements and the targets, as Markdown."""
    parts = [f"### {workload.name.upper()} {workload.title}"]
    for at_size in measured:
        size = ", ".join(f"{key}={value}" for key, value in at_size.sizes.items())
        parts.append(f"{size}; times in µs per {workload.unit}\n\n{_table(workload, at_size)}")
    notes = [f"- {case.name}: {case.note}" for case in workload.cases.values() if case.note]
    parts.append("\n".join(notes))
    if workload.targets:
        parts.append(_targets(workload, measured))
    return "\n\n".join(parts) + "\n"


def _table(workload: Workload, measured: Measured) -> str:
    head = ["system", "CPU median", "CPU best", "wall median", "wall best", "× limit CPU", "× limit wall"]
    rows = [[*head, *(name for name, _ in workload.columns)]]
    for name in measured.records:
        if not measured.good(name):
            rows.append([name, measured.records[name][0]["error"], *[""] * (len(rows[0]) - 2)])
            continue
        limit = workload.cases[name].limit
        cells = [
            *(f(name, key) for key in ("cpu", "wall") for f in (measured.median, measured.best)),
            measured.ratio(name, limit, "cpu"), measured.ratio(name, limit, "wall"),
        ]  # fmt: skip
        rows.append([name, *map(figure, cells), *(cell(measured, name) for _, cell in workload.columns)])
    return markdown(rows)


def _targets(workload: Workload, measured: Sequence[Measured]) -> str:
    rows = [["target", "measured", "must", "goal", ""]]
    for target in workload.targets:
        value = target.value(measured)
        sign = "≥" if target.at_least else "≤"
        verdict = ""
        if math.isnan(value):
            verdict = "not measured"
        elif target.reached(value, target.goal):
            verdict = "goal"
        elif target.reached(value, target.must):
            verdict = "must"
        elif target.must is not None or target.goal is not None:
            verdict = "short of the goal" if target.must is None else "missed"
        shown = [f"{sign} {figure(x)}" if x is not None else "" for x in (target.must, target.goal)]
        rows.append([target.name, figure(value), *shown, verdict])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body))


def figure(value: float) -> str:
    """Three digits or so."""
    if math.isnan(value):
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
