"""Effects in doubt: those that may have begun when their run ended, found when it is resumed.

A person's decision comes first; then the policy of the effect: perform it `again`, `fail` it, ask a verifier of the
user's what became of it, or ask a person, which stops the execution as `in_doubt`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flat.core.advance import advance
from flat.core.effects import AwaitSignal, CallAgent, Effect, RunAction, RunHook, Sleep, StartChild
from flat.core.events import Done, Doubted, Failed, Reply, Steered
from flat.core.failure import Failure
from flat.core.program import Program
from flat.core.snapshot import Snapshot
from flat.core.turn import Advance
from flat.drivers.clock import Clock
from flat.drivers.draft import settle
from flat.drivers.steps import joined
from flat.drivers.telling import Teller, what_of
from flat.errors import BindingError

Verifier = Callable[..., Any]
RETRY = object()
SAFE = (Sleep, AwaitSignal, StartChild)
"""Effects that nothing happens by: they are never in doubt."""

_DECIDE = "flat resume ID --retry-in-doubt, or --mark-done JSON"


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
class Doubts:
    """What a run knows about effects in doubt."""

    verifiers: Mapping[str, Verifier] = field(default_factory=dict)
    decisions: Mapping[str, Any] = field(default_factory=dict)
    """What a person decided, by effect: `RETRY`, or the value that it is to have."""
    found: list[InDoubt] = field(default_factory=list)

    async def settle(
        self, program: Program, step: Advance, doubtful: Sequence[Effect], tell: Teller, clock: Clock
    ) -> Advance:
        """Apply each effect's policy."""
        asked = tuple(e.id for e in doubtful if e.in_doubt == "ask" and e.id not in self.decisions)
        for effect in doubtful:
            self._note(effect, step.snapshot, tell)
        if asked:
            return advance(program, step.snapshot, Doubted(asked, clock.now()))
        for effect in doubtful:
            if effect.id not in step.snapshot.pending:
                continue  # what became of another one has taken the instance elsewhere
            event = await self._verdict(effect, step.snapshot, clock)
            if event is not None:
                step = joined(step, advance(program, step.snapshot, event))
        return step

    def _note(self, effect: Effect, snapshot: Snapshot, tell: Teller) -> None:
        entry = InDoubt(
            effect_id=effect.id,
            kind=effect.kind,
            what=what_of(effect),
            node=effect.node,
            policy=effect.in_doubt,
            execution_id=snapshot.execution_id,
        )
        self.found.append(entry)
        facts: dict[str, Any] = {"effect_id": effect.id, "what": entry.what, "effect": entry.kind}
        tell.notice("in_doubt", snapshot, effect.node, policy=entry.policy, **facts)

    async def _verdict(self, effect: Effect, snapshot: Snapshot, clock: Clock) -> Done | Failed | None:
        """The event that an effect's policy makes of it; None to perform it again."""
        policy = effect.in_doubt
        if effect.id in self.decisions:
            decided = self.decisions[effect.id]
            return None if decided is RETRY else _decided(effect, decided, clock)
        if policy == "fail":
            message = f"{what_of(effect)} may have happened before the process died; its policy is to fail"
            return Failed(effect.id, Failure(type="InDoubt", message=message), clock.now())
        if not policy.startswith("verify:"):
            return None
        name = policy.removeprefix("verify:")
        verifier = self.verifiers.get(name)
        if verifier is None:
            hint = (
                f'give it at load: bindings=Bindings(verifiers={{"{name}": function}}); or decide: {_DECIDE}'
            )
            raise BindingError("verifier", name, self.verifiers, hint=hint)
        result = verifier(f"{snapshot.execution_id}/{effect.id}", effect)
        if hasattr(result, "__await__"):
            result = await result
        return None if result is None or result is False else _decided(effect, result, clock)


def _decided(effect: Effect, value: Any, clock: Clock) -> Done | Failed:
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
        return Failed(effect.id, Failure(type="TypeError", message=message), clock.now())
    return Done(effect.id, answer, clock.now())
