"""What is wrong in a store, and what to do about it: damage, runs that nobody drives, waits that nothing will end.

Nothing is changed here. Every execution is read in full: each of its bodies is decoded on the one before, every
blob is compared with its digest, and the columns with what the newest body says. With `quick` the columns alone
are looked at.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from anyio.lowlevel import checkpoint

from flat.backends.protocols import CheckpointStore, DeadSignal, Execution, Signal
from flat.backends.sweeping import DIGEST_LENGTH, Sweepable
from flat.core.effects import child_channel
from flat.core.snapshot import FINISHED, Snapshot
from flat.core.storable import digest_of
from flat.drivers.keeper import IMPORTING
from flat.errors import FlatError
from flat.runtime.history import LOOKING
from flat.runtime.machine import program_of
from flat.runtime.references import blob_names

Severity = Literal["error", "warning", "note"]
OVERDUE = 60.0
"""Seconds after which a timer that nobody acts on is worth a word."""
CHILD = child_channel("")
Open: TypeAlias = Collection[tuple[str, str | None]]
"""The channels on which signals are open, each with whom it is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that should not be as it is."""

    code: str
    severity: Severity
    message: str
    do: str
    """What to do about it."""
    execution_id: str | None = None

    def data(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(slots=True)
class Seen:
    """What was looked at."""

    executions: int = 0
    bodies: int = 0
    blobs: int = 0
    programs: int = 0


class Doctor:
    """Examines one store."""

    def __init__(self, store: CheckpointStore, *, now: float, quick: bool = False) -> None:
        self.store, self.now, self.quick, self.seen = store, now, quick, Seen()
        self._programs: dict[str, Finding | None] = {}
        self._blobs: dict[str, str] = {}
        """Blobs that were looked at: what is wrong with each, or nothing."""
        self._ids: dict[str, str] = {}

    async def findings(self) -> AsyncIterator[Finding]:
        """Everything that is wrong, the store's file first, then execution by execution, oldest first."""
        for finding in file_findings(self.store):
            yield finding
        everyone = [e async for e in self.store.find()]
        everyone.reverse()
        self._ids = {e.execution_id: e.status for e in everyone}
        for finding in _clock(everyone, self.now):
            yield finding
        dead, signals = await self.store.dead(), await self.store.signals()
        open_ = {(signal.channel, signal.to) for signal in signals}
        for execution in everyone:
            self.seen.executions += 1
            for finding in await self._execution(execution, open_, dead):
                yield finding
            await checkpoint()
        for finding in _mail(self._ids, signals, dead):
            yield finding
        if not self.quick:
            async for finding in self._unreferenced():
                yield finding

    async def _execution(self, e: Execution, open_: Open, dead: Sequence[DeadSignal]) -> list[Finding]:
        if e.status == IMPORTING:
            return [] if await self._driven(e) else [_finding(
                "half-import", "warning", "was imported by half: that process died",
                "import its file again, or remove it: flat runs prune --leftovers", e,
            )]  # fmt: skip
        found = list(await self._standing(e))
        found += await self._waiting(e, open_, dead)
        if (program := await self._program(e)) is not None:
            found.append(program)
        if not self.quick:
            found += await self._bodies(e)
        return found

    # -- who drives it -----------------------------------------------------------------------------

    async def _driven(self, e: Execution) -> bool:
        return e.owner is not None and not await self.store.abandoned(e.execution_id, now=self.now)

    async def _standing(self, e: Execution) -> list[Finding]:
        id_ = e.execution_id
        driven = await self._driven(e)
        if e.status == "running" and not driven:
            why = (
                "the process that drove it is gone"
                if e.owner
                else "nobody drives it: its process ended without parking it"
            )
            return [
                _finding(
                    "stranded", "warning", f"is stranded: {why}", f"take it up again: flat resume {id_}", e
                )
            ]
        if e.status == "in_doubt":
            do = f"see flat runs show {id_}, then flat resume {id_} --retry-in-doubt, or --mark-done JSON"
            return [
                _finding("in-doubt", "warning", "is in doubt: something may or may not have happened", do, e)
            ]
        if e.status == "limit":
            return [
                _finding(
                    "limit",
                    "note",
                    "stopped at a limit",
                    f"allow it more: flat resume {id_} --more-steps N",
                    e,
                )
            ]
        if e.owner is not None and not driven:
            do = "nothing: whoever takes it up next takes the lease over"
            return [_finding("stale-lease", "note", "has a lease of a process that is gone", do, e)]
        return []

    # -- what it waits for -------------------------------------------------------------------------

    async def _waiting(self, e: Execution, open_: Open, dead: Sequence[DeadSignal]) -> list[Finding]:
        if e.status != "waiting":
            return []
        id_ = e.execution_id
        if not e.channels and e.wake_at is None:
            do = f"flat resume {id_} looks at what is pending again; if it parks as before, flat cancel {id_}"
            return [
                _finding(
                    "unwakeable", "error", "waits for no channel and no time: nothing can wake it", do, e
                )
            ]
        if e.wake_at is not None and self.now - e.wake_at > OVERDUE and not await self._driven(e):
            late = f"{self.now - e.wake_at:.0f} s"
            return [_finding("overdue", "warning", f"has a timer that was due {late} ago", _DISPATCH, e)]
        if any((channel, to) in open_ for channel in e.channels for to in (None, id_)):
            return [_finding("undelivered", "warning", "waits, and its signal is there", _DISPATCH, e)]
        found = []
        for letter in dead:
            if letter.signal.to in (None, id_) and letter.signal.channel in e.channels:
                do = f"try again: flat signals retry {letter.signal.signal_id}"
                what = f'waits on "{letter.signal.channel}", and a signal for it is a dead letter: {letter.reason}'
                found.append(_finding("dead-letter", "warning", what, do, e))
        if e.channels and all(c.startswith(CHILD) for c in e.channels) and e.wake_at is None:
            found += self._lost_children(e)
        return found

    def _lost_children(self, e: Execution) -> Iterator[Finding]:
        """Children that will tell their parent nothing any more, though it waits for them alone."""
        for channel in e.channels:
            child = channel.removeprefix(CHILD)
            status = self._ids.get(child)
            if status is None:
                what = f'waits for its child "{child}", which is not in the store'
                do = f"flat resume {e.execution_id} starts it anew"
                yield _finding("lost-child", "warning", what, do, e)
            elif status in FINISHED:
                what = f'waits for its child "{child}", which is {status}; the signal that says so was lost'
                do = f"flat resume {e.execution_id} finds out by itself"
                yield _finding("lost-signal", "warning", what, do, e)

    # -- what it is made of ------------------------------------------------------------------------

    async def _program(self, e: Execution) -> Finding | None:
        digest = e.program
        if digest not in self._programs:
            self._programs[digest] = None
            self.seen.programs += 1
            text = await self.store.get_config(digest)
            if text is None:
                do = f"resume it with its file, if that is as it was: flat resume {e.execution_id} FILE --adopt"
                self._programs[digest] = _finding(
                    "lost-program", "error", f"its program {digest} is not in the store", do, e
                )
            else:
                problem = _program_problem(text, digest)
                if problem:
                    do = "import the execution again from a file of before, with --replace"
                    self._programs[digest] = _finding(
                        "bad-program", "error", f"its program {digest} {problem}", do, e
                    )
        known = self._programs[digest]
        if known is None or known.execution_id == e.execution_id:
            return known
        return _finding(known.code, known.severity, known.message, known.do, e)

    async def _bodies(self, e: Execution) -> list[Finding]:
        bodies = [one for one in await self.store.bodies(e.execution_id) if one[0] <= e.seq]
        self.seen.bodies += len(bodies)
        if [seq for seq, _, _ in bodies] != list(range(e.seq + 1)):
            there = {seq for seq, _, _ in bodies}
            lost = next(seq for seq in range(e.seq + 1) if seq not in there)
            return [_finding("lost-body", "error", f"lacks body {lost} of 0 to {e.seq}", _restore(e), e)]
        stored = await self.store.load(e.execution_id, at=e.seq)
        rows = () if stored is None else stored.log
        blobs: dict[str, bytes] = {}
        found: list[Finding] = []
        for part in (*(body for _, _, body in bodies), *rows):
            for name in blob_names(part):
                if name not in blobs:
                    blobs[name] = await self._blob(name)
                    if problem := self._blobs[name]:
                        found.append(
                            _finding(
                                "bad-blob", "error", f"refers to blob {name}, which {problem}", _restore(e), e
                            )
                        )
        if found:
            return found
        snapshot: Snapshot | None = None
        seq = 0
        try:
            for one in bodies:
                seq, base, body = one
                snapshot = (
                    LOOKING.snapshot(body, blobs)
                    if base or snapshot is None
                    else LOOKING.applied(snapshot, body, blobs)
                )
            for row in rows:
                LOOKING.message(row, blobs)
        except FlatError as error:
            return [_finding("bad-body", "error", f"body {seq} cannot be read: {error}", _restore(e), e)]
        return list(_disagreements(e, snapshot, len(rows)))

    async def _blob(self, name: str) -> bytes:
        data = await self.store.get_blob(name)
        if name not in self._blobs:
            self.seen.blobs += 1
            whole = data is not None and (len(name) != DIGEST_LENGTH or digest_of(data) == name)
            self._blobs[name] = (
                "" if whole else "is not in the store" if data is None else "is not what was stored"
            )
        return data or b""

    async def _unreferenced(self) -> AsyncIterator[Finding]:
        if not isinstance(self.store, Sweepable):
            return
        for kind, used in (("blob", self._blobs), ("config", self._programs)):
            names = await self.store.kept("blob" if kind == "blob" else "config")
            # A store may have names of its own for them, which tell us nothing.
            unused = [name for name in names if len(name) == DIGEST_LENGTH and name not in used]
            if unused:
                what = (
                    f"no execution refers to {_count(len(unused), 'blob' if kind == 'blob' else 'program')}"
                )
                yield Finding(
                    code="unreferenced",
                    severity="note",
                    message=what,
                    do="remove them: flat runs prune --leftovers",
                )


