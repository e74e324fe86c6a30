"""`action:` calls user code by name; what it returns is the new context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flat.core.effects import RunAction
from flat.core.events import Done, Failed
from flat.core.op import Answer, Block, Next, Raise, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    action: str
    in_doubt: str = "retry"
    key: str = "action"
    kind: Literal["action"] = "action"

    def start(self, here: View) -> Answer:
        return Block(
            (
                RunAction(
                    here.effect_id(self.key),
                    here.node,
                    self.action,
                    here.hooks,
                    here.context,
                    here.deadline,
                    self.in_doubt,
                ),
            )
        )

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        return Next(context=event.value)
