"""`AgentResponse`: an answer as `FlatAgent.call` gives it, with failures inside and not raised.

The engine's own form is `protocol.AgentResult`; this one is made from it.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.agents.headers import RateLimitInfo, extract_rate_limit_info
from flat.agents.protocol import AgentResult, Usage
from flat.errors import AgentFailed


class FinishReason(enum.StrEnum):
    """Why a model stopped."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_USE = "tool_use"
    ERROR = "error"
    ABORTED = "aborted"
    CONTENT_FILTER = "content_filter"


@dataclass
class ToolCall:
    """A tool that the model wants to be called."""

    id: str
    server: str
    """The MCP server that has it, or nothing for a function of the agent's own."""
    tool: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class CostInfo:
    """US dollars, and who says so: `provider`, `estimate` (a price list) or `free`."""

    input: float = 0.0
    output: float = 0.0
    cache_read: float = 0.0
    cache_write: float = 0.0
    total: float = 0.0
    source: str = "unknown"


@dataclass
class UsageInfo:
    """What a call took. `cost` is None when nobody knows the price."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    cost: CostInfo | None = None

    @property
    def estimated_cost(self) -> float:
        """The total, or zero when it is not known."""
        return self.cost.total if self.cost else 0.0


@dataclass
class ErrorInfo:
    """Why a call failed. `code` is one of the fixed codes that machines see."""

    error_type: str
    message: str
    status_code: int | None = None
    retryable: bool = False
    code: str = "server_error"


@dataclass
class AgentResponse:
    """One answer, or one failure."""

    content: str | None = None
    output: Any = None
    """The structured output, when the agent has an output schema and the answer fits it."""
    tool_calls: list[ToolCall] | None = None
    raw_response: Any = None
    usage: UsageInfo | None = None
    rate_limit: RateLimitInfo | None = None
    finish_reason: FinishReason | None = None
    error: ErrorInfo | None = None
    rendered_user_prompt: str | None = None
    metadata: dict[str, Any] | None = None
    provider_data: dict[str, Any] | None = None

    @property
    def success(self) -> bool:
        """Whether there was no failure."""
        return self.error is None


def response_of(result: AgentResult, *, external: bool = False) -> AgentResponse:
    """The response for a result. `external` keeps what a runtime tells of itself."""
    headers = result.provider_data.get("raw_headers") or {}
    limits = extract_rate_limit_info(headers) if headers else limits_of(result.rate_limit)
    return AgentResponse(
        content=result.content,
        output=result.output,
        tool_calls=[_tool_call(call) for call in result.tool_calls] or None,
        raw_response=result.raw,
        usage=usage_of(result.usage),
        rate_limit=limits,
        finish_reason=FinishReason(result.finish_reason) if result.finish_reason else None,
        rendered_user_prompt=result.rendered_user_prompt,
        metadata=dict(result.metadata) if external and result.metadata else None,
        provider_data=dict(result.provider_data) if external and result.provider_data else None,
    )


def failed_response(failure: AgentFailed, rendered: str | None = None) -> AgentResponse:
    """The response for a failure."""
    cause = failure.__cause__
    return AgentResponse(
        raw_response=getattr(cause, "response", None),
        usage=usage_of(failure.usage) if isinstance(failure.usage, Usage) else None,
        rate_limit=limits_of(failure.rate_limit),
        finish_reason=FinishReason.ERROR,
        error=ErrorInfo(
            error_type=type(cause or failure).__name__,
            message=f"{failure.message}\n{failure.hint}" if failure.hint else failure.message,
            status_code=failure.status_code,
            retryable=failure.retryable,
            code=failure.code,
        ),
        rendered_user_prompt=rendered,
    )


def usage_of(usage: Usage) -> UsageInfo | None:
    """Tokens and cost; None when the provider told of neither."""
    if not (usage.input_tokens or usage.output_tokens or usage.cost):
        return None
    tokens = usage.input_tokens + usage.output_tokens
    return UsageInfo(
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        cost=None if usage.cost is None else _cost(usage.cost, usage, tokens),
    )


def _cost(total: float, usage: Usage, tokens: int) -> CostInfo:
    """The total, split by tokens: providers tell no more."""
    share = usage.input_tokens / tokens if tokens else 0.0
    return CostInfo(input=total * share, output=total * (1 - share), total=total, source=usage.cost_source)


def limits_of(state: Mapping[str, Any] | None) -> RateLimitInfo:
    """The limits in a rate-limit state, as `ratelimits.build_rate_limit_state` makes them."""
    info = RateLimitInfo()
    if not state:
        return info
    wait = state.get("retry_after")
    info.retry_after = int(wait) if isinstance(wait, int | float) else None
    for window in state.get("windows") or ():
        resource = window.get("resource")
        if window.get("name") != resource or resource not in ("requests", "tokens"):
            continue
        setattr(info, f"remaining_{resource}", window.get("remaining"))
        setattr(info, f"limit_{resource}", window.get("limit"))
        if info.reset_at is None:
            resets_in = window.get("resets_in")
            info.reset_at = window.get("reset_at") or (time.time() + resets_in if resets_in else None)
    return info


def _tool_call(call: Mapping[str, Any]) -> ToolCall:
    return ToolCall(
        id=call["id"], server=call.get("server", ""), tool=call["name"], arguments=call["arguments"]
    )
