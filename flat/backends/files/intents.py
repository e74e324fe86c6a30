"""Commits that touch more files than a journal: noted, appended, and then moved into place.

The intent of an execution is a file that holds the number of the commit. The commit counts from the moment at which it
stands in the journal; whoever takes the store's lock after a crash finishes what the record says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flat.backends.checks import check_text
from flat.backends.files.folder import safe_name, stage, sync_folder, write_whole
from flat.backends.files.journal import Journals, Known, Record, pack
from flat.backends.files.signals import INTENT, SignalFiles
from flat.errors import FlatError


def folder_of(root: Path, execution_id: str) -> Path:
    """Where the journal of an execution is."""
    check_text("execution_id", execution_id)
    return root / "executions" / safe_name(execution_id)


class Intents:
    """The writing of commits in one folder. Whoever calls holds the store's lock."""

    def __init__(self, root: Path, journals: Journals, signals: SignalFiles, *, fsync: bool) -> None:
        self._root, self._fsync = root, fsync
        self._journals, self._signals = journals, signals

    def append(self, folder: Path, known: Known, record: Record) -> None:
        """Store a commit whole, with all that it does to other files."""
        facts = record.facts
        if not facts.keys() & {"consume", "send", "births"}:
            self._journals.append(folder, known, record.kind, facts, record.chunks)
            return
        intent = self._root / "intents" / folder.name
        staged: dict[Path, Path] = {}
        try:
            self._stage(record, staged)
            write_whole(intent, b"%d" % facts["seq"], sync=self._fsync)
            self._journals.append(folder, known, record.kind, facts, record.chunks)
        except BaseException:
            for temporary in staged.values():
                temporary.unlink(missing_ok=True)
            intent.unlink(missing_ok=True)
            raise
        self._publish(record, staged)
        intent.unlink()

    def _stage(self, record: Record, staged: dict[Path, Path]) -> None:
        """Write the signals and executions of a commit next to where they will be."""
        facts = record.facts
        bodies = iter(record.chunks[1 + facts.get("log", 0) :])
        for signal in facts.get("send", ()):
            path, data = self._signals.path(signal["signal_id"]), pack("signal", signal, [next(bodies)])
            if path not in staged and not self._signals.is_known(signal["signal_id"]):
                staged[path] = stage(path, data, sync=self._fsync)
        for birth in facts.get("births", ()):
            folder, data = (
                folder_of(self._root, birth["columns"]["execution_id"]),
                pack("birth", birth, [next(bodies)]),
            )
            path = folder / "journal"
            if path not in staged and not path.exists():
                folder.mkdir(exist_ok=True)
                staged[path] = stage(path, data, sync=self._fsync)

    def _publish(self, record: Record, staged: Mapping[Path, Path]) -> None:
        for path, temporary in staged.items():
            os.replace(temporary, path)
            if self._fsync:
                sync_folder(path.parent)
        for signal_id in record.facts.get("consume", ()):
            self._signals.spend(signal_id)

    def finish(self) -> None:
        """Do what a process that died had noted, and not done to its end."""
        with os.scandir(self._root / "intents") as found:
            names = [entry.name for entry in found if not entry.name.endswith(".tmp")]
        for name in names:
            if name == INTENT:
                self._signals.finish()
                continue
            folder, intent = self._root / "executions" / name, self._root / "intents" / name
            try:
                records, seq = self._journals.records(folder), int(intent.read_bytes())
            except FlatError:
                # A damaged journal is for whoever asks for that execution, not for everybody.
                continue
            for record in records:
                if record.kind == "commit" and record.facts["seq"] == seq:
                    staged: dict[Path, Path] = {}
                    self._stage(record, staged)
                    self._publish(record, staged)
            intent.unlink()
