"""What the models of all files share: closed parts, unions by shape, numbers that may be templates."""

from __future__ import annotations

import re
from functools import cache
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, model_validator
from pydantic_core import PydanticCustomError

SPEC_VERSION = "4.2.1"
"""What a file without a version counts as."""

BARE_PATH = re.compile(r"(output|context|input)(\.[A-Za-z_][A-Za-z0-9_]*)*")


def shape(value: Any) -> str:
    """The tag by which a union of text, list and mapping is told apart; empty for anything else."""
    if isinstance(value, str):
        return "text"
    if isinstance(value, list | tuple):
        return "list"
    return "mapping" if isinstance(value, dict | BaseModel) else ""


by_shape = Discriminator(shape)


class Closed(BaseModel):
    """A mapping of a file with a fixed set of keys. A key without a value (`context:`) counts as absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, value: Any) -> Any:
        if type(value) is dict and None in value.values():
            known = _names(cls) if cls.model_config.get("extra") == "forbid" else value
            return {key: item for key, item in value.items() if item is not None or key not in known}
        return value


@cache
def _names(model: type[BaseModel]) -> frozenset[str]:
    """What the keys of a model are called in a file."""
    fields = model.model_fields.items()
    return frozenset(name for key, field in fields for name in (key, field.alias) if name is not None)


class Open(Closed):
    """A mapping that also keeps keys it does not know, for adapters and for people."""

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True)


def is_template(text: str) -> bool:
    """Whether a text is computed when it is used: a template, or a bare path such as `context.limit`."""
    return "{{" in text or "{%" in text or BARE_PATH.fullmatch(text.strip()) is not None


def _number_or_template(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise PydanticCustomError("number", "should be a number, or a template that gives one")
    if isinstance(value, str) and not is_template(value):
        try:
            return float(value)
        except ValueError:
            raise PydanticCustomError("number", "should be a number, or a template that gives one") from None
    return value


def _seconds(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise PydanticCustomError("seconds", "should be a number of seconds") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PydanticCustomError("seconds", "should be a number of seconds")
    if value < 0:
        raise PydanticCustomError("greater_than_equal", "must be at least 0", {"ge": 0})
    if not value <= MOST_SECONDS:
        raise PydanticCustomError("too_long", "that is longer than a century; leave it out for no limit")
    return value


def _version_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Number = Annotated[int | float | str, BeforeValidator(_number_or_template)]
"""A number, or a template that gives one when it is used."""

MOST_SECONDS = 100 * 366 * 86400
"""Longer than anybody waits; far below what a clock or a float cannot hold."""

Seconds = Annotated[float, Field(ge=0, le=MOST_SECONDS), BeforeValidator(_seconds)]
"""A number of seconds, 0 or more."""

Version = Annotated[str, BeforeValidator(_version_text)]
"""A version text; `4.2` without quotes is a number in YAML and is taken as text."""

Metadata = Annotated[
    dict[str, Any],
    Field(description="Anything you like; kept, never interpreted.", examples=[{"owner": "team-a"}]),
]
