"""The purse of one rendering: what it may still do. See `flat.core.limits` for the amounts.

Everything here is paid for before it is done where the size can be known beforehand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flat.core.limits import Limits
from flat.core.operators import Refusal, weigh

ELEMENT = 32
"""What an element of a new list counts for in characters, roughly its memory."""
GRAIN = 64
"""Characters or elements that can be looked through for the price of one step."""

PACE = 4
"""Characters that can be walked for the price of one step; an element counts for 4."""


class Budget:
    """Steps and characters left; whatever would overdraw them raises `Refusal`."""

    __slots__ = ("limits", "steps", "volume")

    def __init__(self, limits: Limits) -> None:
        self.limits, self.steps, self.volume = limits, limits.steps, limits.volume

    def work(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise Refusal(f"the template takes more than {self.limits.steps:,} steps", "is a loop too long?")

    def produce(self, characters: int) -> None:
        self.volume -= characters
        if self.volume < 0:
            raise Refusal(f"the template makes more than {self.limits.volume:,} characters on its way")

    def elements(self, count: int) -> None:
        """Pay for a list of so many elements."""
        self.produce(count * ELEMENT)
        self.work(count)

    def look(self, value: Any, price: int = 1) -> None:
        """Pay for looking through a value once, at so many 64ths of a step for a character or element."""
        if isinstance(value, str | list | tuple | dict | range):
            self.work(1 + len(value) * price // GRAIN)

    def compare(self, value: Any) -> None:
        """Pay for comparing a value with another."""
        if isinstance(value, list | tuple | dict):
            self.walk(value)
        else:
            self.look(value)

    def walk(self, value: Any) -> int:
        """Pay for going through a value to its leaves, and tell its size in characters and elements."""
        return self._walked(value, self.steps * PACE)

    def _walked(self, value: Any, most: int) -> int:
        size = weigh(value, most)
        self.work(1 + size // PACE)
        return size

    def weigh(self, value: Any) -> int:
        """`walk`, and refuse a value that could not be written."""
        size = self._walked(value, min(self.limits.output, self.steps * PACE))
        if size > self.limits.output:
            raise Refusal(f"a value holds more than {self.limits.output:,} characters and elements")
        return size

    def width(self, columns: Any) -> None:
        """Refuse a padding, an indent or a number of columns beyond reason."""
        if isinstance(columns, int) and abs(columns) > self.limits.width:
            raise Refusal(f"{columns:,} is too wide (limit: {self.limits.width:,})")

    def text(self, value: Any) -> str:
        """How a value reads in a text: lists and mappings as JSON, anything else by `str`."""
        if isinstance(value, str | int | float | None):
            text = str(value)
        elif isinstance(value, list | Mapping):
            self.weigh(value)
            text = json.dumps(value, default=as_json)
        else:
            self.weigh(value)
            text = str(value)
        self.produce(len(text))
        return text


def as_json(value: Any) -> Any:
    """What `json.dumps` cannot write by itself: read-only mappings can be, anything else is refused."""
    if isinstance(value, Mapping):
        return dict(value)
    raise Refusal(f"a {type(value).__name__} cannot be written as JSON")