_DISPATCH = "no dispatcher seems to run: flat dispatch --once, or --watch to have it stay"


def _finding(code: str, severity: Severity, what: str, do: str, e: Execution) -> Finding:
    return Finding(code=code, severity=severity, message=what, do=do, execution_id=e.execution_id)


def _restore(e: Execution) -> str:
    return f"import it from a file of before, with --replace, or from a backup; else flat cancel {e.execution_id}"


def _program_problem(text: bytes, digest: str) -> str:
    try:
        program, _ = program_of(text)
    except FlatError as error:
        return f"cannot be read: {error}"
    except (ValueError, KeyError, TypeError) as error:
        return f"is damaged: {error!r}"
    return "" if program.digest == digest else f"is another one, {program.digest}"


def _disagreements(e: Execution, snapshot: Snapshot | None, rows: int) -> Iterator[Finding]:
    """Where the columns say something else than the newest body."""
    assert snapshot is not None
    if snapshot.execution_id != e.execution_id:
        yield _finding("wrong-body", "error", f'holds the body of "{snapshot.execution_id}"', _restore(e), e)
    elif snapshot.status != e.status:
        what = f"is listed as {e.status}, and its newest body says {snapshot.status}"
        yield _finding("status", "error", what, f"flat resume {e.execution_id} stores it anew", e)
    if rows < snapshot.log_length:
        what = f"has {rows} of the {snapshot.log_length} messages of its log"
        yield _finding("lost-log", "error", what, _restore(e), e)


