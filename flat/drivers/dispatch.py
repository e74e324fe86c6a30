"""The dispatcher: resumes whatever is parked and has something to go on with.

    async with Runtime("sqlite:///flat.db", machines={…}) as runtime:
        report = await Dispatcher(runtime.opened(), runtime.resume).dispatch_once()

Theory of operation. The store is asked who is `ready`: who waits on a channel that has a signal it may take, and
whose timer is due. A signal for anybody, on a channel that two or more wait on, is first replaced by a copy for each.
Then each ready execution is resumed, and takes its signal in the very commit by which it goes on; nothing is ever
consumed here. So a dispatcher may die at any moment, or run twice, and nothing is lost or doubled. After that the
store is asked again, until nobody is ready.

An execution that somebody else drives is asked for a few more times, because a run that parks stores its wait a moment
before it gives up its lease; if it stays busy, its driver will see the signal itself. One whose resume raises, or
takes nothing, is tried `attempts` times, with growing pauses; then the signal that it would have taken is buried as a
dead letter, so that it blocks nobody. (To end as *failed* is not to raise: that is a result like any other.)
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from flat.backends.protocols import CheckpointStore, Execution, Signal
from flat.backends.triggers import NoOpTrigger, TriggerBackend, Woken
from flat.drivers.broadcast import share
from flat.drivers.clock import Clock, SystemClock
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, FlatError, StaleSnapshot

log = logging.getLogger("flat")

Resume = Callable[[str], Awaitable[Any]]
"""Takes an execution up and returns when it has stopped again; `Runtime.resume` is one."""

PAGE = 1000
"""Ready executions that are looked up at a time."""
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds before an execution that was busy, or failed to resume, is tried again: at first, and at most."""
TIMER_PAUSE = 60.0
"""Seconds before one with a due timer is tried again after all attempts failed: a timer cannot be buried."""
BUSY_LOOKS = 5
"""How often one that is busy is tried, within one and a half seconds."""


