"""The `--input` of a run: text by default, JSON where it is asked for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flat.cli.ending import UsageError


def read_inputs(given: Sequence[str]) -> dict[str, Any]:
    """All inputs in one mapping; later ones win."""
    merged: dict[str, Any] = {}
    for item in given:
        merged.update(_read(item))
    return merged


def read_json(text: str, what: str) -> Any:
    """The value of a JSON text; an error names `what` it was."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except ValueError as error:
        raise UsageError(f"{what} is not JSON: {error}") from None
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply") from None


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError(f"{digits} is too large for a number")
    return value


def _read(item: str) -> Mapping[str, Any]:
    if item.startswith("@"):
        return _mapping(_file(item[1:], "--input"), f"the file {item[1:]}")
    if item.lstrip().startswith("{"):
        return _mapping(item, "--input")
    key, equals, value = item.partition("=")
    typed = key.endswith(":")
    key = key.removesuffix(":").strip()
    if not equals or not key:
        raise UsageError(
            f'--input {item!r} is not understood; write k=text, k:=json, @file.json or \'{{"k": "text"}}\''
        )
    if typed:
        return {key: read_json(value, f"--input {key}:=")}
    if value.startswith("@@"):
        return {key: value[1:]}
    return {key: _file(value[1:], f"--input {key}=@") if value.startswith("@") else value}


def _mapping(text: str, what: str) -> Mapping[str, Any]:
    value = read_json(text, what)
    if not isinstance(value, dict):
        raise UsageError(f"{what} is not a JSON object")
    return value


def _file(name: str, what: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        hint = "" if what == "--input" else "; for text that begins with @, write @@"
        raise UsageError(f"{what}: cannot read {name}: {error.strerror}{hint}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{what}: {name} is not UTF-8 text") from None
