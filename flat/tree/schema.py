"""What a state or an input must look like: one small interface over pydantic types and JSON Schema.

A state is stored as plain JSON data, never as a model, so that merging and storing stay trivial. `validate`
gives that plain form of a value, with defaults filled in; `parse` gives the author's own type.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, Protocol, TypeAlias, cast, runtime_checkable

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypeVar

from flat.errors import CharterError, StateError

DIALECT = "https://json-schema.org/draft/2020-12/schema"
JsonObject: TypeAlias = dict[str, Any]

S = TypeVar("S", default=Any)
S_co = TypeVar("S_co", covariant=True, default=Any)


@runtime_checkable
class Schema(Protocol[S_co]):
    """What the tree asks of a validator. Values that it refuses raise `StateError`."""

    def validate(self, value: Any) -> Any:
        """The value as plain JSON data, with defaults filled in."""
        ...

    def parse(self, value: Any) -> S_co:
        """The value as the author's own type."""
        ...

    def json_schema(self) -> JsonObject:
        """The JSON Schema, without `$schema`. Raises `CharterError` where there is none."""
        ...


class TypeSchema(Generic[S]):
    """A pydantic model, or any type that pydantic can validate."""

    def __init__(self, type: Any) -> None:
        self.type = type
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(type)
        except (PydanticSchemaGenerationError, PydanticUserError) as error:
            raise CharterError("invalid_schema", f"{type!r} cannot serve as a schema: {error}") from error

    def validate(self, value: Any) -> Any:
        checked = self._checked(value)
        refuse_nan(self._adapter.dump_python(checked, round_trip=True))
        return self._adapter.dump_python(checked, mode="json", by_alias=True, round_trip=True)

    def parse(self, value: Any) -> S:
        return cast(S, self._checked(value))

    def _checked(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            if self._is_other_model(value):
                raise refused([("", f"a {self.type.__name__} is expected, got a {type(value).__name__}")])
            value = value.model_dump(by_alias=True, round_trip=True)
        try:
            return self._adapter.validate_python(copy.deepcopy(value))
        except ValidationError as error:
            raise refused(
                [(".".join(map(str, e["loc"])), f"{e['msg']}{_got(e)}") for e in error.errors()]
            ) from None

    def _is_other_model(self, value: BaseModel) -> bool:
        """A model of another class would lose its fields without a word, since unknown ones are mostly ignored."""
        return (
            isinstance(self.type, type)
            and issubclass(self.type, BaseModel)
            and not isinstance(value, self.type)
        )

    def json_schema(self) -> JsonObject:
        return copy.deepcopy(self._json_schema)

    @cached_property
    def _json_schema(self) -> JsonObject:
        try:
            schema = self._adapter.json_schema(schema_generator=_Untitled)
        except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
            raise CharterError("no_json_schema", f"{self.type!r} has no JSON Schema: {error}") from error
        return untitled(schema)


class JsonSchema(Generic[S]):
    """A JSON Schema (2020-12), which is what a restored node has for a validator."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator, SchemaError

        self._schema = {key: value for key, value in copy.deepcopy(dict(schema)).items() if key != "$schema"}
        try:
            Draft202012Validator.check_schema(self._schema)
        except SchemaError as error:
            raise CharterError("invalid_schema", f"not a JSON Schema: {error.message}") from None
        self._validator = Draft202012Validator(self._schema)

    def validate(self, value: Any) -> Any:
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", by_alias=True)
        value = with_defaults(copy.deepcopy(value), self._schema)
        faults = sorted(self._validator.iter_errors(value), key=lambda e: [str(p) for p in e.absolute_path])
        if faults:
            raise refused([(".".join(map(str, e.absolute_path)), e.message) for e in faults])
        refuse_nan(value)
        return value

    def parse(self, value: Any) -> S:
        return cast(S, self.validate(value))

    def json_schema(self) -> JsonObject:
        return copy.deepcopy(self._schema)


class _Untitled(GenerateJsonSchema):
    """Titles made of field names say nothing that the names do not, and every call pays for them."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def untitled(schema: JsonObject) -> JsonObject:
    """The schema without the titles that pydantic makes of class names."""
    for part in (schema, *schema.get("$defs", {}).values()):
        if isinstance(part.get("title"), str):
            part.pop("title")
    return schema


def as_schema(validator: Any) -> Schema[Any]:
    """The schema behind whatever an author may write: a schema, a JSON Schema, a model, a type."""
    if isinstance(validator, Mapping):
        return JsonSchema(validator)
    if not isinstance(validator, type) and isinstance(validator, Schema):
        return validator
    return TypeSchema(validator)


def as_plain(value: Any) -> Any:
    """A deep copy of the value with every pydantic model in it turned into plain data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, round_trip=True)
    if isinstance(value, Mapping):
        return {key: as_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [as_plain(item) for item in value]
    return copy.deepcopy(value)


def refused(errors: Sequence[tuple[str, str]]) -> StateError:
    """One error for all faults of a value, each with its path."""
    shown = "; ".join(f"`{path}`: {message}" if path else message for path, message in errors[:8])
    more = f" (and {len(errors) - 8} more)" if len(errors) > 8 else ""
    return StateError(f"{shown}{more}", errors)


def refuse_nan(value: Any, path: str = "") -> None:
    """JSON has no NaN and no infinity; refused here, where the author or the model can still do something."""
    if isinstance(value, float) and not math.isfinite(value):
        raise refused([(path, f"{value!r} is not a JSON number; use null or text")])
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_nan(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_nan(item, f"{path}.{index}" if path else str(index))


def _got(error: Any) -> str:
    given = error.get("input")
    if error["type"] == "missing" or isinstance(given, Mapping | BaseModel):
        return ""
    shown = repr(given)
    return f", got {shown if len(shown) <= 60 else shown[:57] + '...'}"


def with_defaults(value: Any, schema: Any, defs: Mapping[str, Any] | None = None) -> Any:
    """Fill in the defaults of missing properties, as deep as `properties`, `items` and refs lead."""
    if not isinstance(schema, Mapping):
        return value
    defs = schema.get("$defs", {}) if defs is None else defs
    schema = _branch(value, schema, defs)
    if isinstance(value, dict):
        for key, part in schema.get("properties", {}).items():
            if not isinstance(part, Mapping):
                continue
            if key not in value and "default" in part:
                value[key] = copy.deepcopy(part["default"])
            elif key in value:
                value[key] = with_defaults(value[key], part, defs)
    elif isinstance(value, list) and isinstance(schema.get("items"), Mapping):
        return [with_defaults(item, schema["items"], defs) for item in value]
    return value


def _branch(
    value: Any, schema: Mapping[str, Any], defs: Mapping[str, Any], depth: int = 0
) -> Mapping[str, Any]:
    """The schema with refs followed, and of alternatives the first that is of the value's kind."""
    if depth > len(defs) + 1:
        return schema
    if isinstance(ref := schema.get("$ref"), str):
        found = defs.get(ref.removeprefix("#/$defs/"))
        return _branch(value, found, defs, depth + 1) if isinstance(found, Mapping) else schema
    kind = "object" if isinstance(value, dict) else "array"
    for word in ("anyOf", "oneOf"):
        for part in schema.get(word, ()):
            if (
                isinstance(part, Mapping)
                and (branch := _branch(value, part, defs, depth + 1)).get("type") == kind
            ):
                return branch
    return schema


# -- JSON Schema by itself --------------------------------------------------------


def json_schema_or_open(schema: Schema[Any]) -> JsonObject:
    """The JSON Schema; where it cannot be told, one that lets any object pass (the value is checked anyway)."""
    try:
        return schema.json_schema()
    except CharterError:
        return {"type": "object"}


def top_level(schema: JsonObject) -> JsonObject:
    """The schema with a `$ref` at its very top followed."""
    seen = set()
    current: Any = schema
    while isinstance(current, Mapping) and isinstance(current.get("$ref"), str):
        name = current["$ref"].removeprefix("#/$defs/")
        if name in seen:
            return schema
        seen.add(name)
        current = schema.get("$defs", {}).get(name, {})
    defs: JsonObject = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return schema if current is schema else {**current, **defs}


def is_object_schema(schema: JsonObject) -> bool:
    """Whether values of this schema are objects, so that a patch makes sense."""
    top = top_level(schema)
    for word in ("anyOf", "oneOf"):
        if word in top:
            defs = {"$defs": schema.get("$defs", {})}
            return all(is_object_schema({**branch, **defs}) for branch in top[word])
    return top.get("type", "object") == "object" and not ({"const", "enum"} & top.keys())


def partial_schema(schema: JsonObject) -> JsonObject:
    """The schema of a patch: every property optional and without default; an open object where that fails."""
    top = copy.deepcopy(top_level(schema))
    if not isinstance(top.get("properties"), Mapping):
        return {"type": "object"}
    kept = {
        word: part for word, part in top.items() if word not in ("required", "minProperties", "description")
    }
    kept["properties"] = {
        name: {word: x for word, x in part.items() if word != "default"}
        if isinstance(part, Mapping)
        else part
        for name, part in top["properties"].items()
    }
    return kept


def with_dialect(schema: JsonObject) -> JsonObject:
    """The schema as a document of its own, which names its dialect."""
    return {"$schema": DIALECT, **schema}


# -- keys that some stores refuse -------------------------------------------------

_KEYWORDS = ("schema", "id", "ref", "defs", "anchor", "vocabulary", "comment", "dynamicRef", "dynamicAnchor")
_ESCAPED = {f"${word}": f"__{word}" for word in _KEYWORDS}
_RESTORED = {escaped: keyword for keyword, escaped in _ESCAPED.items()}


def escape_schema_keys(value: Any) -> Any:
    """Rename the keywords that begin with `$`, everywhere, so that any document store takes the schema."""
    return _renamed(value, _ESCAPED)


def restore_schema_keys(value: Any) -> Any:
    """Undo `escape_schema_keys`."""
    return _renamed(value, _RESTORED)


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, Mapping):
        return {names.get(key, key): _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    return value


def to_safe_json_schema(schema: Schema[Any]) -> JsonObject:
    """The schema of a serialised node or pack: a full document with its keys escaped."""
    return cast(JsonObject, escape_schema_keys(with_dialect(schema.json_schema())))


def from_safe_json_schema(data: Mapping[str, Any]) -> JsonSchema[Any]:
    """Undo `to_safe_json_schema`."""
    return JsonSchema(restore_schema_keys(data))
