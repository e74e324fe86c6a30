"""`backend: codex`, `backend: copilot`, and tokens from commands and functions."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest

from flat.agents import AgentRequest, build_agent, missing_environment
from flat.agents.codex import CodexAuthError, CodexClient, CodexClientError, CodexHTTPError
from flat.agents.copilot import CopilotClient, CopilotClientError
from flat.agents.subscription import SubscriptionClient
from flat.errors import AgentFailed, SpecError
from flat.testing.model_server import Reply

from .conftest import MakeAgent, ServeModel

pytestmark = pytest.mark.anyio

IMAGE = {"type": "image_url", "image_url": {"url": "data:x"}}
CALLED = {"id": "c" * 70, "function": {"name": "f", "arguments": "{}"}}
MESSAGES = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": [{"type": "text", "text": "look"}, IMAGE]},
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "c" * 70, "content": "done"},
    {"role": "user", "content": "and now?"},
]
TOOL = {"type": "function", "function": {"name": "f", "description": "F", "parameters": {"type": "object"}}}
CACHED = {"input_tokens_details": {"cached_tokens": 4}}
COMPLETED = {
    "type": "response.completed",
    "response": {
        "status": "completed",
        "usage": {"input_tokens": 9, "output_tokens": 2, "total_tokens": 11, **CACHED},
    },
}


def sse(*events: Any) -> bytes:
    return "".join(f"event: x\ndata: {json.dumps(e)}\n\n" for e in events).encode() + b"data: [DONE]\n\n"


def delta(text: str) -> dict[str, Any]:
    return {"type": "response.output_text.delta", "delta": text}


class Server:
    """Answers in turn; keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.transport = httpx.MockTransport(self.handle)

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, tuple):
            return httpx.Response(answer[0], json=answer[1], headers=answer[2] if len(answer) > 2 else {})
        return (
            httpx.Response(200, content=answer)
            if isinstance(answer, bytes)
            else httpx.Response(200, json=answer)
        )

    def body(self, number: int = -1) -> Any:
        return json.loads(self.requests[number].content)


