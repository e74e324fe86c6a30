"""`wait`: which channel is waited on, and what a signal's data become."""

from __future__ import annotations

from typing import Any

import pytest
from here import done, here

from flat.core.effects import AwaitSignal
from flat.core.op import Block, Next
from flat.core.ops import Wait
from flat.core.template import Template
from flat.errors import ExpressionError


@pytest.mark.parametrize(("task", "channel"), [("a", "a"), (7, "7")])
def test_wait_asks_for_the_rendered_channel(task: Any, channel: str) -> None:
    answer = Wait(channel=Template("context.task")).start(here(task=task))
    assert isinstance(answer, Block)
    (effect,) = answer.effects
    assert isinstance(effect, AwaitSignal)
    assert effect.channel == channel


@pytest.mark.parametrize(
    ("task", "said"),
    [(None, "nothing"), ("", "nothing"), ({"a": 1}, "{'a': 1}"), ([1], "[1]"), (True, "True")],
)
def test_wait_refuses_what_names_no_channel(task: Any, said: str) -> None:
    with pytest.raises(ExpressionError) as caught:
        Wait(channel=Template("context.task")).start(here(task=task))
    assert caught.value.message == f"wait_for should give the name of a channel, and gives {said}"
    assert caught.value.hint


@pytest.mark.parametrize(
    ("data", "output"), [({"ok": 1}, {"ok": 1}), ("x", {"value": "x"}), (None, {"value": None})]
)
def test_wait_hands_on_the_payload(data: Any, output: Any) -> None:
    assert Wait(channel=Template("c")).resume(here(), done("wait", data)) == Next(output=output)
