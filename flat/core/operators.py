"""Arithmetic and comparison on plain data, with the bounds that Python's own operators lack.

Conditions and templates share these functions. A single operator may otherwise ask for any amount of
memory (`'a' * 10**9`, `2 ** 10**9`), so the size of a result is computed before the result is. What
cannot be done raises `Refusal`, which knows which operand is to blame; the caller adds the place.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sized
from typing import Any

MAX_INT_BITS = 4096
"""Whole numbers beyond 1,200 digits are refused."""

LEFT, RIGHT = "\x00", "\x01"
"""Stand for the operands in a refusal's message, until `Refusal.naming` says what they are called."""


class Refusal(Exception):
    """An operator will not be applied to these operands. `culprit` is the operand's number, if one is."""

    def __init__(self, message: str, hint: str = "", culprit: int | None = None) -> None:
        super().__init__(message)
        self.message, self.hint, self.culprit = message, hint, culprit

    def naming(self, left: str, right: str = "") -> str:
        """The message, with names for the operands."""
        return self.message.replace(LEFT, left).replace(RIGHT, right)


def describe(value: Any) -> str:
    """What a value is, in an author's words: `text ('9')`, `a number`, `a list`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"text ({value!r})" if len(value) <= 24 else f"text ({value[:24]!r}…)"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return f"of type {type(value).__name__}"


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def ordered(compare: Callable[[Any, Any], Any], left: Any, right: Any) -> bool:
    """`<`, `<=`, `>`, `>=`: null is never before or after anything; text and numbers do not mix."""
    if left is None or right is None:
        return False
    try:
        return bool(compare(left, right))
    except TypeError:
        culprit = 0 if isinstance(left, str) or not is_number(left) else 1
        raise Refusal(f"{LEFT} is {describe(left)}, {RIGHT} is {describe(right)}", culprit=culprit) from None


def contains(container: Any, item: Any) -> bool:
    """`item in container`; null contains nothing."""
    if container is None:
        return False
    if isinstance(container, str):
        if not isinstance(item, str):
            message = (
                f"{RIGHT} is text, so {LEFT} must be text to be looked for in it, but is {describe(item)}"
            )
            raise Refusal(message, culprit=0)
        return item in container
    if isinstance(container, list | tuple | set | frozenset | range):
        try:
            return item in container
        except TypeError:
            return False
    if isinstance(container, Mapping):
        try:
            return item in container
        except TypeError:
            return False
    raise Refusal(f"{RIGHT} is {describe(container)}; `in` needs a list, a mapping or text", culprit=1)


def add(left: Any, right: Any, *, limit: int) -> Any:
    """`+`: numbers add; text joins text and a list joins a list, up to `limit` characters or elements."""
    if is_number(left) and is_number(right):
        return _bounded(left + right)
    if isinstance(left, str) and isinstance(right, str):
        _require_size(len(left) + len(right), limit)
        return left + right
    for kind in (list, tuple):
        if isinstance(left, kind) and isinstance(right, kind):
            _require_size(len(left) + len(right), limit)
            joined: Any = left + right  # type: ignore[operator]  # both are of one kind
            return joined
    raise _mismatch("+", left, right)


def multiply(left: Any, right: Any, *, limit: int) -> Any:
    """`*`: numbers multiply; text or a list repeats, up to `limit` characters or elements in all."""
    if is_number(left) and is_number(right):
        if isinstance(left, int) and isinstance(right, int):
            _require_bits(left.bit_length() + right.bit_length() - 1)
        return left * right
    for body, times in ((left, right), (right, left)):
        if isinstance(body, str | list | tuple) and isinstance(times, int):
            weight = len(body) if isinstance(body, str) else weigh(body, limit)
            _require_size(weight * max(0, int(times)), limit)
            return body * times
    raise _mismatch("*", left, right)


def power(left: Any, right: Any) -> Any:
    """`**` on numbers, refused when the result would be enormous."""
    if not (is_number(left) and is_number(right)):
        raise _mismatch("**", left, right)
    if isinstance(left, int) and isinstance(right, int):
        if right >= 0:
            _require_bits(left.bit_length() * right)
        elif left.bit_length() > 1000 or right.bit_length() > 1000:
            raise Refusal("the number is too large")
    return left**right


def arithmetic(symbol: str, left: Any, right: Any) -> Any:
    """`-`, `/`, `//` and `%` on numbers."""
    if not (is_number(left) and is_number(right)):
        raise _mismatch(symbol, left, right)
    if symbol != "-" and right == 0:
        raise Refusal(f"division by zero: {RIGHT} is 0", culprit=1)
    try:
        return _bounded(_ARITHMETIC[symbol](left, right))
    except OverflowError:
        raise Refusal("the number is too large") from None


_ARITHMETIC: Mapping[str, Callable[[Any, Any], Any]] = {
    "-": operator.sub,
    "/": operator.truediv,
    "//": operator.floordiv,
    "%": operator.mod,
}


def negate(value: Any) -> Any:
    if not is_number(value):
        raise Refusal(f"{LEFT} is {describe(value)}; only a number can be negated", culprit=0)
    return -value


def weigh(value: Any, limit: int) -> int:
    """Characters in a value at any depth, and 4 for each element; stops counting soon after `limit`."""
    if isinstance(value, str):
        return len(value)
    total, stack = 1, [value]
    while stack and total <= limit:
        top = stack.pop()
        items = top.values() if isinstance(top, Mapping) else top if isinstance(top, list | tuple) else ()
        total += 4 * len(items)
        if total > limit:
            break
        for item in items:
            if isinstance(item, str):
                total += len(item)
            elif isinstance(item, list | tuple | Mapping):
                stack.append(item)
    return total


def _bounded(value: Any) -> Any:
    if isinstance(value, int):
        _require_bits(value.bit_length())
    return value


def _require_bits(bits: int) -> None:
    if bits > MAX_INT_BITS:
        raise Refusal(f"the number is too large (limit: {MAX_INT_BITS} bits)")


def _require_size(size: int, limit: int) -> None:
    if size > limit:
        raise Refusal(f"the result would hold {size:,} characters or elements (limit: {limit:,})")


def _mismatch(symbol: str, left: Any, right: Any) -> Refusal:
    hint = ""
    if isinstance(left, str) and symbol == "%":
        hint = "text formatting with `%` is not available here"
    elif isinstance(left, Sized) != isinstance(right, Sized) and symbol == "+":
        hint = "`+` adds numbers, or joins text to text and a list to a list"
    culprit = next((n for n, v in enumerate((left, right)) if not is_number(v)), None)
    message = f"`{symbol}` does not apply: {LEFT} is {describe(left)}, {RIGHT} is {describe(right)}"
    return Refusal(message, hint, culprit)
