"""A steering hook at a fixed point: a node is entered or left, the machine begins or ends.

What the hook returns becomes the context; at the machine's end it becomes the output, and on leaving a node it
is not used, but what the hook did to its context stays. Points that no registered class overrides are taken
out of the program when it is bound, so that they cost nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flat.core.effects import RunHook
from flat.core.events import Done, Failed, Steered
from flat.core.op import Answer, Block, Next, Raise, View

WITH_OUTPUT = frozenset({"state_exit", "machine_end"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    point: str
    """A point of the hooks interface; in `WITH_OUTPUT` its answer is a `Steered`, at others a context."""
    key: str
    in_doubt: str = "retry"
    kind: Literal["hook"] = "hook"

    def start(self, here: View) -> Answer:
        arguments = {"output": here.output} if self.point in WITH_OUTPUT else {}
        return Block(
            (
                RunHook(
                    here.effect_id(self.key),
                    here.node,
                    self.point,
                    here.hooks,
                    here.context,
                    arguments,
                    here.deadline,
                    self.in_doubt,
                ),
            )
        )

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        if self.point not in WITH_OUTPUT:
            return Next(context=event.value)
        steered: Steered = event.value
        if self.point == "machine_end":
            return Next(output=steered.value, context=steered.context)
        return Next(context=steered.context)
