"""Values of a context to what the CEL library takes: plain containers, 64-bit numbers, protobuf times.

Only what a condition reads is converted, at each test: a context changes between any two of them. What CEL cannot
hold is refused with its path. Times are recognised by what they can do, since nothing here may import a clock.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

from flat.core.cel_source import ELEMENT
from flat.core.operators import describe
from flat.errors import ExpressionError

MAX_DEPTH = 100
ENTRY = 64
"""Bytes that an entry of a mapping roughly takes, besides its own."""


class Conversion:
    """Converts values, and takes their measure on the way."""

    def __init__(self) -> None:
        self.weight = 0
        """Bytes, roughly, of everything."""
        self.longest = 0
        """Elements of the longest list or mapping."""
        self.largest = 0
        """Bytes of the largest single thing that a loop over some value could come upon."""

    def value(self, value: Any, path: str, depth: int = 0) -> Any:
        """The value for CEL. Raises `ExpressionError` naming the path of what CEL cannot hold."""
        kind = type(value)
        if kind is str:
            return self.text(value, depth)
        if kind is bool or kind is float or value is None:
            return value
        if kind is int:
            return _whole(value, path)
        if depth > MAX_DEPTH:
            raise _refused(path, f"is nested more than {MAX_DEPTH} levels deep")
        if kind is dict or isinstance(value, Mapping):
            return self.mapping(value, path, depth)
        if isinstance(value, list | tuple):
            return self.list(value, path, depth)
        return self.other(value, path, depth)

    def text(self, value: str, depth: int) -> str:
        self._measure(len(value), depth)
        if not value.isascii():
            # Lone surrogates, which models do produce, are no Unicode text; the library cannot take them.
            return value.encode("utf-8", "replace").decode()
        return value

    def list(self, value: Any, path: str, depth: int) -> list[Any]:
        self.longest = max(self.longest, len(value))
        self._measure(len(value) * ELEMENT, depth)
        return [self.value(item, f"{path}[{n}]", depth + 1) for n, item in enumerate(value)]

    def mapping(self, value: Mapping[Any, Any], path: str, depth: int) -> dict[Any, Any]:
        self.longest = max(self.longest, len(value))
        self._measure(len(value) * ENTRY, depth)
        converted: dict[Any, Any] = {}
        for key, item in value.items():
            if not isinstance(key, str | int):
                raise _refused(path, f"has the key {key!r}: keys are text, whole numbers or booleans in CEL")
            name = self.text(str(key), depth + 1) if isinstance(key, str) else _whole(key, path)
            converted[name] = self.value(item, f"{path}.{key}", depth + 1)
        return converted

    def other(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, Enum):
            return self.value(value.value, path, depth + 1)
        if isinstance(value, bytes | bytearray | memoryview):
            self._measure(len(value), depth)
            return bytes(value)
        if isinstance(value, set | frozenset):
            return self.list(sorted(value, key=lambda v: (type(v).__name__, repr(v))), path, depth)
        if isinstance(value, str):
            return self.text(str.__str__(value), depth)
        if isinstance(value, int):
            return _whole(int(value), path)
        for plain in (_as_time, _as_fields, _as_number, _as_text):
            if (converted := plain(value)) is not None:
                again = isinstance(converted, str | dict)
                return self.value(converted, path, depth + 1) if again else converted
        raise _refused(path, f"is {describe(value)}, which CEL cannot hold")

    def _measure(self, size: int, depth: int) -> None:
        self.weight += size
        if depth:
            self.largest = max(self.largest, size)


def time_of(seconds: float) -> Any:
    """A CEL timestamp for seconds since 1970 (UTC), to the microsecond."""
    micros = round(seconds * 1_000_000)
    return _timestamp()(seconds=micros // 1_000_000, nanos=micros % 1_000_000 * 1000)


@cache
def _timestamp() -> Any:
    from google.protobuf.timestamp_pb2 import Timestamp

    return Timestamp


def _as_time(value: Any) -> Any:
    if callable(getattr(value, "utctimetuple", None)):  # a datetime; without an offset it counts as UTC
        time = _timestamp()()
        time.FromDatetime(value)
        return time
    if callable(getattr(value, "total_seconds", None)):  # a timedelta
        from google.protobuf.duration_pb2 import Duration

        length = Duration()
        length.FromTimedelta(value)
        return length
    return None


def _as_fields(value: Any) -> dict[str, Any] | None:
    """The fields of a pydantic model."""
    fields = getattr(type(value), "model_fields", None)
    return {name: getattr(value, name) for name in fields} if isinstance(fields, Mapping) else None


def _as_number(value: Any) -> float | None:
    """A decimal number."""
    return float(value) if callable(getattr(value, "as_integer_ratio", None)) else None


def _as_text(value: Any) -> str | None:
    """Dates and times of day in ISO form, paths and UUIDs: what has one obvious text."""
    if callable(getattr(value, "isoformat", None)):
        return str(value.isoformat())
    if callable(getattr(value, "__fspath__", None)):
        return str(value.__fspath__())
    return str(value) if type(value).__module__ == "uuid" else None


def _whole(value: int, path: str) -> int:
    if -(2**63) <= value < 2**64:
        return value
    raise _refused(path, "is a whole number of more than 64 bits, which CEL cannot hold")


def _refused(path: str, said: str) -> ExpressionError:
    return ExpressionError(f"`{path}` {said}")
