"""`flat dispatch`: resume whatever is parked and has a signal, or a timer that is due.

An execution goes on with the program that is stored with it; its hooks come from the project that it was started from,
if that is below the working directory or a folder named by `--project`: a store must not choose which code is imported.
Those of other projects are left to their own dispatchers.
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
from flat.cli.models import end_models, model_for
from flat.cli.project import find_project
from flat.cli.running import log_to_stderr, quiet_stdout
from flat.cli.show import Show
from flat.cli.signals import trigger_for
from flat.cli.stopping import Stop
from flat.cli.stores import MEMORY, store_url
from flat.cli.text import count, one_line, short_id
from flat.drivers.dispatch import Declined, Dispatcher, Report
from flat.errors import BackendError, ExecutionNotFound, FlatError
from flat.runtime import Machine, Outcome, Runtime
from flat.runtime.machine import program_of


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
    work = _Work(order, show, url)
    try:
        with work.stack, work.stop.listening(), quiet_stdout(show):
            done = anyio.run(work.run)
    finally:
        end_models()
    if not done and not order.watch:
        raise Interrupted("interrupted; what was not resumed still has its signal: flat dispatch --once")
    return FAILED if work.buried and not order.watch else DONE


@dataclass
class _Work:
    order: Order
    show: Show
    url: str
    stop: Stop = field(default_factory=Stop)
    stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    buried: int = 0
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
        finder = _Finder(runtime, self)

        async def resume(execution_id: str) -> None:
            machine = await finder.machine(execution_id)
            self._tell_resumed(machine.name, await runtime.resume(execution_id, machine))

        dispatcher = Dispatcher(
            runtime.opened(), resume, runtime.clock, order.concurrency, order.attempts, order.poll
        )
        if not order.watch:
            report = await dispatcher.dispatch_once()
            self._tell(report)
            self._tell_end(report)
            return
        if not self.show.json:
            say("watching for signals and timers; stop with Ctrl-C")
        asked = order.trigger is not None or order.trigger_path is not None
        wakes_by_itself = isinstance(dispatcher.store, TriggerBackend) and not asked
        trigger = None if wakes_by_itself else trigger_for(order.trigger, order.trigger_path)
        await dispatcher.watch(trigger, told=self._tell)

    # -- telling -----------------------------------------------------------------------------

    def _event(self, event: str, **facts: object) -> None:
        say_json({"event": event, **facts}, self.out)

    def _tell_resumed(self, name: str, outcome: Outcome) -> None:
        self.stop.begun = False  # what runs is not one execution that a message could name
        if self.show.json:
            self._event(
                "resumed", execution_id=outcome.execution_id, machine=name, status=outcome.status,
                waiting_on=list(outcome.waiting_on) if outcome.status == "waiting" else [],
            )  # fmt: skip
            return
        channels = outcome.waiting_on if outcome.status == "waiting" else ()
        waits = f" on {', '.join(one_line(c, 40) for c in channels)}" if channels else ""
        why = f": {one_line(outcome.failure.message)}" if outcome.failure is not None else ""
        say(f"{short_id(outcome.execution_id)}  {one_line(name, 40)}  {outcome.status}{waits}{why}")

    def _tell(self, report: Report) -> None:
        self.buried += len(report.buried)
        for letter in report.buried:
            if self.show.json:
                self._event(
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
                self._event("left", execution_id=execution_id, reason=reason)
            else:
                complain(f"{short_id(execution_id)} is left as it is: {one_line(reason, 400)}")

    def _tell_end(self, report: Report) -> None:
        if self.show.json:
            self._event(
                "dispatched", resumed=report.resumed, fanned_out=report.fanned_out, left=report.left,
                buried=[letter.signal_id for letter in report.buried],
            )  # fmt: skip
        elif not report:
            say("nothing to do: no execution has a signal or a timer that is due")
        else:
            say(f"resumed {count(len(set(report.resumed)), 'execution')}")


class _Finder:
    """Finds the machine of an execution; each is made once, and its model started once."""

    def __init__(self, runtime: Runtime, work: _Work) -> None:
        self._runtime, self._work = runtime, work
        folders = work.order.projects or (Path.cwd(),)
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"--project {folder} is not a folder")
        self._roots = [folder.resolve() for folder in folders]
        self._machines: dict[str, Machine] = {}

    async def machine(self, execution_id: str) -> Machine:
        store = self._runtime.opened()
        execution = await store.get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        if (known := self._machines.get(execution.program)) is not None:
            return known
        text = await store.get_config(execution.program)
        try:
            if text is None:
                raise BackendError("its program is not in this store")
            machine = self._machines[execution.program] = self._make(text)
        except FlatError as error:
            # Not the signal's fault: it must stay where it is until this is mended, or for another dispatcher.
            raise Declined(str(error)) from error
        return machine

    def _make(self, text: bytes) -> Machine:
        program, origin = program_of(text)
        if origin is None:
            raise BackendError("its store does not say which file it came from; use flat resume ID FILE")
        origin = origin.resolve()
        if not any(origin.is_relative_to(root) for root in self._roots):
            shown = " or ".join(str(root) for root in self._roots)
            raise BackendError(
                f"it came from {origin}, which is not below {shown}; name its folder by --project"
            )
        if not origin.exists():
            raise BackendError(f"{origin}, which it was started from, is gone; use flat resume ID FILE")
        project = find_project(origin)
        machine = Machine(program, project.registry(), origin=origin)
        self._work.stack.enter_context(model_for(machine, project, self._work.order.live, self._work.show))
        return machine
