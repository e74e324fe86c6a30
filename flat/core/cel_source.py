"""What can be told from the text of a CEL condition alone: its tokens, what it reads, and how it may grow.

The library parses; this is a light pass beside it. It says which keys of the context have to be handed over, where
a failing path or operator stands (the library's evaluation errors have no positions), and bounds the memory that
loops may take, for which the library has no limit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

from flat.errors import ExpressionError

MACROS = frozenset({"all", "exists", "exists_one", "filter", "map"})
"""Loops. Each turn of any of them is one step of the library's budget."""
MAX_TURNS = 10_000
"""The library's budget of loop turns in one evaluation."""

MAX_OPEN = 64
"""Brackets open at once; the library goes no deeper than 32 levels."""

_TOKEN = re.compile(
    r"""
    (?P<space>\s+|//[^\n]*)
  | (?P<text>[bB]?[rR][bB]?(?:\"{3}.*?\"{3}|'{3}.*?'{3}|"[^"\n]*"|'[^'\n]*')
            |[bB]?(?:\"{3}(?:[^\\]|\\.)*?\"{3}|'{3}(?:[^\\]|\\.)*?'{3}|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))
  | (?P<name>[A-Za-z_]\w*)
  | (?P<number>0[xX][0-9a-fA-F]+[uU]?|[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?[uU]?)
  | (?P<symbol>===|!==|&&|\|\||[=!<>]=|=>|<>|\*\*|\{\{|\}\}|\{%|%\}|.)
    """,
    re.VERBOSE | re.DOTALL,
)
ELEMENT = 24
"""Bytes that an element of a list roughly takes, besides its own."""

_CONSTANT = frozenset({"true", "false", "null", "in"})


class Token(NamedTuple):
    kind: str
    text: str
    offset: int


class Chain(NamedTuple):
    """A path from `context`, as far as its keys are written out, and the tokens it covers."""

    names: tuple[str, ...]
    offset: int
    first: int
    last: int
    looped: bool

    @property
    def path(self) -> str:
        return ".".join(("context", *self.names))


class Loop:
    """A macro, `depth` deep in others; `grows` counts what in its body may make something larger than it was given."""

    __slots__ = ("depth", "grows", "name")

    def __init__(self, name: str, depth: int) -> None:
        self.name, self.depth, self.grows = name, depth, 0


