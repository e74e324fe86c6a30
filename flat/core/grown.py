"""A list that remembers which list it grew from, so that only what was added needs to be stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Grown(list[Any]):
    """The items of an older list, with more behind them.

    Only the identity of the older list is kept, not the list: a chain of references would keep every
    intermediate list alive. That is sound as long as the list asked about is alive since before this one was
    made, which holds for the snapshot that a delta is taken from.
    """

    __slots__ = ("_base",)

    def __init__(self, base: list[Any], more: Iterable[Any]) -> None:
        super().__init__(base)
        self.extend(more)
        self._base = id(base)

    def grew_from(self, other: object) -> bool:
        """Whether `other` is the very list that this one continues."""
        return id(other) == self._base

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return (list, (list(self),))