class Declined(FlatError):
    """Raised by a `Resume`: this execution is not for this dispatcher. It is left to another one, with its signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buried:
    """A signal that became a dead letter."""

    signal_id: str
    channel: str
    execution_id: str
    reason: str


@dataclass(slots=True)
class Report:
    """What a dispatch came to."""

    resumed: list[str] = field(default_factory=list)
    """Ids of the executions that were resumed, in the order in which they stopped again; one may be there twice."""
    fanned_out: list[str] = field(default_factory=list)
    """Ids of the signals that were replaced by copies."""
    left: dict[str, str] = field(default_factory=dict)
    """Executions that are ready and were not resumed, with the reason."""
    buried: list[Buried] = field(default_factory=list)
    set_aside: dict[str, str] = field(default_factory=dict)
    """Executions that were buried themselves, with the reason: a pool worker does that."""

    def __bool__(self) -> bool:
        return bool(self.resumed or self.fanned_out or self.left or self.buried or self.set_aside)


Head = tuple[str, object]
"""What an execution would go on with: a signal or a timer, and which."""


@dataclass(slots=True)
class Trouble:
    """An execution that may have to be tried again: busy, failing, or ready again right after it was resumed."""

    head: Head | None = None
    times: int = 0
    """How often it has failed with that head."""
    busy: int = 0
    not_before: float = 0.0


@dataclass
class Dispatcher:
    """Wakes parked executions of one store."""

    store: CheckpointStore
    resume: Resume
    clock: Clock = field(default_factory=SystemClock)
    concurrency: int = 16
    attempts: int = 3
    poll_interval: float = 5.0
    """Seconds after which `watch` looks even if nobody woke it."""
    _troubles: dict[str, Trouble] = field(default_factory=dict, init=False, repr=False)
    _just_resumed: set[str] = field(default_factory=set, init=False, repr=False)
    """Resumed since the last look. Whoever is ready again for the same reason has taken nothing."""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.attempts < 1:
            raise ValueError("concurrency and attempts are at least 1")

    async def dispatch_once(self) -> Report:
        """Resume whatever is ready, until nothing is any more."""
        report = Report()
        self._troubles.clear()
        self._just_resumed.clear()
        while (again := await self._pass(report)) is not None:
            await self.clock.sleep_until(again)
        return report

    async def watch(
        self, trigger: TriggerBackend | None = None, *, told: Callable[[Report], None] | None = None
    ) -> None:
        """Dispatch whenever the trigger says so, a timer is due, or the poll interval is over; for ever.

        `told` hears of every dispatch that did something. A store that cannot be reached is asked again later. A
        store that is a trigger itself needs no other.
        """
        if trigger is None:
            trigger = self.store if isinstance(self.store, TriggerBackend) else NoOpTrigger()
        async with trigger.listen() as woken:
            while True:
                report, again = Report(), None
                try:
                    again = await self._pass(report)
                    next_look = await self._next_look(again)
                except (BackendError, OSError) as error:
                    log.warning("the store could not be asked for what is ready: %s", error)
                    next_look = self.clock.now() + self.poll_interval
                if report and told is not None:
                    told(report)
                await self._wait(woken, next_look)

    async def _wait(self, woken: Woken, until: float) -> None:
        async with anyio.create_task_group() as group:

            async def sleep() -> None:
                await self.clock.sleep_until(until)
                group.cancel_scope.cancel()

            group.start_soon(sleep)
            await woken.wait()
            group.cancel_scope.cancel()

    async def _next_look(self, again: float | None) -> float:
        """When to look though nobody calls: for what was put off, for the next timer, and now and then."""
        now = self.clock.now()
        until = now + self.poll_interval
        looks = [until] if again is None else [until, again]
        for execution in await self.store.ready(now=until):
            if execution.wake_at is not None and execution.wake_at > now:
                looks.append(execution.wake_at)
        return min(looks)

    # -- one pass ----------------------------------------------------------------------------

    async def _pass(self, report: Report) -> float | None:
        """Resume who is ready and not put off, until there is nobody left. Gives when to try those put off again."""
        report.left.clear()
        while True:
            limit = PAGE + len(self._troubles) + len(report.left)
            found = await self.store.ready(now=self.clock.now(), limit=limit)
            here = {e.execution_id for e in found}
            self._troubles = {id_: t for id_, t in self._troubles.items() if id_ in here}
            wanted = [
                e for e in found if e.execution_id not in report.left and await self._may_try(e, report)
            ]
            self._just_resumed.clear()
            if not wanted:
                off = [t.not_before for id_, t in self._troubles.items() if id_ not in report.left]
                return min(off, default=None)
            await self._share(found, () if len(found) < limit else await self._tail(found), report)
            await self._resume_all(wanted, report)

    async def _may_try(self, execution: Execution, report: Report) -> bool:
        """Whether to resume it now."""
        name = execution.execution_id
        if name not in self._just_resumed:
            return name not in self._troubles or self.clock.now() >= self._troubles[name].not_before
        trouble = self._troubles.setdefault(name, Trouble())
        head, _ = await self._head(execution)
        if head is None:  # taken by somebody since we looked
            del self._troubles[name]
            return False
        if head != trouble.head:  # something new has come
            trouble.head, trouble.times, trouble.not_before = head, 0, 0.0
            return True
        await self._failed(execution, "it was resumed, and took nothing", report)
        return False

    async def _head(self, execution: Execution) -> tuple[Head | None, Signal | None]:
        """What an execution would go on with: its oldest signal, or else its timer."""
        found: list[Signal] = []
        for channel in execution.channels:
            found += await self.store.signals(channel, to=execution.execution_id, limit=1)
        if found:
            oldest = min(found, key=lambda signal: signal.created_at)
            return ("signal", oldest.signal_id), oldest
        if execution.wake_at is not None and execution.wake_at <= self.clock.now():
            return ("timer", execution.wake_at), None
        return None, None

    async def _failed(self, execution: Execution, reason: str, report: Report) -> None:
        """Put a failing execution off, or bury what makes it fail."""
        name, now = execution.execution_id, self.clock.now()
        trouble = self._troubles.setdefault(name, Trouble())
        head, signal = await self._head(execution)
        if head != trouble.head:
            trouble.head, trouble.times = head, 0
        trouble.times, trouble.busy = trouble.times + 1, 0
        log.warning("execution %s could not be resumed: %s", name, reason)
        if trouble.times < self.attempts:
            trouble.not_before = now + _pause(trouble.times)
            return
        reason = f"{reason} (tried {trouble.times} times)"
        trouble.times, trouble.not_before = 0, now + TIMER_PAUSE
        if signal is None:
            report.left[name] = reason
            return
        if await self.store.bury(signal.signal_id, f"execution {name}: {reason}", now):
            log.error(
                "signal %s on channel %r is a dead letter: execution %s: %s",
                signal.signal_id, signal.channel, name, reason,
            )  # fmt: skip
            report.buried.append(
                Buried(signal_id=signal.signal_id, channel=signal.channel, execution_id=name, reason=reason)
            )
        del self._troubles[name]

    async def _share(self, found: Sequence[Execution], tail: Sequence[Execution], report: Report) -> None:
        """Fan out what several wait for.

        Whoever waits for a signal for anybody is ready since that was sent, unless it was ready for another reason
        before. So they stand next to each other, and only in the tail of a full page is one without the others.
        """
        now = self.clock.now()
        suspects: dict[str, int] = {}
        for execution in found:
            apart = len(execution.channels) > 1 or (
                execution.wake_at is not None and execution.wake_at <= now
            )
            for channel in execution.channels:
                suspects[channel] = suspects.get(channel, 0) + (2 if apart else 1)
        for execution in tail:
            suspects |= dict.fromkeys(execution.channels, 2)
        for channel, count in suspects.items():
            if count > 1 and (signal_id := await share(self.store, channel)) is not None:
                report.fanned_out.append(signal_id)

    async def _tail(self, found: Sequence[Execution]) -> list[Execution]:
        """Those at the end of a full page who are ready since the same moment; the next page may begin with more."""
        tail: list[Execution] = []
        since: float | None = None
        for execution in reversed(found):
            _, signal = await self._head(execution)
            if signal is not None and since is not None and signal.created_at < since:
                break
            since = signal.created_at if signal is not None else since
            tail.append(execution)
        return tail

    # -- resuming ----------------------------------------------------------------------------

    async def _resume_all(self, wanted: Sequence[Execution], report: Report) -> None:
        """Resume them in their order, so many at a time."""
        if len(wanted) == 1 or self.concurrency == 1:
            for execution in wanted:
                await self._resume_one(execution, report)
            return
        queue = iter(wanted)

        async def work() -> None:
            for execution in queue:
                await self._resume_one(execution, report)

        async with anyio.create_task_group() as group:
            for _ in range(min(self.concurrency, len(wanted))):
                group.start_soon(work)

    async def _resume_one(self, execution: Execution, report: Report) -> None:
        name = execution.execution_id
        try:
            outcome = await self.resume(name)
        except Declined as error:
            self._declined(name, error, report)
        except ExecutionNotFound:
            self._troubles.pop(name, None)
        except (ExecutionBusy, StaleSnapshot) as error:
            self._busy(name, error, report)
        except (Exception, SystemExit) as error:
            log.debug("the error that follows, in full", exc_info=error)
            self._broke(name, error)
            await self._failed(execution, f"{type(error).__name__}: {error}", report)
        else:
            if not getattr(outcome, "ran", True):
                self._too_late(name)
                return
            self._just_resumed.add(name)
            report.resumed.append(name)

    def _broke(self, name: str, error: BaseException) -> None:
        """A run ended in an error, and its execution may stand where nobody looks for it."""

    def _too_late(self, name: str) -> None:
        """It was over before we had it."""
        self._troubles.pop(name, None)

    def _declined(self, name: str, error: Declined, report: Report) -> None:
        report.left[name] = str(error)

    def _busy(self, name: str, error: BackendError, report: Report) -> None:
        trouble = self._troubles.setdefault(name, Trouble())
        trouble.busy += 1
        if trouble.busy < BUSY_LOOKS:
            trouble.not_before = self.clock.now() + _pause(trouble.busy)
        else:
            report.left[name] = str(error)
            trouble.busy, trouble.not_before = 0, 0.0


def _pause(times: int) -> float:
    return min(FIRST_PAUSE * 2.0 ** (times - 1), LONGEST_PAUSE)
