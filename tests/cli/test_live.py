"""The live view, drawn from notices."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
from rich.console import Console

from flat.cli.live import ROWS, LiveProgress
from flat.core.events import Spent
from flat.hooks.notices import Notice

SPENT = Spent(calls=2, input_tokens=1200, output_tokens=34, cost=0.0123)


def drawn(progress: LiveProgress, width: int = 100) -> str:
    """The view as text."""
    out = io.StringIO()
    Console(file=out, width=width, force_terminal=True, color_system=None, markup=False).print(progress)
    return out.getvalue()


def notice(kind: str, node: str = "", step: int = 0, at: float = 0.0, **facts: Any) -> Notice:
    return Notice(
        kind, "3f2a1c2d-0000-4000-8000-000000000000", at or time.time(), node, step, {"spent": SPENT, **facts}
    )


def asked(node: str = "ask", step: int = 1, kind: str = "call") -> dict[str, Any]:
    return {"effect_id": f"0/{step}/call", "what": "agent helper", "effect": kind}


def test_each_visit_is_a_row_with_what_it_did_and_took() -> None:
    view = LiveProgress("demo")
    view.notify(notice("started"))
    view.notify(notice("enter", "ask", 1))
    view.notify(notice("perform", "ask", 1, **asked()))
    assert "agent helper …" in drawn(view)
    view.notify(notice("answered", "ask", 1, **asked(), tokens=1234, cost=0.0123, priced=True))
    view.notify(notice("leave", "ask", 1))
    shown = drawn(view)
    assert "demo  3f2a1c2d  running" in shown
    assert "2 model calls, 1,234 tokens, $0.0123" in shown
    row = next(line for line in shown.splitlines() if " ask " in line)
    assert "agent helper" in row
    assert "1,234" in row


def test_a_retry_shows_how_long_and_why() -> None:
    view = LiveProgress("demo")
    view.notify(notice("enter", "ask", 1))
    view.notify(notice("perform", "ask", 1, **asked()))
    failed = {"type": "AgentFailed", "names": ("rate_limit",), "message": "slow down"}
    view.notify(notice("failed_effect", "ask", 1, **asked(), **failed))
    view.notify(notice("perform", "ask", 1, **asked(kind="timer"), until=time.time() + 30))
    assert "rate_limit: slow down; retry in 30.0 s" in " ".join(drawn(view, 160).split())


def test_an_empty_answer_is_a_reason_too() -> None:
    view = LiveProgress("demo")
    view.notify(notice("enter", "ask", 1))
    view.notify(notice("answered", "ask", 1, **asked(), tokens=3, cost=0.0, priced=False))
    view.notify(notice("perform", "ask", 1, **asked(kind="timer"), until=time.time() + 30))
    shown = drawn(view, 160)
    assert "s: empty answer" in shown
    assert "$?" in shown


def test_of_a_long_run_the_last_rows_stay_and_the_others_are_counted() -> None:
    view = LiveProgress("demo")
    for step in range(1, ROWS + 11):
        view.notify(notice("enter", f"state{step}", step))
        view.notify(notice("leave", f"state{step}", step))
    shown = drawn(view)
    assert "… 10 earlier" in shown
    assert "state10 " not in shown
    assert f"state{ROWS + 10}" in shown


def test_markup_and_escapes_in_names_are_shown_not_obeyed() -> None:
    view = LiveProgress("[bold]demo[/bold]\x1b[31m")
    view.notify(notice("enter", "[red]x[/red]\x1b]0;title\x07", 1))
    shown = drawn(view)
    assert "[bold]demo[/bold]" in shown
    assert "[red]x[/red]" in shown
    assert "\x1b" not in shown


@pytest.mark.parametrize(("policy", "words"), [("retry", "asked again"), ("ask", "waits for a decision")])
def test_what_was_in_doubt_is_said_in_its_row(policy: str, words: str) -> None:
    view = LiveProgress("demo")
    view.notify(notice("resumed", step=4))
    view.notify(notice("in_doubt", "ask", 4, what="agent helper", effect="call", policy=policy))
    assert f"agent helper was in flight when the last run ended; {words}" in " ".join(
        drawn(view, 160).split()
    )


def test_the_last_frame_has_the_status_and_stands_still() -> None:
    view = LiveProgress("demo")
    view.notify(notice("started", at=100.0))
    view.notify(notice("enter", "a", 1, at=100.0))
    view.notify(notice("stopped", step=1, at=112.3, status="limit", reason="max_steps (1) reached"))
    assert "stopped at a limit" in drawn(view)
    assert "12.3 s" in drawn(view)


def child(name: str, number: int) -> dict[str, Any]:
    return {"effect_id": f"0/1/children.{number}", "what": f"machine {name}", "effect": "child"}


def row_of(view: LiveProgress, state: str, width: int = 100) -> str:
    return " ".join(next(line for line in drawn(view, width).splitlines() if f" {state} " in line).split())


def test_child_machines_are_counted_by_name_in_one_row() -> None:
    view = LiveProgress("demo")
    view.notify(notice("enter", "each", 1))
    for number in range(3):
        view.notify(notice("perform", "each", 1, **child("kid", number)))
    view.notify(notice("answered", "each", 1, **child("kid", 0), tokens=0, cost=0.0, priced=True))
    assert "machine kid: 1 of 3 done" in row_of(view, "each")
    view.notify(notice("perform", "each", 1, **child("other", 3)))
    assert "machines kid, other: 1 of 4 done" in row_of(view, "each")


def test_one_child_machine_is_named_and_said_to_wait_when_it_does() -> None:
    view = LiveProgress("demo")
    view.notify(notice("enter", "ask", 1))
    view.notify(notice("perform", "ask", 1, **child("kid", 0)))
    assert "machine kid …" in row_of(view, "ask")
    view.notify(notice("stopped", step=1, status="waiting"))
    assert "machine kid; waits for a signal" in row_of(view, "ask")


def test_a_row_ends_when_the_next_begins() -> None:
    view = LiveProgress("demo")
    view.notify(notice("perform", "(start)", 0, at=100.0, **asked(kind="hook")))
    view.notify(notice("enter", "ask", 1, at=102.0))
    view.notify(notice("stopped", step=1, at=130.0, status="done"))
    assert "2.00 s" in row_of(view, "(start)")


def test_in_a_narrow_terminal_words_have_the_room_of_tokens_and_cost() -> None:
    view = LiveProgress("demo")
    view.notify(notice("enter", "looping", 1))
    view.notify(notice("answered", "looping", 1, **asked(), tokens=1234, cost=0.0123, priced=True))
    view.notify(notice("answered", "looping", 1, effect_id="0/1/t", what="tool search", effect="tool"))
    shown = drawn(view, 40)
    assert max(map(len, shown.splitlines())) <= 40
    assert "cost" not in shown
    assert "agent helper;" in shown
    assert "looping" in shown
    assert "cost" in drawn(view, 80)
