"""Telling whoever watches a run what happens in it. Costs nothing where nobody does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flat.core.effects import (
    AwaitSignal,
    CallAgent,
    Effect,
    RunAction,
    RunHook,
    RunTool,
    Sleep,
    StartChild,
)
from flat.core.events import Done, Failed, Spent, Told
from flat.core.snapshot import Snapshot
from flat.drivers.clock import Clock
from flat.drivers.perform import Performer
from flat.hooks import Notice, Observers


@dataclass
class Teller:
    """Tells the observers of one run."""

    observers: Observers
    clock: Clock

    def __bool__(self) -> bool:
        return bool(self.observers)

    def notice(
        self, kind: str, snapshot: Snapshot, node: str = "", step: int | None = None, **facts: Any
    ) -> None:
        if self.observers:
            number = snapshot.steps if step is None else step
            facts["spent"] = snapshot.spent
            self.observers.notify(Notice(kind, snapshot.execution_id, self.clock.now(), node, number, facts))

    async def performed(self, performer: Performer, effect: Effect, snapshot: Snapshot) -> Done | Failed:
        """Perform an effect and tell that it begins and how it ends."""
        if not self.observers:
            return await performer.perform(effect, snapshot)
        until: dict[str, Any] = {"until": effect.until} if isinstance(effect, Sleep) else {}
        self.begins(effect, snapshot, **until)
        event = await performer.perform(effect, snapshot)
        self.answered(effect, event, snapshot)
        return event

    def begins(self, effect: Effect, snapshot: Snapshot, **facts: Any) -> None:
        self.notice("perform", snapshot, effect.node, **_of(effect), **facts)

    def answered(self, effect: Effect, event: Done | Failed, snapshot: Snapshot) -> None:
        if not self.observers:
            return
        facts = _of(effect)
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
        elif isinstance(effect, RunTool) and (error := _error_of(event.value)) is not None:
            facts["error"] = error
        kind = "failed_effect" if isinstance(event, Failed) else "answered"
        self.notice(kind, snapshot, effect.node, **facts)


def _error_of(value: Any) -> str | None:
    """What a tool told the model, if that was an error: of a machine of states, or of a tree."""
    if isinstance(value, Told):
        return value.content if value.is_error else None
    return str(value.get("content")) if isinstance(value, Mapping) and value.get("is_error") else None


def _of(effect: Effect) -> dict[str, Any]:
    return {"effect_id": effect.id, "what": what_of(effect), "effect": effect.kind}


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
