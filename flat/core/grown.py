"""A list that remembers which list it grew from, so that only what was added needs to be stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class Grown(list[Any]):
    """The items of an older list, with more behind them.

    The older list is kept, and lets go of the one before it: so two lists are alive and not a chain of them.
    Its identity alone would not do, because another list may come to lie at the same address.
    """

    __slots__ = ("_base",)

    def __init__(self, base: list[Any], more: Iterable[Any]) -> None:
        super().__init__(base)
        self.extend(more)
        self._base: list[Any] | None = base
        if type(base) is Grown:
            base._base = None

    def grew_from(self, other: object) -> bool:
        """Whether `other` is the very list that this one continues."""
        return other is self._base

    def __reduce__(self) -> tuple[type[list[Any]], tuple[list[Any]]]:
        return (list, (list(self),))
