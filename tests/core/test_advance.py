"""The interpreter, by calls: an event in, a snapshot and effects out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

import pytest
from small import AT, act, counting, done, failed, final, go, node, one, program, started

from flat.core.advance import UnexpectedEvent, advance, advance_all
from flat.core.effects import AwaitSignal, CallAgent, RunAction, RunHook, Sleep, StartChild
from flat.core.events import Cancelled, Done, Doubted, Failed, Reply, Resumed, Spent, Started, Steered
from flat.core.failure import Failure
from flat.core.hookref import HookRef
from flat.core.op import Answer, Block, Goto, View
from flat.core.ops import Action, Assign, Branch, Call, Finish, Hook, Wait
from flat.core.program import END, START, Program, bound
from flat.core.strategies import Retry, Sample
from flat.core.template import Template, compile_value
from flat.core.turn import FUSE, Advance

HOOKS = (HookRef("h"),)


def text(source: str) -> Template:
    return Template(source, None, True)


def reply(payload: Any, calls: int = 1) -> Reply:
    return Reply(payload=payload, spent=Spent(calls=calls, input_tokens=3, output_tokens=2, cost=0.5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """Asks for a pause and for a child that it does not let go of, and comes back to its node after the pause."""

    key: str = "beside"
    kind: str = "beside"

    def start(self, here: View) -> Answer:
        child = StartChild("0/1/beside.child", "work", "other", {}, patient=False)
        return Block((Sleep(here.effect_id(self.key), "work", AT), child))

    def resume(self, here: View, event: Done | Failed) -> Answer:
        return Goto("work", here.context, ("0/1/beside.child",))


# -- each op -----------------------------------------------------------------------------


def test_an_action_is_asked_for_under_a_derived_id_and_its_answer_becomes_the_context() -> None:
    of = one(Action(action="go", in_doubt="ask"))
    step = started(of)
    assert step.effects == (RunAction("0/1/action", "work", "go", (), {"n": 1}, None, "ask"),)
    assert step.snapshot.pending == ("0/1/action",)
    last = done(of, step, {"n": 2})
    assert last.snapshot.status == "done"
    assert last.snapshot.root.context == {"n": 2}
    assert last.path == (("leave", "work", 1), ("enter", "end", 2), ("leave", "end", 2))


def test_an_assignment_sees_the_entries_before_it_and_what_was_answered() -> None:
    of = program(
        node(
            "work",
            Call(agent="a"),
            Assign(entries=(("a", text("{{ output.x }}")), ("b", text("{{ context.a + 1 }}")), ("c", [1]))),
            go((None, "end")),
        ),
        final(),
        context={"n": 1},
    )
    last = done(of, started(of), reply({"x": 4}))
    assert last.snapshot.root.context == {"n": 1, "a": 4, "b": 5, "c": [1]}


def test_a_branch_takes_the_first_arm_that_holds() -> None:
    of = program(
        node("work", go(("context.n == 2", "no"), ("context.n == 1", "end"), (None, "no"))),
        final(),
        final("no"),
        context={"n": 1},
    )
    assert started(of).snapshot.root.node == "end"


def test_a_branch_without_a_matching_arm_is_stuck_and_not_done() -> None:
    of = program(node("work", go(("context.n == 2", "end"))), final(), context={"n": 1})
    last = started(of).snapshot
    assert last.status == "failed"
    assert last.output is None
    assert last.failure is not None
    assert last.failure.type == "Stuck"
    assert '"work"' in last.failure.message


def test_a_call_gives_the_payload_as_output_and_counts_what_was_spent() -> None:
    of = program(
        node("work", Call(agent="a", input=compile_value({"q": "{{ context.n }}"}, native=True)), Finish()),
        context={"n": 1},
    )
    step = started(of)
    (effect,) = step.effects
    assert isinstance(effect, CallAgent)
    assert (effect.agent, effect.input, effect.id) == ("a", {"q": 1}, "0/1/call")
    last = done(of, step, reply({"text": "hi"})).snapshot
    assert last.output == {"text": "hi"}
    assert last.spent == Spent(calls=1, input_tokens=3, output_tokens=2, cost=0.5)


def test_a_failed_call_counts_what_it_spent_all_the_same() -> None:
    of = one(Call(agent="a"))
    step = started(of)
    failure = Failure(type="X", message="x")
    last = advance(of, step.snapshot, Failed("0/1/call", failure, AT, Spent(calls=1))).snapshot
    assert last.spent.calls == 1


def test_a_final_node_renders_its_output() -> None:
    of = program(
        node("end", Finish(output=compile_value({"n": "{{ context.n }}"}, native=True))), context={"n": 7}
    )
    assert started(of).snapshot.output == {"n": 7}


def test_a_wait_parks_on_the_rendered_channel_and_hands_on_the_payload() -> None:
    of = program(node("work", Wait(channel=text("go/{{ context.n }}")), Finish()), context={"n": 7})
    step = started(of)
    assert step.effects == (AwaitSignal("0/1/wait", "work", "go/7"),)
    assert step.snapshot.status == "waiting"
    assert done(of, step, {"ok": True}).snapshot.output == {"ok": True}
    assert done(of, step, "yes").snapshot.output == {"value": "yes"}


def test_a_hook_on_entering_answers_with_the_context() -> None:
    of = program(
        node("work", Hook(point="state_enter", key="enter"), Finish(), hooks=HOOKS), context={"n": 1}
    )
    step = started(of)
    assert step.effects == (RunHook("0/1/enter", "work", "state_enter", HOOKS, {"n": 1}),)
    assert done(of, step, {"n": 5}).snapshot.root.context == {"n": 5}


def test_a_hook_on_leaving_keeps_its_changes_to_the_context_and_not_its_answer() -> None:
    of = program(
        node("work", Call(agent="a"), Hook(point="state_exit", key="exit"), Finish(), hooks=HOOKS),
        context={"n": 1},
    )
    step = done(of, started(of), reply("first"))
    last = done(of, step, Steered("second", {"n": 5})).snapshot
    assert (last.output, last.root.context) == ("first", {"n": 5})


def test_a_steered_transition_leads_where_the_hook_says() -> None:
    of = program(
        node("work", go((None, "end"), steered=True), hooks=HOOKS), final(), final("other"), context={"n": 1}
    )
    step = started(of)
    assert isinstance(step.effects[0], RunHook)
    assert step.effects[0].arguments == {"to": "end"}
    there = done(of, step, Steered("other", {"n": 2})).snapshot
    assert (there.root.node, there.root.context) == ("other", {"n": 2})
    assert done(of, step, Steered(None, {})).snapshot.root.node == "end"


def test_a_hook_at_the_end_of_the_machine_changes_the_output() -> None:
    of = program(
        node(START, Hook(point="machine_start", key="machine_start"), go((None, "end"))),
        node("end", Finish(output=compile_value({"n": "{{ context.n }}"}, native=True))),
        node(END, Hook(point="machine_end", key="machine_end"), Finish()),
        context={"n": 1},
        lifecycle=HOOKS,
    )
    step = started(of)
    assert step.effects[0].id == "0/0/machine_start"
    step = done(of, step, {"n": 2})
    assert isinstance(step.effects[0], RunHook)
    assert step.effects[0].arguments == {"output": {"n": 2}}
    last = done(of, step, Steered({"m": 3}, {"n": 2})).snapshot
    assert (last.output, last.steps, last.status) == ({"m": 3}, 1, "done")


def test_an_error_hook_chooses_the_next_node_or_lets_the_error_stand() -> None:
    of = program(node("work", Action(action="x"), hooks=HOOKS), final(), context={"n": 1})
    step = failed(of, started(of))
    assert isinstance(step.effects[0], RunHook)
    assert step.effects[0].point == "error"
    assert done(of, step, Steered("end", {"n": 9})).snapshot.root.node == "end"
    stands = done(of, step, Steered(None, {"n": 9})).snapshot
    assert (stands.status, stands.root.context) == ("failed", {"n": 9})
    assert stands.failure is not None
    assert stands.failure.type == "Boom"
    again = failed(of, step, "Worse").snapshot
    assert again.failure is not None
    assert again.failure.type == "Worse"


def test_hook_points_that_nobody_steers_are_left_out_and_the_digest_stays() -> None:
    of = program(
        node("work", Hook(point="state_enter", key="enter"), go((None, "end"), steered=True), hooks=HOOKS),
        final(),
        lifecycle=HOOKS,
        context={},
    )
    with_enter = bound(of, {HOOKS: frozenset({"state_enter"})})
    assert [op.key for op in with_enter.nodes["work"].ops] == ["enter", "branch"]
    bare = bound(of, {HOOKS: frozenset()})
    assert [op.key for op in bare.nodes["work"].ops] == ["branch"]
    assert bare.digest == of.digest
    assert started(bare).snapshot.status == "done"


@pytest.mark.parametrize("op", [Assign(entries=()), Finish()])
def test_pure_ops_cannot_be_answered(op: Any) -> None:
    with pytest.raises(AssertionError):
        op.resume(None, Done("x", None, AT))


# -- events that do not fit -----------------------------------------------------------------


@pytest.mark.parametrize("effect_id", ["0/1/other", "0/2/action", "7/1/action", "", "0/1/action.1"])
def test_an_answer_that_nobody_waits_for_is_refused_and_changes_nothing(effect_id: str) -> None:
    of = one(Action(action="go"))
    step = started(of)
    before = replace(step.snapshot)
    with pytest.raises(UnexpectedEvent, match="not pending"):
        advance(of, step.snapshot, Done(effect_id, {}, AT))
    assert step.snapshot == before


@pytest.mark.parametrize(
    "event",
    [
        Resumed(AT),
        Cancelled(AT),
        Doubted((), AT),
        Started({}, AT),
        Done("0/1/action", {}, AT),
        Failed("0/1/action", Failure(type="x", message=""), AT),
    ],
)
def test_what_is_finished_stays_finished(event: Any) -> None:
    of = one(Action(action="go"))
    cancelled = advance(of, started(of).snapshot, Cancelled(AT, "enough"))
    assert (cancelled.snapshot.status, cancelled.snapshot.reason, cancelled.effects) == (
        "cancelled",
        "enough",
        (),
    )
    assert cancelled.snapshot.pending == ("0/1/action",)
    with pytest.raises(UnexpectedEvent):
        advance(of, cancelled.snapshot, event)


def test_doubt_stops_the_execution_and_a_resume_asks_again() -> None:
    of = one(Action(action="go", in_doubt="ask"))
    step = started(of)
    doubted = advance(of, step.snapshot, Doubted(("0/1/action",), AT))
    assert (doubted.snapshot.status, doubted.snapshot.reason) == ("in_doubt", "0/1/action")
    assert advance(of, doubted.snapshot, Resumed(AT)).effects == step.effects


# -- limits ----------------------------------------------------------------------------------


def loop() -> Program:
    return program(
        node("work", Action(action="count"), go(("context.n >= 5", "end"), (None, "work"))),
        final(),
        context={"n": 0},
    )


def test_max_steps_stops_with_its_own_status_and_resumes_with_more() -> None:
    of = loop()
    stopped = act(of, started(of, max_steps=3), counting)
    assert (stopped.snapshot.status, stopped.snapshot.steps, stopped.snapshot.output) == ("limit", 3, None)
    assert "max_steps (3)" in stopped.snapshot.reason
    same = advance(of, stopped.snapshot, Resumed(AT))
    assert same.snapshot.status == "limit"
    more = act(of, advance(of, same.snapshot, Resumed(AT, max_steps=10)), counting)
    assert (more.snapshot.status, more.snapshot.root.context["n"], more.snapshot.reason) == ("done", 5, "")
    assert more.snapshot.steps == 6


def test_max_agent_calls_stops_before_the_next_node() -> None:
    of = program(node("work", Call(agent="a"), go((None, "work"))), context={})
    step = started(of, max_agent_calls=2)
    step = done(of, step, reply("one"))
    step = done(of, step, reply("two"))
    assert (step.snapshot.status, step.snapshot.spent.calls, step.effects) == ("limit", 2, ())
    assert advance(of, step.snapshot, Resumed(AT, max_agent_calls=3)).effects[0].id == "0/3/call"


def test_an_endless_loop_without_effects_is_stopped() -> None:
    of = program(node("a", go((None, "b"))), node("b", go((None, "a"))), context={})
    last = started(of, max_steps=None).snapshot
    assert last.failure is not None
    assert (last.status, last.failure.type) == ("failed", "LimitExceeded")
    assert str(FUSE) in last.failure.message


def test_errors_that_lead_in_a_circle_stop_at_the_limit() -> None:
    of = program(node("a", go(("context.x == 1", "b")), on_error={"default": "a"}), context={})
    assert started(of, max_steps=5000).snapshot.status == "limit"
    endless = started(of, max_steps=None).snapshot
    assert endless.failure is not None
    assert endless.failure.type == "LimitExceeded"


# -- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ({"RateLimited": "a", "rate_limit": "b", "default": "c"}, "a"),
        ({"rate_limit": "b", "Exception": "a", "default": "c"}, "b"),
        ({"ConnectionError": "a", "default": "c"}, "a"),
        ({"default": "c", "OSError": "b", "ConnectionError": "a"}, "a"),
        ({"default": "c"}, "c"),
        ({"KeyError": "a"}, None),
    ],
)
def test_an_error_goes_to_its_class_then_its_code_then_its_bases_then_the_default(
    targets: dict[str, str], expected: str | None
) -> None:
    failure = Failure(
        type="RateLimited",
        message="slow down",
        names=("rate_limit", "ConnectionError", "OSError", "Exception"),
    )
    of = program(node("work", Action(action="x"), on_error=targets), *map(final, "abc"), context={"n": 1})
    last = failed(of, started(of), failure).snapshot
    assert last.status == ("failed" if expected is None else "done")
    assert last.root.node == (expected or "work")
    assert last.root.context == {"n": 1, "last_error": "slow down", "last_error_type": "RateLimited"}
    assert last.failure == (failure if expected is None else None)


def test_an_error_in_a_template_is_routed_like_any_other() -> None:
    of = program(
        node(
            "work", Assign(entries=(("x", text("{{ 1 / context.n }}")),)), on_error={"ExpressionError": "end"}
        ),
        final(),
        context={"n": 0},
    )
    last = started(of).snapshot
    assert last.root.context["last_error_type"] == "ExpressionError"
    assert last.status == "done"


def test_a_target_that_does_not_exist_fails_by_name() -> None:
    of = program(node("work", go((None, "end"), steered=True), hooks=HOOKS), final(), context={})
    last = done(of, started(of), Steered("nowhere", {})).snapshot
    assert last.failure is not None
    assert (last.failure.type, last.status) == ("UnknownName", "failed")
    assert "nowhere" in last.failure.message


def test_a_node_whose_ops_lead_nowhere_is_stuck() -> None:
    of = program(node("work", Action(action="x")), context={"n": 1})
    last = done(of, started(of), {}).snapshot
    assert last.failure is not None
    assert last.failure.type == "Stuck"


# -- cursors and time -----------------------------------------------------------------------------


def test_a_cursor_by_name_survives_an_op_that_is_inserted_before_it() -> None:
    old = one(Action(action="go"))
    step = started(old)
    new = program(
        node(
            "work",
            Assign(entries=(("seen", 1),)),
            Action(action="go"),
            Assign(entries=(("then", 2),)),
            go((None, "end")),
        ),
        final(),
        context={"n": 1},
    )
    again = advance(new, step.snapshot, Resumed(AT))
    assert again.effects == step.effects
    assert done(new, again, {"n": 3}).snapshot.root.context == {"n": 3, "then": 2}
    assert done(new, step, {"n": 3}).snapshot.root.context == {"n": 3, "then": 2}


@pytest.mark.parametrize("event", [Resumed(AT), Done("0/1/action", {}, AT)])
@pytest.mark.parametrize(
    "new",
    [program(node("work", go((None, "end"))), final()), program(node("other", go((None, "end"))), final())],
)
def test_an_op_that_is_lost_is_a_clear_failure(event: Any, new: Program) -> None:
    step = started(one(Action(action="go")))
    last = advance(new, step.snapshot, event).snapshot
    assert last.failure is not None
    assert (last.status, last.failure.type) == ("failed", "IncompatibleSnapshot")
    assert "work/action" in last.failure.message


def test_a_resume_asks_again_under_the_same_id() -> None:
    of = one(Action(action="go"))
    step = started(of)
    again = advance(of, step.snapshot, Resumed(AT + 50))
    assert again.effects == step.effects
    assert again.snapshot.pending == step.snapshot.pending
    assert again.path == ()


def test_a_deadline_is_set_on_entering_and_survives_a_restart() -> None:
    of = one(Action(action="go"), timeout=30.0)
    step = started(of)
    assert step.effects[0].deadline == AT + 30
    again = advance(of, step.snapshot, Resumed(AT + 20))
    assert again.effects[0].deadline == AT + 30
    assert done(of, again, {"n": 1}).snapshot.root.deadline is None


# -- retry ---------------------------------------------------------------------------------------

BUSY = Failure(type="AgentFailed", message="busy", retryable=True)


def retrying(**rest: Any) -> Program:
    return one(Call(agent="a", strategy=Retry(backoffs=(10.0, 20.0), jitter=rest.pop("jitter", 0.0), **rest)))


def test_a_retry_pauses_then_asks_again_under_another_id() -> None:
    of = retrying()
    step = failed(of, started(of), BUSY)
    assert step.effects == (Sleep("0/1/call.0.pause", "work", AT + 10),)
    step = done(of, step, at=AT + 10)
    assert step.effects[0].id == "0/1/call.1"
    step = failed(of, step, BUSY, at=AT + 11)
    assert step.effects == (Sleep("0/1/call.1.pause", "work", AT + 31),)
    step = done(of, step, at=AT + 31)
    last = failed(of, step, BUSY).snapshot
    assert (last.status, last.failure) == ("failed", BUSY)


def test_retry_resumes_in_the_middle_of_a_backoff() -> None:
    of = retrying()
    step = failed(of, started(of), BUSY)
    again = advance(of, step.snapshot, Resumed(AT + 4))
    assert again.effects == step.effects
    (timer,) = again.effects
    assert isinstance(timer, Sleep)
    assert timer.until == AT + 10


def test_retry_resumes_in_a_later_attempt() -> None:
    of = retrying()
    step = done(of, failed(of, started(of), BUSY))
    assert advance(of, step.snapshot, Resumed(AT)).effects == step.effects


def test_an_error_that_cannot_be_helped_is_not_tried_again() -> None:
    of = retrying()
    assert failed(of, started(of), replace(BUSY, retryable=False)).snapshot.status == "failed"


@pytest.mark.parametrize("payload", [None, "", {}, {"content": ""}, {"content": None}])
def test_an_empty_answer_is_tried_again_only_when_wanted(payload: Any) -> None:
    of = retrying(retry_on_empty=True)
    step = done(of, started(of), reply(payload))
    assert isinstance(step.effects[0], Sleep)
    assert step.snapshot.spent.calls == 1
    plain = retrying()
    assert done(plain, started(plain), reply(payload)).snapshot.status == "done"


def test_a_retry_waits_at_least_as_long_as_the_provider_says() -> None:
    of = retrying(jitter=0.5)
    step = failed(of, started(of), replace(BUSY, retry_after=25.0))
    assert isinstance(step.effects[0], Sleep)
    assert step.effects[0].until >= AT + 25


def pause_of(of: Program, execution_id: str) -> float:
    step = started(of)
    snapshot = replace(step.snapshot, execution_id=execution_id)
    (effect,) = failed(of, Advance(snapshot, step.effects, ()), BUSY).effects
    assert isinstance(effect, Sleep)
    return effect.until - AT


def test_jitter_is_the_same_every_time_and_differs_between_executions() -> None:
    of = retrying(jitter=0.1)
    pauses = {pause_of(of, f"e{i}") for i in range(50)}
    assert len(pauses) == 50
    assert all(9.0 <= pause <= 11.0 for pause in pauses)
    assert pause_of(of, "e1") == pause_of(of, "e1")


def test_no_further_attempt_is_made_after_the_deadline() -> None:
    of = one(Call(agent="a", strategy=Retry(backoffs=(10.0, 20.0), jitter=0.0)), timeout=15.0)
    late = Failure(type="TimeoutError", message="not done in time")
    during_call = failed(of, started(of), late, at=AT + 15)
    assert during_call.snapshot.failure == late
    pause = failed(of, done(of, failed(of, started(of), BUSY), at=AT + 10), BUSY, at=AT + 11)
    assert isinstance(pause.effects[0], Sleep)
    assert failed(of, pause, late, at=AT + 15).snapshot.failure == late


def test_steering_after_a_branch_is_named_in_the_effect_id_of_its_own_step() -> None:
    of = program(node("work", Branch(arms=go((None, "work")).arms, steered=True), hooks=HOOKS), context={})
    step = started(of)
    ids = []
    for _ in range(3):
        ids.append(step.effects[0].id)
        step = done(of, step, Steered(None, {}))
    assert ids == ["0/1/branch", "0/2/branch", "0/3/branch"]


def test_several_answers_at_once_come_to_what_they_come_to_one_by_one() -> None:
    of = one(Call(agent="a", strategy=Sample(n=3)))
    step = started(of)
    events = [Done(effect.id, reply({"x": i}), AT + i) for i, effect in enumerate(step.effects)]
    single = step
    for event in events[:2]:
        single = advance(of, single.snapshot, event)
    assert advance_all(of, step.snapshot, events[:2]).snapshot == single.snapshot
    single = advance(of, single.snapshot, events[2])
    together = advance_all(of, step.snapshot, events)
    assert together.snapshot == single.snapshot
    assert together.snapshot.status == "done"
    assert together.path == single.path
    assert together.snapshot.spent.calls == 3


def test_answers_that_nobody_waits_for_any_more_are_passed_over() -> None:
    of = one(Call(agent="a", strategy=Sample(n=2)))
    step = started(of)
    first = Done(step.effects[0].id, reply({"x": 1}), AT)
    alone = advance(of, step.snapshot, first)
    assert advance_all(of, step.snapshot, (first, first)).snapshot == alone.snapshot
    assert advance_all(of, alone.snapshot, (first,)) == Advance(alone.snapshot, (), ())


# -- effects that stay ---------------------------------------------------------------------


def test_what_an_instance_keeps_is_pending_in_its_next_visit_too() -> None:
    of = program(node("work", cast(Any, Beside())))
    step = started(of)
    step = advance(of, step.snapshot, Done("0/1/beside", None, AT))
    assert step.snapshot.root.step == 2
    assert step.snapshot.pending == ("0/2/beside", "0/1/beside.child")


def test_what_an_instance_keeps_outlives_a_limit() -> None:
    of = program(node("work", cast(Any, Beside())))
    step = started(of, max_steps=1)
    step = advance(of, step.snapshot, Done("0/1/beside", None, AT))
    assert step.snapshot.status == "limit"
    assert step.snapshot.pending == ("0/1/beside.child",)
    step = advance(of, step.snapshot, Resumed(AT, max_steps=1))
    assert step.snapshot.pending == ("0/1/beside.child",)
    step = advance(of, step.snapshot, Resumed(AT, max_steps=9))
    assert step.snapshot.pending == ("0/2/beside", "0/1/beside.child")
    assert [effect.id for effect in step.effects] == list(step.snapshot.pending)
