"""How the parts of a charter are given and named: as a mapping by name, or as a list of things with names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flat.errors import CharterError

T = TypeVar("T")

UPDATE_STATE = "updateState"
TRANSITION = "transition"
TRANSITION_PREFIX = "transition_"
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class Ref:
    """A pointer into the charter: `name` of a node, tool, transition or pack; `node.name` of a part of a node."""

    ref: str


def named(
    entries: Mapping[str, Any] | Iterable[Any] | None,
    what: str,
    where: str,
    make: Callable[[Any, str | None], T],
) -> dict[str, T]:
    """The entries by name. `make` turns one entry into what it stands for, given its key if it has one."""
    if entries is None:
        return {}
    if isinstance(entries, Mapping):
        pairs = [(str(key), make(entry, str(key))) for key, entry in entries.items()]
    else:
        made = [make(entry, None) for entry in entries]
        pairs = [(getattr(entry, "name", None) or "", entry) for entry in made]
    found: dict[str, T] = {}
    for key, entry in pairs:
        if not key:
            raise CharterError(
                "name_missing", f"{where}: a {what} in a list needs a name; give it one, or use a mapping"
            )
        if key in found:
            raise CharterError("duplicate_name", f'{where}: two {what}s have the name "{key}"; rename one')
        found[key] = entry
    return found


def same_name(key: str, name: str, what: str, where: str) -> None:
    """Refuse an entry that is filed under another name than its own."""
    if key != name:
        raise CharterError(
            "name_mismatch", f'{where}: the {what} "{name}" stands under the key "{key}"; make them the same'
        )


def free_tool_name(name: str, where: str) -> None:
    """Refuse names of tools that the tree itself offers, and names that no model provider takes."""
    if name in (UPDATE_STATE, TRANSITION) or name.startswith(TRANSITION_PREFIX):
        raise CharterError(
            "reserved_name",
            f'{where}: a tool cannot be called "{name}": {UPDATE_STATE}, {TRANSITION} and names that begin with '
            f"{TRANSITION_PREFIX} belong to the tree; rename it",
        )
    provider_name(name, where)


def provider_name(name: str, where: str) -> None:
    """Refuse names that no model provider takes as the name of a tool."""
    if not _TOOL_NAME.fullmatch(name):
        raise CharterError(
            "bad_name", f'{where}: "{name}" cannot be offered to a model: use up to 64 of A-Z a-z 0-9 _ -'
        )
