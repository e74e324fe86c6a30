"""Ctrl-C and SIGTERM during a run: stop at a clean place, so that the execution can be resumed.

A signal only sets a flag. A run that waits for something is cancelled by a task that looks at the flag; a run
whose actions never wait gives that task no turn, and is stopped by an observer, between two effects. A second
signal does not wait for either.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from types import FrameType
from typing import TypeVar

import anyio

from flat.cli.ending import complain
from flat.cli.text import one_line
from flat.hooks.notices import Notice

T = TypeVar("T")
LOOK_EVERY = 0.05
PATIENCE = 1.0


class Stop:
    """The wish to stop, and whether the execution has begun: an observer, too."""

    def __init__(self) -> None:
        self.asked = False
        self.begun = False
        self.node = ""
        """The state that was last heard of."""
        self._timer: threading.Timer | None = None

    def notify(self, notice: Notice) -> None:
        self.begun = True
        self.node = notice.node or self.node
        if self.asked:
            raise KeyboardInterrupt

    def placed(self, said: str, resume: str | None) -> str:
        """What broke a run off, with the state it was in and how to go on once that is mended."""
        where = f'in state "{one_line(self.node)}": ' if self.node else ""
        then = f"\nwhen that is mended, continue with: {resume}" if resume and self.begun else ""
        return f"{where}{said}{then}"

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        told = "stopping after what is being done now; once more stops at once"
        self._timer = threading.Timer(PATIENCE, complain, [told])
        self._timer.daemon = True
        self._timer.start()

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """While this is open signals set the flag. One that is ignored, as in the background, stays so."""
        before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
        heard = [n for n, handler in before.items() if handler is not signal.SIG_IGN]
        for number in heard:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number in heard:
                signal.signal(number, before[number])
            if self._timer is not None:
                self._timer.cancel()

    async def guard(self, work: Callable[[], Awaitable[T]]) -> T | None:
        """The result of the work, or None if it was stopped."""
        result: T | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch, group.cancel_scope)
            try:
                result = await work()
            except* KeyboardInterrupt:
                pass
            group.cancel_scope.cancel()
        return result

    async def _watch(self, scope: anyio.CancelScope) -> None:
        while not self.asked:  # noqa: ASYNC110 - a signal handler can set a flag, but no event
            await anyio.sleep(LOOK_EVERY)
        scope.cancel()
