"""Chat completions through litellm: one call to one model, its answer as an `AgentResult`, its failures
classified.

`flat` decides about retries, deadlines and streaming itself, so litellm is told to do none of it. Prompts,
structured output and its repair are `bundle`'s.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flat.agents import llm_thread
from flat.agents.credentials import (
    base_url,
    is_embedded,
    is_free,
    placeholder_key,
    provider,
    require_credentials,
    resolve_secrets,
    secrets_of,
)
from flat.agents.failures import agent_failure
from flat.agents.profiles import model_name
from flat.agents.protocol import AgentResult, Message, Usage
from flat.agents.ratelimits import build_rate_limit_state, lower_headers, telling_headers
from flat.agents.tokens import Tokens
from flat.errors import AgentFailed, BackendError, SpecError, did_you_mean

DEFAULT_TIMEOUT = 600.0
"""Seconds for a whole call when neither the caller nor the profile says otherwise."""

_NOT_SENT = {
    "name", "provider", "profile", "backend", "oauth", "base_url", "stream", "stream_options", "timeout",
    "max_retries", "num_retries", "type", "token", "token_command", "token_seconds",
}  # fmt: skip
_FINISH = {
    "stop": "stop", "end_turn": "stop", "length": "length", "max_tokens": "length", "tool_calls": "tool_use",
    "tool_use": "tool_use", "function_call": "tool_use", "content_filter": "content_filter",
}  # fmt: skip
_BACKENDS = ("litellm", "aisuite")  # whatever aisuite reaches, litellm does too
_SCHEMA_NOTE = "Answer with nothing but JSON that fits this JSON schema:\n"


class LiteLLMClient:
    """One model as its settings describe it. It holds no connection, so any thread or loop may use it."""

    def __init__(self, settings: Mapping[str, Any], *, name: str = "agent") -> None:
        self.name = name
        self.settings = dict(settings)
        self._is_local = is_embedded(settings)
        if self._is_local:
            self.settings["name"] = settings.get("name") or "default"
        model = model_name(self.settings)
        if not model:
            raise SpecError(
                f'agent "{name}" has no model: give it a `model`, a `profile`, or a default profile'
            )
        backend = settings.get("backend")
        if backend not in (None, *_BACKENDS):
            known = [*_BACKENDS, "codex", "copilot"]
            raise SpecError(
                f'agent "{name}": Unknown backend "{backend}"; {did_you_mean(str(backend), known)}'
            )
        self.model: str = model
        self.timeout = float(settings.get("timeout") or DEFAULT_TIMEOUT)
        self._tokens = Tokens.of(settings, name)
        self._knows_schemas = True

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        on_token: Callable[[str], None] | None = None,
        idempotency_key: str = "",
        session_id: str | None = None,
    ) -> AgentResult:
        """One request to the model; two when it turns out not to know JSON schemas.

        `timeout` is for the whole call, not counting the import of litellm and the start of the embedded
        model. Works on asyncio and trio, and a cancelled caller aborts the request.
        """
        require_credentials(self.settings, self.name)
        seconds = min(self.timeout, math.inf if timeout is None else timeout)
        arguments = self._arguments(messages, tools, idempotency_key)

        async def work(emit: Callable[[str], None]) -> AgentResult:
            return await self._within(seconds, arguments, response_format, emit if on_token else None)

        return await llm_thread.run(work, on_token)

    def _arguments(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None, idempotency_key: str
    ) -> dict[str, Any]:
        own = {k: v for k, v in self.settings.items() if k not in _NOT_SENT and v is not None}
        arguments: dict[str, Any] = {**resolve_secrets(own), "model": self.model, "messages": list(messages)}
        if url := resolve_secrets(self.settings.get("base_url")):
            arguments["api_base"] = url
        if key := placeholder_key(self.settings):
            arguments["api_key"] = key
        # Retries are the engine's; only a user who asks litellm for them by name gets its hidden ones.
        arguments["max_retries"] = self.settings.get("max_retries") or self.settings.get("num_retries") or 0
        if tools:
            # Some versions look for MCP tools in every list of tools, and fail without the `mcp` package.
            arguments |= {"tools": [dict(t) for t in tools], "_skip_mcp_handler": True}
        if idempotency_key:
            headers = arguments.get("extra_headers") or {}
            arguments["extra_headers"] = {"Idempotency-Key": _header_value(idempotency_key), **headers}
        return arguments

    async def _within(
        self, seconds: float, arguments: dict[str, Any], response_format: Mapping[str, Any] | None, emit: Any
    ) -> AgentResult:
        litellm = await llm_thread.loaded()
        if self._is_local:
            arguments = {**arguments, **await self._local_endpoint()}
        if seconds <= 0:
            raise self._too_late(seconds)
        try:
            async with asyncio.timeout(seconds):
                # Its own timeout comes later, so that ours is the one that is reported.
                arguments = {**arguments, "timeout": seconds + 5}
                return await self._with_token(litellm, arguments, response_format, emit)
        except TimeoutError:
            raise self._too_late(seconds) from None

    async def _local_endpoint(self) -> dict[str, Any]:
        """Where the embedded model listens; the first call starts it."""
        from flat.agents.local import endpoint

        try:
            return await asyncio.to_thread(endpoint, self.settings)
        except BackendError as error:
            raise AgentFailed(f'agent "{self.name}": {error}', code="model_unavailable") from error

    async def _with_token(
        self, litellm: Any, arguments: dict[str, Any], wanted: Mapping[str, Any] | None, emit: Any
    ) -> AgentResult:
        if self._tokens is None:
            return await self._with_format(litellm, arguments, wanted, emit)
        token = await self._tokens.get()
        try:
            return await self._with_format(litellm, {**arguments, "api_key": token}, wanted, emit)
        except AgentFailed as failure:
            if failure.status_code not in (401, 403):
                raise
            another = await self._tokens.get(refused=token)
            if another == token:
                raise
        return await self._with_format(litellm, {**arguments, "api_key": another}, wanted, emit)

    async def _with_format(
        self, litellm: Any, arguments: dict[str, Any], wanted: Mapping[str, Any] | None, emit: Any
    ) -> AgentResult:
        try:
            return await self._once(litellm, self._formatted(litellm, arguments, wanted), emit)
        except AgentFailed as failure:
            refused = failure.code == "invalid_request" and (
                "response_format" in failure.message or "json_schema" in failure.message
            )
            if not (wanted and refused and self._knows_schemas):
                raise
        self._knows_schemas = False
        return await self._once(litellm, self._formatted(litellm, arguments, wanted), emit)

    def _formatted(
        self, litellm: Any, arguments: dict[str, Any], wanted: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        """The arguments with the schema in the form that this model understands best."""
        if not wanted or "response_format" in arguments:
            return arguments
        if self._knows_schemas and (
            provider(self.settings) in ("openai", "local")
            or litellm.supports_response_schema(model=self.model)
        ):
            return {**arguments, "response_format": wanted}
        messages = _with_schema_note(arguments["messages"], wanted)
        known = _supported_parameters(litellm, self.model)
        plain = {"response_format": {"type": "json_object"}} if "response_format" in known else {}
        return {**arguments, "messages": messages, **plain}

    async def _once(self, litellm: Any, arguments: dict[str, Any], emit: Any) -> AgentResult:
        try:
            if emit is None:
                response = await litellm.acompletion(**arguments)
                return self._read(response, response, streamed=False)
            return await self._stream(litellm, arguments, emit)
        except (AgentFailed, TimeoutError):
            raise
        except Exception as error:
            secrets = (*secrets_of(self.settings), *filter(None, [arguments.get("api_key")]))
            url = arguments.get("api_base") or base_url(self.settings)
            raise agent_failure(error, agent=self.name, model=self.model, url=url, secrets=secrets) from error

    async def _stream(
        self, litellm: Any, arguments: dict[str, Any], emit: Callable[[str], None]
    ) -> AgentResult:
        options = {"include_usage": True, **(self.settings.get("stream_options") or {})}
        stream = await litellm.acompletion(**arguments, stream=True, stream_options=options)
        chunks = []
        try:
            async for chunk in stream:
                chunks.append(chunk)
                text = chunk.choices[0].delta.content if chunk.choices else None
                if text:
                    emit(text)
        finally:
            # Leaving the loop does not close the connection.
            await stream.aclose()
        # litellm invents a last chunk when the stream just ends; only this says that the model had finished.
        if not getattr(stream, "received_finish_reason", "unknown"):
            raise self._broken("the stream ended before the answer was complete")
        whole = litellm.stream_chunk_builder(chunks, messages=arguments["messages"])
        return self._read(whole, stream, streamed=True)

    def _read(self, response: Any, transport: Any, *, streamed: bool) -> AgentResult:
        if not response or not response.choices:
            raise self._broken("the provider answered without any choice")
        choice = response.choices[0]
        headers = lower_headers(getattr(transport, "_response_headers", None))
        return AgentResult(
            content=choice.message.content,
            usage=self._usage(response, streamed=streamed),
            finish_reason=_finish_reason(choice.finish_reason),
            tool_calls=tuple(_tool_call(c) for c in choice.message.tool_calls or ()),
            rate_limit=build_rate_limit_state(headers),
            provider_data={"model": response.model or self.model, "raw_headers": telling_headers(headers)},
            raw=response,
        )

    def _usage(self, response: Any, *, streamed: bool) -> Usage:
        told = getattr(response, "usage", None)
        prompt_details = getattr(told, "prompt_tokens_details", None)
        cached = _count(told, "cache_read_input_tokens") or _count(prompt_details, "cached_tokens")
        cost, source = self._cost(response, told, streamed=streamed)
        return Usage(
            input_tokens=_count(told, "prompt_tokens"),
            output_tokens=_count(told, "completion_tokens"),
            cache_read_tokens=cached,
            cache_write_tokens=_count(told, "cache_creation_input_tokens"),
            api_calls=1,
            cost=cost,
            cost_source=source,
        )

    def _cost(self, response: Any, told: Any, *, streamed: bool) -> tuple[float | None, str]:
        if is_free(self.settings):
            return 0.0, "free"
        billed = getattr(told, "cost", None)
        if isinstance(billed, int | float) and not streamed:  # in streams litellm puts its own estimate there
            return float(billed), "provider"
        estimate = (getattr(response, "_hidden_params", None) or {}).get("response_cost")
        return (float(estimate), "estimate") if estimate else (None, "unknown")

    def _too_late(self, seconds: float) -> AgentFailed:
        text = f'agent "{self.name}" ({self.model}): no complete answer within {max(0.0, seconds):g} s'
        return AgentFailed(text, code="timeout", retryable=True)

    def _broken(self, what: str) -> AgentFailed:
        return AgentFailed(f'agent "{self.name}" ({self.model}): {what}', code="server_error", retryable=True)


def _finish_reason(raw: str | None) -> str | None:
    return _FINISH.get(str(raw).lower(), "stop") if raw else None


def _tool_call(call: Any) -> dict[str, Any]:
    """`{id, name, arguments}`; arguments that are not JSON come as text under `invalid_arguments`."""
    told = call.function.arguments
    decoded: dict[str, Any] = {"id": call.id, "name": call.function.name, "arguments": {}}
    try:
        decoded["arguments"] = json.loads(told) if told else {}
    except ValueError:
        decoded["invalid_arguments"] = told
    return decoded


def _count(source: Any, name: str) -> int:
    value = getattr(source, name, None)
    return value if isinstance(value, int) else 0


def _header_value(key: str) -> str:
    """Keys are made from names that people choose; a header holds printable ASCII only."""
    return key if key.isascii() and key.isprintable() else hashlib.sha256(key.encode()).hexdigest()


def _supported_parameters(litellm: Any, model: str) -> Sequence[str]:
    try:
        return litellm.get_supported_openai_params(model=model) or ()
    except Exception:  # it raises for models it does not know, which then get no special parameter
        return ()


def _with_schema_note(messages: Sequence[Message], wanted: Mapping[str, Any]) -> list[Message]:
    note = _SCHEMA_NOTE + json.dumps(wanted["json_schema"]["schema"], ensure_ascii=False)
    first, *rest = messages
    if first["role"] != "system":
        return [{"role": "system", "content": note}, *messages]
    return [{**first, "content": f"{first['content']}\n\n{note}".lstrip()}, *rest]
