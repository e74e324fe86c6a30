"""Where a value is in the journal of an S3 store, `entry:offset:length`, and many of those in little space."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, MutableSequence, Sequence
from typing import Any

WIDTH = 4
"""Numbers that a pointer takes, with its mark."""


def pointer(entry: int, where: Sequence[int]) -> bytes:
    return b"%d:%d:%d" % (entry, where[0], where[1])


def pointed(value: bytes) -> tuple[int, int, int]:
    """Entry, offset and length."""
    entry, offset, length = value.split(b":")
    return int(entry), int(offset), int(length)


class Pointers(MutableSequence[tuple[Any, bytes]]):
    """Pointers, each with a number beside it. It only grows: `Pointers(numbers)`.

    A store keeps the whole history of all executions, and a replica a pointer for every step of it: 32 bytes instead of
    some 200.
    """

    __slots__ = ("_numbers",)

    def __init__(self, numbers: Iterable[int] = ()) -> None:
        self._numbers = array("Q", numbers)

    def __len__(self) -> int:
        return len(self._numbers) // WIDTH

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._at(WIDTH * index)

    def __iter__(self) -> Iterator[tuple[Any, bytes]]:
        return map(self._at, range(0, len(self._numbers), WIDTH))

    def _at(self, place: int) -> tuple[Any, bytes]:
        mark, entry, offset, length = self._numbers[place : place + WIDTH]
        return mark, pointer(entry, (offset, length))

    def append(self, value: tuple[Any, bytes]) -> None:
        mark, where = value
        self._numbers.extend((mark, *pointed(where)))

    def insert(self, index: int, value: tuple[Any, bytes]) -> None:
        raise TypeError("history only grows")

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError("history stays as it is")

    def __delitem__(self, index: Any) -> None:
        raise TypeError("history stays as it is")

    def entries(self) -> Sequence[int]:
        return self._numbers[1::WIDTH]

    def numbers(self) -> list[int]:
        return self._numbers.tolist()
