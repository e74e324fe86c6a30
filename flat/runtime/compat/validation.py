"""Checking a config against the schema, and the schemas themselves."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flat.errors import Problem, SpecError
from flat.spec.load import load_machine_dict
from flat.spec.schema import KINDS, render, schema


class ValidationWarning(UserWarning):
    """Something about a config is doubtful."""


def validate_flatmachine_config(
    config: Mapping[str, Any], warn: bool = True, strict: bool = False
) -> list[str]:
    """What is wrong with a machine config, as texts. `strict` raises `ValueError` instead, `warn` warns."""
    try:
        problems = load_machine_dict(config).problems
    except SpecError as error:
        problems = list(error.problems)
    return told("Flatmachine", problems, warn=warn, strict=strict)


def told(kind: str, problems: Iterable[Problem], *, warn: bool, strict: bool) -> list[str]:
    """The problems as texts, raised or warned of on behalf of whoever asked for the check."""
    found = [str(problem) for problem in problems]
    listed = "".join(f"\n  - {text}" for text in found)
    if found and strict:
        raise ValueError(f"{kind} config validation failed:{listed}")
    if found and warn:
        warnings.warn(f"{kind} config has validation issues:{listed}", ValidationWarning, stacklevel=3)
    return found


def get_flatmachine_schema() -> dict[str, Any]:
    """The JSON Schema of machine files."""
    return schema("machine")


def get_asset(filename: str) -> str:
    """The text of a bundled schema: `flatmachine.schema.json`, `flatagent.schema.json`, `profiles.schema.json` …"""
    kind = Path(filename).name.removesuffix(".json").removesuffix(".schema").removeprefix("flat")
    if kind.rstrip("s") not in KINDS:
        raise FileNotFoundError(f'there is no asset "{filename}"; there are schemas of: {", ".join(KINDS)}')
    return render(kind.rstrip("s"))
