"""An agent that answers by script, for machines in tests.

    agent = ScriptedAgent("Hello", AgentFailed("busy", retryable=True), {"answer": 42})
    machine = flat.load("machine.yml", agents={"greeter": agent})

For a whole model server, with real HTTP, see `flat.testing.model_server`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.drivers.clock import Clock

Answer: TypeAlias = (
    "str | Mapping[str, Any] | AgentResult | Exception | After | Callable[[AgentRequest], Answer]"
)
"""Text, structured output, a whole result, an error to raise, one of these later, or a function."""


@dataclass(frozen=True, slots=True)
class After:
    """An answer that takes its time, by the agent's clock."""

    seconds: float
    answer: Answer


class ScriptedAgent:
    """Gives its answers in turn, and the last one from then on. `requests` holds what it was asked.

    An answer that depends on the request, such as on its `idempotency_key`, stays the same when a call is
    repeated after a crash; one that depends on the turn does not.
    """

    def __init__(self, *answers: Answer, clock: Clock | None = None) -> None:
        if not answers:
            raise ValueError("a scripted agent needs at least one answer")
        self.answers = answers
        self.clock = clock
        self.requests: list[AgentRequest] = []

    async def call(self, request: AgentRequest) -> AgentResult:
        turn = min(len(self.requests), len(self.answers) - 1)
        self.requests.append(request)
        return await self._result(self.answers[turn], request)

    async def _result(self, answer: Answer, request: AgentRequest) -> AgentResult:
        if isinstance(answer, After):
            if self.clock is None:
                raise ValueError("an answer that takes time needs a clock: ScriptedAgent(…, clock=clock)")
            await self.clock.sleep_until(self.clock.now() + answer.seconds)
            return await self._result(answer.answer, request)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, AgentResult):
            return answer
        if callable(answer):
            return await self._result(answer(request), request)
        usage = Usage(input_tokens=10, output_tokens=5, api_calls=1, cost=0.001, cost_source="estimate")
        if isinstance(answer, str):
            if request.on_token is not None:
                request.on_token(answer)
            return AgentResult(content=answer, usage=usage)
        return AgentResult(output=dict(answer), usage=usage)
