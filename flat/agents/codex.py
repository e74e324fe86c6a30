"""`backend: codex`: the Responses API, whose answers always stream as server-sent events.

Chat messages go out as `input` items, system messages as `instructions`; a session id keeps the provider's prompt
cache warm. What this API does not know (`max_tokens`, `top_p`, penalties, `seed`) is left out.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flat.agents.protocol import Message
from flat.agents.subscription import (
    Credential,
    Endpoint,
    SubscriptionAuthError,
    SubscriptionError,
    SubscriptionHTTPError,
    bare_model,
)

CodexClientError = SubscriptionError
CodexAuthError = SubscriptionAuthError
CodexHTTPError = SubscriptionHTTPError
CodexOAuthCredential = Credential

DEFAULT_URL = "https://chatgpt.com/backend-api"

_LONGEST_ID = 64
_ACCOUNT_CLAIM = "https://api.openai.com/auth"


@dataclass
class CodexUsage:
    """What a call took."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0
    cached_tokens: int = 0


@dataclass
class CodexToolCall:
    """A tool that the model wants to be called."""

    id: str
    name: str
    arguments_json: str


@dataclass
class CodexResult:
    """One answer."""

    content: str = ""
    tool_calls: list[CodexToolCall] = field(default_factory=list)
    usage: CodexUsage = field(default_factory=CodexUsage)
    finish_reason: str | None = None
    status: str | None = None
    raw_events: list[dict[str, Any]] = field(default_factory=list)
    response_headers: dict[str, str] = field(default_factory=dict)
    response_status_code: int | None = None
    request_meta: dict[str, Any] = field(default_factory=dict)
    """URL and headers of the request, without its token."""


class CodexClient(Endpoint):
    """The endpoint of the Responses API behind a ChatGPT subscription, or any that is like it (`base_url`)."""

    kind = "codex"
    provider = "openai-codex"

    def url(self, credential: Credential) -> str:
        base = str(self.config.get("base_url") or credential.base_url or DEFAULT_URL).rstrip("/")
        if base.endswith("/codex/responses"):
            return base
        return f"{base}/responses" if base.endswith("/codex") else f"{base}/codex/responses"

    def request(
        self, params: Mapping[str, Any], credential: Credential
    ) -> tuple[str, dict[str, str], dict[str, Any]]:
        session = params.get("session_id") or self.config.get("codex_session_id")
        headers = {
            "Authorization": f"Bearer {credential.access}",
            "OpenAI-Beta": "responses=experimental",
            "originator": str(self.setting("originator") or "flat"),
            "Accept": "text/event-stream",
            **{str(k): str(v) for k, v in (self.config.get("headers") or {}).items()},
            **{str(k): str(v) for k, v in (params.get("headers") or {}).items()},
        }
        if account := credential.account_id or self.setting("account_id") or account_of(credential.access):
            headers["chatgpt-account-id"] = account
        if session:
            headers["session_id"] = str(session)
        if params.get("idempotency_key"):
            headers["Idempotency-Key"] = hashlib.sha256(params["idempotency_key"].encode()).hexdigest()
        return self.url(credential), headers, body_of(params, session)

    async def read(self, response: Any, params: Mapping[str, Any]) -> CodexResult:
        answer = _Answer(params.get("on_token"))
        async for event in events_of(response):
            answer.take(event)
        result = answer.result()
        result.response_headers = {k.lower(): v for k, v in response.headers.items()}
        result.response_status_code = response.status_code
        sent = {k.lower(): v for k, v in response.request.headers.items()}
        result.request_meta = {"url": str(response.request.url), "headers": {**sent, "authorization": "***"}}
        return result


