"""Instructions: fixed text, or a function of the state that gives the text."""

from __future__ import annotations

import copy
import inspect
import typing
from collections.abc import Callable
from typing import Any, TypeAlias

from pydantic import BaseModel

from flat.errors import CharterError

Instructions: TypeAlias = str | Callable[..., str]


def checked_instructions(instructions: Any, where: str) -> Any:
    """Refuse what is neither text nor a function of one argument."""
    if instructions is None or isinstance(instructions, str):
        return instructions
    if not callable(instructions):
        raise CharterError(
            "bad_instructions",
            f"{where}: instructions are text or a function of the state, got {instructions!r}",
        )
    if inspect.iscoroutinefunction(instructions):
        raise CharterError(
            "bad_instructions",
            f"{where}: instructions cannot be async: they are computed whenever a prompt is shown; "
            "let a tool write what they need into the state",
        )
    _annotated_model(instructions, where)
    return instructions


def instruction_text(instructions: Instructions | None, state: Any) -> str:
    """The text. A function gets the state: as the model it annotates, else as plain data."""
    if instructions is None or isinstance(instructions, str):
        return instructions or ""
    model = _annotated_model(instructions)
    text: Any = instructions(copy.deepcopy(state) if model is None else model.model_validate(state))
    if not isinstance(text, str):
        raise CharterError("bad_instructions", f"instructions gave {type(text).__name__} and not text")
    return text


def _annotated_model(fn: Callable[..., Any], where: str = "instructions") -> type[BaseModel] | None:
    try:
        hints = typing.get_type_hints(fn if inspect.isroutine(fn) else type(fn).__call__)
    except NameError as error:
        raise CharterError(
            "bad_signature", f"{where}: a type hint of the instructions cannot be resolved: {error}"
        ) from None
    except TypeError:
        return None
    for name, hint in hints.items():
        if name != "return" and isinstance(hint, type) and issubclass(hint, BaseModel):
            return hint
    return None
