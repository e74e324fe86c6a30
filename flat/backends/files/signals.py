"""The signals of a file store: one small file each, in the folder of what became of it.

    signals/   sent, and not yet consumed
    spent/     consumed or fanned out: emptied files, so that no id is sent twice
    dead/      dead letters, with the reason; a file here wins over one of the same name in `signals`

Everything in here but reading expects the caller to hold the store's lock. Burying and reviving are decided by one
file that appears or goes. Fanning out touches many: it is first noted as an intent, like a commit that does, and
from then on it counts.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flat.backends.checks import check_text, copy_id, readable
from flat.backends.files.folder import safe_name, stage, sync_folder, write_whole
from flat.backends.files.journal import Record, pack, unpack
from flat.backends.protocols import DeadSignal, Signal

PARTS = ("signals", "spent", "dead")
INTENT = "~fan-out"
"""The name of the intent to fan out. No execution's is like it: their names begin with a tilde only before a digest."""


class SignalFiles:
    """The signals below the folder of a store; `next_tick` numbers them."""

    def __init__(self, root: Path, *, fsync: bool, next_tick: Callable[[], int]) -> None:
        self._open, self._spent, self._dead = (root / part for part in PARTS)
        self._intent = root / "intents" / INTENT
        self._fsync, self._next_tick = fsync, next_tick

    def path(self, signal_id: str) -> Path:
        return self._open / safe_name(signal_id)

    def facts(self, signal: Signal) -> dict[str, Any]:
        return {
            "signal_id": signal.signal_id,
            "channel": signal.channel,
            "created_at": signal.created_at,
            "to": signal.to,
            "tick": self._next_tick(),
        }

    def is_known(self, signal_id: str) -> bool:
        """Whether a signal of this id was ever sent."""
        name = safe_name(signal_id)
        return any((part / name).exists() for part in (self._open, self._spent, self._dead))

    def is_open(self, signal_id: str) -> bool:
        name = safe_name(signal_id)
        return (self._open / name).exists() and not (self._dead / name).exists()

    def send(self, signal: Signal) -> bool:
        if self.is_known(signal.signal_id):
            return False
        self._write(self.path(signal.signal_id), self.facts(signal), signal.body)
        return True

    def _write(self, path: Path, facts: dict[str, Any], body: bytes) -> None:
        write_whole(path, pack("signal", facts, [body]), sync=self._fsync)

    def spend(self, signal_id: str) -> None:
        """Consume a signal; it may be consumed already. Nothing new is written: a full disk cannot stop it."""
        path = self._spent / safe_name(signal_id)
        with contextlib.suppress(FileNotFoundError):
            os.replace(self.path(signal_id), path)
            if self._fsync:
                sync_folder(self._spent)
                sync_folder(self._open)
            with contextlib.suppress(OSError):
                os.truncate(path, 0)

    # Reading

    def open(self, channel: str | None, to: str | None) -> list[Signal]:
        # Read before the dead ones: whatever is buried meanwhile is then taken out.
        found = self._read(self._open)
        buried = set(os.listdir(self._dead))
        signals = [_signal(record) for name, record in found if name not in buried]
        return [
            signal
            for signal in signals
            if channel in (None, signal.channel) and (to is None or signal.to in (None, to))
        ]

    def dead(self, channel: str | None) -> list[DeadSignal]:
        return [
            DeadSignal(signal=_signal(record), reason=record.facts["reason"], at=record.facts["at"])
            for _, record in self._read(self._dead)
            if channel in (None, record.facts["channel"])
        ]

    def _read(self, folder: Path) -> list[tuple[str, Record]]:
        """Every signal in a folder with its file name, in order."""
        found: list[tuple[str, Record]] = []
        for name in os.listdir(folder):
            if not name.endswith(".tmp"):
                # One that goes away under our eyes was consumed.
                with contextlib.suppress(FileNotFoundError):
                    found.extend((name, record) for record in _records(folder / name))
        found.sort(key=lambda pair: (pair[1].facts["tick"], pair[1].facts["signal_id"]))
        return found

    # Dead letters

    def bury(self, signal_id: str, reason: str, at: float) -> bool:
        if not self.is_open(signal_id):
            return False
        (record,) = _records(self.path(signal_id))
        facts = {**record.facts, "reason": readable(reason), "at": at}
        self._write(self._dead / safe_name(signal_id), facts, record.chunks[0])
        self.path(signal_id).unlink()
        return True

    def revive(self, signal_id: str) -> bool:
        path = self._dead / safe_name(signal_id)
        if not path.exists():
            return False
        (record,) = _records(path)
        facts = {key: value for key, value in record.facts.items() if key not in ("reason", "at")}
        self._write(self.path(signal_id), facts, record.chunks[0])
        path.unlink()
        return True

    # Fanning out

    def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        for execution_id in to:
            check_text("to", execution_id)
        if not to or not self.is_open(signal_id):
            return False
        (record,) = _records(self.path(signal_id))
        if record.facts["to"] is not None:
            return False
        copies = [
            {**record.facts, "signal_id": copy_id(signal_id, execution_id, self.is_known), "to": execution_id}
            for execution_id in dict.fromkeys(to)
        ]
        facts, body = {"signal_id": signal_id, "copies": copies}, record.chunks[0]
        staged: dict[Path, Path] = {}
        try:
            self._stage(copies, body, staged)
            write_whole(self._intent, pack("fan-out", facts, [body]), sync=self._fsync)
        except BaseException:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)
            raise
        self._publish(signal_id, staged)
        return True

    def finish(self) -> None:
        """Do what the intent says; whoever died while doing it may have done some of it."""
        for record in _records(self._intent):
            staged: dict[Path, Path] = {}
            self._stage(record.facts["copies"], record.chunks[0], staged)
            self._publish(record.facts["signal_id"], staged)
            return
        self._intent.unlink()

    def _stage(self, copies: Sequence[dict[str, Any]], body: bytes, staged: dict[Path, Path]) -> None:
        for facts in copies:
            path = self.path(facts["signal_id"])
            staged[path] = stage(path, pack("signal", facts, [body]), sync=self._fsync)

    def _publish(self, signal_id: str, staged: Mapping[Path, Path]) -> None:
        for path, temporary in staged.items():
            os.replace(temporary, path)
        if self._fsync:
            sync_folder(self._open)
        self.spend(signal_id)
        self._intent.unlink()


def _records(path: Path) -> Sequence[Record]:
    """The one record of a file; none where a loss of power has left an empty file."""
    return list(unpack(path.read_bytes(), str(path)))


def _signal(record: Record) -> Signal:
    facts = record.facts
    return Signal(
        signal_id=facts["signal_id"], channel=facts["channel"], body=record.chunks[0],
        created_at=facts["created_at"], to=facts["to"],
    )  # fmt: skip
