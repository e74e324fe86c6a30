"""Tools that a model may call: what they are, and who carries them out.

    async def add(tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
        return ToolResult(str(arguments["a"] + arguments["b"]))

    provider = SimpleToolProvider([Tool("add", "Adds two numbers.", {"type": "object", …}, add)])

A definition is in OpenAI's form: `{type: function, function: {name, description?, parameters?}}`. An agent only
asks for tools; carrying them out is the engine's tool loop, or `ToolLoopAgent` outside of a machine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol, runtime_checkable

from flat.core.record import record
from flat.errors import SpecError, did_you_mean

Definition = Mapping[str, Any]


@record
class ToolResult:
    """What a tool gave, as the text that the model gets to read."""

    content: str
    is_error: bool = False


@runtime_checkable
class ToolProvider(Protocol):
    """Something that has tools and can carry them out."""

    async def execute_tool(
        self, name: str, tool_call_id: str, arguments: Mapping[str, Any]
    ) -> ToolResult: ...

    def get_tool_definitions(self) -> Sequence[Definition]: ...


@record
class Tool:
    """One tool: what the model is told of it, and the function behind it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """A JSON schema of the arguments."""
    execute: Callable[[str, Mapping[str, Any]], Awaitable[ToolResult]] = field()
    """Called with the id of the call and its arguments."""

    def definition(self) -> dict[str, Any]:
        """What the model is told, in OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


class SimpleToolProvider:
    """A provider of the given tools."""

    def __init__(self, tools: Iterable[Tool]) -> None:
        self._tools = {tool.name: tool for tool in tools}

    def get_tool_definitions(self) -> list[dict[str, Any]]:
        """The definitions of all tools, in the order they were given."""
        return [tool.definition() for tool in self._tools.values()]

    async def execute_tool(self, name: str, tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Run the tool. An unknown one is an error that the model gets to read, not an exception."""
        tool = self._tools.get(name)
        if tool is None:
            return ToolResult(f"Unknown tool: {name}; {did_you_mean(name, self._tools)}", is_error=True)
        return await tool.execute(tool_call_id, arguments)


def check_definitions(tools: Any, owner: str) -> tuple[Definition, ...]:
    """The `tools:` of a config. Raises `SpecError` for one that no provider would understand."""
    if tools is None:
        return ()
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise SpecError(f"{owner}: `tools` is a list of function definitions, not {tools!r}")
    for number, tool in enumerate(tools):
        where = f"{owner}: tools[{number}]"
        if not isinstance(tool, Mapping) or tool.get("type") != "function":
            raise SpecError(f"{where}: a tool is written as {{type: function, function: {{name: …}}}}")
        function = tool.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise SpecError(f"{where}: `function.name` is missing")
    return tuple(tools)


def tool_name(definition: Definition) -> str:
    """The name a model calls it by."""
    return str(definition["function"]["name"])


def merged(*groups: Iterable[Definition]) -> tuple[Definition, ...]:
    """All definitions, each name once: the first that has it wins."""
    found: dict[str, Definition] = {}
    for group in groups:
        for definition in group:
            found.setdefault(tool_name(definition), definition)
    return tuple(found.values())
