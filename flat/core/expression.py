"""The grammar of conditions: text to a syntax tree, and mistakes to advice. Nothing is evaluated here.

    logic       := not ("and" | "or" not)*                  `or` binds weakest, then `and`
    not         := "not" not | comparison
    comparison  := sum (("==" | "!=" | "<" | "<=" | ">" | ">=" | "in" | "not" "in") sum)*
    sum         := product (("+" | "-") product)*
    product     := sign (("*" | "/" | "%") sign)*
    sign        := "-" sign | postfix
    postfix     := atom ("." NAME | "[" logic "]")*
    atom        := number | text+ | true | false | null | NAME | "(" logic ")" | "[" logic, … "]"

The parser climbs precedences with one function and one table. A dotted path is one token, because nearly
every condition is a path, an operator and a constant. Trees are limited in depth, so later passes may
recurse.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple, NoReturn, TypeAlias

from flat.core.expression_advice import advise
from flat.errors import ExpressionError

MAX_SOURCE = 10_000
MAX_DEPTH = 50
MAX_LINKS = 100
MAX_DIGITS = 1_000


class Literal(NamedTuple):
    value: Any
    offset: int


class Path(NamedTuple):
    root: str
    names: tuple[str, ...]
    offset: int


class Member(NamedTuple):
    """`.name` after something that is not a plain path."""

    base: Node
    name: str
    offset: int


class Index(NamedTuple):
    base: Node
    key: Node
    offset: int


class ListOf(NamedTuple):
    items: tuple[Node, ...]
    offset: int


class Negate(NamedTuple):
    operand: Node
    offset: int


class Not(NamedTuple):
    operand: Node
    offset: int


class Binary(NamedTuple):
    symbol: str
    left: Node
    right: Node
    offset: int


class Compare(NamedTuple):
    """`first op node op node …`; every neighbouring pair must hold."""

    first: Node
    rest: tuple[tuple[str, Node], ...]
    offset: int


class Logic(NamedTuple):
    word: str
    parts: tuple[Node, ...]
    offset: int


Node: TypeAlias = Literal | Path | Member | Index | ListOf | Negate | Not | Binary | Compare | Logic

_TOKEN = re.compile(
    r"""
    (?P<space>\s+)
  | (?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)
  | (?P<number>0[xX][0-9a-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+
              |(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)(?:[eE][+-]?[0-9]+)?)
  | (?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")
  | (?P<symbol>[=!<>]=|[<>+\-*/%()\[\],.])
    """,
    re.VERBOSE | re.DOTALL,
)
_CONSTANTS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}
_WORDS = frozenset({"and", "or", "not", "in"})
_OR, _AND, _NOT, _COMPARE, _SUM, _PRODUCT = 1, 2, 3, 4, 5, 6
_POWER = {
    **dict.fromkeys(("==", "!=", "<", "<=", ">", ">=", "in", "not"), _COMPARE),
    "or": _OR,
    "and": _AND,
    "+": _SUM,
    "-": _SUM,
    "*": _PRODUCT,
    "/": _PRODUCT,
    "%": _PRODUCT,
}


def parse(source: str) -> Node:
    """The syntax tree of an expression. Raises `ExpressionError` with offset and advice."""
    if len(source) > MAX_SOURCE:
        raise ExpressionError(f"the condition is longer than {MAX_SOURCE:,} characters", source=source[:200])
    parser = _Parser(source)
    tree = parser.expression(0, 0)
    if parser.kind != "end":
        parser.fail()
    return tree


class _Parser:
    """One pass over the tokens. `kind`, `text` and `offset` describe the token in front."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.position = 0
        self.links = 0
        self.advance()

    def advance(self) -> None:
        found = _TOKEN.match(self.source, self.position)
        if found is not None and found.lastgroup == "space":
            self.position = found.end()
            found = _TOKEN.match(self.source, self.position)
        self.offset = self.position
        if found is None:
            self.text = ""
            self.kind = "end" if self.position == len(self.source) else "unknown"
            return
        self.text, self.position = found.group(), found.end()
        kind = found.lastgroup or ""
        self.kind = "symbol" if kind == "name" and self.text in _WORDS else kind

    def fail(self, offset: int | None = None) -> NoReturn:
        """Raise for what stands at the token in front, with advice for the mistakes people make."""
        raise advise(self.source, self.offset if offset is None else offset)

    def problem(self, message: str, offset: int, hint: str = "") -> ExpressionError:
        return ExpressionError(message, source=self.source, offset=offset, hint=hint)

    def link(self) -> None:
        """Count what makes the tree grow to the left, which nesting does not bound."""
        self.links += 1
        if self.links > MAX_LINKS:
            raise self.problem(f"the condition has more than {MAX_LINKS} operators", self.offset)

    def expect(self, symbol: str) -> None:
        if self.kind != "symbol" or self.text != symbol:
            self.fail()
        self.advance()

    def expression(self, floor: int, depth: int) -> Node:
        """The longest expression from here whose operators bind tighter than `floor`."""
        if depth > MAX_DEPTH:
            raise self.problem(f"the condition is nested more than {MAX_DEPTH} levels deep", self.offset)
        left = self.operand(floor, depth)
        while self.kind == "symbol":
            power = _POWER.get(self.text, 0)
            if power <= floor:
                break
            left = self.operation(left, power, depth)
        return left

    def operation(self, left: Node, power: int, depth: int) -> Node:
        symbol, offset = self.text, self.offset
        if power == _COMPARE:
            return self.comparison(left, depth)
        if power <= _AND:
            parts = [left]
            while self.kind == "symbol" and self.text == symbol:
                self.advance()
                parts.append(self.expression(power, depth))
            return Logic(symbol, tuple(parts), offset)
        self.link()
        self.advance()
        return Binary(symbol, left, self.expression(power, depth), offset)

    def comparison(self, first: Node, depth: int) -> Node:
        offset, rest = self.offset, []
        while self.kind == "symbol" and _POWER.get(self.text) == _COMPARE:
            symbol = self.text
            self.advance()
            if symbol == "not":
                self.expect("in")
                symbol = "not in"
            rest.append((symbol, self.expression(_COMPARE, depth)))
        return Compare(first, tuple(rest), offset)

    def operand(self, floor: int, depth: int) -> Node:
        kind, text, offset = self.kind, self.text, self.offset
        node: Node
        if kind == "name":
            node = self.name(text, offset)
        elif kind == "number":
            node = Literal(self.number(text, offset), offset)
            self.advance()
        elif kind == "text":
            node = Literal(self.string(), offset)
        elif text == "not":
            if floor >= _COMPARE:
                raise self.problem("`not` needs parentheses here", offset, "write `(not …)`")
            self.advance()
            return Not(self.expression(_NOT - 1, depth + 1), offset)
        elif text == "-":
            self.advance()
            operand = self.expression(_PRODUCT, depth + 1)
            if isinstance(operand, Literal) and type(operand.value) in (int, float):
                return Literal(-operand.value, offset)
            return Negate(operand, offset)
        elif text == "(":
            self.advance()
            node = self.expression(0, depth + 1)
            self.expect(")")
        elif text == "[":
            node = self.list_literal(offset, depth)
        else:
            self.fail()
        return self.postfix(node, depth) if self.text in (".", "[", "(") else node

    def name(self, text: str, offset: int) -> Node:
        self.advance()
        if text in _CONSTANTS:
            return Literal(_CONSTANTS[text], offset)
        root, *names = text.split(".")
        if root in _CONSTANTS or root in _WORDS:
            self.fail(offset)
        if self.kind == "text" or (self.kind == "name" and self.text.partition(".")[0] in ("is", "if")):
            self.fail()
        return Path(root, tuple(names), offset)

    def postfix(self, node: Node, depth: int) -> Node:
        while self.kind == "symbol" and self.text in (".", "[", "("):
            offset = self.offset
            self.link()
            if self.text == "(":
                self.fail()
            if self.text == "[":
                self.advance()
                node = Index(node, self.expression(0, depth + 1), offset)
                self.expect("]")
                continue
            self.advance()
            if self.kind != "name":
                self.fail()
            for name in self.text.split("."):
                self.link()
                node = (
                    Path(node.root, (*node.names, name), node.offset)
                    if isinstance(node, Path)
                    else Member(node, name, offset)
                )
            self.advance()
        return node

    def list_literal(self, offset: int, depth: int) -> Node:
        self.advance()
        items: list[Node] = []
        while not (self.kind == "symbol" and self.text == "]"):
            items.append(self.expression(0, depth + 1))
            if self.kind == "symbol" and self.text == ",":
                self.advance()
            elif self.text != "]":
                self.fail()
        self.advance()
        return ListOf(tuple(items), offset)

    def number(self, text: str, offset: int) -> int | float:
        if len(text) > MAX_DIGITS:
            raise self.problem(f"the number has more than {MAX_DIGITS:,} digits", offset)
        end = offset + len(text)
        if self.source[end : end + 1].isalnum() or self.source[end : end + 1] == "_":
            raise self.problem("a name cannot begin with a digit", offset, "quote it if it is text")
        try:
            return int(text, 0)
        except ValueError:
            pass
        try:
            if not text.replace("_", "").isdigit():
                return float(text)
        except ValueError:
            pass
        raise self.problem(f"`{text}` is not a number", offset)

    def string(self) -> str:
        """One string, or several side by side joined."""
        parts: list[str] = []
        while self.kind == "text":
            body = self.text[1:-1]
            parts.append(body if "\\" not in body else self._unescape(body))
            self.advance()
        return "".join(parts)

    def _unescape(self, body: str) -> str:
        def character(found: re.Match[str]) -> str:
            escape = found.group(1)
            if escape[0] in _ESCAPES:
                return _ESCAPES[escape[0]]
            if escape[0] in "01234567":
                return chr(int(escape, 8))
            code = int(escape[1:], 16) if len(escape) > 1 else -1
            if not 0 <= code <= 0x10FFFF:
                raise self.problem(f"`\\{escape}` is not an escape", self.offset + 1 + found.start())
            return chr(code)

        return _ESCAPE.sub(character, body)


_ESCAPE = re.compile(
    r"\\(\n|[\\'\"abfnrtv]|[0-7]{1,3}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[xuUN])", re.DOTALL
)
_ESCAPES = {
    "\n": "",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
}


def show(node: Node) -> str:
    """The expression as text again, with parentheses wherever they could matter."""
    match node:
        case Literal():
            return _show_literal(node.value)
        case Path():
            return ".".join((node.root, *node.names))
        case Member():
            return f"{_inner(node.base)}.{node.name}"
        case Index():
            return f"{_inner(node.base)}[{show(node.key)}]"
        case ListOf():
            return f"[{', '.join(show(item) for item in node.items)}]"
        case Negate():
            return f"-{_inner(node.operand)}"
        case Not():
            return f"not {_inner(node.operand)}"
        case Binary():
            return f"{_inner(node.left)} {node.symbol} {_inner(node.right)}"
        case Compare():
            return _inner(node.first) + "".join(f" {symbol} {_inner(part)}" for symbol, part in node.rest)
        case Logic():
            return f" {node.word} ".join(_inner(part) for part in node.parts)


def _inner(node: Node) -> str:
    plain = isinstance(node, Path | Member | Index | ListOf)
    plain = plain or (isinstance(node, Literal) and not (is_negative(node.value)))
    return show(node) if plain else f"({show(node)})"


def is_negative(value: Any) -> bool:
    return isinstance(value, int | float) and str(value).startswith("-")


def _show_literal(value: Any) -> str:
    if isinstance(value, str):
        return repr(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "1e999" if value == float("inf") else "-1e999" if value == float("-inf") else repr(value)
