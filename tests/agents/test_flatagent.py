"""`FlatAgent`: both shapes and spellings from files, which catalogue counts, overrides, responses."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat import FlatAgent, Tool, ToolLoopAgent, ToolResult
from flat.agents.response import FinishReason, ToolCall
from flat.testing.model_server import Reply, ScriptedModel

from .conftest import ServeModel

pytestmark = pytest.mark.anyio

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_yml", ".yml").replace("_json", ".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def sent(model: ScriptedModel, call: int = -1) -> list[Any]:
    return [(m["role"], m.get("content")) for m in model.requests[call].body["messages"]]


def catalogue(url: str, spec: str = "flatprofile", version: str = "4.2.1", name: str = "mini") -> str:
    return f"""
spec: {spec}
spec_version: "{version}"
data:
  model_profiles:
    cheap: {{provider: openai, name: {name}, base_url: {url}, temperature: 0.2}}
  default: cheap
"""


OLD = """
spec: flatagent
spec_version: "2.5.0"
data:
  name: tagger
  model: {profile: cheap}
  system: You tag tickets.
  user: "Ticket: {{ input.text }}"
"""
NEW = """
spec: flatagent
spec_version: "4.2.1"
data: {prompt: ./tag.prompt.yml, profile: cheap}
"""
PROMPT = """
name: tagger
system: You tag tickets.
user: "Ticket: {{ input.text }}"
"""


async def test_the_quick_start_in_both_generations_sends_the_same_request_without_a_warning(
    serve: ServeModel, tmp_path: Path
) -> None:
    model = serve(["bill", "bill"])
    old = write(
        tmp_path / "old", agent_yml=OLD, profiles_yml=catalogue(model.base_url, "flatprofiles", "2.5.0")
    )
    new = write(tmp_path / "new", agent_yml=NEW, tag_prompt_yml="", profiles_yml=catalogue(model.base_url))
    (new / "tag.prompt.yml").write_text(PROMPT)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agents = [FlatAgent(config_file=str(folder / "agent.yml")) for folder in (old, new)]
    for agent in agents:
        response = await agent.call(text="I want my money back")
        assert (response.content, response.output, response.success) == ("bill", None, True)
        assert (agent.agent_name, agent.model, agent.temperature) == ("tagger", "openai/mini", 0.2)
    assert model.requests[0].body == model.requests[1].body
    assert sent(model) == [("system", "You tag tickets."), ("user", "Ticket: I want my money back")]
    assert [a.spec_version for a in agents] == ["2.5.0", "4.2.1"]


async def test_prompts_come_by_path_inline_and_wrapped(serve: ServeModel, tmp_path: Path) -> None:
    model = serve(lambda body: "ok")
    profiles = {"profiles": {"cheap": {"name": "openai/m", "base_url": model.base_url}}, "default": None}
    wrapped = {"spec": "prompt", "metadata": {"x": 1}, "data": {"user": "U {{ input.n }}"}}
    write(tmp_path, p_json=json.dumps(wrapped), sub__q_yml="user: U {{ input.n }}", empty_yml="")
    references: list[Any] = ["./p.json", "sub/q.yml", wrapped, {"data": wrapped["data"]}, wrapped["data"]]
    for reference in references:
        config = {"spec": "flatagent", "data": {"prompt": reference, "profile": "cheap", "name": "named"}}
        agent = FlatAgent(config_dict=config, config_dir=tmp_path, profiles_dict=profiles)
        await agent.call(n=1)
        assert sent(model)[-1] == ("user", "U 1")
        assert (agent.agent_name, agent.metadata) == ("named", {})
    empty = {"spec": "flatagent", "data": {"prompt": "empty.yml", "profile": "cheap"}}
    await FlatAgent(config_dict=empty, config_dir=tmp_path, profiles_dict=profiles).call()
    assert sent(model) == [("system", "You are a helpful assistant."), ("user", "")]


def test_which_catalogue_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        profiles_yml=catalogue("http://a/v1", name="beside"),
        other__p_yml=catalogue("x", name="named"),
    )
    config = {"spec": "flatagent", "data": {"model": "cheap", "user": "u"}}
    given = {"profiles": {"cheap": {"name": "given"}, "more": {"name": "more"}}}
    assert FlatAgent(config_dict=config, config_dir=tmp_path, profiles_dict=given).model == "openai/beside"
    named = FlatAgent(config_dict=config, config_dir=tmp_path, profiles_file="other/p.yml")
    assert named.model == "openai/named"
    assert FlatAgent(config_dict=config, config_dir=tmp_path / "other", profiles_dict=given).model == "given"
    more = {"spec": "flatagent", "data": {"model": "more", "user": "u"}}
    with pytest.raises(ValueError, match='unknown model profile "more"'):
        FlatAgent(config_dict=more, config_dir=tmp_path, profiles_dict=given)
    with pytest.raises(FileNotFoundError, match="Profiles file not found"):
        FlatAgent(config_dict=config, config_dir=tmp_path, profiles_file="gone.yml")


@pytest.mark.parametrize(
    ("files", "error", "part"),
    [
        ({}, FileNotFoundError, "Configuration file not found"),
        ({"agent_yml": "data: {}"}, ValueError, "Invalid spec: expected 'flatagent'"),
        ({"agent_yml": "spec: flatmachine\ndata: {}"}, ValueError, "Invalid spec"),
        ({"agent_yml": "spec: flatagent"}, ValueError, "missing 'data'"),
        ({"agent_yml": "spec: flatagent\ndata:"}, ValueError, "missing 'data'"),
        ({"agent_yml": "- a"}, ValueError, "should hold a mapping"),
        ({"agent_yml": "spec: [flatagent"}, ValueError, "agent.yml:"),
        (
            {"agent_yml": "spec: flatagent\ndata: {model: x, user: u, sytem: y}"},
            ValueError,
            'did you mean "system"',
        ),
        (
            {"agent_yml": "spec: flatagent\ndata: {prompt: p.yml, profile: x}"},
            FileNotFoundError,
            "Referenced config file not found",
        ),
        ({"agent_yml": "spec: flatagent\ndata: {profile: x}"}, ValueError, "prompt"),
        ({"agent_yml": "spec: flatagent\ndata: {model: {name: m}, user: '{{ a'}"}, ValueError, "agent.yml:2"),
        (
            {
                "agent_yml": "spec: flatagent\ndata: {model: {name: m}}",
                "profiles_yml": "spec: flatagent\ndata: {}",
            },
            ValueError,
            "flatprofile",
        ),
    ],
)
def test_a_bad_configuration_is_told_when_the_agent_is_made(
    tmp_path: Path, files: dict[str, str], error: type[Exception], part: str
) -> None:
    write(tmp_path, **files)
    with pytest.raises(error) as caught:
        FlatAgent(config_file=tmp_path / "agent.yml")
    assert part in str(caught.value)


def test_nothing_at_all_is_an_invalid_spec() -> None:
    with pytest.raises(ValueError, match="Invalid spec"):
        FlatAgent()


def test_compat_warns_where_upstream_is_silent(tmp_path: Path) -> None:
    config = {
        "spec": "flatagent",
        "spec_version": "0.7.7",
        "data": {"model": {"name": "m"}, "user": "u", "x": 1},
    }
    with pytest.warns(UserWarning, match='"x"'):
        FlatAgent(config_dict=config, compat=True, anything=1)
    with pytest.raises(ValueError, match='"x"'):
        FlatAgent(config_dict=config)


async def test_constructor_overrides_win_and_none_takes_away(serve: ServeModel, tmp_path: Path) -> None:
    model = serve(lambda body: "ok")
    config = {
        "spec": "flatagent",
        "data": {
            "model": {
                "provider": "p",
                "name": "n",
                "temperature": 0.5,
                "top_p": 0.1,
                "base_url": "http://x/v1",
            },
            "system": "{{ model.name }} {{ model.temperature }}",
        },
    }
    agent = FlatAgent(
        config_dict=config,
        model="openai/o",
        temperature=None,
        max_tokens=9,
        base_url=model.base_url,
        stream=True,
    )
    await agent.call()
    body = dict(model.requests[0].body)
    assert body.pop("messages")[0]["content"] == "openai/o None"
    assert body == {"model": "o", "top_p": 0.1, "max_tokens": 9}
    assert (agent.model, agent.temperature, agent.max_tokens, agent.seed) == ("openai/o", None, 9, None)
    assert (agent.stream, agent.top_p, agent.base_url) == (True, 0.1, model.base_url)
    with pytest.raises(AttributeError):
        _ = agent.nonsense
    with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
        FlatAgent(config_dict=config, temprature=1)


@pytest.mark.parametrize(
    ("history", "inputs", "messages", "rendered"),
    [
        (None, {"w": 1}, ["system", "U1"], "U1"),
        (None, {}, ["system", "U"], "U"),
        ([{"role": "user", "content": "old"}], {}, ["system", "old"], None),
        ([{"role": "user", "content": "old"}], {"w": 1}, ["system", "old", "U1"], "U1"),
        ([], {}, ["system", "U"], None),
        ([], {"w": 1}, ["system", "U1"], "U1"),
    ],
)
async def test_histories_and_inputs(
    serve: ServeModel, history: Any, inputs: Any, messages: list[str], rendered: str | None
) -> None:
    model = serve(["ok"])
    response = await make(model, system="system", user="U{% if input %}{{ input.w }}{% endif %}").call(
        messages=history, **inputs
    )
    assert [content for _, content in sent(model)] == messages
    assert response.rendered_user_prompt == rendered
    assert history in (None, [], [{"role": "user", "content": "old"}])


def make(model: ScriptedModel, settings: Any = None, **data: Any) -> FlatAgent:
    profile = {"name": "openai/m", "base_url": model.base_url, **(settings or {})}
    return FlatAgent(config_dict={"spec": "flatagent", "data": {"user": "u", "model": profile, **data}})


async def test_a_response_tells_all_about_an_answer(serve: ServeModel) -> None:
    usage = {"prompt_tokens": 30, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}}
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-limit-tokens": "9", "retry-after": "3"}
    calls = [{"name": "add", "arguments": {"a": 1}}, {"name": "add", "arguments": "{"}]
    model = serve(
        [Reply("hm", tool_calls=calls, usage=usage, headers=headers), Reply("x", finish_reason="length")]
    )
    agent = make(model, settings={"input_cost_per_token": 0.5, "output_cost_per_token": 0.25}, tools=[TOOL])
    response = await agent.call()
    assert response.tool_calls == [ToolCall("call_1", "", "add", {"a": 1}), ToolCall("call_2", "", "add", {})]
    assert response.finish_reason is FinishReason.TOOL_USE
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.total_tokens, response.usage.cache_read_tokens) == (
        30,
        40,
        4,
    )
    assert response.rate_limit is not None
    assert (response.rate_limit.is_limited(), response.rate_limit.get_retry_delay()) == (True, 3)
    assert response.raw_response.choices[0].message.content == "hm"
    assert (response.metadata, response.provider_data, response.error) == (None, None, None)
    assert agent.tools == [TOOL]
    second = await agent.call(tools=[])
    assert (second.finish_reason, second.tool_calls) == ("length", None)
    assert "tools" not in model.requests[1].body
    assert agent.total_api_calls == 2


async def test_a_failure_is_a_response(serve: ServeModel) -> None:
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m"}
    model = serve(
        [Reply(status=429, retry_after=7, headers=headers), Reply(status=401), "not json", "no", "never"]
    )
    agent = make(model, output={"n": {"type": "int"}}, output_repairs=1)
    response = await agent.call()
    assert (response.success, response.content, response.finish_reason) == (False, None, "error")
    assert response.error is not None
    assert (response.error.error_type, response.error.status_code) == ("RateLimitError", 429)
    assert (response.error.code, response.error.retryable) == ("rate_limit", True)
    assert response.rate_limit is not None
    assert (response.rate_limit.is_limited(), response.rate_limit.get_retry_delay()) == (True, 7)
    assert response.rate_limit.reset_at is not None
    response = await agent.call()
    assert response.error is not None
    assert (response.error.error_type, response.error.code) == ("AuthenticationError", "auth_error")
    assert agent.total_api_calls == 0
    response = await agent.call()
    assert response.error is not None
    assert (response.error.error_type, response.error.code) == ("AgentFailed", "invalid_output")
    assert (model.calls, agent.total_api_calls) == (4, 2)


@pytest.mark.parametrize(
    ("content", "output"),
    [
        ('```json\n{"a": 1}\n``` tail', {"a": 1}),
        ('text {"a": 3} tail', {"a": 3}),
        ('{"a": 1,}', {"_raw": '{"a": 1,}'}),
        ("[1, 2]", [1, 2]),
        ("5", 5),
        (" ", {"_raw": " "}),
        ("", None),
        (None, None),
    ],
)
async def test_with_compat_an_answer_that_fits_no_schema_is_an_output(
    serve: ServeModel, content: str | None, output: Any
) -> None:
    profile = {"name": "openai/m", "base_url": serve(lambda body: Reply(content)).base_url}
    data = {"user": "u", "model": profile, "output": {"n": {"type": "int"}}, "output_repairs": 0}
    agent = FlatAgent(config_dict={"spec": "flatagent", "data": data}, compat=True)
    response = await agent.call()
    assert (response.output, response.error) == (output, None)
    assert agent.output_schema == data["output"]


async def test_it_may_be_put_into_a_tool_loop(serve: ServeModel) -> None:
    async def add(tool_call_id: str, arguments: Any) -> ToolResult:
        return ToolResult(str(arguments["a"] + 1))

    model = serve([Reply(None, tool_calls=[{"name": "add", "arguments": {"a": 4}}]), "5"])
    agent = make(model, system="For {{ input.who }}")
    result = await ToolLoopAgent(agent, tools=[Tool("add", "Adds one.", {"type": "object"}, add)]).run(
        who="Ann"
    )
    assert (result.content, agent.total_api_calls) == ("5", 2)
    assert [content for _, content in sent(model)] == ["For Ann", "u", "", "5"]


async def test_somebody_may_watch(serve: ServeModel) -> None:
    model = serve(["one two"])
    agent, seen = make(model), []
    agent.on_token = seen.append
    assert (await agent.call()).content == "one two"
    assert seen == ["one ", "two"]


def test_blocking_callers(serve: ServeModel) -> None:
    agent = make(serve(lambda body: "ok"))
    assert agent.call_sync(x=1).content == "ok"

    async def inside() -> None:
        with pytest.raises(RuntimeError):
            agent.call_sync(x=1)

    anyio.run(inside)
