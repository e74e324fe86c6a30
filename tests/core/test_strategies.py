"""Sampling and voting: one answer in, what to ask next out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from here import AT, Here, done, failed, here, ids

from flat.core.events import Reply, Spent
from flat.core.op import Answer, Next, Raise
from flat.core.ops import Call
from flat.core.strategies import Parsed, Sample, Vote

ONE = Spent(calls=1, cost=0.5)


def said(text: str | None, payload: Any = None) -> Reply:
    return Reply(payload={"content": text} if payload is None else payload, text=text, spent=ONE)


def asking(strategy: Sample | Vote) -> Call:
    return Call(agent="a", strategy=strategy)


def voted(vote: Vote, *answers: Any, place: Here | None = None) -> tuple[Answer, Here]:
    """What the answers come to, one after another, and what the op sees then."""
    op, place = asking(vote), place or here()
    answer = op.start(place)
    for given in answers:
        (effect_id,) = ids(answer)
        place = place.after(answer, at=place.at)
        event = failed(effect_id, given) if given in ("Boom", "TimeoutError") else done(effect_id, given)
        answer = op.resume(place, event)
    return answer, place


def test_samples_are_all_asked_for_at_once() -> None:
    assert ids(asking(Sample(n=3)).start(here())) == ["call.0", "call.1", "call.2"]


def test_samples_come_in_order_and_failures_are_left_out() -> None:
    op = asking(Sample(n=3))
    place = here().after(op.start(here()))
    for event in (done("call.2", said("c")), failed("call.1")):
        answer = op.resume(place, event)
        assert ids(answer) == []
        place = place.after(answer)
    assert ids(op.start(place)) == ["call.0"]
    answer = op.resume(place, done("call.0", said("a")))
    assert answer == Next(output={"results": [{"content": "a"}, {"content": "c"}], "count": 2})
    assert place.spent == [ONE, ONE]


def test_when_every_sample_fails_the_last_failure_is_raised() -> None:
    op = asking(Sample(n=2))
    place = here().after(op.start(here()))
    place = place.after(op.resume(place, failed("call.0", "First")))
    answer = op.resume(place, failed("call.1", "Second"))
    assert isinstance(answer, Raise)
    assert answer.failure.type == "Second"


def test_a_vote_asks_one_after_another_until_somebody_wins() -> None:
    answer, place = voted(Vote(k_margin=2), said("a"), said("b"), said("a"))
    assert isinstance(answer, Next)
    assert answer.output == {"content": "a"}
    assert isinstance(answer.context, dict)
    assert answer.context["_mdap_metrics"]["total_samples"] == 3
    assert place.spent == [ONE] * 3


def test_a_vote_goes_on_where_it_stood() -> None:
    answer, place = voted(Vote(k_margin=3), said("a"), said("a"))
    place = place.after(answer)
    assert ids(asking(Vote(k_margin=3)).start(place)) == ["call.2"]
    assert place.local["votes"] == {'{"content": "a"}': 2}


@pytest.mark.parametrize(("answers", "winner"), [("ab", "a"), ("ba", "b"), ("abb", "b"), ("", None)])
def test_the_most_common_wins_when_the_candidates_are_used_up(answers: str, winner: str | None) -> None:
    answer, _ = voted(Vote(k_margin=9, max_candidates=len(answers) or 2), *map(said, answers or ["", ""]))
    if winner is None:
        assert isinstance(answer, Raise)
        assert answer.failure.type == "VotingFailed"
    else:
        assert isinstance(answer, Next)
        assert answer.output == {"content": winner}


NUMBER = (Parsed(field="n", pattern=r"n=(\w+)", type="int"),)


@pytest.mark.parametrize(
    ("vote", "given", "flag"),
    [
        (Vote(max_candidates=2), said(""), "format_error"),
        (Vote(max_candidates=2), said(None, {}), "format_error"),
        (Vote(max_candidates=2, parsing=NUMBER), said("n=x"), "format_error"),
        (Vote(max_candidates=2, parsing=NUMBER), said(None), "format_error"),
        (Vote(max_candidates=2, schema={"required": ["x"]}), said("a"), "validation_failed"),
        (Vote(max_candidates=2, max_response_tokens=2), said("123456789012"), "length_exceeded"),
        (Vote(max_candidates=2), "Boom", "call_failed"),
    ],
)
def test_a_red_flag_uses_up_a_candidate_and_counts_for_nothing(vote: Vote, given: Any, flag: str) -> None:
    answer, place = voted(vote, given)
    assert ids(answer) == ["call.1"]
    assert place.after(answer).local == {"used": 1, "votes": {}, "flags": {flag: 1}}


def test_the_length_of_a_structured_answer_is_that_of_its_json() -> None:
    payload = {"x": "y" * 40}
    size = len(json.dumps(payload)) // 4
    answer, _ = voted(Vote(k_margin=1, max_response_tokens=size), said(None, payload))
    assert isinstance(answer, Next)
    answer, _ = voted(Vote(k_margin=1, max_candidates=1, max_response_tokens=size - 1), said(None, payload))
    assert isinstance(answer, Raise)


WRONG_KEY: dict[str, Any] = {"names": ("auth_error", "RuntimeError"), "retryable": False}


def test_a_vote_is_over_with_a_failure_that_every_further_call_will_have() -> None:
    op = asking(Vote(k_margin=2))
    place = here().after(op.start(here()))
    answer = op.resume(place, failed("call.0", **WRONG_KEY))
    assert isinstance(answer, Raise)
    assert answer.failure.names[0] == "auth_error"


def test_the_answers_so_far_decide_when_no_more_can_be_had() -> None:
    answer, place = voted(Vote(k_margin=3), said("a"), said("b"), said("a"))
    answer = asking(Vote(k_margin=3)).resume(place.after(answer), failed("call.3", **WRONG_KEY))
    assert isinstance(answer, Next)
    assert answer.output == {"content": "a"}
    assert answer.context["_mdap_metrics"]["red_flags_by_reason"] == {"call_failed": 1}


@pytest.mark.parametrize(
    "rest",
    [
        {"names": ("auth_error",), "retryable": True},
        {"names": ("content_filter",), "retryable": False},
        {"names": ("server_error",), "retryable": False},
        {"names": ("rate_limit",), "retryable": True},
    ],
)
def test_a_failure_that_the_next_call_may_not_have_is_a_red_flag(rest: dict[str, Any]) -> None:
    op = asking(Vote())
    place = here().after(op.start(here()))
    assert ids(op.resume(place, failed("call.0", **rest))) == ["call.1"]


def test_samples_are_not_waited_for_when_one_failed_as_all_will() -> None:
    op = asking(Sample(n=3))
    place = here().after(op.start(here()))
    assert isinstance(op.resume(place, failed("call.1", **WRONG_KEY)), Raise)
    place = place.after(op.resume(place, done("call.0", said("a"))))
    assert ids(op.resume(place, failed("call.1", **WRONG_KEY))) == []


def test_a_vote_out_of_time_is_over() -> None:
    answer, _ = voted(Vote(), "TimeoutError", place=Here(deadline=AT))
    assert isinstance(answer, Raise)
