"""A YAML or JSON text as plain data that knows where each value was written.

Values are plain dicts, lists and scalars. Positions stand in a side table by the identity of the container,
so that reading a value costs nothing extra. How a text becomes a document is in `parse`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from flat.errors import Location, Problem

Step: TypeAlias = str | int
"""A key of a mapping or an index of a list, on the way to a value."""

Mark: TypeAlias = tuple[int, int, int, int]
"""Line and column of a key (or list item), then of its value; all count from 0."""

_BREAK = re.compile(r"\r\n|[\n\r\x85\u2028\u2029]")
_PROPERTIES = re.compile(r"(?:[&!][^\s]*\s+)+")
_ESCAPE = re.compile(r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|\r?\n[ \t]*|.)", re.DOTALL)


@dataclass(eq=False)
class Document:
    """A parsed file: `value`, and where everything in it is."""

    value: Any
    file: str = ""
    text: str = ""
    marks: Mapping[int, Mapping[Step, Mark]] = field(default_factory=dict)
    """Positions of the entries of each container, by its `id`; empty for data that came from no file."""
    problems: Sequence[Problem] = ()
    """What is doubtful but readable: duplicate keys, words that were booleans in YAML 1.1."""

    @cached_property
    def lines(self) -> list[str]:
        """The text by lines, as the parser counts them."""
        return _BREAK.split(self.text)

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *(match.end() for match in _BREAK.finditer(self.text))]

    def get(self, path: Sequence[Step], default: Any = None) -> Any:
        """The value at a path, or `default`."""
        value = self.value
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return default
        return value

    def locate(self, path: Sequence[Step], *, key: bool = False) -> Location | None:
        """The place of the value at a path, or of its key; the nearest place around it if it has none."""
        if not self.file:
            return None
        place, exact = self._mark(path)
        if place is None:
            return self.at(0, 0)
        line, column = (place[0], place[1]) if key or not exact else (place[2], place[3])
        text = str(path[-1]) if (key and exact and path) else self.get(path) if exact else None
        return self.at(line, column, self._width(line, column, text))

    def locate_in(self, path: Sequence[Step], offset: int) -> Location | None:
        """The place of a character of the text at a path, also inside quotes and block scalars."""
        place, exact = self._mark(path)
        value = self.get(path)
        if place is None or not exact or not isinstance(value, str):
            return self.locate(path)
        index = self._align(self._starts[place[2]] + place[3], value, offset)
        if index is None:
            return self.locate(path)
        before = self.text[:index]
        line = len(_BREAK.findall(before))
        return self.at(line, index - self._starts[line])

    def at(self, line: int, column: int, width: int = 1) -> Location:
        """A place by line and column that count from 0."""
        text = self.lines[line] if line < len(self.lines) else ""
        return Location(self.file, line + 1, column + 1, text, width)

    def order(self, path: Sequence[Step]) -> tuple[int, int]:
        """A sort key that puts paths in file order."""
        place, _ = self._mark(path)
        return (place[0], place[1]) if place else (0, 0)

    def _mark(self, path: Sequence[Step]) -> tuple[Mark | None, bool]:
        place: Mark | None = None
        value = self.value
        for step in path:
            entries = self.marks.get(id(value))
            if entries is None or step not in entries:
                return place, False
            place = entries[step]
            value = value[step]
        return place, True

    def _width(self, line: int, column: int, value: Any) -> int:
        if not isinstance(value, str) or not value or line >= len(self.lines):
            return 1
        rest = self.lines[line][column:]
        for shown in (value, f'"{value}"', f"'{value}'"):
            if rest.startswith(shown):
                return len(shown)
        return 1

    def _align(self, index: int, value: str, offset: int) -> int | None:
        """The place in the text of `value[offset]`: both are walked side by side from the value's start."""
        text = self.text
        if found := _PROPERTIES.match(text, index):
            index = found.end()
        opening = text[index : index + 1]
        if opening in ("|", ">"):
            end = _BREAK.search(text, index)
            index = end.end() if end else len(text)
        elif opening in ('"', "'"):
            index += 1
        position = 0
        offset = min(offset, len(value) - 1)
        while index < len(text) and offset >= 0:
            while text[index : index + 1].isspace() and not value[position].isspace():
                index += 1
            if position >= offset:
                return index
            step = self._match(index, opening, value[position])
            if step is None:
                return None
            index += step
            position += 1
        return None

    def _match(self, index: int, opening: str, wanted: str) -> int | None:
        """How many characters of the text stand for one character of the value."""
        text = self.text
        if opening == '"' and text[index] == "\\":
            found = _ESCAPE.match(text, index)
            return len(found.group()) if found else None
        if opening == "'" and text.startswith("''", index):
            return 2
        if text[index] == wanted:
            return 1
        if wanted.isspace() and text[index].isspace():
            run = index
            while run < len(text) and text[run].isspace():
                run += 1
            return run - index
        return None


def mapping(value: Any) -> Mapping[str, Any]:
    """The value if it is a mapping, else an empty one."""
    if value.__class__ is dict:  # nearly always, and far quicker to see
        return value
    return value if isinstance(value, Mapping) else {}
