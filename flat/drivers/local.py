"""The local driver: runs one execution in this process, on asyncio or trio.

The loop is: advance on an event, keep the snapshot, perform what it asks for, and advance on the result. A
lone effect is awaited in place; for two or more there is a task group, and their results are handled as they
come, all that are there in one commit. What is answered from outside (a signal, a child that waits) is *held*;
when nothing but that is left, the execution is parked. What was pending when a run ended is found on resume and
treated as its policy says.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream

from flat.backends.protocols import Signal
from flat.core.advance import Advance, Turn, advance
from flat.core.effects import (
    AwaitSignal,
    CallAgent,
    Effect,
    RunAction,
    RunHook,
    RunTool,
    Sleep,
    StartChild,
    child_channel,
    child_id,
    instance_of,
)
from flat.core.events import (
    Cancelled,
    Done,
    Doubted,
    Event,
    Failed,
    Limited,
    Parked,
    Reply,
    Resumed,
    Spent,
    Started,
    Steered,
)
from flat.core.failure import Failure
from flat.core.program import Program
from flat.core.snapshot import FINISHED, Snapshot
from flat.drivers.broadcast import share
from flat.drivers.clock import Clock
from flat.drivers.draft import settle
from flat.drivers.family import Budget, Children, Held
from flat.drivers.keeper import Keeper
from flat.drivers.perform import Performer
from flat.errors import BindingError, SignalGone
from flat.hooks import Notice, Observers

T = TypeVar("T")
Verifier = Callable[..., Any]
RETRY = object()
LONE: frozenset[type] = frozenset({CallAgent, RunAction, RunHook, RunTool, Sleep})
"""Effects that are simply awaited."""
SAFE = (Sleep, AwaitSignal, StartChild)
"""Effects that nothing happens by: they are never in doubt."""
UNWANTED = "nobody waits for it any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class InDoubt:
    """An effect that may have begun when its run ended, and what was done about it."""

    effect_id: str
    kind: str
    what: str
    node: str
    policy: str
    execution_id: str = ""
    """Whose it is: the execution's that was resumed, or that of one of its children."""


