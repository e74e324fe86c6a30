"""The operators of templates: those of conditions, plus `%` on text, each paid for from the rendering's
budget."""

from __future__ import annotations

import re
from typing import Any

from jinja2.runtime import Undefined

from flat.core import operators
from flat.core.budget import ELEMENT, Budget
from flat.core.operators import Refusal

_SPEC = re.compile(
    r"%(?:\((?P<name>[^)]*)\))?[#0\- +]*(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?[hlL]?(?P<kind>.)?",
    re.S,
)


def refuse_undefined(value: Any) -> None:
    """Raise the undefined value's own error, if it is one. In lenient templates plain use gives nothing
    instead."""
    if isinstance(value, Undefined):
        str(value)


def apply(budget: Budget, symbol: str, left: Any, right: Any) -> Any:
    """`left symbol right`."""
    for value in (left, right):
        if isinstance(value, Undefined):
            value._fail_with_undefined_error()
    if symbol == "+":
        return add(budget, left, right)
    if symbol == "*":
        return _multiply(budget, left, right)
    if symbol == "**":
        return operators.power(left, right)
    if symbol == "%" and isinstance(left, str):
        return format_text(budget, left, right)
    return operators.arithmetic(symbol, left, right)


def add(budget: Budget, left: Any, right: Any) -> Any:
    if isinstance(left, Undefined) or isinstance(right, Undefined):
        refuse_undefined(left)
        refuse_undefined(right)
    if isinstance(left, str) and isinstance(right, str):
        budget.produce(len(left) + len(right))
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        budget.weigh((left, right))
        budget.elements(len(left) + len(right))
    return operators.add(left, right, limit=budget.limits.volume)


def _multiply(budget: Budget, left: Any, right: Any) -> Any:
    for body, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(body, str):
            budget.produce(len(body) * max(0, times))
        elif isinstance(times, int) and isinstance(body, list | tuple):
            budget.elements(operators.weigh(body, budget.limits.volume // ELEMENT) * max(0, times))
    return operators.multiply(left, right, limit=budget.limits.volume)


def format_text(budget: Budget, text: str, values: Any) -> str:
    """`text % values`, with widths and precisions in bounds and the result paid for beforehand."""
    specs = 0
    for found in _SPEC.finditer(text):
        specs += 1
        for size in (found["width"], found["precision"]):
            if size == "*":
                raise Refusal("a width taken from the values (`*`) is not available")
            if size:
                if len(size) > 9:
                    raise Refusal(f"{size[:12]}… is too wide (limit: {budget.limits.width:,})")
                budget.width(int(size))
                budget.produce(int(size))
    parts = (
        values.values() if isinstance(values, dict) else values if isinstance(values, tuple) else (values,)
    )
    for part in parts:
        refuse_undefined(part)
    weight = budget.weigh(values)
    budget.produce(len(text) + (specs * weight if isinstance(values, dict) else weight))
    result = str(text % values)
    budget.produce(max(0, len(result) - len(text) - weight))
    return result
