"""`flat fork`: a new execution that begins where another one stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio

from flat.backends.protocols import Execution
from flat.cli.ending import DONE, UsageError, complain, say, say_json
from flat.cli.inputs import read_inputs
from flat.cli.looking import moment_words, place_of
from flat.cli.resuming import Wishes, resume
from flat.cli.show import Show
from flat.cli.stores import MEMORY, full_id, need_store, resume_hint, store_url
from flat.cli.text import one_line, short_id
from flat.errors import did_you_mean
from flat.runtime import Runtime
from flat.runtime.history import Moment, moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Fork:
    """What was made of what."""

    execution: Execution
    original: str
    source: Moment
    notes: Sequence[str]

    def data(self) -> dict[str, Any]:
        return {
            "event": "forked",
            "execution_id": self.execution.execution_id,
            "forked_from": {
                "execution_id": self.original, "step": self.source.step, "seq": self.source.seq,
                "state": self.source.node,
            },
            "status": self.execution.status, "waiting_on": list(self.execution.channels),
            "notes": list(self.notes),
        }  # fmt: skip


def fork(
    id_: str, *, at: str | None, changes: Sequence[str], new_id: str | None, run: bool, show: Show,
    store: str | None, live: bool | None, verbose: int,
) -> int:  # fmt: skip
    """Fork an execution, and run the fork when that is asked for."""
    values = _values(changes)
    if new_id is not None and not new_id.strip():
        raise UsageError("--id is empty")
    if at is not None:
        place_of(at)
    url = store_url(store)
    if url == MEMORY:
        raise UsageError("a fork needs a store that keeps something; name it with --store")
    need_store(url, id_)
    made = anyio.run(_fork, url, id_, at, values, new_id)
    _tell(made, store, run, show)
    if not run:
        return DONE
    wishes = Wishes(live=live)
    return resume(made.execution.execution_id, None, wishes, show=show, store=store, verbose=verbose)


def _values(changes: Sequence[str]) -> dict[str, Any]:
    try:
        return read_inputs(changes)
    except UsageError as error:
        raise UsageError(str(error).replace("--input", "--set")) from None


async def _fork(url: str, given: str, at: str | None, values: Mapping[str, Any], new_id: str | None) -> Fork:
    async with Runtime(url) as runtime:
        original = await full_id(runtime, given)
        source = await moment(runtime.opened(), original, None if at is None else place_of(at))
        # By its number, so that a run that goes on meanwhile does not change what is forked.
        made = await runtime.fork(original, at=source.seq, set=values, new_id=new_id)
        execution = await runtime.opened().get(made)
        assert execution is not None
        notes = tuple(_doubtful(values, source.snapshot.root.context))
        return Fork(execution=execution, original=original, source=source, notes=notes)


_KINDS = {
    str: "text",
    int: "a number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "a mapping",
}


def _doubtful(values: Mapping[str, Any], context: Mapping[str, Any]) -> list[str]:
    """What was set and may not be what was meant."""
    notes = []
    for key, value in values.items():
        if key not in context:
            near = did_you_mean(key, context)
            notes.append(f'the context had no "{key}" before' + (f"; {near}" if near else ""))
        elif (was := _KINDS.get(type(context[key]))) and (now := _KINDS.get(type(value))) and was != now:
            hint = f"; for JSON, write {key}:=…" if isinstance(value, str) else ""
            notes.append(f'"{key}" was {was} and is {now} now{hint}')
    return notes


def _tell(made: Fork, store: str | None, run: bool, show: Show) -> None:
    if show.json:
        say_json(made.data())
        return
    name, original = (one_line(short_id(i)) for i in (made.execution.execution_id, made.original))
    for note in made.notes:
        complain(f"note: {one_line(note)}")
    show.note(f"{name}: forked from {original} at {moment_words(made.source)}")
    if run:
        return
    if made.execution.channels:
        channels = ", ".join(f'"{one_line(c)}"' for c in made.execution.channels)
        say(f"it waits for a signal on {channels}, of which one wakes one execution")
    if made.execution.status != "done":
        more = "--more-steps 100" if made.execution.status == "limit" else ""
        say(f"run it with: {resume_hint(made.execution.execution_id, store, more=more)}")
