"""W7: cold processes, measured from outside, from exec to exit.

What an import costs, and what it takes to load a machine file, run ten of its states and exit. Every measured
process is the second of its kind, so that files and byte code are in the system's caches.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from math import nan
from pathlib import Path

import yaml

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload, environment, figure
from benchmarks.machines import chain_yaml

BARE = "import: the bare dependencies"
IMPORT = "import: flat"
IMPORT_RUN = "import: flat, with what a run needs"
LIMIT = "limit: YAML C loader, conditions compiled"
CACHED_LIMIT = "limit: JSON, conditions compiled when needed"
FLAT = "flat, cold cache"
FLAT_WARM = "flat, warm cache"
FLATMACHINES = "flatmachines"
HELP = "flat --help"
CACHE = Path("cache")
STATES_RUN = 10


def _inside(measured: Measured, case: str) -> str:
    parts = [part for part in ("import", "load", "run") if part in measured.good(case)[0]]
    return ", ".join(figure(measured.best(case, part)) for part in parts)


def _quicker(states: int, case: str) -> Callable[[Sequence[Measured]], float]:
    """How many times cheaper than flatmachines."""
    return lambda measured: _at(measured, states, FLATMACHINES, case)


def _at(measured: Sequence[Measured], states: int, case: str, other: str) -> float:
    return max((m.ratio(case, other, "cpu") for m in measured if m.sizes["k"] == states), default=nan)


def _times_limit(states: int, limit: str) -> Callable[[Sequence[Measured]], float]:
    return lambda measured: _at(measured, states, FLAT_WARM, limit)


WORKLOAD = Workload(
    "w7", "cold process", "process", [{"k": 0}, {"k": 10}, {"k": 1000}], [{"k": 0}, {"k": 10}], LIMIT,
    columns=[("inside ms: import, load, run", _inside)],
    targets=[
        Target("import flat ÷ its bare dependencies", 1.2, None, lambda m: m[0].ratio(IMPORT, BARE, "cpu")),
        Target("… with what a run needs", None, 1.2, lambda m: m[0].ratio(IMPORT_RUN, BARE, "cpu")),
        Target("flat --help, CPU s", 0.3, None, lambda m: m[0].best(HELP, "cpu") / 1e6),
        Target("10 states: times cheaper than flatmachines", 1.5, None, _quicker(10, FLAT_WARM), at_least=True),
        Target("… when the file was never loaded before", 1.5, None, _quicker(10, FLAT), at_least=True),
        Target("10 states, warm, ÷ the limit", None, 1.15, _times_limit(10, LIMIT)),
        Target("1,000 states: times cheaper than flatmachines", 3, None, _quicker(1000, FLAT_WARM), at_least=True),
        Target("… when the file was never loaded before", 3, None, _quicker(1000, FLAT), at_least=True),
        Target("1,000 states, warm, ÷ the limit of a cache", None, 1.25, _times_limit(1000, CACHED_LIMIT)),
    ],
)  # fmt: skip


def _child(meter: Meter, command: list[str], *, cold: bool = False) -> Record:
    def once() -> str:
        done = subprocess.run(
            command,
            env={**environment(), "FLAT_CACHE": str(CACHE)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    once()
    if cold:
        shutil.rmtree(CACHE, ignore_errors=True)
    with meter.children():
        output = once()
    lines = [line for line in output.splitlines() if line.startswith("INSIDE ")]
    return {"operations": 1, **(json.loads(lines[-1].removeprefix("INSIDE ")) if lines else {})}


def _program(meter: Meter, text: str, *, cold: bool = False) -> Record:
    """Run a program that sets `t1` after its imports and `t2` after loading."""
    parts = "{'import': (t1 - t0) * 1e3, 'load': (t2 - t1) * 1e3, 'run': (t3 - t2) * 1e3}"
    Path("x.py").write_text(
        f"import time; t0 = time.perf_counter()\n{text}\n"
        f"t3 = time.perf_counter()\nimport json; print('INSIDE', json.dumps({parts}))\n"
    )
    return _child(meter, [sys.executable, "x.py"], cold=cold)


# -- imports ---------------------------------------------------------------------------------


def _import(name: str, line: str, *, note: str = "", needs: tuple[str, ...] = ()) -> None:
    @WORKLOAD.case(name, note, limit=BARE, needs=needs, only=lambda sizes: sizes["k"] == 0)
    def run(sizes: Sizes, meter: Meter) -> Record:
        return _child(meter, [sys.executable, "-c", line])


NO_LITELLM = "import sys; assert not {'litellm', 'openai', 'httpx', 'requests'} & sys.modules.keys()"

_import("import: nothing", "pass")
_import(BARE, "import asyncio, sqlite3, orjson, yaml", note="asyncio, sqlite3, orjson, yaml")
_import("import: the same and anyio", "import asyncio, sqlite3, orjson, yaml, anyio")
_import(IMPORT, f"import flat\n{NO_LITELLM}", note="no model client and no HTTP library comes with it")
_import(IMPORT_RUN, f"from flat import HooksRegistry, Runtime, SQLiteStore, load\n{NO_LITELLM}")
_import("import: flatmachines", "import flatmachines", needs=("flatmachines",))
_import("import: langgraph, with its SQLite saver", "import langgraph.graph, langgraph.checkpoint.sqlite.aio",
        needs=("langgraph.checkpoint.sqlite",))  # fmt: skip
_import("import: burr", "import burr.core", needs=("burr",))


@WORKLOAD.case(HELP, "the command, as installed", limit=BARE, only=lambda sizes: sizes["k"] == 0)
def flat_help(sizes: Sizes, meter: Meter) -> Record:
    return _child(meter, [str(Path(sys.executable).with_name("flat")), "--help"])


# -- a machine file, loaded and run ------------------------------------------------------------


def some_states(sizes: Sizes) -> bool:
    return sizes["k"] > 0


TABLE = """
import asyncio, {module}
t1 = time.perf_counter()
def compiled(text):
    python = text.replace("context.stop == true", "context['stop'] == True")
    return eval(compile("lambda context: " + python, "condition", "eval"))
