"""Templates made only of text and `{{ dotted.path }}`: most of them. They need no Jinja and no import of it.

They behave as the same text does in Jinja; `compile_plain` gives None for a text that is anything more.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from flat.core.budget import Budget
from flat.core.operators import Refusal, describe
from flat.core.values import Reader, Scope
from flat.errors import ExpressionError, did_you_mean

if TYPE_CHECKING:
    from flat.core.template import Template

_SLOT = re.compile(r"\{\{\s*([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*)\s*\}\}", re.ASCII)
_JINJA_NAMES = frozenset(
    ("and", "or", "not", "in", "is", "if", "else", "true", "false", "none", "True", "False", "None")
) | {"self", "super", "loop", "caller", "range", "dict"}
_SPECIAL = ("{{", "{%", "{#", "\r")


class _Slot:
    """A path in a template and where its text begins."""

    __slots__ = ("names", "offset", "path", "root")

    def __init__(self, path: str, offset: int) -> None:
        self.path, self.offset = path, offset
        self.root, *rest = path.split(".")
        self.names = tuple(rest)


def compile_plain(template: Template) -> Reader | None:
    """A renderer, when the template holds nothing but text and paths."""
    pieces = _pieces(template.source)
    if pieces is None:
        return None
    if template.native and (slot := _only_slot(pieces)):
        return lambda scope: _read(template, slot, scope, native=True)

    def render(scope: Scope) -> str:
        texts: list[str] = []
        for piece in pieces:
            if type(piece) is str:
                texts.append(piece)
            else:
                assert isinstance(piece, _Slot)
                value = _read(template, piece, scope)
                texts.append(value if type(value) is str else _text(template, piece, value))
        text = "".join(texts)
        if len(text) > template.limits.output:
            raise too_long(template)
        return text

    return render


def _text(template: Template, slot: _Slot, value: Any) -> str:
    try:
        return Budget(template.limits).text(value)
    except Refusal as refusal:
        raise template.error(refusal.message, slot.offset, refusal.hint, slot.path) from None
    except Exception as error:
        message = f"`{slot.path}` cannot be written as text: {error}"
        raise template.error(message, slot.offset, "", slot.path) from error


def plain_names(source: str) -> dict[str, int] | None:
    """The names that a plain template takes from the scope, and where; None when it is not plain."""
    pieces = _pieces(source)
    if pieces is None:
        return None
    return {piece.root: piece.offset for piece in reversed(pieces) if isinstance(piece, _Slot)}


def too_long(template: Template) -> ExpressionError:
    return template.error(f"the template renders to more than {template.limits.output:,} characters")


def _pieces(source: str) -> list[str | _Slot] | None:
    text = source[:-1] if source.endswith("\n") else source
    pieces: list[str | _Slot] = []
    end = 0
    for found in _SLOT.finditer(text):
        slot = _Slot(found.group(1), found.start(1))
        if slot.root in _JINJA_NAMES:
            return None
        pieces += (text[end : found.start()], slot)
        end = found.end()
    pieces.append(text[end:])
    if any(mark in piece for piece in pieces if isinstance(piece, str) for mark in _SPECIAL):
        return None
    kept: list[str | _Slot] = [piece for piece in pieces if piece != ""]
    return kept


def _only_slot(pieces: list[str | _Slot]) -> _Slot | None:
    """The slot of a text that is one `{{ path }}` and blanks around it."""
    slots = [piece for piece in pieces if isinstance(piece, _Slot)]
    blank = all(piece.isspace() for piece in pieces if isinstance(piece, str))
    return slots[0] if len(slots) == 1 and blank else None


def _read(template: Template, slot: _Slot, scope: Scope, native: bool = False) -> Any:
    """The value at a path. What is missing is an error, or nothing in a lenient template's last part."""
    if slot.root not in scope:
        if template.lenient and not slot.names:
            return None if native else ""
        raise undefined(template, slot.root, slot.offset, missing=slot.root, known=scope)
    value = scope[slot.root]
    for number, name in enumerate(slot.names):
        if isinstance(value, Mapping) and name in value:
            value = value[name]
            continue
        if template.lenient and number == len(slot.names) - 1:
            return None if native else ""
        path = ".".join((slot.root, *slot.names[: number + 1]))
        raise undefined(template, path, slot.offset, missing=name, holder=value)
    return value


def undefined(
    template: Template,
    path: str,
    offset: int | None,
    *,
    missing: str,
    holder: Any = None,
    known: Collection[Any] | None = None,
) -> ExpressionError:
    """The error for a path that leads nowhere: what was looked for, in what, and what is there."""
    if known is not None:
        hint = did_you_mean(missing, known)
        return template.error(f"`{path}` is not defined", offset, hint, path)
    if isinstance(holder, Mapping):
        hint = did_you_mean(missing, holder) or "there is nothing in it"
        return template.error(f"`{path}` is not defined", offset, hint, path)
    base = path.rpartition(".")[0]
    message = (
        f"`{path}` is not defined: `{base}` is {describe(holder)}" if base else f"`{path}` is not defined"
    )
    return template.error(message, offset, "", path)
