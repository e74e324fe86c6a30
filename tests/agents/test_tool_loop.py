"""`ToolLoopAgent`: the loop, every way in which it ends, and tools that misbehave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anyio
import pytest

from flat.agents import (
    Guardrails,
    SimpleToolProvider,
    StopReason,
    Tool,
    ToolLoopAgent,
    ToolLoopResult,
    ToolProvider,
    ToolResult,
)
from flat.agents.protocol import AgentResult
from flat.testing.agents import ScriptedAgent
from flat.testing.model_server import Reply, ScriptedModel

from .conftest import MakeAgent, ServeModel

pytestmark = pytest.mark.anyio


async def add(tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
    return ToolResult(str(arguments["a"] + arguments["b"]))


async def stuck(tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
    await anyio.sleep_forever()
    raise AssertionError


ADD = Tool("add", "Adds.", {"type": "object"}, add)
STUCK = Tool("stuck", "Never ends.", {"type": "object"}, stuck)


def calls(*tools: Any, text: str | None = None, **more: Any) -> Reply:
    asked = [t if isinstance(t, dict) else {"name": t, "arguments": {"a": 2, "b": 3}} for t in tools]
    return Reply(text, tool_calls=asked, **more)


def told(model: ScriptedModel, call: int = -1) -> list[Any]:
    return [m["content"] for m in model.requests[call].body["messages"] if m["role"] == "tool"]


async def run(
    serve: ServeModel, agent_on: MakeAgent, script: Any, guardrails: Guardrails | None = None, **more: Any
) -> tuple[ToolLoopResult, ScriptedModel]:
    model = serve(script)
    agent = agent_on(model, system="For {{ input.word }}")
    loop = ToolLoopAgent(agent, tools=[ADD, STUCK], guardrails=guardrails, **more)
    return await loop.run(word="x"), model


async def test_the_model_uses_its_tools_until_it_has_the_answer(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    script = [calls("add", "add", text="let me see", usage=usage), Reply("5", usage=usage)]
    result, model = await run(serve, agent_on, script)
    assert (result.content, result.stop_reason, result.error) == ("5", StopReason.COMPLETE, None)
    assert (result.turns, result.tool_calls_count) == (2, 2)
    assert (result.usage.input_tokens, result.usage.total_tokens, result.usage.api_calls) == (20, 24, 2)
    assert [m["role"] for m in result.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    first, second = model.requests
    assert first.body["tools"] == second.body["tools"] == [ADD.definition(), STUCK.definition()]
    assert [m["content"] for m in second.body["messages"]] == ["For x", "Say x", "let me see", "5", "5"]
    called = second.body["messages"][2]["tool_calls"]
    assert [c["id"] for c in called] == ["call_1", "call_2"]
    assert called[0]["function"] == {"name": "add", "arguments": '{"a": 2, "b": 3}'}


@pytest.mark.parametrize(
    ("guardrails", "script", "reason", "turns", "executed"),
    [
        (Guardrails(max_turns=2), [calls("add")] * 3, "max_turns", 2, 2),
        (Guardrails(max_tool_calls=3), [calls("add", "add")] * 3, "max_tool_calls", 2, 2),
        (Guardrails(), [*[calls("add")] * 60, Reply("done")], "complete", 61, 60),
        (Guardrails(), [Reply("x", finish_reason="length")], "error", 1, 0),
        (Guardrails(), [Reply("x", finish_reason="content_filter")], "error", 1, 0),
        (Guardrails(), [calls("add"), Reply(status=500, error="boom")], "error", 2, 1),
        (Guardrails(total_timeout=0.3), [calls("stuck"), Reply("late")], "timeout", 1, 1),
        (Guardrails(total_timeout=0.3), [Reply("late", delay=30)], "timeout", 1, 0),
    ],
)
async def test_how_a_loop_ends(
    serve: ServeModel,
    agent_on: MakeAgent,
    guardrails: Guardrails,
    script: list[Reply],
    reason: str,
    turns: int,
    executed: int,
) -> None:
    result, _ = await run(serve, agent_on, script, guardrails)
    assert (result.stop_reason, result.turns, result.tool_calls_count) == (reason, turns, executed)
    assert (result.error is not None) == (reason == "error" or (reason, turns, executed) == ("timeout", 1, 0))


async def test_a_loop_ends_before_tools_that_it_cannot_pay_for(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    model = serve([calls("add", usage={"prompt_tokens": 1, "completion_tokens": 1, "cost": 0.75})] * 2)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("flat.agents.credentials.is_loopback", lambda url: False)
        agent = agent_on(model, settings={"api_key": "k"})
        result = await ToolLoopAgent(agent, tools=[ADD], guardrails=Guardrails(max_cost=0.5)).run(word="x")
    assert (result.stop_reason, result.turns, result.tool_calls_count) == ("cost_limit", 1, 0)
    assert result.usage.total_cost == 0.75


async def test_what_a_model_is_told_about_tools_that_fail(serve: ServeModel, agent_on: MakeAgent) -> None:
    bad = {"name": "add", "arguments": "{"}
    script = [calls("add", "nosuch", {"name": "add"}, "stuck", bad), Reply("sorry")]
    result, model = await run(serve, agent_on, script, Guardrails(tool_timeout=0.05))
    assert result.stop_reason == "complete"
    assert result.tool_calls_count == 5
    assert told(model) == [
        "5",
        "Unknown tool: nosuch; known: add, stuck",
        "Error executing add: 'a'",
        "The tool stuck timed out after 0.05 s.",
        "The arguments of add are no valid JSON: {",
    ]


@pytest.mark.parametrize(
    ("guardrails", "answers"),
    [
        (Guardrails(denied_tools=["add"]), ["The tool add is not allowed here."]),
        (Guardrails(allowed_tools=["stuck"]), ["The tool add is not allowed here."]),
        (Guardrails(allowed_tools=["add"], denied_tools=["add"]), ["The tool add is not allowed here."]),
        (Guardrails(allowed_tools=[]), ["5"]),
        (Guardrails(allowed_tools=["add"]), ["5"]),
    ],
)
async def test_tools_may_be_denied(
    serve: ServeModel, agent_on: MakeAgent, guardrails: Guardrails, answers: list[str]
) -> None:
    result, model = await run(serve, agent_on, [calls("add"), Reply("ok")], guardrails)
    assert (told(model), result.tool_calls_count) == (answers, 1)


async def test_steering_puts_messages_in_between(serve: ServeModel, agent_on: MakeAgent) -> None:
    class Once:
        said = False

        async def get_messages(self) -> list[dict[str, Any]]:
            self.said, before = True, self.said
            return [] if before else [{"role": "user", "content": "hurry"}]

    script = [calls("add"), calls("add"), Reply("ok")]
    result, model = await run(serve, agent_on, script, steering=Once())
    assert [m["content"] for m in model.requests[1].body["messages"]][-1] == "hurry"
    assert result.messages[3] == {"role": "user", "content": "hurry"}

    async def broken() -> list[dict[str, Any]]:
        raise LookupError("lost")

    result, _ = await run(serve, agent_on, script, steering=broken)
    assert (result.stop_reason, result.error) == ("error", "the steering provider failed: lost")


@pytest.mark.parametrize(
    ("finish", "reason"), [("aborted", "aborted"), ("error", "error"), (None, "complete")]
)
async def test_endings_that_only_other_agents_know(finish: str | None, reason: str) -> None:
    agent = ScriptedAgent(AgentResult(content="x", finish_reason=finish))
    assert (await ToolLoopAgent(agent, tools=[ADD]).run(word="x")).stop_reason == reason


async def test_a_model_that_wants_tools_but_names_none_is_asked_again() -> None:
    agent = ScriptedAgent(AgentResult(content="hm", finish_reason="tool_use"), AgentResult(content="x"))
    result = await ToolLoopAgent(agent, tools=[ADD]).run(word="x")
    assert (result.content, result.turns, result.stop_reason) == ("x", 2, "complete")


async def test_a_provider_wins_over_tools(serve: ServeModel, agent_on: MakeAgent) -> None:
    model = serve([Reply("ok")] * 2)
    provider = SimpleToolProvider([STUCK])
    assert isinstance(provider, ToolProvider)
    await ToolLoopAgent(agent_on(model), tools=[ADD], tool_provider=provider).run(word="x")
    assert model.requests[0].body["tools"] == [STUCK.definition()]
    with pytest.raises(ValueError, match="needs tools"):
        ToolLoopAgent(agent_on(model))


async def test_an_agent_that_keeps_its_own_tools(serve: ServeModel, agent_on: MakeAgent) -> None:
    class Undefined(SimpleToolProvider):
        def get_tool_definitions(self) -> Any:
            return None

    own = {"type": "function", "function": {"name": "own"}}
    for provider, offered in ((Undefined([ADD]), [own]), (SimpleToolProvider([]), None)):
        model = serve([Reply("ok")])
        await ToolLoopAgent(agent_on(model, tools=[own]), tool_provider=provider).run(word="x")
        assert model.requests[0].body.get("tools") == offered


async def test_cancelling_a_loop_cancels_its_tool(serve: ServeModel, agent_on: MakeAgent) -> None:
    with anyio.move_on_after(0.5) as scope:
        await run(serve, agent_on, [calls("stuck"), Reply("never")])
    assert scope.cancelled_caught


def test_a_loop_for_blocking_callers(serve: ServeModel, agent_on: MakeAgent) -> None:
    loop = ToolLoopAgent(agent_on(serve([calls("add"), Reply("5")])), tools=[ADD])
    assert loop.run_sync(word="x").content == "5"
