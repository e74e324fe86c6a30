"""The purse of one rendering: what it may still do. See `flat.core.limits` for the amounts."""

from __future__ import annotations

from typing import Any

from flat.core.limits import Limits
from flat.core.operators import weigh

ELEMENT = 32
"""What an element of a new list counts for in characters, roughly its memory."""
GRAIN = 64
"""Characters or elements that can be looked through for the price of one step."""


class Exhausted(Exception):
    """A template asked for more than its limits allow."""


class Budget:
    """Steps and characters left. Each method pays for one thing, before it is done where that can be known."""

    __slots__ = ("limits", "steps", "volume")

    def __init__(self, limits: Limits) -> None:
        self.limits, self.steps, self.volume = limits, limits.steps, limits.volume

    def work(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise Exhausted(f"the template takes more than {self.limits.steps:,} steps; is a loop too long?")

    def produce(self, characters: int) -> None:
        self.volume -= characters
        if self.volume < 0:
            raise Exhausted(f"the template produces more than {self.limits.volume:,} characters on its way")

    def elements(self, count: int) -> None:
        self.produce(count * ELEMENT)
        self.work(count)

    def look(self, value: Any, price: int = 1) -> None:
        """Pay for looking through a value once."""
        if isinstance(value, str | list | tuple | dict | range):
            self.work(1 + len(value) * price // GRAIN)

    def weigh(self, value: Any) -> int:
        """Pay for walking a value to its leaves, and tell its size."""
        size = weigh(value, self.steps * GRAIN)
        self.work(1 + size // GRAIN)
        return size
