"""`transitions:` decides where to go: the first arm whose condition holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from flat.core.condition import Condition
from flat.core.effects import RunHook
from flat.core.events import Done, Failed, Steered
from flat.core.failure import Failure
from flat.core.op import Answer, Block, Goto, Next, Raise, View

NEXT = "_tool_loop_next_state"
"""Context key of where a transition leads that held in the middle of a tool loop."""


class Arm(NamedTuple):
    """A condition (None: always) and where it leads."""

    condition: Condition | None
    target: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    arms: tuple[Arm, ...]
    open_ended: bool = False
    """Go on with what follows when no condition holds, instead of failing."""
    steered: bool = False
    """True when a hook may redirect the transition; then taking it is an effect."""
    interrupted: bool = False
    """True after a tool loop, where a transition may have held in its middle: that one is taken."""
    key: str = "branch"
    kind: Literal["branch"] = "branch"

    def start(self, here: View) -> Answer:
        if self.interrupted and NEXT in here.context:
            context = {k: v for k, v in here.context.items() if k != NEXT}
            target = here.context[NEXT]
            return self._steer(here, target, context) if self.steered else Goto(target, context)
        scope = here.scope
        for condition, target in self.arms:
            if condition is None or condition.test(scope, here.at):
                return self._steer(here, target) if self.steered else Goto(target)
        if self.open_ended:
            return Next()
        return Raise(self._stuck(here.node))

    def _stuck(self, node: str) -> Failure:
        """What is told when no arm was taken, with the place of the last condition that did not hold."""
        said = f'no transition of state "{node}" matched, and it is not final'
        hint = "add a last transition without a condition"
        place = next((c.location for c, _ in reversed(self.arms) if c is not None and c.location), None)
        told = f"{place}: {said}\n{place.snippet()}" if place and place.text else said
        return Failure(
            type="Stuck",
            message=f"{said}; {hint}",
            location=str(place or ""),
            detail=f"{told}\n  help: {hint}",
        )

    def _steer(self, here: View, target: str, context: Mapping[str, Any] | None = None) -> Answer:
        effect = RunHook(
            here.effect_id(self.key),
            here.node,
            "transition",
            here.hooks,
            here.context if context is None else context,
            {"to": target},
            here.deadline,
        )
        return Block((effect,), local=target)

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        steered: Steered = event.value
        return Goto(steered.value or here.local, steered.context)
