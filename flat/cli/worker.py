"""`flat worker`: run what is queued, woken or stranded in a store, beside any number of other workers.

Told to stop, by Ctrl-C or SIGTERM, a worker takes nothing more, lets what runs come to the end of its step, gives it
back to the others, and ends: with 0 if it works until it is told to stop, since that is how it is to end, and with 130
if it was to end by itself. Told once more it ends at once, and leaves what ran to the others like after a crash.
"""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anyio

from flat.backends.triggers import NoOpTrigger, TriggerBackend
from flat.backends.work import WorkerRecord
from flat.cli.dispatching import Order, Work
from flat.cli.ending import DONE, FAILED, TAKEN, Interrupted, UsageError, complain, say
from flat.cli.models import end_models
from flat.cli.running import log_to_stderr, quiet_stdout
from flat.cli.show import Show
from flat.cli.signals import trigger_for
from flat.cli.stopping import LOOK_EVERY, Stop
from flat.cli.stores import DEFAULT, MEMORY, full_id, is_missing, need_store, store_url
from flat.cli.tables import room, table
from flat.cli.text import count, one_line, seconds, short_id
from flat.cli.worker_machines import Finder, Trust, trusted
from flat.drivers.dispatch import Report
from flat.drivers.pool import Tally, Worker
from flat.runtime import Outcome, Runtime
from flat.runtime.queue import at_work, register_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """What was asked for on the command line."""

    places: Sequence[Path] = ()
    """Folders and files whose executions this worker may run."""
    concurrency: int = 16
    once: bool = False
    drain: bool = False
    attempts: int = 3
    poll: float = 5.0
    lease: float = 30.0
    grace: float | None = None
    name: str = ""
    trigger: str | None = None
    trigger_path: Path | None = None
    live: bool | None = None


def work(post: Post, *, show: Show, store: str | None, verbose: int) -> int:
    """Work until told to stop, or until there is nothing left. 1 when an execution or a signal had to be buried."""
    log_to_stderr(verbose)
    url = store_url(store)
    if url == MEMORY:
        raise UsageError("a worker needs a store that is kept; name one with --store")
    if post.once and post.drain:
        raise UsageError("--once and --drain exclude each other")
    trust = trusted(post.places, hint="; name its folder: flat worker FOLDER")
    order = Order(attempts=post.attempts, concurrency=post.concurrency, poll=post.poll, live=post.live)
    where = f" --store {store}" if store and store != DEFAULT else ""
    job = _Job(order, show, url, post=post, trust=trust, where=where)
    try:
        with job.stack, job.stop.listening(), quiet_stdout(show):
            anyio.run(job.work)
    finally:
        end_models()
    ends_by_itself = post.once or post.drain
    if job.stop.asked and ends_by_itself:
        raise Interrupted(f"interrupted; what was not done is queued still: flat worker --drain{where}")
    return FAILED if job.buried and ends_by_itself else DONE


@dataclass
class _Job(Work):
    post: Post = field(default_factory=Post)
    trust: Trust = field(default_factory=Trust)
    where: str = ""
    stop: Stop = field(default_factory=Stop)

    async def work(self) -> None:
        failure: list[Exception] = []
        async with anyio.create_task_group() as group:
            try:
                async with Runtime(self.url, lease_seconds=self.post.lease) as runtime:
                    worker = self._worker(runtime)
                    group.start_soon(self._hear_of_stop, worker)
                    await self._work_as(worker)
            except Exception as error:  # a task group would wrap it
                failure.append(error)
            group.cancel_scope.cancel()
        if failure:
            raise failure[0]

    def _worker(self, runtime: Runtime) -> Worker:
        post = self.post
        worker = runtime.worker(
            concurrency=post.concurrency, attempts=post.attempts, poll=post.poll, grace=post.grace, name=post.name
        )  # fmt: skip
        finder = Finder(runtime, self.trust, self.stack, post.live, self.show)

        async def resume(execution_id: str) -> Outcome:
            return await self.resume(runtime, finder, execution_id)

        worker.resume = resume
        # The flag of the signal itself: actions that never wait give the task that watches it no turn.
        worker.asked = lambda: self.stop.asked
        return worker

    async def _work_as(self, worker: Worker) -> None:
        post = self.post
        if post.once:
            tally = await worker.run_some(told=self.tell)
        elif post.drain:
            tally = await worker.drain(NoOpTrigger(), told=self.tell)
        else:
            self._tell_begin()
            asked = post.trigger is not None or post.trigger_path is not None
            wakes_by_itself = isinstance(worker.store, TriggerBackend) and not asked
            trigger = None if wakes_by_itself else trigger_for(post.trigger, post.trigger_path)
            tally = await worker.run(trigger, told=self.tell)
        self._tell_worked(worker, tally)

    async def _hear_of_stop(self, worker: Worker) -> None:
        while not self.stop.asked:  # noqa: ASYNC110 - a signal handler can set a flag, but no event
            await anyio.sleep(LOOK_EVERY)
        worker.stop()

    # -- telling -----------------------------------------------------------------------------

    def _tell_begin(self) -> None:
        if self.show.json:
            self.event("working", concurrency=self.post.concurrency, store=self.url)
        else:
            say(f"working, {self.post.concurrency} at a time; stop with Ctrl-C")

    def tell_resumed(self, name: str, outcome: Outcome) -> None:
        if outcome.status != "running":
            super().tell_resumed(name, outcome)
        elif self.show.json:
            self.event("handed_back", execution_id=outcome.execution_id, machine=name)
        else:
            say(
                f"{short_id(outcome.execution_id)}  {one_line(name, 40)}  handed back in {one_line(outcome.node, 40)}"
            )

    def tell(self, report: Report) -> None:
        super().tell(report)
        self.buried += len(report.set_aside)
        for execution_id, reason in report.set_aside.items():
            if self.show.json:
                self.event("set_aside", execution_id=execution_id, reason=reason)
                continue
            name = short_id(execution_id)
            complain(
                f"{name} is buried: {one_line(reason)}\n  when that is mended: flat runs revive {name}{self.where}"
            )

    def _tell_worked(self, worker: Worker, tally: Tally) -> None:
        if self.show.json:
            self.event(
                "worked", worker=worker.name, ran=tally.ran, taken_over=tally.taken_over, lost=tally.lost,
                looks=tally.looks,
            )  # fmt: skip
        elif not tally.ran and (self.post.once or self.post.drain):
            say("nothing to do")
        else:
            over = f", {tally.taken_over} of them taken over" if tally.taken_over else ""
            say(f"ran {count(tally.ran, 'execution')}{over}")


