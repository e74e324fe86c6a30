"""Effects of one execution that are performed side by side, until all are answered or only held ones are left.

Each has a task and a cancel scope of its own, which ends when the execution no longer waits for it. Their results are
handled as they come, all that are there in one commit. What is answered from outside (a signal, a child that waits) is
*held*: when nothing but that is left, the execution is parked, and then looked at once more, so that no sender can have
missed it. Whoever asked for a child that waits, and is not patient, is told, and goes on while the child is held.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from itertools import groupby
from typing import TYPE_CHECKING, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from flat.core.advance import advance, advance_all
from flat.core.effects import AwaitSignal, CallAgent, Effect, StartChild, child_channel, child_id, instance_of
from flat.core.events import Done, Failed, Limited, Parked, Waits
from flat.core.failure import Failure
from flat.core.snapshot import Snapshot
from flat.core.turn import Advance
from flat.drivers.family import Held
from flat.drivers.steps import joined, started

if TYPE_CHECKING:
    from flat.drivers.local import Drive

T = TypeVar("T")
Outcome = Done | Failed | Held
UNWANTED = "nobody waits for it any more"


class Together:
    """The effects that are out at one time, of the execution of one drive."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        self.running: dict[str, anyio.CancelScope] = {}
        self.held, self.asked = drive.held, drive.asked

    async def run(self, step: Advance) -> tuple[Advance, bool]:
        """The last step, and whether the run is over with it: parked, or stopped by a limit."""
        self.send, self.receive = anyio.create_memory_object_stream[Outcome](math.inf)
        with self.send, self.receive:
            async with anyio.create_task_group() as self.group:
                self._start(step.effects, step.snapshot)
                if not self.running:
                    return await self._at_rest(started(step))
                step = await self._rounds(started(step))
            self._taken(step, _now_there(self.receive))
            await self._end_unwanted(step.snapshot)
            for gone in self.asked.keys() - self.held.keys():
                del self.asked[gone]
        return step, False

    async def _rounds(self, step: Advance) -> Advance:
        """Go on until nothing runs; what the last answers have asked for is not begun."""
        drive, later = self.drive, step
        while True:
            step = await drive.looked(self._taken(step, await _all_there(self.receive)))
            pending = frozenset(step.snapshot.pending)
            for gone in self.running.keys() - pending:
                self.running.pop(gone).cancel()
            await self._end_unwanted(step.snapshot)
            if not self.running:
                return joined(later, step)
            await drive.keep(step)
            if drive.pause is not None and drive.pause():
                later = joined(later, Advance(step.snapshot, step.effects, ()))
            else:
                self._start(step.effects, step.snapshot)
            step = started(step)

    async def _at_rest(self, step: Advance) -> tuple[Advance, bool]:
        """Only what is held is left: stop there, unless something has come meanwhile."""
        drive = self.drive
        if over := next((h.limited for h in self.held.values() if h.limited), ""):
            step = advance(drive.program, step.snapshot, Limited(over, drive.clock.now()))
            await drive.keep(step)
            return step, True
        step = await self._parked(step)
        got = await self._woken(step)
        return (step, True) if got is None else (got, False)

    # -- one effect ---------------------------------------------------------------------

    def _start(self, effects: Sequence[Effect], snapshot: Snapshot) -> None:
        for effect in effects:
            if isinstance(effect, StartChild | AwaitSignal):
                self.asked[effect.id] = effect
            if isinstance(effect, AwaitSignal):
                self.held[effect.id] = held_signal(effect)
            elif effect.id not in self.held and effect.id not in self.running:
                scope = self.running[effect.id] = anyio.CancelScope()
                self.group.start_soon(self._one, effect, scope, snapshot)

    async def _one(self, effect: Effect, scope: anyio.CancelScope, snapshot: Snapshot) -> None:
        children = self.drive.children
        with scope:
            self.send.send_nowait(await self._outcome(effect, snapshot))
        if scope.cancelled_caught and isinstance(effect, StartChild) and children is not None:
            with anyio.CancelScope(shield=True):
                await children.end(effect, snapshot, UNWANTED)

    async def _outcome(self, effect: Effect, snapshot: Snapshot) -> Outcome:
        """Perform an effect, within the budget; a child may come to be held."""
        drive, budget = self.drive, self.drive.budget
        if isinstance(effect, StartChild):
            return await self._child(effect, snapshot)
        if budget is None or not isinstance(effect, CallAgent):
            return await drive.tell.performed(drive.performer, effect, snapshot)
        if not budget.take():
            return Held(effect_id=effect.id, limited=budget.reason)
        calls = 0
        try:
            event = await drive.tell.performed(drive.performer, effect, snapshot)
            spent = event.usage if isinstance(event, Failed) else getattr(event.value, "spent", None)
            calls = 0 if spent is None else spent.calls
        finally:
            budget.settle(calls)
        return event

    async def _child(self, effect: StartChild, snapshot: Snapshot) -> Outcome:
        drive = self.drive
        if drive.children is None:
            failure = Failure(type="ExecutionError", message="this driver runs no other machines")
            return Failed(effect.id, failure, drive.clock.now())
        drive.tell.begins(effect, snapshot)
        came = await drive.children.run(effect, snapshot)
        if isinstance(came, Held):
            return came
        if came.found and drive.keeper is not None:
            channel = child_channel(child_id(snapshot.execution_id, effect.id))
            drive.consume += tuple(s.signal_id for s in await drive.keeper.store.signals(channel))
        drive.tell.answered(effect, came.event, snapshot)
        return came.event

    # -- what came ------------------------------------------------------------------------

    def _taken(self, step: Advance, outcomes: Sequence[Outcome]) -> Advance:
        """The step that these outcomes lead to, together."""
        events: list[Done | Failed] = []
        for outcome in outcomes:
            wanted = self.running.pop(outcome.effect_id, None) is not None
            if isinstance(outcome, Held):  # kept here also when nobody wants it any more: it has to be ended
                self.held[outcome.effect_id] = outcome
                if wanted and (told := self._told(outcome)) is not None:
                    events.append(told)
            elif wanted:
                events.append(outcome)
        steps, program = [step], self.drive.program
        for _, of_one in groupby(events, lambda event: instance_of(event.effect_id)):
            steps.append(advance_all(program, steps[-1].snapshot, tuple(of_one)))
        return joined(*steps)

    def _told(self, held: Held) -> Done | None:
        """What whoever is not patient is told of a child that waits."""
        asked = self.asked.get(held.effect_id)
        if not isinstance(asked, StartChild) or asked.patient or held.limited:
            return None
        return Done(
            held.effect_id, Waits(reason=held.reason, channels=held.waiting_on), self.drive.clock.now()
        )

    async def _end_unwanted(self, snapshot: Snapshot) -> None:
        """Let go of what is held and pending no more; a child that waits would wait for ever."""
        for gone in self.held.keys() - frozenset(snapshot.pending):
            del self.held[gone]
            if isinstance(child := self.asked.get(gone), StartChild) and self.drive.children is not None:
                await self.drive.children.end(child, snapshot, UNWANTED)

    async def tended(self, step: Advance) -> Advance:
        """The step, with the children that have ended meanwhile; what nobody waits for any more is let go."""
        await self._end_unwanted(step.snapshot)
        for one in tuple(self.held.values()):
            child = self.asked.get(one.effect_id)
            if isinstance(child, StartChild) and await self._worth_another_look(one):
                del self.held[one.effect_id]
                step = step._replace(effects=(*step.effects, child))
        return step

    # -- parking -----------------------------------------------------------------------------

    async def _parked(self, step: Advance) -> Advance:
        """Store that only held effects are left."""
        drive, held = self.drive, tuple(self.held.values())
        if step.snapshot.status != "waiting":
            step = advance(drive.program, step.snapshot, Parked(drive.clock.now()))
        await drive.keep(step, held=held)
        drive.waiting_on = tuple(dict.fromkeys(c for h in held for c in h.waiting_on))
        return step

    async def _woken(self, step: Advance) -> Advance | None:
        """The step that something leads to which is there already; None to stay parked.

        The wait was stored before anybody looks, so that no sender can miss it.
        """
        for one in tuple(self.held.values()):
            effect = self.asked.get(one.effect_id)
            if isinstance(effect, AwaitSignal):
                got = await self.drive.received(effect, step)
                if got is not None:
                    return got
            elif isinstance(effect, StartChild) and await self._worth_another_look(one):
                del self.held[one.effect_id]
                return Advance(step.snapshot, (effect,), ())
        return None

    async def _worth_another_look(self, child: Held) -> bool:
        """Whether a child that was held has told that it ended, or its time is over."""
        drive = self.drive
        if child.deadline is not None and drive.clock.now() >= child.deadline:
            return True
        return drive.keeper is not None and bool(await drive.keeper.store.signals(child.channel, limit=1))


def held_signal(effect: AwaitSignal) -> Held:
    return Held(
        effect_id=effect.id, channel=effect.channel, deadline=effect.deadline, waiting_on=(effect.channel,)
    )


def cause_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one error that a task group ended with: the first, other than what was only cancelled over it."""
    _, told = group.split(anyio.get_cancelled_exc_class())
    cause: BaseException = told or group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


async def _all_there(receive: MemoryObjectReceiveStream[T]) -> list[T]:
    """Wait for one item, and take with it what else is there."""
    return [await receive.receive(), *_now_there(receive)]


def _now_there(receive: MemoryObjectReceiveStream[T]) -> list[T]:
    items: list[T] = []
    with suppress(anyio.WouldBlock):
        while True:
            items.append(receive.receive_nowait())
    return items