@dataclass
class Reading:
    """What one pass over the tokens tells."""

    tokens: Sequence[Token]
    chains: list[Chain] = field(default_factory=list)
    loops: list[Loop] = field(default_factory=list)
    joins: int = 0
    """How many `+` there are anywhere."""
    built: int = 0
    """How many elements the lists and mappings have that are written out inside loops."""
    uses_now: bool = False

    @property
    def whole(self) -> bool:
        """Whether the context is read as a whole, and not only by the keys that `keys` gives."""
        return any(not chain.names for chain in self.chains)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain.names[0] for chain in self.chains if chain.names))

    def worst(self, weights: Mapping[str, int], longest: int, largest: int, length: int) -> int:
        """At most how many bytes, roughly, an evaluation may take.

        `weights` are those of the context's keys; `longest` counts the elements of the longest list or mapping;
        `largest` is the size of the largest thing inside any of them; `length` is that of the condition.
        """
        everything = sum(weights.values())

        def weight(chain: Chain) -> int:
            return weights.get(chain.names[0], 0) if chain.names else everything

        taken = sum(weight(chain) for chain in self.chains)
        taken += taken * min(self.joins, 32)
        if not self.loops:
            return taken
        looped = sum(weight(chain) for chain in self.chains if chain.looped) + self.built * ELEMENT
        if any(loop.grows for loop in self.loops):
            maps = math.prod(1 + loop.grows for loop in self.loops if loop.name == "map")
            others = max((1 + loop.grows for loop in self.loops if loop.name != "map"), default=1)
            looped += max(largest, looped, length) * maps * others
        turns = sum(min(MAX_TURNS, max(longest, length // 2)) ** min(loop.depth, 4) for loop in self.loops)
        return taken + min(MAX_TURNS, int(turns)) * looped


Brackets: TypeAlias = list[tuple[str, Loop | None]]
"""What is open: its kind, and the loop that it is the body of."""


def tokens_of(source: str) -> list[Token]:
    """The tokens of a text, whatever it is: what is no token of CEL is a symbol of one character."""
    return [
        Token(found.lastgroup or "", found.group(), found.start())
        for found in _TOKEN.finditer(source)
        if found.lastgroup != "space"
    ]


def read(source: str) -> Reading:
    """One pass over a condition's text."""
    tokens = tokens_of(source)
    reading = Reading(tokens)
    brackets: Brackets = []
    for at, token in enumerate(tokens):
        if token.kind != "symbol" and _in_literal(brackets) and _in_loop(brackets):
            reading.built += 1
        if token.kind == "name":
            _name(reading, tokens, at, brackets)
        elif token.kind == "symbol":
            _symbol(reading, tokens, at, brackets)
            if len(brackets) > MAX_OPEN:
                raise ExpressionError(
                    "the condition is nested too deeply", source=source, offset=token.offset
                )
    return reading


def _name(reading: Reading, tokens: list[Token], at: int, brackets: Brackets) -> None:
    token = tokens[at]
    if _text(tokens, at - 1) == ".":
        return
    if token.text == "context":
        reading.chains.append(_chain(tokens, at, _in_loop(brackets)))
    elif token.text == "now":
        reading.uses_now = True
    converts = token.text in ("string", "bytes") and _text(tokens, at + 1) == "("
    if converts or (_in_literal(brackets) and token.text not in _CONSTANT):
        _grow(brackets)


def _symbol(reading: Reading, tokens: list[Token], at: int, brackets: Brackets) -> None:
    symbol = tokens[at].text
    if symbol == "(":
        macro = _text(tokens, at - 1) if _text(tokens, at - 2) == "." else ""
        depth = 1 + sum(outer is not None for _, outer in brackets)
        loop = Loop(macro, depth) if macro in MACROS else None
        if loop is not None:
            reading.loops.append(loop)
        brackets.append(("group", loop))
    elif symbol in ("[", "{", "{{"):
        before = tokens[at - 1] if at else None
        indexes = symbol == "[" and before is not None and _ends_operand(before)
        brackets += [("index" if indexes else "literal", None)] * len(symbol)
    elif symbol in (")", "]", "}", "}}"):
        del brackets[max(0, len(brackets) - len(symbol)) :]
    elif symbol == "+":
        reading.joins += 1
        _grow(brackets)


def _in_loop(brackets: Brackets) -> bool:
    return any(loop is not None for _, loop in brackets)


def _in_literal(brackets: Brackets) -> bool:
    return any(opened == "literal" for opened, _ in brackets)


def _grow(brackets: Brackets) -> None:
    for _, loop in brackets:
        if loop is not None:
            loop.grows += 1


def _ends_operand(token: Token) -> bool:
    if token.kind == "name":
        return token.text != "in"
    return token.kind in ("text", "number") or token.text in (")", "]", "}")


def _chain(tokens: list[Token], first: int, looped: bool) -> Chain:
    names: list[str] = []
    at = first + 1
    while True:
        if _text(tokens, at) == "." and _kind(tokens, at + 1) == "name" and _text(tokens, at + 2) != "(":
            names.append(tokens[at + 1].text)
            at += 2
        elif (
            _text(tokens, at) == "[" and (key := _plain_text(tokens, at + 1)) and _text(tokens, at + 2) == "]"
        ):
            names.append(key)
            at += 3
        else:
            return Chain(tuple(names), tokens[first].offset, first, at - 1, looped)


def _plain_text(tokens: list[Token], at: int) -> str:
    """A text written without escapes or prefixes; empty for anything else."""
    if _kind(tokens, at) != "text":
        return ""
    text = tokens[at].text
    plain = text[0] in "'\"" and "\\" not in text and text[:3] not in ("'''", '"""')
    return text[1:-1] if plain else ""


def _text(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].text if 0 <= at < len(tokens) and tokens[at].kind != "text" else ""


def _kind(tokens: Sequence[Token], at: int) -> str:
    return tokens[at].kind if 0 <= at < len(tokens) else ""


def text_at(tokens: Sequence[Token], at: int) -> str:
    """The token's text, or nothing where there is no token, or a quoted text."""
    return _text(tokens, at)


def broken_at(chain: Chain, context: Any) -> tuple[int, Any]:
    """How many names of a chain can be followed in this context, and the value that they lead to."""
    value = context
    for count, name in enumerate(chain.names):
        if not isinstance(value, Mapping) or name not in value:
            return count, value
        value = value[name]
    return len(chain.names), value
