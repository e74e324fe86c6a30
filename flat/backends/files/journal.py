"""The journal file of one execution: append-only records that know whether they are whole.

A record is a header (length of the payload, checksum of the payload, checksum of those two), the payload,
and an end byte. Three accidents can be told apart: a write that was cut short (*torn*: the newest record
ends before its end byte, or in zeros that the file system put there) is dropped, because its commit never
returned; a record that is all there but not what was written (*damaged*) is an error; and so is a damaged
header, which would otherwise make everything behind it look torn.

The payload is a line of JSON, then byte strings whose lengths the JSON gives.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct
from typing import Any

import orjson

from flat.backends.files.folder import READ, UPDATE, read_all, write_all
from flat.backends.protocols import Execution
from flat.errors import BackendError, FlatError

_HEADER = Struct("<II")
_CHECK = Struct("<I")
_META = Struct("<I")
_END = b"\n"
HEADER_SIZE = _HEADER.size + _CHECK.size


@dataclass(frozen=True, slots=True)
class Record:
    """What one write put down: its kind, its facts, byte strings, and where the next record starts."""

    kind: str
    facts: dict[str, Any]
    chunks: Sequence[bytes]
    end: int


def pack(kind: str, facts: dict[str, Any], chunks: Sequence[bytes] = ()) -> bytes:
    """A record as bytes."""
    meta = orjson.dumps({"kind": kind, "sizes": [len(chunk) for chunk in chunks], **facts})
    payload = b"".join((_META.pack(len(meta)), meta, *chunks))
    header = _HEADER.pack(len(payload), zlib.crc32(payload))
    return b"".join((header, _CHECK.pack(zlib.crc32(header)), payload, _END))


def unpack(data: bytes, path: str, start: int = 0) -> Iterator[Record]:
    """The records in `data`, read from offset `start` of the file `path`; without a torn last one."""
    at, size = 0, len(data)
    while at + HEADER_SIZE <= size:
        header = data[at : at + _HEADER.size]
        if _CHECK.unpack_from(data, at + _HEADER.size)[0] != zlib.crc32(header):
            if not any(data[at:]):
                return
            raise _damaged(path, start + at)
        length, checksum = _HEADER.unpack(header)
        body = at + HEADER_SIZE
        end = body + length
        if end + len(_END) > size:
            return
        payload, mark = data[body:end], data[end : end + len(_END)]
        if mark != _END or zlib.crc32(payload) != checksum:
            if mark == b"\0" and end + len(_END) == size and zlib.crc32(payload) != checksum:
                return
            raise _damaged(path, start + at)
        at = end + len(_END)
        yield _parse(payload, start + at)


def _parse(payload: bytes, end: int) -> Record:
    (length,) = _META.unpack_from(payload)
    at = _META.size + length
    facts = orjson.loads(payload[_META.size : at])
    chunks = []
    for size in facts.pop("sizes"):
        chunks.append(payload[at : at + size])
        at += size
    return Record(facts.pop("kind"), facts, chunks, end)


def _damaged(path: str, offset: int) -> BackendError:
    return BackendError(
        f"{path} is damaged at byte {offset}: a record is not what was written; nothing of this execution "
        "was loaded; restore the file from a backup, or move its folder out of the store"
    )


class Known:
    """What the journal of one execution said, up to `size` bytes of it."""

    __slots__ = ("born", "execution", "identity", "size")

    def __init__(self, identity: bytes) -> None:
        self.identity, self.size, self.born = identity, 0, 0
        self.execution: Execution | None = None

    def learn(self, record: Record) -> None:
        facts, self.size = record.facts, record.end
        if record.kind == "birth":
            columns = facts["columns"]
            self.execution = Execution(**{**columns, "channels": tuple(columns["channels"])})
            self.born = facts["born"]
        elif self.execution is None or record.kind == "delete":
            self.execution = None
        elif record.kind == "acquire":
            self.execution = replace(self.execution, owner=facts["owner"], token=facts["token"])
        elif record.kind == "release":
            self.execution = replace(self.execution, owner=None, token=self.execution.token + 1)
        else:
            changes: dict[str, Any] = {"seq": facts["seq"], "updated_at": facts["at"]}
            if head := facts.get("head"):
                changes |= {**head, "channels": tuple(head["channels"])}
                if changes["program"] is None:
                    del changes["program"]
            if facts.get("release"):
                changes |= {"owner": None, "token": self.execution.token + 1}
            self.execution = replace(self.execution, **changes)


class Journals:
    """The journals of a store, and what was read of each. Appending expects the caller to hold the lock."""

    def __init__(self, *, fsync: bool) -> None:
        self._fsync = fsync
        self._known: dict[str, Known] = {}

    def look(self, folder: Path) -> Known | None:
        """What is known of the execution in a folder, after reading what others have appended."""
        try:
            descriptor = os.open(folder / "journal", READ)
        except (FileNotFoundError, NotADirectoryError):
            self._known.pop(folder.name, None)
            return None
        try:
            known = self._catch_up(descriptor, folder)
        finally:
            os.close(descriptor)
        return known if known.execution is not None else None

    def _catch_up(self, descriptor: int, folder: Path) -> Known:
        identity, size = os.read(descriptor, HEADER_SIZE), os.fstat(descriptor).st_size
        known = self._known.get(folder.name)
        if known is None or known.identity != identity or size < known.size:
            known = self._known[folder.name] = Known(identity)
        if size > known.size:
            start = known.size
            os.lseek(descriptor, start, os.SEEK_SET)
            try:
                for record in unpack(read_all(descriptor, size - start), str(folder / "journal"), start):
                    known.learn(record)
            except FlatError:
                del self._known[folder.name]
                if start == 0:
                    raise
                # What was read before may since have been taken back; only the whole file can tell.
                os.lseek(descriptor, 0, os.SEEK_SET)
                return self._catch_up(descriptor, folder)
        return known

    def append(
        self, folder: Path, known: Known, kind: str, facts: dict[str, Any], chunks: Sequence[bytes] = ()
    ) -> None:
        """Write a record behind the last whole one, or leave the file as it was."""
        data = pack(kind, facts, chunks)
        descriptor = os.open(folder / "journal", UPDATE)
        try:
            # A torn record of a crashed process goes with the first write after it.
            if os.fstat(descriptor).st_size > known.size:
                os.ftruncate(descriptor, known.size)
            os.lseek(descriptor, known.size, os.SEEK_SET)
            try:
                write_all(descriptor, data)
                if self._fsync:
                    os.fsync(descriptor)
            except BaseException:
                os.ftruncate(descriptor, known.size)
                raise
        finally:
            os.close(descriptor)
        known.learn(Record(kind, facts, chunks, known.size + len(data)))

    def records(self, folder: Path) -> Sequence[Record]:
        """Every whole record of a journal; none if there is no such execution."""
        if (known := self.look(folder)) is None:
            return ()
        data = (folder / "journal").read_bytes()[: known.size]
        return list(unpack(data, str(folder / "journal")))

    def forget(self, folder: Path) -> None:
        self._known.pop(folder.name, None)
