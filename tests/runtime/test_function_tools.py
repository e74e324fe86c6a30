"""Functions as the tools of a tool loop."""

from __future__ import annotations

from typing import Any

import pytest

from flat import FunctionTools
from flat.errors import DefinitionError
from flat.tree import Ctx, tool

pytestmark = pytest.mark.anyio


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first one.
    """
    return a + b


async def greet(name: str) -> str:
    """Greet somebody."""
    return f"Hello {name}"


@tool(name="shout")
def loud(text: str) -> dict[str, Any]:
    """Say it louder."""
    return {"said": text.upper()}


async def test_what_the_model_is_told_is_read_from_hints_and_docstring() -> None:
    one, _, three = FunctionTools([add, greet, loud]).get_tool_definitions()
    assert one["function"]["name"] == "add"
    assert one["function"]["description"] == "Add two numbers."
    assert one["function"]["parameters"]["required"] == ["a"]
    assert one["function"]["parameters"]["properties"]["a"]["description"] == "The first one."
    assert three["function"]["name"] == "shout"


@pytest.mark.parametrize(
    ("name", "arguments", "content"),
    [
        ("add", {"a": 2}, "3"),
        ("greet", {"name": "Ada"}, "Hello Ada"),
        ("shout", {"text": "x"}, '{"said":"X"}'),
    ],
)
async def test_functions_are_called_with_the_models_arguments(
    name: str, arguments: dict[str, Any], content: str
) -> None:
    result = await FunctionTools([add, greet, loud]).execute_tool(name, "c1", arguments)
    assert (result.content, result.is_error) == (content, False)


async def test_an_unknown_tool_is_an_answer_with_those_that_are_there() -> None:
    result = await FunctionTools([add]).execute_tool("ad", "c1", {})
    assert result.is_error
    assert 'did you mean "add"?' in result.content


async def test_arguments_that_do_not_fit_say_which() -> None:
    with pytest.raises(Exception, match=r"`a`: .*valid integer"):
        await FunctionTools([add]).execute_tool("add", "c1", {"a": "many"})


def test_a_function_that_asks_for_the_context_of_a_tree_is_refused() -> None:
    def look(ctx: Ctx[Any]) -> str:
        return ""

    with pytest.raises(DefinitionError, match="asks for the context of a tree"):
        FunctionTools([look])
