"""One run of a tree machine, as its steps: each is there when it is stored, and nothing goes on before the next one
is asked for.

A run holds the execution while somebody has its steps in hand. Dropping them, by a `break` for example, leaves the
machine as it stands; the next run continues an unfinished turn.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from typing_extensions import TypeVar

from flat.core.failure import Failure, failure_of
from flat.core.snapshot import FINISHED, Snapshot
from flat.core.turn import Advance
from flat.drivers.keeper import Keeper
from flat.drivers.local import Drive
from flat.drivers.trees import Tracer, TreeCalls
from flat.errors import ExecutionBusy, ExecutionError, MachineBusy, TreeError
from flat.runtime.waiting import waits_of
from flat.tree.instance import Instance, active_leaves, suspended_instances
from flat.tree.messages import Message, message_from_data
from flat.tree.run_intake import MAX_STEPS

if TYPE_CHECKING:
    from flat.runtime.machine import HooksOfRun
    from flat.runtime.runtime import Runtime
    from flat.runtime.trees import TreeMachine

S = TypeVar("S", default=Any)


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How one run is to go."""

    max_steps: int = MAX_STEPS
    until: str = "all"
    """`all`: the run is over when no leaf goes on. `primary`: already when the one that talks to the user ends."""
    on_message_stream: Callable[[Mapping[str, Any]], Any] | None = None
    """Called with the pieces of each answer while it comes."""
    tracer: Tracer | None = None

    def __post_init__(self) -> None:
        if self.until not in ("all", "primary"):
            raise TreeError("bad_options", f'until is "all" or "primary", not {self.until!r}')
        if isinstance(self.max_steps, bool) or not isinstance(self.max_steps, int) or self.max_steps < 1:
            raise TreeError(
                "bad_options", f"max_steps is a number of steps, 1 or more, not {self.max_steps!r}"
            )


@dataclass(frozen=True, kw_only=True)
class MachineStep(Generic[S]):
    """What one step came to. The histories of all steps are the machine's history."""

    id: str
    """The same when a step is told again after a crash."""
    instance: Instance[S]
    history: Sequence[Message]
    yield_reason: str
    done: bool
    cede_content: Any = None
    suspended_instances: Sequence[Mapping[str, Any]] = ()
    command_result: Mapping[str, Any] | None = None
    settled: Sequence[str] = ()
    """Client ids of the commands that are done with this step."""
    refused: Sequence[Mapping[str, Any]] = ()
    """What came in and was not taken, each with a code and a message."""
    detail: str = ""

    @property
    def response(self) -> str:
        """The text of the last thing that was said by the model; empty when nothing was."""
        said = [m for m in self.history if m.role == "assistant" and not m.metadata.tool_reply]
        return said[-1].text if said else ""


@dataclass
class Taken:
    """The execution as this process has it, or left it: good as long as nobody else has gone on with it."""

    keeper: Keeper
    drive: Drive
    go: Callable[[], Awaitable[Snapshot]]
    seen: Any
    """The step records that were told before."""
    hooks: HooksOfRun


