"""Hostile conditions: none reaches Python, none runs away, each fails with an `ExpressionError` at most."""

# ruff: noqa: E501 - a row of a table stays on its line

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest

from flat.core.condition import Condition
from flat.errors import ExpressionError


class Bait:
    """An object that should never be in a context."""

    secret = "flat-secret-7f3a"
    reached = False

    def __getattr__(self, name: str) -> Any:
        Bait.reached = not name.startswith("__")
        raise AttributeError(name)

    def run(self) -> str:
        Bait.reached = True
        return self.secret


_ATTRIBUTES = tuple(
    f"{start}{walk} != null"
    for start in ("context.s", "context.n", "context.l", "context.bait", "context", "'x'", "(1)", "[1]", "context.d")
    for walk in (".__class__", ".__class__.__mro__", ".__init__.__globals__", ".__dict__", ".secret", ".run", ".append")
)  # fmt: skip

_REFUSED = (
    "__import__('os')", "__import__('os').system('id')", "open('/etc/passwd')", "eval('1')", "exec('1')", "().__class__()",
    "context.__class__()", "context.s.upper()", "context.l.append(4)", "context.d.update(context.d)", "context.bait.run()",
    "getattr(context, 'd')", "type(context)", "context.s['__class__']", "context.l['append']", "context.d['__class__']",
    "context.bait['secret']", "context['__class__']", "[x for x in context.l]", "(x for x in context.l)", "{1: 2}", "{1}",
    "lambda: 1", "(lambda: 1)()", "context.l[0:2]", "f'{context}'", "b'x'", "1j == 1", "...", "x := 1", "context.n = 3",
    "context.n += 1", "del context.n", "import os", "context.n; context.n", "print(1)", "os.system", "__builtins__",
    "self.x", "context if 1 else 2", "yield 1", "await context", "*context.l", "**context.d", "~context.n", "1 << 99",
    "1 @ 2", "context.n is 5", "`id`", "$(id)", "${context}", "{{ context }}", "{% if x %}", "context..n", ".context",
    "context.n.", "context.[0]", "context.l[", "context.l]", "'", '"', "\\", "'\\", "\x00", "\ud800", "context.\u200bn", "'\n'",
    "'a' * 10001 == ''", "'a' * 10**9", "'a' * 1000000000 == ''", "10000000000 * 'a' == ''", "[0] * 1000000000 == []",
    "[[0] * 9999] * 9999 == []", "([[1] * 100] * 100) == 1 and [([[1] * 50] * 50)] * 99 == 1", "context.big + context.big == ''",
    "[context.big, context.big, context.big] == 1", "9" * 1001 + " == 1", "1e9999 - 1e9999 < context.s", "9 ** 9 ** 9",
    "1" + " + 1" * 400, "(" * 200 + "1" + ")" * 200, "not " * 200 + "1", "-" * 200 + "1", "[" * 200 + "]" * 200,
    "context" + "[0]" * 400, "(1)" + ".a" * 400, "1" + " and (1" * 150 + ")" * 150, "x" * 10001, "'" + "x" * 9999 + "'" + "+1",
    "9" * 900 + " * " + "9" * 900 + " == 1", "(" * 9000, "context.l[" * 500, "1" + " < (1" * 120 + ")" * 120, "context.s * -1.5 == ''",
    "context.l[9999999999999999999999]", "context.s % context.n == 1", "'%1000000000d' % 1 == ''", "context.huge * 1.5 > 1",
    "context.huge / 3 > 1", "context.cycle == context.cycle2", "context.deep == context.deep2", "context.l < context.s",
)  # fmt: skip


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


def _context() -> dict[str, Any]:
    cycle: list[Any] = []
    cycle.append(cycle)
    other: list[Any] = []
    other.append(other)
    return {
        "s": "text", "n": 5, "l": [1, 2, 3], "d": {"a": 1}, "big": "x" * 200_000, "huge": 10**5000, "cycle": cycle,
        "cycle2": other, "deep": _nested(5000), "deep2": _nested(5000),
    }  # fmt: skip


def test_there_are_enough_attacks() -> None:
    assert len(set(_ATTRIBUTES)) + len(set(_REFUSED)) >= 120


def test_attributes_are_not_there() -> None:
    scope = {"context": {**_context(), "bait": Bait()}}
    for source in _ATTRIBUTES:
        assert Condition(source).test(scope) is False, source
    assert not Bait.reached


@pytest.mark.parametrize("source", _REFUSED, ids=range(len(_REFUSED)))
def test_hostile_conditions_are_refused(source: str) -> None:
    plain = _context()
    before = copy.deepcopy({key: plain[key] for key in ("s", "n", "l", "d")})
    tracemalloc.start()
    try:
        with pytest.raises(ExpressionError) as caught:
            Condition(source).test({"context": {**plain, "bait": Bait()}})
        assert tracemalloc.get_traced_memory()[1] < 16 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert Bait.secret not in str(caught.value)
    assert not Bait.reached
    assert {key: plain[key] for key in before} == before
    assert len(str(caught.value)) < 20_000


def test_the_largest_allowed_condition_is_small_work() -> None:
    longest = " or ".join(["'a' * 10000 == 'b' * 10000"] * 50)
    tracemalloc.start()
    assert Condition(longest).test({"context": {}}) is False
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 1024 * 1024


def test_depth_is_bounded_and_length_is_not() -> None:
    scope = {"context": {"l": [0]}}
    for source in (
        "not " * 48 + "1",
        "(" * 48 + "1" + ")" * 48,
        "-" * 40 + "1",
        "1" + " + 1" * 100,
        "[" * 48 + "]" * 48,
    ):
        assert Condition(source).test(scope) in (True, False)
    assert Condition(" or ".join(["context.x == 1"] * 500) + " or 1").test(scope)
    assert Condition(" and ".join(["context.l == [0]"] * 400)).test(scope)
    assert Condition("1" + " <= 1" * 1000).test(scope)


def test_a_whole_context_of_equal_lists_is_compared_as_python_does() -> None:
    context = {"a": [[1] * 100] * 100, "b": [[1] * 100] * 100}
    assert Condition("context.a == context.b").test({"context": context})


def test_values_that_refuse_to_compare_become_expression_errors() -> None:
    class Awkward:
        def __eq__(self, other: object) -> bool:
            raise ValueError("no")

        def __bool__(self) -> bool:
            raise ValueError("no")

        __hash__ = None  # type: ignore[assignment]

    for source in ("context.x == 1", "context.x", "not context.x", "context.x in [1]", "[context.x] == [1]"):
        with pytest.raises(ExpressionError, match="ValueError: no"):
            Condition(source).test({"context": {"x": Awkward()}})
