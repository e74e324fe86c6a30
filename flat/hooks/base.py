"""The hooks interface: code of the user's that is called at fixed points, by name.

A hook that may change the outcome is a *steering* hook: what it returns is recorded like any other effect. A
method marked `@observer` only watches; it is called without a record, and cannot change anything. Points that
a class does not override cost nothing.

Observers of the points in `TOLD` are told after the fact, when it is stored. At the others (an error that nobody
routes, the tools of a model) there is no such moment: their observers are called in place, with a copy of the
context, and what they return is dropped.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, TypeAlias, TypeVar

from flat.errors import BindingError

Context: TypeAlias = dict[str, Any]
F = TypeVar("F", bound=Callable[..., Any])

POINTS = {
    "machine_start": "on_machine_start",
    "machine_end": "on_machine_end",
    "state_enter": "on_state_enter",
    "state_exit": "on_state_exit",
    "transition": "on_transition",
    "error": "on_error",
    "tool_calls": "on_tool_calls",
    "tool_result": "on_tool_result",
}
"""The method of each point that an effect may ask for. `on_action` is an effect of another kind."""

TOLD = frozenset({"machine_start", "machine_end", "state_enter", "state_exit", "transition"})
"""Points whose observers a run tells itself, after the commit."""

log = logging.getLogger("flat.hooks")


def observer(method: F) -> F:
    """Mark a hook method as one that only watches."""
    point = method.__name__.removeprefix("on_")
    marked = _harmless(method) if point in POINTS and point not in TOLD else method
    marked.__observer__ = True  # type: ignore[attr-defined]
    return marked  # type: ignore[return-value]


def _harmless(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, called with copies, without an answer, and with its errors logged."""

    @wraps(method)
    async def watch(*args: Any) -> None:
        hooks, *given = args
        try:
            # An error is no data, and a copy of it would lose where it came from.
            seen = [one if isinstance(one, BaseException) else copy.deepcopy(one) for one in given]
            await settled(method(hooks, *seen))
        except Exception:
            log.exception("observing hook %s of %s raised", method.__name__, type(hooks).__name__)

    return watch


class MachineHooks:
    """Base of hooks. Override what you need; methods may be plain or `async`.

    A method that gets the context may change it in place, or return another one; None means "as it is now".

    A class may also have a method `async def on_background(self, context)`. It runs beside each execution that the
    object serves, for as long as this process drives it, and is cancelled then: a place for heartbeats and for
    what is opened once and used at many points. It gets a copy of the context as it stood when the run began.
    """

    def on_machine_start(self, context: Context) -> Context | Awaitable[Context | None] | None:
        """A fresh execution begins."""
        return context

    def on_machine_end(self, context: Context, final_output: Any) -> Any:
        """The execution is about to end; what is returned becomes its output."""
        return final_output

    def on_state_enter(self, state_name: str, context: Context) -> Any:
        """A state is entered."""
        return context

    def on_state_exit(self, state_name: str, context: Context, output: Any) -> Any:
        """A state has succeeded."""
        return output

    def on_transition(self, from_state: str, to_state: str, context: Context) -> Any:
        """A transition is about to be taken; what is returned is where it leads. None ends the run."""
        return to_state

    def on_error(self, state_name: str, error: Exception, context: Context) -> Any:
        """A state failed and its `on_error` names no target; return a state to go to, or None."""
        return None

    def on_action(self, *args: Any) -> Any:
        """A state's `action`. Called as `(state_name, action_name, context)`; the older form without the first
        argument is recognised by its signature."""
        raise BindingError("action", str(args[-2]), hint=f"{type(self).__name__} does not define on_action")

    def on_tool_calls(self, state_name: str, tool_calls: list[Any], context: Context) -> Any:
        """A model has asked for tools, which are not called yet; what is returned becomes the context."""
        return context

    def on_tool_result(self, state_name: str, tool_result: dict[str, Any], context: Context) -> Any:
        """A tool that a model asked for has answered; what is returned becomes the context."""
        return context

    def on_agent_stream_event(self, state_name: str, event: dict[str, Any], context: Context) -> Any:
        """A model is answering, piece by piece. Watches only: nothing that it does is kept."""
        return None

    def get_tool_provider(self, state_name: str) -> Any:
        """Where the tools of a state come from, or None for the machine's own. Not `async`."""
        return None


async def settled(value: Any) -> Any:
    """The value, awaited if it has to be."""
    return await value if inspect.isawaitable(value) else value


def overrides(hooks: Any, method: str) -> bool:
    """Whether this object brings the method itself. It need not derive from `MachineHooks`."""
    own = getattr(hooks, method, None)
    return own is not None and getattr(own, "__func__", own) is not getattr(MachineHooks, method, None)


def is_observer(hooks: Any, method: str) -> bool:
    return bool(getattr(getattr(hooks, method, None), "__observer__", False))


def action_takes_state(hooks: Any) -> bool:
    """Whether `on_action` wants the state's name first (the present form) or not (that of version 2)."""
    parameters = inspect.signature(hooks.on_action).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    return sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters) >= 3


def call_action(hooks: Any, state_name: str, action_name: str, context: Context) -> Any:
    """Call `on_action` in the form that it was written in."""
    if action_takes_state(hooks):
        return hooks.on_action(state_name, action_name, context)
    return hooks.on_action(action_name, context)


def plain_copy(context: Mapping[str, Any]) -> Context:
    """A copy of a context that may be kept and changed; what cannot be copied is shared."""
    copied: Context = {}
    for key, value in context.items():
        try:
            copied[key] = copy.deepcopy(value)
        except Exception:  # such as a lock in a value that will not be stored anyway
            copied[key] = value
    return copied