class Steps(AsyncIterator[MachineStep[S]], Generic[S]):
    """The steps of one run. An async iterator; `async with` gives the machine back at a known place."""

    def __init__(self, machine: TreeMachine[S], said: Any, options: RunOptions) -> None:
        self._machine, self._said, self._options = machine, said, options
        self._taken: Taken | None = None
        self._found: deque[tuple[Mapping[str, Any], Mapping[str, Any]]] = deque()
        self._seen: Any = None
        self._over = False
        self._paused = False
        self._given_back: Callable[[], Any] = lambda: None
        self._spans = ExitStack()
        self._number = 0
        self._told_last = False

    def __aiter__(self) -> Steps[S]:
        return self

    async def __aenter__(self) -> Steps[S]:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    async def __anext__(self) -> MachineStep[S]:
        if self._over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except BaseException as error:
            await self._end(whole=isinstance(error, StopAsyncIteration) or self._standing())
            raise

    async def aclose(self) -> None:
        """End the run where it stands."""
        if not self._over:
            await self._end(whole=self._paused)

    def _standing(self) -> bool:
        """Whether what is in memory is what is stored: then the next run need not read it again."""
        return self._taken is not None and self._taken.drive.rest is not None

    async def _next(self) -> MachineStep[S]:
        taken = self._taken
        snapshot: Snapshot | None = None
        if taken is None:
            taken = await self._begin()
            with self._span_of_step():
                snapshot = await self._told_end(taken, await taken.go())
        while not self._found:
            if snapshot is None and self._paused:
                self._paused = False
                with self._span_of_step():
                    snapshot = await self._told_end(taken, await taken.drive.go_on())
            elif snapshot is not None and self._paused:
                snapshot = None
            else:
                self._stop(taken.drive)
        return await self._step(*self._found.popleft(), taken.drive)

    def _span_of_step(self) -> AbstractContextManager[Any]:
        tracer, machine = self._options.tracer, self._machine
        if tracer is None or self._told_last:  # what is left of the run is to park
            return nullcontext()
        self._number += 1
        leaves = len(active_leaves(machine.instance))
        return tracer.span("step", number=self._number, leaves=leaves, execution_id=machine.execution_id)

    async def _told_end(self, taken: Taken, snapshot: Snapshot) -> Snapshot:
        """Tell the hooks of the end, when that is what the run came to."""
        if snapshot.status in FINISHED:
            await taken.hooks.tell_lifecycle("machine_end", snapshot)
        return snapshot

    # -- beginning and end --------------------------------------------------------------

    async def _begin(self) -> Taken:
        machine = self._machine
        with ExitStack() as stack:
            try:
                stack.enter_context(machine.runtime.claimed(machine.execution_id))
                machine.hand_in(self._said)
                taken = await machine.take(self._options)
            except ExecutionBusy as error:
                if isinstance(error, MachineBusy):
                    raise
                raise MachineBusy(machine.execution_id, error.owner) from None
            stack.enter_context(machine.runtime.driving(machine.execution_id, taken.drive))
            kept = stack.pop_all()
        machine.running = True
        if (tracer := self._options.tracer) is not None:
            facts = {"execution_id": machine.execution_id, "max_steps": self._options.max_steps}
            self._spans.enter_context(tracer.span(f"machine {machine.charter.name}", **facts))
        self._taken, self._seen = taken, taken.seen
        self._given_back = weakref.finalize(self, _give_back, machine, kept)
        drive, calls = taken.drive, taken.drive.performer.tree
        assert isinstance(calls, TreeCalls)
        # Whoever drops the steps must be able to tell: the drive does not hold them.
        run = weakref.ref(self)
        drive.told = lambda step: _alive(run)._told(step)
        drive.pause = lambda: _alive(run)._pause()
        drive.before_look = machine.flush
        listener = self._options.on_message_stream
        calls.on_stream = None if listener is None else heard_by(machine, listener)
        calls.tracer = self._options.tracer
        drive.performer.last_error = None
        return taken

    async def _end(self, *, whole: bool) -> None:
        self._over = True
        self._spans.close()
        self._given_back()
        if self._taken is not None:
            await self._machine.let_go(self._taken, whole=whole)

    def _told(self, step: Advance) -> None:
        self._machine.snapshot = step.snapshot
        context = step.snapshot.root.context
        steps = context.get("steps")
        if steps is not self._seen:
            self._seen = steps
            self._found.extend((record, context["tree"]) for record in steps or ())

    def _pause(self) -> bool:
        self._paused = bool(self._found)
        return self._paused

    # -- steps ------------------------------------------------------------------------------

    async def _step(self, record: Mapping[str, Any], tree: Mapping[str, Any], drive: Drive) -> MachineStep[S]:
        root = self._machine.binding.fresh(tree)
        reason, self._told_last = record["reason"], record["done"]
        tells = record["done"] or reason == "suspend"
        return MachineStep(
            id=record["id"],
            instance=root,
            history=[message_from_data(m) for m in drive.performer.log[record["from"] : record["to"]]],
            yield_reason=reason,
            done=record["done"],
            cede_content=record.get("cede_content"),
            suspended_instances=await suspended_infos(self._machine.runtime, root) if tells else (),
            command_result=record.get("command_result"),
            settled=record.get("settled", ()),
            refused=record.get("refused", ()),
            detail=record.get("detail", ""),
        )

    def _stop(self, drive: Drive) -> NoReturn:
        """The run stands still: because it is over, or because something is wrong."""
        snapshot = drive.snapshot
        assert snapshot is not None
        self._machine.snapshot = snapshot
        raise_for(snapshot, drive)
        raise StopAsyncIteration


