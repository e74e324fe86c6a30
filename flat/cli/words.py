"""What the views of a run say in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flat.cli.text import count, money, one_line, seconds
from flat.core.events import Spent
from flat.hooks.notices import Notice

STATUS_WORDS = {
    "done": "done",
    "failed": "failed",
    "waiting": "waiting",
    "cancelled": "cancelled",
    "limit": "stopped at a limit",
    "in_doubt": "stopped: something needs a decision",
}


def doubt_words(what: str, kind: str, policy: str, decided: str = "") -> str:
    """What became of an effect that was in flight when its run ended."""
    if policy == "ask":
        then = decided or "waits for a decision"
    elif policy == "fail":
        then = "counted as failed"
    elif policy.startswith("verify:"):
        then = f"checked with {policy.removeprefix('verify:')}"
    else:
        then = "asked again" if kind == "call" else "done again"
    return one_line(f"{what} was in flight when the last run ended; {then}")


def failure_words(facts: Mapping[str, Any], width: int) -> str:
    """What went wrong with an effect. Of a model's failures the code says more than the class."""
    agent = facts["type"] == "AgentFailed" and facts["names"]
    return one_line(f"{facts['names'][0] if agent else facts['type']}: {facts['message']}", width)


def pause_words(left: float, trouble: str) -> str:
    """How long until the next try, and why."""
    return f"retry in {max(0.0, left):.1f} s: {trouble}" if trouble else f"retry in {max(0.0, left):.1f} s"


def spent_words(steps: int, spent: Spent) -> str:
    """Steps, calls, tokens and cost in a row; what is nothing is left out."""
    parts = [count(steps, "step")]
    if spent.calls:
        parts.append(count(spent.calls, "model call"))
        parts.append(count(spent.input_tokens + spent.output_tokens, "token"))
        parts.append(money(spent.cost, spent.priced))
    return ", ".join(parts)


def total_words(notice: Notice, began: float) -> str:
    """The last line of a run: how it ended, and what it took."""
    status = str(notice.facts["status"])
    took = seconds(notice.at - began)
    return f"{STATUS_WORDS.get(status, status)}: {spent_words(notice.step, notice.facts['spent'])}, {took}"
