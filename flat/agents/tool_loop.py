"""`ToolLoopAgent`: an agent that may use tools until it has its answer, outside of any machine.

    loop = ToolLoopAgent(agent, tools=[add], guardrails=Guardrails(max_turns=5))
    result = await loop.run(question="What is 2 + 3?")

Nothing is stored: a loop that shall survive its process is a machine's `tool_loop`. Each turn asks the model
with the same inputs, so that its system prompt stays what it was, and continues the chain of messages.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import anyio

from flat.agents.protocol import Agent, AgentRequest, AgentResult, Message, Usage
from flat.agents.tools import Definition, SimpleToolProvider, Tool, ToolProvider, ToolResult
from flat.errors import AgentFailed

_ENDINGS = {
    "length": "the answer was cut off at its token limit",
    "content_filter": "the provider's filter stopped the answer",
    "error": "the model ended with an error",
}


class StopReason(enum.StrEnum):
    """Why a tool loop ended."""

    COMPLETE = "complete"
    MAX_TOOL_CALLS = "max_tool_calls"
    MAX_TURNS = "max_turns"
    TIMEOUT = "timeout"
    COST_LIMIT = "cost_limit"
    ABORTED = "aborted"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Guardrails:
    """Limits of a tool loop; zero, or None, is no limit. Times are in seconds."""

    max_tool_calls: int = 0
    max_turns: int = 0
    """How often the model may be asked."""
    allowed_tools: Sequence[str] | None = None
    denied_tools: Sequence[str] | None = None
    tool_timeout: float = 0.0
    total_timeout: float = 0.0
    max_cost: float = 0.0
    """US dollars."""

    def permits(self, tool: str) -> bool:
        """Whether the model may use this tool. A denial beats a permission."""
        return tool not in (self.denied_tools or ()) and (
            not self.allowed_tools or tool in self.allowed_tools
        )


@dataclass(slots=True)
class AggregateUsage:
    """What all calls of a loop took."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    total_cost: float = 0.0
    api_calls: int = 0

    def add(self, usage: Usage) -> None:
        """Count one more call."""
        self.input_tokens += usage.input_tokens
        self.output_tokens += usage.output_tokens
        self.total_tokens = self.input_tokens + self.output_tokens
        self.total_cost += usage.cost or 0.0
        self.api_calls += usage.api_calls


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolLoopResult:
    """How a loop ended. `content` is the model's last text, `messages` the chain without system prompt."""

    content: str | None
    messages: list[Message]
    tool_calls_count: int
    turns: int
    stop_reason: StopReason
    usage: AggregateUsage
    error: str | None = None


class SteeringProvider(Protocol):
    """Has messages to put in between two turns. A bare async function of no arguments will do as well."""

    async def get_messages(self) -> Sequence[Message]: ...


Steering = SteeringProvider | Callable[[], Awaitable[Sequence[Message]]]


