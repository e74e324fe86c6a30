"""Agents from config: both shapes, prompts, messages, structured output and its repair, early checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from flat.agents import AgentRequest, build_agent, check_agent, missing_environment, required_environment
from flat.errors import AgentFailed, DefinitionError, Location, SpecError, UnknownName
from flat.testing.model_server import Reply, ScriptedModel

from .conftest import MakeAgent, ServeModel

pytestmark = pytest.mark.anyio

PROFILES = {
    "spec": "flatprofiles",
    "data": {"model_profiles": {"cheap": {"provider": "openai", "name": "mini"}}},
}
SPAM = {"label": {"type": "str", "enum": ["spam", "ham"]}, "score": {"type": "float", "required": False}}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "old"},
    {"role": "assistant", "content": "answer"},
]


def sent(model: ScriptedModel, call: int = -1) -> list[Any]:
    return [(m["role"], m.get("content")) for m in model.requests[call].body["messages"]]


async def test_the_inline_shape_in_its_envelope(serve: ServeModel) -> None:
    model = serve(["ok"])
    config = {
        "spec": "flatagent",
        "spec_version": "2.5.0",
        "data": {
            "name": "tagger",
            "model": {"profile": "cheap", "base_url": model.base_url, "temperature": 0.2},
            "system": "You are {{ model.name }} at {{ model.temperature }}, {{ model.seed }}.",
            "user": "Ticket: {{ input.text }}",
            "instruction_suffix": "Be brief.",
        },
        "metadata": {"team": "a"},
    }
    agent = build_agent(config, catalogue=PROFILES)
    result = await agent.call(AgentRequest(input={"text": "{{ input }}"}))
    assert (agent.name, agent.model) == ("tagger", "openai/mini")
    assert sent(model) == [
        ("system", "You are openai/mini at 0.2, None."),
        ("user", "Ticket: {{ input }}\n\nBe brief."),
    ]
    assert result.metadata == {"team": "a"}
    assert result.rendered_user_prompt == "Ticket: {{ input }}\n\nBe brief."


@pytest.mark.parametrize("wrapped", [False, True])
async def test_the_bundle_shape(serve: ServeModel, wrapped: bool) -> None:
    model = serve(["ok"])
    prompt: dict[str, Any] = {"name": "tag", "system": "S", "user": "U {{ input.x }}"}
    if wrapped:
        prompt = {"spec": "prompt", "data": prompt}
    data = {"prompt": prompt, "profile": "cheap", "system": "ignored", "model": "ignored"}
    agent = build_agent(
        {"spec": "flatagent", "data": data}, catalogue=PROFILES, overrides={"base_url": model.base_url}
    )
    await agent.call(AgentRequest(input={"x": 1}))
    assert agent.name == "tag"
    assert sent(model) == [("system", "S"), ("user", "U 1")]


def test_profiles_of_a_bundle_may_be_inline_and_nested() -> None:
    profile = {
        "spec": "flatprofile",
        "data": {"model_profiles": {"only": {"type": "llm", "model": {"name": "x/y"}}}},
    }
    assert build_agent({"prompt": {"user": "u"}, "profile": profile}).model == "x/y"
    assert build_agent({"prompt": {"user": "u"}, "profile": {"name": "x/z"}}).model == "x/z"
    assert (
        build_agent({"type": "flatagent", "config": {"model": {"name": "x/w"}, "user": "u"}}).model == "x/w"
    )


@pytest.mark.parametrize(
    ("history", "given", "new_turn", "messages", "rendered"),
    [
        (None, {"word": "x"}, None, [("system", "S"), ("user", "Say x")], "Say x"),
        (HISTORY, {"word": "x"}, None, [("system", "S"), ("user", "old"), ("assistant", "answer")], None),
        (None, {}, None, [("system", "S"), ("user", "Say ")], "Say "),
        (HISTORY, {}, None, [("system", "S"), ("user", "old"), ("assistant", "answer")], None),
        (
            HISTORY,
            {"word": "x"},
            True,
            [("system", "S"), ("user", "old"), ("assistant", "answer"), ("user", "Say x")],
            "Say x",
        ),
        ([], {}, None, [("system", "S"), ("user", "Say ")], "Say "),
        ([], {"word": "x"}, True, [("system", "S"), ("user", "Say x")], "Say x"),
    ],
)
async def test_messages_are_put_together(
    serve: ServeModel,
    agent_on: MakeAgent,
    history: Sequence[Any] | None,
    given: dict[str, Any],
    new_turn: bool | None,
    messages: list[Any],
    rendered: str | None,
) -> None:
    model = serve(["ok"])
    agent = agent_on(model, system="S", user="Say {% if input %}{{ input.word }}{% endif %}")
    result = await agent.call(AgentRequest(input=given, messages=history, new_turn=new_turn))
    assert sent(model) == messages
    assert result.rendered_user_prompt == rendered
    assert len(HISTORY) == 2


@pytest.mark.parametrize(
    ("last", "content"),
    [
        ({"role": "user", "content": "hi"}, "hi\n\nSystem:\n\nMind Ann."),
        ({"role": "tool", "content": "", "tool_call_id": "1"}, "System:\n\nMind Ann."),
        ({"role": "user", "content": None}, "System:\n\nMind Ann."),
        (
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            [{"type": "text", "text": "hi"}, {"type": "text", "text": "\n\nSystem:\n\nMind Ann."}],
        ),
        ({"role": "assistant", "content": "hi"}, "System:\n\nMind Ann."),
    ],
)
async def test_post_history_instructions_come_last_and_leave_no_trace(
    serve: ServeModel, agent_on: MakeAgent, last: dict[str, Any], content: Any
) -> None:
    model = serve(["ok"])
    before = dict(last)
    agent = agent_on(model, post_history_instructions=" Mind {{ context.who }}. \n")
    await agent.call(AgentRequest(messages=[last], context={"who": "Ann"}))
    assert sent(model)[-1][1] == content
    assert len(sent(model)) == (3 if before["role"] == "assistant" else 2)
    assert last == before


async def test_structured_output_asks_with_a_strict_schema(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(['```json\n{"label": "SPAM", "score": "0.5", "why": "words"}\n```'])
    result = await agent_on(model, output=SPAM).call(AgentRequest(input={"word": "x"}))
    assert result.output == {"label": "spam", "score": 0.5, "why": "words"}
    assert result.payload() == result.output
    asked = model.requests[0].body["response_format"]
    assert asked["type"] == "json_schema"
    assert asked["json_schema"]["name"] == "tester"
    assert asked["json_schema"]["strict"] is True
    assert asked["json_schema"]["schema"] == {
        "type": "object",
        "properties": {
            "label": {"type": "string", "enum": ["spam", "ham"]},
            "score": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        },
        "required": ["label", "score"],
        "additionalProperties": False,
    }


async def test_a_provider_is_told_of_bounds_in_words_and_asked_again_beyond_them(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    model = serve(['{"n": 30}', '{"n": 3}'])
    bounded = agent_on(model, output={"n": {"type": "int", "maximum": 9}})
    result = await bounded.call(AgentRequest(input={"word": "x"}))
    assert result.output == {"n": 3}
    asked = model.requests[0].body["response_format"]["json_schema"]["schema"]
    assert asked["properties"] == {"n": {"type": "integer", "description": "At most 9."}}
    assert "less than or equal to 9" in sent(model)[-1][1]


async def test_a_wrong_answer_is_repaired_and_the_usage_summed(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    replies = [
        Reply("well", usage=usage),
        Reply('{"label": "eggs"}', usage=usage),
        Reply('{"label": "ham"}', usage=usage),
    ]
    model = serve(replies)
    request = AgentRequest(input={"word": "x"}, idempotency_key="k")
    result = await agent_on(model, output=SPAM).call(request)
    assert result.output == {"label": "ham", "score": None}
    assert (result.usage.input_tokens, result.usage.output_tokens, result.usage.api_calls) == (30, 6, 3)
    assert result.rendered_user_prompt == "Say x"
    *_, second, third, fourth, fifth = sent(model)
    assert second == ("assistant", "well")
    assert "it holds no valid JSON" in third[1]
    assert fourth == ("assistant", '{"label": "eggs"}')
    assert 'the field "label": must be one of spam, ham' in fifth[1]
    assert [r.headers["idempotency-key"] for r in model.requests] == ["k", "k/repair/1", "k/repair/2"]


async def test_repair_gives_up_and_shows_the_answer(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply("x" * 1000)] * 4)
    with pytest.raises(AgentFailed) as caught:
        await agent_on(model, output=SPAM).call(AgentRequest(input={"word": "x"}))
    assert (caught.value.code, caught.value.retryable) == ("invalid_output", True)
    assert model.calls == 3
    assert "xxx…" in caught.value.message
    assert len(caught.value.message) < 700
    assert caught.value.usage.api_calls == 3


async def test_an_answer_that_was_cut_off_is_not_repaired(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply('{"label": "sp', finish_reason="length"), Reply("", finish_reason="content_filter")])
    agent = agent_on(model, output=SPAM)
    with pytest.raises(AgentFailed) as caught:
        await agent.call(AgentRequest(input={"word": "x"}))
    assert (caught.value.code, model.calls) == ("invalid_output", 1)
    assert "max_tokens" in caught.value.hint
    with pytest.raises(AgentFailed) as caught:
        await agent.call(AgentRequest(input={"word": "x"}))
    assert (caught.value.code, caught.value.retryable) == ("content_filter", False)


async def test_a_failure_during_repair_tells_what_was_spent(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve(["no", Reply(status=500)])
    with pytest.raises(AgentFailed) as caught:
        await agent_on(model, output=SPAM).call(AgentRequest(input={"word": "x"}))
    assert caught.value.code == "server_error"
    assert caught.value.usage.api_calls == 1


async def test_a_server_that_knows_no_schemas_is_asked_once_more_with_words(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    refusal = Reply(status=400, error="response_format json_schema is not supported")
    model = serve([refusal, '{"label": "ham"}', '{"label": "spam"}'])
    agent = agent_on(model, output=SPAM, system="S")
    for _ in range(2):
        assert (await agent.call(AgentRequest(input={"word": "x"}))).output
    assert model.calls == 3
    assert model.requests[-1].body["response_format"] == {"type": "json_object"}
    assert sent(model)[0][1].startswith("S\n\nAnswer with nothing but JSON")


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"model": "chaep", "user": "u"}, 'did you mean "cheap"'),
        ({"model": {"profile": "expensive"}, "user": "u"}, "known: cheap"),
        ({"user": "u"}, "has no model"),
        (
            {"type": "claude-coda", "config": {}},
            'Unsupported runtime profile type "claude-coda"; did you mean',
        ),
        ({"profile": "cheap"}, "Invalid prompt reference"),
        ({"prompt": {"user": "u"}}, "Invalid profile reference"),
        ({"prompt": {"user": "u"}, "profile": {"type": "x"}}, "Unsupported runtime profile type"),
        ({"spec": "flatmachine", "data": {}}, "Invalid spec"),
        ({"spec": "flatagent", "data": None}, "missing"),
        ({"model": "cheap", "user": "{{ input.x"}, ""),
        ({"model": "cheap", "user": "{{ inptu.x }}"}, "inptu"),
        ({"model": "cheap", "user": ["u"]}, "`user` is not text"),
        (
            {"model": "cheap", "user": "u", "output": {"a": {"type": "str"}}, "output_repairs": 11},
            "from 0 to 10",
        ),
        ({"model": "cheap", "user": "u", "tools": [{"name": "add"}]}, "tools[0]"),
        ({"model": "cheap", "user": "u", "output": {"a": {"type": "strng"}}}, "output.a"),
        (
            {"model": {"name": "x", "backend": "litelm"}, "user": "u"},
            'Unknown backend "litelm"; did you mean',
        ),
    ],
)
def test_what_is_wrong_with_a_config_is_told_before_any_run(config: dict[str, Any], part: str) -> None:
    with pytest.raises(DefinitionError):
        build_agent(config, catalogue=PROFILES, name="tester")
    problems = check_agent(config, PROFILES, name="tester")
    assert len(problems) == 1
    assert part in problems[0]


def test_a_good_config_has_no_problems_but_its_catalogue_may() -> None:
    assert check_agent({"model": "cheap", "user": "u"}, PROFILES) == []
    lost = {"model_profiles": {"cheap": {"name": "x/y"}}, "default": "chep"}
    assert "`default`" in check_agent({"model": "cheap", "user": "u"}, lost)[0]


def test_errors_point_into_the_file() -> None:
    place = Location("a.yml", 3, 5, "user: [u]")
    with pytest.raises(SpecError) as caught:
        build_agent(
            {"model": {"name": "x/y"}, "user": ["u"]},
            locate=lambda path: place if path == ("user",) else None,
        )
    assert "a.yml:3:5" in str(caught.value)


async def test_compat_is_lenient_about_names(serve: ServeModel) -> None:
    model = serve(["ok"])
    catalogue = {
        "model_profiles": {"a": {"provider": "openai", "name": "x", "base_url": model.base_url}},
        "default": "a",
    }
    config = {"model": "lost", "user": "Say {{ nothing }}{{ input.absent }}!"}
    with pytest.raises(UnknownName):
        build_agent(config, catalogue=catalogue)
    await build_agent(config, catalogue=catalogue, compat=True).call(AgentRequest())
    assert sent(model)[-1] == ("user", "Say !")


def test_needed_variables_are_known_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model": "cheap", "user": "u"}
    assert required_environment(config, PROFILES) == [("OPENAI_API_KEY",)]
    assert missing_environment(config, PROFILES) == [("OPENAI_API_KEY",)]
    assert missing_environment(config, PROFILES, overrides={"base_url": "http://127.0.0.1:1/v1"}) == []
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    assert missing_environment(config, PROFILES) == []
    secret = {"model": {"name": "x/y", "extra_headers": {"a": "${env:TOKEN_A}"}}, "user": "u"}
    assert missing_environment(secret) == [("TOKEN_A",)]