def _clock(everyone: Sequence[Execution], now: float) -> Iterator[Finding]:
    """Timers and leases go by the clocks of all hosts: one that is wrong ends leases of those that live."""
    ahead = max((e.updated_at - now for e in everyone), default=0.0)
    if ahead > OVERDUE:
        yield Finding(
            code="clock", severity="warning",
            message=f"something was stored {ahead:,.0f} s in the future: this clock is behind, or another's ahead",
            do="have all hosts that use this store set their clocks by NTP",
        )  # fmt: skip


def _mail(ids: dict[str, str], signals: Sequence[Signal], dead: Sequence[DeadSignal]) -> Iterator[Finding]:
    """Signals that will never be taken, and those that were given up."""
    gone = [s for s in signals if s.to is not None and ids.get(s.to, "done") in FINISHED]
    if gone:
        yield Finding(
            code="unwanted-signals", severity="note", do="they go when their executions are pruned",
            message=f"for executions that are over, or not here: {_count(len(gone), 'signal')}",
        )  # fmt: skip
    if dead:
        first = dead[0].signal.signal_id
        yield Finding(
            code="dead-letters", severity="warning", message=_count(len(dead), "dead letter"),
            do=f"see flat signals list --dead; try one again: flat signals retry {first}",
        )  # fmt: skip


def file_findings(store: CheckpointStore) -> Iterator[Finding]:
    """What SQLite says about the store's file, if it is one of SQLite's."""
    path = getattr(store, "path", None)
    if not isinstance(path, str) or not Path(path).is_file():
        return
    with contextlib.closing(
        sqlite3.connect(f"file:{quote(str(Path(path).resolve()))}?mode=ro", uri=True)
    ) as connection:
        try:
            said = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
        except sqlite3.Error as error:
            said = [str(error)]
    if said != ["ok"]:
        yield Finding(
            code="damaged-file", severity="error", message=f"{path} is damaged: {'; '.join(said)}",
            do=f"restore a backup, or on a copy: sqlite3 {path} .recover",
        )  # fmt: skip


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
