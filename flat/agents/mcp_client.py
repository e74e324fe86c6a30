"""Connections to MCP servers, by the official `mcp` package: programs on stdin and stdout, and streamable HTTP.

A connection belongs to the task that opened it, and agents are called from tasks that come and go, on asyncio
and on trio. So connections live on the thread of the model calls: a task there holds each one open, and callers
wait for their answers with `llm_thread.run`. Agents of one process that name the same server share a
connection; it ends with the last of them, or with the thread. One that broke is opened anew by the next call.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import json
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeVar

from flat.agents import llm_thread
from flat.agents.credentials import missing_variables, resolve_secrets
from flat.agents.tools import ToolResult
from flat.errors import AgentFailed, SpecError, did_you_mean

T = TypeVar("T")

CONNECT_SECONDS = 30.0
"""How long a server may take to start and to greet, unless its `timeout` says otherwise."""

_SERVER_KEYS = ("command", "args", "env", "cwd", "server_url", "headers", "timeout")
_MAX_PAGES = 100
"""Of a server's list of tools."""

_lock = threading.RLock()  # a finalizer may run in the middle of what this guards, in the same thread
_users: dict[str, int] = {}
_live: dict[str, _Live] = {}


def check_server(config: Mapping[str, Any], name: str) -> None:
    """What the built-in client asks of a server's definition; a provider of one's own may ask for other keys."""
    for key in config:
        if key not in _SERVER_KEYS:
            raise SpecError(f'{name}: unknown key "{key}"; {did_you_mean(str(key), _SERVER_KEYS)}')
    if ("command" in config) == ("server_url" in config):
        raise SpecError(
            f"{name} needs either `command` (a program to start) or `server_url` (an HTTP address)"
        )


