"""Random small machines, run by `advance` and by a few lines of Python, come to the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from small import AT, Action, Assign, go, program, started

from flat.core.advance import advance
from flat.core.codec import Codec
from flat.core.events import Done, Failed, Resumed
from flat.core.failure import Failure
from flat.core.ops import Finish
from flat.core.program import Node
from flat.core.template import Template, compile_value
from flat.core.turn import Advance

NAMES = "abcd"


@dataclass(frozen=True)
class Place:
    """A node as the model sees it."""

    assign: int | None
    fails: bool
    acts: bool
    arms: tuple[tuple[int | None, str], ...]
    on_error: str | None


PLACES = st.builds(
    Place,
    assign=st.none() | st.integers(0, 3),
    fails=st.booleans(),
    acts=st.booleans(),
    arms=st.lists(
        st.tuples(st.none() | st.integers(0, 6), st.sampled_from([*NAMES, "end"])), min_size=1, max_size=3
    ).map(tuple),
    on_error=st.none() | st.sampled_from(NAMES),
)


def lowered(name: str, place: Place) -> Node:
    ops: list[Any] = []
    if place.acts:
        ops.append(Action(action="x"))
    if place.assign is not None:
        ops.append(Assign(entries=(("n", Template(f"{{{{ context.n + {place.assign} }}}}", None, True)),)))
    ops.append(go(*((f"context.n >= {at}" if at is not None else None, to) for at, to in place.arms)))
    return Node(name=name, ops=tuple(ops), on_error={"default": place.on_error} if place.on_error else {})


def modelled(places: dict[str, Place], limit: int) -> tuple[str, int, int, list[str]]:
    """Status, n, steps, and the ids of the effects."""
    at, n, steps, effects = "a", 0, 0, []
    while True:
        if steps >= limit:
            return "limit", n, steps, effects
        steps += 1
        if at == "end":
            return "done", n, steps, effects
        place = places[at]
        target: str | None = None
        failed = False
        if place.acts:
            effects.append(f"0/{steps}/action")
            n += not place.fails
            failed = place.fails
        if not failed:
            n += place.assign or 0
            target = next((to for least, to in place.arms if least is None or n >= least), None)
        target = target or place.on_error
        if target is None:
            return "failed", n, steps, effects
        at = target


@settings(max_examples=200, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(NAMES, PLACES)), st.integers(0, 12), st.data())
def test_advance_does_what_the_model_does(places: dict[str, Place], limit: int, data: st.DataObject) -> None:
    end = Node(name="end", ops=(Finish(output=compile_value({"n": "{{ context.n }}"}, native=True)),))
    of = program(*(lowered(n, places[n]) for n in NAMES), end, context={"n": 0})
    codec = Codec()
    step: Advance = started(of, max_steps=limit)
    stored = codec.snapshot(codec.first(step.snapshot), {})
    asked = []
    while step.effects:
        (effect,) = step.effects
        if data.draw(st.booleans()):  # the process dies, and another one resumes
            again = advance(of, stored, Resumed(AT))
            assert again.effects == step.effects
            step = again
        asked.append(effect.id)
        if places[step.snapshot.root.node].fails:
            event: Done | Failed = Failed(effect.id, Failure(type="Boom", message="boom"), AT)
        else:
            context = step.snapshot.root.context
            event = Done(effect.id, {**context, "n": context["n"] + 1}, AT)
        before = step.snapshot
        step = advance(of, before, event)
        stored = codec.applied(stored, *codec.delta(before, step.snapshot))
        assert stored == step.snapshot
    status, n, steps, effects = modelled(places, limit)
    snapshot = step.snapshot
    assert (snapshot.status, snapshot.root.context["n"], snapshot.steps, asked) == (status, n, steps, effects)
    assert snapshot.output == ({"n": n} if status == "done" else None)
