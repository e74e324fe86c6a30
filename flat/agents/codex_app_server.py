"""Codex by its app server: JSON-RPC by lines, with threads that can be started, resumed, forked and read.

    async with CodexAppServerTransport(cwd=folder) as server:
        thread = await server.thread_start(model="gpt-5.3-codex")
        turn = await server.run_turn(thread, "Read the whole repository")

Several tasks may use one server. There is no reader in the background: whoever waits for an answer reads, and hands
on what is for others. The server is a process that dies with ours.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio

from flat.agents.process import Command, Conversation, told_on_stderr
from flat.agents.protocol import AgentRequest, AgentResult, Usage, add_usage
from flat.agents.turns import session_to_resume, shorter, task_of, verdict, working_directory
from flat.errors import AgentFailed

if TYPE_CHECKING:
    from flat.agents.codex_cli import CodexCliAgent, CodexCliSettings

Listener = Callable[[str, Mapping[str, Any]], None]
"""Gets the method and the parameters of a notification."""
INSTALL = "install it with `npm install -g @openai/codex`, or set `codex_bin`"
KEPT_ITEMS = 20_000
"""Events, and items, of one turn that are kept for its metadata."""
_UNKNOWN_METHOD = -32601


@dataclass(slots=True)
class AppServerTurn:
    """What a turn came to."""

    thread_id: str
    text: str | None = None
    failure: str | None = None
    ended: bool = False
    items: list[Mapping[str, Any]] = field(default_factory=list)
    events: list[Mapping[str, Any]] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    on_text: Callable[[str], None] | None = None
    watch: Callable[[Mapping[str, Any]], None] | None = None

    def hear(self, method: str, params: Mapping[str, Any]) -> None:
        """Take in a notification, if it is about this thread."""
        if params.get("threadId") != self.thread_id:
            return
        if len(self.events) < KEPT_ITEMS:
            self.events.append({"type": method, **params})
        if self.watch is not None:
            self.watch({"type": method, **params})
        if method == "item/completed":
            self._item(_mapping(params.get("item")))
        elif method == "thread/tokenUsage/updated":
            self.usage = add_usage(self.usage, _usage(_mapping(params.get("tokenUsage"))))
        elif method == "turn/completed":
            turn = _mapping(params.get("turn"))
            self.ended = True
            if turn.get("status") not in (None, "completed"):
                self.failure = _message(turn.get("error"), f"the turn was {turn.get('status')}")
        elif method == "turn/failed":
            self.ended, self.failure = True, _message(params.get("error"), "the turn failed")

    def _item(self, item: Mapping[str, Any]) -> None:
        if len(self.items) < KEPT_ITEMS:
            self.items.append(item)
        if item.get("type") in ("agentMessage", "agent_message"):
            self.text = str(item.get("text") or "")
            if self.on_text is not None:
                self.on_text(self.text)


class CodexAppServerTransport:
    """A running `codex app-server`."""

    def __init__(
        self, codex_bin: str = "codex", cwd: str | Path | None = None, session_source: str = "exec"
    ) -> None:
        arguments = [codex_bin, "app-server", "--listen", "stdio://", "--session-source", session_source]
        self.cwd = Path.cwd() if cwd is None else Path(cwd)
        self._talk = Conversation(Command(arguments=arguments, directory=self.cwd, install=INSTALL))
        self._listeners: list[Listener] = []
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._waiting: set[int] = set()
        self._asked = 0
        self._ended = False
        self._reading: anyio.Lock | None = None

    async def __aenter__(self) -> CodexAppServerTransport:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def is_running(self) -> bool:
        return self._talk.running and not self._ended

    async def start(self) -> None:
        """Start the server and greet it; nothing happens if it runs already. Raises `AgentFailed`."""
        if self.is_running:
            return
        self._reading, self._ended = anyio.Lock(), False
        await self._talk.start()
        await self.request("initialize", {"clientInfo": {"name": "flat", "title": "flat", "version": "0"}})
        await self._send({"method": "initialized"})

    async def stop(self) -> None:
        """End the server and wait until it is gone."""
        await self._talk.stop()

    def add_listener(self, listener: Listener) -> None:
        """Have notifications told, of all threads."""
        self._listeners.append(listener)

    def remove_listener(self, listener: Listener) -> None:
        """Have them told no more."""
        with contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    async def request(self, method: str, params: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Ask the server. Raises `AgentFailed` when it refuses, or ends."""
        self._asked += 1
        number = self._asked
        self._waiting.add(number)
        try:
            await self._send({"id": number, "method": method, "params": dict(params or {})})
            await self._until(lambda: number in self._answers)
        finally:
            self._waiting.discard(number)
            answer = self._answers.pop(number, {})
        if "error" in answer:
            told = _message(answer["error"], "it was refused")
            raise AgentFailed(f"{method}: {told}", type="CodexCliTurnError", **verdict(told))
        return _mapping(answer.get("result"))

    # -- threads and turns ---------------------------------------------------------------------------

    async def thread_start(self, **params: Any) -> str:
        """Begin a thread; gives its id."""
        return _thread_id(await self.request("thread/start", {"cwd": str(self.cwd), **params}))

    async def thread_fork(self, thread_id: str, **params: Any) -> str:
        """Copy a thread, which stays as it is; gives the id of the copy."""
        return _thread_id(await self.request("thread/fork", {"threadId": thread_id, **params}))

    async def thread_resume(self, thread_id: str, **params: Any) -> str:
        """Take a thread up."""
        return _thread_id(await self.request("thread/resume", {"threadId": thread_id, **params})) or thread_id

    async def thread_read(self, thread_id: str) -> Mapping[str, Any]:
        """What a thread holds."""
        return await self.request("thread/read", {"threadId": thread_id})

    async def turn_start(self, thread_id: str, prompt: str, **params: Any) -> Mapping[str, Any]:
        """Begin a turn; its end comes as a notification."""
        given = {"threadId": thread_id, "input": [{"type": "text", "text": prompt}], **params}
        return await self.request("turn/start", given)

    async def turn_interrupt(self, thread_id: str, turn_id: str) -> None:
        """Stop a turn."""
        await self.request("turn/interrupt", {"threadId": thread_id, "turnId": turn_id})

    async def run_turn(
        self,
        thread_id: str,
        prompt: str,
        *,
        on_text: Callable[[str], None] | None = None,
        on_event: Callable[[Mapping[str, Any]], None] | None = None,
        **params: Any,
    ) -> AppServerTurn:
        """One turn, from its prompt to its end."""
        turn = AppServerTurn(thread_id, on_text=on_text, watch=on_event)
        self.add_listener(turn.hear)
        try:
            await self.turn_start(thread_id, prompt, **params)
            await self._until(lambda: turn.ended)
        finally:
            self.remove_listener(turn.hear)
        return turn

    # -- lines ---------------------------------------------------------------------------------------

    async def _send(self, message: Mapping[str, Any]) -> None:
        await self._talk.send(json.dumps(message).encode())

    async def _until(self, done: Callable[[], bool]) -> None:
        """Read until something has come, taking turns with others who read."""
        assert self._reading is not None
        while not done():
            async with self._reading:
                if done():
                    return
                lines = None if self._ended else await self._talk.hear()
                if lines is None:
                    self._ended = True
                    told = f"the app server of Codex has ended{told_on_stderr(self._talk.stderr)}"
                    raise AgentFailed(told, type="CodexCliProcessError", **verdict(told))
                for line in lines:
                    await self._take(line)

    async def _take(self, line: bytes) -> None:
        try:
            message = json.loads(line)
        except ValueError:
            return  # logs and the like
        if not isinstance(message, Mapping):
            return
        method, number = message.get("method"), message.get("id")
        if method is None:
            if number in self._waiting:
                self._answers[number] = message
        elif number is not None:
            # It asks for a permission that nobody is there to give.
            refused = {"code": _UNKNOWN_METHOD, "message": f"{method} is not answered here"}
            denied = {"result": {"decision": "decline"}} if "pproval" in method else {"error": refused}
            await self._send({"id": number, **denied})
        else:
            for listener in list(self._listeners):
                listener(str(method), _mapping(message.get("params")))


