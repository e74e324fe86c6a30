"""Where in a template something went wrong. Jinja knows lines only; columns are found again in the text.

Used on failure only, so it may parse and search at leisure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from jinja2 import nodes


def line_of(source: str, line: int) -> int:
    """The offset of the first character of a line that is not a blank; lines count from 1."""
    start = 0
    for _ in range(line - 1):
        start = source.find("\n", start) + 1
    return start + len(source[start:]) - len(source[start:].lstrip(" \t"))


def first_offset(source: str, word: str, line: int = 1) -> int | None:
    """Where a word stands, from a line on, first inside braces and then anywhere."""
    if not word:
        return None
    start = line_of(source, line) if line > 1 else 0
    pattern = re.compile(rf"(?<![\w.]){re.escape(word)}(?!\w)")
    for braces in re.finditer(r"\{[{%].*?[}%]\}", source[start:], re.DOTALL):
        if found := pattern.search(source, start + braces.start(), start + braces.end()):
            return found.start()
    found = pattern.search(source, start)
    return found.start() if found else None


def locate_undefined(
    tree: nodes.Template, source: str, name: str, line: int | None, scope: Mapping[str, Any]
) -> tuple[str, int | None] | None:
    """The dotted path, and its offset, of the part that looked for `name` and found nothing."""
    candidates = []
    for node in tree.find_all((nodes.Name, nodes.Getattr, nodes.Getitem)):
        path = _path(node)
        if path and path[-1] == name and not _exists(path, scope):
            candidates.append((node.lineno != line, path))
    if not candidates:
        return None
    _, path = min(candidates, key=lambda candidate: candidate[0])
    return ".".join(path), _offset(source, path)


def _path(node: nodes.Node) -> tuple[str, ...] | None:
    """`a.b['c']` as its parts, or None for anything else."""
    if isinstance(node, nodes.Name):
        return (node.name,)
    if isinstance(node, nodes.Getattr):
        base = _path(node.node)
        return (*base, node.attr) if base else None
    if (
        isinstance(node, nodes.Getitem)
        and isinstance(node.arg, nodes.Const)
        and isinstance(node.arg.value, str)
    ):
        base = _path(node.node)
        return (*base, node.arg.value) if base else None
    return None


def _exists(path: tuple[str, ...], scope: Mapping[str, Any]) -> bool:
    value: Any = scope
    for part in path:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def _offset(source: str, path: tuple[str, ...]) -> int | None:
    first, *rest = path
    steps = "".join(
        rf"(?:\s*\.\s*{re.escape(part)}(?!\w)|\s*\[\s*['\"]{re.escape(part)}['\"]\s*\])" for part in rest
    )
    found = re.search(rf"(?<![\w.]){re.escape(first)}(?!\w){steps}", source)
    return found.start() if found else None