class _Answer:
    """An answer while its events arrive."""

    def __init__(self, on_token: Any) -> None:
        self._on_token = on_token
        self._events: list[dict[str, Any]] = []
        self._deltas: list[str] = []
        self._whole: list[str] = []
        self._calls: dict[str, CodexToolCall] = {}
        self._arguments: dict[str, str] = {}
        self._usage = CodexUsage()
        self._status: str | None = None

    def take(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        kind = event.get("type")
        if kind == "response.output_text.delta":
            self._deltas.append(event.get("delta") or "")
            if self._on_token is not None:
                self._on_token(event.get("delta") or "")
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._item(event.get("item") or {}, done=kind.endswith("done"))
        elif kind == "response.function_call_arguments.delta":
            item = str(event.get("item_id"))
            self._arguments[item] = self._arguments.get(item, "") + (event.get("delta") or "")
        elif kind in ("response.completed", "response.done", "response.incomplete"):
            self._end(event.get("response") or {})
        elif kind in ("error", "response.failed"):
            inner = (event.get("response") or {}).get("error") or event.get("error") or event
            raise CodexClientError(f"the answer broke off: {inner.get('message') or json.dumps(inner)}")

    def _item(self, item: Mapping[str, Any], *, done: bool) -> None:
        if item.get("type") == "function_call":
            own = str(item.get("id") or item.get("call_id"))
            told = item.get("arguments") or ""
            self._calls[own] = CodexToolCall(str(item.get("call_id") or own), str(item.get("name")), told)
        elif item.get("type") == "message" and done:
            parts = item.get("content") or ()
            self._whole.append("".join(p.get("text", "") for p in parts if p.get("type") == "output_text"))

    def _end(self, response: Mapping[str, Any]) -> None:
        self._status = response.get("status") or self._status
        told = response.get("usage") or {}
        now = {
            "input_tokens": told.get("input_tokens"),
            "output_tokens": told.get("output_tokens"),
            "total_tokens": told.get("total_tokens"),
            "cached_tokens": (told.get("input_tokens_details") or {}).get("cached_tokens"),
        }
        for name, value in now.items():
            setattr(self._usage, name, max(getattr(self._usage, name), value or 0))

    def result(self) -> CodexResult:
        if self._status is None:
            raise CodexClientError("the stream ended before the answer was complete")
        for own, call in self._calls.items():
            call.arguments_json = call.arguments_json or self._arguments.get(own, "")
        calls = list(self._calls.values())
        return CodexResult(
            content="".join(self._deltas) or "".join(self._whole),
            tool_calls=calls,
            usage=self._usage,
            finish_reason="tool_calls" if calls else "length" if self._status == "incomplete" else "stop",
            status=self._status,
            raw_events=self._events,
        )


async def events_of(response: Any) -> AsyncIterator[dict[str, Any]]:
    """The JSON of each server-sent event."""
    data: list[str] = []
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            data.append(line[5:].strip())
        elif not line.strip() and data:
            event, data = _event("\n".join(data)), []
            if event is not None:
                yield event
    if data and (event := _event("\n".join(data))) is not None:
        yield event


def _event(text: str) -> dict[str, Any] | None:
    if text == "[DONE]":
        return None
    try:
        event = json.loads(text)
    except ValueError as error:
        raise CodexClientError(f"the answer holds an event that is no JSON: {text[:200]}") from error
    return event if isinstance(event, dict) else None


def body_of(params: Mapping[str, Any], session: Any = None) -> dict[str, Any]:
    """The body of a request for a chat completion's parameters."""
    system = [text_of(m) for m in params["messages"] if m["role"] == "system"]
    body: dict[str, Any] = {
        "model": bare_model(str(params.get("model") or params.get("name"))),
        "store": False,
        "stream": True,
        "instructions": "\n\n".join(text for text in system if text),
        "input": input_items([m for m in params["messages"] if m["role"] != "system"]),
        "text": _text_settings(params),
        "include": ["reasoning.encrypted_content"],
        "tool_choice": params.get("tool_choice") or "auto",
        "parallel_tool_calls": params.get("parallel_tool_calls") is not False,
    }
    if session:
        body["prompt_cache_key"] = str(session)
    if params.get("tools"):
        body["tools"] = [{"type": "function", **tool["function"]} for tool in params["tools"]]
    if reasoning := _reasoning(params):
        body["reasoning"] = reasoning
    body |= {k: params[k] for k in ("temperature", "service_tier") if params.get(k) is not None}
    return body


def _text_settings(params: Mapping[str, Any]) -> dict[str, Any]:
    text = dict(params.get("text") or {})
    text.setdefault("verbosity", params.get("verbosity") or params.get("codex_text_verbosity") or "medium")
    wanted = params.get("response_format") or {}
    if wanted.get("type") == "json_schema":
        text["format"] = {"type": "json_schema", **wanted["json_schema"]}
    return text


def _reasoning(params: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(params.get("reasoning"), Mapping):
        return dict(params["reasoning"])
    found = {
        name: params.get(f"reasoning_{name}") or params.get(f"codex_reasoning_{name}")
        for name in ("effort", "summary")
    }
    return {name: value for name, value in found.items() if value}


def input_items(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Chat messages as items of the Responses API."""
    items: list[dict[str, Any]] = []
    for message in messages:
        if message["role"] == "tool":
            call = short_id(str(message.get("tool_call_id")))
            items.append({"type": "function_call_output", "call_id": call, "output": text_of(message)})
        elif message["role"] == "assistant":
            said = [{"type": "output_text", "text": text_of(message)}]
            items.append({"type": "message", "role": "assistant", "content": said})
            for call in message.get("tool_calls") or ():
                function = call["function"]
                items.append({"type": "function_call", "call_id": short_id(call["id"]), **function})
        else:
            items.append({"role": message["role"], "content": _input_parts(message)})
    return items


def _input_parts(message: Message) -> list[dict[str, Any]]:
    content = message.get("content")
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": text_of(message)}]
    for part in content if isinstance(content, list) else ():
        if part.get("type") == "image_url":
            image = part["image_url"]
            parts.append(
                {"type": "input_image", "image_url": image["url"] if isinstance(image, Mapping) else image}
            )
    return parts


def text_of(message: Message) -> str:
    """The text of a message; texts of several parts by lines."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(part.get("text", "") for part in content if part.get("type") == "text")
    return content or ""


def short_id(call: str) -> str:
    """An id that fits: a long one is cut, and kept apart from its like by a digest."""
    if len(call) <= _LONGEST_ID:
        return call
    return f"{call[:47]}_{hashlib.sha256(call.encode()).hexdigest()[:16]}"


def account_of(token: str) -> str | None:
    """The account that a token's claims name. Nothing is verified: the provider does that."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return str(claims[_ACCOUNT_CLAIM]["chatgpt_account_id"])
    except (IndexError, ValueError, KeyError, TypeError):
        return None
