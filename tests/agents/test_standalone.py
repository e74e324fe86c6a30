"""Backends, extractors and many-step agents for those who build their own; profiles by their old names."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import flat
from flat.agents.extractors import (
    FreeExtractor,
    FreeThinkingExtractor,
    RegexExtractor,
    StructuredExtractor,
    ToolsExtractor,
)
from flat.agents.standalone import AISuiteBackend, BaseFlatAgent, LiteLLMBackend
from flat.errors import AgentFailed, UnknownName
from flat.runtime.compat.agents import (
    ProfileManager,
    load_profile_from_file,
    resolve_model_config,
    resolve_profile_config,
    resolve_profiles_with_fallback,
    validate_flatagent_config,
)
from flat.testing.model_server import Reply

from .conftest import ServeModel

ASK = [{"role": "user", "content": "x"}]


def answer(content: Any = "hi", **message: Any) -> Any:
    return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=content, **message))])


@pytest.mark.parametrize(
    ("extractor", "given", "found"),
    [
        (FreeExtractor(), answer("hi"), "hi"),
        (FreeExtractor(), answer(None), ""),
        (
            FreeExtractor(),
            answer([{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}]),
            "a",
        ),
        (FreeThinkingExtractor(), answer("b", thinking="a"), {"thinking": "a", "response": "b"}),
        (FreeThinkingExtractor(), answer("b", reasoning_content="a"), {"thinking": "a", "response": "b"}),
        (
            FreeThinkingExtractor(),
            answer([{"type": "thinking", "thinking": "a"}, {"type": "text", "text": "b"}]),
            {"thinking": "a", "response": "b"},
        ),
        (FreeThinkingExtractor(), "<thinking> a </thinking>\nb", {"thinking": "a", "response": "b"}),
        (StructuredExtractor(), answer('so {"a": 1}'), {"a": 1}),
        (StructuredExtractor(), answer(None), {}),
        (StructuredExtractor(), answer("no"), {"_raw": "no", "_error": "the answer holds no valid JSON"}),
        (RegexExtractor({"n": r"n=(\d+)"}, {"n": "int"}), "n=5", {"n": 5}),
        (RegexExtractor({"n": r"n=(\w+)"}, {"n": "int"}), "n=five", None),
        (RegexExtractor({"n": r"n=(\d+)"}), answer("m=5"), None),
        (
            RegexExtractor(
                {"b": "b=(.*?);", "j": "j=(.*?);", "f": "f=(.*?);"}, {"b": "bool", "j": "json", "f": "float"}
            ),
            'b=Yes;j={"a": 1};f=0.5;',
            {"b": True, "j": {"a": 1}, "f": 0.5},
        ),
    ],
)
def test_extractors(extractor: Any, given: Any, found: Any) -> None:
    assert extractor.extract(given) == found


def test_tool_calls_are_extracted_decoded_where_they_can_be() -> None:
    calls = [
        SimpleNamespace(id=str(n), type="function", function=SimpleNamespace(name="f", arguments=text))
        for n, text in enumerate(['{"a": 1}', "{"])
    ]
    found = ToolsExtractor().extract(answer(None, tool_calls=calls))
    assert [c["function"]["arguments"] for c in found["tool_calls"]] == [{"a": 1}, "{"]
    assert found["tool_calls"][0] == {
        "id": "0",
        "type": "function",
        "function": {"name": "f", "arguments": {"a": 1}},
    }
    assert ToolsExtractor().extract(answer("hi")) == {"tool_calls": [], "content": "hi"}


def test_an_unknown_conversion_is_refused() -> None:
    with pytest.raises(ValueError, match='unknown type "integer"'):
        RegexExtractor({"n": "x"}, {"n": "integer"})


class Waits(list[float]):
    """Waits for no time, and keeps for how long."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


@pytest.mark.anyio
async def test_a_backend_tries_again(serve: ServeModel) -> None:
    model = serve([Reply(status=500), Reply(status=429, retry_after=9), "hi", Reply(status=400), Reply(None)])
    backend = LiteLLMBackend("openai/m", temperature=0.5, base_url=model.base_url)
    backend.sleep = waits = Waits()
    assert await backend.call(ASK, seed=1) == "hi"
    assert [int(w) for w in waits] == [1, 9]
    assert (model.requests[-1].body["temperature"], model.requests[-1].body["seed"]) == (0.5, 1)
    with pytest.raises(AgentFailed):
        await backend.call(ASK)
    with pytest.raises(AgentFailed, match="without text"):
        await backend.call(ASK)
    assert (model.calls, backend.total_api_calls) == (5, 2)


