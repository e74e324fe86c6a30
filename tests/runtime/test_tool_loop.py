"""Agents that call tools until they have an answer: every limit, every hook, every way out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import pytest
from runtime_machines import agents, config

import flat
from flat import (
    AgentFailed,
    FileStore,
    HooksRegistry,
    Machine,
    MachineHooks,
    MemoryStore,
    Runtime,
    SQLiteStore,
)
from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.testing.agents import After, ScriptedAgent
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio
LAST_WORDS = (
    "[System: tool use limit reached. Provide your final response now using the information gathered so far.]"
)


def call(name: str = "look", id: str = "c1", **arguments: Any) -> dict[str, Any]:
    return {"id": id, "name": name, "arguments": arguments}


def wants(*calls: Mapping[str, Any], text: str | None = None, cost: float = 0.01) -> AgentResult:
    """A reply that asks for tools."""
    usage = Usage(api_calls=1, cost=cost)
    return AgentResult(content=text, tool_calls=tuple(calls), finish_reason="tool_use", usage=usage,
                       rendered_user_prompt="the task")  # fmt: skip


def says(text: str, **rest: Any) -> AgentResult:
    usage = Usage(api_calls=1, cost=0.01)
    return AgentResult(
        content=text, finish_reason="stop", usage=usage, rendered_user_prompt="the task", **rest
    )


@dataclass
class Tools:
    """A tool provider that notes what it ran."""

    answers: Mapping[str, Any] = field(default_factory=dict)
    ran: list[tuple[str, str, Any]] = field(default_factory=list)
    clock: Any = None

    def get_tool_definitions(self) -> list[dict[str, Any]]:
        return [
            {"type": "function", "function": {"name": name, "parameters": {}}} for name in ("look", "drop")
        ]

    async def execute_tool(self, name: str, tool_call_id: str, arguments: Any) -> Any:
        self.ran.append((name, tool_call_id, arguments))
        answer = self.answers.get(name, f"{name} done")
        if isinstance(answer, After):
            await self.clock.sleep_until(self.clock.now() + answer.seconds)
            answer = answer.answer
        if isinstance(answer, Exception):
            raise answer
        return flat.ToolResult(content=answer) if isinstance(answer, str) else answer


class Loop:
    """One state with a tool loop, its agent and its tools."""

    def __init__(
        self, *answers: Any, loop: Any = True, hooks: type[MachineHooks] | None = None, tools: Tools | None = None,
        clock: Any = None, context: Mapping[str, Any] | None = None, states: Mapping[str, Any] | None = None,
        **state: Any,
    ) -> None:  # fmt: skip
        self.agent = ScriptedAgent(*answers, clock=clock)
        self.tools = tools or Tools()
        work = {
            "agent": "helper", "tool_loop": loop, "input": {"task": "{{ context.task }}"},
            "output_to_context": {"result": "output"}, "transitions": [{"to": "end"}], **state,
        }  # fmt: skip
        self.config = config(
            {"work": work, "end": {"type": "final", "output": {"result": "context.result"}}, **(states or {})},
            {"task": "T", "result": None, **(context or {})},
            agents=agents("helper", "other"), **({"hooks": "h"} if hooks else {}),
        )  # fmt: skip
        self.hooks = HooksRegistry({"h": hooks} if hooks else {})

    def machine(self) -> Machine:
        both = {"helper": self.agent, "other": self.agent}
        return flat.load(config=self.config, hooks=self.hooks, agents=both, tool_provider=self.tools)

    async def run(self, runtime: Runtime) -> flat.Outcome:
        return await runtime.start(self.machine(), execution_id="e")

    async def result(self, runtime: Runtime) -> dict[str, Any]:
        outcome = await self.run(runtime)
        assert outcome.status == "done", outcome
        result: dict[str, Any] = outcome.output["result"]
        return result

    @property
    def requests(self) -> list[AgentRequest]:
        return self.agent.requests


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime(MemoryStore(), clock=VirtualClock()) as opened:
        yield opened


def stop(result: Mapping[str, Any]) -> tuple[Any, ...]:
    return result["_tool_loop_stop"], result["content"]


# -- the course of it ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "memory", "file", "sqlite"])
async def test_tools_run_in_order_and_the_text_ends_it(kind: str, tmp_path: Path) -> None:
    stores: dict[str, Callable[[], Any]] = {
        "none": lambda: None, "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "f"), "sqlite": lambda: SQLiteStore(tmp_path / "s.db"),
    }  # fmt: skip
    store = stores[kind]()
    tested = Loop(wants(call("look", "a", at=1), call("drop", "b")), says("found"))
    async with Runtime(store, clock=VirtualClock()) as runtime:
        outcome = await tested.run(runtime)
        if store is not None:
            assert (await runtime.inspect("e")).root.context == outcome.context
    assert outcome.output["result"] == {
        "content": "found", "_tool_calls_count": 2, "_tool_loop_turns": 2, "_tool_loop_cost": 0.02,
        "_tool_loop_stop": "complete",
    }  # fmt: skip
    assert tested.tools.ran == [("look", "a", {"at": 1}), ("drop", "b", {})]
    assert outcome.context["_tool_loop_chain"] == [
        {"role": "user", "content": "the task"},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "look", "arguments": '{"at":1}'}},
            {"id": "b", "type": "function", "function": {"name": "drop", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "a", "content": "look done"},
        {"role": "tool", "tool_call_id": "b", "content": "drop done"},
        {"role": "assistant", "content": "found"},
    ]  # fmt: skip
    assert (outcome.context["_tool_loop_chain_state"], outcome.context["_tool_loop_chain_agent"]) == (
        "work",
        "helper",
    )
    assert (outcome.spent.calls, outcome.spent.cost) == (2, 0.02)
    if store is not None:
        await store.close()


async def test_the_first_call_gets_the_input_and_later_ones_the_conversation(runtime: Runtime) -> None:
    tested = Loop(wants(call()), says("x"))
    await tested.run(runtime)
    first, second = tested.requests
    assert (first.input, first.messages) == ({"task": "T"}, None)
    assert second.input == {}
    assert second.messages is not None
    assert [m["role"] for m in second.messages] == ["user", "assistant", "tool"]
    names = [tool["function"]["name"] for tool in first.tools or ()]
    assert names == ["look", "drop"]
    assert second.tools == first.tools


async def test_a_reply_that_stops_ends_it_even_with_tool_calls_in_it(runtime: Runtime) -> None:
    tested = Loop(says("text", tool_calls=(call(),)))
    outcome = await tested.run(runtime)
    assert stop(outcome.output["result"]) == ("complete", "text")
    assert tested.tools.ran == []
    # Nobody will answer that call, and a provider would refuse a conversation with it.
    assert outcome.context["_tool_loop_chain"][-1] == {"role": "assistant", "content": "text"}


async def test_a_reply_that_wants_tools_and_names_none_goes_on(runtime: Runtime) -> None:
    tested = Loop(wants(), says("x"))
    assert stop(await tested.result(runtime)) == ("complete", "x")
    assert len(tested.requests) == 2


@pytest.mark.parametrize("off", [False, {}])
async def test_an_empty_tool_loop_is_a_plain_call(runtime: Runtime, off: Any) -> None:
    assert (await Loop(says("x"), loop=off).result(runtime))["content"] == "x"


async def test_the_execution_of_the_state_is_not_used(runtime: Runtime) -> None:
    failing = AgentFailed("busy", code="rate_limit", retryable=True)
    tested = Loop(failing, says("x"), execution={"type": "retry", "backoffs": [1]})
    outcome = await tested.run(runtime)
    assert outcome.status == "failed"
    assert len(tested.requests) == 1


# -- limits ----------------------------------------------------------------------------------


async def test_max_turns_asks_for_a_last_word_without_tools(runtime: Runtime) -> None:
    tested = Loop(wants(call()), says("last"), loop={"max_turns": 1})
    outcome = await tested.run(runtime)
    assert stop(outcome.output["result"]) == ("max_turns", "last")
    assert outcome.output["result"]["_tool_loop_turns"] == 1
    assert outcome.context["_tool_loop_stop"] == "max_turns"
    assert len(tested.tools.ran) == 1
    last = tested.requests[-1]
    assert last.tools == []
    assert last.messages is not None
    assert last.messages[-1] == {"role": "user", "content": LAST_WORDS}
    assert outcome.context["_tool_loop_chain"][-1] == {"role": "assistant", "content": "last"}
    # It counts for the machine, and not for the loop.
    assert outcome.spent.calls == 2
    assert outcome.output["result"]["_tool_loop_cost"] == 0.01


async def test_max_tool_calls_runs_none_of_a_batch_that_is_too_large(runtime: Runtime) -> None:
    tested = Loop(wants(call(id="a"), call(id="b")), says("forced"), loop={"max_tool_calls": 1})
    outcome = await tested.run(runtime)
    assert stop(outcome.output["result"]) == ("max_tool_calls", "forced")
    assert tested.tools.ran == []
    messages = tested.requests[-1].messages
    assert messages is not None
    assert [m.get("tool_call_id") for m in messages if m["role"] == "tool"] == ["a", "b"]


async def test_a_text_that_is_there_already_is_the_last_word(runtime: Runtime) -> None:
    tested = Loop(wants(call(), call(id="b"), text="that"), loop={"max_tool_calls": 1})
    assert stop(await tested.result(runtime)) == ("max_tool_calls", "that")
    assert len(tested.requests) == 1


async def test_max_cost_ends_it(runtime: Runtime) -> None:
    tested = Loop(wants(call(), cost=0.5), says("x"), loop={"max_cost": 0.4})
    assert stop(await tested.result(runtime)) == ("cost_limit", "x")


async def test_total_timeout_ends_it_between_two_turns(runtime: Runtime) -> None:
    tools = Tools({"look": After(20, "slow")}, clock=runtime.clock)
    tested = Loop(wants(call()), says("x"), loop={"total_timeout": 10}, tools=tools)
    assert stop(await tested.result(runtime)) == ("timeout", "x")
    assert len(tools.ran) == 1


async def test_a_last_word_that_fails_is_done_without(runtime: Runtime) -> None:
    tested = Loop(wants(call()), AgentFailed("down", code="server_error"), loop={"max_turns": 1})
    assert stop(await tested.result(runtime)) == ("max_turns", None)


async def test_limits_may_be_templates(runtime: Runtime) -> None:
    tested = Loop(wants(call()), says("x"), loop={"max_turns": "{{ context.most }}"}, context={"most": 1})
    assert stop(await tested.result(runtime)) == ("max_turns", "x")


async def test_a_limit_that_is_no_number_is_an_error_that_names_it(runtime: Runtime) -> None:
    tested = Loop(says("x"), loop={"max_turns": "{{ context.most }}"}, context={"most": "many"})
    outcome = await tested.run(runtime)
    assert outcome.failure is not None
    assert "max_turns should be a number, and is 'many'" in outcome.failure.message


async def test_zero_is_no_limit(runtime: Runtime) -> None:
    limits = {"max_turns": 0, "max_tool_calls": 0, "tool_timeout": 0, "total_timeout": 0, "max_cost": 0}
    tested = Loop(*[wants(call())] * 30, says("x"), loop=limits)
    assert stop(await tested.result(runtime)) == ("complete", "x")
    assert len(tested.tools.ran) == 30


# -- tools -----------------------------------------------------------------------------------


def told(tested: Loop, number: int = 1) -> list[str]:
    """What the model read as answers of its tools, at its call of this number."""
    return [m["content"] for m in tested.requests[number].messages or () if m["role"] == "tool"]


async def test_what_goes_wrong_in_a_tool_is_told_to_the_model(runtime: Runtime) -> None:
    tools = Tools({"look": OSError("disk"), "drop": After(9, "late")}, clock=runtime.clock)
    tested = Loop(wants(call(), call("drop", "b")), says("x"), tools=tools, loop={"tool_timeout": 5})
    assert (await tested.result(runtime))["_tool_calls_count"] == 2
    assert told(tested) == ["Error executing 'look': disk", "Tool 'drop' timed out after 5s"]


async def test_without_a_provider_the_model_is_told_so(runtime: Runtime) -> None:
    tested = Loop(wants(call()), says("x"))
    machine = flat.load(config=tested.config, agents={"helper": tested.agent, "other": tested.agent})
    await runtime.start(machine)
    assert told(tested) == ["No tool provider configured for 'look'"]
    assert tested.requests[0].tools == []


async def test_denied_tools_and_those_not_allowed_do_not_run(runtime: Runtime) -> None:
    limits = {"allowed_tools": ["look", "drop"], "denied_tools": ["drop"]}
    tested = Loop(wants(call("drop", "a"), call("else", "b"), call("look", "c")), says("x"), loop=limits)
    assert (await tested.result(runtime))["_tool_calls_count"] == 1
    assert told(tested) == ["Tool 'drop' is not allowed.", "Tool 'else' is not allowed.", "look done"]
    assert [name for name, _, _ in tested.tools.ran] == ["look"]


async def test_an_empty_list_allows_nothing(runtime: Runtime) -> None:
    tested = Loop(wants(call()), says("x"), loop={"allowed_tools": []})
    assert (await tested.result(runtime))["_tool_calls_count"] == 0


async def test_the_provider_of_the_hooks_comes_before_the_machines(runtime: Runtime) -> None:
    mine = Tools({"look": "mine"})

    class Own(MachineHooks):
        def get_tool_provider(self, state_name: str) -> Any:
            return mine if state_name == "work" else None

    tested = Loop(wants(call()), says("x"), hooks=Own)
    await tested.run(runtime)
    assert told(tested) == ["mine"]
    assert tested.tools.ran == []


async def test_what_a_tool_returns_that_is_not_text_is_told_as_json(runtime: Runtime) -> None:
    tested = Loop(wants(call()), says("x"), tools=Tools({"look": {"a": [1]}}))
    await tested.run(runtime)
    assert told(tested) == ['{"a":[1]}']


# -- hooks -----------------------------------------------------------------------------------


async def test_hooks_see_the_calls_and_each_result(runtime: Runtime) -> None:
    seen: list[Any] = []

    class Seeing(MachineHooks):
        def on_tool_calls(self, state_name: str, tool_calls: Any, context: dict[str, Any]) -> dict[str, Any]:
            seen.append((state_name, [c["name"] for c in tool_calls], context["_tool_loop_turns"]))
            return context

        async def on_tool_result(
            self, state_name: str, tool_result: Any, context: dict[str, Any]
        ) -> dict[str, Any]:
            seen.append(dict(tool_result))
            context["noted"] = context.get("noted", 0) + 1
            return context

    tools = Tools({"drop": ValueError("no")})
    tested = Loop(wants(call("look", "a", q=1), call("drop", "b")), says("x"), hooks=Seeing, tools=tools)
    outcome = await tested.run(runtime)
    assert seen == [
        ("work", ["look", "drop"], 1),
        {"tool_call_id": "a", "name": "look", "arguments": {"q": 1}, "content": "look done", "is_error": False},
        {"tool_call_id": "b", "name": "drop", "arguments": {}, "content": "Error executing 'drop': no",
         "is_error": True},
    ]  # fmt: skip
    assert outcome.context["noted"] == 2


def setting(point: str, **values: Any) -> type[MachineHooks]:
    """Hooks that put values into the context at a point, the first time."""

    class Setting(MachineHooks):
        done = False

        def _set(self, at: str, context: dict[str, Any]) -> dict[str, Any]:
            if at == point and not self.done:
                self.done = True
                context.update(values)
            return context

        def on_tool_calls(self, state_name: str, tool_calls: Any, context: dict[str, Any]) -> dict[str, Any]:
            return self._set("calls", context)

        def on_tool_result(
            self, state_name: str, tool_result: Any, context: dict[str, Any]
        ) -> dict[str, Any]:
            return self._set("result", context)

    return Setting


async def test_abort_before_the_tools_runs_none(runtime: Runtime) -> None:
    tested = Loop(wants(call()), hooks=setting("calls", _abort_tool_loop=True))
    outcome = await tested.run(runtime)
    assert stop(outcome.output["result"]) == ("aborted", None)
    assert (len(tested.requests), tested.tools.ran) == (1, [])
    assert outcome.context["_tool_loop_stop"] == "aborted"


async def test_abort_after_a_tool_leaves_the_rest(runtime: Runtime) -> None:
    tested = Loop(wants(call(id="a"), call(id="b")), hooks=setting("result", _abort_tool_loop=True))
    outcome = await tested.run(runtime)
    assert stop(outcome.output["result"]) == ("aborted", None)
    assert [call_id for _, call_id, _ in tested.tools.ran] == ["a"]
    # Whoever goes on with the conversation finds an answer to every call.
    assert [m.get("tool_call_id") for m in outcome.context["_tool_loop_chain"][-2:]] == ["a", "b"]


@pytest.mark.parametrize("skip", ["b", "drop"])
async def test_skipped_tools_are_answered_and_not_counted(runtime: Runtime, skip: str) -> None:
    tested = Loop(
        wants(call(id="a"), call("drop", "b")), says("x"), hooks=setting("calls", _skip_tools=[skip])
    )
    outcome = await tested.run(runtime)
    assert outcome.output["result"]["_tool_calls_count"] == 1
    assert told(tested) == ["look done", "Tool 'drop' was skipped by policy."]
    assert "_skip_tools" not in outcome.context


@pytest.mark.parametrize("point", ["calls", "result"])
@pytest.mark.parametrize("steering", ["look left", [{"role": "user", "content": "look left"}]])
async def test_steering_messages_come_after_the_whole_batch(
    runtime: Runtime, point: str, steering: Any
) -> None:
    hooks = setting(point, _steering_messages=steering)
    tested = Loop(wants(call(id="a"), call(id="b")), says("x"), hooks=hooks)
    outcome = await tested.run(runtime)
    assert [m["role"] for m in tested.requests[1].messages or ()] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "user",
    ]
    assert (tested.requests[1].messages or ())[-1]["content"] == "look left"
    assert "_steering_messages" not in outcome.context


async def test_a_hook_that_raises_fails_the_state(runtime: Runtime) -> None:
    class Raising(MachineHooks):
        def on_tool_calls(self, state_name: str, tool_calls: Any, context: dict[str, Any]) -> dict[str, Any]:
            raise KeyError("policy")

    tested = Loop(wants(call()), hooks=Raising, on_error={"KeyError": "end"})
    outcome = await tested.run(runtime)
    assert (outcome.status, outcome.context["last_error_type"]) == ("done", "KeyError")


# -- ways out --------------------------------------------------------------------------------


ARMS = [{"condition": "context.found == true", "to": "other"}, {"to": "end"}]


async def test_a_condition_that_holds_after_a_tool_ends_it(runtime: Runtime) -> None:
    other = {"other": {"type": "final", "output": {"result": "context.result"}}}
    hooks = setting("result", found=True)
    tested = Loop(
        wants(call(id="a"), call(id="b")),
        hooks=hooks,
        context={"found": False},
        transitions=ARMS,
        states=other,
    )
    outcome = await tested.run(runtime)
    assert outcome.node == "other"
    assert stop(outcome.output["result"]) == ("transition", None)
    assert [call_id for _, call_id, _ in tested.tools.ran] == ["a"]
    assert "_tool_loop_next_state" not in outcome.context
    assert "_tool_loop_stop" not in outcome.context


async def test_a_transition_in_the_middle_may_be_redirected(runtime: Runtime) -> None:
    class Redirecting(setting("result", found=True)):  # type: ignore[misc]
        def on_transition(self, from_state: str, to_state: str, context: dict[str, Any]) -> str:
            return "end" if to_state == "other" else to_state

    other = {"other": {"type": "final"}}
    tested = Loop(wants(call()), hooks=Redirecting, context={"found": False}, transitions=ARMS, states=other)
    assert (await tested.run(runtime)).node == "end"


async def test_what_the_model_cannot_do_fails_the_state(runtime: Runtime) -> None:
    failing = AgentFailed("no", code="auth_error", type="AuthError")
    tested = Loop(wants(call()), failing, on_error={"auth_error": "end"})
    outcome = await tested.run(runtime)
    assert (outcome.status, outcome.context["last_error"]) == ("done", "no")
    assert outcome.spent.calls == 1


async def test_the_time_of_the_state_ends_it_as_an_error(runtime: Runtime) -> None:
    tools = Tools({"look": After(20, "slow")}, clock=runtime.clock)
    tested = Loop(wants(call()), says("x"), tools=tools, timeout=10)
    outcome = await tested.run(runtime)
    assert outcome.failure is not None
    assert outcome.failure.type == "TimeoutError"


# -- visits ----------------------------------------------------------------------------------


def revisiting(*answers: Any, hooks: type[MachineHooks] | None = None, loop: Any = True, **rest: Any) -> Loop:
    """The loop is visited twice, with an action in between."""
    again = {
        "again": {
            "action": "review",
            "transitions": [{"condition": "context.n >= 2", "to": "end"}, {"to": "work"}],
        }
    }

    class Reviewing(hooks or MachineHooks):  # type: ignore[misc]
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            context["n"] += 1
            if context["n"] == 1 and context.get("feedback"):
                context["_tool_loop_chain"].append({"role": "user", "content": context["feedback"]})
            return context

    context = {"n": 0, **rest.pop("context", {})}
    return Loop(
        *answers,
        loop=loop,
        hooks=Reviewing,
        states=again,
        transitions=[{"to": "again"}],
        context=context,
        **rest,
    )


async def test_a_second_visit_goes_on_with_the_conversation(runtime: Runtime) -> None:
    tested = revisiting(wants(call()), says("one"), says("two"), context={"feedback": "better!"})
    assert stop(await tested.result(runtime)) == ("complete", "two")
    messages = tested.requests[2].messages or ()
    assert [m["content"] for m in messages] == ["the task", "", "look done", "one", "better!"]
    assert tested.requests[2].input == {}


async def test_another_agent_begins_a_conversation_of_its_own(runtime: Runtime) -> None:
    states = {
        "second": {
            "agent": "other",
            "tool_loop": True,
            "input": {"q": "new"},
            "transitions": [{"to": "end"}],
        },
    }
    tested = Loop(says("one"), says("two"), transitions=[{"to": "second"}], states=states)
    outcome = await tested.run(runtime)
    assert (tested.requests[1].input, tested.requests[1].messages) == ({"q": "new"}, None)
    assert [m["content"] for m in outcome.context["_tool_loop_chain"]] == ["the task", "two"]
    assert outcome.context["_tool_loop_chain_state"] == "second"


@pytest.mark.parametrize("how", ["limit", "abort"])
async def test_a_loop_that_was_stopped_does_not_stop_the_next_one(runtime: Runtime, how: str) -> None:
    if how == "limit":
        loop = {"max_tool_calls": 1}
        tested = revisiting(wants(call(), call(id="b"), text="t"), wants(call()), says("done"), loop=loop)
    else:
        hooks = setting("calls", _abort_tool_loop=True)
        tested = revisiting(wants(call()), wants(call()), says("done"), hooks=hooks)
    outcome = await tested.run(runtime)
    assert stop(outcome.output["result"]) == ("complete", "done")
    assert len(tested.tools.ran) == 1


# -- restarts --------------------------------------------------------------------------------


async def test_a_restart_goes_on_at_the_tool_where_it_stopped(tmp_path: Path) -> None:
    reached = anyio.Event()

    class Hanging(Tools):
        async def execute_tool(self, name: str, tool_call_id: str, arguments: Any) -> Any:
            await super().execute_tool(name, tool_call_id, arguments)
            if tool_call_id == "b" and not reached.is_set():
                reached.set()
                await anyio.sleep_forever()
            return "ok"

    tested = Loop(wants(call(id="a"), call(id="b"), call(id="c")), says("x"), tools=Hanging())
    store = SQLiteStore(tmp_path / "s.db")
    async with Runtime(store) as first, anyio.create_task_group() as group:
        group.start_soon(tested.run, first)
        await reached.wait()
        group.cancel_scope.cancel()
    async with Runtime(store) as second:
        outcome = await second.resume("e", tested.machine())
    await store.close()
    assert stop(outcome.output["result"]) == ("complete", "x")
    assert [call_id for _, call_id, _ in tested.tools.ran] == ["a", "b", "b", "c"]
    assert [d.what for d in outcome.in_doubt] == ["tool look"]
    assert len(tested.requests) == 2


async def test_a_conversation_is_stored_once_and_not_with_every_turn(runtime: Runtime) -> None:
    text = "x" * 1000
    tested = Loop(*[wants(call())] * 100, says("done"), tools=Tools({"look": text}))
    await tested.run(runtime)
    written = sum(len(body) for _, _, body in await runtime.opened().bodies("e"))
    assert written < 2 * 100 * len(text) + 100_000
