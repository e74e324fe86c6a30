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
    new_turn: bool | None = None
    """Whether the user prompt follows `messages`; None: only when there are none, so that a tool loop goes on."""
    tools: Sequence[Mapping[str, Any]] | None = None
    """Definitions to offer in place of the agent's own; an empty list offers none."""
    session_id: str | None = None
    idempotency_key: str = ""
    timeout: float | None = None
    """Seconds left for the whole call, or None for the agent's own default."""
    on_token: Callable[[str], None] | None = None
    """Called with each piece of text while it arrives; None means nobody is watching, so do not stream."""
    on_event: Callable[[Mapping[str, Any]], None] | None = None
    """Called with each event that an agent outside of us reports, in that program's own form."""


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


def add_usage(first: Usage, second: Usage) -> Usage:
    """The sum of two calls; its cost is known only if both are, and its source is the less certain one."""
    certainty = ("unknown", "estimate", "provider", "free")
    costs = (first.cost, second.cost)
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cache_read_tokens=first.cache_read_tokens + second.cache_read_tokens,
        cache_write_tokens=first.cache_write_tokens + second.cache_write_tokens,
        api_calls=first.api_calls + second.api_calls,
        cost=None if None in costs else sum(c for c in costs if c is not None),
        cost_source=min(first.cost_source, second.cost_source, key=certainty.index),
    )


@record(kw_only=True)
class AgentResult:
    """The answer. `output` is structured output, or None for plain text in `content`.

    An agent raises its failures as `flat.errors.AgentFailed`.
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
    cost: Any = None
    """US dollars, where `usage` does not say: a number, or a mapping with `total`."""
    error: Mapping[str, Any] | None = None
    """`{code, type, message, retryable}`, for executors that give a failure and do not raise it."""
    raw: Any = None
    """The answer as the client library gave it, for those who look behind; never stored."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    provider_data: Mapping[str, Any] = field(default_factory=dict)

    def payload(self) -> Any:
        """What a state calls `output`: the structured output, else the text wrapped, else nothing."""
        if self.output is not None:
            return self.output
        if self.content is not None:
            return {"content": self.content}
        return {}

    @property
    def success(self) -> bool:
        """Whether it is no failure."""
        return self.error is None

    def output_payload(self) -> Any:
        """`payload`, as the seed system calls it."""
        return self.payload()


class Agent(Protocol):
    """Something that answers a request."""

    async def call(self, request: AgentRequest) -> AgentResult:
        """Raises `AgentFailed` with a code and `retryable`; cancellation must stop the work underneath."""
        ...
