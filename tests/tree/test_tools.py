"""How functions become tools: names, schemas, hidden parameters, inputs and outputs."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from travel import add_leg, goodbye, lookup_fare

from flat.errors import CharterError, StateError
from flat.tree import Ctx, Tool, tool
from flat.tree.tools import output_text


class Seat(Enum):
    AISLE = "aisle"
    WINDOW = "window"


class Leg(BaseModel):
    city: str
    nights: int = 1


def test_a_function_gives_name_description_and_schema() -> None:
    assert add_leg.name == "add_leg"
    assert add_leg.description == "Add one leg to the trip."
    assert add_leg.schema.json_schema() == {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Where to go."}},
        "required": ["city"],
        "additionalProperties": False,
    }


def test_the_context_is_hidden_wherever_it_stands() -> None:
    @tool
    def odd(ctx: Ctx[Any], city: str) -> str:
        return city

    assert list(odd.schema.json_schema()["properties"]) == ["city"]


def test_types_defaults_and_notes_reach_the_schema() -> None:
    @tool("Book")
    def book(
        legs: list[Leg],
        seat: Seat = Seat.AISLE,
        nights: Annotated[int, Field(gt=0, description="How long")] = 2,
        kind: Literal["one", "round"] | None = None,
        json: int = Field(4, description="a name that models shadow"),
    ) -> str:
        """Book it all.

        :param seat: where to
            sit
        """
        return f"{legs[0].city} {seat.name} {nights} {kind} {json}"

    schema = book.schema.json_schema()
    assert schema["required"] == ["legs"]
    assert schema["properties"]["nights"] == {
        "type": "integer",
        "exclusiveMinimum": 0,
        "description": "How long",
        "default": 2,
    }
    assert schema["properties"]["seat"]["description"] == "where to sit"
    assert schema["properties"]["json"] == {
        "type": "integer",
        "description": "a name that models shadow",
        "default": 4,
    }
    assert book.description == "Book"
    parsed = book.schema.parse({"legs": [{"city": "Oslo"}], "seat": "window"})
    assert book.invoke(parsed, None) == "Oslo WINDOW 2 None 4"


def test_every_fault_of_an_input_is_told_with_its_path() -> None:
    with pytest.raises(StateError) as caught:
        add_leg.schema.parse({"city": 3, "town": "Oslo"})
    assert [path for path, _ in caught.value.errors] == ["city", "town"]
    assert "`city`: Input should be a valid string, got 3" in str(caught.value)


def test_defaults_are_fresh_in_every_call() -> None:
    @tool
    def collect(item: str, into: list[str] = []) -> list[str]:  # noqa: B006
        into.append(item)
        return into

    assert collect.invoke(collect.schema.parse({"item": "a"}), None) == ["a"]
    assert collect.invoke(collect.schema.parse({"item": "b"}), None) == ["b"]


def test_a_decorated_function_can_still_be_called() -> None:
    assert lookup_fare("Oslo")["fare"] == 118


def test_a_tool_can_be_made_of_a_schema_and_a_function_of_the_parsed_input() -> None:
    explicit = Tool("sum", "Add", input_schema=Leg, execute=lambda leg, ctx: f"{leg.city} {ctx}")
    assert explicit.invoke(explicit.schema.parse({"city": "Oslo"}), "here") == "Oslo here"
    alone = Tool("one", input_schema={"type": "object"}, execute=lambda given: given)
    assert alone.invoke({"a": 1}, None) == {"a": 1}


def test_parameters_that_cannot_be_filled_by_name_are_refused() -> None:
    def many(*cities: str) -> str:
        return ""

    def keyed(**cities: str) -> str:
        return ""

    for fn in (many, keyed):
        with pytest.raises(CharterError, match="cannot be filled in by name"):
            tool(fn)


def test_a_hint_that_means_nothing_is_refused_with_its_name() -> None:
    def lost(city: Nowhere) -> str:  # type: ignore[name-defined]  # noqa: F821
        return ""

    with pytest.raises(CharterError, match=r'tool "lost".*Nowhere'):
        tool(lost)


def test_a_tool_without_code_is_refused() -> None:
    with pytest.raises(CharterError, match="`execute` is missing"):
        Tool("x")


def test_in_doubt_is_told_to_the_model_unless_the_tool_is_safe() -> None:
    assert add_leg.in_doubt == "fail"
    assert lookup_fare.in_doubt == "retry"
    assert Tool("x", execute=print, in_doubt="verify:sent").in_doubt == "verify:sent"
    with pytest.raises(CharterError, match="verify:<name>"):
        Tool("x", execute=print, in_doubt="maybe")


def test_options_reach_the_tool() -> None:
    assert goodbye.terminal
    assert not add_leg.terminal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("as it is", "as it is"),
        (None, ""),
        ({"a": [1, "€"], "b": None}, '{"a":[1,"€"],"b":null}'),
        (Leg(city="Oslo"), '{"city":"Oslo","nights":1}'),
        (True, "true"),
        (3, "3"),
    ],
)
def test_output_is_text_or_compact_json(value: Any, text: str) -> None:
    assert output_text(value) == text
