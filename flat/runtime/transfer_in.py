"""Executions out of a file into a store: all of the file is checked, then each is stored whole. See `transfer`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Literal, TypeAlias

import anyio
from anyio.abc import TaskGroup
from anyio.lowlevel import checkpoint

from flat.backends.liveness import this_process
from flat.backends.protocols import (
    Birth,
    CheckpointStore,
    Commit,
    DeadSignal,
    Execution,
    Head,
    Lease,
    Owner,
    Signal,
)
from flat.drivers.keeper import IMPORTING
from flat.errors import BackendError, ExecutionBusy
from flat.runtime.references import blob_names
from flat.runtime.transfer_file import BadExport, Line, lines, read_at, unpacked

Existing: TypeAlias = Literal["refuse", "skip", "replace"]
"""What to do with an execution whose id is taken."""
TTL = 30.0
"""Seconds that our leases last."""
SHOWN = 5
"""So many ids are named in a message."""
AT_ONCE = 32
"""Executions whose commits are stored side by side."""
SMALL = 131_072
"""Bytes of the file that such an execution may take: what is larger is stored while it is read."""


@dataclass(slots=True)
class Imported:
    """What came out of a file."""

    executions: int = 0
    commits: int = 0
    signals: int = 0
    dead: int = 0
    replaced: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """What an execution refers to and the file does not have, in words."""


@dataclass(slots=True)
class Contents:
    """A file that has been read and is whole: what is in it."""

    execution_ids: list[str] = field(default_factory=list)
    blobs: dict[str, int] = field(default_factory=dict)
    """Where each blob stands."""
    programs: set[str] = field(default_factory=set)
    missing: list[str] = field(default_factory=list)


def check_file(source: IO[bytes]) -> Contents:
    """Read a file to its end. Raises `BadExport`, naming the line, if it is not as it was written."""
    source.seek(0)
    contents, known = Contents(), set[str]()
    left, seq = 0, 0
    current = ""
    for line in lines(source):
        if left and line.kind not in ("commit", "blob"):
            raise BadExport(f'execution "{current}" lacks {left} of its commits', line.number)
        match line.kind:
            case "execution":
                columns = _execution(line)
                current, left, seq = columns.execution_id, columns.seq + 1, 0
                if current in known:
                    raise BadExport(f'execution "{current}" is here a second time', line.number)
                known.add(current)
                contents.execution_ids.append(current)
                if columns.program not in contents.programs:
                    contents.missing.append(f"program {columns.program} of execution {current}")
            case "commit":
                if not left or line.get("seq", int) != seq:
                    raise BadExport("a commit is not in its place", line.number)
                for part in _parts(line):
                    contents.missing += [
                        f"blob {n} of execution {current}"
                        for n in blob_names(part)
                        if n not in contents.blobs
                    ]
                left, seq = left - 1, seq + 1
            case "blob":
                contents.blobs[line.get("digest", str)] = line.offset
                line.body()
            case "program":
                contents.programs.add(line.get("digest", str))
                line.body()
            case "signal" | "dead":
                _signal(line)
            case "head":
                if line.number != 1:
                    raise BadExport("a second head", line.number)
            case "end":
                pass
            case _:
                raise BadExport(
                    f'a record of kind "{line.kind}", which this release does not know', line.number
                )
    return contents


def _parts(line: Line) -> Iterator[bytes]:
    line.get("base", bool)
    yield line.body()
    yield from _rows(line)


def _rows(line: Line) -> list[bytes]:
    log = line.data.get("log", [])
    if not isinstance(log, list) or (log and line.data.get("seq") == 0):
        raise BadExport("the log of a commit is not in its place", line.number)
    return [unpacked(row, "commit", line.number) for row in log]


def _execution(line: Line) -> Execution:
    number = (int, float)
    commits = line.get("commits", int)
    if commits < 1:
        raise BadExport("an execution without a commit", line.number)
    channels = line.get("channels", list)
    return Execution(
        execution_id=line.get("execution_id", str), name=line.get("name", str), kind=line.get("kind", str),
        program=line.get("program", str), status=line.get("status", str), seq=commits - 1,
        created_at=float(line.get("created_at", number)), updated_at=float(line.get("updated_at", number)),
        parent=line.get("parent", (str, type(None))), wake_at=line.get("wake_at", (int, float, type(None))),
        channels=tuple(str(channel) for channel in channels),
    )  # fmt: skip


def _signal(line: Line) -> Signal:
    return Signal(
        signal_id=line.get("signal_id", str), channel=line.get("channel", str), body=line.body(),
        created_at=float(line.get("created_at", (int, float))), to=line.get("to", (str, type(None))),
    )  # fmt: skip


async def import_runs(
    store: CheckpointStore,
    source: IO[bytes],
    *,
    existing: Existing = "refuse",
    contents: Contents | None = None,
    now: Callable[[], float] = time.time,
) -> Imported:
    """Store what is in a file, which must be seekable. Nothing is written unless all of the file is whole.

    `contents` are what `check_file` gave, if it has been asked already: before a store was made for them.
    Raises `BadExport`, and `ExecutionBusy` for ids that exist: by default for any, else for one that is driven.
    """
    contents = check_file(source) if contents is None else contents
    skipped, replaced = await _taken(store, contents.execution_ids, existing, now)
    made = _Import(store, source, contents, set(skipped), now)
    made.told.skipped, made.told.replaced = skipped, replaced
    made.told.missing = contents.missing
    for execution_id in replaced:
        await store.delete(execution_id)
    try:
        await made.run()
    except BaseException:
        with anyio.CancelScope(shield=True), contextlib.suppress(BackendError):
            await made.undo()
        raise
    return made.told


async def _taken(
    store: CheckpointStore, execution_ids: Sequence[str], existing: Existing, now: Callable[[], float]
) -> tuple[list[str], list[str]]:
    """Which of the ids exist: those to leave out, and those to replace."""
    taken: list[str] = []
    for execution_id in execution_ids:
        found = await store.get(execution_id)
        if found is None:
            continue
        driven = found.owner is not None and not await store.abandoned(execution_id, now=now())
        if driven and (existing == "replace" or found.status == IMPORTING):
            raise ExecutionBusy(execution_id, hint="nothing was imported; wait until it is over, or parked")
        if found.status == IMPORTING:
            await store.delete(execution_id)
        else:
            taken.append(execution_id)
    if taken and existing == "refuse":
        shown = ", ".join(taken[:SHOWN]) + (f" and {len(taken) - SHOWN} more" if len(taken) > SHOWN else "")
        are = "is in the store already" if len(taken) == 1 else "are in the store already"
        raise TakenIds(
            f"{shown} {are}, so that nothing was imported; leave such out by --skip-existing, or put the file's "
            "in their place by --replace"
        )
    return (taken, []) if existing == "skip" else ([], taken)


class TakenIds(BackendError):
    """Executions of a file exist in the store."""

    exit_code = 8


@dataclass(slots=True)
class _Section:
    """An execution that is being stored."""

    execution: Execution
    lease: Lease | None = None
    unstored: dict[str, bytes] = field(default_factory=dict)
    """Blobs of its first body: a birth cannot bring them, the commit after it does."""
    waiting: list[Line] = field(default_factory=list)
    """Commits that were read and not stored yet."""
    since: int = 0
    """Where the first of them stands in the file."""


class _Import:
    """An import in progress.

    Executions are begun in the order of the file, one after the other. The commits of several are then stored side by
    side, as far as they are small: over a network each takes its time, and stores write such together.
    """

    def __init__(
        self,
        store: CheckpointStore,
        source: IO[bytes],
        contents: Contents,
        skipped: set[str],
        now: Callable[[], float],
    ) -> None:
        self.store, self.now, self.told = store, now, Imported()
        self._source, self._contents, self._skipped = source, contents, skipped
        self._owner: Owner = this_process()
        self._beaten = now()
        self._section: _Section | None = None
        self._open: dict[str, _Section] = {}
        """Executions that are begun and not whole."""
        self._blobs: set[str] = set()
        """Blobs that are stored."""
        self._places = anyio.Semaphore(AT_ONCE)
        self._failure: BaseException | None = None

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            await self._guarded(self._read(group), group)
        if self._failure is not None:
            raise self._failure

    async def undo(self) -> None:
        """Take out what is stored of executions that are not whole."""
        for execution_id in self._open:
            await self.store.delete(execution_id)

    async def _guarded(self, work: Awaitable[None], group: TaskGroup) -> None:
        """The first error ends all of the import, and comes out as it is."""
        try:
            await work
        except anyio.get_cancelled_exc_class():
            raise
        except BaseException as error:
            self._failure = self._failure or error
            group.cancel_scope.cancel()

    async def _read(self, group: TaskGroup) -> None:
        self._source.seek(0)
        for line in lines(_OwnPlace(self._source)):
            if line.kind in ("signal", "dead"):
                await self._settled()
            await self._take(line, group)
        await self._settled()

    async def _settled(self) -> None:
        """Wait until no commit is under way."""
        for _ in range(AT_ONCE):
            await self._places.acquire()
        for _ in range(AT_ONCE):
            self._places.release()

    async def _take(self, line: Line, group: TaskGroup) -> None:
        match line.kind:
            case "program":
                await self.store.put_config(line.get("digest", str), line.body())
            case "execution":
                found = _execution(line)
                self._section = None if found.execution_id in self._skipped else _Section(found)
                self.told.executions += self._section is not None
            case "commit" if self._section is not None:
                self.told.commits += 1
                await self._take_commit(self._section, line, group)
            case "signal":
                self.told.signals += await self.store.send(_signal(line))
            case "dead":
                await self._dead(DeadSignal(
                    signal=_signal(line), reason=line.get("reason", str), at=float(line.get("at", (int, float)))
                ))  # fmt: skip
            case _:
                pass

    async def _dead(self, letter: DeadSignal) -> None:
        if await self.store.send(letter.signal):
            self.told.dead += await self.store.bury(letter.signal.signal_id, letter.reason, letter.at)

    async def _take_commit(self, section: _Section, line: Line, group: TaskGroup) -> None:
        """Store a commit, or keep it until the last one of a small execution has been read."""
        if line.get("seq", int) == 0:
            await self._begin(section, line.body())
            section.since = line.offset
            await checkpoint()
            return
        section.waiting.append(line)
        last = line.get("seq", int) == section.execution.seq
        if last and line.offset - section.since < SMALL:
            await self._places.acquire()
            group.start_soon(self._guarded_section, section, group)
        elif last or line.offset - section.since >= SMALL:
            await self._commit_all(section)
            section.since = line.offset

    async def _guarded_section(self, section: _Section, group: TaskGroup) -> None:
        try:
            await self._guarded(self._commit_all(section), group)
        finally:
            self._places.release()

    async def _commit_all(self, section: _Section) -> None:
        waiting, section.waiting = section.waiting, []
        for line in waiting:
            await self._commit(section, line)

    async def _begin(self, section: _Section, body: bytes) -> None:
        execution = section.execution
        if execution.seq == 0:
            if not await self.store.create(Birth(execution=execution, body=body)):
                raise _came_meanwhile(execution)
            return
        hidden = replace(
            execution, seq=0, status=IMPORTING, wake_at=None, channels=(), updated_at=execution.created_at
        )
        section.unstored = self._blobs_of(body)
        birth = Birth(execution=hidden, body=body)
        section.lease = await self.store.begin(birth, self._owner, now=self.now(), ttl=TTL)
        if section.lease is None:
            raise _came_meanwhile(execution)
        self._open[execution.execution_id] = section

    async def _commit(self, section: _Section, line: Line) -> None:
        execution, lease = section.execution, section.lease
        assert lease is not None
        seq, body, rows = line.get("seq", int), line.body(), _rows(line)
        last = seq == execution.seq
        head = Head(
            status=execution.status, wake_at=execution.wake_at, channels=execution.channels,
            program=execution.program,
        )  # fmt: skip
        blobs = {**section.unstored, **self._blobs_of(body, *rows)}
        await self.store.commit(
            Commit(
                lease=lease, seq=seq, at=execution.updated_at if last else execution.created_at, body=body,
                base=line.get("base", bool), head=head if last else None, log=rows, blobs=blobs, release=last,
            )
        )  # fmt: skip
        section.unstored = {}
        self._blobs.update(blobs)
        if last:
            del self._open[execution.execution_id]
        await self._beat()

    def _blobs_of(self, *parts: bytes) -> dict[str, bytes]:
        """The blobs of the file that these refer to, unless they are stored already."""
        found: dict[str, bytes] = {}
        for part in parts:
            for digest in blob_names(part):
                if digest not in self._blobs and digest not in found and digest in self._contents.blobs:
                    line = read_at(self._source, self._contents.blobs[digest])
                    found[digest] = Line(0, 0, "blob", line).body()
        return found

    async def _beat(self) -> None:
        """An import may take longer than a lease."""
        if (now := self.now()) - self._beaten > TTL / 3:
            self._beaten = now
            await self.store.heartbeat(self._owner, now=now, ttl=TTL)


def _came_meanwhile(execution: Execution) -> TakenIds:
    return TakenIds(
        f"{execution.execution_id} came into the store while the file was imported; those before it are stored: go on "
        "with --skip-existing"
    )


class _OwnPlace:
    """The lines of a file, in order, though blobs are read out of turn between two of them."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._at = source, source.tell()

    def tell(self) -> int:
        return self._at

    def __iter__(self) -> Iterator[bytes]:
        while True:
            if self._source.tell() != self._at:
                self._source.seek(self._at)
            raw = self._source.readline()
            if not raw:
                return
            self._at += len(raw)
            yield raw