data = {load}["data"]
states = {{}}
for name, state in data["states"].items():
    transitions = [
        ((compiled if {eager} else str)(t["condition"]) if "condition" in t else None, t["to"])
        for t in state.get("transitions", ())
    ]
    states[name] = (state.get("action"), transitions)
t2 = time.perf_counter()
async def inc(context):
    context["i"] += 1
    context["stop"] = context["i"] == {run}
async def go():
    context, current = dict(data["context"]), "s0"
    while current != "done":
        await inc(context)
        for condition, target in states[current][1]:
            if isinstance(condition, str):
                condition = compiled(condition)
            if condition is None or condition(context):
                current = target
                break
    return context["i"]
assert asyncio.run(go()) == {run}
"""


@WORKLOAD.case(LIMIT, "yaml.CSafeLoader, a compile() per condition, a table engine", only=some_states)
def limit_yaml(sizes: Sizes, meter: Meter) -> Record:
    Path("m.yml").write_text(chain_yaml(sizes["k"]))
    load = "yaml.load(open('m.yml'), yaml.CSafeLoader)"
    return _program(meter, TABLE.format(module="yaml", load=load, eager=True, run=STATES_RUN))


@WORKLOAD.case(CACHED_LIMIT, "json.load of the compiled form: what a cache can reach", only=some_states)
def limit_json(sizes: Sizes, meter: Meter) -> Record:
    Path("m.json").write_text(json.dumps(yaml.safe_load(chain_yaml(sizes["k"]))))
    return _program(
        meter, TABLE.format(module="json", load="json.load(open('m.json'))", eager=False, run=STATES_RUN)
    )


HOOKS = """
class Hooks(MachineHooks):
    async def on_action(self, state, action, context):
        context["i"] += 1
        if context["i"] == {run}: context["stop"] = True
        return context
registry = HooksRegistry()
registry.register("counter", Hooks)
"""
RUN_FLAT = """
import asyncio
from flat import HooksRegistry, MachineHooks, Runtime, load
t1 = time.perf_counter()
{hooks}
machine = load("m.yml", hooks=registry)
t2 = time.perf_counter()
async def go():
    async with Runtime(None) as runtime:
        return await runtime.start(machine)
assert asyncio.run(go()).output == {{"i": {run}}}
"""
RUN_FLATMACHINES = """
import asyncio
from flatmachines import FlatMachine, HooksRegistry, MachineHooks
t1 = time.perf_counter()
{hooks}
machine = FlatMachine(config_file="m.yml", hooks_registry=registry)
t2 = time.perf_counter()
assert asyncio.run(machine.execute())["i"] == {run}
"""


def _run_file(sizes: Sizes, meter: Meter, text: str, *, cold: bool = False) -> Record:
    Path("m.yml").write_text(chain_yaml(sizes["k"]))
    program = text.format(hooks=HOOKS.format(run=STATES_RUN), run=STATES_RUN)
    return _program(meter, program, cold=cold)


@WORKLOAD.case(
    FLAT, "load() of the YAML file, which is checked, compiled and put in the cache", only=some_states
)
def flat_cold(sizes: Sizes, meter: Meter) -> Record:
    return _run_file(sizes, meter, RUN_FLAT, cold=True)


@WORKLOAD.case(
    FLAT_WARM,
    "load() of the YAML file, unchanged since it was compiled",
    limit=CACHED_LIMIT,
    only=some_states,
)
def flat_warm(sizes: Sizes, meter: Meter) -> Record:
    record = _run_file(sizes, meter, RUN_FLAT)
    assert any(os.scandir(CACHE)), "nothing was cached"
    return record


@WORKLOAD.case(FLATMACHINES, "config_file=", needs=["flatmachines"], only=some_states)
def flatmachines_file(sizes: Sizes, meter: Meter) -> Record:
    return _run_file(sizes, meter, RUN_FLATMACHINES)
