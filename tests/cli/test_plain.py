"""A run as lines, drawn from notices."""

from __future__ import annotations

from typing import Any

from flat.cli.plain import PlainProgress
from flat.core.events import Spent
from flat.hooks.notices import Notice


def notice(kind: str, execution_id: str, at: float, node: str = "s", **facts: Any) -> Notice:
    return Notice(kind, execution_id, at, node, 1, {"spent": Spent(), **facts})


def test_a_child_has_its_name_and_its_own_times() -> None:
    lines: list[str] = []
    view = PlainProgress(lines.append, "parent")
    child = {"effect_id": "0/1/children", "what": "machine kid", "effect": "child"}
    call = {"effect_id": "0/1/call", "what": "agent a", "effect": "call"}
    spent = {"tokens": 7, "cost": 0.0, "priced": True}
    view.notify(notice("started", "p", 100.0, name="parent"))
    view.notify(notice("perform", "p", 100.0, **call))
    view.notify(notice("perform", "p", 100.0, **child))
    view.notify(notice("started", "p.0", 101.0, name="kid"))
    view.notify(notice("perform", "p.0", 101.0, **call))
    view.notify(notice("answered", "p.0", 103.0, **call, **spent))
    view.notify(notice("answered", "p", 104.0, **child, **spent))
    view.notify(notice("answered", "p", 105.0, **child, **{**spent, "tokens": 0}))
    view.notify(notice("answered", "p", 106.0, **call, **spent))
    said = [" ".join(line.split()) for line in lines]
    assert said[1:] == [
        "3.00 s 1 kid#1/s: agent a answered (7 tokens, $0, 2.00 s)",
        "4.00 s 1 s: machine kid done (7 tokens, $0, 4.00 s)",
        "5.00 s 1 s: machine kid done (0.00 s)",
        "6.00 s 1 s: agent a answered (7 tokens, $0, 6.00 s)",
    ]


def test_a_tool_that_told_the_model_of_an_error_shows_it() -> None:
    lines: list[str] = []
    view = PlainProgress(lines.append, "one")
    call = {"effect_id": "0/1/converse.tool1", "what": "tool read", "effect": "tool"}
    view.notify(notice("started", "p", 100.0, name="one"))
    view.notify(notice("perform", "p", 100.0, **call))
    view.notify(notice("answered", "p", 101.0, **call, error="no such\nfile"))
    assert lines[-1].split("s: ")[1] == "tool read gave an error: no such file"
