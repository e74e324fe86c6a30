"""Hostile conditions: none reaches Python, none runs away, each fails with an `ExpressionError` at most."""

from __future__ import annotations

import copy
import tracemalloc
from typing import Any

import pytest
from attacks import ATTRIBUTES, REFUSED

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
    assert len(set(ATTRIBUTES)) + len(set(REFUSED)) >= 120


def test_attributes_are_not_there() -> None:
    scope = {"context": {**_context(), "bait": Bait()}}
    for source in ATTRIBUTES:
        assert Condition(source).test(scope) is False, source
    assert not Bait.reached


@pytest.mark.parametrize("source", REFUSED, ids=range(len(REFUSED)))
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
