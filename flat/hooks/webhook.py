"""Hooks that ask an HTTP endpoint: each event is posted as JSON, and the answer may steer.

    hooks: {name: webhook, args: {endpoint: "https://ops.example/flat", api_key: "${env:OPS_KEY}"}}

| event                | besides `event`                         | key of the answer that counts |
| -------------------- | --------------------------------------- | ----------------------------- |
| `machine_start`      | `context`                               | `context`                     |
| `machine_end`        | `context`, `output`                     | `output`                      |
| `state_enter`        | `state`, `context`                      | `context`                     |
| `state_exit`         | `state`, `context`, `output`            | `output`                      |
| `transition`         | `from`, `to`, `context`                 | `to_state`                    |
| `error`              | `state`, `error`, `error_type`, `context` | `recovery_state`            |
| `action`             | `state`, `action`, `context`            | `context`                     |
| `tool_calls`         | `state`, `tool_calls`, `context`        | `context`                     |
| `tool_result`        | `state`, `tool_result`, `context`       | `context`                     |
| `agent_stream_event` | `state`, `stream_event`                 |                               |

An endpoint that cannot be reached, or answers with anything but 2xx and a JSON object, never stops a machine:
the trouble is logged as an error, and everything stays as it was. No body means that nothing changes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from pathlib import PurePath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from uuid import UUID

import anyio
import anyio.lowlevel
import orjson

from flat.errors import DefinitionError
from flat.hooks.base import Context, MachineHooks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

CONNECT_RETRIES = 1
"""Attempts after the first one to reach an endpoint; more would wait between them. What was sent is not sent again."""
MAX_ANSWER = 16 * 1024 * 1024
"""Bytes of an answer that are read before it is refused."""
_SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
log = logging.getLogger("flat.hooks.webhook")


class _Trouble(Exception):
    """An event was not delivered, or its answer is of no use; the message says why."""


@dataclass
class _Shared:
    """The client of one event loop, and how many runs use it."""

    client: httpx.AsyncClient
    users: int = 0


class WebhookHooks(MachineHooks):
    """Posts each event to `endpoint` (or `url`), and lets the answer steer.

    `timeout` is how many seconds one event may take in all. `endpoint` and `api_key` may hold references such as
    `${env:OPS_KEY}`, which are resolved at each call and stored nowhere.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        timeout: float = 5.0,
        api_key: str | None = None,
        *,
        url: str | None = None,
    ) -> None:
        if (endpoint is None) == (url is None):
            raise DefinitionError("WebhookHooks needs an endpoint (also called url): give one of the two")
        self.endpoint = _checked_endpoint(endpoint if endpoint is not None else url)
        if (
            isinstance(timeout, bool)
            or not isinstance(timeout, int | float)
            or not 0 < timeout < float("inf")
        ):
            raise DefinitionError(f"the timeout of WebhookHooks is a number of seconds, not {timeout!r}")
        self.timeout = float(timeout)
        self._api_key = api_key
        self._shared: dict[Any, _Shared] = {}

    def __repr__(self) -> str:
        return f"WebhookHooks({self._shown!r})"

    # -- the points -----------------------------------------------------------------------

    async def on_machine_start(self, context: Context) -> Context:
        return await self._context("machine_start", context)

    async def on_machine_end(self, context: Context, final_output: Any) -> Any:
        return await self._ask(
            "machine_end", "output", final_output, {"context": context, "output": final_output}
        )

    async def on_state_enter(self, state_name: str, context: Context) -> Context:
        return await self._context("state_enter", context, state=state_name)

    async def on_state_exit(self, state_name: str, context: Context, output: Any) -> Any:
        facts = {"state": state_name, "context": context, "output": output}
        return await self._ask("state_exit", "output", output, facts)

    async def on_transition(self, from_state: str, to_state: str, context: Context) -> Any:
        facts = {"from": from_state, "to": to_state, "context": context}
        return await self._state("transition", "to_state", to_state, facts)

    async def on_error(self, state_name: str, error: Exception, context: Context) -> Any:
        facts = {"state": state_name, "error": str(error), "error_type": type(error).__name__}
        return await self._state("error", "recovery_state", None, {**facts, "context": context})

    async def on_action(self, *args: Any) -> Context:
        state_name, action_name, context = args if len(args) == 3 else (None, *args)
        return await self._context("action", context, state=state_name, action=action_name)

    async def on_tool_calls(self, state_name: str, tool_calls: list[Any], context: Context) -> Context:
        return await self._context("tool_calls", context, state=state_name, tool_calls=tool_calls)

    async def on_tool_result(self, state_name: str, tool_result: dict[str, Any], context: Context) -> Context:
        return await self._context("tool_result", context, state=state_name, tool_result=tool_result)

    async def on_agent_stream_event(self, state_name: str, event: dict[str, Any], context: Context) -> None:
        """Unlike the others this raises when it fails, so that no more of the stream is sent into the void."""
        await self._post("agent_stream_event", {"state": state_name, "stream_event": event})

    async def on_background(self, context: Context) -> None:
        """Keeps one client, with its connections, for as long as a run lasts."""
        loop = anyio.lowlevel.current_token()
        if loop not in self._shared:
            self._shared[loop] = _Shared(_client(self.timeout))
        shared = self._shared[loop]
        shared.users += 1
        try:
            await anyio.sleep_forever()
        finally:
            shared.users -= 1
            if not shared.users:
                del self._shared[loop]
                with anyio.CancelScope(shield=True):
                    await shared.client.aclose()

    # -- asking -----------------------------------------------------------------------------

    async def _context(self, event: str, context: Context, **facts: Any) -> Context:
        """The context that the answer brings. The read-only facts of the machine are shown, and never taken."""
        given = await self._ask(event, "context", None, {**facts, "context": context})
        if given is None:
            return context
        if not isinstance(given, dict):
            self._complain(event, f'its "context" is not an object but {type(given).__name__}')
            return context
        given.pop("machine", None)
        return given

    async def _state(self, event: str, key: str, before: str | None, facts: Mapping[str, Any]) -> Any:
        given = await self._ask(event, key, before, facts)
        if given is None or isinstance(given, str):
            return given or before
        self._complain(event, f'its "{key}" is not the name of a state but {type(given).__name__}')
        return before

    async def _ask(self, event: str, key: str, before: Any, facts: Mapping[str, Any]) -> Any:
        """Post an event; what the answer says under `key`, or `before`."""
        try:
            return (await self._post(event, facts)).get(key, before)
        except _Trouble as trouble:
            self._complain(event, str(trouble))
            return before

    def _complain(self, event: str, what: str) -> None:
        log.error("webhook %s, event %s: %s; nothing is changed by it", self._shown, event, what)

    async def _post(self, event: str, facts: Mapping[str, Any]) -> Mapping[str, Any]:
        import httpx

        content = _payload({"event": event, **facts})
        headers = {"Content-Type": "application/json", "User-Agent": f"flat/{_version()}"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {_resolved(self._api_key)}"
        url = _resolved(self.endpoint)
        try:
            with anyio.fail_after(self.timeout):
                async with self._open() as client:
                    return await _answer(client, url, headers, content)
        except TimeoutError:
            raise _Trouble(f"no answer within {self.timeout:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, UnicodeError) as error:
            raise _Trouble(f"{type(error).__name__}: {str(error) or 'no more is known'}") from error

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[httpx.AsyncClient]:
        """The client of the run, or one for this event alone where no run keeps one."""
        shared = self._shared.get(anyio.lowlevel.current_token())
        if shared is not None:
            yield shared.client
            return
        async with _client(self.timeout) as client:
            yield client

    @property
    def _shown(self) -> str:
        """The endpoint for messages: as it was configured, without what may be secret in it."""
        parts = urlsplit(self.endpoint)
        host = parts.netloc.rpartition("@")[2]
        return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else self.endpoint


async def _answer(
    client: httpx.AsyncClient, url: str, headers: Mapping[str, str], content: bytes
) -> Mapping[str, Any]:
    """Post, and read a JSON object; nothing at all counts as an empty one."""
    async with client.stream("POST", url, headers=dict(headers), content=content) as response:
        if not response.is_success:
            where = f" to {response.headers['location']}" if response.is_redirect else ""
            raise _Trouble(f"answered {response.status_code}{where}")
        body = bytearray()
        async for piece in response.aiter_bytes():
            body += piece
            if len(body) > MAX_ANSWER:
                raise _Trouble(f"the answer is longer than {MAX_ANSWER} bytes")
    if not body.strip():
        return {}
    try:
        answer = orjson.loads(body)
    except ValueError as error:
        raise _Trouble(f"the answer is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise _Trouble(f"the answer is not a JSON object but {type(answer).__name__}")
    return answer


def _version() -> str:
    # The top of the package may import every layer, so that no layer imports it.
    return str(sys.modules[__name__.partition(".")[0]].__version__)


def _client(timeout: float) -> httpx.AsyncClient:
    try:
        import httpx
    except ImportError as error:
        raise ImportError("WebhookHooks needs httpx: pip install flat[webhook]") from error
    return httpx.AsyncClient(
        timeout=timeout, transport=httpx.AsyncHTTPTransport(retries=CONNECT_RETRIES, trust_env=True)
    )


def _payload(event: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(event, default=_plain, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        pass
    try:  # numbers of more than 64 bits, halves of characters, and deep nesting
        return json.dumps(event, default=_plain, allow_nan=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise _Trouble(f"the event cannot be written as JSON: {error}") from error


def _plain(value: Any) -> Any:
    """What orjson does not write itself. The facts of the machine are a read-only mapping, and lazy."""
    if isinstance(value, Mapping):
        return dict(value)
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, Set):
        return list(value)
    if isinstance(value, bytes | bytearray):
        return value.decode("utf-8", "replace")
    if isinstance(value, PurePath | Decimal | timedelta | date | time | UUID):
        return value.isoformat() if isinstance(value, date | time) else str(value)
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"a {type(value).__name__} is no JSON value")


def _checked_endpoint(endpoint: Any) -> str:
    if not isinstance(endpoint, str) or not endpoint.strip():
        raise DefinitionError(f"the endpoint of WebhookHooks is a URL, not {endpoint!r}")
    if not _SECRET.match(endpoint) and urlsplit(endpoint).scheme not in ("http", "https"):
        raise DefinitionError(
            f"the endpoint of WebhookHooks is an http or https URL, such as https://ops.example/flat, "
            f"not {endpoint!r}"
        )
    return endpoint


def _resolved(text: str) -> str:
    """The text with each `${env:NAME}` replaced. An event is not sent without what was meant to protect it."""
    missing = [name for name in _SECRET.findall(text) if not os.environ.get(name)]
    if missing:
        raise _Trouble(f"not sent, because the environment variable {missing[0]} is not set")
    return _SECRET.sub(lambda match: os.environ[match[1]], text)
