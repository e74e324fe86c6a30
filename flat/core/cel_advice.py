"""What to say when a CEL condition is refused or fails: the library's words, put as advice with a place.

`refused` is for what does not compile, `failed` for what went wrong with the values at hand. Both are looked up
only on failure. The library gives positions for the first and none for the second: there the operator or the
path is looked for in the text, and left out when it could be one of several.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flat.core.cel_source import MACROS, Chain, Reading, Token, broken_at, text_at
from flat.core.operators import describe
from flat.errors import ExpressionError, did_you_mean, nearest

ROOTS = ("context", "now")
FUNCTIONS = (
    "all", "exists", "exists_one", "filter", "map", "has", "size", "startsWith", "endsWith", "contains", "matches",
    "int", "uint", "double", "string", "bool", "bytes", "type", "dyn", "timestamp", "duration", "getFullYear",
    "getMonth", "getDate", "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getHours", "getMinutes",
    "getSeconds", "getMilliseconds",
)  # fmt: skip

_HABITS: Mapping[str, tuple[str, str]] = {
    "{{": ("a condition is not a template", "write the path without braces: `context.x == 1`"),
    "{%": ("a condition is not a template", "write the path without braces: `context.x == 1`"),
    "=": ("`=` does not compare", "write `==`"),
    "===": ("`===` is not an operator in CEL", "write `==`"),
    "!==": ("`!==` is not an operator in CEL", "write `!=`"),
    "<>": ("`<>` is not an operator in CEL", "write `!=`"),
    "=>": ("`=>` is not an operator in CEL", "write `>=`"),
    "&": ("`&` is not an operator in CEL", "write `&&`"),
    "|": (
        "`|` is not an operator in CEL, and there are no filters",
        "write `||`, or call a function: `size(x)`",
    ),
    "**": ("`**` is not an operator in CEL", "multiply"),
    "'": ("the text is not closed", "end it with the quote it begins with"),
    '"': ("the text is not closed", "end it with the quote it begins with"),
    "and": ("`and` is not an operator in CEL", "write `&&`"),
    "or": ("`or` is not an operator in CEL", "write `||`"),
    "not": ("`not` is not an operator in CEL", "write `!`"),
    "is": ("`is` is not an operator in CEL", "write `==` or `!=`"),
    "if": ("CEL has no `if … else`", "write `condition ? a : b`"),
    "else": ("CEL has no `if … else`", "write `condition ? a : b`"),
    "for": ("CEL has no comprehensions", "write `context.l.all(x, …)`, `.exists`, `.filter` or `.map`"),
    "lambda": ("CEL has no functions of one's own", "write `context.l.exists(x, …)`"),
    **dict.fromkeys(("True", "TRUE"), ("`{0}` is not a name in CEL", "write `true`")),
    **dict.fromkeys(("False", "FALSE"), ("`{0}` is not a name in CEL", "write `false`")),
    **dict.fromkeys(("None", "nil", "undefined", "NULL"), ("`{0}` is not a name in CEL", "write `null`")),
    **dict.fromkeys(("AND", "OR", "NOT"), ("`{0}` is not an operator in CEL", "write `&&`, `||`, `!`")),
}
_FUNCTION_ADVICE: Mapping[str, str] = {
    **dict.fromkeys(("len", "length", "count"), "write `size(x)`"),
    **dict.fromkeys(("defined", "exists"), "write `has(context.x)`"),
    "get": "write `has(context.x) ? context.x : …`",
    **dict.fromkeys(("includes", "has_key"), "write `part in list`, or `text.contains(part)`"),
    **dict.fromkeys(("startswith", "startswidth"), "write `startsWith`"),
    "endswith": "write `endsWith`",
    **dict.fromkeys(("str",), "write `string(x)`"),
    "float": "write `double(x)`",
    "any": "write `context.l.exists(x, …)`",
    **dict.fromkeys(("date", "datetime"), "write `timestamp('2026-01-31T12:00:00Z')`"),
    **dict.fromkeys(("lower", "upper", "strip", "trim", "split", "replace", "lowerAscii", "upperAscii"),
                    "compute the value in a template and store it in the context"),
}  # fmt: skip
_KINDS: Mapping[str, str] = {
    "int": "a whole number", "int64": "a whole number", "uint": "an unsigned number", "uint64": "an unsigned number",
    "double": "a decimal number", "string": "text", "bool": "true or false", "bytes": "bytes", "list": "a list",
    "map": "a mapping", "null": "null", "null_type": "null", "timestamp": "a time", "duration": "a duration",
    "google.protobuf.Timestamp": "a time", "google.protobuf.Duration": "a duration", "type": "a type",
    "dyn": "any value",
}  # fmt: skip

_FIRST = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*?)(?:\n|$)")
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
_OVERLOAD = re.compile(
    r"[Nn]o matching overloads? (?:found : |for ')(?:\((?P<receiver>\w+)\)\.)?"
    r"(.*?)(?:' applied to '\((.*)\)'|\((.*)\))?$"
)
_UNEXPECTED = re.compile(
    r"Syntax error: (?:mismatched|extraneous|no viable alternative at) input '(.*?)'(?: expecting|$)"
)
_STRAY = re.compile(r"token recognition error at: '(.*?)\s*'?$")
_KEY = re.compile(r'Key not found in map : (?:"(.*)"|(.*))$', re.DOTALL)


def refused(source: str, said: str, reading: Reading) -> ExpressionError:
    """The error for a condition that the library does not compile, from what the library said."""
    found = _FIRST.search(said)
    message = found[3].removesuffix(" [INVALID_ARGUMENT]") if found else said
    offset = _offset(source, int(found[1]), int(found[2])) if found else None
    if "ecursion" in said or "parsetree" in message:
        hint = "split it over two transitions, or compute a part of it in an action"
        return ExpressionError("the condition is nested too deeply", source=source, hint=hint)
    if habit := _habit(source, reading.tokens):
        return habit
    if named := _UNDECLARED.search(message):
        return _undeclared(source, named[1], reading.tokens, offset)
    if overload := _OVERLOAD.search(message.removesuffix("'") if "applied" not in message else message):
        return _no_overload(source, overload, reading, offset)
    hint = ""
    if "<EOF>" in message.partition("expecting")[0]:
        message, offset = "the condition ends too early", len(source.rstrip())
    elif unexpected := _UNEXPECTED.search(message) or _STRAY.search(message):
        message, hint = f"`{unexpected[1]}` does not belong here", "is an operator, or a quote, missing?"
    return ExpressionError(message.removeprefix("Syntax error: "), source=source, offset=offset, hint=hint)


def not_boolean(source: str, kind: str) -> ExpressionError:
    """The error for a condition whose result is something else than true or false."""
    what = _kind(kind)
    hint = {"text": "compare it: `… != ''`", "null": "compare it: `… == null`"}.get(
        what, "compare it: `… > 0`"
    )
    if what in ("a list", "a mapping"):
        hint = "write `size(…) > 0`"
    return ExpressionError(f"the condition gives {what}, not true or false", source=source, hint=hint)


def failed(source: str, said: str, reading: Reading, context: Any) -> ExpressionError:
    """The error for an evaluation that the library gave up, from what the library said."""
    message = said.partition(": ")[2] if re.match(r"[A-Z_]+: ", said) else said
    message = re.sub(r" \[[A-Z_]+\]$", "", message)
    if missing := _KEY.match(message):
        return _no_key(source, missing[1] if missing[1] is not None else missing[2], reading, context)
    if message.startswith("Applying SELECT"):
        return _no_member(source, reading, context)
    if overload := _OVERLOAD.search(message):
        return _no_overload(source, overload, reading, None, context)
    if index := re.match(r"Index error: index=(-?\d+) size=(\d+)", message):
        text = f"there is no element {index[1]}: the list has {index[2]}"
        return ExpressionError(text, source=source, offset=_only(reading.tokens, "[", index[1]))
    if message.startswith("Index error: expected integer"):
        return ExpressionError("a list is indexed by whole numbers only", source=source)
    if "budget" in message:
        hint = "compute the value in an action"
        return ExpressionError("its loops take more than 10,000 turns", source=source, hint=hint)
    for word, hint in (
        ("to Timestamp", "write it like `2026-01-31T12:00:00Z`"),
        ("to Duration", "write it like `90s`, `30m`, `24h` or `1h30m`; there are no days"),
    ):
        if word in message:
            name = word.removeprefix("to ").lower()
            at = _only(reading.tokens, name)
            return ExpressionError(
                f"the text given to `{name}` is not one", source=source, offset=at, hint=hint
            )
    symbol = "/" if message.startswith("divide") else "%" if message.startswith("modulus") else ""
    return ExpressionError(message, source=source, offset=_only(reading.tokens, symbol) if symbol else None)


def _offset(source: str, line: int, column: int) -> int | None:
    if line < 1 or column < 1:
        return None
    before = source.split("\n")[: line - 1]
    return min(sum(len(text) + 1 for text in before) + column - 1, len(source))


def _habit(source: str, tokens: Sequence[Token]) -> ExpressionError | None:
    """The first thing written as in another language."""
    for at, token in enumerate(tokens):
        if token.kind in ("text", "number") or text_at(tokens, at - 1) == ".":
            continue
        if token.text in ("not", "is") and text_at(tokens, at + 1) in ("in", "not"):
            hint = "write `!(x in y)`" if token.text == "not" else "write `!=`"
            said = f"`{token.text} {tokens[at + 1].text}` is not an operator in CEL"
            return ExpressionError(said, source=source, offset=token.offset, hint=hint)
        if found := _HABITS.get(token.text):
            message, hint = found[0].format(token.text), found[1]
            return ExpressionError(message, source=source, offset=token.offset, hint=hint)
    return None


def _undeclared(source: str, name: str, tokens: Sequence[Token], offset: int | None) -> ExpressionError:
    root = name.partition(".")[0]
    at = next((n for n, t in enumerate(tokens) if t.text == root and t.kind == "name"), None)
    method = at is not None and text_at(tokens, at - 1) == "."
    place = tokens[at].offset if at is not None else offset
    called = at is not None and text_at(tokens, at + 1) == "("
    if called and root in MACROS:
        message, hint = f"`{root}` takes a name and an expression", f"write `context.l.{root}(x, x > 1)`"
    elif called or method:
        hint = _FUNCTION_ADVICE.get(root) or did_you_mean(root, FUNCTIONS if nearest(root, FUNCTIONS) else ())
        message = f"CEL has no function `{root}`"
    elif root in ("input", "output"):
        message = f"a condition cannot read `{root}`"
        hint = f"store it with output_to_context and write `context.{name.partition('.')[2] or 'name'}`"
    else:
        message, hint = f"unknown name `{root}`", f"write `context.{name}`, or quote it if it is text"
        if close := difflib.get_close_matches(root, ROOTS, n=1, cutoff=0.75):
            hint = f'did you mean "{close[0]}"?'
    return ExpressionError(message, source=source, offset=place, hint=hint)


def _no_key(source: str, key: str, reading: Reading, context: Any) -> ExpressionError:
    for chain in reading.chains:
        count, holder = broken_at(chain, context)
        if count == len(chain.names) or chain.names[count] != key or not isinstance(holder, Mapping):
            continue
        path = ".".join(("context", *chain.names[:count]))
        close = nearest(key, [name for name in holder if isinstance(name, str)])
        hint = f'did you mean "{close}"?' if close else f"if it may be missing, ask `has({path}.{key})` first"
        offset = _name_offset(reading.tokens, chain, count)
        return ExpressionError(f"`{path}` has no key {key!r}", source=source, offset=offset, hint=hint)
    hint = "if it may be missing, ask `has(…)` first"
    return ExpressionError(
        f"there is no key {key!r}", source=source, offset=_only(reading.tokens, ".", key), hint=hint
    )


def _no_member(source: str, reading: Reading, context: Any) -> ExpressionError:
    for chain in reading.chains:
        count, value = broken_at(chain, context)
        if count < len(chain.names) and not isinstance(value, Mapping):
            path = ".".join(("context", *chain.names[:count]))
            said = f"`{path}` is {describe(value)}, so it has no `{chain.names[count]}`"
            return ExpressionError(said, source=source, offset=_name_offset(reading.tokens, chain, count))
    return ExpressionError("`.name` is used on something that is not a mapping", source=source)


def _no_overload(
    source: str, found: re.Match[str], reading: Reading, offset: int | None, context: Any = None
) -> ExpressionError:
    """An operator or function that does not go with its operands; the text among them is named as the culprit."""
    name = found[2].strip("_").removeprefix("@")
    kinds = [_kind(part) for part in re.split(r",\s*(?![^(]*\))", found[3] or found[4] or "") if part]
    if found["receiver"]:
        kinds = [_kind(found["receiver"]), *kinds]
    if name in ("&&", "||", "?_:", "?_:_", "!", "<jump_condition>"):
        shown = "?" if name.startswith(("?", "<")) else name
        said = f"what stands {'before' if shown == '?' else 'at'} `{shown}` is not true or false"
        hint = "compare it: `… != null`, `… > 0`, `… != ''`"
        return ExpressionError(said, source=source, offset=_or_only(offset, reading.tokens, shown), hint=hint)
    if name == "<iter_range>":
        hint = "`all`, `exists`, `filter` and `map` go through a list or a mapping"
        at = _only_macro(reading.tokens)
        return ExpressionError("there is nothing to go through", source=source, offset=at, hint=hint)
    if name == "in" and not kinds:
        return ExpressionError(
            "`in` needs a list or a mapping on its right",
            source=source,
            offset=_or_only(offset, reading.tokens, "in"),
            hint="in a text, look with `text.contains(part)`",
        )
    at = _or_only(offset, reading.tokens, name)
    said = f"`{name}` does not apply" + (f" to {' and '.join(kinds)}" if kinds else "")
    path = _culprit(reading, at, context) if "text" in kinds else ""
    return ExpressionError(said, source=source, offset=at, hint=_overload_hint(kinds), path=path)


def _overload_hint(kinds: Sequence[str]) -> str:
    if "null" in kinds:
        return "null goes with `==` and `!=` only: ask `context.x != null && …` first"
    if "text" in kinds and "a time" in kinds:
        return "write `timestamp(…)` around the text"
    if "text" in kinds and "a duration" in kinds:
        return "write `duration(…)` around the text"
    if "text" in kinds and {"a whole number", "a decimal number"} & set(kinds):
        return "keep the type of the value, or write `double(…)` around the text"
    if {"a whole number", "a decimal number"} <= set(kinds):
        return "write `double(…)` around the whole number, or `1.0` for `1`"
    return ""


def _culprit(reading: Reading, at: int | None, context: Any) -> str:
    """The path of the text beside an operator."""
    where = next((n for n, token in enumerate(reading.tokens) if token.offset == at), None)
    if where is None or context is None:
        return ""
    for chain in reading.chains:
        count, value = broken_at(chain, context)
        beside = chain.last == where - 1 or chain.first == where + 1
        if beside and count == len(chain.names) and isinstance(value, str):
            return chain.path
    return ""


def _kind(name: str) -> str:
    plain = name.strip().lower() if name.isupper() or "<" in name else name.strip()
    plain = re.split(r"[<(]", plain)[0]
    return _KINDS.get(plain, plain)


def _name_offset(tokens: Sequence[Token], chain: Chain, count: int) -> int:
    """Where the name number `count` of a chain stands."""
    at = chain.first
    for _ in range(count):
        at += 3 if text_at(tokens, at + 1) == "[" else 2
    step = 2
    return tokens[min(at + step, chain.last)].offset if chain.names else chain.offset


def _or_only(offset: int | None, tokens: Sequence[Token], text: str) -> int | None:
    return offset if offset is not None else _only(tokens, text)


def _only(tokens: Sequence[Token], *texts: str) -> int | None:
    """Where these tokens stand in a row, if they do so once: the offset of the last."""
    found = [
        tokens[n + len(texts) - 1].offset
        for n in range(len(tokens) - len(texts) + 1)
        if all(tokens[n + i].text == text for i, text in enumerate(texts))
    ]
    return found[0] if len(found) == 1 else None


def _only_macro(tokens: Sequence[Token]) -> int | None:
    found = [t.offset for n, t in enumerate(tokens) if t.text in MACROS and text_at(tokens, n + 1) == "("]
    return found[0] if len(found) == 1 else None
