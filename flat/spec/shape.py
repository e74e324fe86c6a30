"""Whether a part of a file has the shape of its model; if not, what is wrong, in the author's words."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from flat.errors import Problem, did_you_mean
from flat.spec.document import Step
from flat.spec.sources import Part

M = TypeVar("M", bound=BaseModel)

_KINDS = {"text": "text", "list": "a list", "mapping": "a mapping", "flag": "true or false"}
_TAGS = {**_KINDS, "inline": "a mapping", "typed": "a mapping", "tree": "a mapping"}
_EXPECTED = {
    "string_type": "text",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "list_type": "a list",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "finite_number": "a finite number",
    "float_type": "a number",
    "float_parsing": "a number",
    "number": "a number, or a template that gives one",
    "seconds": "a number of seconds",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
SPECS = {
    "flatmachine": "a machine file",
    "flatagent": "an agent file",
    "flatprofile": "a profile catalogue",
    "flatprofiles": "a profile catalogue",
    "prompt": "a prompt file",
}

IN_DOUBT = ("retry", "ask", "fail", "verify:NAME")
"""What `in_doubt` may say."""

COMMA_HINT = "inside { } a comma ends a text: if this belongs to the one before it, put both in quotes"


def check_shape(model: type[M], part: Part, *, compat: bool = False) -> tuple[M | None, list[Problem]]:
    """The model of a part and no errors, or None and what is wrong.

    With `compat`, what upstream passes over (unknown keys, bad modes, transitions without target) is left
    out of the model and comes back as warnings.
    """
    try:
        return model.model_validate(part.value), []
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=True)
    problems = [_problem(model, part, detail, compat) for detail in details]
    meant = {(detail["loc"][:-1], problem.hint) for detail, problem in zip(details, problems, strict=True)}
    kept = [
        (detail, problem)
        for detail, problem in zip(details, problems, strict=True)
        if detail["type"] != "missing" or (detail["loc"][:-1], _did_you_mean(detail["loc"][-1])) not in meant
    ]
    problems = [problem for _, problem in kept]
    if not all(problem.severity == "warning" for problem in problems):
        return None, problems
    repaired = copy.deepcopy(dict(part.value))
    for detail in reversed(details):
        _leave_out(repaired, _path(part.value, detail["loc"]), detail)
    again, further = check_shape(model, Part(value=repaired, document=part.document, path=part.path))
    return again, problems + further


def _did_you_mean(name: Step) -> str:
    return f'did you mean "{name}"?'


def _leave_out(value: Any, path: tuple[Step, ...], detail: ErrorDetails) -> None:
    if path[-1:] == ("to",):
        path = path[:-1]
    for step in path[:-1]:
        value = value[step]
    del value[path[-1]]


def _forgiven(detail: ErrorDetails, path: tuple[Step, ...]) -> bool:
    kind = detail["type"]
    if kind == "extra_forbidden":
        return True
    if kind == "literal_error":
        return path[-1:] == ("mode",)
    return kind in ("missing", "string_too_short") and "transitions" in path[-3:] and "states" in path


def _problem(model: type[BaseModel], part: Part, detail: ErrorDetails, compat: bool) -> Problem:
    path = _path(part.value, detail["loc"])
    code, said, hint = _words(model, detail, path)
    if detail["type"] == "missing" and not path:
        place = part.locate()
    else:
        if (
            detail["type"] == "union_tag_invalid"
            and isinstance(detail["input"], dict)
            and "type" in detail["input"]
        ):
            path = (*path, "type")
        place = part.locate(*path, key=code in ("unknown-key", "missing", "empty-state"))
    if place is None and path:
        said = f"{'.'.join(map(str, (*part.path, *path)))}: {said}"
    severity = "warning" if compat and _forgiven(detail, path) else "error"
    return Problem(code, said, place, hint, severity)


def _path(value: Any, loc: Sequence[Step]) -> tuple[Step, ...]:
    """The part of a validator's location that exists in the data; names of union members are left out."""
    path: list[Step] = []
    for step in loc:
        inside = (isinstance(value, Mapping) and step in value) or (
            isinstance(value, list) and isinstance(step, int) and step < len(value)
        )
        if inside:
            path.append(step)
            value = value[step]
    return tuple(path)


