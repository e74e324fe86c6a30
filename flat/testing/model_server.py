"""A scripted model: an OpenAI-compatible HTTP server on loopback that answers from a script.

    with ScriptedModel(["Hello", Reply(status=429, retry_after=2), {"json": {"city": "Paris"}}]) as model:
        client = openai.OpenAI(base_url=model.base_url, api_key="any")

It speaks `POST /v1/chat/completions`, streamed or not, and `GET /v1/models`, over real sockets, in a thread
of its own. It is a test double and a zero-key stand-in: nothing in here is a language model, and whoever
shows its answers should say so.

A script is a list of replies, given one per call; or a function of the request body (plain or async, and
quick: it runs on the server's loop); or a mapping with rules, which can also be written as a YAML file:

    model: scripted-demo            # the name that answers carry
    rules:                          # the first that matches answers
      - match: 'capital of (\\w+)'   # a regular expression, searched in the last user message
        system: geographer          # and, optionally, in the system message
        model: mini                 # and in the name of the model asked for
        reply: 'I know $1 well.'    # $1, $name: groups of `match`
      - match: Draft
        replies: [bad, better]      # one per matching call; `repeat: true` starts over
      - system: coder
        turns:                      # by how often the model has spoken in the conversation
          - {tool_calls: [{name: read, arguments: {path: a.py}}]}
          - It is fine as it is.
      - match: Classify
        reply: {json: {label: spam}, usage: {prompt_tokens: 9, completion_tokens: 3}}
      - continue:                   # answer the next character of a text named in the prompt
          target: 'Target: (.*)'    # what shall be built
          built: 'Built so far: (.*)'   # how much is there, exact to the last blank
          step: 1                   # characters per answer
          done: ''                  # the answer when nothing is left
    replies: [hi]                   # for calls that no rule matches, in order; `repeat: true` starts over
    faults:                         # come before everything, by number of the call (from 1)
      - {every: 4, text: '?'}
      - {at: [6], status: 429, retry_after: 0.1}
      - {every: 9, delay: 0.2, text: ''}

`^`, `$` and `.` are by line. A reply is text, or a mapping of the fields of `Reply` (`json:` writes the text
as data). A call for which nothing is left is answered with status 400 and a message that says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from flat.testing.model_script import Answer, Reply, ReplyLike, Script, as_reply

__all__ = ["ModelRequest", "Reply", "Script", "ScriptedModel"]

_STALL_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One request as the server saw it. Header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


class _ClientLeft(Exception):
    """The client closed the connection before it had its answer."""


class _Hangup(Exception):
    """The script wants the connection closed."""


class ScriptedModel:
    """The server. Use as a context manager, or call `start` and `stop`."""

    def __init__(
        self,
        script: Script | Sequence[ReplyLike] | Mapping[str, Any] | Answer,
        *,
        keep_requests: int = 10_000,
        remember: bool = False,
    ) -> None:
        """With `remember`, a call that is made again with its idempotency key is given the same answer, and does
        not move the script on."""
        self._remembered: dict[str, Reply] | None = {} if remember else None
        self.script = script if isinstance(script, Script) else Script(script)
        self.requests: deque[ModelRequest] = deque(maxlen=keep_requests)
        """The chat requests seen, oldest first."""
        self.calls = 0
        self.in_flight = 0
        self.peak = 0
        """The most chat requests that were in flight at once."""
        self.aborts = 0
        """How many chat requests the client gave up before it had the whole answer."""
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopping: asyncio.Event | None = None
        self._port = 0

    @classmethod
    def from_file(cls, path: str | Path) -> ScriptedModel:
        """A server for a script file."""
        return cls(Script.from_file(path))

    @property
    def base_url(self) -> str:
        """Where clients find it, with the `/v1`."""
        if not self._port:
            raise RuntimeError(
                "the scripted model is not running: use it as a context manager, or call start()"
            )
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> ScriptedModel:
        """Listen on a free loopback port."""
        if self._thread is not None:
            raise RuntimeError("the scripted model is running already")
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(ready)), name="scripted-model", daemon=True
        )
        self._thread.start()
        if not ready.wait(10) or not self._port:
            raise RuntimeError("the scripted model could not listen on 127.0.0.1")
        return self

    def stop(self) -> None:
        """Close all connections and end the thread."""
        if self._thread is None or self._loop is None or self._stopping is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)
        self._thread, self._port = None, 0

    def __enter__(self) -> ScriptedModel:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def wait_until(self, condition: Callable[[ScriptedModel], bool], timeout: float = 5.0) -> bool:
        """Block until the condition on the counters holds; False when it does not within the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: condition(self), timeout)

    async def _serve(self, ready: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        connections: set[asyncio.Task[None]] = set()

        def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.create_task(self._connection(reader, writer))
            connections.add(task)
            task.add_done_callback(connections.discard)

        try:
            server = await asyncio.start_server(accept, "127.0.0.1", 0, backlog=4096)
            self._port = server.sockets[0].getsockname()[1]
        finally:
            ready.set()
        await self._stopping.wait()
        server.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (request := await _read_request(reader)) is not None:
                await self._respond(request, _Wire(reader, writer))
        except (OSError, EOFError, _Hangup):
            pass  # the connection is gone, on either side's wish: closing it is all there is to do
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _respond(self, request: ModelRequest, wire: _Wire) -> None:
        if request.method == "POST" and request.path.endswith("/chat/completions"):
            await self._chat(request, wire)
        elif request.method == "GET" and request.path.endswith("/models"):
            await wire.send_json(
                200, {"object": "list", "data": [{"id": self.script.model, "object": "model"}]}
            )
        else:
            await wire.send_json(
                404, _error(404, f"the scripted model has no {request.method} {request.path}")
            )

    async def _chat(self, request: ModelRequest, wire: _Wire) -> None:
        self._count(calls=1, in_flight=1)
        self.requests.append(request)
        try:
            await self._answer(request, wire)
        except (_ClientLeft, ConnectionError):
            self._count(aborts=1)
            raise _Hangup from None
        finally:
            self._count(in_flight=-1)

    def _count(self, calls: int = 0, in_flight: int = 0, aborts: int = 0) -> None:
        with self._changed:
            self.calls += calls
            self.in_flight += in_flight
            self.aborts += aborts
            self.peak = max(self.peak, self.in_flight)
            self._changed.notify_all()

    async def _answer(self, request: ModelRequest, wire: _Wire) -> None:
        body, key = request.body, request.headers.get("idempotency-key", "")
        if not isinstance(body, Mapping):
            await wire.send_json(400, _error(400, "the request body is not a JSON object"))
            return
        try:
            known = self._remembered.get(key) if self._remembered is not None and key else None
            found = self.script.answer(body) if known is None else known
            reply = as_reply(await found if inspect.isawaitable(found) else found)
            if self._remembered is not None and key:
                self._remembered[key] = reply
        except (
            Exception
        ) as error:  # a script is the user's code: its failure is an answer, not the server's end
            reply = Reply(status=500, error=f"the script raised {type(error).__name__}: {error}")
        streamed = bool(body.get("stream")) and reply.status < 400 and reply.body is None
        if reply.delay:
            await wire.wait(reply.delay)
        if reply.drop:
            raise _Hangup
        if streamed:
            await self._stream(reply, body, wire)
        else:
            await self._send(reply, body, wire)

    async def _send(self, reply: Reply, body: Mapping[str, Any], wire: _Wire) -> None:
        if reply.stall_after is not None:
            await wire.wait(_STALL_SECONDS)
        headers = _headers(reply)
        if reply.body is not None:
            data = reply.body.encode()
        elif reply.status >= 400:
            data = json.dumps(_error(reply.status, reply.error)).encode()
        else:
            data = json.dumps(_completion(reply, body, self.script.model)).encode()
        await wire.send(reply.status, data, headers, cut=reply.cut_after is not None)

    async def _stream(self, reply: Reply, body: Mapping[str, Any], wire: _Wire) -> None:
        await wire.start_stream(_headers(reply))
        for number, delta in enumerate(_deltas(reply)):
            sent = number - 1  # the first delta carries the role only
            if sent == reply.cut_after:
                raise _Hangup
            if sent == reply.stall_after:
                await wire.wait(_STALL_SECONDS)
            if sent == reply.error_after:
                await wire.event(
                    json.dumps({"error": {"message": "the script ends the stream", "code": "500"}})
                )
                raise _Hangup
            await wire.event(json.dumps(_chunk(body, self.script.model, delta)))
            if reply.chunk_delay:
                await wire.wait(reply.chunk_delay)
        await wire.event(json.dumps(_chunk(body, self.script.model, {}, _finish(reply))))
        if (body.get("stream_options") or {}).get("include_usage") and reply.usage:
            last = {**_chunk(body, self.script.model, {}), "choices": [], "usage": _usage(reply, body)}
            await wire.event(json.dumps(last))
        await wire.event("[DONE]")
        await wire.end_stream()


class _Wire:
    """One connection, as far as an answer needs it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def wait(self, seconds: float) -> None:
        """Sleep; raises `_ClientLeft` when the client goes first."""
        # Clients do not pipeline, so whatever there is to read in the middle of an answer is the end.
        try:
            async with asyncio.timeout(seconds):
                await self._reader.read(1)
        except TimeoutError:
            return
        raise _ClientLeft

    async def send_json(self, status: int, body: Any) -> None:
        await self.send(status, json.dumps(body).encode(), {})

    async def send(self, status: int, data: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self._head(status, {"content-type": "application/json", "content-length": str(len(data)), **headers})
        self._writer.write(data[: len(data) // 2] if cut else data)
        await self._writer.drain()
        if cut:
            raise _Hangup

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        self._head(200, {"content-type": "text/event-stream", "transfer-encoding": "chunked", **headers})

    async def event(self, data: str) -> None:
        if self._reader.at_eof():
            raise _ClientLeft
        payload = f"data: {data}\n\n".encode()
        self._writer.write(b"%x\r\n%b\r\n" % (len(payload), payload))
        await self._writer.drain()

    async def end_stream(self) -> None:
        self._writer.write(b"0\r\n\r\n")
        await self._writer.drain()

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        try:
            reason = HTTPStatus(status).phrase
        except ValueError:
            reason = "Scripted"
        lines = [f"HTTP/1.1 {status} {reason}", *(f"{k}: {v}" for k, v in headers.items())]
        self._writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))


async def _read_request(reader: asyncio.StreamReader) -> ModelRequest | None:
    first = await reader.readline()
    if not first.strip():
        return None
    method, path, _version = first.decode("latin-1").split(" ", 2)
    headers: dict[str, str] = {}
    while line := (await reader.readline()).strip():
        name, _, value = line.decode("latin-1").partition(":")
        headers[name.strip().lower()] = value.strip()
    raw = await reader.readexactly(int(headers.get("content-length") or 0))
    try:
        body = json.loads(raw) if raw else None
    except ValueError:
        body = raw.decode("utf-8", "replace")
    return ModelRequest(method, path, headers, body)


def _headers(reply: Reply) -> dict[str, str]:
    headers = {str(k): str(v) for k, v in reply.headers.items()}
    if reply.retry_after is not None:
        headers["retry-after"] = f"{reply.retry_after:g}"
    return headers


def _error(status: int, error: str | Mapping[str, Any]) -> dict[str, Any]:
    facts = dict(error) if isinstance(error, Mapping) else {"message": error or f"scripted status {status}"}
    return {"error": {"type": "scripted_error", "param": None, "code": None, **facts}}


def _completion(reply: Reply, body: Mapping[str, Any], model: str) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": reply.text}
    if reply.tool_calls:
        message |= {"content": reply.text or None, "tool_calls": _tool_calls(reply)}
    whole: dict[str, Any] = {
        "id": "chatcmpl-scripted",
        "object": "chat.completion",
        "created": 0,
        "model": body.get("model") or model,
        "choices": [{"index": 0, "message": message, "finish_reason": _finish(reply)}],
    }
    if reply.usage:
        whole["usage"] = _usage(reply, body)
    return whole


def _chunk(
    body: Mapping[str, Any], model: str, delta: Mapping[str, Any], finish: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {
        "id": "chatcmpl-scripted",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": body.get("model") or model,
        "choices": [choice],
    }


def _deltas(reply: Reply) -> list[dict[str, Any]]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": "" if not reply.tool_calls else None}]
    deltas += [{"content": piece} for piece in reply.pieces()]
    for index, call in enumerate(_tool_calls(reply)):
        text = call["function"]["arguments"]
        middle = len(text) // 2
        head = {"name": call["function"]["name"], "arguments": text[:middle]}
        deltas.append(
            {"tool_calls": [{"index": index, "id": call["id"], "type": "function", "function": head}]}
        )
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": text[middle:]}}]})
    return deltas


def _tool_calls(reply: Reply) -> list[dict[str, Any]]:
    calls = []
    for number, call in enumerate(reply.tool_calls, 1):
        arguments = call.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        function = {"name": call["name"], "arguments": text}
        calls.append({"id": call.get("id") or f"call_{number}", "type": "function", "function": function})
    return calls


def _finish(reply: Reply) -> str:
    return reply.finish_reason or ("tool_calls" if reply.tool_calls else "stop")


def _usage(reply: Reply, body: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(reply.usage, Mapping):
        return dict(reply.usage)
    prompt = sum(len(str(m.get("content") or "").split()) for m in body.get("messages") or ())
    answer = len((reply.text or "").split()) + 5 * len(reply.tool_calls)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
