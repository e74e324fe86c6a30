"""Other machines inside a tree: as a tool that a model calls, and as a node that works like a worker.

    desk = Node("…", Desk, tools=[machine_tool("invoice", "Write an invoice", input_schema=Order)])
    onboarding = machine_node("onboarding", input=lambda state: {"name": state["name"]})

Either runs as an execution of its own, started by the engine and found again after a restart. What is here says
what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flat.errors import CallRefused, CharterError
from flat.tree.schema import Schema, as_plain, as_schema


@dataclass(frozen=True, slots=True)
class MachineUse:
    """A machine by name, and what it is given and gives, as functions of plain data."""

    program: str
    input: Callable[[Any], Mapping[str, Any]] | None = None
    """Makes the machine's input: of a tool's arguments, or of a node's state. None hands them on as they are."""
    output: Callable[[Any], Any] | None = None
    """Makes the tool's result, or what the node cedes, of the machine's output. None hands it on as it is."""

    def given(self, value: Any) -> Mapping[str, Any]:
        """The input of the machine. Raises `CallRefused` when it is no object."""
        plain = as_plain(value)
        made = as_plain(self.input(plain)) if self.input is not None else plain
        if not isinstance(made, Mapping):
            raise CallRefused(
                "bad_input", f'the input of the machine "{self.program}" is an object, got {made!r}'
            )
        return made

    def result(self, output: Any) -> Any:
        """What becomes of the machine's output."""
        return self.output(as_plain(output)) if self.output is not None else output


class MachineTool:
    """A machine that a model may start and wait for."""

    def __init__(
        self, name: str, description: str, schema: Schema[Any], use: MachineUse, timeout: float | None
    ) -> None:
        self.name, self.description, self.schema, self.use, self.timeout = (
            name,
            description,
            schema,
            use,
            timeout,
        )

    def __repr__(self) -> str:
        return f"MachineTool({self.name!r}, {self.use.program!r})"


def machine_tool(
    program: str,
    description: str = "",
    *,
    name: str | None = None,
    input_schema: Any = None,
    input: Callable[[Any], Mapping[str, Any]] | None = None,
    output: Callable[[Any], Any] | None = None,
    timeout: float | None = None,
) -> MachineTool:
    """Offer a machine as a tool. The model's arguments are its input and its output is the result."""
    if not program:
        raise CharterError("incomplete", "a machine tool needs the name of its machine")
    schema = as_schema(input_schema if input_schema is not None else {"type": "object"})
    use = MachineUse(program, input, output)
    return MachineTool(name or program, description or f'Run "{program}".', schema, use, timeout)
