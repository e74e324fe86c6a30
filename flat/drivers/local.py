"""The local driver: runs one execution in this process, on asyncio or trio.

The loop is: advance on an event, keep the snapshot, perform what it asks for, and advance on the result. A
lone effect is awaited in place; two or more are performed `together`. A signal that is not there parks the
execution. What was pending when a run ended is found on resume and treated as its policy says (`doubts`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from flat.backends.protocols import Signal
from flat.core.advance import advance
from flat.core.effects import (
    AwaitSignal,
    CallAgent,
    Effect,
    RunAction,
    RunHook,
    RunTool,
    Sleep,
    StartChild,
    instance_of,
)
from flat.core.events import Cancelled, Done, Event, Failed, Resumed, Started
from flat.core.failure import Failure
from flat.core.program import Program
from flat.core.snapshot import FINISHED, Snapshot
from flat.core.turn import Advance, Turn
from flat.drivers.broadcast import share
from flat.drivers.clock import Clock
from flat.drivers.doubts import SAFE, Doubts
from flat.drivers.family import Budget, Children, Held
from flat.drivers.keeper import Keeper
from flat.drivers.perform import Performer
from flat.drivers.steps import joined
from flat.drivers.telling import Teller
from flat.drivers.together import Together, cause_of
from flat.errors import SignalGone
from flat.hooks import Observers

LONE: frozenset[type] = frozenset({CallAgent, RunAction, RunHook, RunTool, Sleep})
"""Effects that are simply awaited."""
UNDER_WAY = ("running", "waiting")


@dataclass
class Drive:
    """One run: drives one execution until it stops or parks."""

    program: Program
    performer: Performer
    clock: Clock
    keeper: Keeper | None = None
    """None: nothing is stored."""
    observers: Observers = field(default_factory=Observers)
    doubts: Doubts = field(default_factory=Doubts)
    tell_hooks: Callable[[Advance], Awaitable[None]] | None = None
    """Told the nodes entered and left, when some hooks object watches."""
    decode: Callable[[bytes], Any] = lambda body: body
    children: Children | None = None
    budget: Budget | None = None
    """None: the family may call models as often as it likes."""
    waiting_on: tuple[str, ...] = ()
    snapshot: Snapshot | None = None
    before_look: Callable[[], Awaitable[None]] | None = None
    """Called before it is looked whether signals are there: brings those that are on their way in this process."""
    told: Callable[[Advance], None] | None = None
    """Told every step that was kept."""
    pause: Callable[[], bool] | None = None
    """Asked after every commit whether to stop here for a while; `go_on` takes the run up."""
    rest: Advance | None = None
    """What is yet to be done of a run that paused or parked."""
    consume: tuple[str, ...] = ()
    """Signals that the next commit takes out of their channels."""
    held: dict[str, Held] = field(default_factory=dict)
    """What is answered from outside, by effect: signals, and children that wait."""
    asked: dict[str, StartChild | AwaitSignal] = field(default_factory=dict)
    """The effects of what is held, or may come to be."""
    _cancel: anyio.CancelScope | None = None
    _cancel_reason: str | None = None
    _turn: Turn | None = None
    """The working copy that is ahead of `snapshot`, while nothing is kept."""

    def __post_init__(self) -> None:
        self.tell = Teller(self.observers, self.clock)
        self._watched = bool(self.observers)

    # -- beginnings -----------------------------------------------------------------

    async def start(self, snapshot: Snapshot, event: Started) -> Snapshot:
        """Drive a fresh execution."""
        self.snapshot = snapshot
        self.tell.notice("started", snapshot, name=self.program.name)
        return await self._guarded(event)

    async def start_unstored(self, snapshot: Snapshot, event: Started) -> Snapshot:
        """Drive a fresh child that is kept nowhere, so that nobody but its parent's driver can cancel it."""
        self.snapshot = snapshot
        self.tell.notice("started", snapshot)
        return await self._loop(advance(self.program, snapshot, event))

    async def resume(self, snapshot: Snapshot, event: Resumed) -> Snapshot:
        """Drive an execution on from where it is stored."""
        self.snapshot = snapshot
        self.tell.notice("resumed", snapshot, name=self.program.name)
        pending = frozenset(snapshot.pending)
        step = advance(self.program, snapshot, event)
        doubtful = [e for e in step.effects if e.id in pending and not isinstance(e, SAFE)]
        if doubtful:
            return await self._guarded(step, doubtful)
        return await self._guarded(step)

    async def go_on(self) -> Snapshot:
        """Drive on from where the run paused or parked."""
        rest, self.rest = self.rest, None
        assert rest is not None
        return await self._guarded(rest)

    def cancel(self, reason: str = "") -> None:
        """Stop what is running and end the execution as cancelled."""
        self._cancel_reason = reason
        if self._cancel is not None:
            self._cancel.cancel()

    async def _guarded(self, first: Event | Advance, doubtful: Sequence[Effect] = ()) -> Snapshot:
        with anyio.CancelScope() as self._cancel:
            if isinstance(first, Advance):
                step = first if not doubtful else await self._settled(first, doubtful)
            else:
                assert self.snapshot is not None
                step = advance(self.program, self.snapshot, first)
            return await self._loop(step)
        # Only `cancel` ends the scope early. A commit may have been under way: what is stored is what counts.
        if self.keeper is not None:
            self.snapshot = await self.keeper.refresh()
        elif self._turn is not None:
            self.snapshot = self._turn.close().snapshot
        assert self.snapshot is not None
        if self.snapshot.status in FINISHED:
            return self.snapshot
        reason = self._cancel_reason or ""
        last = advance(self.program, self.snapshot, Cancelled(self.clock.now(), reason))
        await self.keep(last)
        if self.children is not None and self.keeper is not None:
            with anyio.CancelScope(shield=True):
                await self.children.end_all(last.snapshot, reason)
        return self._stopped(last)

    async def _settled(self, step: Advance, doubtful: Sequence[Effect]) -> Advance:
        return await self.doubts.settle(self.program, step, doubtful, self.tell, self.clock)

    # -- the loop ---------------------------------------------------------------------

    async def _loop(self, step: Advance) -> Snapshot:
        program, perform = self.program, self.performer.perform
        alone = self.keeper is None and self.tell_hooks is None and not self._watched and self.told is None
        lone = LONE if self.budget is None else LONE - {CallAgent}
        turn: Turn | None = None
        while True:
            if alone and not (step.launched or step.said):
                step = await self._unwatched(step, lone)
            if step.effects and (type(step.effects[0]) is AwaitSignal or len(step.effects) > 1):
                step = await self.looked(step)
            if self.held:
                step = await Together(self).tended(step)
            if not alone or step.launched or step.said:
                await self.keep(step)
            snapshot, effects = step.snapshot, step.effects
            if not effects and not (self.held and snapshot.status in UNDER_WAY):
                return self._stopped(step)
            if self.pause is not None and self.pause():
                self.rest = step
                return snapshot
            effect = effects[0] if effects else None
            if len(effects) == 1 and type(effect) is AwaitSignal and not self.held:
                got = await self.received(effect, step)
                if got is None:
                    self.waiting_on, self.rest = (effect.channel,), step
                    return self._stopped(step)
                step = got
                continue
            if effect is None or len(effects) > 1 or type(effect) not in lone:
                before = step
                try:
                    step, over = await Together(self).run(step)
                except BaseExceptionGroup as group:
                    raise cause_of(group) from None
                if over:
                    self.held.clear()
                    self.rest = before if step.snapshot is before.snapshot else None
                    return self._stopped(step)
                continue
            if self._watched:
                event = await self.tell.performed(self.performer, effect, snapshot)
            else:
                event = await perform(effect, snapshot)
            if turn is None or turn.snapshot is not snapshot:
                turn = Turn(program, snapshot, snapshot.instances[instance_of(effect.id)], event.at)
            step = turn.go_on(event)

    async def _unwatched(self, step: Advance, lone: frozenset[type]) -> Advance:
        """Run on while nothing is kept and nobody watches, up to what needs more than awaiting one effect."""
        self.snapshot = step.snapshot
        effects, perform = step.effects, self.performer.perform
        if len(effects) != 1 or type(effects[0]) not in lone:
            return step
        turn = self._turn = Turn(
            self.program, step.snapshot, step.snapshot.instances[instance_of(effects[0].id)], step.snapshot.at
        )
        while len(effects) == 1 and type(effects[0]) in lone and not (turn.launched or turn.said):
            effects = turn.again(await perform(effects[0], turn))
        self._turn = None
        step = turn.close()
        if not (step.launched or step.said):  # else it is yet to be kept
            self.snapshot = step.snapshot
        return step

    async def looked(self, step: Advance) -> Advance:
        """What a step leads to that only looks for signals: where there are none, that needs no commit of its own."""
        while (look := look_of(step.effects)) is not None:
            if self.before_look is not None:
                await self.before_look()
            got = None
            if self.keeper is not None and await self.keeper.store.signals(
                look.channel, to=step.snapshot.execution_id, limit=1
            ):
                await self.keep(step)
                step = Advance(step.snapshot, step.effects, ())
                got = await self.received(look, step)
            step = joined(step, got if got is not None else self._nothing(look, step))
        return step

    def _nothing(self, look: AwaitSignal, step: Advance) -> Advance:
        """The step that a look leads to which finds no signal."""
        return advance(self.program, step.snapshot, Done(look.id, None, self.clock.now()))

    async def received(self, effect: AwaitSignal, step: Advance) -> Advance | None:
        """The step that a waiting signal, or the end of the time for it, leads to. None to go on waiting."""
        now, id_ = self.clock.now(), step.snapshot.execution_id
        if self.keeper is not None:
            store = self.keeper.store
            for signal in await store.signals(effect.channel, to=id_, limit=1):
                if signal.to is None and await share(store, effect.channel):  # it is for all who wait
                    return await self.received(effect, step)
                taken = advance(self.program, step.snapshot, Done(effect.id, self.decode(signal.body), now))
                try:
                    await self.keep(taken, signal)
                except SignalGone:  # another execution that waits on the channel was faster
                    return await self.received(effect, step)
                return taken._replace(path=(), launched=(), said=())  # told when it was kept
        if effect.deadline is not None and now >= effect.deadline:
            failure = Failure(type="TimeoutError", message=f'no signal on "{effect.channel}" in time')
            return advance(self.program, step.snapshot, Failed(effect.id, failure, now))
        return None

    # -- keeping and telling -------------------------------------------------------------

    async def keep(
        self, step: Advance, signal: Signal | None = None, held: Sequence[Held | AwaitSignal] = ()
    ) -> None:
        """Store what an event led to, then tell whoever watches. A run that is over gives its lease back with that."""
        snapshot, effects, path, launched, said = step
        if snapshot is self.snapshot:
            return
        if (keeper := self.keeper) is not None:
            if snapshot.status == "waiting" and still_parked(keeper, snapshot):
                self.snapshot = snapshot
                return
            if snapshot.status == "running" and effects and not (said or launched or signal or self.consume):
                await keeper.keep(snapshot)  # an ordinary step
            else:
                await self._keep_more(step, signal, held)
        self.snapshot = snapshot
        if said:
            self.performer.log.extend(said)
        if self.told is not None:
            self.told(step)
        if launched and self.children is not None:
            self.children.launch(launched, snapshot)
        if self.tell_hooks is not None and (path or self.performer.tree is not None):
            await self.tell_hooks(step)
        if path and self._watched:
            for kind, node, at in path:
                self.tell.notice(kind, snapshot, node, at)

    async def _keep_more(
        self, step: Advance, signal: Signal | None, held: Sequence[Held | AwaitSignal]
    ) -> None:
        """Store a step that waits, ends, says something, or takes a signal."""
        assert self.keeper is not None
        snapshot, effects, _, launched, said = step
        if snapshot.status == "waiting" and not held:
            held = tuple(e for e in effects if isinstance(e, AwaitSignal))
        consume = self.consume if signal is None else (*self.consume, signal.signal_id)
        births = await self.children.births(launched, snapshot) if launched and self.children else ()
        # Without effects it is over, unless others are still out.
        over = not effects and (snapshot.status not in ("running", "waiting") or not snapshot.pending)
        await self.keeper.keep(snapshot, waits=held, consume=consume, log=said, births=births, release=over)
        self.consume = ()

    def _stopped(self, step: Advance) -> Snapshot:
        if step.snapshot.status != "waiting":
            self.waiting_on = ()
        self.tell.notice("stopped", step.snapshot, status=step.snapshot.status, reason=step.snapshot.reason)
        return step.snapshot


def look_of(effects: Sequence[Effect]) -> AwaitSignal | None:
    """The one among effects that only looks, if there is one."""
    return next((e for e in effects if type(e) is AwaitSignal and not e.patient), None)


def still_parked(keeper: Keeper, snapshot: Snapshot) -> bool:
    """Whether an execution that waits is stored to wait just so: then there is nothing to store."""
    old = keeper.stored
    if old.status != "waiting" or keeper.adopted:
        return False
    return (
        (snapshot.steps, snapshot.pending, snapshot.max_steps, snapshot.max_agent_calls)
        == (old.steps, old.pending, old.max_steps, old.max_agent_calls)
        and snapshot.spent is old.spent
        and all(i.context is old.instances[k].context for k, i in snapshot.instances.items())
        and all(i.local == old.instances[k].local for k, i in snapshot.instances.items())
    )
