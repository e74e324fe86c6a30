"""The tables of fields in `docs/`, made from the models. Run as a module to write them.

A page says where its tables stand: `<!-- fields: State -->` and `<!-- end -->`, each alone on a line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from flat.spec import agent, machine

PAGES = ("docs/machines.md", "docs/agents.md")
_PLACE = re.compile(r"(<!-- fields: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_PLAIN = re.compile(r"[A-Za-z_./][\w./ -]*")


def filled(page: str) -> str:
    """The text of a page with its tables as the models are now."""
    return _PLACE.sub(lambda found: f"{found[1]}{table(found[2])}\n{found[3]}", page)


def table(name: str) -> str:
    """The Markdown table of a model's fields."""
    model = getattr(machine, name, None) or getattr(agent, name)
    return "\n".join(["| field | for example | when absent | |", "| --- | --- | --- | --- |", *_rows(model)])


def tables(page: str) -> list[str]:
    """The models whose tables a page has."""
    return [found[2] for found in _PLACE.finditer(page)]


def _rows(model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        shown = _code(_flow(field.examples[0])) if field.examples else ""
        said = (field.description or "").replace("|", "\\|")
        yield f"| `{field.alias or name}` | {shown} | {_default(field)} | {said} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default in (None, PydanticUndefined, {}, []) or isinstance(default, BaseModel):
        return ""
    return _code(_flow(default))


def _code(text: str) -> str:
    return f"`{text}`".replace("|", "\\|")


def _flow(value: Any) -> str:
    """A value as YAML writes it on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for page in PAGES:
        (root / page).write_text(filled((root / page).read_text(encoding="utf-8")), encoding="utf-8")