class Waits(list[float]):
    """Waits for no time, and keeps for how long."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def codex(server: Server, **settings: Any) -> CodexClient:
    return CodexClient({"api_key": "k", "name": "m", **settings}, transport=server.transport)


async def ask(client: Any, **params: Any) -> Any:
    return await client.call({"model": "openai-codex/gpt-x", "messages": MESSAGES, **params})


async def test_a_request_of_the_responses_api() -> None:
    server = Server(sse(delta("a "), delta("dot"), COMPLETED))
    client = codex(server, headers={"X-Team": "a"}, reasoning_effort="low", temperature=0.5, max_tokens=5)
    fmt = {"type": "json_schema", "json_schema": {"name": "n", "schema": {}, "strict": True}}
    seen: list[str] = []
    result = await ask(
        client, tools=[TOOL], session_id="s1", reasoning_effort="low", temperature=0.5, max_tokens=5,
        response_format=fmt, on_token=seen.append,
    )  # fmt: skip
    body = server.body()
    short = body["input"][2]["call_id"]
    assert (len(short), short[:48]) == (64, "c" * 47 + "_")
    image = {"type": "input_image", "image_url": "data:x"}
    assert body == {
        "model": "gpt-x", "store": False, "stream": True, "instructions": "S",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "look"}, image]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": ""}]},
            {"type": "function_call", "call_id": short, "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": short, "output": "done"},
            {"role": "user", "content": [{"type": "input_text", "text": "and now?"}]},
        ],
        "text": {"verbosity": "medium", "format": {"type": "json_schema", **fmt["json_schema"]}},
        "include": ["reasoning.encrypted_content"], "tool_choice": "auto", "parallel_tool_calls": True,
        "prompt_cache_key": "s1", "temperature": 0.5, "reasoning": {"effort": "low"},
        "tools": [{"type": "function", "name": "f", "description": "F", "parameters": {"type": "object"}}],
    }  # fmt: skip
    headers = server.requests[0].headers
    assert (headers["authorization"], headers["session_id"], headers["x-team"]) == ("Bearer k", "s1", "a")
    assert headers["originator"] == "flat"
    assert seen == ["a ", "dot"]
    assert (result.content, result.finish_reason, result.status) == ("a dot", "stop", "completed")
    assert (result.usage.input_tokens, result.usage.total_tokens, result.usage.cached_tokens) == (9, 11, 4)
    assert "Bearer" not in str(result.request_meta)


@pytest.mark.parametrize(
    ("base", "url"),
    [
        (None, "https://chatgpt.com/backend-api/codex/responses"),
        ("https://x/codex", "https://x/codex/responses"),
        ("https://x/codex/responses/", "https://x/codex/responses"),
        ("https://x/api", "https://x/api/codex/responses"),
    ],
)
async def test_where_codex_is_asked(base: str | None, url: str) -> None:
    server = Server(sse(COMPLETED))
    await ask(codex(server, base_url=base))
    assert str(server.requests[0].url) == url


def item(kind: str, event: str = "done", **facts: Any) -> dict[str, Any]:
    return {"type": f"response.output_item.{event}", "item": {"type": kind, **facts}}


def more_arguments(text: str) -> dict[str, Any]:
    return {"type": "response.function_call_arguments.delta", "item_id": "i", "delta": text}


@pytest.mark.parametrize(
    ("events", "content", "calls", "finish"),
    [
        ([item("message", content=[{"type": "output_text", "text": "whole"}])], "whole", [], "stop"),
        (
            [item("function_call", id="i", call_id="c", name="f", arguments="{}")],
            "",
            [("c", "f", "{}")],
            "tool_calls",
        ),
        (
            [
                item("function_call", "added", id="i", call_id="c", name="f"),
                more_arguments('{"a"'),
                more_arguments(": 1}"),
            ],
            "",
            [("c", "f", '{"a": 1}')],
            "tool_calls",
        ),
        ([{"type": "response.incomplete", "response": {"status": "incomplete"}}], "", [], "length"),
    ],
)
async def test_answers_are_put_together_from_events(
    events: list[Any], content: str, calls: list[Any], finish: str
) -> None:
    ending = [] if finish == "length" else [COMPLETED]
    result = await ask(codex(Server(sse(*events, *ending))))
    assert (result.content, result.finish_reason) == (content, finish)
    assert [(c.id, c.name, c.arguments_json) for c in result.tool_calls] == calls


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (sse({"type": "error", "message": "boom"}), "boom"),
        (sse({"type": "response.failed", "response": {"error": {"message": "bang"}}}), "bang"),
        (sse(delta("half")), "before the answer was complete"),
        (b"data: {oops\n\n", "no JSON"),
    ],
)
async def test_a_stream_that_breaks_is_an_error(answer: bytes, part: str) -> None:
    with pytest.raises(CodexClientError, match=part):
        await ask(codex(Server(answer)))


async def test_retries_wait_longer_each_time() -> None:
    server = Server((429, {}), httpx.ConnectError("refused"), (503, {}), sse(COMPLETED))
    client, waits = codex(server), Waits()
    client.sleep = waits
    await ask(client)
    assert (waits, len(server.requests)) == ([1, 2, 4], 4)
    with pytest.raises(CodexHTTPError) as caught:
        await ask(codex(Server((400, {"error": {"message": "bad"}}))))
    assert (caught.value.status_code, str(caught.value)) == (400, "bad")
    server = Server(*[(500, {}, {"retry-after": "3"})] * 3)
    client = codex(server, oauth={"max_retries": 1})
    client.sleep = waits
    with pytest.raises(CodexHTTPError):
        await ask(client)
    assert len(server.requests) == 2


async def test_a_refused_token_is_fetched_anew_once() -> None:
    tokens = iter(["old", "new", "newer"])
    server = Server((401, {}), sse(COMPLETED))
    await ask(CodexClient({"token": lambda: next(tokens)}, transport=server.transport))
    assert [r.headers["authorization"] for r in server.requests] == ["Bearer old", "Bearer new"]
    server = Server((401, {}), (401, {}))
    with pytest.raises(CodexHTTPError):
        await ask(CodexClient({"token": lambda: next(tokens, "last")}, transport=server.transport))
    assert len(server.requests) == 2


async def test_a_credential_file_is_read_and_never_written(tmp_path: Path) -> None:
    facts = json.dumps({"https://api.openai.com/auth": {"chatgpt_account_id": "a1"}})
    claims = base64.urlsafe_b64encode(facts.encode())
    token = f"h.{claims.decode().rstrip('=')}.s"
    file, soon = tmp_path / "auth.json", (time.time() + 60) * 1000
    file.write_text(json.dumps({"openai-codex": {"type": "oauth", "access": token, "expires": soon}}))
    server = Server(sse(COMPLETED))
    client = CodexClient(
        {"oauth": {"auth_file": "auth.json"}}, config_dir=tmp_path, transport=server.transport
    )
    await ask(client)
    assert server.requests[0].headers["chatgpt-account-id"] == "a1"
    file.write_text(json.dumps({"openai-codex": {"access": token, "expires": 1}}))
    with pytest.raises(CodexAuthError, match="has expired"):
        await ask(client)
    for text in ("{}", "[", '{"openai-codex": {}}'):
        file.write_text(text)
        with pytest.raises(CodexAuthError, match="token_command"):
            await ask(client)


def copilot_answer(**message: Any) -> dict[str, Any]:
    return {
        "choices": [{"message": {"content": "hi", **message}, "finish_reason": None}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 1},
    }


async def test_a_request_of_chat_completions() -> None:
    server = Server(copilot_answer(), copilot_answer())
    client = CopilotClient({"api_key": "tid=1;proxy-ep=proxy.biz.example"}, transport=server.transport)
    result = await ask(client, tools=[TOOL], max_tokens=5, seed=None, top_k=3)
    assert str(server.requests[0].url) == "https://api.biz.example/chat/completions"
    assert server.body() == {
        "model": "gpt-x",
        "messages": MESSAGES,
        "stream": False,
        "tools": [TOOL],
        "max_tokens": 5,
    }
    headers = server.requests[0].headers
    assert (headers["x-initiator"], headers["copilot-vision-request"]) == ("user", "true")
    assert not {"editor-version", "copilot-integration-id"} & headers.keys()
    assert (result.content, result.finish_reason, result.usage.total_tokens) == ("hi", "stop", 4)
    await client.call({"model": "m", "messages": MESSAGES[3:4]})
    headers = server.requests[1].headers
    assert (headers["x-initiator"], headers.get("copilot-vision-request")) == ("agent", None)
    with pytest.raises(CopilotClientError, match="no chat completion"):
        await ask(CopilotClient({"api_key": "k"}, transport=Server({}).transport))


def agent_with(server: Server, backend: str, **settings: Any) -> Any:
    config = {"name": "p/m", "backend": backend, "api_key": "k", **settings}
    agent = build_agent({"model": config, "user": "U", "output": {"n": {"type": "int"}}}, name="a")
    agent.client = SubscriptionClient(config, name="a", transport=server.transport)
    return agent


async def test_agents_on_both_backends() -> None:
    call = {"id": "1", "function": {"name": "f", "arguments": '{"a": 1}'}}
    server = Server(sse(delta('{"n": 1}'), COMPLETED))
    result = await agent_with(server, "codex").call(AgentRequest(session_id="s", idempotency_key="e/1"))
    assert (result.output, result.usage.cost_source, result.usage.cache_read_tokens) == ({"n": 1}, "free", 4)
    assert (server.body()["prompt_cache_key"], server.body()["model"]) == ("s", "m")
    assert server.body()["text"]["format"]["name"] == "a"
    assert len(server.requests[0].headers["idempotency-key"]) == 64
    server = Server(copilot_answer(content=None, tool_calls=[call]))
    result = await agent_with(server, "copilot").call(AgentRequest(tools=[TOOL]))
    assert (result.finish_reason, result.tool_calls) == (
        "tool_use",
        ({"id": "1", "name": "f", "arguments": {"a": 1}},),
    )


@pytest.mark.parametrize(
    ("answer", "code", "retryable"),
    [
        ((429, {"error": {"message": "slow"}}, {"retry-after": "7"}), "rate_limit", True),
        ((401, {}), "auth_error", False),
        ((503, {}), "server_error", True),
        (httpx.ConnectError("refused"), "server_error", True),
        (sse(delta("x")), "server_error", True),
    ],
)
async def test_failures_have_the_codes_of_all_agents_and_are_not_retried_here(
    answer: Any, code: str, retryable: bool
) -> None:
    server = Server(answer)
    with pytest.raises(AgentFailed) as caught:
        await agent_with(server, "codex").call(AgentRequest())
    assert (caught.value.code, caught.value.retryable, len(server.requests)) == (code, retryable, 1)
    assert caught.value.retry_after == (7 if code == "rate_limit" else None)


async def test_an_answer_that_takes_too_long() -> None:
    async def never(request: httpx.Request) -> httpx.Response:
        await anyio.Event().wait()
        raise AssertionError

    server = Server()
    server.transport = httpx.MockTransport(never)
    with pytest.raises(AgentFailed, match=r"within 0\.05 s"):
        await agent_with(server, "codex").call(AgentRequest(timeout=0.05))


# -- tokens for any provider -----------------------------------------------------------------


async def test_a_command_gives_the_key_of_any_provider(
    serve: ServeModel, agent_on: MakeAgent, tmp_path: Path
) -> None:
    count = tmp_path / "count"
    script = (
        f"import pathlib; p = pathlib.Path({str(count)!r}); p.open('a').write('x'); print(len(p.read_text()))"
    )
    model = serve(
        [Reply("a"), Reply(status=401), Reply("b"), Reply(status=401, error="no t0ken 3"), Reply(status=401)]
    )
    agent = agent_on(model, settings={"token_command": [sys.executable, "-c", script]}, system="{{ model }}")
    for _ in range(2):
        await agent.call(AgentRequest(input={"word": "x"}))
    with pytest.raises(AgentFailed):
        await agent.call(AgentRequest(input={"word": "x"}))
    keys = [r.headers["authorization"] for r in model.requests]
    assert keys == [f"Bearer {n}" for n in (1, 1, 2, 2, 3)]
    assert "token_command" not in str(model.requests[0].body)


async def test_a_function_gives_the_key(serve: ServeModel, agent_on: MakeAgent) -> None:
    async def token() -> str:
        return "from a function"

    model = serve(["a"])
    await agent_on(model, settings={"token": token}).call(AgentRequest(input={"word": "x"}))
    assert model.requests[0].headers["authorization"] == "Bearer from a function"


def raising() -> str:
    raise LookupError("nowhere")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"token_command": "no-such-program-here"}, "no-such-program-here"),
        ({"token_command": [sys.executable, "-c", "raise SystemExit('sorry')"]}, "exit status 1: sorry"),
        ({"token_command": [sys.executable, "-c", ""]}, "gave nothing"),
        ({"token": raising}, "LookupError: nowhere"),
    ],
)
async def test_no_token_is_an_auth_error(
    serve: ServeModel, agent_on: MakeAgent, settings: dict[str, Any], part: str
) -> None:
    model = serve(["never"])
    with pytest.raises(AgentFailed) as caught:
        await agent_on(model, settings=settings).call(AgentRequest(input={"word": "x"}))
    assert (caught.value.code, caught.value.retryable, model.calls) == ("auth_error", False, 0)
    assert part in caught.value.message


def test_a_command_is_text_or_a_list(agent_on: Callable[..., Any], serve: ServeModel) -> None:
    with pytest.raises(SpecError, match="token_command"):
        agent_on(serve(["x"]), settings={"token_command": {"a": 1}})


@pytest.mark.parametrize(
    "settings", [{"backend": "codex"}, {"token_command": "x"}, {"token": raising}, {"api_key": "k"}]
)
def test_who_brings_a_token_needs_no_variable(settings: dict[str, Any]) -> None:
    config = {"model": {"provider": "openai", "name": "gpt-x"}, "user": "u"}
    assert missing_environment(config, overrides={"api_key": None}) == [("OPENAI_API_KEY",)]
    assert missing_environment(config, overrides=settings) == []