@dataclass
class Drive:
    """One run: drives one execution until it stops or parks."""

    program: Program
    performer: Performer
    clock: Clock
    keeper: Keeper | None = None
    """None: nothing is stored."""
    observers: Observers = field(default_factory=Observers)
    verifiers: dict[str, Verifier] = field(default_factory=dict)
    tell_hooks: Callable[[Advance], Awaitable[None]] | None = None
    """Told the nodes entered and left, when some hooks object watches."""
    decode: Callable[[bytes], Any] = lambda body: body
    decisions: Mapping[str, Any] = field(default_factory=dict)
    """What a person decided about effects in doubt: `RETRY`, or the value that the effect is to have."""
    in_doubt: list[InDoubt] = field(default_factory=list)
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
    _cancel: anyio.CancelScope | None = None
    _cancel_reason: str | None = None
    _turn: Turn | None = None
    """The working copy that is ahead of `snapshot`, while nothing is kept."""
    _consume: tuple[str, ...] = ()
    """Signals that the next commit takes out of their channels."""

    # -- beginnings -----------------------------------------------------------------

    async def start(self, snapshot: Snapshot, event: Started) -> Snapshot:
        """Drive a fresh execution."""
        self.snapshot = snapshot
        self._notice("started", snapshot, name=self.program.name)
        return await self._guarded(event)

    async def start_unstored(self, snapshot: Snapshot, event: Started) -> Snapshot:
        """Drive a fresh child that is kept nowhere, so that nobody but its parent's driver can cancel it."""
        self.snapshot = snapshot
        self._notice("started", snapshot)
        return await self._loop(advance(self.program, snapshot, event))

    async def resume(self, snapshot: Snapshot, event: Resumed) -> Snapshot:
        """Drive an execution on from where it is stored."""
        self.snapshot = snapshot
        self._notice("resumed", snapshot, name=self.program.name)
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
                step = first if not doubtful else await self._settle_doubts(first, doubtful)
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
        await self._keep(last)
        if self.children is not None and self.keeper is not None:
            with anyio.CancelScope(shield=True):
                await self.children.end_all(last.snapshot, reason)
        return self._stopped(last)

    # -- the loop ---------------------------------------------------------------------

    async def _loop(self, step: Advance) -> Snapshot:
        program, perform = self.program, self.performer.perform
        alone = self.keeper is None and self.tell_hooks is None and not self.observers and self.told is None
        lone = LONE if self.budget is None else LONE - {CallAgent}
        while True:
            if alone and not (step.launched or step.said):
                step = await self._unwatched(step, lone)
            if step.effects and type(step.effects[0]) is AwaitSignal:
                step = await self._looked(step)
            if not alone or step.launched or step.said:
                await self._keep(step)
            snapshot, effects = step.snapshot, step.effects
            if not effects:
                return self._stopped(step)
            if self.pause is not None and self.pause():
                self.rest = step
                return snapshot
            effect = effects[0]
            if len(effects) == 1 and type(effect) is AwaitSignal:
                got = await self._receive(effect, step)
                if got is None and not effect.patient:
                    got = self._nothing(effect, step)
                if got is None:
                    self.waiting_on, self.rest = (effect.channel,), step
                    return self._stopped(step)
                step = got
                continue
            if len(effects) > 1 or type(effect) not in lone:
                before = step
                try:
                    step, over = await self._together(step)
                except BaseExceptionGroup as group:
                    raise cause_of(group) from None
                if over:
                    self.rest = before if step.snapshot is before.snapshot else None
                    return self._stopped(step)
                continue
            if self.observers:
                event = await self._watched(effect, snapshot)
            else:
                event = await perform(effect, snapshot)
            step = advance(program, snapshot, event)

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

    async def _looked(self, step: Advance) -> Advance:
        """What a step leads to that only looks for signals where there are none: that needs no commit of its own."""
        while (
            len(step.effects) == 1 and isinstance(look := step.effects[0], AwaitSignal) and not look.patient
        ):
            if self.before_look is not None:
                await self.before_look()
            if self.keeper is not None and await self.keeper.store.signals(
                look.channel, to=step.snapshot.execution_id, limit=1
            ):
                break
            step = joined(step, self._nothing(look, step))
        return step

    def _nothing(self, look: AwaitSignal, step: Advance) -> Advance:
        """The step that a look leads to which finds no signal."""
        return advance(self.program, step.snapshot, Done(look.id, None, self.clock.now()))

    async def _together(self, step: Advance) -> tuple[Advance, bool]:
        """Perform effects side by side until all that was asked for meanwhile is answered, or only held ones are left.

        With the last step comes whether the run is over: parked, or stopped by a limit.
        """
        send, receive = anyio.create_memory_object_stream[Done | Failed | Held](math.inf)
        running: dict[str, anyio.CancelScope] = {}
        held: dict[str, Held] = {}
        asked: dict[str, Effect] = {}

        async def one(effect: Effect, scope: anyio.CancelScope, snapshot: Snapshot) -> None:
            with scope:
                send.send_nowait(await self._outcome(effect, snapshot))
            if scope.cancelled_caught and isinstance(effect, StartChild) and self.children is not None:
                with anyio.CancelScope(shield=True):
                    await self.children.end(effect, snapshot, UNWANTED)

        def start(effects: Sequence[Effect], snapshot: Snapshot) -> None:
            for effect in effects:
                if isinstance(effect, AwaitSignal):
                    held[effect.id] = held_signal(effect)
                else:
                    scope = running[effect.id] = anyio.CancelScope()
                    group.start_soon(one, effect, scope, snapshot)
                if isinstance(effect, StartChild | AwaitSignal):
                    asked[effect.id] = effect

        with send, receive:
            async with anyio.create_task_group() as group:
                start(step.effects, step.snapshot)
                step = started(step)
                while running or held:
                    if running:
                        step = self._taken(step, await _all_there(receive), running, held)
                    else:
                        if over := next((h.limited for h in held.values() if h.limited), ""):
                            step = advance(self.program, step.snapshot, Limited(over, self.clock.now()))
                            await self._keep(step)
                            return step, True
                        step = await self._parked(step, held)
                        got = await self._woken(step, held, asked)
                        if got is None:
                            return step, True
                        step = got
                    pending = frozenset(step.snapshot.pending)
                    for gone in running.keys() - pending:
                        running.pop(gone).cancel()
                    await self._end_unwanted(held, asked, step.snapshot)
                    if running or held:
                        await self._keep(step)
                        start(step.effects, step.snapshot)
                        step = started(step)
            self._taken(step, _now_there(receive), running, held)
            await self._end_unwanted(held, asked, step.snapshot)
        return step, False

    async def _end_unwanted(
        self, held: dict[str, Held], asked: Mapping[str, Effect], snapshot: Snapshot
    ) -> None:
        """Let go of what is held and pending no more; a child that waits would wait for ever."""
        for gone in held.keys() - frozenset(snapshot.pending):
            del held[gone]
            if isinstance(child := asked.get(gone), StartChild) and self.children is not None:
                await self.children.end(child, snapshot, UNWANTED)

    def _taken(
        self,
        step: Advance,
        outcomes: Sequence[Done | Failed | Held],
        running: dict[str, anyio.CancelScope],
        held: dict[str, Held],
    ) -> Advance:
        """The step that these outcomes lead to, together."""
        steps = [step]
        for outcome in outcomes:
            wanted = running.pop(outcome.effect_id, None) is not None
            if isinstance(outcome, Held):  # kept here also when nobody wants it any more: it has to be ended
                held[outcome.effect_id] = outcome
            elif wanted and outcome.effect_id in steps[-1].snapshot.pending:
                steps.append(advance(self.program, steps[-1].snapshot, outcome))
        return joined(*steps)

    async def _outcome(self, effect: Effect, snapshot: Snapshot) -> Done | Failed | Held:
        """Perform an effect, within the budget; a child may come to be held."""
        if isinstance(effect, StartChild):
            return await self._child(effect, snapshot)
        if self.budget is None or not isinstance(effect, CallAgent):
            return await self._watched(effect, snapshot)
        if not self.budget.take():
            return Held(effect_id=effect.id, limited=self.budget.reason)
        calls = 0
        try:
            event = await self._watched(effect, snapshot)
            spent = event.usage if isinstance(event, Failed) else getattr(event.value, "spent", None)
            calls = 0 if spent is None else spent.calls
        finally:
            self.budget.settle(calls)
        return event

    async def _child(self, effect: StartChild, snapshot: Snapshot) -> Done | Failed | Held:
        if self.children is None:
            failure = Failure(type="ExecutionError", message="this driver runs no other machines")
            return Failed(effect.id, failure, self.clock.now())
        self._notice(
            "perform", snapshot, effect.node, effect_id=effect.id, what=what_of(effect), effect=effect.kind
        )
        came = await self.children.run(effect, snapshot)
        if isinstance(came, Held):
            return came
        if came.found and self.keeper is not None:
            channel = child_channel(child_id(snapshot.execution_id, effect.id))
            self._consume += tuple(s.signal_id for s in await self.keeper.store.signals(channel))
        self._answered(effect, came.event, snapshot)
        return came.event

    # -- parking -------------------------------------------------------------------------

    async def _parked(self, step: Advance, held: dict[str, Held]) -> Advance:
        """Store that only held effects are left."""
        if step.snapshot.status != "waiting":
            step = advance(self.program, step.snapshot, Parked(self.clock.now()))
        await self._keep(step, held=tuple(held.values()))
        self.waiting_on = tuple(dict.fromkeys(c for h in held.values() for c in h.waiting_on))
        return step

    async def _woken(
        self, step: Advance, held: dict[str, Held], asked: Mapping[str, Effect]
    ) -> Advance | None:
        """The step that something leads to which is there already; None to stay parked.

        The wait was stored before anybody looks, so that no sender can miss it.
        """
        for one in tuple(held.values()):
            effect = asked.get(one.effect_id)
            if isinstance(effect, AwaitSignal):
                got = await self._receive(effect, step)
                if got is not None:
                    return got
            elif isinstance(effect, StartChild) and await self._worth_another_look(one):
                del held[one.effect_id]
                return Advance(step.snapshot, (effect,), ())
        return None

    async def _worth_another_look(self, child: Held) -> bool:
        """Whether a child that was held has told that it ended, or its time is over."""
        if child.deadline is not None and self.clock.now() >= child.deadline:
            return True
        return self.keeper is not None and bool(await self.keeper.store.signals(child.channel, limit=1))

    async def _receive(self, effect: AwaitSignal, step: Advance) -> Advance | None:
        """The step that a waiting signal, or the end of the time for it, leads to. None to go on waiting."""
        now, id_ = self.clock.now(), step.snapshot.execution_id
        if self.keeper is not None:
            store = self.keeper.store
            for signal in await store.signals(effect.channel, to=id_, limit=1):
                if signal.to is None and await share(store, effect.channel):  # it is for all who wait
                    return await self._receive(effect, step)
                taken = advance(self.program, step.snapshot, Done(effect.id, self.decode(signal.body), now))
                try:
                    await self._keep(taken, signal)
                except SignalGone:  # another execution that waits on the channel was faster
                    return await self._receive(effect, step)
                return taken._replace(path=(), launched=(), said=())  # told when it was kept
        if effect.deadline is not None and now >= effect.deadline:
            failure = Failure(type="TimeoutError", message=f'no signal on "{effect.channel}" in time')
            return advance(self.program, step.snapshot, Failed(effect.id, failure, now))
        return None

    async def _watched(self, effect: Effect, snapshot: Snapshot) -> Done | Failed:
        """Perform an effect and tell the observers about it."""
        if not self.observers:
            return await self.performer.perform(effect, snapshot)
        facts: dict[str, Any] = {"effect_id": effect.id, "what": what_of(effect), "effect": effect.kind}
        until: dict[str, Any] = {"until": effect.until} if isinstance(effect, Sleep) else {}
        self._notice("perform", snapshot, effect.node, **facts, **until)
        event = await self.performer.perform(effect, snapshot)
        self._answered(effect, event, snapshot)
        return event

    def _answered(self, effect: Effect, event: Done | Failed, snapshot: Snapshot) -> None:
        if not self.observers:
            return
        facts: dict[str, Any] = {"effect_id": effect.id, "what": what_of(effect), "effect": effect.kind}
        if isinstance(event, Failed):
            failure = event.failure
            facts |= {
                "type": failure.type,
                "message": failure.detail or failure.message,
                "names": failure.names,
            }
        elif isinstance(spent := getattr(event.value, "spent", None), Spent):
            facts |= {
                "tokens": spent.input_tokens + spent.output_tokens,
                "cost": spent.cost,
                "priced": spent.priced,
            }
        kind = "failed_effect" if isinstance(event, Failed) else "answered"
        self._notice(kind, snapshot, effect.node, **facts)

    # -- keeping and telling -------------------------------------------------------------

    async def _keep(
        self, step: Advance, signal: Signal | None = None, held: Sequence[Held | AwaitSignal] = ()
    ) -> None:
        """Store what an event led to, then tell whoever watches. A run that is over gives its lease back with that."""
        snapshot, effects, _, launched, said = step
        if snapshot is self.snapshot:
            return
        if self.keeper is not None and still_parked(self.keeper, snapshot):
            self.snapshot = snapshot
            return
        if self.keeper is not None:
            if snapshot.status == "waiting" and not held:
                held = tuple(e for e in effects if isinstance(e, AwaitSignal))
            consume = self._consume if signal is None else (*self._consume, signal.signal_id)
            births = await self.children.births(launched, snapshot) if launched and self.children else ()
            # Without effects it is over, unless others are still out.
            over = not effects and (snapshot.status not in ("running", "waiting") or not snapshot.pending)
            await self.keeper.keep(
                snapshot, waits=held, consume=consume, log=said, births=births, release=over
            )
            self._consume = ()
        self.snapshot = snapshot
        if said:
            self.performer.log.extend(said)
        if self.told is not None:
            self.told(step)
        if launched and self.children is not None:
            self.children.launch(launched, snapshot)
        if step.path:
            if self.tell_hooks is not None:
                await self.tell_hooks(step)
            if self.observers:
                for kind, node, at in step.path:
                    self._notice(kind, snapshot, node, at)

    def _stopped(self, step: Advance) -> Snapshot:
        if step.snapshot.status != "waiting":
            self.waiting_on = ()
        self._notice("stopped", step.snapshot, status=step.snapshot.status, reason=step.snapshot.reason)
        return step.snapshot

    def _notice(
        self, kind: str, snapshot: Snapshot, node: str = "", step: int | None = None, **facts: Any
    ) -> None:
        if self.observers:
            number = snapshot.steps if step is None else step
            facts["spent"] = snapshot.spent
            self.observers.notify(Notice(kind, snapshot.execution_id, self.clock.now(), node, number, facts))

    # -- effects in doubt ------------------------------------------------------------------

    async def _settle_doubts(self, step: Advance, doubtful: Sequence[Effect]) -> Advance:
        """Apply each effect's policy. What is to be asked about stops the execution as `in_doubt`."""
        asked = tuple(e.id for e in doubtful if e.in_doubt == "ask" and e.id not in self.decisions)
        for effect in doubtful:
            entry = InDoubt(
                effect_id=effect.id,
                kind=effect.kind,
                what=what_of(effect),
                node=effect.node,
                policy=effect.in_doubt,
                execution_id=step.snapshot.execution_id,
            )
            self.in_doubt.append(entry)
            self._notice(
                "in_doubt",
                step.snapshot,
                effect.node,
                effect_id=effect.id,
                what=entry.what,
                policy=entry.policy,
                effect=entry.kind,
            )
        if asked:
            return advance(self.program, step.snapshot, Doubted(asked, self.clock.now()))
        for effect in doubtful:
            if effect.id not in step.snapshot.pending:
                continue  # what became of another one has taken the instance elsewhere
            event = await self._verdict(effect, step.snapshot)
            if event is not None:
                step = joined(step, advance(self.program, step.snapshot, event))
        return step

    async def _verdict(self, effect: Effect, snapshot: Snapshot) -> Done | Failed | None:
        """The event that an effect's policy makes of it; None to perform it again."""
        policy = effect.in_doubt
        if effect.id in self.decisions:
            decided = self.decisions[effect.id]
            return None if decided is RETRY else self._decided(effect, decided)
        if policy == "fail":
            message = f"{what_of(effect)} may have happened before the process died; its policy is to fail"
            return Failed(effect.id, Failure(type="InDoubt", message=message), self.clock.now())
        if not policy.startswith("verify:"):
            return None
        name = policy.removeprefix("verify:")
        verifier = self.verifiers.get(name)
        if verifier is None:
            raise BindingError("verifier", name, self.verifiers)
        result = verifier(f"{snapshot.execution_id}/{effect.id}", effect)
        if hasattr(result, "__await__"):
            result = await result
        return None if result is None or result is False else self._decided(effect, result)

    def _decided(self, effect: Effect, value: Any) -> Done | Failed:
        """The event for an effect whose answer was told by somebody else; True: it happened, and left no value."""
        answer: Any = settle(value)
        if isinstance(effect, CallAgent):
            answer = Reply(payload={} if value is True else answer)
        elif isinstance(effect, RunHook) and effect.point not in ("machine_start", "state_enter"):
            answer = Steered(None if value is True else answer, effect.context)
        elif isinstance(effect, RunAction | RunHook) and value is True:
            answer = effect.context
        elif isinstance(effect, RunAction | RunHook) and not isinstance(value, Mapping):
            message = f"{what_of(effect)} answers with the context, not with {type(value).__name__}"
            return Failed(effect.id, Failure(type="TypeError", message=message), self.clock.now())
        return Done(effect.id, answer, self.clock.now())


