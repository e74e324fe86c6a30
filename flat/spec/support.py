"""What files may say but this version does not run yet. A release that learns something deletes its row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flat.errors import Problem
from flat.spec.document import Step
from flat.spec.sources import Part


@dataclass(frozen=True, slots=True)
class Row:
    """A place in `data` (`*`: any name), and words for it. `values`: only these; `unless`: all but these."""

    path: tuple[str, ...]
    what: str
    values: frozenset[str] = frozenset()
    unless: frozenset[str] = frozenset()

    def matches(self, value: Any) -> bool:
        if not value and value != 0:
            return False
        if self.values:
            return value in self.values if isinstance(value, str) else False
        return not self.unless or (isinstance(value, str) and value not in self.unless)


NOT_YET = (
    Row(("expression_engine",), "conditions in CEL", values=frozenset({"cel"})),
    Row(("agents", "*", "type"), "agents of this type", unless=frozenset({"flatagent"})),
    Row(("states", "*", "machine"), "a child machine (machine)"),
    Row(("states", "*", "foreach"), "a child machine for each item (foreach)"),
    Row(("states", "*", "launch"), "starting a machine without waiting (launch)"),
    Row(("states", "*", "tool_loop"), "a tool loop (tool_loop)"),
    Row(
        ("states", "*", "execution", "type"),
        "this execution type",
        values=frozenset({"parallel", "mdap_voting"}),
    ),
)


def check_support(data: Part) -> list[Problem]:
    """One problem for each thing in `data` that this version cannot run."""
    return [
        Problem(
            "unsupported",
            f"this version of flat does not support {row.what} yet",
            data.locate(*path, key=True),
        )
        for row in NOT_YET
        for path, value in _found(data.value, row.path)
        if row.matches(value)
    ]


def _found(
    value: Any, pattern: tuple[str, ...], path: tuple[Step, ...] = ()
) -> Iterator[tuple[tuple[Step, ...], Any]]:
    if not pattern:
        yield path, value
        return
    if not isinstance(value, Mapping):
        return
    for name in value if pattern[0] == "*" else (pattern[0],):
        if name in value:
            yield from _found(value[name], pattern[1:], (*path, name))
