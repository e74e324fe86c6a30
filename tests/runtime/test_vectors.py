"""Small machines, each with the result that the seed system gives; or, where a comment says so, the one chosen here.

Every deliberate difference has a row in `docs/compatibility.md`. The files are as people wrote them for that system:
no native types.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from runtime_machines import agents

import flat
from flat import AgentFailed, HooksRegistry, Machine, MachineHooks, MemoryStore, Outcome, Runtime
from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.errors import SpecError
from flat.testing.agents import After, ScriptedAgent
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio
DONE = {"type": "final"}


@pytest.fixture
async def runtime() -> AsyncIterator[Runtime]:
    async with Runtime(MemoryStore(), clock=VirtualClock()) as opened:
        yield opened


def file(states: Mapping[str, Any], context: Mapping[str, Any] | None = None, **data: Any) -> dict[str, Any]:
    whole = {"name": "vector", "context": dict(context or {}), "states": dict(states), **data}
    return {"spec": "flatmachine", "spec_version": "4.2.1", "data": whole}


def made(
    states: Mapping[str, Any], context: Mapping[str, Any] | None = None, *, hooks: Any = None, helper: Any = None,
    compat: bool = False, **data: Any,
) -> Machine:  # fmt: skip
    if hooks is not None:
        data.setdefault("hooks", "h")
    if helper is not None:
        data["agents"] = agents("a")
    registry = HooksRegistry({} if hooks is None else {"h": hooks})
    answering = {} if helper is None else {"a": helper}
    return flat.load(config=file(states, context, **data), hooks=registry, agents=answering, compat=compat)


def go(to: str, **state: Any) -> dict[str, Any]:
    return {**state, "transitions": [{"to": to}]}


class Raw:
    """An agent of a few lines, as people write them: it returns whatever it likes."""

    def __init__(self, value: Any) -> None:
        self.value, self.calls = value, 0

    async def call(self, request: AgentRequest) -> Any:
        self.calls += 1
        return self.value


def acts(does: Any) -> type[MachineHooks]:
    def on_action(self: Any, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        does(context)
        return context

    return type("Acts", (MachineHooks,), {"on_action": on_action})


def count(context: dict[str, Any]) -> None:
    context["n"] = context.get("n", 0) + 1


# -- where a run begins and ends ---------------------------------------------------------------


async def test_the_initial_state_is_the_one_named_start(runtime: Runtime) -> None:
    tested = made({"x": go("end"), "start": go("end"), "end": {**DONE, "output": {"ok": "1"}}})
    assert tested.program.initial == "start"


async def test_else_it_is_the_first(runtime: Runtime) -> None:
    assert made({"x": go("y"), "y": DONE}).program.initial == "x"


NOWHERE = {"s": go("nobody")}


async def test_an_unknown_target_is_an_error_at_load_and_an_empty_end_under_compat(runtime: Runtime) -> None:
    with pytest.raises(SpecError, match="nobody"):  # there: {}, without a word
        made(NOWHERE)
    outcome = await runtime.start(made(NOWHERE, compat=True))
    assert (outcome.status, outcome.output, outcome.steps) == ("done", {}, 2)


UNMATCHED = {"s": {"transitions": [{"condition": "context.x == 1", "to": "end"}]}, "end": DONE}


async def test_a_run_with_nowhere_to_go_is_stuck_and_an_empty_end_under_compat(runtime: Runtime) -> None:
    outcome = await runtime.start(made(UNMATCHED, {"x": 2}))
    assert outcome.failure is not None  # there: {}
    assert outcome.failure.type == "Stuck"
    assert (await runtime.start(made(UNMATCHED, {"x": 2}, compat=True))).output == {}


ENDLESS = {"s": {"transitions": [{"condition": "context.x == 1", "to": "end"}, {"to": "s"}]}, "end": DONE}


async def test_a_limit_of_steps_is_no_success(runtime: Runtime) -> None:
    outcome = await runtime.start(made(ENDLESS, {"x": 0}), max_steps=4)
    assert (outcome.status, outcome.output, outcome.steps) == ("limit", None, 4)  # there: {}
    outcome = await runtime.resume(outcome.execution_id, max_steps=6)  # there: {} at once
    assert (outcome.status, outcome.steps) == ("limit", 6)


@pytest.mark.parametrize(("limit", "calls"), [(3, 3), (0, 0)])
async def test_a_limit_of_agent_calls(runtime: Runtime, limit: int, calls: int) -> None:
    helper = ScriptedAgent("x")
    states = {"s": {"agent": "a", **ENDLESS["s"]}, "end": DONE}
    outcome = await runtime.start(made(states, {"x": 0}, helper=helper), max_agent_calls=limit)
    assert (outcome.status, len(helper.requests)) == ("limit", calls)  # there: {}


# -- outputs -----------------------------------------------------------------------------------


async def test_a_final_state_with_an_agent_ends_with_its_answer(runtime: Runtime) -> None:
    tested = made({"s": {**DONE, "agent": "a"}}, helper=ScriptedAgent("text"))
    assert (await runtime.start(tested)).output == {"content": "text"}


async def test_a_final_output_sees_the_context_alone(runtime: Runtime) -> None:
    states = {"s": {**DONE, "agent": "a", "output": {"x": "output.content"}}}
    outcome = await runtime.start(made(states, helper=ScriptedAgent("text"), compat=True))
    assert outcome.output == {"x": None}


@pytest.mark.parametrize(
    ("value", "payload"),
    [({"foo": 1}, {"foo": 1}), ("text", {"content": "text"}), (5, {"content": "5"}), (None, {}),
     (["a"], {"content": "['a']"})],
)  # fmt: skip
async def test_whatever_an_agent_returns_becomes_a_payload(
    runtime: Runtime, value: Any, payload: Any
) -> None:
    assert (await runtime.start(made({"s": {**DONE, "agent": "a"}}, helper=Raw(value)))).output == payload


async def test_the_context_is_rendered_except_for_what_lies_in_a_list(runtime: Runtime) -> None:
    context = {"a": "{{ input.v }}", "y": ["{{ input.v }}", {"z": "{{ input.v }}"}]}
    outcome = await runtime.start(made({"s": DONE}, context, compat=True), {"v": 7})
    assert outcome.context == {"a": "7", "y": ["7", {"z": "{{ input.v }}"}]}


async def test_entries_see_those_before_them(runtime: Runtime) -> None:
    assign = {"k1": "output.content", "k2": "context.k1", "k": {"z": "{{ output.content }}"}}
    states = {"s": go("end", agent="a", output_to_context=assign), "end": DONE}
    outcome = await runtime.start(made(states, {"k1": None}, helper=ScriptedAgent("t"), compat=True))
    assert outcome.context == {"k1": "t", "k2": "t", "k": {"z": "{{ output.content }}"}}


async def test_an_action_has_no_output_to_map(runtime: Runtime) -> None:
    states = {"s": go("end", action="x", output_to_context={"k": "text"}), "end": DONE}
    outcome = await runtime.start(made(states, hooks=acts(count), compat=True))
    assert outcome.context == {"n": 1}


# -- errors ------------------------------------------------------------------------------------


async def test_an_error_target_sees_what_failed(runtime: Runtime) -> None:
    def fail(context: dict[str, Any]) -> None:
        raise ValueError("m")

    end = {**DONE, "output": {"e": "context.last_error", "t": "context.last_error_type"}}
    tested = made(
        {"s": go("end", action="x", on_error="d"), "d": end, "end": DONE}, hooks=acts(fail), compat=True
    )
    assert (await runtime.start(tested)).output == {"e": "m", "t": "ValueError"}


async def test_null_is_not_in_any_order(runtime: Runtime) -> None:
    states = {
        "s": {"transitions": [{"condition": "context.n >= 1", "to": "e"}, {"to": "f"}]},
        "e": DONE,
        "f": DONE,
    }
    outcome = await runtime.start(made(states, {"n": None}))
    assert (outcome.status, outcome.node) == ("done", "f")  # there: TypeError out of the run


@pytest.mark.parametrize(
    ("condition", "value", "node"),
    [("(context.c or 0) > 1", 5, "f"), ("context.c.missing.deep", {}, "f"), ("context.c", "False", "e")],
)
async def test_conditions_as_they_are(runtime: Runtime, condition: str, value: Any, node: str) -> None:
    states = {"s": {"transitions": [{"condition": condition, "to": "e"}, {"to": "f"}]}, "e": DONE, "f": DONE}
    assert (await runtime.start(made(states, {"c": value}))).node == node


# -- other machines ----------------------------------------------------------------------------

A = file({"s": {**DONE, "output": {"v": "context.v"}}}, {"v": "{{ input.v | default('') }}"})
F = file({"s": go("end", action="x"), "end": DONE}, hooks="h")


def parent(state: Mapping[str, Any], context: Mapping[str, Any] | None = None, **more: Any) -> Machine:
    def fail(context: dict[str, Any]) -> None:
        raise ValueError("m")

    states = {
        "s": go("end", output_to_context={"got": "output"}, **state),
        "end": {**DONE, "output": {"got": "context.got"}},
    }
    machines = {"a": A, "f": F, **more}
    whole = file(states, {"got": None, **(context or {})}, machines=machines)
    return flat.load(config=whole, hooks=HooksRegistry({"h": acts(fail)}), compat=True)


async def got(runtime: Runtime, tested: Machine) -> Any:
    outcome = await runtime.start(tested)
    assert outcome.status == "done", outcome
    return outcome.output["got"]


async def test_a_list_of_machines(runtime: Runtime) -> None:
    tested = parent({"machine": ["a", "f"], "input": {"v": "1"}})
    assert await got(runtime, tested) == {"a": {"v": "1"}, "f": {"_error": "m", "_error_type": "ValueError"}}


async def test_items_arrive_as_text(runtime: Runtime) -> None:
    tested = parent(
        {"machine": "a", "foreach": "context.l", "input": {"v": "{{ item }}"}}, {"l": [1, {"q": 2}]}
    )
    assert await got(runtime, tested) == [{"v": "1"}, {"v": '{"q": 2}'}]


async def test_no_items(runtime: Runtime) -> None:
    assert await got(runtime, parent({"machine": "a", "foreach": "context.l"}, {"l": []})) == []  # there: {}


async def test_keys(runtime: Runtime) -> None:
    state = {
        "machine": "a",
        "foreach": "context.l",
        "as": "it",
        "key": "{{ it.id }}",
        "input": {"v": "{{ it.id }}"},
    }
    assert await got(runtime, parent(state, {"l": [{"id": 1}, {"id": 2}]})) == {
        "1": {"v": "1"},
        "2": {"v": "2"},
    }


async def test_any_in_time(runtime: Runtime) -> None:
    slow = file({"s": go("end", wait_for="never"), "end": DONE})
    tested = parent({"machine": ["slow"], "mode": "any", "timeout": 0.05}, slow=slow)
    outcome = await runtime.start(tested)
    assert outcome.status == "waiting"
    clock = runtime.clock
    assert isinstance(clock, VirtualClock)
    clock.advance(1)
    outcome = await runtime.resume(outcome.execution_id, tested)
    assert outcome.failure is not None  # there: {}, after the slow one is done
    assert outcome.failure.type == "TimeoutError"


# -- signals -----------------------------------------------------------------------------------

WAITS = {
    "w": go("end", wait_for="c", output_to_context={"got": "output"}),
    "end": {**DONE, "output": {"got": "context.got"}},
}


async def test_without_a_signal_it_waits(runtime: Runtime) -> None:
    outcome = await runtime.start(made(WAITS, {"got": None}))
    assert (outcome.status, outcome.waiting_on) == ("waiting", ("c",))
    machine = flat.FlatMachine(config_dict=file(WAITS, {"got": None}))
    assert await machine.execute() == {"_waiting": True, "_channel": "c"}


@pytest.mark.parametrize(("data", "seen"), [("str", {"value": "str"}), (None, {"value": None}), ({}, {})])
async def test_what_a_signal_says(runtime: Runtime, data: Any, seen: Any) -> None:
    await runtime.signal("c", data)
    assert (await runtime.start(made(WAITS, {"got": None}))).output == {"got": seen}


async def test_a_state_that_waits_does_nothing_else(runtime: Runtime) -> None:
    helper = ScriptedAgent("x")
    await runtime.signal("c", {"x": 1})
    outcome = await runtime.start(
        made({"w": {**WAITS["w"], "agent": "a"}, "end": DONE}, helper=helper, compat=True)
    )
    assert (outcome.status, helper.requests) == ("done", [])


# -- resuming ----------------------------------------------------------------------------------


async def test_resuming_what_is_over_gives_its_output(runtime: Runtime) -> None:
    class Ends(MachineHooks):
        def on_machine_end(self, context: dict[str, Any], final_output: Any) -> Any:
            return {"by": "hook"}

    outcome = await runtime.start(made({"s": {**DONE, "output": {"a": "1"}}}, hooks=Ends))
    assert outcome.output == {"by": "hook"}
    assert (await runtime.resume(outcome.execution_id)).output == {"by": "hook"}  # there: {"a": "1"}


async def test_resuming_an_unknown_id_with_an_input_starts_it() -> None:
    machine = flat.FlatMachine(
        config_dict=file({"s": {**DONE, "output": {"v": "context.v"}}}, {"v": "{{ input.v }}"})
    )
    assert await machine.execute(input={"v": "x"}, resume_from="new") == {"v": "x"}
    assert machine.execution_id == "new"


async def test_the_facts_of_the_machine_are_read_only(runtime: Runtime) -> None:
    def meddle(context: dict[str, Any]) -> None:
        context["machine"]["step"] = 9

    outcome = await runtime.start(made({"s": go("end", action="x"), "end": DONE}, hooks=acts(meddle)))
    assert outcome.failure is not None
    assert outcome.failure.type == "TypeError"


# -- execution types ---------------------------------------------------------------------------


async def asked(runtime: Runtime, execution: Mapping[str, Any], helper: Any) -> Outcome:
    return await runtime.start(made({"s": {**DONE, "agent": "a", "execution": execution}}, helper=helper))


async def test_the_pause_that_a_provider_names_is_kept(runtime: Runtime) -> None:
    busy = AgentFailed("busy", code="rate_limit", retryable=True, retry_after=7)
    before = runtime.clock.now()
    outcome = await asked(
        runtime, {"type": "retry", "backoffs": [1, 20], "jitter": 0}, ScriptedAgent(busy, busy, "ok")
    )
    assert outcome.output == {"content": "ok"}
    assert runtime.clock.now() - before == 27


@pytest.mark.parametrize(
    ("error", "calls"),
    [
        (AgentFailed("no", code="auth_error", retryable=False), 1),
        (ValueError("got 429 x"), 3),
    ],  # 4.2.1: 1; 2.5: 3
)
async def test_what_is_tried_again(runtime: Runtime, error: Exception, calls: int) -> None:
    helper = ScriptedAgent(error)
    outcome = await asked(runtime, {"type": "retry", "backoffs": [1, 1]}, helper)
    assert (outcome.status, len(helper.requests)) == ("failed", calls)


async def test_an_empty_answer_is_asked_for_again(runtime: Runtime) -> None:
    helper = ScriptedAgent("", "ok")  # 2.5: the same; 4.2.1: an error after one call
    outcome = await asked(runtime, {"type": "retry", "backoffs": [1], "retry_on_empty": True}, helper)
    assert (outcome.output, len(helper.requests)) == ({"content": "ok"}, 2)


async def test_a_sample_that_raises_is_left_out_and_each_call_counts_once(runtime: Runtime) -> None:
    def answer(request: AgentRequest) -> Any:
        number = request.idempotency_key[-1]
        return ValueError("no") if number == "1" else After(0.1, f"p{number}")

    outcome = await asked(
        runtime, {"type": "parallel", "n_samples": 3}, ScriptedAgent(answer, clock=runtime.clock)
    )
    assert outcome.output == {"results": [{"content": "p0"}, {"content": "p2"}], "count": 2}
    outcome = await asked(runtime, {"type": "parallel", "n_samples": 3}, ScriptedAgent("x"))
    assert outcome.spent.calls == 3  # there: 6


@pytest.mark.parametrize(
    ("answers", "execution", "winner", "samples"),
    [("aba", {"k_margin": 2}, "a", 3), ("ab", {"k_margin": 9, "max_candidates": 2}, "a", 2)],
)
async def test_votes(runtime: Runtime, answers: str, execution: Any, winner: str, samples: int) -> None:
    helper = ScriptedAgent(*answers)
    outcome = await asked(runtime, {"type": "mdap_voting", **execution}, helper)
    assert (outcome.output, len(helper.requests)) == ({"content": winner}, samples)


# -- hooks of both generations -----------------------------------------------------------------


async def test_hooks_of_the_whole_machine_run_everywhere(runtime: Runtime) -> None:
    trace: list[str] = []

    class Old(MachineHooks):
        def on_machine_start(self, context: dict[str, Any]) -> dict[str, Any]:
            trace.append("start")
            return context

        def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
            trace.append(action_name)
            return context

    await runtime.start(made({"s": go("end", action="x"), "end": DONE}, hooks=Old))
    assert trace == ["start", "x"]  # 2.5: the same; 4.2.1: ignored, with a warning


QUICK = {
    "start": {"type": "initial", "transitions": [{"to": "build"}]},
    "build": {
        "agent": "a", "execution": {"type": "retry", "backoffs": [1], "retry_on_empty": True},
        "input": {"target": "{{ context.target }}", "current": "{{ context.current }}"},
        "output_to_context": {"last": "{{ output.content }}"}, "transitions": [{"to": "append"}],
    },
    "append": {
        "action": "append_char",
        "transitions": [{"condition": "context.current == context.target", "to": "done"}, {"to": "build"}],
    },
    "done": {"type": "final", "output": {"result": "{{ context.current }}", "success": True}},
}  # fmt: skip


@pytest.mark.parametrize("hiccup", [False, True])
async def test_the_quick_start_of_the_seed(runtime: Runtime, hiccup: bool) -> None:
    def append(context: dict[str, Any]) -> None:
        context["current"] += context["last"]

    def answer(request: AgentRequest) -> str:
        target, current = request.input["target"], request.input["current"]
        if hiccup and len(current) == 1 and request.idempotency_key.endswith("/call"):
            return ""
        return str(target[len(current)])

    helper = ScriptedAgent(answer)
    tested = made(
        QUICK, {"target": "{{ input.target }}", "current": "", "last": ""}, hooks=acts(append), helper=helper
    )
    outcome = await runtime.start(tested, {"target": "Hi!"})
    assert outcome.output == {"result": "Hi!", "success": True}
    assert (len(helper.requests), outcome.steps) == (4 if hiccup else 3, 8)


# -- checks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", ["{{ context.a | int }}", "{{ context.a }}"])
async def test_the_limit_of_a_loop_may_be_a_template(runtime: Runtime, limit: str) -> None:
    """There the second form earns a warning, and works; here a text that is a number will do."""
    loop = {"agent": "a", "tool_loop": {"max_turns": limit}}
    wants = AgentResult(
        finish_reason="tool_use",
        usage=Usage(api_calls=1),
        tool_calls=({"id": "1", "name": "x", "arguments": {}},),
    )
    helper = ScriptedAgent(wants, wants, "last")
    outcome = await runtime.start(made({"s": {**DONE, **loop}}, {"a": "2"}, helper=helper))
    assert (outcome.output["_tool_loop_turns"], outcome.output["_tool_loop_stop"]) == (2, "max_turns")