class _Stop(Exception):
    """The loop ends here."""

    def __init__(self, reason: StopReason, error: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.error = reason, error


class ToolLoopAgent:
    """An agent together with its tools. `agent` is a `FlatAgent`, or anything that answers the agent protocol."""

    def __init__(
        self,
        agent: Any,
        tools: Sequence[Tool] | None = None,
        tool_provider: ToolProvider | None = None,
        guardrails: Guardrails | None = None,
        steering: Steering | None = None,
    ) -> None:
        """A `tool_provider` wins over `tools`. Definitions are asked for once, here."""
        if tool_provider is None and tools is None:
            raise ValueError("a ToolLoopAgent needs tools=[…] or a tool_provider")
        self._agent: Agent = getattr(agent, "agent", agent)
        self._count: Callable[[Usage], None] | None = getattr(agent, "count", None)
        self._provider: ToolProvider = tool_provider or SimpleToolProvider(tools or ())
        self._definitions: Sequence[Definition] | None = self._provider.get_tool_definitions()
        self._guardrails = guardrails or Guardrails()
        self._steering = steering

    async def run(self, **inputs: Any) -> ToolLoopResult:
        """Ask until the model has its answer or a guardrail ends it. Failures are results, not exceptions."""
        loop = _Loop(
            self._agent,
            self._provider,
            self._definitions,
            self._guardrails,
            self._steering,
            inputs,
            count=self._count,
        )
        try:
            while True:
                await loop.turn()
        except _Stop as stop:
            return loop.result(stop)

    def run_sync(self, **inputs: Any) -> ToolLoopResult:
        """`run` for code that is not async; outside of a running event loop."""

        async def call() -> ToolLoopResult:
            return await self.run(**inputs)

        return anyio.run(call)


@dataclass(slots=True)
class _Loop:
    """One run."""

    agent: Agent
    provider: ToolProvider
    definitions: Sequence[Definition] | None
    limits: Guardrails
    steering: Steering | None
    inputs: Mapping[str, Any]
    count: Callable[[Usage], None] | None = None
    """Told of every call, for totals kept elsewhere."""
    chain: list[Message] = field(default_factory=list)
    usage: AggregateUsage = field(default_factory=AggregateUsage)
    turns: int = 0
    calls: int = 0
    content: str | None = None
    deadline: float = math.inf

    def __post_init__(self) -> None:
        if self.limits.total_timeout:
            self.deadline = anyio.current_time() + self.limits.total_timeout

    def result(self, stop: _Stop) -> ToolLoopResult:
        return ToolLoopResult(
            content=self.content,
            messages=self.chain,
            tool_calls_count=self.calls,
            turns=self.turns,
            stop_reason=stop.reason,
            usage=self.usage,
            error=stop.error,
        )

    async def turn(self) -> None:
        """Ask once, run what was asked for; raises `_Stop` at the end."""
        self._check_limits()
        answer = await self._ask()
        self.content = answer.content
        if not self.chain and answer.rendered_user_prompt:
            self.chain.append({"role": "user", "content": answer.rendered_user_prompt})
        self.chain.append(assistant_message(answer))
        self._check_ending(answer)
        pending = answer.tool_calls
        if self.limits.max_tool_calls and self.calls + len(pending) > self.limits.max_tool_calls:
            raise _Stop(StopReason.MAX_TOOL_CALLS)
        for call in pending:
            self.calls += 1
            told = await self._execute(call)
            self.chain.append({"role": "tool", "tool_call_id": call["id"], "content": told.content})
        await self._steer()

    def _check_limits(self) -> None:
        if anyio.current_time() >= self.deadline:
            raise _Stop(StopReason.TIMEOUT)
        if self.limits.max_turns and self.turns >= self.limits.max_turns:
            raise _Stop(StopReason.MAX_TURNS)
        self._check_cost()

    def _check_cost(self) -> None:
        if self.limits.max_cost and self.usage.total_cost >= self.limits.max_cost:
            raise _Stop(StopReason.COST_LIMIT)

    async def _ask(self) -> AgentResult:
        left = self.deadline - anyio.current_time()
        request = AgentRequest(
            input=self.inputs,
            messages=self.chain or None,
            tools=self.definitions,
            timeout=None if left == math.inf else left,
        )
        self.turns += 1
        try:
            answer = await self.agent.call(request)
        except AgentFailed as failure:
            if isinstance(failure.usage, Usage):
                self._add(failure.usage)
            late = failure.code == "timeout" and anyio.current_time() >= self.deadline
            raise _Stop(StopReason.TIMEOUT if late else StopReason.ERROR, failure.message) from failure
        self._add(answer.usage)
        return answer

    def _add(self, usage: Usage) -> None:
        self.usage.add(usage)
        if self.count is not None:
            self.count(usage)

    def _check_ending(self, answer: AgentResult) -> None:
        reason = answer.finish_reason
        if reason == "tool_use":
            self._check_cost()
        elif reason == "aborted":
            raise _Stop(StopReason.ABORTED)
        elif reason in _ENDINGS:
            raise _Stop(StopReason.ERROR, _ENDINGS[reason])
        else:
            raise _Stop(StopReason.COMPLETE)

    async def _execute(self, call: Mapping[str, Any]) -> ToolResult:
        """Carry out one call; whatever goes wrong becomes text for the model."""
        name = call["name"]
        if not self.limits.permits(name):
            return ToolResult(f"The tool {name} is not allowed here.", is_error=True)
        if "invalid_arguments" in call:
            return ToolResult(
                f"The arguments of {name} are no valid JSON: {call['invalid_arguments']}", is_error=True
            )
        seconds = min(self.limits.tool_timeout or math.inf, self.deadline - anyio.current_time())
        try:
            with anyio.fail_after(None if seconds == math.inf else max(0.0, seconds)):
                return await self.provider.execute_tool(name, call["id"], call["arguments"])
        except TimeoutError:
            return ToolResult(f"The tool {name} timed out after {max(0.0, seconds):g} s.", is_error=True)
        except Exception as error:  # a tool is the user's code: the model is told, and may do better
            return ToolResult(f"Error executing {name}: {error}", is_error=True)

    async def _steer(self) -> None:
        if self.steering is None:
            return
        ask: Any = getattr(self.steering, "get_messages", None) or self.steering
        try:
            self.chain.extend(await ask())
        except Exception as error:
            raise _Stop(StopReason.ERROR, f"the steering provider failed: {error}") from error


def assistant_message(answer: AgentResult) -> dict[str, Any]:
    """The answer as it stands in a conversation that goes on."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content or ""}
    if answer.tool_calls:
        message["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": {
                    "name": call["name"],
                    "arguments": call.get("invalid_arguments") or json.dumps(call["arguments"]),
                },
            }
            for call in answer.tool_calls
        ]
    return message
