"""How much a template may do. The bounds are counts, not seconds, so that a run gives the same answer
anywhere."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """What one rendering of a template may use."""

    output: int = 2 * 1024 * 1024
    """Characters of the result."""
    volume: int = 6 * 1024 * 1024
    """Characters produced on the way, by filters, operators and blocks; an element of a list counts as 32."""
    steps: int = 1_000_000
    """Parts of the template evaluated, those in a loop once for each turn, and work of filters on large
    values."""
    range: int = 100_000
    """Numbers in one `range(…)`."""
    width: int = 10_000
    """Columns that padding, indenting and number formats may ask for."""
    source: int = 1024 * 1024
    """Characters of the template's own text."""


DEFAULT_LIMITS = Limits()
