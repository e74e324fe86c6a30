"""Several hooks as one object, and what an object steers and watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from flat.hooks.base import (
    POINTS,
    TOLD,
    Context,
    MachineHooks,
    action_takes_state,
    is_observer,
    overrides,
    settled,
)

_POINT_OF = {method: point for point, method in POINTS.items()}


class CompositeHooks(MachineHooks):
    """Several hooks as one, in order. Each gets what the one before returned, and an error in one stops the row.

    The first error target wins, and the first tool provider. A composite among them takes part as its members.
    """

    tells_observers = True
    """False where a run tells the observing members itself: they are left out here then, or they would hear twice."""

    def __init__(self, *hooks: Any) -> None:
        self.hooks: tuple[Any, ...] = tuple(
            member for one in hooks for member in (one.hooks if type(one) is CompositeHooks else (one,))
        )
        self._actions: list[tuple[Callable[..., Any], bool]] | None = None

    async def on_machine_start(self, context: Context) -> Context:
        return await self._pass(context, "on_machine_start")

    async def on_machine_end(self, context: Context, final_output: Any) -> Any:
        for call in self._calls("on_machine_end"):
            final_output = _or(await settled(call(context, final_output)), final_output)
        return final_output

    async def on_state_enter(self, state_name: str, context: Context) -> Context:
        return await self._pass(context, "on_state_enter", state_name)

    async def on_state_exit(self, state_name: str, context: Context, output: Any) -> Any:
        for call in self._calls("on_state_exit"):
            output = _or(await settled(call(state_name, context, output)), output)
        return output

    async def on_transition(self, from_state: str, to_state: str, context: Context) -> Any:
        for call in self._calls("on_transition"):
            to_state = await settled(call(from_state, to_state, context)) or to_state
        return to_state

    async def on_error(self, state_name: str, error: Exception, context: Context) -> Any:
        for call in self._calls("on_error"):
            if (target := await settled(call(state_name, error, context))) is not None:
                return target
        return None

    async def on_action(self, *args: Any) -> Any:
        state_name, action_name, context = args if len(args) == 3 else ("", *args)
        if self._actions is None:
            answering = [hook for hook in self.hooks if overrides(hook, "on_action")]
            self._actions = [(hook.on_action, action_takes_state(hook)) for hook in answering]
        if not self._actions:
            return MachineHooks.on_action(self, *args)
        for call, takes_state in self._actions:
            names = (state_name, action_name) if takes_state else (action_name,)
            context = _or(await settled(call(*names, context)), context)
        return context

    async def on_tool_calls(self, state_name: str, tool_calls: list[Any], context: Context) -> Context:
        return await self._pass(context, "on_tool_calls", state_name, tool_calls)

    async def on_tool_result(self, state_name: str, tool_result: dict[str, Any], context: Context) -> Context:
        return await self._pass(context, "on_tool_result", state_name, tool_result)

    async def on_agent_stream_event(self, state_name: str, event: dict[str, Any], context: Context) -> None:
        for call in self._calls("on_agent_stream_event"):
            await settled(call(state_name, event, context))

    def get_tool_provider(self, state_name: str) -> Any:
        for call in self._calls("get_tool_provider"):
            if (provider := call(state_name)) is not None:
                return provider
        return None

    async def on_background(self, context: Context) -> None:
        """Present so that a composite handed around as one object is whole; a run asks the members one by one."""
        import anyio

        async with anyio.create_task_group() as group:
            for hook in self.hooks:
                if hasattr(hook, "on_background"):
                    group.start_soon(hook.on_background, context)

    async def _pass(self, context: Context, method: str, *args: Any) -> Context:
        for call in self._calls(method):
            context = _or(await settled(call(*args, context)), context)
        return context

    def _calls(self, method: str) -> Iterator[Callable[..., Any]]:
        """The members' own methods; those that only watch are left out where somebody else tells them."""
        told_elsewhere = not self.tells_observers and _POINT_OF.get(method) in TOLD
        for hook in self.hooks:
            if overrides(hook, method) and not (told_elsewhere and is_observer(hook, method)):
                yield getattr(hook, method)


def _or(result: Any, before: Any) -> Any:
    return before if result is None else result


def members(hooks: Any) -> tuple[Any, ...]:
    """The objects behind a hooks object: itself, or what a composite is made of."""
    return hooks.hooks if isinstance(hooks, CompositeHooks) else (hooks,)


def steered_points(hooks: Any) -> frozenset[str]:
    """The points at which this object may change the outcome, or has to be called in place."""
    return frozenset(point for point in POINTS if any(_steers(one, point) for one in _parts(hooks)))


def observed_points(hooks: Any) -> frozenset[str]:
    """The points at which this object watches, and is told by the run."""
    if isinstance(hooks, CompositeHooks):
        return frozenset().union(*(observed_points(h) for h in hooks.hooks))
    return frozenset(point for point in TOLD if is_observer(hooks, POINTS[point]))


def _steers(hooks: Any, point: str) -> bool:
    method = POINTS[point]
    return overrides(hooks, method) and not (point in TOLD and is_observer(hooks, method))


def _parts(hooks: Any) -> Iterator[Any]:
    """A composite's members; for a class derived from it, what that class adds as well."""
    if not isinstance(hooks, CompositeHooks):
        yield hooks
        return
    for hook in hooks.hooks:
        yield from _parts(hook)
    if type(hooks) is not CompositeHooks:
        yield _Own(hooks)


class _Own:
    """The methods that a class derived from `CompositeHooks` has of its own."""

    def __init__(self, hooks: CompositeHooks) -> None:
        for method in POINTS.values():
            if getattr(type(hooks), method) is not getattr(CompositeHooks, method):
                setattr(self, method, getattr(hooks, method))
