"""Structured output: field definitions as a JSON schema for the model, and as a validator for its answer.

    output:
      label: {type: str, enum: [spam, ham], description: what it is}
      score: {type: float, required: false, minimum: 0, maximum: 1}
      reasons: {type: list, items: {type: str, maxLength: 80}, maxItems: 3}

The answer becomes a mapping in which every declared field is there (optional ones perhaps as None); other
fields that the model adds are kept. Obvious slips are put right: numbers and truth values written as text, an
enum member in another case. Bounds are checked here, whatever the provider makes of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from math import isfinite
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from flat.errors import SpecError, did_you_mean

_SCALARS: dict[str, type] = {"str": str, "int": int, "float": float, "bool": bool}
_JSON_NAMES = {
    "str": "string", "int": "integer", "float": "number", "bool": "boolean", "list": "array",
    "object": "object",
}  # fmt: skip
_SYNONYMS = {**{v: k for k, v in _JSON_NAMES.items()}, "dict": "object"}
_TYPES = (*_JSON_NAMES, "json")
_FENCE = re.compile(r"```[ \t]*(?:[A-Za-z]+)?[ \t]*\r?\n?(.*?)```", re.DOTALL)
_MAX_PROBLEMS = 8
_BOUNDS = {
    "minLength": (("str",), "min_length"),
    "maxLength": (("str",), "max_length"),
    "minItems": (("list",), "min_length"),
    "maxItems": (("list",), "max_length"),
    "minimum": (("int", "float"), "ge"),
    "maximum": (("int", "float"), "le"),
}
"""For each bound: the types it is for, and what pydantic calls it."""
_PAIRS = (("minLength", "maxLength"), ("minItems", "maxItems"), ("minimum", "maximum"))
_MOST_REPEATED = 2000
"""As far as the grammars of llama.cpp count. With a bound beyond that it drops the whole grammar."""

_LOOSE = ConfigDict(extra="allow", coerce_numbers_to_str=True, protected_namespaces=())


class OutputSchema:
    """The `output:` of an agent, compiled once."""

    def __init__(self, fields: Mapping[str, Any], name: str = "output", *, grammar: bool = False) -> None:
        """With `grammar`, for a model that is held to the schema's bounds as they are. Other providers each refuse
        some of them in a strict schema, so that they are told in words, in the descriptions."""
        self.name = re.sub(r"[^A-Za-z0-9_-]", "_", name)[:64] or "output"
        self._model = _model(fields, "output")
        self.strict = all(_is_strict(d) for d in fields.values())
        self.json_schema = _object_schema(fields, self.strict, grammar)

    def response_format(self) -> dict[str, Any]:
        """What asks an OpenAI-like provider for this schema."""
        facts = {"name": self.name, "schema": self.json_schema, "strict": self.strict}
        return {"type": "json_schema", "json_schema": facts}

    def read(self, text: str | None) -> tuple[Any, list[str]]:
        """The value in an answer, and what is wrong with it; when something is, the value means nothing."""
        found = extract_json(text or "")
        if not found:
            return None, ["it is empty" if not (text or "").strip() else "it holds no valid JSON"]
        try:
            checked = self._model.model_validate(found[0])
        except ValidationError as error:
            return None, [_problem(e) for e in error.errors(include_url=False)[:_MAX_PROBLEMS]]
        return checked.model_dump(by_alias=True), []


def extract_json(text: str) -> list[Any]:
    """The JSON in an answer as a list of one, or an empty list: alone, in a code fence, or amid prose."""
    trimmed = text.strip()
    for candidate in _candidates(trimmed):
        try:
            return [json.loads(candidate, parse_constant=_refuse_constant)]
        except ValueError:
            continue
    return []


def _candidates(text: str) -> list[str]:
    found = [text]
    if fence := _FENCE.search(text):
        found.append(fence[1].strip())
    opened = [(text.find(o), c) for o, c in (("{", "}"), ("[", "]")) if o in text]
    if opened:
        start, closer = min(opened)
        found.append(text[start : text.rfind(closer) + 1])
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _model(fields: Mapping[str, Any], where: str) -> type[BaseModel]:
    if not isinstance(fields, Mapping):
        raise SpecError(f"{where}: expected a mapping of field names to definitions")
    members: dict[str, Any] = {}
    for number, (name, definition) in enumerate(fields.items()):
        kind = _kind(definition, f"{where}.{name}")
        annotation = _annotation(definition, kind, f"{where}.{name}")
        # Fields may be called anything, "json" or "model_config" too, so names of our own stand for them.
        if definition.get("required", True):
            members[f"f{number}"] = (annotation, Field(alias=str(name)))
        else:
            members[f"f{number}"] = (annotation | None, Field(default=None, alias=str(name)))
    made: type[BaseModel] = create_model("Output", __config__=_LOOSE, **members)
    return made


def _kind(definition: Any, where: str) -> str:
    told = definition.get("type") if isinstance(definition, Mapping) else None
    kind = _SYNONYMS.get(str(told), str(told))
    if kind not in _TYPES:
        hint = did_you_mean(kind, _TYPES)
        raise SpecError(
            f"{where}: `type` is {told!r}; " + hint if told else f"{where}: `type` is missing; {hint}"
        )
    return kind


def _annotation(definition: Mapping[str, Any], kind: str, where: str) -> Any:
    if kind == "json":
        return Any
    limits = Field(**{_BOUNDS[b][1]: told for b, told in _bounds(definition, kind, where).items()})
    if kind == "list":
        items = definition.get("items")
        of = Any if items is None else _annotation(items, _kind(items, f"{where}.items"), f"{where}.items")
        return Annotated[list[of], limits]  # type: ignore[valid-type]
    if kind == "object":
        properties = definition.get("properties")
        return _model(properties, where) if properties else dict[str, Any]
    if definition.get("enum"):
        return Annotated[Any, BeforeValidator(_chooser(tuple(definition["enum"])))]
    return Annotated[_SCALARS[kind], limits]


def _bounds(definition: Mapping[str, Any], kind: str, where: str) -> dict[str, Any]:
    """The bounds of a field by name. Those that no answer can meet are refused, not tried."""
    found = {name: definition[name] for name in _BOUNDS if definition.get(name) is not None}
    for name, told in found.items():
        kinds = _BOUNDS[name][0]
        if kind not in kinds:
            raise SpecError(f"{where}: `{name}` is for {' and '.join(kinds)}, and `type` is {kind}")
        if definition.get("enum"):
            raise SpecError(f"{where}: `{name}` says nothing beside `enum`; leave one of them out")
        if (problem := _not_a_bound(told, kind)) is not None:
            raise SpecError(f"{where}: `{name}` is {told!r}; give {problem}")
    for low, high in _PAIRS:
        if low in found and high in found and found[low] > found[high]:
            raise SpecError(f"{where}: `{low}` is {found[low]}, more than `{high}`, {found[high]}")
    return found


def _not_a_bound(told: Any, kind: str) -> str | None:
    """What to give instead, if this is no bound for values of that kind."""
    if kind == "float":
        return None if type(told) in (int, float) and isfinite(told) else "a number"
    if type(told) is int and (kind == "int" or told >= 0):
        return None
    return "a whole number" if kind == "int" else "a whole number, 0 or more"


def _chooser(options: tuple[Any, ...]) -> Callable[[Any], Any]:
    folded = {str(o).strip().casefold(): o for o in options}

    def choose(value: Any) -> Any:
        if value in options:
            return value
        if isinstance(value, str | int | float) and str(value).strip().casefold() in folded:
            return folded[str(value).strip().casefold()]
        raise ValueError(f"must be one of {', '.join(str(o) for o in options)}")

    return choose


def _is_strict(definition: Mapping[str, Any]) -> bool:
    """Whether strict schemas can say this: they know no free-form objects and lists."""
    kind = _kind(definition, "output")
    if kind == "list":
        return bool(definition.get("items")) and _is_strict(definition["items"])
    if kind == "object":
        properties = definition.get("properties") or {}
        return bool(properties) and all(_is_strict(d) for d in properties.values())
    return kind != "json"


def _object_schema(fields: Mapping[str, Any], strict: bool, grammar: bool) -> dict[str, Any]:
    """In a strict schema every field is required, and an optional one may be null."""
    properties, required = {}, []
    for name, definition in fields.items():
        schema = _schema(definition, strict, grammar)
        optional = not definition.get("required", True)
        if optional and strict:
            schema = {"anyOf": [schema, {"type": "null"}]}
        if strict or not optional:
            required.append(str(name))
        properties[str(name)] = schema
    whole: dict[str, Any] = {"type": "object", "properties": properties, "required": required}
    return whole | {"additionalProperties": False} if strict else whole


def _schema(definition: Mapping[str, Any], strict: bool, grammar: bool) -> dict[str, Any]:
    kind = _kind(definition, "output")
    if kind == "object" and definition.get("properties"):
        schema = _object_schema(definition["properties"], strict, grammar)
    else:
        schema = {"type": _JSON_NAMES[kind]} if kind != "json" else {}
    if kind == "list" and definition.get("items"):
        schema["items"] = _schema(definition["items"], strict, grammar)
    if definition.get("enum") and kind in _SCALARS:
        schema["enum"] = list(definition["enum"])
    said = [str(definition["description"])] if definition.get("description") else []
    bounds = _bounds(definition, kind, "output")
    if grammar:
        schema |= {
            n: told for n, told in bounds.items() if kind not in ("str", "list") or told <= _MOST_REPEATED
        }
    elif bounds:
        said.append(_bounds_in_words(bounds, kind))
    if said:
        schema["description"] = " ".join(said)
    return schema


def _bounds_in_words(bounds: Mapping[str, Any], kind: str) -> str:
    """Such as "Characters: at least 2, at most 80."."""
    of_what = {"str": "characters: ", "list": "entries: "}.get(kind, "")
    words = of_what + ", ".join(
        f"at {'least' if name.startswith('min') else 'most'} {told}" for name, told in bounds.items()
    )
    return f"{words[0].upper()}{words[1:]}."


def _problem(error: Any) -> str:
    path = ".".join(str(part) for part in error["loc"])
    told = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f'the field "{path}" is missing'
    if error["type"] == "model_type" and not path:
        return "it is not a JSON object"
    return f'the field "{path}": {told}'
