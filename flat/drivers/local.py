"""The local driver: runs one execution in this process, on asyncio or trio.

The loop is: advance on an event, keep the snapshot, perform what it asks for, and advance on the result. A
lone effect is awaited in place; for two or more there is a task group, and their results are handled one by
one as they come. What was pending when a run ended is found on resume and treated as its policy says.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio

from flat.backends.protocols import Signal
from flat.core.advance import Advance, advance
from flat.core.effects import AwaitSignal, CallAgent, Effect, RunAction, RunHook, RunTool, Sleep, StartChild
from flat.core.events import Cancelled, Done, Doubted, Event, Failed, Reply, Resumed, Spent, Started, Steered
from flat.core.failure import Failure
from flat.core.program import Program
from flat.core.snapshot import FINISHED, Snapshot
from flat.drivers.clock import Clock
from flat.drivers.draft import settle
from flat.drivers.keeper import Keeper
from flat.drivers.perform import Performer
from flat.errors import BindingError, SignalGone
from flat.hooks import Notice, Observers

Verifier = Callable[..., Any]
RETRY = object()
SAFE = (Sleep, AwaitSignal)
"""Effects that nothing happens by: they are never in doubt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InDoubt:
    """An effect that may have begun when its run ended, and what was done about it."""

    effect_id: str
    kind: str
    what: str
    node: str
    policy: str


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
    waiting_on: tuple[str, ...] = ()
    snapshot: Snapshot | None = None
    _cancel: anyio.CancelScope | None = None
    _cancel_reason: str | None = None

    # -- beginnings -----------------------------------------------------------------

    async def start(self, snapshot: Snapshot, event: Started) -> Snapshot:
        """Drive a fresh execution."""
        self.snapshot = snapshot
        self._notice("started", snapshot)
        return await self._guarded(event)

    async def resume(self, snapshot: Snapshot, event: Resumed) -> Snapshot:
        """Drive an execution on from where it is stored."""
        self.snapshot = snapshot
        self._notice("resumed", snapshot)
        pending = frozenset(snapshot.pending)
        step = advance(self.program, snapshot, event)
        doubtful = [e for e in step.effects if e.id in pending and not isinstance(e, SAFE)]
        if doubtful:
            return await self._guarded(step, doubtful)
        return await self._guarded(step)

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
        assert self.snapshot is not None
        if self.snapshot.status in FINISHED:
            return self.snapshot
        last = advance(self.program, self.snapshot, Cancelled(self.clock.now(), self._cancel_reason or ""))
        await self._keep(last)
        return self._stopped(last)

    # -- the loop ---------------------------------------------------------------------

    async def _loop(self, step: Advance) -> Snapshot:
        program, perform = self.program, self.performer.perform
        alone = self.keeper is None and self.tell_hooks is None and not self.observers
        while True:
            snapshot, effects, _ = step
            if alone:  # nothing is kept and nobody watches
                self.snapshot = snapshot
            else:
                await self._keep(step)
            if not effects:
                return self._stopped(step)
            if len(effects) > 1:
                step = await self._many(step)
                continue
            effect = effects[0]
            if type(effect) is AwaitSignal:
                got = await self._receive(effect, step)
                if got is None:
                    return self._stopped(step)
                step = got
                continue
            if self.observers:
                event = await self._watched(effect, snapshot)
            else:
                event = await perform(effect, snapshot)
            step = advance(program, snapshot, event)

    async def _many(self, step: Advance) -> Advance:
        """Perform several effects at once, each result as it comes, until none is left that was asked for."""
        send, receive = anyio.create_memory_object_stream[Done | Failed](math.inf)
        running: dict[str, anyio.CancelScope] = {}

        async def one(effect: Effect, scope: anyio.CancelScope, snapshot: Snapshot) -> None:
            with scope:
                event = await self._watched(effect, snapshot)
                send.send_nowait(event)

        def start(step: Advance) -> None:
            for effect in step.effects:
                scope = running[effect.id] = anyio.CancelScope()
                group.start_soon(one, effect, scope, step.snapshot)

        with send, receive:
            async with anyio.create_task_group() as group:
                start(step)
                while running:
                    event = await receive.receive()
                    if running.pop(event.effect_id, None) is None:
                        continue
                    step = advance(self.program, step.snapshot, event)
                    for gone in running.keys() - set(step.snapshot.pending):
                        running.pop(gone).cancel()
                    if running:
                        await self._keep(step)
                        start(step)
        return step

    async def _receive(self, effect: AwaitSignal, step: Advance) -> Advance | None:
        """Take a waiting signal, or None to park. The wait is stored first, so that no sender can miss it."""
        now = self.clock.now()
        if self.keeper is not None:
            for signal in await self.keeper.store.signals(effect.channel, limit=1):
                taken = advance(self.program, step.snapshot, Done(effect.id, self.decode(signal.body), now))
                try:
                    await self._keep(taken, signal)
                except SignalGone:  # another execution that waits on the channel was faster
                    return step._replace(path=())
                return taken._replace(path=())  # told when it was kept
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
        self._notice(
            "failed_effect" if isinstance(event, Failed) else "answered", snapshot, effect.node, **facts
        )
        return event

    # -- keeping and telling -------------------------------------------------------------

    async def _keep(self, step: Advance, signal: Signal | None = None) -> None:
        """Store what an event led to, then tell whoever watches. A run that is over gives its lease back with that."""
        if step.snapshot is self.snapshot:
            return
        if self.keeper is not None:
            consume = () if signal is None else (signal.signal_id,)
            await self.keeper.keep(step.snapshot, step.effects, consume=consume, release=not step.effects)
        self.snapshot = step.snapshot
        if step.path:
            if self.tell_hooks is not None:
                await self.tell_hooks(step)
            if self.observers:
                for kind, node, at in step.path:
                    self._notice(kind, step.snapshot, node, at)

    def _stopped(self, step: Advance) -> Snapshot:
        if step.snapshot.status == "waiting":
            self.waiting_on = tuple(e.channel for e in step.effects if isinstance(e, AwaitSignal))
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
            )
            self.in_doubt.append(entry)
            self._notice(
                "in_doubt",
                step.snapshot,
                effect.node,
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
                then = advance(self.program, step.snapshot, event)
                pending = frozenset(then.snapshot.pending)
                effects = (*(e for e in step.effects if e.id in pending), *then.effects)
                step = Advance(then.snapshot, effects, step.path + then.path)
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
