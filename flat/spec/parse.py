"""From the bytes of a file to a `Document`: decoding, limits, events, YAML 1.2 core values.

The parser is PyYAML's, on libyaml where that is there; what its events mean is decided here: no tags beyond
core, keys are text, duplicate keys are found. Aliases share one container; what they would amount to when
written out is counted, and capped.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from flat.errors import Location, Problem, SpecError
from flat.spec.document import Document, Mark, Step
from flat.spec.limits import LIMITS, Limits
from flat.spec.syntax import explain, unquoted_template

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_OLD_BOOLEANS = frozenset(
    form for word in ("yes", "no", "on", "off") for form in (word, word.capitalize(), word.upper())
)
_NUMBER = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?P<point>\.[0-9]*)?)(?P<power>[eE][-+]?[0-9]+)?")
_BASED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_INFINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_SURROGATES = re.compile(r"(?<!\\)((?:\\\\)*)\\u(d[89ab][0-9a-f]{2})\\u(d[c-f][0-9a-f]{2})", re.IGNORECASE)
_CORE_TAG = "tag:yaml.org,2002:"
_MAX_DIGITS = 4000
_UNSET: Any = object()


def parse(data: bytes | str, file: str, *, limits: Limits = LIMITS) -> Document:
    """Read a YAML text, or a JSON text when the file's name says so. Anything unreadable is a `SpecError`."""
    if len(data) > limits.size:
        said = f"the file is larger than {limits.size / 1024 / 1024:g} MiB"
        raise SpecError(Problem("too-large", said, Location(file, 1, 1)))
    text = data if isinstance(data, str) else _decode(data, file)
    text = text.removeprefix("\ufeff")
    _refuse_control_characters(text, file)
    if file.lower().endswith(".json"):
        text = _strict_json(text, file)
    return _Builder(text, file, limits).build()


