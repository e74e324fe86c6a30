"""The standard model call: over real HTTP to a scripted model, through the same client as YAML agents."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from running import ANY, desk, results, steps, told, worker

from flat.drivers.trees import caches, chat
from flat.runtime.trees import TreeMachine, create_machine
from flat.testing.executor import ScriptedExecutor
from flat.testing.model_server import Reply, ScriptedModel
from flat.tree import Charter, Instance, Node, Output, StandardExecutor
from flat.tree.lower import ModelRequest, TreeBinding
from flat.tree.messages import message_data, user_message

pytestmark = pytest.mark.anyio


def office(model: ScriptedModel, **settings: Any) -> TreeMachine[Any]:
    executor = StandardExecutor(
        model="scripted", provider="openai", base_url=model.base_url, api_key="k", **settings
    )
    return create_machine(
        Charter("office", executor=executor, nodes=[desk, worker], instructions="You work here."),
        Instance(desk, {"name": "North"}, id="r"),
    )


async def test_a_turn_with_tools_over_http() -> None:
    calls = [{"name": "note", "arguments": {"text": "a"}, "id": "c1"}]
    with ScriptedModel([Reply(None, tool_calls=calls), "Noted."]) as model:
        desk_ = office(model)
        found = await steps(desk_, "Write a down")
        assert told(found) == [("tool_use", False), ("end_turn", True)]
        assert results(found[0])[0]["content"] == "noted a"
        assert found[-1].response == "Noted."
        first, second = [request.body for request in model.requests]
    assert first["model"] == "scripted"
    assert first["max_tokens"] == 4096
    system = first["messages"][0]
    assert system["role"] == "system"
    assert "You work here." in system["content"]
    assert "North" in system["content"]
    assert {tool["function"]["name"] for tool in first["tools"]} >= {"note", "updateState", "transition"}
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "tool"]
    assert second["messages"][-1]["tool_call_id"] == "c1"


async def test_what_a_call_costs_is_counted_in_the_execution() -> None:
    with ScriptedModel([Reply("Hi", usage={"prompt_tokens": 9, "completion_tokens": 3})]) as model:
        desk_ = office(model)
        await steps(desk_, "Hi")
        snapshot = await desk_.runtime.inspect(desk_.execution_id)
    assert (snapshot.spent.calls, snapshot.spent.input_tokens, snapshot.spent.output_tokens) == (1, 9, 3)


async def test_a_retry_waits_as_the_policy_says_and_the_turn_ends_well() -> None:
    with ScriptedModel([Reply(status=503, error="busy"), "Hello"]) as model:
        desk_ = office(model, retry={"backoffs": [0.01], "jitter": 0})
        assert told(await steps(desk_, "Hi")) == [("end_turn", True)]
        assert len(model.requests) == 2


async def test_a_request_that_cannot_succeed_is_not_repeated() -> None:
    with ScriptedModel([Reply(status=400, error="no such thing"), "never"]) as model:
        with pytest.raises(Exception, match="no such thing"):
            await steps(office(model), "Hi")
        assert len(model.requests) == 1


async def test_an_answer_is_streamed() -> None:
    heard: list[Any] = []
    with ScriptedModel(["Hello there"]) as model:
        found = await steps(office(model), "Hi", on_message_stream=heard.append)
    assert "".join(e["delta"]["delta"] for e in heard if e["type"] == "message_update") == "Hello there"
    assert found[0].response == "Hello there"


async def test_structured_output_becomes_the_applications_value() -> None:
    class City(BaseModel):
        city: str

    node = Node("Extract.", ANY, name="extract", initial_state={}, output=Output(City))
    with ScriptedModel([json.dumps({"city": "Oslo"})]) as model:
        executor = StandardExecutor(model="scripted", provider="openai", base_url=model.base_url, api_key="k")
        machine = create_machine(Charter("x", executor=executor, nodes=[node]), Instance(node, {}, id="r"))
        await steps(machine, "To Oslo, please")
        body = model.requests[0].body
    assert body["response_format"]["json_schema"]["schema"]["properties"]["city"]
    assert machine.history[-1].items == [{"type": "output", "data": {"city": "Oslo"}}]


async def test_images_and_files_reach_the_model() -> None:
    with ScriptedModel(["Nice"]) as model:
        await steps(
            office(model),
            user_message(
                [
                    {"type": "text", "text": "See"},
                    {"type": "image", "mimeType": "image/png", "data": "AAAA"},
                    {"type": "file", "url": "https://x.test/a.pdf", "mediaType": "application/pdf"},
                ]
            ),
        )
        said = model.requests[0].body["messages"][-1]["content"]
    assert {part["type"] for part in said} == {"text", "image_url"}
    assert "https://x.test/a.pdf" in str(said)


async def test_a_worker_may_have_another_model() -> None:
    small = Node("Small.", ANY, name="small", worker=True, executor_config={"model": "tiny", "max_tokens": 5})
    with ScriptedModel(["done", "Thanks"]) as model:
        executor = StandardExecutor(model="scripted", provider="openai", base_url=model.base_url, api_key="k")
        root = Instance(desk, {}, [Instance(small, {}, id="s")], id="r")
        machine = create_machine(Charter("x", executor=executor, nodes=[desk, small]), root)
        await steps(machine, "Hi")
        first, second = [request.body for request in model.requests]
    assert (first["model"], first["max_tokens"]) == ("tiny", 5)
    assert (second["model"], second["max_tokens"]) == ("scripted", 4096)


def wanted() -> ModelRequest:
    binding = TreeBinding(
        Charter("office", executor=ScriptedExecutor("x"), nodes=[desk], instructions="You work here.")
    )
    tree = binding.started(Instance(desk, {"name": "North"}, id="r"))
    return binding.request(tree, "r", [message_data(user_message("Hi"))])


def test_the_part_of_the_prompt_that_rarely_changes_is_marked_where_the_provider_keeps_it() -> None:
    system, said = chat(wanted(), caches=True)
    stable, volatile = system["content"]
    assert stable["cache_control"] == {"type": "ephemeral"}
    assert "cache_control" not in volatile
    assert "North" in volatile["text"]
    assert "North" not in stable["text"]
    assert said["content"][-1]["cache_control"] == {"type": "ephemeral"}


def test_other_providers_get_no_marks() -> None:
    assert "cache_control" not in str(chat(wanted(), caches=False))
    assert caches({"name": "claude-sonnet-4-5"})
    assert caches({"name": "x", "provider": "anthropic"})
    assert not caches({"name": "gpt-5", "provider": "openai"})
