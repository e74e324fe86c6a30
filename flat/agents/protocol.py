"""What an agent is to the engine: something that answers a request.

Adapters implement `Agent`; the driver calls it. Everything here is plain data, so that an adapter
can be written without knowing the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any, Protocol

from flat.core.record import record

Message = Mapping[str, Any]
"""One chat message in OpenAI form: `role`, `content`, and where they apply `tool_calls`, `tool_call_id`."""


@record(kw_only=True)
class AgentRequest:
    """One call. `messages` is None for a first call, else the conversation so far (without system prompt)."""

    input: Mapping[str, Any] = field(default_factory=dict)
    context: Mapping[str, Any] = field(default_factory=dict)
    messages: Sequence[Message] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    session_id: str | None = None
    idempotency_key: str = ""
    timeout: float | None = None
    """Seconds left for the whole call, or None for the agent's own default."""
    on_token: Callable[[str], None] | None = None
    """Called with each piece of text while it arrives; None means nobody is watching, so do not stream."""


@record(kw_only=True)
class Usage:
    """Tokens and money of one call. `cost` is US dollars; `cost_source` is provider, estimate, free or unknown."""

    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    api_calls: int = 0
    cost: float | None = None
    cost_source: str = "unknown"


@record(kw_only=True)
class AgentResult:
    """The answer. `output` is structured output, or None for plain text in `content`.

    Failures are raised as `flat.errors.AgentFailed`, never returned.
    """

    output: Any = None
    content: str | None = None
    usage: Usage = field(default_factory=Usage)
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    """Each `{id, name, arguments}` with arguments decoded."""
    rendered_user_prompt: str | None = None
    rate_limit: Mapping[str, Any] | None = None
    """`{limited, retry_after?, windows?}` as read from response headers."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provider_data: Mapping[str, Any] = field(default_factory=dict)

    def payload(self) -> Any:
        """What a state calls `output`: the structured output, else the text wrapped, else nothing."""
        if self.output is not None:
            return self.output
        if self.content is not None:
            return {"content": self.content}
        return {}


def as_result(answer: Any) -> AgentResult:
    """What an agent gave, as a result: a mapping is structured output, None nothing, anything else text."""
    if isinstance(answer, AgentResult):
        return answer
    if isinstance(answer, Mapping):
        return AgentResult(output=dict(answer))
    return AgentResult(content=None if answer is None else str(answer))


class Agent(Protocol):
    """Something that answers a request."""

    async def call(self, request: AgentRequest) -> AgentResult:
        """Raises `AgentFailed` with a code and `retryable`; cancellation must stop the work underneath."""
        ...
