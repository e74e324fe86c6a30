"""W8: `kill -9` in the middle, and a fresh process that resumes to the end; every step is accounted for.

*lost*: steps that never ran. *repeated*: runs of a step beyond its first. *unreported*: repeated, without the
system saying that the step was in doubt. *astray*: steps that the wrong state ran, after a resume in the
wrong place.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload, environment, figure
from benchmarks.machines import alternating

LIMIT = "limit: raw sqlite"
FLAT = "flat"
EFFECTS = Path("effects")
POLL = 0.0005


def _total(key: str) -> Callable[[Measured, str], str]:
    return lambda measured, case: figure(sum(measured.values(case, key)))


def _all(key: str) -> Callable[[Sequence[Measured]], float]:
    return lambda measured: sum(sum(m.values(FLAT, key)) for m in measured)


def _most_doubts(measured: Sequence[Measured]) -> float:
    return max((doubts for m in measured for doubts in m.values(FLAT, "doubts")), default=math.nan)


WORKLOAD = Workload(
    "w8", "kill -9 and resume", "resume, from exec to exit",
    [{"n": 2000, "kill": 1000}, {"n": 160, "kill": 80}], [{"n": 200, "kill": 100}], LIMIT,
    columns=[
        ("first new step, s", lambda m, case: figure(m.best(case, "first"))),
        ("to the end, s", lambda m, case: figure(m.best(case, "wall") / 1e6)),
        ("rounds", lambda m, case: str(len(m.good(case)))),
        *((key, _total(key)) for key in ("lost", "repeated", "unreported", "astray")),
    ],
    targets=[
        Target("first new step, s", 0.5, None, lambda m: m[0].median(FLAT, "first")),
        Target("to the end, s", None, 0.25, lambda m: m[0].median(FLAT, "wall") / 1e6),
        Target("steps lost", 0, 0, _all("lost")),
        Target("steps repeated without being reported in doubt", 0, 0, _all("unreported")),
        Target("steps in doubt, at most, in one kill", 1, 1, _most_doubts),
        Target("steps that ran in the wrong state", 0, 0, _all("astray")),
    ],
)  # fmt: skip


def _effects() -> list[tuple[str, int]]:
    lines = EFFECTS.read_text().splitlines()
    return [(state, int(number)) for state, number in (line.split() for line in lines)]


def _trial(system: str, sizes: Sizes, meter: Meter) -> Record:
    n, kill = sizes["n"], sizes["kill"]
    Path("machine.yml").write_text(json.dumps(alternating(n, {"enabled": True, "backend": "sqlite"})))
    command = [sys.executable, "-m", "benchmarks.crashing", system, str(n)]
    _kill_midway([*command, "start"], sum(len(f"A {i}\n") for i in range(kill)))
    size, before = EFFECTS.stat().st_size, len(_effects())
    began, first = time.perf_counter(), 0.0
    with meter.children():
        process = subprocess.Popen(
            [*command, "resume"],
            env=_environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        while not first and process.poll() is None:
            if EFFECTS.stat().st_size > size:
                first = time.perf_counter() - began
            time.sleep(POLL)
        output, problems = process.communicate()
    assert process.returncode == 0, problems[-3000:]
    result: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    assert result["i"] == n
    ran = _effects()
    runs = Counter(number for _, number in ran)
    repeated = [number for number, count in runs.items() for _ in range(count - 1)]
    doubts = result.get("in_doubt", [])
    return {
        "operations": 1, "first": first or time.perf_counter() - began, "inside": result["inside"],
        "left": n - before, "lost": sum(number not in runs for number in range(n)), "repeated": len(repeated),
        "doubts": len(doubts), "unreported": sum(number not in doubts for number in repeated),
        "astray": sum(state != "AB"[number % 2] for state, number in ran),
    }  # fmt: skip


def _environment() -> dict[str, str]:
    return {**environment(), "FLAT_CACHE": "cache"}


def _kill_midway(command: list[str], size: int) -> None:
    """Start, and kill at a random moment soon after the effects have reached a size."""
    process = subprocess.Popen(
        command, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while not EFFECTS.exists() or EFFECTS.stat().st_size < size:
        assert process.poll() is None, f"ended before the kill: {process.communicate()[1][-3000:]}"
        time.sleep(POLL)
    time.sleep(random.random() * 0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def _system(name: str, system: str, note: str, needs: Sequence[str] = ()) -> None:
    @WORKLOAD.case(name, note, needs=needs)
    def run(sizes: Sizes, meter: Meter) -> Record:
        return _trial(system, sizes, meter)


_system(LIMIT, "raw", "a row per step, WAL NORMAL; goes on from the newest")
_system(FLAT, "flat", "load() of the file, compiled at the first start; Runtime.resume; SQLiteStore NORMAL")
_system(
    "flatmachines, state_enter",
    "flatmachines",
    "lock switched off: with it, no resume for 300 s",
    ["flatmachines"],
)
_system("langgraph sync", "langgraph", "SqliteSaver NORMAL, invoke(None)", ["langgraph.checkpoint.sqlite"])
_system("burr", "burr", "SQLitePersister WAL NORMAL, resume_at_next_action", ["burr"])
