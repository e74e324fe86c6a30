"""CEL conditions that would take for ever, or all memory: each is stopped, or is small work after all."""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import sys

import pytest
from attacks import REFUSED, run_in_a_child

from flat.core.cel import CelCondition
from flat.errors import ExpressionError

DOUBLE = ".map(a, a + a)"
TWICE = ".map(a, [a, a])"
ITEMS = "context.items"

RUNAWAYS = (
    "('xxxxxxxxxx'" + " + 'xxxxxxxxxx'" * 300 + ") == ''", "(" * 5000 + "true" + ")" * 5000, "!" * 9000 + "true",
    "-" * 9000 + "1 == 1", "[" * 3000 + "]" * 3000 + " == []", "{1:" * 2000 + "1" + "}" * 2000 + " == {}",
    "1" + " + 1" * 2400 + " > 0", "context" + ".a" * 4000 + " == 1", "context" + "[0]" * 3000 + " == 1",
    "true ? " * 1200 + "true" + " : false" * 1200, "size(" * 1600 + "'a'" + ")" * 1600 + " == 1",
    " || ".join(["false"] * 1100), " || ".join(["context.text == 'y'"] * 400), " && ".join(["context.text.matches('(a*)*b') == false"] * 200),
    "['x']" + DOUBLE * 15 + "[0] == ''", "['xxxxxxxxxxxx']" + DOUBLE * 16 + ".size() > 0", "[[1, 2]]" + DOUBLE * 16 + ".size() > 0",
    "[1]" + TWICE * 16 + " == [1]", "[1]" + TWICE * 8 + " == [1]" + TWICE * 8, "[1]" + TWICE * 30 + " == []",
    "[1].map(a, [" + ", ".join(["a"] * 60) + "]).map(a, [" + ", ".join(["a"] * 60) + "]).map(a, [" + ", ".join(["a"] * 60) + "]) == []",
    "[{'k': 'x'}].map(a, {'l': a, 'r': a})" + ".map(a, {'l': a, 'r': a})" * 12 + " == []",
    f"{ITEMS}.map(x, context.text + context.text).size() > 0", f"{ITEMS}.map(x, context.text + context.text).exists(x, x == '')",
    f"{ITEMS}.map(x, string(context.text)).size() == 0", f"{ITEMS}.map(x, bytes(context.text)).size() == 0",
    f"{ITEMS}.map(x, {ITEMS}).size() == 0", f"{ITEMS}.map(x, {ITEMS} + {ITEMS}).size() == 0", f"{ITEMS}.exists(x, {ITEMS} != {ITEMS})",
    f"{ITEMS}.exists(x, (x - 900000) in {ITEMS})", f"{ITEMS}.exists(x, context.text.matches('(a*)*b'))", f"{ITEMS}.all(x, context.text.size() == 0)",
    f"{ITEMS}.all(a, {ITEMS}.all(b, {ITEMS}.all(c, true)))", f"{ITEMS}.exists(a, {ITEMS}.exists(b, a + b == -1))",
    f"{ITEMS}.map(a, {ITEMS}.map(b, [a, b])).size() == 0", f"{ITEMS}.filter(a, {ITEMS}.filter(b, b == a).size() > 1).size() == 1",
    f"{ITEMS}.map(x, [" + ", ".join(["0"] * 2000) + "]).size() == 0", "context.text.matches('((a{1000}){1000}){1000}')",
    "context.text.matches('(a+)+$')", "context.text.matches('(.*a){30}')", "'" + "x" * 9990 + "' == ''", "x" * 10_001, "9" * 9000 + " == 1",
    "context.text + context.text + context.text + context.text == ''", "context.big == context.big", "context.big.exists(k, context.big[k] == 'y')",
    "context.exists(k, context[k] == context)", "context.deep == context.deep", "context.wide.all(l, l.all(x, l.all(y, x == y)))",
    "duration('9999999999999999h') > duration('0s')", "timestamp('9999-12-31T23:59:59Z') + duration('99999999h') > now",
    "9223372036854775807 * 9223372036854775807 > 0", "int('9' + '9') == 99 && 1e308 * 10.0 > 1.0 && double('1e999') > 0.0 ? false : 1 / 0 == 1",
)  # fmt: skip

_CHILD = """
import json, resource, sys, time
from flat.core.cel import CelCondition
from flat.errors import ExpressionError
sources = json.load(sys.stdin)
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
deep = []
for _ in range(50_000):
    deep = [deep]
context = {
    "text": "a" * 200_000 + "!", "items": list(range(9000)), "deep": deep, "wide": [list(range(300))] * 300,
    "big": {str(n): "x" * 300 for n in range(30_000)},
}
CelCondition("context.text.size() == 1").test({"context": context}, 0.0)
base = peak()
for source in sources:
    began, error = time.process_time(), ""
    try:
        CelCondition(source).test({"context": context}, 0.0)
    except ExpressionError as caught:
        error = caught.message
    print(json.dumps([time.process_time() - began, peak() - base, error]), flush=True)
"""


def test_there_are_enough_attacks() -> None:
    assert len(set(RUNAWAYS)) >= 40


@pytest.mark.skipif(sys.platform == "win32", reason="needs the resource module")
def test_no_condition_runs_away() -> None:
    measured = run_in_a_child(_CHILD, RUNAWAYS)
    slow = [(s[:80], seconds) for s, (seconds, *_) in zip(RUNAWAYS, measured, strict=True) if seconds > 3]
    assert slow == []
    assert max(megabytes for _, megabytes, _ in measured) < 64
    assert sum(bool(error) for *_, error in measured) >= 40


@pytest.mark.parametrize("source", REFUSED, ids=range(len(REFUSED)))
def test_what_the_other_language_refuses_does_no_harm_here(source: str) -> None:
    context = {"s": "text", "n": 5, "l": [1, 2, 3], "d": {"a": 1}, "big": "x" * 200_000}
    try:
        assert CelCondition(source).test({"context": context}, 0.0) in (True, False)
    except ExpressionError as error:
        shown = str(error)
        assert len(shown) < 20_000


def test_ordinary_loops_over_large_values_are_allowed() -> None:
    context = {
        "tickets": [{"id": n, "tags": ["a", "b"], "title": f"ticket {n}"} for n in range(800)],
        "done": list(range(800)), "text": "x" * 3_000_000, "name": "ticket",
    }  # fmt: skip
    for source in (
        "context.tickets.all(t, t.id in context.done)",
        "context.tickets.exists(t, t.title == context.name + ' 799')",
        "context.tickets.filter(t, t.tags.exists(x, x == 'a')).size() == 800",
        "context.tickets.map(t, t.title + '!').exists(t, t == 'ticket 5!')",
        "context.text.size() + 1 > 5 && context.text.startsWith('x')",
        "context.tickets.filter(t, t.id > 700).map(t, t.id).all(n, n > 700)",
    ):
        assert CelCondition(source).test({"context": context}), source
