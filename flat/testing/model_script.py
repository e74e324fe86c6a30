"""What a scripted model answers: replies, rules, faults, and the YAML file they are written in.

The HTTP side is `model_server`; its docstring describes the file format.
"""

from __future__ import annotations

import itertools
import json
import re
import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from flat.errors import SpecError, did_you_mean

RequestBody = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer of a scripted model, good or broken. `Reply("hi")` is a plain one."""

    text: str | None = ""
    """The content of the answer; None sends `content: null`."""
    _: KW_ONLY
    tool_calls: Sequence[Mapping[str, Any]] = ()
    """Each `{name, arguments, id?}`; arguments may be a mapping or raw text."""
    finish_reason: str | None = None
    usage: Mapping[str, Any] | bool = True
    """The usage object to send; True counts words, False sends none."""
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    error: str | Mapping[str, Any] = ""
    """With a `status` of 400 or more: the message, or the whole error object."""
    retry_after: float | None = None
    body: str | None = None
    """Sent as it is in place of any JSON."""
    delay: float = 0.0
    """Seconds before the answer starts."""
    drop: bool = False
    """Close the connection without an answer."""
    chunks: Sequence[str] | None = None
    """The pieces of a streamed answer; by default its words."""
    chunk_delay: float = 0.0
    cut_after: int | None = None
    """Close the connection after so many pieces of a stream, or in the middle of an unstreamed body."""
    stall_after: int | None = None
    """Fall silent after so many pieces of a stream, or before an unstreamed answer."""
    error_after: int | None = None
    """Send an error event after so many pieces of a stream."""

    def pieces(self) -> list[str]:
        """The text as it is streamed."""
        if self.chunks is not None:
            return list(self.chunks)
        return re.findall(r"\S*\s*", self.text or "")[:-1]


ReplyLike = str | Mapping[str, Any] | Reply
Answer = Callable[[RequestBody], Any]
"""A script as a function of the request body: gives a `ReplyLike`, or an awaitable of one."""


def as_reply(value: Any, where: str = "reply") -> Reply:
    """A reply from its short forms: text, or a mapping of `Reply` fields (`json:` is text as data)."""
    if isinstance(value, Reply):
        return value
    if value is None or isinstance(value, str):
        return Reply(value)
    if not isinstance(value, Mapping):
        raise SpecError(f"{where}: expected text or a mapping, got {value!r}")
    facts = dict(value)
    if "json" in facts:
        facts["text"] = json.dumps(facts.pop("json"), ensure_ascii=False)
    _refuse_unknown(facts, [f.name for f in fields(Reply)], where)
    return Reply(**facts)


def last_text(body: RequestBody, role: str) -> str:
    """The text of the last message of that role, or nothing."""
    for message in reversed(body.get("messages") or ()):
        if message.get("role") == role:
            content = message.get("content")
            if isinstance(content, list):
                return "".join(part.get("text", "") for part in content)
            return content or ""
    return ""


class _Groups(string.Template):
    """`$name` and `$1` stand for groups of the match; any other dollar sign stands for itself."""

    idpattern = r"(?a:[_a-z][_a-z0-9]*|[1-9])"


def _fill(reply: Reply, match: re.Match[str] | None) -> Reply:
    if match is None or reply.text is None:
        return reply
    groups = {**{str(n): g or "" for n, g in enumerate(match.groups(), 1)}, **match.groupdict("")}
    return replace(reply, text=_Groups(reply.text).safe_substitute(groups))


class _Turns:
    """Replies given one after the other."""

    def __init__(self, replies: Sequence[ReplyLike], repeat: bool, where: str) -> None:
        self._replies = [as_reply(r, f"{where}[{n}]") for n, r in enumerate(replies)]
        self._where = where
        self._left: Iterator[Reply] = itertools.cycle(self._replies) if repeat else iter(self._replies)

    def take(self) -> Reply:
        if (reply := next(self._left, None)) is not None:
            return reply
        told = f"{self._where}: the script has run out of replies after {len(self._replies)}"
        return Reply(status=400, error=told)


class _Conversation:
    """The reply for each turn of a conversation, told by how often the model has spoken in it already.

    So it does not matter whether the one who answers is the same that began.
    """

    def __init__(self, replies: Sequence[ReplyLike], where: str) -> None:
        self._replies = [as_reply(r, f"{where}[{n}]") for n, r in enumerate(replies)]
        self._where = where

    def answer(self, body: RequestBody) -> Reply:
        turn: int = sum(message.get("role") == "assistant" for message in body.get("messages") or ())
        if turn < len(self._replies):
            return self._replies[turn]
        told = f"{self._where}: the conversation goes on after {len(self._replies)} turns"
        return Reply(status=400, error=told)


@dataclass(frozen=True, slots=True)
class _Continue:
    """Answers the next character of a text that the prompt names, given how much of it is there already."""

    target: re.Pattern[str]
    built: re.Pattern[str]
    step: int
    done: str

    def answer(self, user: str) -> Reply | None:
        target, built = self.target.search(user), self.built.search(user)
        if not target or not built:
            return None
        whole, so_far = target.group(1), len(built.group(1))
        return Reply(whole[so_far : so_far + self.step] or self.done)


@dataclass(frozen=True, slots=True)
class _Rule:
    user: re.Pattern[str] | None
    system: re.Pattern[str] | None
    model: re.Pattern[str] | None
    source: _Turns | _Conversation | _Continue

    def answer(self, body: RequestBody) -> Reply | None:
        user = last_text(body, "user")
        match = self.user.search(user) if self.user else None
        if self.user and match is None:
            return None
        if self.system and not self.system.search(last_text(body, "system")):
            return None
        if self.model and not self.model.search(str(body.get("model", ""))):
            return None
        if isinstance(self.source, _Continue):
            return self.source.answer(user)
        reply = self.source.take() if isinstance(self.source, _Turns) else self.source.answer(body)
        return _fill(reply, match)


@dataclass(frozen=True, slots=True)
class _Fault:
    reply: Reply
    every: int
    at: frozenset[int]

    def hits(self, call: int) -> bool:
        return call in self.at or (self.every > 0 and call % self.every == 0)


class Script:
    """Decides the answer to each call. Calls are counted from 1, in order of arrival."""

    def __init__(
        self, source: Sequence[ReplyLike] | Mapping[str, Any] | Answer, name: str = "script"
    ) -> None:
        self.model = "scripted"
        self._calls = 0
        self._faults: list[_Fault] = []
        self._rules: list[_Rule] = []
        self._turns: _Turns | None = None
        self._function: Answer | None = None
        if callable(source):
            self._function = source
        elif isinstance(source, Mapping):
            self._read(source, name)
        else:
            self._turns = _Turns(source, False, f"{name}: replies")

    @classmethod
    def from_file(cls, path: str | Path) -> Script:
        """Read a script file, YAML or JSON."""
        found = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, Mapping):
            raise SpecError(f"{path}: a script is a mapping with `rules` or `replies`")
        return cls(found, str(path))

    def _read(self, source: Mapping[str, Any], name: str) -> None:
        _refuse_unknown(source, ("model", "rules", "replies", "repeat", "faults"), name)
        self.model = str(source.get("model") or self.model)
        self._rules = [_rule(r, f"{name}: rules[{n}]") for n, r in enumerate(source.get("rules") or ())]
        self._faults = [_fault(f, f"{name}: faults[{n}]") for n, f in enumerate(source.get("faults") or ())]
        if "replies" in source:
            self._turns = _Turns(source["replies"], bool(source.get("repeat")), f"{name}: replies")
        if not self._rules and self._turns is None:
            raise SpecError(f"{name}: a script needs `rules` or `replies`")

    def answer(self, body: RequestBody) -> Any:
        """The reply to this request; from a function perhaps as an awaitable of what it gives."""
        self._calls += 1
        for fault in self._faults:
            if fault.hits(self._calls):
                return fault.reply
        if self._function is not None:
            return self._function(body)
        for rule in self._rules:
            if (reply := rule.answer(body)) is not None:
                return reply
        if self._turns is not None:
            return self._turns.take()
        shown = last_text(body, "user")[:200]
        return Reply(status=400, error=f"no rule of the script matches the last user message: {shown!r}")


def _rule(data: Any, where: str) -> _Rule:
    known = ("reply", "replies", "turns", "continue")
    _refuse_unknown(data, ("match", "system", "model", "repeat", *known), where)
    kinds = [k for k in known if k in data]
    if len(kinds) != 1:
        raise SpecError(
            f"{where}: needs exactly one of `reply`, `replies`, `turns`, `continue`; has {kinds or 'none'}"
        )
    source: _Turns | _Conversation | _Continue
    if "continue" in data:
        source = _continue(data["continue"], f"{where}.continue")
    elif "turns" in data:
        source = _Conversation(data["turns"], f"{where}.turns")
    elif "reply" in data:
        source = _Turns([data["reply"]], True, f"{where}.reply")
    else:
        source = _Turns(data["replies"], bool(data.get("repeat")), f"{where}.replies")
    user, system, model = (
        _pattern(data[k], f"{where}.{k}") if k in data else None for k in ("match", "system", "model")
    )
    return _Rule(user=user, system=system, model=model, source=source)


def _continue(data: Any, where: str) -> _Continue:
    _refuse_unknown(data, ("target", "built", "step", "done"), where)
    target, built = (_pattern(data.get(k), f"{where}.{k}") for k in ("target", "built"))
    for key, pattern in (("target", target), ("built", built)):
        if pattern.groups < 1:
            raise SpecError(f"{where}.{key}: the pattern needs a group, as in 'Target: (.*)'")
    return _Continue(target, built, int(data.get("step", 1)), str(data.get("done", "")))


def _fault(data: Any, where: str) -> _Fault:
    names = [f.name for f in fields(Reply)]
    _refuse_unknown(data, ("every", "at", "json", *names), where)
    at = data.get("at") or ()
    calls = frozenset([at] if isinstance(at, int) else at)
    every = int(data.get("every") or 0)
    if not calls and every < 1:
        raise SpecError(f"{where}: needs `every: n` or `at: [n, …]`")
    return _Fault(as_reply({k: v for k, v in data.items() if k not in ("every", "at")}, where), every, calls)


def _pattern(source: Any, where: str) -> re.Pattern[str]:
    try:
        return re.compile(str(source), re.MULTILINE)
    except re.error as error:
        raise SpecError(f"{where}: {source!r} is not a regular expression: {error}") from None


def _refuse_unknown(data: Any, known: Sequence[str], where: str) -> None:
    if not isinstance(data, Mapping):
        raise SpecError(f"{where}: expected a mapping, got {data!r}")
    for key in data:
        if key not in known:
            raise SpecError(f'{where}: unknown key "{key}"; {did_you_mean(str(key), known)}')
