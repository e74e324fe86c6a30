"""What to say when a condition does not parse: the mistakes people make, and what to write instead.

Looked up only on failure, with the offset where parsing stopped. Each row of the table is a pattern that may
stand at that offset (or, for calls, end there), what is wrong, and the advice.
"""

from __future__ import annotations

import re

from flat.errors import ExpressionError

_AT: tuple[tuple[str, str, str], ...] = (
    (
        r"\{\{|\}\}|\{%|%\}",
        "a condition is not a template",
        "write the path without braces: `context.x == 1`",
    ),
    (r"&&?", "`{0}` is not an operator here", "write `and`"),
    (r"\|\|", "`||` is not an operator here", "write `or`"),
    (
        r"\|\s*(\w+)",
        "conditions have no filters",
        "compute the value in a template and store it in the context",
    ),
    (r"\|", "`|` is not an operator here", "write `or`"),
    (r"!(?!=)", "`!` is not an operator here", "write `not`"),
    (r"<>", "`<>` is not an operator here", "write `!=`"),
    (r"=(?!=)", "`=` does not compare", "write `==`"),
    (r"is\s+not\s+([nN]one|null)\b", "`is` is not an operator here", "write `!= null`"),
    (r"is\s+([nN]one|null)\b", "`is` is not an operator here", "write `== null`"),
    (r"is\s+not\s+defined\b", "`is` is not an operator here", "a missing key is null: write `== null`"),
    (r"is\s+defined\b", "`is` is not an operator here", "a missing key is null: write `!= null`"),
    (r"is\s+not\b", "`is` is not an operator here", "write `!=`"),
    (r"is\b", "`is` is not an operator here", "write `==`"),
    (r"if\b|\?", "conditions have no `if … else`", "use two transitions, each with its own condition"),
    (r"lambda\b", "conditions have no functions", "compute the value in an action or a template"),
    (r"/", "`//` is not an operator here", "use `/`, or compute the value in a template"),
    (r"\*", "`**` is not an operator here", "multiply, or compute the value in a template"),
    (r"\+", "a number needs no `+` sign", "leave it out"),
    (r"['\"]", "the text is not closed", "end it with the quote it begins with"),
    (r"AND\b|OR\b|NOT\b", "operators are written in small letters", "write `and`, `or`, `not`"),
    (r"[,)\]]", "`{0}` does not belong here", ""),
    (r":", "slices are not available in conditions", "compute the value in a template"),
    (r"[A-Za-z_]\w*", "`{0}` does not belong here", "is an operator, or a quote around a text, missing?"),
    (r"[0-9.]+", "`{0}` does not belong here", "is an operator missing?"),
)
_PATTERNS = tuple((re.compile(pattern), message, hint) for pattern, message, hint in _AT)

_CALL_ADVICE = {
    "len": "compute the length in a template (`{{ context.x | length }}`) and store it in the context",
    "length": "compute the length in a template (`{{ context.x | length }}`) and store it in the context",
    "size": "compute the length in a template (`{{ context.x | length }}`) and store it in the context",
    "get": "a missing key is null already: write `context.x`",
    "contains": "write `part in whole`",
    "includes": "write `part in whole`",
    "has": "a missing key is null: write `context.x != null`",
    "defined": "a missing key is null: write `context.x != null`",
    "int": "numbers are compared as they are; a bare path such as `input.n` keeps them numbers",
    "str": "quote the other side instead: `context.x == '5'`",
}


def advise(source: str, offset: int) -> ExpressionError:
    """The error for a condition that cannot be read on from `offset`."""
    rest = source[offset:]
    if not rest.strip():
        return ExpressionError("the condition ends too early", source=source, offset=len(source.rstrip()))
    if rest[0] in "'\"" and (prefix := re.search(r"\b[fFrRbBuU]{1,2}$", source[:offset])):
        message = f"`{prefix.group()}` before a text means nothing here"
        return ExpressionError(message, source=source, offset=prefix.start(), hint="leave it out")
    if rest[0] == "(":
        return _call(source, offset)
    if rest[0] == ">" and source[offset - 1 : offset] == "<":
        rest, offset = source[offset - 1 :], offset - 1
    if rest[0] == "=" and source[max(0, offset - 2) : offset] in ("==", "!="):
        wrong, right = source[offset - 2 : offset + 1], source[offset - 2 : offset]
        return ExpressionError(
            f"`{wrong}` is not an operator here", source=source, offset=offset - 2, hint=f"write `{right}`"
        )
    for pattern, message, hint in _PATTERNS:
        if found := pattern.match(rest):
            shown = _shortened(found.group())
            return ExpressionError(message.format(shown), source=source, offset=offset, hint=hint)
    return ExpressionError(f"`{rest[0]}` does not belong in a condition", source=source, offset=offset)


def _shortened(shown: str) -> str:
    return shown if len(shown) <= 40 else shown[:40] + "…"


def _call(source: str, offset: int) -> ExpressionError:
    named = re.search(r"([A-Za-z_]\w*)\s*$", source[:offset])
    name = named.group(1) if named else ""
    hint = _CALL_ADVICE.get(name, "compute the value in an action or a template and store it in the context")
    at = named.start() if named else offset
    called = f": `{name}(…)`" if name else ""
    return ExpressionError(f"conditions cannot call anything{called}", source=source, offset=at, hint=hint)
