"""The hooks interface: code of the user's that is called at fixed points, by name.

A hook that may change the outcome is a *steering* hook: what it returns is recorded like any other effect. A
method marked `@observer` only watches; it is called without a record, and cannot change anything. Points that
a class does not override cost nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
}


def observer(method: F) -> F:
    """Mark a hook method as one that only watches."""
    method.__observer__ = True  # type: ignore[attr-defined]
    return method


class MachineHooks:
    """Base of hooks. Override what you need; methods may be plain or `async`.

    A method that gets the context may change it in place, or return another one; None means "as it is now".
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
        """A transition is about to be taken; what is returned is where it leads."""
        return to_state

    def on_error(self, state_name: str, error: Exception, context: Context) -> Any:
        """A state failed and its `on_error` names no target; return a state to go to, or None."""
        return None

    def on_action(self, *args: Any) -> Any:
        """A state's `action`. Called as `(state_name, action_name, context)`; the older form without the first
        argument is recognised by its signature."""
        raise BindingError("action", str(args[-2]), hint=f"{type(self).__name__} does not define on_action")


class CompositeHooks(MachineHooks):
    """Several hooks as one. Each gets what the one before returned; the first error target wins."""

    def __init__(self, *hooks: Any) -> None:
        self.hooks = hooks

    async def on_machine_start(self, context: Context) -> Context:
        return await self._pass(context, "on_machine_start")

    async def on_machine_end(self, context: Context, final_output: Any) -> Any:
        for hook in self.hooks:
            final_output = await settled(hook.on_machine_end(context, final_output))
        return final_output

    async def on_state_enter(self, state_name: str, context: Context) -> Context:
        return await self._pass(context, "on_state_enter", state_name)

    async def on_state_exit(self, state_name: str, context: Context, output: Any) -> Any:
        for hook in self.hooks:
            output = await settled(hook.on_state_exit(state_name, context, output))
        return output

    async def on_transition(self, from_state: str, to_state: str, context: Context) -> Any:
        for hook in self.hooks:
            to_state = await settled(hook.on_transition(from_state, to_state, context)) or to_state
        return to_state

    async def on_error(self, state_name: str, error: Exception, context: Context) -> Any:
        for hook in self.hooks:
            if (target := await settled(hook.on_error(state_name, error, context))) is not None:
                return target
        return None

    async def on_action(self, *args: Any) -> Any:
        *names, context = args
        answering = [hook for hook in self.hooks if overrides(hook, "on_action")]
        if not answering:
            return MachineHooks.on_action(self, *args)
        for hook in answering:
            result = await settled(call_action(hook, names[0], names[-1], context))
            context = context if result is None else result
        return context

    async def _pass(self, context: Context, method: str, *args: Any) -> Context:
        for hook in self.hooks:
            result = await settled(getattr(hook, method)(*args, context))
            context = context if result is None else result
        return context


async def settled(value: Any) -> Any:
    """The value, awaited if it has to be."""
    return await value if inspect.isawaitable(value) else value


def overrides(hooks: Any, method: str) -> bool:
    """Whether this object defines the method itself."""
    return getattr(type(hooks), method, None) is not getattr(MachineHooks, method, None)


def is_observer(hooks: Any, method: str) -> bool:
    return bool(getattr(getattr(type(hooks), method, None), "__observer__", False))


def steered_points(hooks: Any) -> frozenset[str]:
    """The points at which this object may change the outcome."""
    if isinstance(hooks, CompositeHooks):
        return frozenset().union(*(steered_points(h) for h in hooks.hooks))
    return frozenset(
        point
        for point, method in POINTS.items()
        if overrides(hooks, method) and not is_observer(hooks, method)
    )


def observed_points(hooks: Any) -> frozenset[str]:
    """The points at which this object watches."""
    if isinstance(hooks, CompositeHooks):
        return frozenset().union(*(observed_points(h) for h in hooks.hooks))
    return frozenset(point for point, method in POINTS.items() if is_observer(hooks, method))


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


class HooksRegistry:
    """Hooks by name. A factory (a class, or a function that returns an object) is called once per user of the name."""

    def __init__(self, factories: Mapping[str, Callable[..., Any]] | None = None) -> None:
        from flat.hooks.log import LoggingHooks
        from flat.hooks.metrics import MetricsHooks

        self.factories: dict[str, Callable[..., Any]] = {"logging": LoggingHooks, "metrics": MetricsHooks}
        self.factories.update(factories or {})

    def register(self, name: str, factory: Callable[..., Any]) -> None:
        """Register, or replace, a factory."""
        self.factories[name] = factory

    def has(self, name: str) -> bool:
        return name in self.factories

    def resolve(self, ref: str | Mapping[str, Any] | Iterable[Any]) -> Any:
        """A new hooks object for `name`, `{name, args}`, or a list of those."""
        if isinstance(ref, str):
            return self._make(ref, {})
        if isinstance(ref, Mapping):
            return self._make(ref["name"], ref.get("args") or {})
        return CompositeHooks(*(self.resolve(r) for r in ref))

    def _make(self, name: str, args: Mapping[str, Any]) -> Any:
        factory = self.factories.get(name)
        if factory is None:
            hint = "register it with HooksRegistry.register(name, factory)"
            raise BindingError("hooks object", name, self.factories, hint=hint)
        return factory(**args)
