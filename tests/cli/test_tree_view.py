"""How the run of a tree is shown: a row, or a line, per step and instance."""

from __future__ import annotations

import io
import time
from typing import Any

from rich.console import Console

from flat.cli.tree_view import LiveTreeProgress, PlainTreeProgress
from flat.core.events import Spent
from flat.hooks.notices import Notice

SPENT = Spent(calls=2, input_tokens=1200, output_tokens=34, cost=0.0123)
ID = "3f2a1c2d-0000-4000-8000-000000000000"


def drawn(progress: LiveTreeProgress, width: int = 100) -> str:
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, markup=False).print(progress)
    return out.getvalue()


def notice(kind: str, node: str = "", **facts: Any) -> Notice:
    return Notice(kind, ID, time.time(), node, 1, {"spent": SPENT, **facts})


def model(lane: str) -> dict[str, Any]:
    return {"effect_id": f"0/1/tree.{lane}", "what": "agent desk", "effect": "call"}


def tool(lane: str, name: str) -> dict[str, Any]:
    return {"effect_id": f"0/1/tree.{lane}-0", "what": f"tool {name}", "effect": "tool"}


ANSWER = {"tokens": 617, "cost": 0.01, "priced": True}


def watched(view: Any) -> Any:
    """Two instances side by side, then one of them again."""
    view.notify(notice("started", name="travel"))
    view.notify(notice("enter", "tree"))
    for lane, node in (("1-1-0", "fares"), ("1-1-1", "fares")):
        view.notify(notice("perform", node, **model(lane)))
    for lane, node in (("1-1-1", "fares"), ("1-1-0", "fares")):
        view.notify(notice("answered", node, **model(lane), **ANSWER))
    view.notify(notice("perform", "fares", **tool("1-1-1", "look_up")))
    view.notify(notice("answered", "fares", **tool("1-1-1", "look_up")))
    view.notify(notice("perform", "desk", **model("1-2-0")))
    return view


def test_instances_of_one_step_are_rows_of_their_own() -> None:
    shown = drawn(watched(LiveTreeProgress("travel")))
    rows = [" ".join(line.split()) for line in shown.splitlines()]
    assert rows[1].startswith("step instance")
    assert rows[2].startswith("1.1 fares model 617 $0.01")
    assert rows[3].startswith("1.1 fares model; tool look_up 617 $0.01")
    assert rows[4].startswith("1.2 desk model …")
    assert " tree " not in shown
    assert "2 steps, 2 model calls" in shown


def test_a_session_between_turns_is_at_rest() -> None:
    view = watched(LiveTreeProgress("travel"))
    view.notify(notice("answered", "desk", **model("1-2-0"), **ANSWER))
    view.notify(notice("stopped", status="waiting"))
    assert "at rest" in drawn(view)
    assert "…" not in drawn(view)


def test_a_command_is_a_row_of_its_own() -> None:
    view = LiveTreeProgress("travel")
    facts = {"effect_id": "0/1/tree.command-3", "what": "tool rename", "effect": "tool"}
    view.notify(notice("perform", "tree", **facts))
    view.notify(notice("answered", "tree", **facts))
    assert "command   tool rename" in drawn(view)


def test_lines_name_step_and_instance_and_count_the_steps_at_the_end() -> None:
    said: list[str] = []
    view = watched(PlainTreeProgress(said.append, "travel"))
    view.notify(notice("answered", "desk", **model("1-2-0"), **ANSWER))
    view.notify(notice("stopped", status="waiting"))
    assert [line.split("  ")[-1].partition(" (")[0] for line in said[1:-1]] == [
        "1.1 fares#2: model answered",
        "1.1 fares: model answered",
        "1.1 fares#2: tool look_up done",
        "1.2 desk: model answered",
    ]
    assert said[-1].startswith("at rest: 2 steps, 2 model calls, 1,234 tokens, $0.0123")
