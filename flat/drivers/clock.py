"""Time, as drivers see it. Tests put a virtual clock in its place."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio

T = TypeVar("T")


class Clock(Protocol):
    """Wall-clock time in seconds since the epoch, and waiting by it."""

    def now(self) -> float: ...

    async def sleep_until(self, at: float) -> None: ...

    async def before(self, at: float, work: Callable[[], Awaitable[T]]) -> T:
        """Do the work; cancel it and raise `DeadlinePassed` when it is not done at the given time."""
        ...


class DeadlinePassed(Exception):
    """Work was cancelled because its time was over. No `TimeoutError`, which the work may raise itself."""


class SystemClock:
    """The real time."""

    now = staticmethod(time.time)

    async def sleep_until(self, at: float) -> None:
        # In short pieces: a machine that was suspended, or whose clock was set, must not oversleep.
        while (left := at - time.time()) > 0:  # noqa: ASYNC110 - no event tells that the clock was set
            await anyio.sleep(min(left, 60.0))

    async def before(self, at: float, work: Callable[[], Awaitable[T]]) -> T:
        if (left := at - time.time()) > 0:
            with anyio.move_on_after(left):
                return await work()
        raise DeadlinePassed
