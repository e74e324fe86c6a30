"""Model calls over real HTTP through real litellm: answers, failures, deadlines, cancellation, streams."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import pytest

from flat.agents import AgentRequest, LiteLLMClient, aclose
from flat.errors import AgentFailed
from flat.testing.model_server import Reply

from .conftest import MakeAgent, ServeModel

pytestmark = pytest.mark.anyio

HELLO = AgentRequest(input={"word": "hello"})
LIMITS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-reset-requests": "6m0s",
    "x-request-id": "req_1",
    "set-cookie": "secret=1",
}
CONTEXT = {
    "message": "This model's maximum context length is 4096 tokens.",
    "code": "context_length_exceeded",
}
POLICY = {"message": "The response was filtered: content_filter policy", "code": "content_policy_violation"}
QUOTA = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
WATCHERS: tuple[Callable[[str], None] | None, ...] = (None, lambda text: None)


def ignore(text: str) -> None:
    """A watcher for whom nothing matters but that there is a stream."""


async def failure_of(agent: Any, request: AgentRequest = HELLO) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await agent.call(request)
    return caught.value


async def test_an_answer_carries_text_usage_finish_reason_and_limits(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
    model = serve([Reply("hi", usage=usage, headers=LIMITS, finish_reason="length")])
    result = await agent_on(model).call(HELLO)
    assert (result.content, result.output, result.finish_reason) == ("hi", None, "length")
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.cache_read_tokens) == (
        9,
        4,
        3,
    )
    assert (result.usage.api_calls, result.usage.cost, result.usage.cost_source) == (1, 0.0, "free")
    window = {"name": "requests", "resource": "requests", "remaining": 59, "limit": 60, "resets_in": 360}
    assert result.rate_limit == {"limited": False, "windows": [window]}
    assert result.provider_data["model"] == "tiny"
    assert result.provider_data["raw_headers"].keys() == LIMITS.keys() - {"set-cookie"}
    assert result.rendered_user_prompt == "Say hello"


@pytest.mark.parametrize(
    ("status", "error", "code", "retryable"),
    [
        (400, "bad", "invalid_request", False),
        (422, "bad", "invalid_request", False),
        (400, CONTEXT, "context_length", False),
        (400, POLICY, "content_filter", False),
        (401, "who", "auth_error", False),
        (403, "no", "auth_error", False),
        (413, "large", "invalid_request", False),
        (404, "gone", "model_unavailable", False),
        (408, "slow", "timeout", True),
        (409, "conflict", "server_error", True),
        (429, "often", "rate_limit", True),
        (429, QUOTA, "rate_limit", False),
        (500, "boom", "server_error", True),
        (502, "boom", "server_error", True),
        (503, "boom", "server_error", True),
        (504, "slow", "timeout", True),
        (529, "busy", "server_error", True),
    ],
)
async def test_an_error_status_becomes_a_code_after_one_request(
    serve: ServeModel, agent_on: MakeAgent, status: int, error: Any, code: str, retryable: bool
) -> None:
    model = serve([Reply(status=status, error=error)] * 4)
    failure = await failure_of(agent_on(model))
    assert (failure.code, failure.retryable, failure.status_code) == (code, retryable, status)
    assert model.calls == 1
    assert 'agent "tester" (openai/tiny)' in failure.message
    assert failure.message.endswith(f"(HTTP {status})") or str(status) in failure.message
    assert "litellm" not in failure.message


async def test_an_answer_that_is_not_json_is_called_that(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply(body="<html>Welcome</html>")])
    failure = await failure_of(agent_on(model))
    assert f"what {model.base_url} answered is not JSON (" in failure.message
    assert "`base_url`" in failure.hint
    assert (failure.code, failure.retryable) == ("server_error", True)


async def test_a_rate_limit_tells_when_to_come_back(serve: ServeModel, agent_on: MakeAgent) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-limit-tokens": "100"}
    failure = await failure_of(agent_on(serve([Reply(status=429, retry_after=1.5, headers=headers)])))
    window = {"name": "tokens", "resource": "tokens", "remaining": 0, "limit": 100}
    assert failure.retry_after == 1.5
    assert failure.rate_limit == {"limited": True, "retry_after": 1.5, "windows": [window]}


@pytest.mark.parametrize("reply", [Reply(drop=True), Reply("hello", cut_after=0), Reply(body="not json{")])
async def test_a_broken_answer_is_a_retryable_server_error_without_status(
    serve: ServeModel, agent_on: MakeAgent, reply: Reply
) -> None:
    model = serve([reply] * 3)
    failure = await failure_of(agent_on(model))
    assert (failure.code, failure.retryable, failure.status_code) == ("server_error", True, None)
    assert model.calls == 1


async def test_an_answer_without_choices_is_a_server_error(serve: ServeModel, agent_on: MakeAgent) -> None:
    body = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": []})
    failure = await failure_of(agent_on(serve([Reply(body=body)])))
    assert (failure.code, failure.retryable) == ("server_error", True)
    assert "choice" in failure.message


async def test_an_unreachable_host_is_named(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(["never"])
    agent, url = agent_on(model), model.base_url
    model.stop()
    failure = await failure_of(agent)
    assert (failure.code, failure.retryable, failure.status_code) == ("server_error", True, None)
    assert f"cannot reach {url}" in failure.message
    assert "Connect" in failure.message


async def test_an_unknown_provider_is_an_invalid_request_with_advice() -> None:
    failure = await failure_of_client(LiteLLMClient({"name": "nonsense"}))
    assert (failure.code, failure.retryable) == ("invalid_request", False)
    assert "provider" in failure.hint


async def failure_of_client(client: LiteLLMClient) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await client.complete([{"role": "user", "content": "x"}])
    return caught.value


@pytest.mark.parametrize(
    ("settings", "variable"),
    [
        ({"provider": "openai", "name": "gpt-x"}, "OPENAI_API_KEY"),
        ({"name": "gpt-4o"}, "OPENAI_API_KEY"),
        ({"name": "anthropic/claude-x"}, "ANTHROPIC_API_KEY"),
        ({"provider": "openai", "name": "x", "api_key": "${env:FLAT_TEST_KEY}"}, "FLAT_TEST_KEY"),
    ],
)
async def test_a_missing_key_is_told_before_any_call(settings: dict[str, Any], variable: str) -> None:
    failure = await failure_of_client(LiteLLMClient(settings, name="tester"))
    assert (failure.code, failure.retryable) == ("auth_error", False)
    assert f"{variable}" in failure.message
    assert "is not set" in failure.message
    assert variable in failure.hint


async def test_keys_come_from_the_environment_when_called_and_stay_out_of_messages(
    serve: ServeModel, agent_on: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAT_TEST_KEY", "sk-very-secret")
    model = serve([Reply(status=401, error="wrong key sk-very-secret")])
    agent = agent_on(model, settings={"api_key": "${env:FLAT_TEST_KEY}"}, system="{{ model }}")
    failure = await failure_of(agent)
    assert model.requests[0].headers["authorization"] == "Bearer sk-very-secret"
    assert "FLAT_TEST_KEY" not in str(model.requests[0].body)
    assert "sk-very-secret" not in str(failure)


async def test_the_base_url_may_come_from_the_environment(
    serve: ServeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = serve(["hi", "ho"])
    for variable in ("OPENAI_BASE_URL", "OPENAI_API_BASE"):
        monkeypatch.setenv(variable, model.base_url)
        client = LiteLLMClient({"provider": "openai", "name": "tiny"})
        result = await client.complete([{"role": "user", "content": "x"}])
        assert result.usage.cost_source == "free"
        monkeypatch.delenv(variable)
    assert model.calls == 2


async def test_settings_are_passed_on_and_own_words_are_not(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(["hi"])
    settings = {
        "temperature": 0.5, "max_tokens": 7, "seed": None, "top_p": 0.5, "backend": "litellm",
        "timeout": 30, "stream": True, "oauth": {"provider": "x"}, "whatever": 1,
    }  # fmt: skip
    await agent_on(model, settings=settings).call(HELLO)
    body = dict(model.requests[0].body)
    assert body.pop("messages")
    assert body == {
        "model": "tiny", "temperature": 0.5, "max_tokens": 7, "top_p": 0.5, "whatever": 1,
    }  # fmt: skip


async def test_the_idempotency_key_travels_as_a_header(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(["hi", "ho"])
    agent = agent_on(model)
    await agent.call(AgentRequest(input={"word": "x"}, idempotency_key="e1/0/call"))
    await agent.call(AgentRequest(input={"word": "x"}, idempotency_key="é\n"))
    keys = [r.headers["idempotency-key"] for r in model.requests]
    assert keys[0] == "e1/0/call"
    assert len(keys[1]) == 64


async def test_tools_are_sent_and_calls_decoded(serve: ServeModel, agent_on: MakeAgent) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    calls: list[dict[str, Any]] = [
        {"name": "add", "arguments": {"a": 2}},
        {"name": "add", "arguments": '{"a":'},
        {"name": "add", "arguments": ""},
    ]
    model = serve([Reply(None, tool_calls=calls)] * 2)
    agent = agent_on(model, tools=[tool], output={"n": {"type": "int"}})
    for on_token in WATCHERS:
        result = await agent.call(AgentRequest(input={"word": "x"}, on_token=on_token))
        assert result.finish_reason == "tool_use"
        assert result.content is None
        assert [c["arguments"] for c in result.tool_calls] == [{"a": 2}, {}, {}]
        assert result.tool_calls[0] == {"id": "call_1", "name": "add", "arguments": {"a": 2}}
        assert result.tool_calls[1]["invalid_arguments"] == '{"a":'
    assert model.requests[0].body["tools"] == [tool]
    assert "response_format" not in model.requests[0].body


async def test_a_request_may_take_the_tools_away(serve: ServeModel, agent_on: MakeAgent) -> None:
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    model = serve(['{"n": 1}'])
    agent = agent_on(model, tools=[tool], output={"n": {"type": "int"}})
    result = await agent.call(AgentRequest(input={"word": "x"}, tools=[]))
    assert result.output == {"n": 1}
    assert "tools" not in model.requests[0].body


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("stop", "stop"),
        ("end_turn", "stop"),
        ("length", "length"),
        ("max_tokens", "length"),
        ("tool_calls", "tool_use"),
        ("function_call", "tool_use"),
        ("content_filter", "content_filter"),
        ("something_new", "stop"),
    ],
)
async def test_finish_reasons(serve: ServeModel, agent_on: MakeAgent, raw: str, reason: str) -> None:
    assert (await agent_on(serve([Reply("x", finish_reason=raw)])).call(HELLO)).finish_reason == reason


@pytest.mark.parametrize("text", [None, ""])
async def test_empty_content_is_an_answer(serve: ServeModel, agent_on: MakeAgent, text: str | None) -> None:
    result = await agent_on(serve([Reply(text)])).call(HELLO)
    assert result.content == text
    assert result.finish_reason == "stop"


async def test_blanks_of_an_answer_are_kept(serve: ServeModel, agent_on: MakeAgent) -> None:
    assert (await agent_on(serve([" "])).call(HELLO)).content == " "


async def test_what_a_call_cost_says_where_the_number_is_from(
    serve: ServeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flat.agents.credentials.is_loopback", lambda url: False)
    billed = {"prompt_tokens": 5, "completion_tokens": 5, "cost": 0.25}
    model = serve(["hi", "hi", Reply("hi", usage=False), Reply("hi", usage=billed), "hi"])

    async def cost(name: str, **settings: Any) -> tuple[float | None, str]:
        facts = {"provider": "openai", "name": name, "base_url": model.base_url, "api_key": "k", **settings}
        usage = (await LiteLLMClient(facts).complete([{"role": "user", "content": "x"}])).usage
        return usage.cost, usage.cost_source

    assert (await cost("gpt-4o-mini"))[1] == "estimate"
    assert await cost("no-such-model") == (None, "unknown")
    assert await cost("gpt-4o-mini") == (None, "unknown")
    assert await cost("no-such-model") == (0.25, "provider")
    assert await cost("mine", input_cost_per_token=0, output_cost_per_token=0) == (0.0, "free")


async def test_the_embedded_model_is_a_provider(serve: ServeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = serve(["hi"])
    place = {"model": "openai/smollm2", "api_base": model.base_url, "api_key": "none"}
    monkeypatch.setattr("flat.agents.local.endpoint", lambda settings: place)  # in place of a download
    client = LiteLLMClient({"provider": "local"})
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    result = await client.complete([{"role": "user", "content": "x"}], response_format=schema)
    assert (client.model, result.usage.cost_source) == ("local/default", "free")
    assert model.requests[0].body["model"] == "smollm2"
    assert model.requests[0].body["response_format"] == schema


async def test_an_embedded_model_that_does_not_exist_is_unavailable() -> None:
    failure = await failure_of_client(LiteLLMClient({"provider": "local", "name": "huge"}))
    assert (failure.code, failure.retryable) == ("model_unavailable", False)
    assert '"huge"' in failure.message


async def test_a_slow_answer_runs_into_the_callers_deadline(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply("late", delay=30)] * 2)
    failure = await failure_of(agent_on(model), AgentRequest(input={"word": "x"}, timeout=0.2))
    assert (failure.code, failure.retryable, failure.status_code) == ("timeout", True, None)
    assert "within 0.2 s" in failure.message
    failure = await failure_of(agent_on(model, settings={"timeout": 0.3}))
    assert "within 0.3 s" in failure.message
    assert await anyio.to_thread.run_sync(model.wait_until, lambda m: m.aborts == 2)
    assert model.calls == 2


async def test_no_time_left_means_no_request(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(["hi"])
    failure = await failure_of(agent_on(model), AgentRequest(input={"word": "x"}, timeout=0))
    assert failure.code == "timeout"
    assert model.calls == 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_cancelling_the_caller_aborts_the_request(
    serve: ServeModel, agent_on: MakeAgent, streamed: bool
) -> None:
    words = " ".join("abcdefgh")
    model = serve([Reply(words, chunk_delay=5) if streamed else Reply("late", delay=30)])
    request = AgentRequest(input={"word": "x"}, on_token=ignore if streamed else None)
    with anyio.move_on_after(0.4) as scope:
        await agent_on(model).call(request)
    assert scope.cancelled_caught
    assert await anyio.to_thread.run_sync(model.wait_until, lambda m: m.aborts == 1 and m.in_flight == 0)


async def test_a_stream_hands_on_its_pieces_in_the_callers_thread(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    model = serve([Reply("one two three", headers=LIMITS, finish_reason="length")])
    seen: list[tuple[str, int]] = []
    request = AgentRequest(
        input={"word": "x"}, on_token=lambda text: seen.append((text, threading.get_ident()))
    )
    result = await agent_on(model).call(request)
    assert [text for text, _ in seen] == ["one ", "two ", "three"]
    assert {thread for _, thread in seen} == {threading.get_ident()}
    assert (result.content, result.finish_reason, result.usage.output_tokens) == (
        "one two three",
        "length",
        3,
    )
    assert result.rate_limit is not None
    assert result.rate_limit["windows"]
    assert model.requests[0].body["stream_options"] == {"include_usage": True}


async def test_nobody_watching_means_no_stream(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(["hi"])
    await agent_on(model, settings={"stream": True}).call(HELLO)
    assert "stream" not in model.requests[0].body


@pytest.mark.parametrize(
    "reply",
    [
        Reply("one two three", cut_after=2),
        Reply("one two three", cut_after=0),
        Reply("one two three", error_after=1),
        Reply(body="garbage"),
        Reply(body='data: {"choices": [{"index": 0, "delta": {"content": "o"}}]}\n\n'),
    ],
)
async def test_a_stream_that_ends_early_is_an_error(
    serve: ServeModel, agent_on: MakeAgent, reply: Reply
) -> None:
    model = serve([reply] * 2)
    failure = await failure_of(agent_on(model), AgentRequest(input={"word": "x"}, on_token=ignore))
    assert (failure.code, failure.retryable) == ("server_error", True)
    assert model.calls == 1


async def test_a_stream_that_falls_silent_runs_into_the_deadline(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    model = serve([Reply("one two three", stall_after=1)])
    request = AgentRequest(input={"word": "x"}, on_token=ignore, timeout=0.3)
    assert (await failure_of(agent_on(model), request)).code == "timeout"
    assert await anyio.to_thread.run_sync(model.wait_until, lambda m: m.aborts == 1)


async def test_an_error_status_of_a_stream_is_classified_too(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply(status=429, retry_after=3)])
    failure = await failure_of(agent_on(model), AgentRequest(input={"word": "x"}, on_token=ignore))
    assert (failure.code, failure.retry_after, model.calls) == ("rate_limit", 3, 1)


async def test_an_error_of_the_watcher_is_the_callers(serve: ServeModel, agent_on: MakeAgent) -> None:
    def watch(text: str) -> None:
        raise LookupError(text)

    model = serve([Reply("one two three", chunk_delay=0.05)])
    with pytest.raises(LookupError, match="one"):
        await agent_on(model).call(AgentRequest(input={"word": "x"}, on_token=watch))


async def test_a_hundred_calls_run_at_once(serve: ServeModel, agent_on: MakeAgent) -> None:
    async def answer(body: Any) -> Reply:
        return Reply(body["messages"][-1]["content"], delay=0.3)

    model = serve(answer)
    agent = agent_on(model)
    found: dict[int, str | None] = {}

    async def one(number: int) -> None:
        found[number] = (await agent.call(AgentRequest(input={"word": str(number)}))).content

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(one, number)
    assert found == {n: f"Say {n}" for n in range(100)}
    assert model.peak > 50


async def test_calls_work_again_after_closing(serve: ServeModel, agent_on: MakeAgent) -> None:
    agent = agent_on(serve(["one", "two"]))
    assert (await agent.call(HELLO)).content == "one"
    await aclose()
    assert (await agent.call(HELLO)).content == "two"


async def test_closing_ends_the_calls_that_run(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply("late", delay=30)])
    agent = agent_on(model)

    async def ended() -> None:
        assert "shutdown" in (await failure_of(agent)).message

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ended)
        await anyio.to_thread.run_sync(model.wait_until, lambda m: m.in_flight == 1)
        await aclose()


def call_blocking(agent: Any) -> str:
    async def call() -> str:
        return (await agent.call(HELLO)).content or ""

    return anyio.run(call)


def test_blocking_callers_in_many_threads_each_with_a_loop_of_their_own(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    agent = agent_on(serve(lambda body: "hi"))
    answers: list[str] = []
    threads = [threading.Thread(target=lambda: answers.append(call_blocking(agent))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == ["hi"] * 8
