"""A pool worker: takes executions out of a store and runs them, so many at a time, beside any number of others.

    async with Runtime("sqlite:///flat.db", machines={…}) as runtime:
        await runtime.worker(concurrency=16).run()

Theory of operation. Taken is whoever is `ready` (queued, or parked with a signal or a due timer: what a dispatcher
takes), and whoever is *stranded*: somebody drove it, and that somebody's lease has ended. What keeps two workers from
running the same execution is its lease and nothing else. A look into the store gives hints, which may be stale.

Hundreds of workers must not fight for the oldest execution: how they share what is there is said in `drivers.page`.
Idle workers sleep until the store wakes them, or a poll is due; both at slightly different moments for each. Looking
for stranded executions is a *sweep*, and costs more; the more workers there are, the more seldom each of them sweeps.

A worker that is told to stop takes nothing more. Runs pause after the step in hand, which is stored, and are queued for
the others. What is not done within the grace is broken off, and taken up by others like after a crash.

An execution whose worker died is taken up by the next, unless it takes every worker with it: see `drivers.stranded`.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import anyio
from anyio.abc import TaskGroup

from flat.backends.liveness import this_process
from flat.backends.protocols import Execution, Owner
from flat.backends.triggers import NoOpTrigger, TriggerBackend, Woken
from flat.backends.work import RegistrationBackend
from flat.core.snapshot import FINISHED
from flat.drivers.dispatch import TIMER_PAUSE, Declined, Dispatcher, Report, Trouble
from flat.drivers.fleet import Fleet
from flat.drivers.page import Page
from flat.drivers.stranded import bury, count_death, forget_deaths, is_buried, put_back, stranded_in
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, StaleSnapshot

log = logging.getLogger("flat")

SWEEPS_PER_LEASE = 4
"""How often somebody sweeps within the time of one lease, however many workers there are."""
JITTER = 0.5
"""Pauses are longer or shorter by up to this share of themselves."""
SPREAD_PER_WORKER, LONGEST_SPREAD = 0.002, 0.5
"""Seconds, for each worker there is and at most, over which those who are woken together spread their looks."""
HELD_PAUSE = 1.0
"""Seconds after which to look again for what is ready, and held by others."""
SHOWN = 20
"""So many executions are named in the register as being run."""


@dataclass(slots=True)
class Tally:
    """What a worker has done so far."""

    ran: int = 0
    taken_over: int = 0
    lost: int = 0
    """How often another worker was faster."""
    looks: int = 0
    sweeps: int = 0


@dataclass
class Worker(Dispatcher):
    """Runs what is queued, woken or stranded in one store."""

    owner: Owner = field(default_factory=this_process)
    """Whose leases are our own."""
    lease_seconds: float = 30.0
    name: str = ""
    register: Callable[[], RegistrationBackend] | None = None
    """Opens the register in which the worker enters itself. Leases do not depend on it."""
    grace: float | None = None
    """Seconds that runs have to come to the end of their step after `stop`; None: as long as it takes."""
    asked: Callable[[], bool] = lambda: False
    """Whether there is another reason to stop, such as a flag that a signal handler has set; `stop` has to follow."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Told to the register."""
    random: random.Random = field(default_factory=random.Random)
    tally: Tally = field(default_factory=Tally, init=False)
    stopping: bool = field(default=False, init=False)
    _running: dict[str, Execution] = field(default_factory=dict, init=False, repr=False)
    _page: Page = field(init=False, repr=False)
    _stranded: deque[Execution] = field(default_factory=deque, init=False, repr=False)
    _set_aside: set[tuple[str, int]] = field(default_factory=set, init=False, repr=False)
    _sweep_at: float = field(default=0.0, init=False, repr=False)
    _bell: anyio.Event = field(default_factory=anyio.Event, init=False, repr=False)
    _stopped: anyio.Event = field(default_factory=anyio.Event, init=False, repr=False)
    _dropped: set[str] = field(default_factory=set, init=False, repr=False)
    """Those whose run ended because the store could not be reached."""
    _given_up: set[str] = field(default_factory=set, init=False, repr=False)
    """Those who are left as they are for a while, and whom a drain does not wait for."""
    _fleet: Fleet = field(init=False, repr=False)
    _told: Callable[[Report], None] = field(default=lambda report: None, init=False, repr=False)

    # -- from outside ------------------------------------------------------------------------

    def stop(self) -> None:
        """Take nothing more, and let what runs come to the end of its step. To be called in the worker's event loop."""
        self.stopping = True
        self._stopped.set()
        self._bell.set()

    def is_stopping(self) -> bool:
        """Whether runs are to pause, and nothing is to be taken any more."""
        return self.stopping or self.asked()

    async def run(
        self, trigger: TriggerBackend | None = None, *, told: Callable[[Report], None] | None = None
    ) -> Tally:
        """Work until `stop` is called."""
        return await self._work(trigger, told, drain=False)

    async def drain(
        self, trigger: TriggerBackend | None = None, *, told: Callable[[Report], None] | None = None
    ) -> Tally:
        """Work until there is nothing left that could be taken."""
        return await self._work(trigger, told, drain=True)

    async def run_some(self, *, told: Callable[[Report], None] | None = None) -> Tally:
        """Take what there is, as many as may run at a time, run that, and end."""
        return await self._work(NoOpTrigger(), told, drain=True, once=True)

    # -- the loop ----------------------------------------------------------------------------

    async def _work(
        self, trigger: TriggerBackend | None, told: Callable[[Report], None] | None, *, drain: bool,
        once: bool = False,
    ) -> Tally:  # fmt: skip
        if trigger is None:
            trigger = self.store if isinstance(self.store, TriggerBackend) else NoOpTrigger()
        self._told = told or (lambda report: None)
        async with trigger.listen() as woken:
            await self._enter()
            async with anyio.create_task_group() as beside:
                beside.start_soon(self._hear, woken)
                beside.start_soon(self._fleet.be_heard_of, self._doing)
                try:
                    async with anyio.create_task_group() as runs:
                        beside.start_soon(self._end_in_time, runs.cancel_scope)
                        await self._take_all(runs, drain, once)
                finally:
                    beside.cancel_scope.cancel()
                    with anyio.CancelScope(shield=True):
                        # Those whom a store that is away holds are stranded when we have ended.
                        with suppress(BackendError, OSError):
                            await self._queue_dropped()
                        await self._fleet.leave(self.tally.ran)
        return self.tally

    async def _take_all(self, runs: TaskGroup, drain: bool, once: bool) -> None:
        while not self.is_stopping():
            self._bell = anyio.Event()  # whoever rings from here on is heard after this look
            free, took, look_at = self.concurrency - len(self._running), 0, None
            try:
                await self._queue_dropped()
                if free > 0:
                    took, look_at = await self._take(free, runs)
                if drain and not took and not self._running and look_at is None:
                    if once or not await self._sweep():
                        return
                    continue
            except (BackendError, OSError) as error:
                log.warning("the store could not be asked for what there is to do: %s", error)
            if once:
                return
            if not self.is_stopping() and (not took or len(self._running) >= self.concurrency):
                await self._idle(look_at)

    async def _take(self, free: int, runs: TaskGroup) -> tuple[int, float | None]:
        """Start with as many as there is room for. Gives how many, and when to look again for those put off."""
        now = self.clock.now()
        if now >= self._sweep_at:
            await self._sweep()
        took, look_at = 0, None
        while took < free and self._stranded:
            took += self._begin(self._stranded.popleft(), runs, stranded=True)
        if took < free:
            self._page.forget_stale(now)
        if took < free and not self._page:
            look_at = await self._look(free - took)
        while took < free and self._page:
            took += self._begin(self._page.take(), runs)
        return took, look_at

    def _begin(self, execution: Execution, runs: TaskGroup, *, stranded: bool = False) -> bool:
        if execution.execution_id in self._running:
            return False
        self._running[execution.execution_id] = execution
        runs.start_soon(self._run_one, execution, stranded)
        return True

    async def _idle(self, look_at: float | None) -> None:
        """Wait until a run has ended, somebody wakes us, or it is time to look."""
        now = self.clock.now()
        # Those that others hold may have stored their wait, and not yet have given up the lease.
        pause = min(self.poll_interval, HELD_PAUSE) if self._page.foreign else self.poll_interval
        until = min(now + self._about(pause), self._sweep_at)
        for moment in (look_at, await self._next_timer(now)):
            until = until if moment is None else min(until, max(moment, now))
        bell = self._bell
        async with anyio.create_task_group() as group:

            async def sleep() -> None:
                await self.clock.sleep_until(until)
                group.cancel_scope.cancel()

            group.start_soon(sleep)
            await bell.wait()
            group.cancel_scope.cancel()

    async def _next_timer(self, now: float) -> float | None:
        """When the next timer is due, if that is before the next poll."""
        if len(self._running) >= self.concurrency:
            return None
        try:
            most = len(self._troubles) + self._page.foreign + 8
            for execution in await self.store.ready(now=now + self.poll_interval, limit=most):
                if execution.wake_at is not None and execution.wake_at > now:
                    return execution.wake_at + self._spread()
        except (BackendError, OSError):
            pass  # the next look tells
        return None

    async def _hear(self, woken: Woken) -> None:
        while True:
            await woken.wait()
            if len(self._running) < self.concurrency:
                if (pause := self._spread()) > 0:
                    await self.clock.sleep_until(self.clock.now() + pause)
                self._page.clear()
                self._bell.set()

    def _about(self, seconds: float) -> float:
        return seconds * (1 + JITTER * (2 * self.random.random() - 1))

    def _spread(self) -> float:
        """A moment that is another one for each worker; none for one that is alone."""
        if self._fleet.workers < 2:
            return 0.0
        return min(self._fleet.workers * SPREAD_PER_WORKER, LONGEST_SPREAD) * self.random.random()

    async def _end_in_time(self, scope: anyio.CancelScope) -> None:
        """Break off what is not done in time after a stop."""
        await self._stopped.wait()
        if self.grace is not None:
            await self.clock.sleep_until(self.clock.now() + self.grace)
            log.warning("broken off, for others to take up: %s", ", ".join(self._running))
            scope.cancel()

    # -- looking -----------------------------------------------------------------------------

    async def _look(self, wanted: int) -> float | None:
        """Fill the page. Gives when to look again for those that are put off."""
        report = Report()
        await self._page.adapt()
        beside = self._page.foreign + len(self._troubles) + len(self._running)
        limit = self._page.length(wanted) + beside
        before = frozenset(self._running) | frozenset(self._just_resumed)
        self.tally.looks += 1
        found = await self.store.ready(now=self.clock.now(), limit=limit)
        here = {e.execution_id for e in found}
        self._just_resumed -= before - here
        if len(found) < limit:
            self._troubles = {id_: t for id_, t in self._troubles.items() if id_ in here}
        free = self._page.open_of(found, self._running)
        wanted_ones = [e for e in free if await self._wanted(e, before, report)]
        await self._share(wanted_ones, () if len(found) < limit else await self._tail(wanted_ones), report)
        self._page.fill(wanted_ones, wanted, self.clock.now())
        self._tell(report)
        busy = self._running.keys() | self._given_up
        return min((t.not_before for id_, t in self._troubles.items() if id_ not in busy), default=None)

    async def _wanted(self, execution: Execution, before: frozenset[str], report: Report) -> bool:
        name = execution.execution_id
        if name in self._just_resumed:
            # The page may be older than the end of that run.
            row = await self.store.get(name)
            if name not in before or row is None or row.seq != execution.seq:
                return False
        wanted = await self._may_try(execution, report)
        self._just_resumed.discard(name)
        return wanted

    async def _sweep(self) -> bool:
        """Find who is stranded. True if anybody is."""
        now = self.clock.now()
        await self._fleet.count()
        every = self.lease_seconds / SWEEPS_PER_LEASE * self._fleet.workers
        self._sweep_at = now + self._about(every)
        self.tally.sweeps += 1
        found = await stranded_in(self.store, self.owner, now)
        ids = {e.execution_id for e in found} | self._running.keys()
        found = [e for e in found if e.parent not in ids and (e.execution_id, e.token) not in self._set_aside]
        found = [e for e in found if e.execution_id not in self._running and self._is_due(e)]
        self.random.shuffle(found)
        self._stranded = deque(found)
        return bool(found)

    def _is_due(self, execution: Execution) -> bool:
        trouble = self._troubles.get(execution.execution_id)
        return trouble is None or self.clock.now() >= trouble.not_before

    # -- running -----------------------------------------------------------------------------

    async def _run_one(self, execution: Execution, stranded: bool) -> None:
        report, name = Report(), execution.execution_id
        try:
            if await self._still_there(execution) and (
                not stranded or await self._taken_over(execution, report)
            ):
                await self._resume_one(execution, report)
                await self._after(execution, report, stranded)
        except (BackendError, OSError) as error:
            self._put_off(name, self.poll_interval)
            log.warning("execution %s was not taken: %s", name, error)
        except Exception as error:  # what is stored of one must not keep the others waiting
            self._declined(name, Declined(f"{type(error).__name__}: {error}"), report)
            log.exception("execution %s was not taken", name)
        except BaseException:  # cancelled, or interrupted in the middle of the user's code
            with anyio.CancelScope(shield=True):
                await self._broken_off(name)
            raise
        finally:
            del self._running[name]
            self._bell.set()
        self._tell(report)

    def _tell(self, report: Report) -> None:
        self._given_up |= report.left.keys()
        self._given_up.difference_update(report.resumed)
        if report:
            self._told(report)

    async def _still_there(self, execution: Execution) -> bool:
        """Whether it is as it was when it was looked up. That costs less than losing it at the lease."""
        row = await self.store.get(execution.execution_id)
        self._page.tried()
        if row is not None and (row.seq, row.token, row.owner, row.status) == (
            execution.seq, execution.token, execution.owner, execution.status
        ):  # fmt: skip
            return True
        self._is_lost()
        return False

    def _is_lost(self) -> None:
        self._page.lost()
        self.tally.lost += 1

    async def _taken_over(self, execution: Execution, report: Report) -> bool:
        """Count the death of whoever drove it. False if it was set aside, or is not for us to take."""
        if execution.owner is None:
            return True
        now, name = self.clock.now(), execution.execution_id
        if not await self.store.abandoned(name, now=now):
            return False
        if await self._outlived(execution, report):
            self.tally.taken_over += 1
            return True
        return False

    async def _outlived(self, execution: Execution, report: Report) -> bool:
        """Count a death, and say whether that can be tried again. If not, it is set aside."""
        now, name = self.clock.now(), execution.execution_id
        times = await count_death(self.store, execution, now)
        row = await self.store.get(name)
        if row is None or row.status in FINISHED:
            # Another one has taken it over and finished it, and may have forgotten the deaths before we counted.
            await forget_deaths(self.store, name)
            self._is_lost()
            return False
        if times < self.attempts:
            return True
        reason = f"its worker died {times} times at the same place"
        try:
            if await bury(self.store, execution, self.owner, reason, now=now, ttl=self.lease_seconds):
                self._set_aside.add((name, execution.token))
                log.error("execution %s is buried: %s", name, reason)
                report.set_aside[name] = reason
        except (ExecutionBusy, ExecutionNotFound, StaleSnapshot):
            self._is_lost()
        return False

    async def _after(self, execution: Execution, report: Report, stranded: bool) -> None:
        """Queue what paused because we stop; forget the deaths of what is over."""
        name = execution.execution_id
        if name not in report.resumed:
            return
        self.tally.ran += 1
        row = await self.store.get(name)
        if row is None:
            return
        died = stranded or row.token > 2  # an ordinary run takes its lease once, and gives it back once
        if (row.status in FINISHED and died) or is_buried(execution):
            await forget_deaths(self.store, name)
        if self.is_stopping():
            with anyio.CancelScope(shield=True):
                await self._hand_back(row)

    async def _broken_off(self, name: str) -> None:
        """Queue what was cancelled: nobody else takes what was given back in the middle."""
        try:
            if (row := await self.store.get(name)) is not None:
                await self._hand_back(row)
        except (BackendError, OSError) as error:
            log.warning("execution %s was not queued again, and has to be resumed: %s", name, error)

    async def _hand_back(self, execution: Execution) -> None:
        """Queue an execution that paused, and its children that did."""
        paused = execution.status == "running" and execution.owner is None
        if paused and not await self._put_back(execution.execution_id):
            return
        if execution.status not in FINISHED:
            async for child in self.store.find(parent=execution.execution_id):
                await self._hand_back(child)

    async def _put_back(self, name: str) -> bool:
        """Queue one. False if somebody has it already."""
        try:
            await put_back(self.store, name, self.owner, now=self.clock.now(), ttl=self.lease_seconds)
        except (ExecutionBusy, ExecutionNotFound, StaleSnapshot):
            return False
        return True

    def _broke(self, name: str, error: BaseException) -> None:
        if isinstance(error, BackendError | OSError):
            self._dropped.add(name)

    async def _queue_dropped(self) -> None:
        """Queue what a store that was away has made us drop: it is nobody's, or still ours, and so stranded for nobody.

        It counts like a death, so that what cannot be stored at all is set aside in the end.
        """
        for name in sorted(self._dropped - self._running.keys()):
            if (row := await self.store.get(name)) is not None:
                await self._queue_family(row)
            self._dropped.discard(name)

    async def _queue_family(self, row: Execution) -> None:
        if row.status == "running" and row.owner in (None, self.owner.owner):
            if row.execution_id in self._running:
                return
            report = Report()
            if not await self._outlived(row, report):
                self._tell(report)
                return
            if not await self._put_back(row.execution_id):
                return
        if row.status not in FINISHED:
            async for child in self.store.find(parent=row.execution_id):
                await self._queue_family(child)

    def _too_late(self, name: str) -> None:
        self._is_lost()

    def _busy(self, name: str, error: BackendError, report: Report) -> None:
        self._is_lost()

    def _declined(self, name: str, error: Declined, report: Report) -> None:
        report.left[name] = str(error)
        self._put_off(name, TIMER_PAUSE)

    def _put_off(self, name: str, seconds: float) -> None:
        self._troubles.setdefault(name, Trouble()).not_before = self.clock.now() + seconds

    # -- the register ------------------------------------------------------------------------

    async def _enter(self) -> None:
        self._fleet = Fleet(self.owner, self.clock, self.lease_seconds, self.name)
        self._page = Page(self._fleet, self.concurrency, self.random)
        if self.register is None:
            return
        await self._fleet.enter(self.register())
        self.name = self._fleet.name
        # Those who begin together need not sweep together, and whoever begins first sweeps at once.
        if self._fleet.workers > 1:
            self._sweep_at = self.clock.now() + self.random.random() * self.lease_seconds / SWEEPS_PER_LEASE

    def _doing(self) -> dict[str, Any]:
        """What the register is told."""
        return {
            **self.facts, "concurrency": self.concurrency, "running": len(self._running),
            "runs": list(self._running)[:SHOWN], "ran": self.tally.ran, "taken_over": self.tally.taken_over,
            "lost": self.tally.lost, "stopping": self.is_stopping(),
        }  # fmt: skip
