"""Text for terminals: nothing that models or files say may act on the screen that shows it."""

from __future__ import annotations

import re
from typing import Any

_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")
_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
SHORT_ID = 8
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")


def clean(text: Any) -> str:
    """The text without escape sequences, control characters and changes of direction; lines stay lines."""
    return _CONTROL.sub("", _SEQUENCE.sub("", str(text).replace("\r\n", "\n")))


def one_line(text: Any, width: int = 200) -> str:
    """The text cleaned, on one line, cut to a width."""
    flat = " ".join(clean(text).split())
    return flat if len(flat) <= width else flat[: width - 1] + "…"


def short_id(execution_id: str) -> str:
    """The beginning of a made-up id; an id that somebody chose, whole."""
    return execution_id[:SHORT_ID] if _UUID.fullmatch(execution_id) else clean(execution_id)


def seconds(value: float) -> str:
    """A duration, for people: `0.72 s`, `12.3 s`, `4 min 02 s`."""
    if value < 9.995:
        return f"{max(0.0, value):.2f} s"
    if value < 99.95:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def money(cost: float, priced: bool = True) -> str:
    """US dollars; a price that is not known, or not known in full, says so."""
    known = "$0" if not cost else f"${cost:.2f}" if cost >= 1 else f"${cost:.4g}"
    if priced:
        return known
    return f"{known}+?" if cost else "$?"


def count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