def held_signal(effect: AwaitSignal) -> Held:
    return Held(
        effect_id=effect.id, channel=effect.channel, deadline=effect.deadline, waiting_on=(effect.channel,)
    )


def still_parked(keeper: Keeper, snapshot: Snapshot) -> bool:
    """Whether the execution waits as it is stored to wait: then there is nothing to store."""
    old = keeper.stored
    if snapshot.status != "waiting" or old.status != "waiting" or keeper.adopted:
        return False
    return (
        (snapshot.steps, snapshot.pending, snapshot.max_steps, snapshot.max_agent_calls)
        == (old.steps, old.pending, old.max_steps, old.max_agent_calls)
        and snapshot.spent is old.spent
        and all(i.context is old.instances[k].context for k, i in snapshot.instances.items())
        and all(i.local == old.instances[k].local for k, i in snapshot.instances.items())
    )


def started(step: Advance) -> Advance:
    """The step, with nothing left to do about it."""
    return Advance(step.snapshot, (), ())


def joined(*steps: Advance) -> Advance:
    """Steps one after another as one: what they asked for and no later one has dropped."""
    last = steps[-1]
    if len(steps) == 1:
        return last
    pending = frozenset(last.snapshot.pending)
    return Advance(
        last.snapshot,
        (*[e for step in steps[:-1] for e in step.effects if e.id in pending], *last.effects),
        tuple([one for step in steps for one in step.path]),
        tuple([one for step in steps for one in step.launched]),
        tuple([one for step in steps for one in step.said]),
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


def what_of(effect: Effect) -> str:
    """A few words for people: `agent builder`, `action append_char`."""
    match effect:
        case CallAgent():
            return f"agent {effect.agent}"
        case RunAction():
            return f"action {effect.action}"
        case RunTool():
            return f"tool {effect.tool}"
        case RunHook():
            return f"hook {effect.point}"
        case StartChild():
            return f"machine {effect.machine}"
        case AwaitSignal():
            return f"signal on {effect.channel}"
        case Sleep():
            return "pause"
