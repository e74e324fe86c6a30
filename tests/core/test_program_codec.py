"""Programs to data and back, and what changes their digest."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Action, Assign, Call, act, counting, final, go, node, program, started

from flat.core.condition import Condition
from flat.core.hookref import HookRef
from flat.core.ops import Arm, Branch, Finish, Hook, Wait
from flat.core.program import Limits, Program
from flat.core.program_codec import program_from_data, program_to_data, with_digest
from flat.core.strategies import Retry, Single
from flat.core.template import Template, compile_value
from flat.errors import IncompatibleSnapshot, Location

NAME = st.text("abcxyz_", min_size=1, max_size=5)
VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.text(max_size=4)
    | st.sampled_from(["$T", "$l", "$"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAME, inner, max_size=3),
    max_leaves=5,
)
TEMPLATE = st.builds(
    lambda name, native: Template(f"{{{{ context.{name} }}}}", None, native), NAME, st.booleans()
)
HOOKS = st.lists(st.builds(HookRef, NAME, st.sampled_from(["{}", '{"a":1}']), NAME), max_size=2).map(tuple)
OPS = st.one_of(
    st.builds(Action, action=NAME, in_doubt=st.sampled_from(["retry", "ask", "verify:x"])),
    st.builds(
        Assign,
        entries=st.lists(
            st.tuples(NAME, VALUE.filter(lambda v: not isinstance(v, str)) | TEMPLATE), max_size=3
        ).map(tuple),
    ),
    st.builds(
        Branch,
        arms=st.lists(
            st.builds(Arm, st.none() | st.builds(lambda n: Condition(f"context.{n} == 1", None), NAME), NAME),
            max_size=3,
        ).map(tuple),
        steered=st.booleans(),
    ),
    st.builds(
        Call,
        agent=NAME,
        strategy=st.one_of(
            st.builds(Single), st.builds(Retry, backoffs=st.lists(st.floats(0, 9), max_size=3).map(tuple))
        ),
    ),
    st.builds(Finish),
    st.builds(Wait, channel=TEMPLATE),
    st.builds(Hook, point=NAME, key=NAME),
)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    nodes = [
        node(
            name,
            *draw(st.lists(OPS, max_size=3)),
            hooks=draw(HOOKS),
            timeout=draw(st.none() | st.floats(1, 9)),
            on_error=draw(st.dictionaries(NAME, NAME, max_size=2)),
            error_steered=draw(st.booleans()),
        )
        for name in draw(st.lists(NAME, min_size=1, max_size=4, unique=True))
    ]
    return program(
        *nodes,
        lifecycle=draw(HOOKS),
        settings=draw(st.dictionaries(NAME, VALUE, max_size=2)),
        limits=Limits(max_steps=draw(st.none() | st.integers(1, 9))),
    )


@settings(max_examples=150, deadline=None)
@given(programs())
def test_a_program_comes_back_as_it_was(of: Program) -> None:
    data = program_to_data(of)
    back = program_from_data(orjson.loads(orjson.dumps(data)))
    assert program_to_data(back) == data
    assert with_digest(back).digest == of.digest == back.digest
    assert list(back.nodes) == list(of.nodes)


def small(**rest: Any) -> Program:
    place = rest.pop("place", None)
    return program(
        node(
            "work",
            Action(action=rest.pop("action", "count")),
            Assign(entries=(("x", Template("{{ context.n }}", place, True)),)),
            Branch(arms=(Arm(Condition("context.n >= 3", place), "end"), Arm(None, "work"))),
        ),
        final(),
        context={"n": 0},
        **rest,
    )


def test_a_decoded_program_runs_like_the_original() -> None:
    back = program_from_data(program_to_data(small()))
    assert act(back, started(back), counting).snapshot == act(small(), started(small()), counting).snapshot


def test_places_in_files_do_not_change_the_digest() -> None:
    assert small(place=Location("a.yml", 3, 4, "text", 2)).digest == small().digest
    back = program_from_data(program_to_data(small(place=Location("a.yml", 3, 4, "text", 2))))
    arm = back.nodes["work"].ops[2]
    assert isinstance(arm, Branch)
    assert arm.arms[0].condition is not None
    assert arm.arms[0].condition.location == Location("a.yml", 3, 4, "text", 2)


def test_what_a_program_does_changes_the_digest() -> None:
    digests = {
        small().digest,
        small(action="other").digest,
        small(limits=Limits(max_steps=3)).digest,
        small(agents={"a": {"model": "x"}}).digest,
        replace(with_digest(replace(small(), context=compile_value({"n": 1}, native=True)))).digest,
    }
    assert len(digests) == 5


def test_places_of_agents_do_not_change_the_digest() -> None:
    assert (
        small(agents={"a": {"model": "x", "places": {"user": [1]}}}).digest
        == small(agents={"a": {"model": "x", "places": {}}}).digest
        == small(agents={"a": {"model": "x"}}).digest
    )


def test_another_format_is_refused() -> None:
    with pytest.raises(IncompatibleSnapshot):
        program_from_data({**program_to_data(small()), "format": 99})


def test_only_data_can_be_in_a_program() -> None:
    with pytest.raises(TypeError, match="cannot hold"):
        program_to_data(program(node("work", Assign(entries=(("x", object()),)), go((None, "work")))))
