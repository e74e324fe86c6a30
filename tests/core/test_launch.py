"""`launch`: others are born, and the op goes on."""

from __future__ import annotations

import pytest
from here import Here, here

from flat.core.effects import StartChild
from flat.core.op import Next
from flat.core.ops import Launch
from flat.core.template import compile_value
from flat.errors import ExpressionError


def test_one_launch_has_the_id_of_the_op() -> None:
    place = here(v=7)
    answer = Launch(machines=("log",), input=compile_value({"v": "context.v"})).start(place)
    assert answer == Next()
    assert place.launched == [StartChild("0/3/launch", "work", "log", {"v": 7}, awaited=False)]


def test_several_launches_are_numbered_and_get_the_same_input() -> None:
    place = here()
    Launch(machines=("a", "b")).start(place)
    assert [(c.id, c.machine, c.input) for c in place.launched] == [
        ("0/3/launch.0", "a", {}), ("0/3/launch.1", "b", {}),
    ]  # fmt: skip


def test_input_that_cannot_be_rendered_launches_nothing() -> None:
    place = Here()
    with pytest.raises(ExpressionError):
        Launch(machines=("a",), input=compile_value({"v": "{{ context.nobody.name }}"})).start(place)
    assert place.launched == []
