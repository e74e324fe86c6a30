"""A run as a live view in a terminal: a row per visit of a state, redrawn in place.

Rows that are finished stay. Of a long run the last ones are shown, and how many came before.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TextIO

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from flat.cli.text import money, one_line, seconds, short_id
from flat.cli.words import STATUS_WORDS, doubt_words, failure_words, pause_words, spent_words
from flat.core.events import Spent
from flat.hooks.notices import Notice

ROWS = 15
REFRESHES = 8
NARROW = 60
"""Below this width tokens and cost are left to the header."""
COLOURS = {"done": "green", "failed": "red", "cancelled": "yellow", "limit": "yellow", "waiting": "cyan"}


@dataclass
class Visit:
    """One row: a visit of a state, and what it did."""

    step: int | str
    node: str
    began: float
    doing: list[str] = field(default_factory=list)
    now: str = ""
    """What is in flight."""
    until: float | None = None
    """When a pause ends."""
    tokens: int = 0
    cost: float = 0.0
    priced: bool = True
    ended: float | None = None
    failed: bool = False
    machines: dict[str, None] = field(default_factory=dict)
    """The names of the child machines that it runs."""
    children: int = 0
    over: int = 0
    """How many of those have ended."""
    lane: str = ""
    """Which of the instances of a tree it is that run side by side."""

    def words(self, now: float) -> Text:
        parts = [*self.doing]
        if self.machines:
            parts.insert(0, self._children())
        if self.until is not None:
            parts.append(pause_words(self.until - now, self.now))
        elif self.now:
            parts.append(f"{self.now} …")
        return Text(
            "; ".join(parts), style="yellow" if self.until is not None else "red" if self.failed else ""
        )

    def _children(self) -> str:
        names = ", ".join(self.machines)
        if self.children == 1:
            return f"machine {names}" + ("" if self.over or self.ended else " …")
        return f"machine{'s' if len(self.machines) > 1 else ''} {names}: {self.over} of {self.children} done"


class LiveProgress:
    """The observer, and what rich draws."""

    place = "state"
    """What a row is a visit of."""

    def __init__(self, name: str, decided: str = "") -> None:
        self._name, self._decided = one_line(name), decided
        self._visits: deque[Visit] = deque(maxlen=ROWS)
        self._count = 0
        self._root = ""
        self._id, self._status, self._reason = "", "running", ""
        self._began, self._ended = 0.0, 0.0
        self._steps, self._spent = 0, Spent()
        self._trouble = ""

    # -- what happens ---------------------------------------------------------------

    def notify(self, notice: Notice) -> None:
        self._began = self._began or notice.at
        self._root = self._root or notice.execution_id
        if notice.execution_id != self._root:
            return  # a child's states are its own; how it ended is told by its parent
        self._id = short_id(notice.execution_id)
        self._steps, self._spent = max(self._steps, notice.step), notice.facts.get("spent", self._spent)
        tell = getattr(self, f"_{notice.kind}", None)
        if tell is not None:
            tell(notice)

    def _visit(self, notice: Notice) -> Visit:
        """The row of a notice; a resumed run begins in the middle of a visit."""
        if (
            not self._visits
            or self._visits[-1].step != notice.step
            or self._visits[-1].node != one_line(notice.node)
        ):
            self._count += 1
            for earlier in self._visits:
                if earlier.ended is None:
                    earlier.ended, earlier.now, earlier.until = notice.at, "", None
            self._visits.append(Visit(notice.step, one_line(notice.node), notice.at))
        return self._visits[-1]

    def _enter(self, notice: Notice) -> None:
        self._visit(notice)

    def _leave(self, notice: Notice) -> None:
        for visit in self._visits:
            if visit.step == notice.step:
                visit.ended, visit.now, visit.until = notice.at, "", None

    def _in_doubt(self, notice: Notice) -> None:
        facts = notice.facts
        self._visit(notice).doing.append(
            doubt_words(facts["what"], facts["effect"], facts["policy"], self._decided)
        )

    def _perform(self, notice: Notice) -> None:
        visit, facts = self._visit(notice), notice.facts
        if facts["effect"] == "child":
            visit.children += 1
            visit.machines[one_line(facts["what"]).removeprefix("machine ")] = None
        elif facts["effect"] == "timer":
            visit.until, visit.now = facts["until"], self._trouble
        else:
            visit.until, visit.now = None, one_line(facts["what"])

    def _answered(self, notice: Notice) -> None:
        visit, facts = self._visit(notice), notice.facts
        visit.now, visit.until = "", None
        if facts["effect"] == "timer":
            return
        self._trouble = "empty answer"
        if facts["effect"] == "child":
            visit.over += 1
        elif "error" in facts:
            visit.doing.append(f"{one_line(facts['what'])} gave an error: {one_line(facts['error'])[:80]}")
        elif (what := one_line(facts["what"])) not in visit.doing:
            visit.doing.append(what)
        if "tokens" in facts:
            visit.tokens += facts["tokens"]
            visit.cost += facts["cost"]
            visit.priced = visit.priced and facts["priced"]

    def _failed_effect(self, notice: Notice) -> None:
        visit, facts = self._visit(notice), notice.facts
        self._trouble = failure_words(facts, 100)
        visit.over += facts["effect"] == "child"
        visit.now, visit.failed = "", True
        visit.doing.append(f"{one_line(facts['what'])} failed: {self._trouble}")

    def _stopped(self, notice: Notice) -> None:
        self._status, self._reason = str(notice.facts["status"]), one_line(notice.facts.get("reason") or "")
        self._ended = notice.at
        if self._visits and self._visits[-1].ended is None:
            self._visits[-1].ended = notice.at
            if self._status == "waiting" and self._visits[-1].machines:
                self._visits[-1].doing.append("waits for a signal")

    # -- how it looks -----------------------------------------------------------------

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        now = self._ended or time.time()
        wide = options.max_width >= NARROW
        table = Table(box=None, pad_edge=False, show_edge=False, expand=False)
        table.add_column("step", justify="right", header_style="dim", no_wrap=True)
        table.add_column(self.place, header_style="dim", overflow="fold", min_width=5)
        table.add_column("", overflow="fold")
        for heading in ("tokens", "cost", "time") if wide else ("time",):
            table.add_column(heading, justify="right", header_style="dim", no_wrap=True)
        rows = list(self._visits)
        if (earlier := self._count - len(rows)) > 0:
            table.add_row("", Text(f"… {earlier} earlier", style="dim"))
        for visit in rows:
            table.add_row(*self._row(visit, now, wide))
        yield self._header(now)
        yield table

    def _row(self, visit: Visit, now: float, wide: bool) -> tuple[RenderableType, ...]:
        tokens = f"{visit.tokens:,}" if visit.tokens else ""
        cost = money(visit.cost, visit.priced) if visit.tokens else ""
        took = Text(seconds((visit.ended or now) - visit.began), style="dim" if visit.ended else "")
        node = Text(visit.node, style="" if visit.ended else "bold")
        spent = (tokens, cost) if wide else ()
        return (str(visit.step), node, visit.words(now), *spent, took)

    def _header(self, now: float) -> Text:
        line = Text()
        line.append(self._name, style="bold")
        line.append(f"  {self._id}  ", style="dim")
        line.append(STATUS_WORDS.get(self._status, self._status), style=COLOURS.get(self._status, ""))
        took = seconds(now - self._began) if self._began else ""
        line.append(f"  {spent_words(self._steps, self._spent)}  {took}", style="dim")
        return line


class Bar:
    """A progress bar for the download of the local model."""

    def __init__(self, total: int) -> None:
        columns = (TextColumn("fetching the local model"), BarColumn(), DownloadColumn())
        self._progress = Progress(*columns)
        self._task = self._progress.add_task("", total=total)
        self._progress.start()

    def update(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def close(self) -> None:
        self._progress.stop()


@contextlib.contextmanager
def live_view(name: str, decided: str, *, tree: bool = False) -> Iterator[LiveProgress]:
    """The view, drawn while this is open; its last frame stays."""
    progress = LiveProgress(name, decided)
    if tree:
        from flat.cli.tree_view import LiveTreeProgress

        progress = LiveTreeProgress(name, decided)
    view = _View(progress)
    before = sys.stdin
    sys.stdin = _Typed(before, view)
    view.show()
    try:
        yield progress
    finally:
        sys.stdin = before
        view.leave(transient=False)


class _View:
    """The frame that is redrawn."""

    def __init__(self, progress: LiveProgress) -> None:
        # Markup and highlighting are off: what models say is shown, not obeyed.
        self._console = Console(markup=False, highlight=False, emoji=False)
        self._progress = progress

    def show(self) -> None:
        self._live = Live(
            self._progress,
            console=self._console,
            refresh_per_second=REFRESHES,
            vertical_overflow="crop",
        )
        self._live.start()

    def leave(self, *, transient: bool) -> None:
        """Stop drawing. The last frame stays, unless it is `transient`."""
        self._live.transient = transient
        self._live.stop()


class _Typed:
    """Standard input that takes the view away while the user's code reads, and puts it back below what was typed."""

    def __init__(self, stdin: TextIO, view: _View) -> None:
        self._stdin, self._view = stdin, view

    def readline(self, size: int = -1) -> str:
        self._view.leave(transient=True)
        try:
            return self._stdin.readline(size)
        finally:
            self._view.show()

    def __iter__(self) -> Iterator[str]:
        return iter(self.readline, "")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stdin, name)