async def take_turn(
    agent: CodexCliAgent, request: AgentRequest, *, fork: bool = False, model: str | None = None
) -> AgentResult:
    """Answer a request by an app server that is started for it. Threads are kept by Codex and outlive it."""
    task, resumed = task_of(request, agent.fail), session_to_resume(request, agent.fail)
    settings = agent.now()
    folder = working_directory(settings.working_dir, request, agent.directory)
    seconds = shorter(settings.timeout, request.timeout)
    turn: AppServerTurn | None = None
    try:
        with anyio.move_on_after(math.inf if seconds is None else seconds) as limit:
            async with CodexAppServerTransport(settings.codex_bin, folder, settings.session_source) as server:
                thread = await _thread(server, settings, resumed, fork, model)
                effort = {"effort": settings.reasoning_effort} if settings.reasoning_effort else {}
                turn = await server.run_turn(
                    thread, task, on_text=request.on_token, on_event=request.on_event, **effort
                )
    except AgentFailed as error:
        raise agent.fail.named(error) from None
    if limit.cancelled_caught or turn is None:
        raise agent.fail.timeout(f"not done within {seconds:g} s", usage=Usage(api_calls=1))
    if turn.failure is not None:
        raise agent.fail(turn.failure, type="CodexCliTurnError", usage=turn.usage, **verdict(turn.failure))
    return AgentResult(
        output={"result": turn.text, "thread_id": turn.thread_id},
        content=turn.text,
        usage=turn.usage if turn.usage.api_calls else Usage(api_calls=1),
        finish_reason="stop",
        rendered_user_prompt=task,
        metadata={"thread_id": turn.thread_id, "stream_events": turn.events, "items": turn.items},
    )


async def _thread(
    server: CodexAppServerTransport,
    settings: CodexCliSettings,
    resumed: str | None,
    fork: bool,
    model: str | None,
) -> str:
    free = settings.dangerously_bypass_approvals_and_sandbox
    params = {
        "model": model or settings.model,
        "sandbox": "danger-full-access" if free else settings.sandbox,
        "approvalPolicy": "never" if free else settings.approval_policy,
        **({"config": dict(settings.config_overrides)} if settings.config_overrides else {}),
    }
    if resumed is None:
        return await server.thread_start(**params)
    return await (server.thread_fork if fork else server.thread_resume)(resumed, **params)


def _thread_id(result: Mapping[str, Any]) -> str:
    return str(_mapping(result.get("thread")).get("id") or result.get("threadId") or "")


def _usage(told: Mapping[str, Any]) -> Usage:
    last = _mapping(told.get("last")) or told

    def count(key: str) -> int:
        value = last.get(key)
        return int(value) if isinstance(value, int | float) else 0

    return Usage(
        input_tokens=count("inputTokens"),
        output_tokens=count("outputTokens"),
        cache_read_tokens=count("cachedInputTokens"),
        api_calls=1,
    )


def _message(error: Any, otherwise: str) -> str:
    return str(_mapping(error).get("message") or (error if isinstance(error, str) else "") or otherwise)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