def _words(model: type[BaseModel], detail: ErrorDetails, path: tuple[Step, ...]) -> tuple[str, str, str]:
    kind, given, context = detail["type"], detail["input"], detail.get("ctx", {})
    subject = _subject(path)
    if kind == "extra_forbidden":
        name = str(detail["loc"][-1])
        hint = COMMA_HINT if given is None and " " in name else _key_hint(model, detail["loc"], name)
        return "unknown-key", f'unknown key "{name}"', hint
    if kind == "missing":
        name = str(detail["loc"][-1])
        around = path[:-1] if path[-1:] == (name,) else path
        hint = f"begin the file with `spec: {_spec_of(model)}`" if name == "spec" and not around else ""
        return "missing", f'"{name}" is missing' + (f" in {_subject(around)}" if around else ""), hint
    if kind == "string_too_short":
        return "missing", f"{subject} is empty", ""
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        return _literal(subject, given, known, path)
    if kind == "union_tag_invalid":
        tags = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
        if not any(tag in _TAGS for tag in tags):
            named = str(context.get("tag", ""))
            return "value", f'unknown {subject} type "{named}"', did_you_mean(named, tags)
        wanted = " or ".join(dict.fromkeys(_TAGS[tag] for tag in tags if tag in _TAGS))
        return _type(subject, wanted, given, path)
    if kind == "string_pattern_mismatch" and subject == "in_doubt":
        return _literal(subject, given, list(IN_DOUBT), path)
    if kind == "greater_than_equal":
        return "value", f"{subject} must be at least {context.get('ge', 0):g}", ""
    if kind in _EXPECTED:
        return _type(subject, _EXPECTED[kind], given, path)
    return "value", f"{subject}: {detail['msg'][:1].lower()}{detail['msg'][1:]}", ""


def _spec_of(model: type[BaseModel]) -> str:
    return str(get_args(model.model_fields["spec"].annotation)[0])


def _literal(subject: str, given: Any, known: list[str], path: tuple[Step, ...]) -> tuple[str, str, str]:
    if path == ("spec",):
        hint = did_you_mean(str(given), known)
        if str(given) in SPECS:
            hint = f"{SPECS[str(given)]} cannot be used here"
        return "spec", f"this file says spec: {given}, not spec: {known[0]}", hint
    return "value", f'{subject} cannot be "{given}"', did_you_mean(str(given), known)


def _type(subject: str, wanted: str, given: Any, path: tuple[Step, ...]) -> tuple[str, str, str]:
    if given is None and len(path) == 3 and path[1] == "states":
        return "empty-state", f'the state "{path[2]}" is empty', "give it `type: final`, or transitions"
    hint = ""
    if "text" in wanted and isinstance(given, int | float):
        shown = str(given).lower() if isinstance(given, bool) else given
        hint = f'quote it: "{shown}"'
    return "type", f"{subject} should be {wanted}, not {kind_of(given)}", hint


def kind_of(value: Any) -> str:
    """What a value of a file is called."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return f'the text "{value}"' if len(value) <= 40 else "text"
    return "a mapping" if isinstance(value, Mapping) else "a list"


def _subject(path: tuple[Step, ...]) -> str:
    if not path:
        return "the file"
    if isinstance(path[-1], int):
        return f"{_subject(path[:-1])}[{path[-1]}]"
    return str(path[-1])


def _key_hint(model: type[BaseModel], loc: Sequence[Step], name: str) -> str:
    annotation: Any = model
    union: Any = model
    for step in loc[:-1]:
        union, annotation = annotation, _inner(annotation, step)
    known = sorted({key for found in _models(annotation) for key in keys_of(found)})
    hint = did_you_mean(name, known)
    field = model.model_fields.get("data")
    if hint.startswith("did you mean"):
        return hint
    if elsewhere := [tag for found, tag in _tagged(union) if name in keys_of(found)]:
        return f"it belongs to type: {elsewhere[0]}"
    if field is None or len(loc) > 1:
        return hint
    inside = {key for found in _models(field.annotation) for key in keys_of(found)}
    if name in inside:
        return 'put it under "data"'
    below = did_you_mean(name, inside)
    return below.replace("?", ', under "data"?') if below.startswith("did you mean") else hint


def keys_of(model: type[BaseModel]) -> tuple[str, ...]:
    """The keys a mapping of this model may have, as written in files."""
    return tuple(field.alias or name for name, field in model.model_fields.items())


def _members(annotation: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The alternatives of an annotation, each with its metadata."""
    if isinstance(annotation, type) or annotation is None:
        yield annotation, ()
    elif get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        for member, further in _members(inner):
            yield member, (*further, *metadata)
    elif get_origin(annotation) is Union or type(annotation).__name__ == "UnionType":
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield annotation, ()


def _inner(annotation: Any, step: Step) -> Any:
    """What an annotation says about one step of a location: a tag of a union, a key, or an index."""
    members = list(_members(annotation))
    for member, metadata in members:
        if any(isinstance(note, Tag) and note.tag == step for note in metadata):
            return member
    for member, _ in members:
        if get_origin(member) in (dict, list):
            return get_args(member)[-1]
        if isinstance(member, type) and issubclass(member, BaseModel):
            for name, field in member.model_fields.items():
                if step in (name, field.alias):
                    return field.annotation
    return None


def _tagged(annotation: Any) -> Iterator[tuple[type[BaseModel], str]]:
    """The models of a union whose tag is a `type` written in the file."""
    for member, metadata in _members(annotation):
        tags = [note.tag for note in metadata if isinstance(note, Tag) and note.tag not in _TAGS]
        if tags and isinstance(member, type) and issubclass(member, BaseModel):
            yield member, tags[0]


def _models(annotation: Any) -> list[type[BaseModel]]:
    return [m for m, _ in _members(annotation) if isinstance(m, type) and issubclass(m, BaseModel)]
