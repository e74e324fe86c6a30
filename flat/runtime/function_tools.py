"""Plain functions as the tools of a tool loop.

    class Hooks(MachineHooks):
        def get_tool_provider(self, state_name):
            return FunctionTools([read, write])

What the model is told is read from the type hints and the docstring, as for the tools of a tree; arguments that do not
fit, and whatever a function raises, are answers that the model can act on.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from flat.agents.tools import SimpleToolProvider, Tool, ToolResult
from flat.errors import DefinitionError
from flat.tree.tools import Tool as TreeTool
from flat.tree.tools import output_text, tool_of


class FunctionTools(SimpleToolProvider):
    """A tool provider made of functions, async ones among them, or of what the decorator `tool` made of them."""

    def __init__(self, functions: Iterable[Callable[..., Any]]) -> None:
        super().__init__(map(_tool, functions))


def _tool(function: Callable[..., Any]) -> Tool:
    found = function if isinstance(function, TreeTool) else tool_of(function)
    if found.signature is not None and found.signature.injected:
        raise DefinitionError(
            f'the tool "{found.name}" asks for the context of a tree, which a machine of states does not have'
        )

    async def execute(tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
        answer = found.invoke(found.schema.parse(arguments), None)
        return ToolResult(output_text(await answer if inspect.isawaitable(answer) else answer))

    return Tool(found.name, found.description, found.schema.json_schema(), execute)
