"""Compile: a machine file, read, checked and lowered to a program in a process that has done so before.

Beside it the bare parse of the same file by the YAML library's own C loader, which knows no places, checks nothing
and compiles nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.harness import Measured, Meter, Record, Sizes, Target, Workload
from benchmarks.machines import chain_yaml
from flat import load

LIMIT = "limit: YAML C loader"
PURE = "YAML loader in Python"
FLAT = "flat"
WARM = "flat, from its cache"
REPEATED = 10
FILE = Path("m.yml")


def _ratio(case: str) -> Callable[[list[Measured]], float]:
    return lambda measured: measured[-1].ratio(case, LIMIT, "cpu")


WORKLOAD = Workload(
    "compile", "loading a file", "file", [{"k": 10}, {"k": 1000}], [{"k": 10}], LIMIT,
    targets=[
        Target("1,000 states ÷ the raw parse", 2, None, _ratio(FLAT)),
        Target("… from the cache", None, 1, _ratio(WARM)),
    ],
)  # fmt: skip


def _repeat(sizes: Sizes, meter: Meter, read: Callable[[], object]) -> Record:
    FILE.write_text(chain_yaml(sizes["k"]))
    read()
    with meter:
        for _ in range(REPEATED):
            read()
    return {"operations": REPEATED}


def _load() -> object:
    machine = load(FILE)
    assert machine.program.nodes
    return machine


@WORKLOAD.case(LIMIT, "yaml.load(text, CSafeLoader)")
def raw(sizes: Sizes, meter: Meter) -> Record:
    return _repeat(sizes, meter, lambda: yaml.load(FILE.read_text(), yaml.CSafeLoader))


@WORKLOAD.case(PURE, "yaml.safe_load(text)")
def pure(sizes: Sizes, meter: Meter) -> Record:
    return _repeat(sizes, meter, lambda: yaml.safe_load(FILE.read_text()))


@WORKLOAD.case(FLAT, "load(): parsed with places, checked, compiled, its digest taken")
def cold(sizes: Sizes, meter: Meter) -> Record:
    os.environ["FLAT_CACHE"] = "off"
    return _repeat(sizes, meter, _load)


@WORKLOAD.case(WARM, "load() of a file that has not changed")
def warm(sizes: Sizes, meter: Meter) -> Record:
    os.environ["FLAT_CACHE"] = str(Path("cache").absolute())
    return _repeat(sizes, meter, _load)
