"""The generated JSON Schemas: fresh, documented, and of one mind with the loader."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest

from flat.errors import SpecError
from flat.spec.narrow import kind_of, narrowed, read
from flat.spec.parse import parse
from flat.spec.schema import DRAFT, KINDS, MODELS, SPECS, render, schema, write

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(
    file
    for file in (ROOT / "examples").rglob("*.y*ml")
    if re.search(r"^spec:", file.read_text(), re.MULTILINE)
)
ERRORS = ROOT / "tests" / "golden" / "errors"


def valid(kind: str | dict[str, Any], value: Any) -> bool:
    body = schema(kind) if isinstance(kind, str) else kind
    return jsonschema.Draft7Validator(body).is_valid(value)


def properties(node: Any, where: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every property that is described anywhere in a schema; not those that a condition looks at."""
    if isinstance(node, list):
        for item in node:
            yield from properties(item, where)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key == "properties":
                yield from ((f"{where}.{name}", part) for name, part in value.items())
            if key == "properties":
                for name, part in value.items():
                    yield from properties(part, f"{where}.{name}")
            elif key not in ("if", "examples", "default", "enum"):
                yield from properties(value, f"{where}.{key}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_schemas_in_the_repository_are_fresh(kind: str) -> None:
    assert (ROOT / "schemas" / f"{kind}.json").read_text(encoding="utf-8") == render(kind), (
        "run: python -m flat.spec.schema"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_description_and_an_example(kind: str) -> None:
    found = list(properties(schema(kind)))
    assert len(found) > 5
    for name, field in found:
        assert field.get("description"), name
        assert field.get("examples"), name


@pytest.mark.parametrize("kind", KINDS)
def test_schemas_say_only_what_their_draft_knows(kind: str) -> None:
    body = schema(kind)
    jsonschema.Draft7Validator.check_schema(body)
    assert body["$schema"] == DRAFT
    known = {
        "$schema", "$id", "$ref", "title", "description", "examples", "default", "type", "enum", "const", "properties",
        "required", "additionalProperties", "items", "minItems", "maxItems", "minimum", "maximum", "exclusiveMinimum",
        "minLength", "maxLength", "pattern", "anyOf", "allOf", "if", "then", "else", "definitions",
    }  # fmt: skip

    def check(node: Any) -> None:
        assert node.keys() <= known
        assert "$ref" not in node or len(node) == 1, "what stands beside a reference is ignored"
        for key in ("items", "additionalProperties", "if", "then", "else"):
            for one in part if isinstance(part := node.get(key), list) else [part]:
                if isinstance(one, dict):
                    check(one)
        for key in ("anyOf", "allOf"):
            for one in node.get(key, ()):
                check(one)
        for key in ("properties", "definitions"):
            for one in node.get(key, {}).values():
                check(one)

    check(body)


@pytest.mark.parametrize("kind", [*MODELS, "checkpoint"])
def test_the_examples_of_the_fields_fit_the_fields(kind: str) -> None:
    body = schema(kind)
    for name, field in properties(body):
        for example in field["examples"]:
            if example in ({}, [{}]):  # "something goes here"
                continue
            part = {**field, "definitions": body["definitions"]}
            errors = [e.message for e in jsonschema.Draft7Validator(part).iter_errors(example)]
            # An example may leave out what it is not an example of.
            assert not [
                e for e in errors if "required property" not in e and "not valid under any" not in e
            ], name


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda f: f.relative_to(ROOT).as_posix())
def test_every_example_file_is_valid(file: Path) -> None:
    document = read(file)
    assert valid("flat", document.value)
    assert valid(kind_of(document), document.value)
    assert valid(narrowed(document), document.value)


def test_there_are_examples_of_every_kind() -> None:
    assert {kind_of(read(file)) for file in EXAMPLES} == set(MODELS)


SHAPE_ERRORS = ("unknown-key", "type-", "value-", "missing-target", "spec-wrong", "spec-missing")


@pytest.mark.parametrize(
    "file",
    [f for f in sorted(ERRORS.glob("*.yml")) if f.name.startswith(SHAPE_ERRORS) and "compat" not in f.name],
    ids=lambda f: f.stem,
)
def test_what_the_loader_refuses_for_its_shape_the_schema_refuses_too(file: Path) -> None:
    try:
        value = parse(file.read_bytes(), file.name).value
    except SpecError:
        pytest.fail("this file is for the parser's errors, and named like one for the shape's")
    assert not valid("flat", value)


MACHINE = """\
spec: flatmachine
spec_version: 4.2
data:
  context:
  agents: {writer: ./a.yml}
  machines:
    kid: ./kid.yml
    inner: {spec: flatmachine, data: {states: {elsewhere: {type: final}}}}
  states:
    one:
      type: initial
      hooks: mine
      agent: writer
      machine: [kid, {name: inner}]
      launch: kid
      on_error: {default: two}
      transitions: [{to: two}]
    two: {type: final, on_error: one}
"""


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    path = tmp_path / "machine.yml"
    path.write_text(MACHINE)
    return path


def changed(file: Path, old: str, new: str) -> Any:
    assert old in MACHINE
    return parse(MACHINE.replace(old, new), file.name).value


def test_a_version_may_be_a_number_and_a_key_may_be_empty(machine: Path) -> None:
    assert valid("machine", read(machine).value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[{to: two}]", "[{to: tow}]"),
        ("agent: writer", "agent: writr"),
        ("[kid, {name: inner}]", "[kdi]"),
        ("[kid, {name: inner}]", "kdi"),
        ("[kid, {name: inner}]", "[{name: iner}]"),
        ("launch: kid", "launch: kdi"),
        ("launch: kid", "launch: [kdi]"),
        ("{default: two}", "{default: tow}"),
        ("{type: final, on_error: one}", "{type: final, on_error: tow}"),
    ],
)
def test_a_schema_for_a_file_knows_its_names(machine: Path, old: str, new: str) -> None:
    body = narrowed(read(machine))
    jsonschema.Draft7Validator.check_schema(body)
    assert valid(body, read(machine).value)
    assert valid("machine", changed(machine, old, new))
    assert not valid(body, changed(machine, old, new))


