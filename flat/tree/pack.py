"""Packs: tools, commands and instructions around one shared state, for any node that lists the pack.

The state is held once, at the nearest instance above whose node declares a boundary for the pack, else at the
root. Tools of a pack see that state and nothing of the node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic

from typing_extensions import TypeVar

from flat.core.op import UNSET, Unset
from flat.errors import CharterError, StateError
from flat.tree.commands import Command, as_command
from flat.tree.context import PackCommandContext, PackContext
from flat.tree.instructions import Instructions, checked_instructions
from flat.tree.naming import named
from flat.tree.schema import Schema, as_schema
from flat.tree.tools import Tool, as_tool

S = TypeVar("S", default=Any)


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Pack(Generic[S]):
    """A reusable module with a state of its own."""

    name: str
    description: str
    instructions: Instructions | None
    validator: type[S] | Schema[S] | Mapping[str, Any]
    tools: Mapping[str, Tool[..., Any]]
    commands: Mapping[str, Command[..., Any]]
    initial_state: Any
    externalize: Callable[..., Any] | None
    schema: Schema[S] = field(init=False)

    def __init__(
        self,
        name: str,
        description: str = "",
        *,
        instructions: Instructions | None = None,
        validator: type[S] | Schema[S] | Mapping[str, Any] = dict,  # type: ignore[assignment]
        tools: Mapping[str, Any] | Iterable[Any] = (),
        commands: Mapping[str, Any] | Iterable[Any] = (),
        initial_state: S | Mapping[str, Any] | Unset = UNSET,
        externalize: Callable[..., Any] | None = None,
    ) -> None:
        where = f'pack "{name}"'
        if not name:
            raise CharterError("name_missing", "a pack needs a name: its shared state is kept under it")
        put = object.__setattr__
        put(self, "name", name)
        put(self, "description", description)
        put(self, "instructions", checked_instructions(instructions, where))
        put(self, "validator", validator)
        put(self, "schema", as_schema(validator))
        put(self, "tools", named(tools, "tool", where, lambda e, k: as_tool(e, k, where, PackContext)))
        put(self, "commands", named(commands, "command", where, lambda e, k: as_command(e, k, where)))
        put(self, "initial_state", initial_value(initial_state, self.schema, where))
        put(self, "externalize", externalize)
        for tool in self.tools.values():
            if not isinstance(tool, Tool):
                raise CharterError(
                    "not_a_tool",
                    f"{where}: a provider's own tool, or a machine, belongs to a node and not to a pack",
                )
        for command in self.commands.values():
            _check_context(command, where)

    def __repr__(self) -> str:
        return f"Pack({self.name!r})"

    def first_state(self) -> Any:
        """The state before anything was written: the initial one, else an empty object with its defaults."""
        if self.initial_state is not UNSET:
            return self.schema.validate(self.initial_state)
        try:
            return self.schema.validate({})
        except StateError:
            return {}


def initial_value(given: Any, schema: Schema[Any], where: str) -> Any:
    """An initial state as plain data, validated once so that no instance begins with one that cannot be."""
    if given is UNSET:
        return UNSET
    try:
        return schema.validate(given)
    except StateError as error:
        raise CharterError(
            "invalid_state", f"{where}: the initial state is refused: {error.message}"
        ) from error


def _check_context(command: Command[..., Any], where: str) -> None:
    for part in command.signature.injected if command.signature else ():
        if part.context is not None and not issubclass(PackCommandContext, part.context):
            raise CharterError(
                "wrong_context",
                f'{where}: the command "{command.name}" asks for a {part.context.__name__}, and gets a '
                f"PackCommandContext here; annotate `{part.name}` with that",
            )
