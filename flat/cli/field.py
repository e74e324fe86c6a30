"""`--get FIELD`: one field of an output, for scripts. Text as it is, anything else as JSON, nothing around it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flat.cli.ending import MISSING, say
from flat.cli.text import one_line
from flat.errors import FlatError


class FieldNotFound(FlatError):
    """The output has no such field; the message says what it has."""

    exit_code = MISSING


def say_field(output: Any, path: str) -> None:
    """Print the field of an output. A terminal gets it without what would act on it."""
    value = field_of(output, path)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    say(text, raw=not sys.stdout.isatty())


def field_of(output: Any, path: str) -> Any:
    """What stands at a dotted path, such as `report.items.0.name`. A key may have dots in it.

    Raises `FieldNotFound` with what there is where the path stops.
    """
    value, at, rest = output, "", path
    while rest:
        if isinstance(value, Mapping) and rest in value:
            return value[rest]
        part, _, rest = rest.partition(".")
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif _is_list(value) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            where = f'"{at}" of the output' if at else "the output"
            raise FieldNotFound(f'--get {path}: {where} has no "{part}"; {_what(value)}')
        at = f"{at}.{part}" if at else part
    return value


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _what(value: Any) -> str:
    if isinstance(value, Mapping):
        known = ", ".join(one_line(key, 60) for key in value)
        return f"it has: {known}" if known else "it is empty"
    if _is_list(value):
        return f"it is a list of {len(value)}, counted from 0"
    return f"it is {one_line(json.dumps(value, ensure_ascii=False, default=str), 60)}"