def test_a_file_with_errors_has_a_schema_too(machine: Path) -> None:
    machine.write_text(MACHINE.replace("to: two", "too: 5").replace("type: initial", "type: initail"))
    body = narrowed(read(machine))
    assert body["definitions"]["ThisTransition"]["properties"]["to"]["enum"] == ["one", "two"]
    machine.write_text("spec: flatmachine\ndata: 5\n")
    assert valid(narrowed(read(machine)), {"spec": "flatmachine", "data": {"states": {"a": {"agent": "b"}}}})
    machine.write_text("spec: [\n")
    with pytest.raises(SpecError):
        read(machine)
    machine.write_text("spec: flatmachin\n")
    with pytest.raises(SpecError, match="flatmachine"):
        kind_of(read(machine))
    with pytest.raises(SpecError, match="cannot read"):
        read(machine.parent / "nope.yml")


def test_hooks_are_offered_and_others_are_taken(machine: Path) -> None:
    body = narrowed(read(machine), ["logging", "yours"])
    offered = orjson.dumps(body["definitions"]["ThisState"]["properties"]["hooks"])
    assert b'"enum":["logging","mine","yours"]' in offered
    assert valid(body, changed(machine, "hooks: mine", "hooks: [{name: other}]"))


def test_every_spec_leads_to_a_kind() -> None:
    assert set(SPECS.values()) == set(MODELS)
    for spec in SPECS:
        assert not valid("flat", {"spec": spec, "surely_unknown": 1})


@pytest.mark.parametrize(
    "file", sorted((ROOT / "tests/golden/snapshots").glob("*.json")), ids=lambda f: f.stem
)
def test_stored_bodies_are_as_their_schema_says(file: Path) -> None:
    for body in orjson.loads(file.read_bytes())["bodies"]:
        jsonschema.Draft7Validator(schema("checkpoint")).validate(orjson.loads(body))


def test_a_body_with_more_in_it_is_refused() -> None:
    assert valid("checkpoint", {"t": 5, "c": {"a": {"$": ["set", [1]]}}})
    assert not valid("checkpoint", {"t": 5, "x": 1})
    assert not valid("checkpoint", {"t": 5, "c": {"a": {"$": ["set"]}}})
    assert not valid("checkpoint", {"format": 1})


def test_writing_gives_one_file_for_each_kind(tmp_path: Path) -> None:
    write(tmp_path / "schemas")
    assert sorted(path.stem for path in (tmp_path / "schemas").iterdir()) == sorted(KINDS)
