"""Models behind a subscription: `backend: codex` and `backend: copilot`, asked over HTTP with a token of the user's.

The token comes from `token_command` or a `token` function (see `tokens`), from an `api_key`, or from a credential
file that another program keeps fresh (`oauth.auth_file`). We hold no client id of any vendor, log in nowhere and
pretend to be nobody's editor: who may use such an endpoint with which token is between its user and the vendor.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from flat.agents import llm_thread
from flat.agents.credentials import resolve_secrets
from flat.agents.failures import by_status
from flat.agents.protocol import AgentResult, Message, Usage
from flat.agents.ratelimits import build_rate_limit_state, retry_after_seconds, telling_headers
from flat.agents.tokens import Tokens
from flat.errors import AgentFailed, SpecError

DEFAULT_AUTH_FILE = "~/.agents/flatmachines/auth.json"
DEFAULT_TIMEOUT = 120.0
"""Seconds."""

_RETRIED = (429, 500, 502, 503, 504)
_FINISH = {"tool_calls": "tool_use", "length": "length", "stop": "stop", "content_filter": "content_filter"}


class SubscriptionError(Exception):
    """A call of a subscription's endpoint failed."""


class SubscriptionAuthError(SubscriptionError):
    """There is no token, or it is of no use."""


class SubscriptionHTTPError(SubscriptionError):
    """The endpoint answered with an error status."""

    def __init__(
        self,
        status_code: int,
        body: str,
        message: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message or f"HTTP {status_code}: {body[:300]}")
        self.status_code, self.body, self.headers = status_code, body, dict(headers or {})


@dataclass(frozen=True, slots=True)
class Credential:
    """A token and what goes with it."""

    access: str
    refresh: str = ""
    """For the program that keeps it fresh; we have no use for it."""
    expires: float = math.inf
    """Milliseconds since the epoch, as in the file."""
    account_id: str | None = None
    enterprise_url: str | None = None
    base_url: str | None = None