@pytest.mark.anyio
async def test_a_backend_makes_as_many_attempts_as_it_has_delays(serve: ServeModel) -> None:
    model = serve(lambda body: Reply(status=500))
    backend = AISuiteBackend("openai:m", retry_delays=[1, 2], base_url=model.base_url)
    backend.sleep = waits = Waits()
    with pytest.raises(AgentFailed):
        await backend.call(ASK)
    assert (model.calls, len(waits), model.requests[0].body["model"]) == (2, 1, "m")


class Counter(BaseFlatAgent):
    def create_initial_state(self, *args: Any) -> Any:
        return 0

    def generate_step_prompt(self, state: Any) -> str:
        return f"after {state}?"

    def update_state(self, state: Any, result: Any) -> Any:
        return int(result)

    def is_solved(self, state: Any) -> bool:
        return bool(state >= 3)

    def get_system_prompt(self) -> str:
        return "count"

    def validate_step_result(self, result: Any) -> bool:
        return bool(result != "2")


@pytest.mark.anyio
async def test_an_agent_of_many_steps(
    serve: ServeModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = serve(["1", "2", "3"])
    file = tmp_path / "counter.yml"
    file.write_text(
        "model: {provider: openai, name: m, temperature: 0.1}\n"
        f"litellm_defaults: {{temperature: 0.9, top_p: 0.5, base_url: {model.base_url}}}\n"
    )
    agent = Counter(config_file=file, max_tokens=7)
    assert await agent.execute() == [0, 1, 2, 3]
    assert (agent.total_api_calls, agent.total_cost) == (3, 0.0)
    body = model.requests[0].body
    assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.1, 0.5, 7)
    assert [m["content"] for m in body["messages"]] == ["count", "after 0?"]
    assert "the result of a step is doubtful: '2'" in caplog.text
    with pytest.raises(ValueError, match="has no model"):
        Counter(config_dict={})
    with pytest.raises(FileNotFoundError):
        Counter(config_file=tmp_path / "gone.yml")


CATALOGUE = """
spec: flatprofiles
data:
  model_profiles: {a: {name: na, temperature: 0.1}, b: {name: nb}}
  default: a
"""


def test_profiles_by_their_old_names(tmp_path: Path) -> None:
    file = tmp_path / "profiles.yml"
    file.write_text(CATALOGUE)
    ProfileManager.clear_cache()
    manager = ProfileManager.get_instance(tmp_path)
    assert manager is ProfileManager.get_instance(tmp_path)
    assert (set(manager.profiles), manager.default_profile, manager.override_profile) == (
        {"a", "b"},
        "a",
        None,
    )
    assert (manager.get_profile("b"), manager.get_profile("c")) == ({"name": "nb"}, None)
    assert ProfileManager(manager.to_dict()).resolve_model_config("b") == {"name": "nb", "temperature": 0.1}
    assert resolve_model_config("b", tmp_path) == {"name": "nb", "temperature": 0.1}
    given = {"profiles": {"b": {"name": "given"}}, "default": None, "override": None}
    assert resolve_model_config("b", tmp_path, profiles_dict=given) == {"name": "given"}
    assert resolve_profile_config("a", tmp_path, profiles_file="profiles.yml")["name"] == "na"
    inline = {"spec": "flatprofile", "data": {"model_profiles": {"x": {"name": "nx"}}}}
    assert resolve_profile_config(inline, tmp_path) == {"name": "nx"}
    assert load_profile_from_file(file) == {"name": "na", "temperature": 0.1}
    assert resolve_profiles_with_fallback(None, given) is given
    with pytest.raises(UnknownName):
        resolve_model_config("c", tmp_path, profiles_dict=given)
    with pytest.raises(FileNotFoundError, match="Profiles file not found"):
        resolve_model_config("b", tmp_path, profiles_file="gone.yml")
    file.write_text("model_profiles: {}")
    with pytest.raises(ValueError, match="Invalid profile spec"):
        load_profile_from_file(file)


def test_configs_are_validated_by_request() -> None:
    legacy = {
        "spec": "flatagent",
        "spec_version": "2.5.0",
        "data": {"model": "x", "system": "s", "user": "u"},
    }
    assert validate_flatagent_config(legacy) == []
    wrong = {"spec": "flatagent", "data": {"usr": "u"}}
    assert len(validate_flatagent_config(wrong, warn=False)) == 1
    with pytest.warns(flat.ValidationWarning, match="usr"):
        validate_flatagent_config(wrong)
    with pytest.raises(ValueError, match="usr"):
        validate_flatagent_config(wrong, strict=True)
    assert flat.get_flatagent_schema()["$id"] == "flat/schemas/agent.json"