def heard_by(machine: TreeMachine[Any], listener: Callable[[Mapping[str, Any]], Any]) -> Callable[..., Any]:
    """Who hears the pieces of answers: `machine.streaming` and whoever waits for messages, then `listener`."""

    def hear(event: Mapping[str, Any]) -> None:
        id_ = event["messageId"]
        message = streamed(machine.streaming.get(id_), event)
        if event["type"] in ("message_start", "message_update"):
            machine.streaming[id_] = message
        else:
            machine.streaming.pop(id_, None)
        if event["type"] != "message_update":
            machine.announce(message)
        listener(event)

    return hear


def streamed(known: Message | None, event: Mapping[str, Any]) -> Message:
    """An answer on its way, after one more event of it."""
    state = {"message_end": "complete", "message_error": "error"}.get(event["type"], "streaming")
    if event["type"] == "message_end":
        message = message_from_data(event["message"])
    else:
        text = known.text if known is not None else ""
        text += event["delta"]["delta"] if event["type"] == "message_update" else ""
        message = message_from_data(
            {"role": "assistant", "items": text, "metadata": {"source": event["source"]}}
        )
    stream = {"state": state, "seq": event["seq"]}
    return replace(message, metadata=replace(message.metadata, message_id=event["messageId"], stream=stream))


def _alive(run: weakref.ref[Steps[S]]) -> Steps[S]:
    steps = run()
    assert steps is not None, "a run goes on only while somebody has its steps"
    return steps


def _give_back(machine: TreeMachine[Any], kept: ExitStack) -> None:
    machine.running = False
    kept.close()


def raise_for(snapshot: Snapshot, drive: Drive) -> None:
    """Raise what keeps a turn from going on. The next run tries again."""
    failure = snapshot.failure
    problem = snapshot.root.context.get("problem")
    if failure is None and problem is not None:
        failure = Failure(type=problem["type"], message=problem["message"], names=tuple(problem["names"]))
    if failure is None and snapshot.status in ("limit", "in_doubt", "cancelled"):
        failure = Failure(
            type="LimitExceeded", message=f"the execution is {snapshot.status}: {snapshot.reason}"
        )
    if failure is None:
        return
    if failure.type == "StepLimitExceeded":
        raise TreeError("step_limit", failure.message)
    cause = drive.performer.last_error
    if cause is not None and failure_of(cause).message == failure.message:
        raise cause
    raise ExecutionError(
        failure.detail or failure.message, type=failure.type, execution_id=snapshot.execution_id
    )


async def suspended_infos(runtime: Runtime, root: Instance[Any]) -> tuple[Mapping[str, Any], ...]:
    """What waits in a tree, for those who ask a person; of a machine that waits, what it waits for by now."""
    found = []
    for instance in suspended_instances(root):
        info = instance.suspended
        assert info is not None
        told: dict[str, Any] = {
            "instanceId": instance.id,
            "suspendId": info.suspend_id,
            "reason": info.reason,
        }
        if info.metadata is not None:
            told["metadata"] = dict(info.metadata)
        if info.execution_id is not None and (now := await waits_of(runtime, info.execution_id)) is not None:
            told |= {"reason": now.reason, "metadata": {"kind": "call", "channels": list(now.channels)}}
        found.append(told)
    return tuple(found)
