"""A clock for tests: time stands still while anything runs, and jumps when all there is to do is wait.

    clock = VirtualClock()
    async with Runtime(MemoryStore(), clock=clock) as runtime:
        await runtime.start(machine)      # an hour of backoffs takes no time at all

Theory of operation. Of the tasks that sleep on the clock one is the leader. It waits until every task of the
event loop is blocked, and then moves the time on to the next moment that somebody waits for, a sleeper or a
deadline. So a deadline passes only while something sleeps on this clock; work that waits for a socket or a
thread is never cut short by a jump of its own making.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio
import anyio.lowlevel

from flat.drivers.clock import DeadlinePassed

T = TypeVar("T")
START = 1_700_000_000.0
"""When the time begins unless told otherwise: some day in November 2023."""


class _Sleeper:
    __slots__ = ("at", "wake")

    def __init__(self, at: float) -> None:
        self.at, self.wake = at, anyio.Event()


class VirtualClock:
    """A `flat.drivers.clock.Clock` that needs no real time. One for each event loop."""

    def __init__(self, start: float = START) -> None:
        self._now = start
        self._sleepers: list[_Sleeper] = []
        self._deadlines: list[tuple[float, anyio.CancelScope]] = []
        self._leader: _Sleeper | None = None

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass. What was waited for meanwhile happens."""
        self._move(self._now + seconds)

    async def sleep_until(self, at: float) -> None:
        if at <= self._now:
            await anyio.lowlevel.checkpoint()
            return
        me = _Sleeper(at)
        self._sleepers.append(me)
        try:
            while self._now < at:
                if self._leader is None:
                    await self._lead(me)
                else:
                    await me.wake.wait()
                    me.wake = anyio.Event()
        finally:
            self._sleepers.remove(me)
            if self._leader is None and self._sleepers:
                self._sleepers[0].wake.set()

    async def before(self, at: float, work: Callable[[], Awaitable[T]]) -> T:
        if at > self._now:
            with anyio.CancelScope() as scope:
                deadline = (at, scope)
                self._deadlines.append(deadline)
                try:
                    return await work()
                finally:
                    self._deadlines.remove(deadline)
        raise DeadlinePassed

    async def _lead(self, me: _Sleeper) -> None:
        self._leader = me
        try:
            await anyio.wait_all_tasks_blocked()
            moments = [s.at for s in self._sleepers] + [at for at, _ in self._deadlines]
            self._move(min(moment for moment in moments if moment > self._now))
        finally:
            self._leader = None

    def _move(self, to: float) -> None:
        self._now = max(self._now, to)
        for sleeper in self._sleepers:
            if sleeper.at <= self._now:
                sleeper.wake.set()
        for at, scope in self._deadlines:
            if at <= self._now:
                scope.cancel()
