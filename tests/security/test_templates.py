"""Hostile templates and hostile values: nothing runs, nothing changes, nothing leaks, nothing runs away."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
from attacks import LEAKS, RUNAWAYS, SSTI, Bait, run_in_a_child

from flat.core.template import Template, compile_text
from flat.errors import ExpressionError


def _scope() -> dict[str, Any]:
    return {
        "context": {
            "s": "text", "l": [1, 2, 3], "d": {"a": 1, "secret_of_nobody": 2}, "n": 5, "f": 1.5, "x": None,
            "b": b"bytes", "set": {1}, "bait": Bait(), "rows": [{"n": 1}, {"n": 2}],
        },
        "input": {"items": [1]},
    }  # fmt: skip


def _harmless(source: str, lenient: bool) -> None:
    scope = _scope()
    bait = scope["context"]["bait"]
    before = {key: copy.deepcopy(value) for key, value in scope["context"].items() if key != "bait"}
    try:
        result = str(Template(source, lenient=lenient).render(scope))
    except ExpressionError as error:
        result = str(error).replace(source, "")
    shown = [leak for leak in LEAKS if leak in result]
    assert shown == []
    assert not bait.fired
    assert {key: value for key, value in scope["context"].items() if key != "bait"} == before
    assert scope["input"] == {"items": [1]}


def test_there_are_enough_attacks() -> None:
    assert len(set(SSTI)) >= 120
    assert len(set(RUNAWAYS)) >= 40


@pytest.mark.parametrize("lenient", [False, True])
def test_no_template_reaches_python(lenient: bool) -> None:
    for source in SSTI:
        _harmless(source, lenient)


def test_no_template_reaches_python_where_types_are_kept() -> None:
    for source in SSTI:
        scope = _scope()
        try:
            value = Template(source, native=True).render(scope)
        except ExpressionError:
            continue
        assert isinstance(value, str | int | float | list | dict | tuple | None | Bait | bytes | set), source
        assert not scope["context"]["bait"].fired


@pytest.mark.parametrize(
    "carrier",
    ["context.v", "{{ context.v }}", "{{ context.v ~ '' }}", "{{ context.v | upper | lower | string }}",
     "{% for x in [context.v] %}{{ x }}{% endfor %}", "{% set x %}{{ context.v }}{% endset %}{{ x }}",
     "{% macro m(x) %}{{ x }}{% endmacro %}{{ m(context.v) }}", "{{ [context.v] | join }}",
     "{{ '%s' | format(context.v) }}"],
)  # fmt: skip
def test_a_value_that_looks_like_a_template_stays_text(carrier: str) -> None:
    template = Template(carrier)
    for source in SSTI:
        expected = source.lower() if "lower" in carrier else source
        assert template.render({"context": {"v": source}}) == expected


def test_a_value_in_a_prompt_stays_text() -> None:
    template = compile_text("Say: {{ context.v }}\n")
    for source in SSTI:
        assert template.render({"context": {"v": source}}) == f"Say: {source}"


_CHILD = """
import json, resource, sys, time
from flat.core.template import Template
from flat.errors import ExpressionError
import flat.core.sandbox
sources = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (300, 300))
scope = {"context": {"x": 1}}
base = peak()
for source in sources:
    began, error = time.process_time(), ""
    try:
        size = len(Template(source).render(scope))
    except ExpressionError as caught:
        size, error = 0, caught.message
    grown = peak() - base
    print(json.dumps([time.process_time() - began, grown, size, error]), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_no_template_runs_away() -> None:
    measured = run_in_a_child(_CHILD, RUNAWAYS)
    slow = [(s[:80], seconds) for s, (seconds, *_) in zip(RUNAWAYS, measured, strict=True) if seconds > 3]
    assert slow == []
    assert max(megabytes for _, megabytes, *_ in measured) < 64
    assert max(size for _, _, size, _ in measured) <= 2 * 1024 * 1024
    assert sum(bool(error) for *_, error in measured) >= 40
