"""The file that executions travel in: one JSON object a line, each with a checksum over all lines so far.

    {"sum":"5f1e…","record":"head","format":"flat-export","version":1,"made_at":1700000000.0}
    {"sum":"…","record":"program","digest":"…","body":"…"}
    {"sum":"…","record":"execution","execution_id":"…","status":"waiting",…,"commits":3}
    {"sum":"…","record":"blob","digest":"…","body":"…"}
    {"sum":"…","record":"commit","seq":0,"base":true,"body":"…"}
    {"sum":"…","record":"commit","seq":1,"base":false,"body":"…","log":["…"]}
    {"sum":"…","record":"signal","signal_id":"…","channel":"…","body":"…",…}
    {"sum":"…","record":"end","executions":1,"signals":1,"dead":0}

A line's sum is made of the sum before it and of the line itself without its sum, so that a line that was
altered, left out, repeated or moved is found where it stands, and a file without its last line is known to be
cut off. Bytes are written as text where they are UTF-8, as they nearly always are, and else as
`{"base64":"…"}`. A program and a blob stand in the file once, before the first line that needs them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from typing import IO, Any, NamedTuple, Protocol

import orjson

from flat.errors import BackendError

FORMAT = "flat-export"
VERSION = 1
_PREFIX = b'{"sum":"'
_WIDTH = 16
_START = b"0" * _WIDTH


class BadExport(BackendError):
    """A file cannot be imported; `line` is the number of the line that is at fault."""

    exit_code = 3

    def __init__(self, problem: str, line: int = 0) -> None:
        self.problem, self.line = problem, line
        super().__init__(problem, line)

    def __str__(self) -> str:
        return f"line {self.line}: {self.problem}" if self.line else self.problem


class Line(NamedTuple):
    """One record as read: where it stands, and what it says."""

    number: int
    offset: int
    kind: str
    data: Mapping[str, Any]

    def get(self, name: str, kind: type | tuple[type, ...]) -> Any:
        """A field of the record. Raises `BadExport` if it is missing, or something else."""
        value = self.data.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise BadExport(f'a record "{self.kind}" has no proper "{name}"', self.number)
        return value

    def body(self, name: str = "body") -> bytes:
        """A field that holds bytes."""
        return unpacked(self.data.get(name), self.kind, self.number)


class Source(Protocol):
    """What lines are read from."""

    def tell(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...


class Writer:
    """Writes records, one a line."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._last = _START
        self.lines = 0
        self.bytes = 0

    def write(self, kind: str, data: Mapping[str, Any]) -> None:
        payload = orjson.dumps({"record": kind, **data})
        self._last = _sum(self._last, payload[1:])
        line = b"".join((_PREFIX, self._last, b'",', payload[1:], b"\n"))
        self._out.write(line)
        self.lines += 1
        self.bytes += len(line)


def packed(body: bytes) -> str | dict[str, str]:
    """Bytes as JSON data."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(body).decode()}


def unpacked(data: Any, kind: str, line: int) -> bytes:
    """JSON data back to the bytes."""
    if isinstance(data, str):
        return data.encode()
    if isinstance(data, dict) and isinstance(text := data.get("base64"), str):
        try:
            return base64.b64decode(text, validate=True)
        except binascii.Error:
            pass
    raise BadExport(f'a record "{kind}" holds something that is no stored body', line)


def lines(source: Source) -> Iterator[Line]:
    """Read a file from where it stands. Raises `BadExport` at the first line that is not as it was written."""
    last, offset, number, kind = _START, source.tell(), 0, ""
    for raw in source:
        number += 1
        if kind == "end":
            raise BadExport("there is something after the end; import one file at a time", number)
        line, last = _parsed(raw, last, number, offset)
        kind = line.kind
        offset += len(raw)
        yield line
    if number == 0:
        raise BadExport("the file is empty; it was not written by flat runs export, or not to its end")
    if kind != "end":
        raise BadExport("the file ends here, and its last record is missing: it was cut off", number)


def read_at(source: IO[bytes], offset: int) -> Mapping[str, Any]:
    """One record of a file that was read before."""
    source.seek(offset)
    found: Mapping[str, Any] = orjson.loads(source.readline())
    return found


def _parsed(raw: bytes, last: bytes, number: int, offset: int) -> tuple[Line, bytes]:
    end = len(_PREFIX) + _WIDTH
    if not raw.endswith(b"\n") and (raw.startswith(_PREFIX) or _PREFIX.startswith(raw)):
        raise BadExport("the line has no end: the file was cut off", number)
    if not raw.startswith(_PREFIX) or raw[end : end + 2] != b'",':
        raise BadExport(_foreign(raw, number), number)
    stored, payload = raw[len(_PREFIX) : end], raw[end + 2 : -1]
    if number == 1:
        _check_version(b"{" + payload)
    if _sum(last, payload) != stored:
        raise BadExport("the checksum does not fit: the file was altered here, or lines are missing", number)
    data = orjson.loads(b"{" + payload)
    if number == 1 and data.get("record") != "head":
        raise BadExport("the first record is not a head", number)
    return Line(number, offset, str(data.get("record")), data), stored


def _foreign(raw: bytes, number: int) -> str:
    if number == 1:
        return "this file was not written by flat runs export (--from-flatmachines imports checkpoints of flatmachines)"
    return "the line does not begin with its checksum: the file was altered here"


def _check_version(head: bytes) -> None:
    # Before the checksum: a later version may reckon it differently, and its number is the better news.
    try:
        data = orjson.loads(head)
    except orjson.JSONDecodeError:
        return
    if data.get("format") == FORMAT and data.get("version") != VERSION:
        raise BadExport(
            f"the file has version {data.get('version')} of the export format, and this release of flat reads "
            f"{VERSION}; export it again with this release, or import it with the one that wrote it",
            1,
        )


def _sum(last: bytes, payload: bytes) -> bytes:
    return hashlib.sha256(last + payload).hexdigest()[:_WIDTH].encode()
