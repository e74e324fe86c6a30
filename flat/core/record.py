"""`record`: an immutable dataclass that is cheap to make.

Type checkers see a frozen dataclass and refuse every assignment. At run time it is a plain one with slots,
because a frozen `__init__` costs seven times as much (1.25 µs against 0.17 µs for twelve fields), and the
engine makes several of these per step. Comparing, hashing and printing are shared functions and not generated
per class: generating them is most of what a dataclass costs when its module is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")


@overload
def record(cls: type[T], /) -> type[T]: ...
@overload
def record(*, kw_only: bool = False) -> Callable[[type[T]], type[T]]: ...
@dataclass_transform(frozen_default=True)
def record(cls: type[T] | None = None, /, *, kw_only: bool = False) -> Any:
    """Make the class a record."""

    def make(cls: type[T]) -> type[T]:
        made = dataclass(slots=True, eq=False, repr=False, kw_only=kw_only)(cls)
        made.__eq__, made.__hash__, made.__repr__ = _equal, _hashed, _shown  # type: ignore[method-assign]
        return made

    return make if cls is None else make(cls)


def _values(record: Any) -> tuple[Any, ...]:
    return tuple(getattr(record, name) for name in record.__slots__)


def _equal(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(other) is type(self) else NotImplemented


def _hashed(self: Any) -> int:
    return hash(_values(self))


def _shown(self: Any) -> str:
    shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__)
    return f"{type(self).__name__}({shown})"
