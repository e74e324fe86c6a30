"""Rows in columns, as wide as the terminal; as wide as they are where nobody looks at them."""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Sequence

GAP = "  "
LEAST = 8
"""No column is cut to less."""


def room() -> int | None:
    """How many characters a line may have: the terminal's width, or None in a pipe or a file."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def width_of(text: str) -> int:
    """How many places a text takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def cut(text: str, width: int | None) -> str:
    """The text in at most `width` places."""
    if width is None or width_of(text) <= width:
        return text
    kept, used = "", 0
    for c in text:
        used += width_of(c)
        if used > width - 1:
            break
        kept += c
    return kept + "…"


def table(rows: Sequence[Sequence[str]], width: int | None, *, spare: Sequence[int] = ()) -> list[str]:
    """The rows as lines, the first of them being the heads. Where it is narrow, columns in `spare` go first.

    Then the widest columns are cut. Empty columns are left out.
    """
    columns = [i for i in range(len(rows[0])) if any(row[i] for row in rows[1:])]
    widths = {i: max(width_of(row[i]) for row in rows) for i in columns}
    if width is not None:
        for i in spare:
            if i in widths and _total(widths) > width:
                del widths[i]
        while (over := _total(widths) - width) > 0 and max(widths.values(), default=0) > LEAST:
            widest = max(widths, key=lambda i: widths[i])
            others = max((w for i, w in widths.items() if i != widest), default=0)
            widths[widest] = max(LEAST, min(widths[widest] - 1, max(others, widths[widest] - over)))
    lines = []
    for row in rows:
        cells = [cut(row[i], widths[i]) for i in widths]
        padded = [c + " " * (w - width_of(c)) for c, w in zip(cells, widths.values(), strict=True)]
        lines.append(cut(GAP.join(padded).rstrip(), width))
    return lines


def _total(widths: dict[int, int]) -> int:
    return sum(widths.values()) + len(GAP) * (len(widths) - 1)
