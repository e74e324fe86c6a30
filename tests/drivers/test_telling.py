"""What observers are told of an effect and its answer."""

from __future__ import annotations

from typing import Any

import pytest

from flat.core.effects import RunTool
from flat.core.events import Done, Told
from flat.core.snapshot import Instance, Snapshot
from flat.drivers.telling import Teller
from flat.hooks import Notice, Observers
from flat.testing.clock import VirtualClock


class Ears:
    def __init__(self) -> None:
        self.heard: list[Notice] = []

    def notify(self, notice: Notice) -> None:
        self.heard.append(notice)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (Told(content="fine"), None),
        (Told(content="no such file", is_error=True), "no such file"),
        ({"content": "fine"}, None),
        ({"content": "no such tool", "is_error": True}, "no such tool"),
    ],
)
def test_an_error_that_a_tool_told_the_model_is_told_to_observers(value: Any, error: str | None) -> None:
    ears = Ears()
    effect = RunTool(id="0/1/x", node="n", tool="read", arguments={}, call_id="c", context={})
    snapshot = Snapshot("e", "running", 1, {"0": Instance("0", "n", "", 1, {})})
    Teller(Observers([ears]), VirtualClock()).answered(effect, Done(effect.id, value, 1.0), snapshot)
    assert [one.facts.get("error") for one in ears.heard] == [error]
