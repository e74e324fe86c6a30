"""`backend: copilot`: chat completions behind a GitHub subscription, or any endpoint that is like it (`base_url`)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.agents.subscription import (
    Credential,
    Endpoint,
    SubscriptionAuthError,
    SubscriptionError,
    SubscriptionHTTPError,
    bare_model,
)

CopilotClientError = SubscriptionError
CopilotAuthError = SubscriptionAuthError
CopilotHTTPError = SubscriptionHTTPError
CopilotOAuthCredential = Credential

DEFAULT_URL = "https://api.individual.githubcopilot.com"

_SENT = (
    "temperature", "max_tokens", "top_p", "frequency_penalty", "presence_penalty", "seed", "stop", "n",
    "response_format", "tool_choice", "parallel_tool_calls", "service_tier", "tools",
)  # fmt: skip


@dataclass
class CopilotUsage:
    """What a call took."""

    input_tokens: int = 0
    output_tokens: int = 0
    total_tokens: int = 0


@dataclass
class CopilotToolCall:
    """A tool that the model wants to be called."""

    id: str
    name: str
    arguments_json: str


@dataclass
class CopilotResult:
    """One answer."""

    content: str | None = ""
    tool_calls: list[CopilotToolCall] = field(default_factory=list)
    usage: CopilotUsage = field(default_factory=CopilotUsage)
    finish_reason: str | None = None
    raw_response: dict[str, Any] = field(default_factory=dict)
    response_headers: dict[str, str] = field(default_factory=dict)
    response_status_code: int | None = None
    request_meta: dict[str, Any] = field(default_factory=dict)
    """URL and headers of the request, without its token."""


class CopilotClient(Endpoint):
    """The endpoint. A vendor that wants to know its callers' program gets what `headers` of the profile says."""

    kind = "copilot"
    provider = "github-copilot"

    def url(self, credential: Credential) -> str:
        proxy = _proxy_in(credential.access)
        base = str(self.config.get("base_url") or credential.base_url or proxy or DEFAULT_URL).rstrip("/")
        return base if base.endswith("/chat/completions") else f"{base}/chat/completions"

    def request(
        self, params: Mapping[str, Any], credential: Credential
    ) -> tuple[str, dict[str, str], dict[str, Any]]:
        messages = list(params["messages"])
        headers = {
            "Authorization": f"Bearer {credential.access}",
            "X-Initiator": "user" if not messages or messages[-1]["role"] == "user" else "agent",
            "Openai-Intent": "conversation-edits",
            **{str(k): str(v) for k, v in (self.config.get("headers") or {}).items()},
            **{str(k): str(v) for k, v in (params.get("headers") or {}).items()},
        }
        if any(_has_image(message) for message in messages):
            headers["Copilot-Vision-Request"] = "true"
        if params.get("idempotency_key"):
            headers["Idempotency-Key"] = hashlib.sha256(params["idempotency_key"].encode()).hexdigest()
        model = bare_model(str(params.get("model") or params.get("name")))
        body = {"model": model, "messages": messages, "stream": False}
        body |= {k: params[k] for k in _SENT if params.get(k) is not None}
        return self.url(credential), headers, body

    async def read(self, response: Any, params: Mapping[str, Any]) -> CopilotResult:
        try:
            await response.aread()
            body = response.json()
            choice = body["choices"][0]
            message = choice["message"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise CopilotClientError("the answer is no chat completion") from error
        told = body.get("usage") or {}
        asked, given = told.get("prompt_tokens") or 0, told.get("completion_tokens") or 0
        calls = [
            CopilotToolCall(call["id"], call["function"]["name"], call["function"].get("arguments") or "")
            for call in message.get("tool_calls") or ()
        ]
        if params.get("on_token") is not None and message.get("content"):
            params["on_token"](message["content"])
        sent = {k.lower(): v for k, v in response.request.headers.items()}
        return CopilotResult(
            content=message.get("content"),
            tool_calls=calls,
            usage=CopilotUsage(asked, given, told.get("total_tokens") or asked + given),
            finish_reason=choice.get("finish_reason") or ("tool_calls" if calls else "stop"),
            raw_response=body,
            response_headers={k.lower(): v for k, v in response.headers.items()},
            response_status_code=response.status_code,
            request_meta={"url": str(response.request.url), "headers": {**sent, "authorization": "***"}},
        )


def _proxy_in(token: str) -> str | None:
    """The address that some tokens name in themselves."""
    parts = dict(part.partition("=")[::2] for part in token.split(";"))
    host = parts.get("proxy-ep")
    return f"https://{host.replace('proxy.', 'api.', 1)}" if host else None


def _has_image(message: Mapping[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(part.get("type") == "image_url" for part in content)
