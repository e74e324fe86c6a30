"""A run as lines: of text, one per event, or of JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flat.cli.text import count, money, one_line, seconds
from flat.cli.words import STATUS_WORDS, doubt_words, failure_words, pause_words, total_words
from flat.hooks.notices import Notice


class PlainProgress:
    """An observer that says each event in a line: when, at which step, in which state, what."""

    def __init__(self, say: Callable[[str], None], name: str, decided: str = "") -> None:
        self._say, self._name, self._decided = say, one_line(name), decided
        self._began = 0.0
        self._asked: dict[tuple[str, str], float] = {}
        """When each effect in flight was asked for."""
        self._trouble = ""
        """What was wrong with the last answer: the reason of the pause that follows."""
        self._again = False
        self._root = ""
        self._labels: dict[str, str] = {}
        """What children are called here: `kid#2` is the second that ran of machine `kid`."""

    def notify(self, notice: Notice) -> None:
        self._began = self._began or notice.at
        self._root = self._root or notice.execution_id
        if notice.execution_id != self._root and notice.kind in ("started", "resumed"):
            self._meet(notice)
            return
        tell = getattr(self, f"_{notice.kind}", None)
        if tell is not None:
            tell(notice)

    def _line(self, notice: Notice, text: str) -> None:
        since = seconds(notice.at - self._began)
        self._say(f"{since:>9}  {notice.step:>4}  {text}")

    def _meet(self, child: Notice) -> None:
        name = one_line(child.facts["name"])
        number = sum(label.rpartition("#")[0] == name for label in self._labels.values()) + 1
        self._labels.setdefault(child.execution_id, f"{name}#{number}")

    def _place(self, notice: Notice) -> str:
        label = self._labels.get(notice.execution_id)
        return f"{label}/{one_line(notice.node)}" if label else one_line(notice.node)

    def _at(self, notice: Notice, text: str) -> None:
        self._line(notice, f"{self._place(notice)}: {text}")

    def _started(self, notice: Notice) -> None:
        self._say(f"{self._name}: execution {one_line(notice.execution_id)} started")

    def _resumed(self, notice: Notice) -> None:
        where = f"execution {one_line(notice.execution_id)} resumed after {count(notice.step, 'step')}"
        self._say(f"{self._name}: {where}")

    def _enter(self, notice: Notice) -> None:
        self._line(notice, self._place(notice))

    def _in_doubt(self, notice: Notice) -> None:
        facts = notice.facts
        self._at(notice, doubt_words(facts["what"], facts["effect"], facts["policy"], self._decided))

    def _perform(self, notice: Notice) -> None:
        facts = notice.facts
        self._asked[notice.execution_id, facts["effect_id"]] = notice.at
        if facts["effect"] == "timer":
            self._at(notice, pause_words(facts["until"] - notice.at, self._trouble))
            self._again = True
        elif self._again:
            self._at(notice, f"{one_line(facts['what'])} again")
            self._again = False

    def _answered(self, notice: Notice) -> None:
        facts = notice.facts
        took = seconds(notice.at - self._asked.pop((notice.execution_id, facts["effect_id"]), notice.at))
        if facts["effect"] == "timer":
            return
        # A pause that follows an answer and no failure was caused by the answer: it was empty.
        self._trouble = "empty answer"
        child = facts["effect"] == "child"
        if "tokens" in facts and (facts["tokens"] or not child):
            spent = f"{count(facts['tokens'], 'token')}, {money(facts['cost'], facts['priced'])}, {took}"
            self._at(notice, f"{one_line(facts['what'])} {'done' if child else 'answered'} ({spent})")
        elif "error" in facts:
            self._at(notice, f"{one_line(facts['what'])} gave an error: {one_line(facts['error'])[:120]}")
        else:
            self._at(notice, f"{one_line(facts['what'])} done ({took})")

    def _failed_effect(self, notice: Notice) -> None:
        facts = notice.facts
        self._asked.pop((notice.execution_id, facts["effect_id"]), None)
        self._trouble = failure_words(facts, 120)
        self._at(notice, f"{one_line(facts['what'])} failed: {failure_words(facts, 500)}")

    def _stopped(self, notice: Notice) -> None:
        label = self._labels.get(notice.execution_id)
        if label is None:
            self._say(total_words(notice, self._began))
        elif notice.facts["status"] != "done":
            self._line(notice, f"{label}: {STATUS_WORDS.get(notice.facts['status'], notice.facts['status'])}")


class JsonProgress:
    """An observer that gives each event as data."""

    def __init__(self, event: Callable[..., None]) -> None:
        self._event = event

    def notify(self, notice: Notice) -> None:
        facts: dict[str, Any] = dict(notice.facts)
        facts["spent"] = spent_data(facts["spent"])
        self._event(
            notice.kind,
            at=notice.at,
            execution_id=notice.execution_id,
            state=notice.node,
            step=notice.step,
            **facts,
        )


def spent_data(spent: Any) -> dict[str, Any]:
    """Calls, tokens and cost as plain data."""
    names = ("calls", "input_tokens", "output_tokens", "cost", "priced")
    return {name: getattr(spent, name) for name in names}
