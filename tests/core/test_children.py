"""`children`: which ones are asked for, when the next, and what their ends come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from here import AT, Here, done, failed, here, ids

from flat.core.effects import StartChild
from flat.core.events import Ended, Spent
from flat.core.grown import Grown
from flat.core.op import Block, Next, Raise
from flat.core.ops import ChildCall, Children
from flat.core.template import Template, compile_value
from flat.errors import ExpressionError

SINGLE = Children(calls=(ChildCall(machine="m"),), single=True)


def listed(*names: str, **rest: Any) -> Children:
    return Children(calls=tuple(ChildCall(machine=name) for name in names), **rest)


def each(**rest: Any) -> Children:
    given = compile_value({"v": "{{ item }}"}, native=True)
    return Children(
        calls=(ChildCall(machine="m"),), foreach=Template("context.items", None, True), input=given, **rest
    )


def ended(output: Any, **spent: Any) -> Ended:
    return Ended(output=output, spent=Spent(**spent))


def test_a_single_machine_is_asked_for_with_the_id_of_the_op() -> None:
    answer = replace(SINGLE, input=compile_value({"v": "context.v"})).start(here(v=1))
    assert isinstance(answer, Block)
    assert answer.effects == (StartChild("0/3/children", "work", "m", {"v": 1}),)


def test_its_output_is_the_output_and_its_failure_the_failure() -> None:
    place = here().after(SINGLE.start(here()))
    assert SINGLE.resume(place, done("children", ended({"x": 1}, calls=2, cost=0.5))) == Next(output={"x": 1})
    assert place.spent == [Spent(calls=2, cost=0.5)]
    answer = SINGLE.resume(place, failed("children"))
    assert isinstance(answer, Raise)
    assert answer.failure.type == "Boom"


def test_the_time_of_the_state_is_the_childs() -> None:
    answer = SINGLE.start(Here(deadline=AT + 5))
    assert isinstance(answer, Block)
    assert answer.effects[0].deadline == AT + 5


def test_a_list_of_one_is_still_a_list() -> None:
    op = listed("m")
    place = here().after(op.start(here()))
    assert op.resume(place, done("children.0", ended(1))) == Next(output={"m": 1})


def test_results_are_put_in_order_at_the_end() -> None:
    op = listed("a", "b")
    place = here().after(op.start(here()))
    answer = op.resume(place, failed("children.1"))
    assert ids(answer) == []
    answer = op.resume(place.after(answer), done("children.0", ended("x")))
    expected = {"a": "x", "b": {"_error": "it failed", "_error_type": "Boom"}}
    assert answer == Next(output=expected)
    assert isinstance(answer.output, dict)
    assert list(answer.output) == ["a", "b"]


def test_what_came_is_only_ever_appended() -> None:
    op = listed("a", "b", "c")
    place = here().after(op.start(here()))
    answer = op.resume(place, done("children.2", ended("x")))
    assert isinstance(answer, Block)
    grown = answer.local["done"]
    assert type(grown) is Grown
    assert grown.grew_from(place.local["done"])
    assert answer.local["todo"] is place.local["todo"]


def test_an_entrys_input_is_merged_over_the_shared_one() -> None:
    own = ChildCall(machine="a", input=compile_value({"v": "{{ context.v }}!"}))
    op = Children(calls=(own, ChildCall(machine="b")), input=compile_value({"v": "shared", "w": "w"}))
    answer = op.start(here(v=1))
    assert isinstance(answer, Block)
    assert [e.input for e in answer.effects if isinstance(e, StartChild)] == [
        {"v": "1!", "w": "w"}, {"v": "shared", "w": "w"},
    ]  # fmt: skip


def test_with_items_an_entrys_own_input_is_merged_over_the_shared_one_too() -> None:
    own = ChildCall(machine="m", input=compile_value({"w": "{{ item }}!", "v": 0}, native=True))
    answer = replace(each(), calls=(own,)).start(here(items=[3]))
    assert isinstance(answer, Block)
    assert [e.input for e in answer.effects if isinstance(e, StartChild)] == [{"v": 0, "w": "3!"}]


def test_only_so_many_run_at_once_and_the_next_follows_one_that_ended() -> None:
    op = each(at_once=2)
    answer = op.start(here(items=[1, 2, 3, 4]))
    assert ids(answer) == ["children.0", "children.1"]
    place = here().after(answer)
    answer = op.resume(place, done("children.1", ended("b")))
    assert ids(answer) == ["children.2"]
    place = place.after(answer)
    answer = op.resume(place, failed("children.0"))
    assert ids(answer) == ["children.3"]
    place = place.after(answer)
    # After a restart: those that have no answer, and no more than that.
    assert ids(op.start(place)) == ["children.2", "children.3"]
    place = place.after(op.resume(place, done("children.3", ended("d"))))
    answer = op.resume(place, done("children.2", ended("c")))
    error = {"_error": "it failed", "_error_type": "Boom"}
    assert answer == Next(output=[error, "b", "c", "d"])


def test_a_restart_asks_for_the_same_inputs_whatever_the_context_says_now() -> None:
    op = each()
    place = here().after(op.start(here(items=[1, 2])))
    again = op.start(replace(place, context={"items": []}))
    assert isinstance(again, Block)
    assert [e.input for e in again.effects if isinstance(e, StartChild)] == [{"v": 1}, {"v": 2}]


def test_keys_name_the_results() -> None:
    op = each(item_key=Template("k{{ item }}", None, True))
    place = here().after(op.start(here(items=[1, 2])))
    place = place.after(op.resume(place, done("children.1", ended("b"))))
    assert op.resume(place, done("children.0", ended("a"))) == Next(output={"k1": "a", "k2": "b"})


def test_equal_keys_are_refused_before_anything_is_asked_for() -> None:
    with pytest.raises(ExpressionError, match='items 0 and 1 have the same key "k"'):
        each(item_key=Template("k")).start(here(items=[1, 2]))


@pytest.mark.parametrize(("key", "empty"), [(None, []), (Template("{{ item }}"), {})])
def test_no_items_are_an_empty_result(key: Template | None, empty: Any) -> None:
    assert each(item_key=key).start(here(items=[])) == Next(output=empty)


def test_any_ends_with_the_first_success() -> None:
    op = each(mode="any")
    place = here().after(op.start(here(items=[1, 2, 3])))
    place = place.after(op.resume(place, failed("children.0")))
    assert op.resume(place, done("children.2", ended("c"))) == Next(output=["c"])


def test_any_shows_all_errors_when_there_is_no_success() -> None:
    op = listed("a", "b", mode="any")
    place = here().after(op.start(here()))
    place = place.after(op.resume(place, failed("children.1")))
    error = {"_error": "it failed", "_error_type": "Boom"}
    assert op.resume(place, failed("children.0")) == Next(output={"a": error, "b": error})


def test_any_without_success_in_time_raises() -> None:
    op = listed("a", "b", mode="any")
    first = Here(deadline=AT + 1)
    place = first.after(op.start(first), at=AT + 1)
    place = place.after(op.resume(place, failed("children.0", "TimeoutError")), at=AT + 1)
    answer = op.resume(place, failed("children.1", "TimeoutError"))
    assert isinstance(answer, Raise)
    assert answer.failure.type == "TimeoutError"