class McpServer:
    """One server, as one agent sees it. Nothing is started before it is asked for something."""

    def __init__(self, name: str, config: Mapping[str, Any], agent: str) -> None:
        check_server(config, f'agent "{agent}": mcp.servers.{name}')
        self.name, self.agent, self.config = name, agent, dict(config)
        self._key = json.dumps(self.config, sort_keys=True, default=str)
        with _lock:
            _users[self._key] = _users.get(self._key, 0) + 1
        weakref.finalize(self, _release, self._key).atexit = False

    async def list_tools(self) -> list[dict[str, Any]]:
        """Each `{name, description, inputSchema}`."""

        async def ask(client: Any) -> list[dict[str, Any]]:
            tools: list[dict[str, Any]] = []
            cursor = None
            for _ in range(_MAX_PAGES):
                page = await client.list_tools(cursor=cursor)
                tools += [
                    {"name": t.name, "description": t.description or "", "inputSchema": t.input_schema}
                    for t in page.tools
                ]
                cursor = page.next_cursor
                if cursor is None:
                    break
            return tools

        return await self._ask(ask, "did not list its tools")

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call one tool. Its own errors are results; a server that cannot be reached raises `AgentFailed`."""

        async def ask(client: Any) -> ToolResult:
            from mcp import MCPError

            try:
                answer = await client.call_tool(name, dict(arguments))
            except MCPError as error:
                if _is_broken(error):
                    raise
                return ToolResult(f"{name}: {error.message}", is_error=True)
            return ToolResult(_text(answer), is_error=bool(answer.is_error))

        return await self._ask(ask, f'failed at the tool "{name}"')

    async def _ask(self, ask: Callable[[Any], Awaitable[T]], failed: str) -> T:
        self._require_variables()

        async def work(_emit: Any) -> T:
            live = self._connection()
            client = await asyncio.shield(live.ready)
            try:
                return await ask(client)
            except Exception as error:
                if _is_broken(error):
                    live.end()
                raise

        try:
            return await llm_thread.run(work)
        except AgentFailed:
            raise
        except ImportError as error:
            raise AgentFailed(
                f'agent "{self.agent}" uses MCP servers, which need the package `mcp`: {error}',
                code="invalid_request",
                hint='pip install "flat[mcp]"',
            ) from error
        except (
            Exception
        ) as error:  # whatever a foreign server, its program and its transport can come up with
            raise self._failure(error, failed) from error

    def _failure(self, error: Exception, failed: str) -> AgentFailed:
        lost = False
        told = f"{failed}: {str(_innermost(error)) or type(error).__name__}"
        if isinstance(error, FileNotFoundError | PermissionError) and "command" in self.config:
            lost = True
            told = f"cannot be started: {self.config['command']}: {error.strerror}"
        return AgentFailed(
            f'agent "{self.agent}": the MCP server "{self.name}" {told}',
            code="invalid_request" if lost else "server_error",
            retryable=not lost,
            hint="check `mcp.servers` of the agent" if lost else "",
        )

    def _require_variables(self) -> None:
        if missing := missing_variables({"provider": "mcp", "mcp": self.config}):
            raise AgentFailed(
                f'agent "{self.agent}": the MCP server "{self.name}" needs {missing[0][0]}, which is not set',
                code="auth_error",
                hint=f"export {missing[0][0]}=…",
            )

    def _connection(self) -> _Live:
        """The connection, opened when there is none. On the thread of the model calls."""
        with _lock:
            live = _live.get(self._key)
            # One of another loop is of a thread that has ended, or of the process we were forked from.
            if live is None or live.loop is not asyncio.get_running_loop():
                live = _live[self._key] = _Live(self._key, self.config)
                live.begin()
            return live


class _Live:
    """An open connection, and the task that holds it open."""

    def __init__(self, key: str, config: Mapping[str, Any]) -> None:
        self._key, self._config = key, config
        self.loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self.ready: asyncio.Future[Any] = self.loop.create_future()

    def begin(self) -> None:
        # Through the thread, which knows then that there is something to put away in the end.
        llm_thread.current_thread().submit(self._hold())
        atexit.register(llm_thread.close)

    def end(self) -> None:
        """Let it close; the next call opens another. From any thread."""
        with _lock:
            if _live.get(self._key) is self:
                del _live[self._key]
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the connection with it
            self.loop.call_soon_threadsafe(self._over.set)

    async def _hold(self) -> None:
        try:
            async with _opened(self._config) as client:
                self.ready.set_result(client)
                try:
                    await self._over.wait()
                except asyncio.CancelledError:
                    # The thread ends. Leaving in good order lets the server's program end by itself.
                    task = asyncio.current_task()
                    assert task is not None
                    task.uncancel()
        except BaseException as error:
            if not self.ready.done():
                self.ready.set_exception(_failure_to_open(error))
                self.ready.exception()  # perhaps nobody waits for it any more
            elif not isinstance(error, Exception | asyncio.CancelledError):
                raise
        finally:
            self.end()


@contextlib.asynccontextmanager
async def _opened(config: Mapping[str, Any]) -> AsyncIterator[Any]:
    """A client of the server, past the greeting."""
    from mcp import Client, StdioServerParameters
    from mcp.client.stdio import stdio_client
    from mcp.client.streamable_http import streamable_http_client

    facts = resolve_secrets(dict(config))
    seconds = facts.get("timeout")
    async with contextlib.AsyncExitStack() as stack:
        if "command" in facts:
            parameters = StdioServerParameters(
                command=str(facts["command"]),
                args=[str(a) for a in facts.get("args") or ()],
                env={str(k): str(v) for k, v in (facts.get("env") or {}).items()},
                cwd=facts.get("cwd"),
            )
            transport = stdio_client(parameters, errlog=stack.enter_context(_errors()))
        else:
            import httpx2

            # Answers may stream for long; what a whole call may take is the tool loop's to say.
            timeout = httpx2.Timeout(CONNECT_SECONDS, read=seconds or 300.0)
            headers = {str(k): str(v) for k, v in (facts.get("headers") or {}).items()}
            http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, timeout=timeout))
            transport = streamable_http_client(str(facts["server_url"]), http_client=http)
        client = Client(transport, read_timeout_seconds=seconds)
        async with asyncio.timeout(seconds or CONNECT_SECONDS) as greeting:
            async with client:
                greeting.reschedule(None)
                yield client


@contextlib.contextmanager
def _errors() -> Iterator[Any]:
    """Where a server's program writes its complaints: the terminal, where there is one that programs can write to."""
    try:
        sys.stderr.fileno()
    except (OSError, AttributeError, ValueError):
        with open(os.devnull, "w") as nowhere:
            yield nowhere
    else:
        yield sys.stderr


def _release(key: str) -> None:
    """One user less; the connection ends with the last."""
    with _lock:
        left = _users.get(key, 0) - 1
        _users[key] = left
        if left > 0:
            return
        _users.pop(key, None)
        live = _live.get(key)
    if live is not None:
        live.end()


def _is_broken(error: BaseException) -> bool:
    """Whether the connection is of no use after this."""
    from mcp import MCPError
    from mcp_types import CONNECTION_CLOSED

    return not isinstance(error, MCPError) or error.code == CONNECTION_CLOSED


def _failure_to_open(error: BaseException) -> BaseException:
    if isinstance(error, asyncio.CancelledError):
        return AgentFailed("the connection was ended by the shutdown of its thread", retryable=True)
    if isinstance(error, TimeoutError):
        return TimeoutError("it did not answer in time")
    return _innermost(error)


def _innermost(error: BaseException) -> BaseException:
    """The first real error in a group: task groups wrap what goes wrong in them."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def _text(answer: Any) -> str:
    """What a model gets to read of a result: its texts, and a word about what is not text."""
    parts = [_part(block) for block in answer.content]
    if not parts and answer.structured_content is not None:
        return json.dumps(answer.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _part(block: Any) -> str:
    kind = block.type
    if kind == "text":
        return str(block.text)
    if kind == "resource":
        text = getattr(block.resource, "text", None)
        return str(text) if text is not None else f"[resource {block.resource.uri}]"
    if kind == "resource_link":
        return f"[{block.name}: {block.uri}]"
    return f"[{kind} {block.mime_type}, {len(block.data)} characters of base64]"
