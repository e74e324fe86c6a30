"""Reads a function's docstring: what it does, and what each argument means.

Two customs are read: a section `Args:` with `name: text` or `name (type): text` lines, and `:param name: text`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

_SECTION = re.compile(r"^(Args|Arguments|Parameters)\s*:\s*$")
_OTHER = re.compile(r"^(Returns?|Raises|Yields?|Examples?|Notes?|See Also|Warnings?)\s*:\s*$")
_ENTRY = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?\s*:\s*(.*)$")
_PARAM = re.compile(r"^:param\s+(?:[^:]*\s)?(\w+)\s*:\s*(.*)$")
_FIELD = re.compile(r"^:(returns?|rtype|raises?|type|param)\b[^:]*:")


def read_docstring(fn: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The text before the sections, and the description of each argument that has one."""
    text: list[str] = []
    arguments: dict[str, str] = {}
    section, name, indent = "text", "", 0
    for line in (inspect.getdoc(fn) or "").splitlines():
        words, depth = line.strip(), len(line) - len(line.lstrip())
        if _SECTION.match(line):
            section, name, indent = "arguments", "", 0
        elif _OTHER.match(line):
            section = "other"
        elif found := _PARAM.match(words):
            section, name = "field", found[1]
            arguments[name] = found[2]
        elif _FIELD.match(words):
            section = "other"
        elif section == "arguments" and words:
            indent = indent or depth
            entry = _ENTRY.match(words) if depth == indent else None
            if depth == 0:
                section = "text"
                text.append(words)
            elif entry:
                name = entry[1]
                arguments[name] = entry[2]
            elif name:
                arguments[name] = f"{arguments[name]} {words}".strip()
        elif section == "field" and words:
            arguments[name] = f"{arguments[name]} {words}".strip()
        elif section == "text":
            text.append(line.rstrip())
    return _joined(text), arguments


def _joined(lines: list[str]) -> str:
    """Paragraphs without the line breaks that only fit them to a page."""
    paragraphs = re.split(r"\n\s*\n", "\n".join(lines).strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs if paragraph.strip())
