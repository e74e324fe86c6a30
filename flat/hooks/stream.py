"""Telling hooks what a model is saying while it says it.

Whoever performs a call opens `stream_listener` around it and hands each event to the function that it gets.
That function only puts the event into a queue: a hook that is slow, or `async`, never holds up the model. What
is queued when the call ends is still told. Hooks that raise are logged and hear no more of this call.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio

from flat.hooks.base import Context, overrides, plain_copy, settled
from flat.hooks.composite import members

QUEUE = 10_000
"""Events that may wait for slow hooks; further ones are dropped, and their number is logged."""

Listen = Callable[[Mapping[str, Any]], None]
log = logging.getLogger("flat.hooks")


def hears_stream(hooks: Any) -> bool:
    """Whether an object, or a member of it, wants to know what a model says while it says it."""
    return hooks is not None and any(overrides(one, "on_agent_stream_event") for one in members(hooks))


@asynccontextmanager
async def stream_listener(
    hooks: Any, state_name: str, context: Mapping[str, Any]
) -> AsyncIterator[Listen | None]:
    """Gives a function that takes the events of one call, or None when nobody wants them."""
    if not hears_stream(hooks):
        yield None
        return
    listening = [one for one in members(hooks) if overrides(one, "on_agent_stream_event")]
    send, receive = anyio.create_memory_object_stream[dict[str, Any]](QUEUE)
    dropped = 0

    def listen(event: Mapping[str, Any]) -> None:
        nonlocal dropped
        try:
            send.send_nowait(dict(event))
        except anyio.WouldBlock:
            dropped += 1

    error: Exception | None = None
    async with receive, anyio.create_task_group() as group:
        group.start_soon(_tell, listening, state_name, plain_copy(context), receive)
        with send:
            try:
                yield listen
            except Exception as raised:  # the call's own: a task group would wrap it
                error = raised
    if dropped:
        log.warning("hooks of state %s were too slow for %d stream events", state_name, dropped)
    if error is not None:
        raise error


async def _tell(listening: list[Any], state_name: str, context: Context, events: Any) -> None:
    async for event in events:
        for hooks in tuple(listening):
            try:
                await settled(hooks.on_agent_stream_event(state_name, event, context))
            except Exception:
                listening.remove(hooks)
                log.exception("on_agent_stream_event of %s raised and is switched off", type(hooks).__name__)
