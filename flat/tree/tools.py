"""Tools: author's code that a model may call, read from a function's type hints and docstring.

    @tool
    async def add_leg(city: str, ctx: Ctx[Desk]) -> str:
        '''Add one leg to the trip.'''
        ctx.update_state({"legs": [*ctx.state["legs"], city]})
        return f"added {city}"

The parameter annotated with a context class is passed in and hidden from the model. Calling a `Tool` calls the
function, so that it can be tested by itself. How a model's call is run is told in `flat.tree.calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, TypeAlias, overload

from pydantic_core import to_json

from flat.errors import CharterError
from flat.tree.context import StateContext
from flat.tree.machines import MachineTool
from flat.tree.naming import free_tool_name, same_name
from flat.tree.operation import Operation, P, R
from flat.tree.signature import Signature, decorated, read_signature

OwnerState: TypeAlias = Literal["read", "write"]


class Tool(Operation[P, R]):
    """A function that a model may call.

    Made by the decorator `tool`, or from a schema and a function of `(input, ctx)`:

    >>> Tool("lookup", "Find a fare", input_schema=Fare, execute=find)

    `in_doubt` says what happens when the process died while the tool ran: `fail` tells the model that the
    outcome is unknown, `retry` runs it again (declare that with `safe=True`), `ask` waits for a person and
    `verify:<name>` calls a function that tells. `owner_state="write"` lets a tool of an ancestor change that
    ancestor's state while the primary runs.
    """

    kind = "tool"

    def __init__(
        self,
        name: str,
        description: str = "",
        input_schema: Any = None,
        execute: Callable[..., Any] | None = None,
        *,
        terminal: bool = False,
        safe: bool = False,
        in_doubt: str | None = None,
        timeout: float | None = None,
        owner_state: OwnerState = "read",
        signature: Signature[Any] | None = None,
    ) -> None:
        super().__init__(
            name, description, input_schema, execute, safe=safe, in_doubt=in_doubt, signature=signature
        )
        self.terminal, self.timeout, self.owner_state = terminal, timeout, owner_state

    def check_context(self, allowed: type[Any], where: str) -> None:
        """Refuse a tool whose function is written for another kind of owner."""
        for part in self.signature.injected if self.signature else ():
            if part.context is not None and not issubclass(allowed, part.context):
                raise CharterError(
                    "wrong_context",
                    f'{where}: the tool "{self.name}" asks for a {part.context.__name__}, and gets a '
                    f"{allowed.__name__} here; annotate `{part.name}` with that",
                )


@dataclass(frozen=True, slots=True)
class BuiltinTool:
    """A tool that the model provider runs itself, such as its web search."""

    name: str
    builtin_type: str
    type: str = "anthropic-builtin"


@dataclass(frozen=True, slots=True)
class ToolReply:
    """A tool's answer in two versions: one for the user, text or data, and one for the model."""

    user_message: Any
    llm_message: Any


def tool_reply(user_message: Any, llm_message: Any) -> ToolReply:
    """Show one thing to the user and tell the model another."""
    return ToolReply(user_message, llm_message)


@overload
def tool(fn: Callable[P, R], /) -> Tool[P, R]: ...
@overload
def tool(
    description: str | None = None,
    /,
    *,
    name: str | None = None,
    terminal: bool = False,
    safe: bool = False,
    in_doubt: str | None = None,
    timeout: float | None = None,
    owner_state: OwnerState = "read",
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...
def tool(first: Any = None, /, **options: Any) -> Any:
    """Make a tool of a function: `@tool`, `@tool("what it does")` or `@tool(terminal=True)`."""
    return decorated(tool_of, first, options)


def tool_of(
    fn: Callable[..., Any],
    frame: FrameType | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    **options: Any,
) -> Tool[..., Any]:
    """A tool that reads its schema from a function."""
    signature = read_signature(fn, contexts={StateContext: "ctx"}, frame=frame)
    name = name or signature.name
    return Tool(name, description or signature.description, execute=fn, signature=signature, **options)


ToolEntry: TypeAlias = "Tool[..., Any] | BuiltinTool | MachineTool"


def as_tool(entry: Any, key: str | None, where: str, allowed: type[Any]) -> ToolEntry:
    """Whatever an author may list as a tool: a tool, a provider's tool, or a plain function."""
    if isinstance(entry, BuiltinTool | MachineTool):
        same_name(key or entry.name, entry.name, "tool", where)
        free_tool_name(entry.name, where)
        return entry
    if not callable(entry):
        raise CharterError("not_a_tool", f"{where}: {entry!r} is no tool; decorate a function with `@tool`")
    found: Tool[..., Any] = entry if isinstance(entry, Tool) else tool_of(entry, name=key)
    same_name(key or found.name, found.name, "tool", where)
    free_tool_name(found.name, where)
    found.check_context(allowed, where)
    return found


def output_text(value: Any) -> str:
    """What a tool gave, as the model reads it: text as it is, nothing as nothing, anything else as compact JSON."""
    if isinstance(value, str):
        return value
    return "" if value is None else to_json(value).decode()


def tool_options(entry: ToolEntry) -> Mapping[str, Any]:
    """The settings of a tool that the engine needs to know, as plain data."""
    if isinstance(entry, BuiltinTool):
        return {}
    if isinstance(entry, MachineTool):
        return {"machine": entry.use.program, **({"timeout": entry.timeout} if entry.timeout else {})}
    options = {"in_doubt": entry.in_doubt, "timeout": entry.timeout, "terminal": entry.terminal}
    return {key: value for key, value in options.items() if value}
