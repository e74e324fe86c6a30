"""Commands: named operations that a person calls directly, with no model involved.

    @command
    def clear(ctx: CommandCtx[Desk]) -> CommandResult:
        '''Start over.'''
        ctx.replace_state(Desk())
        return command_result("cleared")

A command of a node returns a command result, one of the four results of a transition, or a resume. A command
computes changes and makes none itself; how it is run is told in `flat.tree.calls`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, overload

from flat.core.op import UNSET
from flat.errors import CharterError
from flat.tree.context import StateContext
from flat.tree.messages import Message
from flat.tree.naming import same_name
from flat.tree.operation import Operation, P, R
from flat.tree.schema import JsonObject
from flat.tree.signature import Signature, decorated, read_signature


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command answers, and messages for the queue."""

    payload: Any = None
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class ResumeResult:
    """The instance waits no more; a payload is told to it."""

    payload: Any = UNSET


def command_result(payload: Any = None, messages: Sequence[Message] | None = None) -> CommandResult:
    """Answer a command."""
    return CommandResult(payload, tuple(messages or ()))


def command_resume(payload: Any = UNSET) -> ResumeResult:
    """Resume the instance that the command runs for."""
    return ResumeResult(payload)


class Command(Operation[P, R]):
    """A named operation. Made by `@command`, or from a schema and a function of `(input, ctx)`.

    `in_doubt` says what happens when the process died while it ran, as for tools: it has failed, unless it is declared
    `safe`, that is, does nothing but change the tree, and then it is run again.
    """

    kind = "command"

    def __init__(
        self,
        name: str,
        description: str = "",
        input_schema: Any = None,
        execute: Callable[..., Any] | None = None,
        *,
        safe: bool = False,
        in_doubt: str | None = None,
        signature: Signature[Any] | None = None,
    ) -> None:
        super().__init__(
            name, description, input_schema, execute, safe=safe, in_doubt=in_doubt, signature=signature
        )


@dataclass(frozen=True, slots=True)
class CommandInfo:
    """What may be called now."""

    name: str
    description: str
    input_schema: JsonObject


@overload
def command(fn: Callable[P, R], /) -> Command[P, R]: ...
@overload
def command(
    description: str | None = None,
    /,
    *,
    name: str | None = None,
    safe: bool = False,
    in_doubt: str | None = None,
) -> Callable[[Callable[P, R]], Command[P, R]]: ...
def command(first: Any = None, /, **options: Any) -> Any:
    """Make a command of a function: `@command` or `@command("what it does")`."""
    return decorated(command_of, first, options)


def command_of(
    fn: Callable[..., Any],
    frame: FrameType | None = None,
    *,
    name: str | None = None,
    description: str | None = None,
    **options: Any,
) -> Command[..., Any]:
    """A command that reads its input from a function."""
    signature = read_signature(fn, contexts={StateContext: "ctx"}, frame=frame, what="command")
    return Command(
        name or signature.name,
        description or signature.description,
        execute=fn,
        signature=signature,
        **options,
    )


def as_command(entry: Any, key: str | None, where: str) -> Command[..., Any]:
    """Whatever an author may list as a command."""
    if not callable(entry):
        raise CharterError(
            "not_a_command", f"{where}: {entry!r} is no command; decorate a function with `@command`"
        )
    found: Command[..., Any] = entry if isinstance(entry, Command) else command_of(entry, name=key)
    same_name(key or found.name, found.name, "command", where)
    return found
