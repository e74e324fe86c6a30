"""How the run of a tree is shown: by its instances, turn and step, where a machine of states is shown by its states."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

from flat.cli.live import LiveProgress, Visit
from flat.cli.plain import PlainProgress
from flat.cli.text import one_line, seconds
from flat.cli.words import spent_words
from flat.hooks.notices import Notice

AT_REST = "at rest"
"""The status of a session between two turns: stored, it waits for more to be said."""

_LANE = re.compile(r"/tree\.(\d+)-(\d+)-(\d+)")
_COMMAND = re.compile(r"/tree\.command-")


def lane_of(notice: Notice) -> tuple[str, str]:
    """The step of a turn that an effect belongs to, and its lane in that; of a command, that it is one."""
    effect = str(notice.facts.get("effect_id", ""))
    if found := _LANE.search(effect):
        return f"{found[1]}.{found[2]}", found[3]
    return ("command", effect) if _COMMAND.search(effect) else ("", "")


def in_tree(notice: Notice) -> Notice:
    """The notice, with the model of an instance called so."""
    what = notice.facts.get("what")
    if not isinstance(what, str) or notice.facts.get("effect") != "call":
        return notice
    return replace(notice, facts={**notice.facts, "what": "model"})


class LiveTreeProgress(LiveProgress):
    """A row per instance and step. The instances of a step run side by side."""

    place = "instance"

    def __init__(self, name: str, decided: str = "") -> None:
        super().__init__(name, decided)
        self._seen: set[str] = set()
        """The steps that began in this run."""

    def notify(self, notice: Notice) -> None:
        super().notify(in_tree(notice))
        self._steps = len(self._seen)

    def _perform(self, notice: Notice) -> None:
        self._seen.add(lane_of(notice)[0])
        super()._perform(notice)

    def _enter(self, notice: Notice) -> None:
        """The one node of a tree's program is not for people."""

    _leave = _enter

    def _visit(self, notice: Notice) -> Visit:
        step, lane = lane_of(notice)
        for row in self._visits:
            if row.step == step and row.lane == lane:
                return row
        self._count += 1
        for earlier in self._visits:
            if earlier.ended is None and earlier.step != step:
                earlier.ended, earlier.now, earlier.until = notice.at, "", None
        name = "command" if step == "command" else one_line(notice.node)
        row = Visit(step if step != "command" else "", name, notice.at, lane=lane)
        self._visits.append(row)
        return row

    def _stopped(self, notice: Notice) -> None:
        for row in self._visits:
            if row.ended is None:
                row.ended = notice.at
        super()._stopped(notice)
        if self._status == "waiting":
            self._status = AT_REST


class PlainTreeProgress(PlainProgress):
    """A line per event, each with its step and instance."""

    def __init__(self, say: Callable[[str], None], name: str, decided: str = "") -> None:
        super().__init__(say, name, decided)
        self._seen: set[str] = set()

    def _perform(self, notice: Notice) -> None:
        self._seen.add(lane_of(notice)[0])
        super()._perform(notice)

    def _stopped(self, notice: Notice) -> None:
        if notice.execution_id != self._root or notice.facts["status"] != "waiting":
            super()._stopped(notice)
            return
        took = seconds(notice.at - self._began)
        self._say(f"{AT_REST}: {spent_words(len(self._seen), notice.facts['spent'])}, {took}")

    def notify(self, notice: Notice) -> None:
        super().notify(in_tree(notice))

    def _enter(self, notice: Notice) -> None:
        if notice.execution_id != self._root:
            super()._enter(notice)

    def _place(self, notice: Notice) -> str:
        step, lane = lane_of(notice)
        if step in ("", "command"):
            return step or super()._place(notice)
        place = super()._place(notice)
        return f"{step} {place}" if lane == "0" else f"{step} {place}#{int(lane) + 1}"
