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


BOUNDED: dict[str, Any] = {
    "name": {"type": "str", "description": "Who it is.", "minLength": 2, "maxLength": 5},
    "tags": {"type": "list", "items": {"type": "str", "maxLength": 3}, "minItems": 1, "maxItems": 2},
    "age": {"type": "int", "minimum": 0, "maximum": 150},
    "share": {"type": "float", "maximum": 0.5, "required": False},
}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"name": "Annabel", "tags": ["a"], "age": 3}', 'the field "name": String should have at most 5'),
        ('{"name": "A", "tags": ["a"], "age": 3}', 'the field "name": String should have at least 2'),
        ('{"name": "Ann", "tags": [], "age": 3}', 'the field "tags": List should have at least 1'),
        ('{"name": "Ann", "tags": ["a", "b", "c"], "age": 3}', 'the field "tags": List should have at most 2'),
        ('{"name": "Ann", "tags": ["long"], "age": 3}', 'the field "tags.0": String should have at most 3'),
        ('{"name": "Ann", "tags": ["a"], "age": -1}', 'the field "age": Input should be greater than or equal to 0'),
        ('{"name": "Ann", "tags": ["a"], "age": 3, "share": 1}', 'the field "share": Input should be less than'),
    ],
)  # fmt: skip
def test_an_answer_beyond_its_bounds_is_a_problem(answer: str, problem: str) -> None:
    _, problems = OutputSchema(BOUNDED).read(answer)
    assert len(problems) == 1
    assert problem in problems[0]


def test_an_answer_within_its_bounds_is_put_right_as_ever() -> None:
    value, problems = OutputSchema(BOUNDED).read(
        '{"name": 12345, "tags": ["abc", "d"], "age": "150", "share": null}'
    )
    assert (value, problems) == ({"name": "12345", "tags": ["abc", "d"], "age": 150, "share": None}, [])


def test_bounds_are_told_in_words_that_every_provider_takes() -> None:
    schema = OutputSchema(BOUNDED)
    assert schema.strict
    assert schema.json_schema["properties"] == {
        "name": {
            "type": "string",
            "description": "Who it is. Characters: at least 2, at most 5.",
        },
        "tags": {
            "type": "array",
            "items": {"type": "string", "description": "Characters: at most 3."},
            "description": "Entries: at least 1, at most 2.",
        },
        "age": {"type": "integer", "description": "At least 0, at most 150."},
        "share": {"anyOf": [{"type": "number", "description": "At most 0.5."}, {"type": "null"}]},
    }


def test_a_grammar_gets_them_as_they_are_as_far_as_it_counts() -> None:
    schema = OutputSchema({**BOUNDED, "essay": {"type": "str", "maxLength": 2001}}, grammar=True)
    assert schema.json_schema["properties"] == {
        "name": {"type": "string", "description": "Who it is.", "minLength": 2, "maxLength": 5},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "share": {"anyOf": [{"type": "number", "maximum": 0.5}, {"type": "null"}]},
        "essay": {"type": "string"},
    }


@pytest.mark.parametrize(
    ("definition", "said"),
    [
        ({"type": "int", "maxLength": 3}, "`maxLength` is for str, and `type` is int"),
        ({"type": "bool", "maximum": 3}, "`maximum` is for int and float, and `type` is bool"),
        ({"type": "json", "maxItems": 3}, "`maxItems` is for list, and `type` is json"),
        ({"type": "object", "minItems": 3}, "`minItems` is for list, and `type` is object"),
        ({"type": "str", "enum": ["a"], "maxLength": 3}, "`maxLength` says nothing beside `enum`"),
        ({"type": "str", "maxLength": -1}, "`maxLength` is -1; give a whole number, 0 or more"),
        ({"type": "list", "maxItems": 2.5}, r"`maxItems` is 2\.5; give a whole number, 0 or more"),
        ({"type": "int", "minimum": 1.5}, r"`minimum` is 1\.5; give a whole number"),
        ({"type": "int", "minimum": True}, "`minimum` is True; give a whole number"),
        ({"type": "float", "minimum": float("nan")}, "`minimum` is nan; give a number"),
        ({"type": "str", "minLength": 5, "maxLength": 3}, "`minLength` is 5, more than `maxLength`, 3"),
        ({"type": "list", "minItems": 2, "maxItems": 1}, "`minItems` is 2, more than `maxItems`, 1"),
        ({"type": "int", "minimum": 2, "maximum": -2}, "`minimum` is 2, more than `maximum`, -2"),
    ],
)
def test_a_bound_that_nothing_meets_is_refused(definition: dict[str, Any], said: str) -> None:
    for nested in ({"a": definition}, {"a": {"type": "list", "items": definition}}):
        with pytest.raises(SpecError, match=said):
            OutputSchema(nested)