class Credentials:
    """Where the token of one agent comes from."""

    def __init__(self, settings: Mapping[str, Any], *, kind: str, provider: str, directory: Path) -> None:
        self._settings, self._kind = settings, kind
        oauth = settings.get("oauth") or {}
        self._provider = oauth.get("provider") or provider
        told = oauth.get("auth_file") or settings.get(f"{kind}_auth_file")
        environ = os.environ.get(f"FLATAGENTS_{kind.upper()}_AUTH_FILE")
        self._file = directory / Path(told or environ or DEFAULT_AUTH_FILE).expanduser()
        self._tokens = Tokens.of(settings, kind)

    async def get(self, refused: str = "") -> Credential:
        """The credential; another one, if there is one, when its token was refused."""
        if self._tokens is not None:
            return Credential(await self._tokens.get(refused))
        if key := resolve_secrets(self._settings.get("api_key")):
            return Credential(str(key))
        # Whoever keeps the file fresh may have done so since it was refused: it is read each time.
        found = await anyio.to_thread.run_sync(self._read)
        if found.expires <= time.time() * 1000:
            raise SubscriptionAuthError(
                f"the token in {self._file} has expired: renew it with the program that wrote it, "
                "or give the profile a `token_command`"
            )
        return found

    def _read(self) -> Credential:
        try:
            entry = json.loads(self._file.read_text(encoding="utf-8"))[self._provider]
            return Credential(
                access=entry["access"],
                refresh=entry.get("refresh") or "",
                expires=float(entry.get("expires", math.inf)),
                account_id=entry.get("accountId"),
                enterprise_url=entry.get("enterpriseUrl"),
                base_url=entry.get("baseUrl"),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise SubscriptionAuthError(
                f'no token: {self._file} has no usable entry "{self._provider}"; log in with a program that writes '
                "one, or give the profile a `token_command`"
            ) from None


class Endpoint:
    """One endpoint over HTTP: a token in, retries if they are wanted, one more try when the token is refused."""

    kind = ""
    provider = ""

    def __init__(
        self,
        model_config: Mapping[str, Any],
        *,
        config_dir: Path | str | None = None,
        transport: Any = None,
        max_retries: int = 3,
    ) -> None:
        """`transport` is an httpx transport, for tests and for proxies."""
        self.config = dict(model_config)
        directory = Path.cwd() if config_dir is None else Path(config_dir)
        self.credentials = Credentials(
            self.config, kind=self.kind, provider=self.provider, directory=directory
        )
        oauth = self.config.get("oauth") or {}
        self.timeout = float(self.setting("timeout_seconds", oauth) or DEFAULT_TIMEOUT)
        retries = self.setting("max_retries", oauth)
        self.max_retries = max_retries if retries is None else int(retries)
        self.sleep: Callable[[float], Awaitable[None]] = anyio.sleep
        """How it waits."""
        self._transport = transport

    def setting(self, name: str, oauth: Mapping[str, Any] | None = None) -> Any:
        """`oauth.<name>`, else the flat key of old."""
        oauth = self.config.get("oauth") or {} if oauth is None else oauth
        return oauth[name] if oauth.get(name) is not None else self.config.get(f"{self.kind}_{name}")

    def request(self, params: Mapping[str, Any], credential: Credential) -> tuple[str, dict[str, str], Any]:
        """URL, headers and body of a call."""
        raise NotImplementedError

    async def read(self, response: Any, params: Mapping[str, Any]) -> Any:
        """The result in an open response."""
        raise NotImplementedError

    async def call(self, params: Mapping[str, Any]) -> Any:
        """One call: `params` as a chat completion takes them. On asyncio and on trio.

        It runs on the thread of the model calls, as httpx leaves its streams to the garbage collector, which trio
        minds.
        """
        watcher = params.get("on_token")

        async def work(emit: Any) -> Any:
            return await self._call({**params, "on_token": None if watcher is None else emit})

        return await llm_thread.run(work, watcher)

    async def _call(self, params: Mapping[str, Any]) -> Any:
        import httpx

        credential = await self.credentials.get()
        refused = False
        attempt = 0
        async with httpx.AsyncClient(transport=self._transport, timeout=self.timeout) as http:
            while True:
                try:
                    return await self._once(http, params, credential)
                except SubscriptionHTTPError as error:
                    if error.status_code in (401, 403) and not refused:
                        refused, before = True, credential
                        credential = await self.credentials.get(refused=before.access)
                        if credential.access != before.access:
                            continue
                        raise
                    if error.status_code not in _RETRIED or attempt >= self.max_retries:
                        raise
                except httpx.TransportError as error:
                    if attempt >= self.max_retries:
                        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                        raise SubscriptionError(f"cannot reach {self.url(credential)}: {said}") from error
                await self.sleep(2.0**attempt)
                attempt += 1

    def url(self, credential: Credential) -> str:
        """Where calls go."""
        raise NotImplementedError

    async def _once(self, http: Any, params: Mapping[str, Any], credential: Credential) -> Any:
        url, headers, body = self.request(params, credential)
        async with http.stream("POST", url, headers=headers, json=body) as response:
            if response.status_code >= 400:
                text = (await response.aread()).decode("utf-8", "replace")
                told = {k.lower(): v for k, v in response.headers.items()}
                raise SubscriptionHTTPError(response.status_code, text, _told(text), told)
            return await self.read(response, params)


class SubscriptionClient:
    """An endpoint as the client of a `ModelAgent`. The engine retries; the endpoint does only when it is told to."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        name: str,
        directory: Path | str | None = None,
        transport: Any = None,
    ) -> None:
        from flat.agents.codex import CodexClient
        from flat.agents.copilot import CopilotClient
        from flat.agents.profiles import model_name

        model = model_name(settings)
        if not model:
            raise SpecError(f'agent "{name}" has no model: give its profile a `name`')
        endpoint = CodexClient if settings["backend"] == "codex" else CopilotClient
        self.name, self.model, self.settings = name, model, dict(settings)
        self.endpoint: Endpoint = endpoint(
            {**settings, "name": model}, config_dir=directory, transport=transport, max_retries=0
        )
        self.timeout = float(settings.get("timeout") or 600.0)

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        response_format: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        on_token: Any = None,
        idempotency_key: str = "",
        session_id: str | None = None,
    ) -> AgentResult:
        """One call, on asyncio or trio."""
        params = {
            **{k: v for k, v in self.settings.items() if v is not None},
            "model": self.model,
            "messages": list(messages),
            "tools": list(tools or ()) or None,
            "response_format": response_format,
            "session_id": session_id,
            "idempotency_key": idempotency_key,
            "on_token": on_token,
        }
        seconds = min(self.timeout, math.inf if timeout is None else timeout)
        try:
            with anyio.fail_after(max(0.0, seconds)):
                return self._result(await self.endpoint.call(params))
        except TimeoutError:
            raise self._failure(
                f"no complete answer within {seconds:g} s", code="timeout", retryable=True
            ) from None
        except SubscriptionAuthError as error:
            raise self._failure(str(error), code="auth_error") from error
        except SubscriptionHTTPError as error:
            raise self._refusal(error) from error
        except SubscriptionError as error:
            raise self._failure(str(error), code="server_error", retryable=True) from error

    def _result(self, answer: Any) -> AgentResult:
        usage = answer.usage
        return AgentResult(
            content=answer.content,
            usage=Usage(
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cache_read_tokens=getattr(usage, "cached_tokens", 0),
                api_calls=1,
                cost=0.0,  # a subscription is paid by the month
                cost_source="free",
            ),
            finish_reason=_FINISH.get(answer.finish_reason or "", "stop"),
            tool_calls=tuple(_decoded(call) for call in answer.tool_calls),
            rate_limit=build_rate_limit_state(answer.response_headers),
            provider_data={"model": self.model, "raw_headers": telling_headers(answer.response_headers)},
            raw=answer,
        )

    def _refusal(self, error: SubscriptionHTTPError) -> AgentFailed:
        verdict = by_status(error.status_code)
        wait = retry_after_seconds(error.headers)
        return self._failure(
            str(error),
            code=verdict.code,
            retryable=verdict.retryable,
            status_code=error.status_code,
            retry_after=wait,
            hint=verdict.hint,
            rate_limit=build_rate_limit_state(error.headers, wait),
        )

    def _failure(self, text: str, **facts: Any) -> AgentFailed:
        return AgentFailed(f'agent "{self.name}" ({self.model}): {text}', **facts)


def _decoded(call: Any) -> dict[str, Any]:
    decoded: dict[str, Any] = {"id": call.id, "name": call.name, "arguments": {}}
    try:
        decoded["arguments"] = json.loads(call.arguments_json or "{}")
    except ValueError:
        decoded["invalid_arguments"] = call.arguments_json
    return decoded


def _told(text: str) -> str | None:
    """The message in the body of an error."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, Mapping) else error)
    except (ValueError, KeyError, TypeError):
        return None


def bare_model(name: str) -> str:
    """A model's name without the provider in front."""
    return name.split("/", 1)[1] if "/" in name else name
