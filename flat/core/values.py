"""Reading values by path, shared by templates and conditions.

A path walks mapping keys and nothing else: no attributes, no methods, no indexes. What is missing, or lies
beyond something that is not a mapping, is None.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

BARE_PATH = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*", re.ASCII)

Scope = Mapping[str, Any]
Reader = Callable[[Scope], Any]


def member(value: Any, name: str) -> Any:
    """`value.name`: what the mapping holds under `name`, else None."""
    return value.get(name) if isinstance(value, Mapping) else None


def path_reader(root: str, names: Sequence[str]) -> Reader:
    """A function from a scope to what stands at `root.name.name…`. The usual lengths are spelled out."""
    if not names:
        return lambda scope: scope.get(root)
    if len(names) == 1:
        return _one_name(root, names[0])
    rest = tuple(names)

    def read(scope: Scope) -> Any:
        value = scope.get(root)
        for name in rest:
            if type(value) is dict or isinstance(value, Mapping):
                value = value.get(name)
            else:
                return None
        return value

    return read


def _one_name(root: str, name: str) -> Reader:
    def read(scope: Scope) -> Any:
        value = scope.get(root)
        return value.get(name) if type(value) is dict else member(value, name)

    return read