def _decode(data: bytes, file: str) -> str:
    encoding = "utf-8"
    for mark, name in ((codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")):
        if data.startswith(mark):
            encoding = name
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        before = data[: error.start].decode(encoding, "replace").split("\n")
        place = Location(file, len(before), len(before[-1]) + 1)
        problem = Problem("encoding", f"this is not {encoding.upper()} text", place, "save the file as UTF-8")
        raise SpecError(problem) from None


def _refuse_control_characters(text: str, file: str) -> None:
    if found := _FORBIDDEN.search(text):
        before = text[: found.start()].split("\n")
        line = text.split("\n")[len(before) - 1]
        place = Location(file, len(before), len(before[-1]) + 1, line)
        said = f"the character U+{ord(found.group()):04X} is not allowed in a text file"
        raise SpecError(
            Problem("encoding", said, place, 'write it as an escape inside double quotes: "\\u0000"')
        )


def _strict_json(text: str, file: str) -> str:
    """Check JSON by its own rules. The YAML parser then reads it, because it knows positions."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        line = text.split("\n")[error.lineno - 1]
        place = Location(file, error.lineno, error.colno, line)
        raise SpecError(Problem("json", error.msg[:1].lower() + error.msg[1:], place)) from None
    except RecursionError:
        raise SpecError(Problem("too-deep", "the file is nested too deeply", Location(file, 1, 1))) from None
    except ValueError as error:
        raise SpecError(Problem("number", str(error), Location(file, 1, 1))) from None
    return _SURROGATES.sub(_joined, text)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number that can be stored")


def _joined(found: re.Match[str]) -> str:
    high, low = int(found[2], 16), int(found[3], 16)
    return f"{found[1]}{chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))}"


class _PureParser(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser):
    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)


def _parser(text: str) -> Any:
    if yaml.__with_libyaml__:
        from yaml._yaml import CParser

        return CParser(text)
    return _PureParser(text)


@dataclass(slots=True)
class _Frame:
    """A container being filled."""

    container: Any
    entries: dict[Step, Mark]
    line: int
    column: int
    anchor: str | None
    before: int
    key: Any = _UNSET
    key_line: int = 0
    key_column: int = 0
    merges: list[tuple[Any, int, int]] = field(default_factory=list)


class _Builder:
    """Turns events into values and remembers where they stood."""

    def __init__(self, text: str, file: str, limits: Limits) -> None:
        self.limits = limits
        self.document = Document(None, file, text)
        self.marks: dict[int, dict[Step, Mark]] = {}
        self.problems: list[Problem] = []
        self.stack: list[_Frame] = []
        self.anchors: dict[str, tuple[Any, int]] = {}
        self.count = 0
        self.aliased = 0

    def build(self) -> Document:
        try:
            next_event = _parser(self.document.text).get_event
            self._run(next_event)
        except yaml.YAMLError as error:
            raise SpecError(explain(error, self.document)) from None
        self.document.marks = self.marks
        self.document.problems = tuple(self.problems)
        return self.document

    def _run(self, next_event: Callable[[], Any]) -> None:
        documents = 0
        while True:
            event = next_event()
            kind = event.__class__
            if kind is ScalarEvent:
                self._scalar(event)
            elif kind is MappingStartEvent or kind is SequenceStartEvent:
                self._open(event, {} if kind is MappingStartEvent else [])
            elif kind is MappingEndEvent or kind is SequenceEndEvent:
                self._close()
            elif kind is AliasEvent:
                self._alias(event)
            elif kind is DocumentStartEvent:
                documents += 1
                if documents > 1:
                    self._fail("yaml", "a second document begins here", event, "keep one document in a file")
            elif kind is StreamEndEvent:
                return

    def _scalar(self, event: Any) -> None:
        text: str = event.value
        mark = event.start_mark
        plain = event.implicit[0]
        self.count += 1
        if self.count > self.limits.nodes:
            self._too_many(event)
        value: Any = text
        if plain:
            value = self._core(text, event)
        elif event.tag is not None and not event.implicit[1]:
            value = self._tagged(text, event)
        if event.anchor is not None:
            self.anchors[event.anchor] = (value, 1)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is _UNSET and frame.container.__class__ is dict:
            self._key(frame, value, text, plain, mark.line, mark.column)
            return
        if plain and len(text) <= 3 and text in _OLD_BOOLEANS:
            self._old_boolean(text, event)
        self._put(value, mark.line, mark.column)

    def _key(self, frame: _Frame, value: Any, text: str, plain: bool, line: int, column: int) -> None:
        if not isinstance(value, str):
            said = f"the key {text} is not text" if text else "a key is missing before this colon"
            place = self.document.at(line, column, len(text) or 1)
            self.problems.append(Problem("key", said, place, f'quote it: "{text}"' if text else ""))
        frame.key_line, frame.key_column = line, column
        if text == "<<" and plain:
            frame.key = "<<"
            return
        if text in frame.container:
            first = frame.entries[text]
            self.problems.append(
                Problem(
                    "duplicate-key",
                    f'the key "{text}" is used twice; it was first used on line {first[0] + 1}',
                    self.document.at(line, column, len(text)),
                    "remove or rename one of them",
                )
            )
        frame.key = text

    def _put(self, value: Any, line: int, column: int) -> None:
        if not self.stack:
            self.document.value = value
            return
        frame = self.stack[-1]
        container = frame.container
        if container.__class__ is list:
            frame.entries[len(container)] = (line, column, line, column)
            container.append(value)
            return
        if frame.key == "<<":
            frame.merges.append((value, line, column))
        else:
            container[frame.key] = value
            frame.entries[frame.key] = (frame.key_line, frame.key_column, line, column)
        frame.key = _UNSET

    def _open(self, event: Any, container: Any) -> None:
        mark = event.start_mark
        self.count += 1
        if self.count > self.limits.nodes:
            self._too_many(event)
        if len(self.stack) >= self.limits.depth:
            self._fail("too-deep", f"the file is nested more than {self.limits.depth} levels deep", event)
        if event.tag not in (None, "!", f"{_CORE_TAG}{'map' if isinstance(container, dict) else 'seq'}"):
            self._refuse_tag(event)
        if self.stack and self.stack[-1].key is _UNSET and isinstance(self.stack[-1].container, dict):
            if problem := unquoted_template(self.document, mark.line):
                raise SpecError(problem)
            self._fail("key", "a key cannot be a mapping or a list", event, "keys are text")
        entries: dict[Step, Mark] = {}
        self.marks[id(container)] = entries
        self.stack.append(_Frame(container, entries, mark.line, mark.column, event.anchor, self.count - 1))

    def _close(self) -> None:
        frame = self.stack.pop()
        if frame.merges:
            self._merge(frame)
        if frame.anchor is not None:
            self.anchors[frame.anchor] = (frame.container, self.count - frame.before)
        self._put(frame.container, frame.line, frame.column)

    def _alias(self, event: Any) -> None:
        mark = event.start_mark
        if event.anchor not in self.anchors:
            said = f"the alias *{event.anchor} has no anchor before it"
            self._fail("alias", said, event, 'quote text that begins with "*"')
        value, size = self.anchors[event.anchor]
        self.count += size
        self.aliased += size
        if self.aliased > self.limits.aliased or self.count > self.limits.nodes:
            said = f"the aliases of this file stand for more than {self.limits.aliased} values"
            self._fail("alias", said, event)
        frame = self.stack[-1] if self.stack else None
        if frame is not None and frame.key is _UNSET and isinstance(frame.container, dict):
            if not isinstance(value, str):
                self._fail("key", "a key cannot be a mapping or a list", event, "keys are text")
            self._key(frame, value, value, False, mark.line, mark.column)
            return
        self._put(value, mark.line, mark.column)

    def _merge(self, frame: _Frame) -> None:
        """`<<: *base`: keys of the base come first; keys written out win."""
        own = dict(frame.container)
        merged: dict[str, Any] = {}
        for value, line, column in frame.merges:
            for base in reversed(value) if isinstance(value, list) else (value,):
                if not isinstance(base, dict):
                    place = self.document.at(line, column)
                    raise SpecError(Problem("key", "only a mapping can be merged with <<", place))
                merged.update(base)
                for key, mark in self.marks[id(base)].items():
                    if key not in own:
                        frame.entries[key] = mark
        self.count += len(merged)
        self.aliased += len(merged)
        frame.container.clear()
        frame.container.update({**merged, **own})

    def _core(self, text: str, event: Any) -> Any:
        """The value of a plain scalar by the YAML 1.2 core schema."""
        if text in _WORDS:
            return _WORDS[text]
        return self._number(text, event) if text[0] in "0123456789+-." else text

    def _number(self, text: str, event: Any) -> Any:
        if found := _NUMBER.fullmatch(text):
            if found["power"] is None and found["point"] is None and text.lstrip("+-")[:1] != ".":
                if len(text) > _MAX_DIGITS:
                    self._fail("number", "this number has too many digits", event, "quote it")
                return self._stored(int(text), event)
            number = float(text)
            if math.isinf(number):
                self._fail("number", "this number is too large", event, f'quote it: "{text}"')
            return number
        if _BASED.fullmatch(text) and len(text) <= _MAX_DIGITS:
            return self._stored(int(text, 0), event)
        if _INFINITE.fullmatch(text):
            self._fail("number", f"{text} is not a number that can be stored", event, f'quote it: "{text}"')
        return text

    def _stored(self, number: int, event: Any) -> int:
        """The number, if programs can be stored with it."""
        if not -(2**63) <= number < 2**64:
            self._fail("number", "this number has more than 64 bits", event, f'quote it: "{event.value}"')
        return number

    def _tagged(self, text: str, event: Any) -> Any:
        if event.tag in ("!", f"{_CORE_TAG}str"):
            return text
        value = self._core(text, event)
        name = event.tag.removeprefix(_CORE_TAG)
        if name == "float" and type(value) is int:
            return float(value)
        wanted = {"int": int, "float": float, "bool": bool, "null": type(None)}
        if not event.tag.startswith(_CORE_TAG) or name not in wanted:
            self._refuse_tag(event)
        if type(value) is not wanted[name]:
            self._fail("tag", f'"{text}" is not of the type !!{name}', event)
        return value

    def _refuse_tag(self, event: Any) -> NoReturn:
        shown = event.tag.replace(_CORE_TAG, "!!")
        self._fail(
            "tag", f"the tag {shown} is not allowed", event, "write plain values; files hold data only"
        )

    def _too_many(self, event: Any) -> NoReturn:
        self._fail("too-large", f"the file has more than {self.limits.nodes} values", event)

    def _old_boolean(self, text: str, event: Any) -> None:
        mark = event.start_mark
        meant = "true" if text.lower() in ("yes", "on") else "false"
        self.problems.append(
            Problem(
                "yaml-boolean",
                f"{text} is text here, as in YAML 1.2; it was a boolean in YAML 1.1",
                self.document.at(mark.line, mark.column, len(text)),
                f'write {meant}, or quote it: "{text}"',
                severity="warning",
            )
        )

    def _fail(self, code: str, said: str, event: Any, hint: str = "") -> NoReturn:
        mark = event.start_mark
        raise SpecError(Problem(code, said, self.document.at(mark.line, mark.column), hint))
