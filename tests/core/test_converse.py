"""`converse`: a model's replies and its tools' answers in, the next thing to do out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from here import AT, Here, done, failed, here, ids

from flat.core.condition import Condition
from flat.core.effects import CallAgent, RunHook, RunTool
from flat.core.events import Reply, Spent, Told
from flat.core.grown import Grown
from flat.core.op import Answer, Block, Next, Raise
from flat.core.ops import Arm, Converse, Guardrails
from flat.core.ops.branch import NEXT
from flat.core.ops.converse import CHAIN, LAST_WORDS
from flat.core.template import Template, compile_value
from flat.errors import ExpressionError

QUIET = Converse(agent="a", on_calls=False, on_result=False)
HOOKED = Converse(agent="a")


def limited(**limits: Any) -> Converse:
    return replace(QUIET, limits=Guardrails(**limits))


def wants(*names: str, text: str | None = None) -> Reply:
    calls = tuple({"id": f"c{n}", "name": name, "arguments": {"n": n}} for n, name in enumerate(names))
    spent = Spent(calls=1, cost=0.5)
    return Reply(payload={}, text=text, finish_reason="tool_use", tool_calls=calls, prompt="go", spent=spent)


def says(text: str) -> Reply:
    return Reply(payload={"content": text}, text=text, finish_reason="stop", prompt="go")


class Course:
    """A loop, driven by hand."""

    def __init__(self, op: Converse, place: Here | None = None) -> None:
        self.op = op
        self.place = place or here()
        self.answer: Answer = op.start(self.place)

    def then(self, value: Any, *, at: float = AT) -> Course:
        (effect_id,) = ids(self.answer)
        self.place = self.place.after(self.answer, at=at)
        event = failed(effect_id, value) if isinstance(value, str) else done(effect_id, value)
        self.answer = self.op.resume(self.place, event)
        return self

    @property
    def effect(self) -> Any:
        assert isinstance(self.answer, Block), self.answer
        (effect,) = self.answer.effects
        return effect

    @property
    def context(self) -> Mapping[str, Any]:
        assert isinstance(self.answer, Block | Next)
        assert isinstance(self.answer.context, Mapping)
        return self.answer.context

    @property
    def output(self) -> Mapping[str, Any]:
        assert isinstance(self.answer, Next), self.answer
        assert isinstance(self.answer.output, Mapping)
        return self.answer.output

    def again(self) -> Answer:
        """What is asked for after a restart."""
        return self.op.start(self.place.after(self.answer))


def test_the_first_call_has_the_input_and_no_messages() -> None:
    op = replace(QUIET, input=compile_value({"q": "context.q"}), session_id=Template("{{ context.q }} "))
    effect = Course(op, here(q="x")).effect
    assert isinstance(effect, CallAgent)
    assert (effect.input, effect.messages, effect.tools, effect.session_id) == (
        {"q": "x"},
        None,
        "offered",
        "x",
    )


def test_the_conversation_grows_and_is_never_copied_anew() -> None:
    course = Course(QUIET).then(wants("look"))
    before = course.context[CHAIN]
    course.then(Told(content="seen"))
    assert type(course.context[CHAIN]) is Grown
    assert course.context[CHAIN].grew_from(before)
    assert [m["role"] for m in course.context[CHAIN]] == ["user", "assistant", "tool"]
    assert course.effect.messages is course.context[CHAIN]


def test_every_effect_of_a_visit_has_an_id_of_its_own() -> None:
    course, seen = Course(HOOKED), []
    values: list[Any] = [wants("a", "b"), {}, Told(content="1"), {}, Told(content="2"), {}, wants("c"), {}]
    for value in [*values, Told(content="3")]:
        seen.append(course.effect.id.removeprefix("0/3/converse."))
        course.then({**course.context} if value == {} else value)
    seen.append(course.effect.id.removeprefix("0/3/converse."))
    assert seen == [
        "model0", "tool_calls1-0", "tool0", "tool_result1-1", "tool1", "tool_result1-2", "model1", "tool_calls2-2",
        "tool2", "tool_result2-3",
    ]  # fmt: skip


def test_a_restart_asks_for_the_one_thing_that_has_no_answer() -> None:
    course = Course(HOOKED)
    values: list[Any] = [wants("a", "b"), {}, Told(content="1"), {}, Told(content="2", is_error=True), {}]
    for value in values:
        assert course.again() == replace(course.answer, context=course.again().context)  # type: ignore[arg-type,union-attr]
        course.then({**course.context} if value == {} else value)
    again = course.again()
    assert isinstance(again, Block)
    assert again.effects == (course.effect,)


def test_hooks_are_told_the_calls_and_the_result() -> None:
    course = Course(HOOKED).then(wants("look"))
    assert isinstance(course.effect, RunHook)
    assert (course.effect.point, [c["name"] for c in course.effect.arguments["calls"]]) == (
        "tool_calls",
        ["look"],
    )
    course.then({**course.context}).then(Told(content="bad", is_error=True))
    assert course.effect.arguments == {
        "result": {
            "tool_call_id": "c0",
            "name": "look",
            "arguments": {"n": 0},
            "content": "bad",
            "is_error": True,
        }
    }


@pytest.mark.parametrize(
    ("limits", "value", "at", "stop"),
    [
        ({"max_turns": 1}, wants("a"), AT, "max_turns"),
        ({"max_cost": 0.5}, wants("a"), AT, "cost_limit"),
        ({"total_timeout": 9}, wants("a"), AT + 9, "timeout"),
        ({"max_tool_calls": 1}, wants("a", "b"), AT, "max_tool_calls"),
    ],
)
def test_a_limit_asks_for_the_last_word_without_tools(
    limits: Any, value: Reply, at: float, stop: str
) -> None:
    course = Course(limited(**limits)).then(value)
    if stop != "max_tool_calls":
        course.then(Told(content="seen"), at=at)
    effect = course.effect
    assert (effect.id, effect.tools) == ("0/3/converse.last", "withheld")
    assert effect.messages[-1] == {"role": "user", "content": LAST_WORDS}
    answered = {m["tool_call_id"] for m in effect.messages if m["role"] == "tool"}
    assert answered == {c["id"] for m in effect.messages for c in m.get("tool_calls", ())}
    assert course.again() == replace(course.answer, context=course.again().context)  # type: ignore[arg-type,union-attr]
    course.then(says("so"))
    assert (course.output["_tool_loop_stop"], course.output["content"]) == (stop, "so")
    assert course.context["_tool_loop_stop"] == stop


@pytest.mark.parametrize("value", ["Boom", says(" ")])
def test_without_a_last_word_there_is_none(value: Any) -> None:
    course = Course(limited(max_turns=1)).then(wants("a")).then(Told(content="x")).then(value)
    assert course.output["content"] is None


def test_text_that_came_with_the_calls_is_the_last_word() -> None:
    course = Course(limited(max_tool_calls=1)).then(wants("a", "b", text="that"))
    assert (course.output["_tool_loop_stop"], course.output["content"]) == ("max_tool_calls", "that")


def test_a_model_that_fails_fails_the_state_and_a_tool_in_doubt_does_not() -> None:
    assert isinstance(Course(QUIET).then("Boom").answer, Raise)
    course = Course(QUIET).then(wants("a")).then("InDoubt")
    assert course.context[CHAIN][-1] == {"role": "tool", "tool_call_id": "c0", "content": "it failed"}


def test_a_tool_that_is_out_of_time_fails_the_state() -> None:
    assert isinstance(Course(QUIET).then(wants("a")).then("TimeoutError").answer, Raise)


def test_a_tool_gets_its_time_and_the_states() -> None:
    effect = Course(limited(tool_timeout=3), Here(deadline=AT + 9)).then(wants("a")).effect
    assert isinstance(effect, RunTool)
    assert (effect.timeout, effect.deadline, effect.call_id) == (3, AT + 9, "c0")


def test_a_condition_that_holds_after_a_tool_leaves() -> None:
    arms = (Arm(Condition("context._tool_calls_count >= 1"), "next"), Arm(None, "end"))
    course = Course(replace(QUIET, arms=arms)).then(wants("a", "b")).then(Told(content="x"))
    assert course.output["_tool_loop_stop"] == "transition"
    assert course.context[NEXT] == "next"
    assert "_tool_loop_stop" not in course.context


def test_an_unconditional_transition_does_not_leave() -> None:
    course = Course(replace(QUIET, arms=(Arm(None, "end"),))).then(wants("a", "b")).then(Told(content="x"))
    assert isinstance(course.effect, RunTool)


def test_a_conversation_of_another_state_or_agent_is_not_gone_on_with() -> None:
    chain = [{"role": "user", "content": "old"}]
    mine = {CHAIN: chain, "_tool_loop_chain_state": "work", "_tool_loop_chain_agent": "a"}
    assert Course(QUIET, here(**mine)).effect.messages == chain
    for other in ({"_tool_loop_chain_state": "x"}, {"_tool_loop_chain_agent": "b"}, {CHAIN: "spoilt"}):
        assert Course(QUIET, here(**{**mine, **other})).effect.messages is None


@pytest.mark.parametrize("value", [None, "", 0, "0", -1, "-3.5"])
def test_no_limit_is_zero(value: Any) -> None:
    course = Course(limited(max_turns=Template("context.most", None, True)), here(most=value))
    assert course.again() is not None
    assert course.place.after(course.answer).local["limits"]["max_turns"] == 0


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(ExpressionError, match="max_cost should be a number"):
        Course(limited(max_cost=Template("much")))
