"""Where a run's progress goes: a live view, a line per event, lines of JSON, or nowhere.

`show_for` picks one. A `Show` is told what happens before, during and after a run; its `observer` is what the
runtime notifies.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Any, Protocol

from flat.cli.ending import UsageError, complain, say, say_json

if TYPE_CHECKING:
    from flat.cli.live import Bar
    from flat.hooks.notices import Observer
    from flat.runtime import Outcome


class Show(Protocol):
    """One way to show a run."""

    json: bool
    bare: bool
    """True where stdout is for a program, so that nobody else may print there."""

    def loading(self, what: str) -> None:
        """Work begins; said before anything slow is done."""
        ...

    def note(self, line: str) -> None:
        """Something to know about the run that follows."""
        ...

    def download(self, done: int, total: int) -> None:
        """Bytes of the local model fetched so far."""
        ...

    def running(
        self, name: str, decided: str = "", *, tree: bool = False
    ) -> contextlib.AbstractContextManager[Observer | None]:
        """While this is open the run is shown, by instances if it is a tree's. `decided` says what becomes of effects
        in doubt."""
        ...

    def result(self, outcome: Outcome) -> None:
        """The outcome, when there is one to print."""
        ...


def show_for(*, json: bool, quiet: bool, plain: bool, get: str | None = None) -> Show:
    """The way to show that the options and the terminal call for."""
    if get is not None:
        if json:
            raise UsageError("--get and --json exclude each other")
        return FieldShow(get)
    if json:
        return JsonShow()
    if quiet:
        return QuietShow()
    if plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        return PlainShow()
    return LiveShow()


def loading(what: str, *, json: bool, quiet: bool, plain: bool, get: str | None = None) -> Show:
    """Say at once what is being done, before the engine is imported, and give what shows the rest."""
    show = show_for(json=json, quiet=quiet, plain=plain, get=get)
    show.loading(what)
    return show


def output_text(output: Any) -> str:
    """An execution's output for people: JSON, or the text itself."""
    if isinstance(output, str):
        return output
    return json.dumps(output, indent=2, ensure_ascii=False, default=str)


class QuietShow:
    """Nothing but the output."""

    json = False
    bare = False

    def loading(self, what: str) -> None:
        pass

    def note(self, line: str) -> None:
        """Kept from stdout, not from the user: that a model is scripted must always be seen."""
        complain(line)

    def download(self, done: int, total: int) -> None:
        pass

    @contextlib.contextmanager
    def running(self, name: str, decided: str = "", *, tree: bool = False) -> Iterator[Observer | None]:
        yield None

    def result(self, outcome: Outcome) -> None:
        if outcome.status == "done":
            say(output_text(outcome.output))


class FieldShow(QuietShow):
    """Nothing but one field of the output."""

    bare = True

    def __init__(self, path: str) -> None:
        self._path = path

    def result(self, outcome: Outcome) -> None:
        if outcome.status == "done":
            from flat.cli.field import say_field

            say_field(outcome.output, self._path)


class PlainShow:
    """A line per event: for files, pipes, and terminals that cannot redraw."""

    json = False
    bare = False

    def __init__(self) -> None:
        self._tenth = -1

    def loading(self, what: str) -> None:
        say(what)

    def note(self, line: str) -> None:
        say(line)

    def download(self, done: int, total: int) -> None:
        tenth = done * 10 // max(1, total)
        if tenth != self._tenth:
            self._tenth = tenth
            say(f"fetching the local model: {done // 1_000_000} of {total // 1_000_000} MB")

    @contextlib.contextmanager
    def running(self, name: str, decided: str = "", *, tree: bool = False) -> Iterator[Observer | None]:
        if tree:
            from flat.cli.tree_view import PlainTreeProgress

            yield PlainTreeProgress(say, name, decided)
            return
        from flat.cli.plain import PlainProgress

        yield PlainProgress(say, name, decided)

    def result(self, outcome: Outcome) -> None:
        if outcome.status == "done":
            say(output_text(outcome.output))


class LiveShow(PlainShow):
    """A view that is redrawn in place. What draws is imported when there is something to draw."""

    def __init__(self) -> None:
        super().__init__()
        self._bar: Bar | None = None

    def note(self, line: str) -> None:
        self._end_bar()
        super().note(line)

    def download(self, done: int, total: int) -> None:
        from flat.cli.live import Bar

        self._bar = self._bar or Bar(total)
        self._bar.update(done)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    @contextlib.contextmanager
    def running(self, name: str, decided: str = "", *, tree: bool = False) -> Iterator[Observer | None]:
        from flat.cli.live import live_view

        with live_view(name, decided, tree=tree) as progress:
            yield progress


class JsonShow:
    """One JSON object per line, and nothing else: what the user's own code prints goes to stderr."""

    json = True
    bare = True

    def __init__(self) -> None:
        self._out: IO[str] = sys.stdout
        self._tenth = -1

    def _event(self, event: str, **facts: Any) -> None:
        say_json({"event": event, **facts}, self._out)

    def loading(self, what: str) -> None:
        self._event("loading", what=what)

    def note(self, line: str) -> None:
        self._event("note", text=line)

    def download(self, done: int, total: int) -> None:
        tenth = done * 10 // max(1, total)
        if tenth != self._tenth:
            self._tenth = tenth
            self._event("download", done=done, total=total)

    @contextlib.contextmanager
    def running(self, name: str, decided: str = "", *, tree: bool = False) -> Iterator[Observer | None]:
        from flat.cli.plain import JsonProgress

        with contextlib.redirect_stdout(sys.stderr):
            yield JsonProgress(self._event)

    def result(self, outcome: Outcome) -> None:
        from flat.cli.outcomes import result_data

        self._event("result", **result_data(outcome))
