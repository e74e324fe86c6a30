"""Reads the signature of an author's function once: which parameters the model fills in, and which are ours.

Parameters annotated with a context class, and a few names that the caller knows (`state`, `reason`), are
*injected*: they are passed in and never shown to the model. All others make the input schema, with their type
hints, defaults and descriptions.
"""

from __future__ import annotations

import copy
import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Annotated, Any, Generic, NotRequired

from pydantic import BaseModel, ConfigDict, with_config
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, to_jsonable_python
from typing_extensions import TypedDict, TypeVar

from flat.errors import CharterError
from flat.tree.docstring import read_docstring
from flat.tree.schema import JsonObject, TypeSchema

R = TypeVar("R", default=Any)

_INPUT_KINDS = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True, slots=True)
class Injected:
    """A parameter that is passed in: by which role, as which model, and which class is annotated."""

    name: str
    role: str
    model: type[BaseModel] | None = None
    context: type | None = None


class ArgumentsSchema(TypeSchema[dict[str, Any]]):
    """The input schema of a function. `parse` gives exactly the arguments to call it with."""

    def __init__(self, name: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
        self._defaults = {key: default for key, (_, default) in fields.items() if default is not _REQUIRED}
        entries = {
            key: NotRequired[hint] if key in self._defaults else hint for key, (hint, _) in fields.items()
        }
        made = with_config(ConfigDict(extra="forbid"))(TypedDict(name, entries))  # type: ignore[operator]
        super().__init__(made)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(typing.get_type_hints(self.type))

    def parse(self, value: Any) -> dict[str, Any]:
        return {**copy.deepcopy(self._defaults), **super().parse(value)}

    def json_schema(self) -> JsonObject:
        schema = super().json_schema()
        schema.setdefault("properties", {})
        for key, default in self._defaults.items():
            part = schema["properties"].get(key)
            if isinstance(part, dict) and "$ref" not in part:
                try:
                    part["default"] = to_jsonable_python(default)
                except Exception:  # a default that JSON cannot show is simply not shown
                    continue
        return schema


_REQUIRED: Any = object()


@dataclass(frozen=True, slots=True)
class Signature(Generic[R]):
    """An author's function, taken apart."""

    fn: Callable[..., Any]
    name: str
    description: str
    arguments: ArgumentsSchema
    injected: tuple[Injected, ...]

    @property
    def has_arguments(self) -> bool:
        return bool(self.arguments.names)

    def call(self, arguments: Mapping[str, Any], given: Mapping[str, Any]) -> Any:
        """Call it with parsed arguments and with what is injected, by role. May return an awaitable."""
        values = dict(arguments)
        for part in self.injected:
            value = given[part.role]
            values[part.name] = part.model.model_validate(value) if part.model is not None else value
        return self.fn(**values)


def read_signature(
    fn: Callable[..., Any],
    *,
    contexts: Mapping[type, str],
    names: Mapping[str, str] | None = None,
    frame: FrameType | None = None,
    what: str = "tool",
) -> Signature[Any]:
    """Take a function apart. `contexts` and `names` say which annotations and names are injected, as which role."""
    label = getattr(fn, "__name__", type(fn).__name__)
    hints = _hints(fn, frame, f'{what} "{label}"')
    description, documented = read_docstring(fn)
    injected: list[Injected] = []
    fields: dict[str, tuple[Any, Any]] = {}
    for parameter in inspect.signature(fn).parameters.values():
        hint = hints.get(parameter.name, Any)
        role = _role(parameter.name, hint, contexts, names or {})
        if role is not None:
            injected.append(Injected(parameter.name, role, _model(hint), _class(hint)))
        elif parameter.kind not in _INPUT_KINDS:
            raise CharterError(
                "bad_signature",
                f'{what} "{label}": the parameter `{parameter}` cannot be filled in by name; '
                "name each argument and drop `*`, `**` and `/`",
            )
        else:
            fields[parameter.name] = _field(hint, parameter.default, documented.get(parameter.name))
    return Signature(fn, label, description, ArgumentsSchema(label, fields), tuple(injected))


def _role(name: str, hint: Any, contexts: Mapping[type, str], names: Mapping[str, str]) -> str | None:
    bare = typing.get_origin(hint) or hint
    for cls, role in contexts.items():
        if isinstance(bare, type) and issubclass(bare, cls):
            return role
    if name == "ctx" and hint is Any:
        return next(iter(contexts.values()))
    return names.get(name)


def _class(hint: Any) -> type | None:
    bare = typing.get_origin(hint) or hint
    return bare if isinstance(bare, type) and bare is not Any else None


def _model(hint: Any) -> type[BaseModel] | None:
    return hint if isinstance(hint, type) and issubclass(hint, BaseModel) else None


def _field(hint: Any, default: Any, described: str | None) -> tuple[Any, Any]:
    """The annotated type and the default of one argument."""
    value = _REQUIRED if default is inspect.Parameter.empty else default
    if isinstance(default, FieldInfo):
        info = copy.copy(default)
        value = (
            _REQUIRED
            if info.is_required()
            else info.get_default(call_default_factory=True, validated_data={})
        )
        info.default, info.default_factory = PydanticUndefined, None
        hint = Annotated[hint, info]
    if described and not _has_description(hint):
        hint = Annotated[hint, FieldInfo(description=described)]
    return hint, value


def _has_description(hint: Any) -> bool:
    return any(isinstance(part, FieldInfo) and part.description for part in getattr(hint, "__metadata__", ()))


def _hints(fn: Callable[..., Any], frame: FrameType | None, label: str) -> dict[str, Any]:
    """The type hints; names are looked up where the function is defined, and in the block around it."""
    target = fn if inspect.isroutine(fn) else type(fn).__call__
    scope = dict(frame.f_locals) if frame is not None else {}
    try:
        return typing.get_type_hints(target, localns=scope, include_extras=True)
    except NameError as error:
        raise CharterError(
            "bad_signature",
            f"{label}: a type hint cannot be resolved: {error}; import or define it before this",
        ) from None


def decorated(make: Callable[..., Any], first: Any, options: Mapping[str, Any]) -> Any:
    """What a decorator comes to that is called on a function, or on a description: `make` of the function."""
    if callable(first):
        return make(first, calling_frame(2))
    return lambda fn: make(fn, calling_frame(1), description=first, **options)


def calling_frame(depth: int) -> FrameType | None:
    """The block that called the function which is `depth` calls below this one."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(depth):
        frame = frame.f_back if frame is not None else None
    return frame
