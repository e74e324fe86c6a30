"""What the seed system's executors give, and what it becomes here.

There a result may hold an error, numbers are plain mappings, and anything at all is taken for a result. Here a failure
is raised, and a result has types.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from flat.agents.protocol import AgentResult, Usage
from flat.errors import AgentFailed

_COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")
_TELLING = ("output", "content", "error", "tool_calls")


@dataclass(slots=True)
class ExecutorResult:
    """The plain result of an executor."""

    output: Any = None
    content: str | None = None
    raw: Any = None
    usage: Mapping[str, Any] | None = None
    cost: float | Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] | None = None
    finish_reason: str | None = None
    error: Mapping[str, Any] | None = None
    rate_limit: Mapping[str, Any] | None = None
    provider_data: Mapping[str, Any] | None = None
    tool_calls: list[Mapping[str, Any]] | None = None
    rendered_user_prompt: str | None = None

    @property
    def success(self) -> bool:
        return self.error is None

    def output_payload(self) -> Any:
        """What a state calls `output`."""
        if self.output is not None:
            return self.output
        return {} if self.content is None else {"content": self.content}


_FIELDS = frozenset(f.name for f in fields(ExecutorResult))


def coerce_agent_result(value: Any) -> ExecutorResult:
    """Whatever an executor gave, as a result.

    A mapping is one if it has the fields of one; a mapping that merely happens to have a key like `metadata` beside
    others is structured output.
    """
    if isinstance(value, ExecutorResult):
        return value
    if value is None:
        return ExecutorResult()
    if isinstance(value, Mapping):
        known = {k: v for k, v in value.items() if k in _FIELDS}
        if known and (len(known) == len(value) or any(name in known for name in _TELLING)):
            return ExecutorResult(**known)
        return ExecutorResult(output=dict(value))
    if isinstance(value, AgentResult) or callable(getattr(value, "output_payload", None)):
        return ExecutorResult(**{name: getattr(value, name) for name in _FIELDS if hasattr(value, name)})
    return ExecutorResult(content=str(value))


def as_result(answer: Any, agent: str) -> AgentResult:
    """Whatever an agent gave, as a result. Raises `AgentFailed` when it holds an error."""
    if (
        type(answer) is AgentResult
        and type(answer.usage) is Usage
        and answer.error is None
        and answer.cost is None
        and _are_calls(answer.tool_calls)
    ):
        return answer
    return as_agent_result(coerce_agent_result(answer), agent)


def as_agent_result(result: ExecutorResult, agent: str) -> AgentResult:
    """The result for the engine. Raises `AgentFailed` when it holds an error."""
    usage = usage_of(result)
    if result.error is not None:
        raise _failure(result, agent, usage)
    if not _are_calls(result.tool_calls):
        said = f'agent "{agent}": tool_calls should be a list of mappings {{id, name, arguments}}'
        raise AgentFailed(f"{said}, and is {str(result.tool_calls)[:200]}", usage=usage)
    return AgentResult(
        output=result.output,
        content=result.content,
        usage=usage,
        finish_reason=result.finish_reason,
        tool_calls=tuple(result.tool_calls or ()),
        rendered_user_prompt=result.rendered_user_prompt,
        rate_limit=result.rate_limit,
        raw=result.raw,
        metadata=result.metadata or {},
        provider_data=result.provider_data or {},
    )


def _are_calls(calls: Any) -> bool:
    """Whether this is what an answer's tool calls are; none are, too."""
    return not calls or (isinstance(calls, list | tuple) and all(isinstance(c, Mapping) for c in calls))


def usage_of(result: ExecutorResult) -> Usage:
    """Tokens and money of a result: its cost may stand for itself or among its usage, as a number or in parts."""
    told: Any = result.usage
    facts: Mapping[str, Any] = told if isinstance(told, Mapping) else {}
    cost: Any = facts.get("cost") if result.cost is None else result.cost
    if isinstance(cost, Mapping):
        cost = cost.get("total", sum(v for v in cost.values() if _is_number(v)))
    if isinstance(told, Usage):
        says = told.cost is None and _is_number(cost)
        return replace(told, cost=float(cost), cost_source="provider") if says else told
    calls = next((facts[k] for k in ("api_calls", "requests", "calls") if _is_number(facts.get(k))), 1)
    return Usage(
        **{name: int(facts[name]) for name in _COUNTS if _is_number(facts.get(name))},
        api_calls=int(calls),
        cost=float(cost) if _is_number(cost) else None,
        cost_source="provider" if _is_number(cost) else "unknown",
    )


def _failure(result: ExecutorResult, agent: str, usage: Usage) -> AgentFailed:
    error: Any = result.error
    facts: Mapping[str, Any] = error if isinstance(error, Mapping) else {"message": str(error)}
    limit = result.rate_limit or {}
    return AgentFailed(
        f'agent "{agent}": {facts.get("message") or "it failed without a message"}',
        code=str(facts.get("code") or "server_error"),
        retryable=bool(facts.get("retryable")),
        status_code=facts.get("status_code"),
        retry_after=limit.get("retry_after"),
        type=str(facts.get("type") or ""),
        rate_limit=result.rate_limit,
        usage=usage,
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
