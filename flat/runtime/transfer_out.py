"""Executions out of a store into a file: which ones, and what of them. See `transfer`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import orjson
from anyio.lowlevel import checkpoint

from flat.backends.protocols import CheckpointStore, Execution, Signal
from flat.drivers.keeper import IMPORTING
from flat.errors import ExecutionNotFound
from flat.runtime.references import blob_names
from flat.runtime.transfer_file import FORMAT, VERSION, Writer, packed


@dataclass(slots=True)
class Exported:
    """What a file came to hold."""

    executions: int = 0
    commits: int = 0
    programs: int = 0
    blobs: int = 0
    signals: int = 0
    dead: int = 0
    bytes: int = 0
    driven: list[str] = field(default_factory=list)
    """Executions that somebody drives: what they do from now on is not in the file."""
    missing: list[str] = field(default_factory=list)
    """What an execution refers to and the store does not have, in words."""
    damaged: list[str] = field(default_factory=list)
    """Executions that are not in the file, because the store does not have all of their bodies."""


# -- which ones ------------------------------------------------------------------------------------


async def families(store: CheckpointStore, execution_ids: Iterable[str]) -> list[str]:
    """These executions with all above and below them, oldest first."""
    born: dict[str, float] = {}
    for given in execution_ids:
        if given in born:
            continue
        line = [await _top(store, given)]
        while line:
            execution = line.pop()
            if execution.execution_id not in born:
                born[execution.execution_id] = execution.created_at
                line += [child async for child in store.find(parent=execution.execution_id)]
    # A child is never older than its parent, and the order of equals is that of the family.
    return sorted(born, key=lambda id_: born[id_])


async def _top(store: CheckpointStore, execution_id: str) -> Execution:
    found = await store.get(execution_id)
    if found is None:
        raise ExecutionNotFound(execution_id)
    while found.parent is not None and (above := await store.get(found.parent)) is not None:
        found = above
    return found


async def everything(store: CheckpointStore) -> list[str]:
    """All executions, oldest first. Half-imported ones are none."""
    found = [e.execution_id async for e in store.find() if e.status != IMPORTING]
    found.reverse()
    return found


# -- out -------------------------------------------------------------------------------------------


async def export_runs(
    store: CheckpointStore,
    execution_ids: Sequence[str],
    out: IO[bytes],
    *,
    whole: bool = False,
    now: Callable[[], float] = time.time,
) -> Exported:
    """Write these executions into a file. Give whole families (`families`), or `everything` with `whole`."""
    made = _Export(store, Writer(out), now)
    made.writer.write("head", {"format": FORMAT, "version": VERSION, "made_at": now()})
    wanted = set(execution_ids)
    channels: set[str] = set()
    # Before the executions: one that is consumed meanwhile is rather in the file twice than not at all.
    dead, signals = await store.dead(), await store.signals()
    for execution_id in execution_ids:
        channels.update(await made.execution(execution_id))
        await checkpoint()

    def travels(signal: Signal) -> bool:
        return whole or (signal.channel in channels if signal.to is None else signal.to in wanted)

    told = made.told
    for letter in dead:
        if travels(letter.signal):
            made.writer.write(
                "dead", {**_signal_data(letter.signal), "reason": letter.reason, "at": letter.at}
            )
            told.dead += 1
    for signal in signals:
        if travels(signal):
            made.writer.write("signal", _signal_data(signal))
            told.signals += 1
    made.writer.write("end", {"executions": told.executions, "signals": told.signals, "dead": told.dead})
    told.bytes = made.writer.bytes
    return told


class _Export:
    """An export in progress: what is in the file already."""

    def __init__(self, store: CheckpointStore, writer: Writer, now: Callable[[], float]) -> None:
        self.store, self.writer, self.now, self.told = store, writer, now, Exported()
        self._programs: set[str] = set()
        self._blobs: set[str] = set()

    async def execution(self, execution_id: str) -> Sequence[str]:
        """Write one execution; the channels that it waits on."""
        # The columns first: bodies are only ever added, so that what had been stored then is still the same.
        found = await self.store.get(execution_id)
        if found is None or found.status == IMPORTING:
            return ()
        if found.owner is not None and not await self.store.abandoned(execution_id, now=self.now()):
            self.told.driven.append(execution_id)
        bodies = [one for one in await self.store.bodies(execution_id) if one[0] <= found.seq]
        if [seq for seq, _, _ in bodies] != list(range(found.seq + 1)):
            self.told.damaged.append(execution_id)
            return ()
        await self._program(found)
        self.writer.write("execution", _columns(found))
        rows = await _log(self.store, found, bodies)
        for seq, base, body in bodies:
            log = rows.get(seq, ())
            for part in (body, *log):
                await self._blobs_of(part, execution_id)
            data = {"seq": seq, "base": base, "body": packed(body)}
            self.writer.write("commit", {**data, "log": [packed(row) for row in log]} if log else data)
        self.told.executions += 1
        self.told.commits += len(bodies)
        return found.channels

    async def _program(self, execution: Execution) -> None:
        digest = execution.program
        if digest in self._programs:
            return
        self._programs.add(digest)
        text = await self.store.get_config(digest)
        if text is None:
            self.told.missing.append(f"program {digest} of execution {execution.execution_id}")
            return
        self.writer.write("program", {"digest": digest, "body": packed(text)})
        self.told.programs += 1

    async def _blobs_of(self, part: bytes, execution_id: str) -> None:
        for digest in blob_names(part):
            if digest in self._blobs:
                continue
            self._blobs.add(digest)
            blob = await self.store.get_blob(digest)
            if blob is None:
                self.told.missing.append(f"blob {digest} of execution {execution_id}")
                continue
            self.writer.write("blob", {"digest": digest, "body": packed(blob)})
            self.told.blobs += 1


def _columns(e: Execution) -> dict[str, Any]:
    return {
        "execution_id": e.execution_id, "name": e.name, "kind": e.kind, "program": e.program, "status": e.status,
        "created_at": e.created_at, "updated_at": e.updated_at, "parent": e.parent, "wake_at": e.wake_at,
        "channels": list(e.channels), "commits": e.seq + 1,
    }  # fmt: skip


def _signal_data(signal: Signal) -> dict[str, Any]:
    return {
        "signal_id": signal.signal_id, "channel": signal.channel, "to": signal.to, "created_at": signal.created_at,
        "body": packed(signal.body),
    }  # fmt: skip


async def _log(
    store: CheckpointStore, execution: Execution, bodies: Sequence[tuple[int, bool, bytes]]
) -> Mapping[int, Sequence[bytes]]:
    """The rows of an execution's log, by the commit that brought them."""
    stored = await store.load(execution.execution_id, at=execution.seq)
    if stored is None or not stored.log:
        return {}
    rows = stored.log
    lengths = _told_lengths(bodies)
    if not lengths or lengths[0] or lengths[-1] != len(rows) or lengths != sorted(lengths):
        lengths = await _looked_up_lengths(store, execution, len(rows))
    found: dict[int, Sequence[bytes]] = {}
    for seq in range(1, len(lengths)):
        if lengths[seq] > lengths[seq - 1]:
            found[seq] = rows[lengths[seq - 1] : lengths[seq]]
    return found


def _told_lengths(bodies: Sequence[tuple[int, bool, bytes]]) -> list[int]:
    """How long the log was at each commit, as the bodies tell; empty if they do not."""
    lengths: list[int] = []
    for _, base, body in bodies:
        try:
            data = orjson.loads(body)
            known = data["log_length"] if base else data.get("L", lengths[-1])
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError):
            return []
        if not isinstance(known, int):
            return []
        lengths.append(known)
    return lengths


async def _looked_up_lengths(store: CheckpointStore, execution: Execution, total: int) -> list[int]:
    """The same by asking the store, halving the range between two commits until they agree."""
    lengths = [0] * (execution.seq + 1)
    lengths[-1] = total
    open_ = [(0, execution.seq)]
    while open_:
        low, high = open_.pop()
        if lengths[low] == lengths[high] or high - low < 2:
            lengths[low + 1 : high] = [lengths[low]] * max(0, high - low - 1)
            continue
        middle = (low + high) // 2
        stored = await store.load(execution.execution_id, at=middle)
        lengths[middle] = 0 if stored is None else len(stored.log)
        open_ += [(low, middle), (middle, high)]
    return lengths
