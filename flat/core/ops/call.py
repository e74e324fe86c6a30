"""`agent:` asks an agent, as often and in the way that its strategy says. The answer is the op's output."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flat.core.effects import CallAgent
from flat.core.events import Done, Failed
from flat.core.op import Answer, View
from flat.core.strategies import Single, Strategy
from flat.core.template import CompiledMapping, Template


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    agent: str
    input: CompiledMapping | None = None
    session_id: Template | None = None
    strategy: Strategy = field(default_factory=Single)
    in_doubt: str = "retry"
    key: str = "call"
    kind: Literal["call"] = "call"

    def ask(self, here: View, suffix: str = "") -> CallAgent:
        """One call to the agent; the suffix tells the calls of one visit apart."""
        scope = here.scope
        session = self.session_id.render(scope) if self.session_id is not None else None
        return CallAgent(
            here.effect_id(self.key, suffix),
            here.node,
            self.agent,
            self.input.render(scope) if self.input is not None else {},
            here.context,
            here.hooks,
            str(session).strip() or None if session is not None else None,
            deadline=here.deadline,
            in_doubt=self.in_doubt,
        )

    def start(self, here: View) -> Answer:
        return self.strategy.start(self, here)

    def resume(self, here: View, event: Done | Failed) -> Answer:
        return self.strategy.resume(self, here, event)
