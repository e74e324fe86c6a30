"""A store in a folder that people can look into, for one machine and any number of its processes.

Each execution has a folder with one append-only journal (`journal.py`): its birth, who acquired it, and its
commits. The journal is the only truth; what is known of an execution is read from it and kept in memory up to
the size the file had. One lock file guards all writes, so a commit is: lock, see whether the file has grown,
append. Nobody can slip in a commit unseen, which is what makes the fencing token and the number hold.

A commit that also consumes or sends signals or starts executions touches other files. It first notes its
*intent*, then appends its record, which is the moment at which it counts, then moves the staged files to
their places (`intents.py`).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
from anyio.lowlevel import checkpoint

from flat.backends.checks import (
    CANCELLED,
    WAITING,
    check_birth,
    check_commit,
    check_signal,
    check_text,
    is_plain,
)
from flat.backends.files import signals as file_signals
from flat.backends.files.folder import Lock, explain, safe_name, sync_folder, write_whole
from flat.backends.files.intents import Intents, folder_of
from flat.backends.files.journal import Journals, Record, pack
from flat.backends.files.signals import SignalFiles
from flat.backends.liveness import describe, may_take_over
from flat.backends.protocols import (
    Birth,
    Commit,
    DeadSignal,
    Execution,
    Lease,
    Owner,
    Signal,
    Stored,
)
from flat.backends.sweeping import DIGEST_LENGTH, Kind
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, SignalGone, StaleSnapshot

FORMAT = b"flat file store 2\n"
PARTS = ("executions", *file_signals.PARTS, "blobs", "configs", "owners", "cancels", "intents")
COMMITS_PER_TURN = 64
"""Commits do not yield, save once in this many: heartbeats must get their turn."""


class FileStore:
    """A durable store in a folder: `FileStore("runs")`; with `fsync=True` every commit waits for the disk."""

    def __init__(self, folder: str | PathLike[str], *, fsync: bool = False) -> None:
        self.root, self.fsync = Path(folder), fsync
        self._journals = Journals(fsync=fsync)
        self._tick = 0
        self._commits = 0
        self._configs: set[str] = set()
        self._signals = SignalFiles(self.root, fsync=fsync, next_tick=self._next_tick)
        self._intents = Intents(self.root, self._journals, self._signals, fsync=fsync)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._lock = Lock(self.root / "lock")
        except (OSError, ValueError) as error:
            failure = error if isinstance(error, OSError) else OSError(str(error))
            raise explain(failure, self.root, "opening it") from error
        try:
            with self._writing("opening it", settle=False):
                self._prepare()
        except BaseException:
            self._lock.close()
            raise

    def __repr__(self) -> str:
        return f"FileStore({str(self.root)!r}, fsync={self.fsync})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._lock.close()

    def _prepare(self) -> None:
        mark = self.root / "format"
        if mark.exists():
            if (found := mark.read_bytes()) != FORMAT:
                raise BackendError(
                    f"{self.root} holds {found[:40]!r}, this version of flat writes {FORMAT!r}; "
                    "use the version of flat that wrote it, or another folder"
                )
        elif others := {entry.name for entry in self.root.iterdir()} - {"lock", "format.tmp", *PARTS}:
            shown = ", ".join(sorted(others)[:4])
            raise BackendError(f"{self.root} holds other files ({shown}); give the store its own folder")
        for part in PARTS:
            (self.root / part).mkdir(exist_ok=True)
        if not mark.exists():
            write_whole(mark, FORMAT, sync=self.fsync)

    @contextlib.contextmanager
    def _writing(self, doing: str, *, settle: bool = True) -> Iterator[None]:
        """Hold the lock, after finishing what a crashed process began; explain errors of the file system."""
        with self._explained(doing), self._lock:
            if settle:
                self._intents.finish()
            yield

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Read without the lock, unless a commit is half moved into place."""
        with self._explained("reading"):
            with os.scandir(self.root / "intents") as found:
                unfinished = any(not entry.name.endswith(".tmp") for entry in found)
            if unfinished:
                with self._lock:
                    self._intents.finish()
            yield

    @contextlib.contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise explain(error, self.root, doing) from error

    def _next_tick(self) -> int:
        """A number that grows: the order of births and of signals."""
        self._tick = max(self._tick + 1, time.time_ns())
        return self._tick

    # The journal of one execution

    def _folder(self, execution_id: str) -> Path:
        return folder_of(self.root, execution_id)

    # Commits

    async def commit(self, commit: Commit) -> None:
        self._commits += 1
        if self._commits % COMMITS_PER_TURN == 0:
            await checkpoint()
        lease, seq = commit.lease, commit.seq
        with self._writing(f"storing commit {seq}"):
            folder = self._folder(lease.execution_id)
            known = self._journals.look(folder)
            execution = known.execution if known else None
            if (
                known is None
                or execution is None
                or (execution.token, execution.seq) != (lease.token, seq - 1)
            ):
                raise StaleSnapshot(lease.execution_id, seq)
            if is_plain(commit):
                facts = {"seq": seq, "at": commit.at, "base": commit.base}
                self._journals.append(folder, known, "commit", facts, [commit.body])
                return
            check_commit(commit)
            if len(set(commit.consume)) != len(commit.consume) or not all(
                self._signals.is_open(signal_id) for signal_id in commit.consume
            ):
                raise SignalGone(lease.execution_id)
            for digest, blob in commit.blobs.items():
                self._keep("blobs", digest, blob)
            self._intents.append(folder, known, self._record(commit))
            if commit.head is not None and commit.head.status == CANCELLED:
                (self.root / "cancels" / folder.name).unlink(missing_ok=True)

    def _record(self, commit: Commit) -> Record:
        facts: dict[str, Any] = {
            "log": len(commit.log),
            "consume": list(commit.consume),
            "send": [self._signals.facts(signal) for signal in commit.send],
            "births": [self._birth_facts(birth.execution) for birth in commit.births],
            "head": commit.head and asdict(commit.head),
            "release": commit.release,
        }
        facts = {key: value for key, value in facts.items() if value}
        facts |= {"seq": commit.seq, "at": commit.at, "base": commit.base}
        sent, born = (signal.body for signal in commit.send), (birth.body for birth in commit.births)
        return Record("commit", facts, [commit.body, *commit.log, *sent, *born], 0)

    # Births and leases

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        with self._writing("creating an execution"):
            folder = self._folder(birth.execution.execution_id)
            if (folder / "journal").exists():
                return False
            self._bear(folder, pack("birth", self._birth_facts(birth.execution), [birth.body]))
            return True

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        new = birth.execution
        with self._writing("starting an execution"):
            folder = self._folder(new.execution_id)
            if (folder / "journal").exists():
                return None
            self._beat(owner, now, ttl)
            facts = self._birth_facts(new)
            token = facts["columns"]["token"] + 1
            acquired = pack("acquire", {"owner": owner.owner, "token": token})
            self._bear(folder, pack("birth", facts, [birth.body]) + acquired)
        return Lease(execution_id=new.execution_id, owner=owner.owner, token=token)

    def _bear(self, folder: Path, journal: bytes) -> None:
        folder.mkdir(exist_ok=True)
        write_whole(folder / "journal", journal, sync=self.fsync)
        if self.fsync:
            sync_folder(folder.parent)

    def _birth_facts(self, execution: Execution) -> dict[str, Any]:
        # The random part makes the header of the journal, which names it, differ from any earlier one's.
        columns = asdict(replace(execution, seq=0, owner=None, token=self._floor()))
        return {"columns": columns, "born": self._next_tick(), "random": os.urandom(8).hex()}

    def _floor(self) -> int:
        """Above every token ever given to an execution that was deleted since."""
        try:
            return int((self.root / "owners" / "floor~").read_bytes())
        except FileNotFoundError:
            return 0

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        with self._writing("acquiring an execution"):
            folder = self._folder(execution_id)
            known = self._journals.look(folder)
            if known is None or known.execution is None:
                raise ExecutionNotFound(execution_id)
            current = known.execution.owner
            if current not in (None, owner.owner) and (beat := self._heartbeat_of(current or "")):
                holder, seen, kept_for = beat
                if not may_take_over(holder, seen=seen, ttl=kept_for, now=now):
                    left = f"its lease ends in {seen + kept_for - now:.0f} s unless it is kept up"
                    raise ExecutionBusy(execution_id, describe(holder), left)
            self._beat(owner, now, ttl)
            token = known.execution.token + 1
            self._journals.append(folder, known, "acquire", {"owner": owner.owner, "token": token})
        return Lease(execution_id=execution_id, owner=owner.owner, token=token)

    def _heartbeat_of(self, owner: str) -> tuple[Owner, float, float] | None:
        try:
            facts = orjson.loads((self.root / "owners" / safe_name(owner)).read_bytes())
        except FileNotFoundError:
            return None
        return Owner(**facts["owner"]), facts["seen"], facts["ttl"]

    def _beat(self, owner: Owner, now: float, ttl: float) -> None:
        check_text("owner", owner.owner)
        facts = {"owner": asdict(owner), "seen": now, "ttl": ttl}
        write_whole(self.root / "owners" / safe_name(owner.owner), orjson.dumps(facts), sync=False)

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        with self._writing("sending a heartbeat"):
            self._beat(owner, now, ttl)

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        found = await self.get(execution_id)
        if found is None or found.owner is None:
            return False
        beat = self._heartbeat_of(found.owner)
        return beat is None or may_take_over(beat[0], seen=beat[1], ttl=beat[2], now=now)

    async def release(self, lease: Lease) -> None:
        with self._writing("releasing an execution"):
            folder = self._folder(lease.execution_id)
            known = self._journals.look(folder)
            if known is not None and known.execution is not None and known.execution.token == lease.token:
                self._journals.append(folder, known, "release", {})

    async def request_cancel(self, execution_id: str) -> bool:
        with self._writing("requesting a cancellation"):
            folder = self._folder(execution_id)
            if self._journals.look(folder) is None:
                return False
            write_whole(self.root / "cancels" / folder.name, b"", sync=self.fsync)
            return True

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        with self._reading():
            names = sorted(name for name in os.listdir(self.root / "cancels") if not name.endswith(".tmp"))
            found = [self._journals.look(self.root / "executions" / name) for name in names]
        executions = [known.execution for known in found if known is not None]
        return [execution.execution_id for execution in executions if execution and execution.owner == owner]

    async def delete(self, execution_id: str) -> bool:
        with self._writing("deleting an execution"):
            folder = self._folder(execution_id)
            known = self._journals.look(folder)
            if known is None or known.execution is None:
                return False
            floor = max(self._floor(), known.execution.token + 1)
            write_whole(self.root / "owners" / "floor~", b"%d" % floor, sync=self.fsync)
            self._journals.append(folder, known, "delete", {})
            (self.root / "cancels" / folder.name).unlink(missing_ok=True)
            shutil.rmtree(folder)
            self._journals.forget(folder)
            return True

    # Reading

    async def get(self, execution_id: str) -> Execution | None:
        with self._reading():
            known = self._journals.look(self._folder(execution_id))
        return known.execution if known else None

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        folder = self._folder(execution_id)
        with self._reading():
            records, known = self._journals.records(folder), self._journals.look(folder)
        if known is None or known.execution is None:
            return None
        execution = known.execution
        wanted = execution.seq if at is None else at
        if not 0 <= wanted <= execution.seq:
            return None
        bodies: list[tuple[int, bytes]] = []
        log: list[bytes] = []
        for seq, base, record in _bodies(records):
            if seq > wanted:
                break
            if base:
                bodies.clear()
            bodies.append((seq, record.chunks[0]))
            log.extend(record.chunks[1 : 1 + record.facts.get("log", 0)])
        return Stored(execution=execution, bodies=bodies, log=log)

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        with self._reading():
            records = self._journals.records(self._folder(execution_id))
        return [(seq, base, record.chunks[0]) for seq, base, record in _bodies(records)]

    async def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        with self._reading():
            everyone = self._everyone()
        matching = [
            (born, execution)
            for born, execution in everyone
            if (status is None or execution.status == status)
            and (channel is None or channel in execution.channels)
            and (due is None or (execution.wake_at is not None and execution.wake_at <= due))
            and (parent is None or execution.parent == parent)
        ]
        matching.sort(key=lambda pair: pair[0], reverse=True)
        for _, execution in matching[:limit]:
            yield execution

    def _everyone(self) -> list[tuple[int, Execution]]:
        """Every execution, with the number of its birth."""
        folder = self.root / "executions"
        looked = [self._journals.look(folder / name) for name in os.listdir(folder)]
        return [(known.born, known.execution) for known in looked if known and known.execution]

    # Signals, configs, blobs

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        with self._reading():
            signals, everyone = self._signals.open(None, None), self._everyone()
        heads: dict[tuple[str, str | None], Signal] = {}
        for signal in signals:
            heads.setdefault((signal.channel, signal.to), signal)
        found: list[tuple[float, int, Execution]] = []
        for born, execution in everyone:
            if execution.status != WAITING:
                continue
            keys = [(channel, to) for channel in execution.channels for to in (None, execution.execution_id)]
            reasons = [heads[key].created_at for key in keys if key in heads]
            if execution.wake_at is not None and execution.wake_at <= now:
                reasons.append(execution.wake_at)
            if reasons:
                found.append((min(reasons), born, execution))
        found.sort(key=lambda one: one[:2])
        return [execution for _, _, execution in found[:limit]]

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        with self._writing("sending a signal"):
            return self._signals.send(signal)

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        with self._reading():
            return self._signals.open(channel, to)[:limit]

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        with self._writing("fanning a signal out"):
            return self._signals.fan_out(signal_id, to)

    async def take(self, signal_id: str) -> bool:
        with self._writing("taking a signal"):
            if not self._signals.is_open(signal_id):
                return False
            self._signals.spend(signal_id)
            return True

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        with self._writing("burying a signal"):
            return self._signals.bury(signal_id, reason, at)

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        with self._reading():
            return self._signals.dead(channel)[:limit]

    async def revive(self, signal_id: str) -> bool:
        with self._writing("reviving a signal"):
            return self._signals.revive(signal_id)

    def _keep(self, part: str, digest: str, data: bytes) -> None:
        path = self.root / part / safe_name(digest)
        if not path.exists():
            write_whole(path, data, sync=self.fsync)

    def _fetch(self, part: str, digest: str) -> bytes | None:
        with self._reading():
            try:
                return (self.root / part / safe_name(digest)).read_bytes()
            except FileNotFoundError:
                return None

    async def put_config(self, digest: str, text: bytes) -> None:
        if digest in self._configs:
            return
        with self._writing("storing a config"):
            self._keep("configs", digest, text)
        self._configs.add(digest)

    async def get_config(self, digest: str) -> bytes | None:
        text = self._fetch("configs", digest)
        if text is not None:
            self._configs.add(digest)
        else:
            self._configs.discard(digest)
        return text

    async def get_blob(self, digest: str) -> bytes | None:
        return self._fetch("blobs", digest)

    async def kept(self, kind: Kind) -> Sequence[str]:
        with self._reading():
            names = os.listdir(self.root / f"{kind}s")
        return [name for name in names if len(name) == DIGEST_LENGTH]

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        removed = [name for name in names if name not in but]
        with self._writing(f"removing {kind}s"):
            for name in removed:
                if Path(name).name == name:  # a name that `kept` has told, and no path to somewhere else
                    (self.root / f"{kind}s" / name).unlink(missing_ok=True)
        self._configs.difference_update(removed)
        return len(removed)


def _bodies(records: Sequence[Record]) -> Iterator[tuple[int, bool, Record]]:
    for record in records:
        if record.kind == "birth":
            yield 0, True, record
        elif record.kind == "commit":
            yield record.facts["seq"], bool(record.facts.get("base")), record
