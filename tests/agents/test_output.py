"""Structured output: finding JSON in an answer, checking it, and putting obvious slips right."""

from __future__ import annotations

from typing import Any

import pytest

from flat.agents.output import OutputSchema, extract_json
from flat.errors import SpecError


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": 1}', [{"a": 1}]),
        ('```json\n{"a": 1}\n```', [{"a": 1}]),
        ('Sure:\n```\n{"a": 1}\n``` done', [{"a": 1}]),
        ('text {"a": 3} tail', [{"a": 3}]),
        ('{"code": "```py\\nx\\n```"}', [{"code": "```py\nx\n```"}]),
        ("so [1, 2] it is", [[1, 2]]),
        ("5", [5]),
        ("null", [None]),
        ('{"a": 1} and {"a": 2}', []),
        ('{"a": 1,}', []),
        ("{'a': 1}", []),
        ('{"a": NaN}', []),
        ("no", []),
        ("", []),
    ],
)
def test_json_is_found_in_prose_and_fences(text: str, found: list[Any]) -> None:
    assert extract_json(text) == found


ALL = {
    "text": {"type": "str"},
    "count": {"type": "int"},
    "share": {"type": "float"},
    "sure": {"type": "bool"},
    "any": {"type": "json"},
    "tags": {"type": "list", "items": {"type": "str", "enum": ["a", "b"]}},
    "who": {
        "type": "object",
        "properties": {"name": {"type": "str"}, "age": {"type": "int", "required": False}},
    },
}


def test_values_are_coerced_where_it_is_obvious() -> None:
    text = (
        '{"text": 5, "count": "7", "share": "0.5", "sure": "true", "any": [1], "tags": [" A", "b"],'
        ' "who": {"name": "Ann"}, "extra": 1}'
    )
    value, problems = OutputSchema(ALL).read(text)
    assert problems == []
    assert value == {
        "text": "5", "count": 7, "share": 0.5, "sure": True, "any": [1], "tags": ["a", "b"],
        "who": {"name": "Ann", "age": None}, "extra": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{}", 'the field "n" is missing'),
        ('{"n": "many"}', 'the field "n"'),
        ('{"n": 1.5}', 'the field "n"'),
        ('{"n": null}', 'the field "n"'),
        ("[1]", "it is not a JSON object"),
        ("", "it is empty"),
        ("words", "it holds no valid JSON"),
    ],
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    _, problems = OutputSchema({"n": {"type": "int"}}).read(text)
    assert len(problems) == 1
    assert problem in problems[0]


def test_nested_problems_name_their_path() -> None:
    _, problems = OutputSchema({"who": {"type": "object", "properties": {"age": {"type": "int"}}}}).read(
        '{"who": {}}'
    )
    assert problems == ['the field "who.age" is missing']


def test_fields_may_have_any_name() -> None:
    names = ["json", "model_config", "copy", "_private", "with blank", "class"]
    schema = OutputSchema({name: {"type": "int"} for name in names})
    value, problems = schema.read(
        '{"json":1,"model_config":2,"copy":3,"_private":4,"with blank":5,"class":6}'
    )
    assert problems == []
    assert value == dict(zip(names, range(1, 7), strict=True))


def test_enums_of_numbers_accept_their_text() -> None:
    schema = OutputSchema({"n": {"type": "int", "enum": [1, 2]}})
    assert schema.read('{"n": "2"}') == ({"n": 2}, [])
    assert schema.json_schema["properties"]["n"] == {"type": "integer", "enum": [1, 2]}


def test_a_schema_with_free_parts_is_not_strict() -> None:
    schema = OutputSchema(
        {"any": {"type": "json", "description": "what you like"}, "n": {"type": "int", "required": False}}
    )
    assert not schema.strict
    assert schema.json_schema == {
        "type": "object",
        "properties": {"any": {"description": "what you like"}, "n": {"type": "integer"}},
        "required": ["any"],
    }


@pytest.mark.parametrize(
    "definition", [{"type": "strng"}, {}, "str", {"type": "list", "items": {"type": "x"}}]
)
def test_an_unknown_type_is_refused(definition: Any) -> None:
    with pytest.raises(SpecError, match=r"output\.a"):
        OutputSchema({"a": definition})
