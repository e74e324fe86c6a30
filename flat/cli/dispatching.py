"""`flat dispatch`: resume whatever is parked and has a signal, or a timer that is due.

`cli.worker_machines` says which executions a dispatcher may resume; those of other projects are left to their own.
What it shares with `flat worker` is here, too.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import anyio

from flat.backends.triggers import TriggerBackend
from flat.cli.ending import DONE, FAILED, Interrupted, UsageError, complain, say, say_json
from flat.cli.models import end_models
from flat.cli.running import log_to_stderr, quiet_stdout
from flat.cli.show import Show
from flat.cli.signals import trigger_for
from flat.cli.stopping import Stop
from flat.cli.stores import MEMORY, store_url
from flat.cli.text import count, one_line, short_id
from flat.cli.worker_machines import Finder, trusted
from flat.drivers.dispatch import Dispatcher, Report
from flat.runtime import Outcome, Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for on the command line."""

    watch: bool = False
    concurrency: int = 16
    attempts: int = 3
    poll: float = 5.0
    projects: Sequence[Path] = ()
    trigger: str | None = None
    trigger_path: Path | None = None
    live: bool | None = None


def dispatch(order: Order, *, show: Show, store: str | None, verbose: int) -> int:
    """Dispatch once or for ever. 1 when a signal had to be buried; a run that fails is a result like any other."""
    log_to_stderr(verbose)
    url = store_url(store)
    if url == MEMORY:
        raise UsageError("a dispatcher needs a store that is kept; name one with --store")
    for place in order.projects:
        if not place.is_dir():
            raise UsageError(f"--project {place} is not a folder")
    work = Work(order, show, url)
    try:
        with work.stack, work.stop.listening(), quiet_stdout(show):
            done = anyio.run(work.run)
    finally:
        end_models()
    if not done and not order.watch:
        raise Interrupted("interrupted; what was not resumed still has its signal: flat dispatch --once")
    return FAILED if work.buried and not order.watch else DONE


@dataclass
class Work:
    """One dispatch: the dispatcher at work, and what is told of it."""

    order: Order
    show: Show
    url: str
    stop: Stop = field(default_factory=Stop)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    buried: int = 0
    hint: str = "; name its folder by --project"
    told: set[tuple[str, str]] = field(default_factory=set)
    """Who was left and why, as far as it was said."""
    out: IO[str] = field(default_factory=lambda: sys.stdout)

    async def run(self) -> bool:
        """False if it was stopped."""
        failure: list[Exception] = []

        async def in_store() -> bool:
            try:
                async with Runtime(self.url, observers=[self.stop]) as runtime:
                    await self._dispatch(runtime)
            except Exception as error:  # a task group would wrap it
                failure.append(error)
            return True

        done = await self.stop.guard(in_store)
        if failure:
            raise failure[0]
        return bool(done)

    async def _dispatch(self, runtime: Runtime) -> None:
        order = self.order
        finder = self.finder(runtime)

        async def resume(execution_id: str) -> Outcome:
            return await self.resume(runtime, finder, execution_id)

        dispatcher = Dispatcher(
            runtime.opened(), resume, runtime.clock, order.concurrency, order.attempts, order.poll
        )
        if not order.watch:
            report = await dispatcher.dispatch_once()
            self.tell(report)
            self._tell_end(report)
            return
        if not self.show.json:
            say("watching for signals and timers; stop with Ctrl-C")
        asked = order.trigger is not None or order.trigger_path is not None
        wakes_by_itself = isinstance(dispatcher.store, TriggerBackend) and not asked
        trigger = None if wakes_by_itself else trigger_for(order.trigger, order.trigger_path)
        await dispatcher.watch(trigger, told=self.tell)

    def finder(self, runtime: Runtime) -> Finder:
        trust = trusted(self.order.projects, hint=self.hint)
        return Finder(runtime, trust, self.stack, self.order.live, self.show)

    async def resume(self, runtime: Runtime, finder: Finder, execution_id: str) -> Outcome:
        """Resume an execution with its own machine, and tell what it came to."""
        machine = await finder.machine(execution_id)
        # A charter is code, so that a session goes on with the one of now.
        outcome = await runtime.resume(execution_id, machine, adopt=machine.tree is not None)
        if outcome.ran:
            self.tell_resumed(machine.name, outcome)
        return outcome

    # -- telling -----------------------------------------------------------------------------

    def event(self, event: str, **facts: object) -> None:
        say_json({"event": event, **facts}, self.out)

    def tell_resumed(self, name: str, outcome: Outcome) -> None:
        self.stop.begun = False  # what runs is not one execution that a message could name
        if self.show.json:
            self.event(
                "resumed", execution_id=outcome.execution_id, machine=name, status=outcome.status,
                waiting_on=list(outcome.waiting_on) if outcome.status == "waiting" else [],
            )  # fmt: skip
            return
        channels = outcome.waiting_on if outcome.status == "waiting" else ()
        waits = f" on {', '.join(one_line(c, 40) for c in channels)}" if channels else ""
        why = f": {one_line(outcome.failure.message)}" if outcome.failure is not None else ""
        say(f"{short_id(outcome.execution_id)}  {one_line(name, 40)}  {outcome.status}{waits}{why}")

    def tell(self, report: Report) -> None:
        self.buried += len(report.buried)
        for letter in report.buried:
            if self.show.json:
                self.event(
                    "buried", signal_id=letter.signal_id, channel=letter.channel,
                    execution_id=letter.execution_id, reason=letter.reason,
                )  # fmt: skip
            else:
                complain(
                    f"{short_id(letter.execution_id)}: its signal on {one_line(letter.channel, 60)} is a dead letter: "
                    f"{one_line(letter.reason)}\n  when that is mended: flat signals retry {one_line(letter.signal_id)}"
                )
        for execution_id, reason in report.left.items():
            if (execution_id, reason) in self.told:
                continue
            self.told.add((execution_id, reason))
            if self.show.json:
                self.event("left", execution_id=execution_id, reason=reason)
            else:
                complain(f"{short_id(execution_id)} is left as it is: {one_line(reason, 400)}")

    def _tell_end(self, report: Report) -> None:
        if self.show.json:
            self.event(
                "dispatched", resumed=report.resumed, fanned_out=report.fanned_out, left=report.left,
                buried=[letter.signal_id for letter in report.buried],
            )  # fmt: skip
        elif not report:
            say("nothing to do: no execution has a signal or a timer that is due")
        else:
            say(f"resumed {count(len(set(report.resumed)), 'execution')}")