# -- the register ----------------------------------------------------------------------------------


def list_workers(*, everyone: bool, store: str | None, json: bool) -> int:
    """List the workers on a store: those at work or just gone, or everyone there ever was."""
    url = store_url(store)
    found: Sequence[tuple[WorkerRecord, float]] = () if is_missing(url) else anyio.run(_workers, url)
    shown = [(w, age) for w, age in found if everyone or w.status in ("active", "gone")]
    if json:
        say(json_format.dumps([{**w.to_dict(), "heard_of": age} for w, age in shown], indent=2, default=str))
    elif not shown:
        complain(f"no worker is at work on {url}; start one: flat worker")
    else:
        heads = ("worker", "status", "heard of", "running", "ran", "now")
        for line in table([heads, *(_worker_row(*one) for one in shown)], room(), spare=(5, 0)):
            say(line)
    return DONE


async def _workers(url: str) -> Sequence[tuple[WorkerRecord, float]]:
    async with Runtime(url) as runtime:
        opener = register_of(runtime.opened(), runtime.clock.now)
        if opener is None:
            raise UsageError(
                f"workers on {url} enter themselves nowhere; see who drives what: flat runs list"
            )
        register = opener()
        try:
            now = runtime.clock.now()
            known = [replace(w, status=at_work(w)) for w in await register.list()]
            return [(w, max(0.0, now - w.last_heartbeat)) for w in known]
        finally:
            await register.close()


def _worker_row(worker: WorkerRecord, age: float) -> tuple[str, ...]:
    said: Any = worker.metadata
    runs = ", ".join(one_line(short_id(str(id_))) for id_ in said.get("runs", ()))
    running = f"{said['running']} of {said['concurrency']}" if "concurrency" in said else ""
    return (
        one_line(worker.worker_id, 40), one_line(worker.status, 20), f"{seconds(age)} ago", running,
        str(said.get("ran", "")), runs,
    )  # fmt: skip


# -- the buried --------------------------------------------------------------------------------------


def revive_run(
    id_: str, *, store: str | None, trigger: str | None, trigger_path: Path | None
) -> int:  # fmt: skip
    """Queue an execution again that was buried, or interrupted; 8 when it was finished already."""
    url = store_url(store)
    need_store(url, id_)
    execution_id, done = anyio.run(_revive, url, id_, trigger, trigger_path)
    name = one_line(short_id(execution_id))
    where = f" --store {store}" if store and store != DEFAULT else ""
    if not done:
        complain(f"execution {name} is over already; see flat runs show {name}{where}")
        return TAKEN
    say(f"execution {name} is ready for a worker: flat worker{where}")
    return DONE


async def _revive(url: str, given: str, trigger: str | None, trigger_path: Path | None) -> tuple[str, bool]:
    async with Runtime(url) as runtime:
        execution_id = await full_id(runtime, given)
        asked = trigger is not None or trigger_path is not None
        if asked or not isinstance(runtime.opened(), TriggerBackend):
            runtime.trigger = trigger_for(trigger, trigger_path)
        return execution_id, await runtime.revive(execution_id)
