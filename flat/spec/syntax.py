"""What is wrong with a text that the YAML parser refuses, in the author's terms."""

from __future__ import annotations

import re
from typing import Any

from flat.errors import Problem
from flat.spec.document import Document

_UNQUOTED = re.compile(
    r"(?P<lead>\s*(?:-\s+)*(?:[^\s#'\"{\[-][^#'\"{]*?:\s+)?)(?P<value>\{[{%].*?)\s*(?:\s#.*)?$"
)

_PAIR = re.compile(r"\s*(?:-\s+)*[^\s:#][^:#]*:\s+\S")
_WORD = re.compile(r"\s*(?:-\s+)*[\w-]+\s*")


def unquoted_template(document: Document, line: int) -> Problem | None:
    """The problem of a template without quotes on a line, if that is what the line has."""
    if not 0 <= line < len(document.lines):
        return None
    found = _UNQUOTED.match(document.lines[line])
    if not found:
        return None
    value = found["value"]
    doubled = value.replace("'", "''")
    quoted = f"'{doubled}'" if '"' in value else f'"{value}"'
    place = document.at(line, found.start("value"), len(value))
    return Problem(
        "quote", "a template needs quotes, because { opens a mapping in YAML", place, f"quote it: {quoted}"
    )


def explain(error: Exception, document: Document) -> Problem:
    """The one problem that a parser's error stands for."""
    context, said = str(getattr(error, "context", "") or ""), str(getattr(error, "problem", "") or "")
    opened = getattr(error, "context_mark", None)
    mark = getattr(error, "problem_mark", None) or opened
    if mark is None:
        return Problem("yaml", said or str(error).split("\n")[0], document.at(0, 0))
    for near in (opened, mark):
        if near is not None and (problem := unquoted_template(document, near.line)):
            return problem
    return _by_message(context, said, mark, opened, document)


def _by_message(context: str, said: str, mark: Any, opened: Any, document: Document) -> Problem:
    place = document.at(mark.line, mark.column)
    line = document.lines[mark.line] if mark.line < len(document.lines) else ""
    began = f"the block began on line {opened.line + 1}" if opened is not None else ""
    character = line[mark.column : mark.column + 1]
    if character == "\t" or "\\t" in said or " tab " in said:
        return Problem("yaml", "a tab cannot be used for indentation", place, "indent with spaces")
    if "quoted scalar" in context and opened is not None:
        start = document.at(opened.line, opened.column)
        if "escape" in said or "hexadecimal" in said or "Unicode" in said:
            hint = "write \\\\ for a backslash, or use single quotes"
            return Problem("yaml", "this escape is not known", place, hint)
        return Problem(
            "yaml", "this quote is never closed", start, "close it, or double a quote that is text"
        )
    if "mapping values are not allowed" in said:
        return _unexpected_colon(mark.line, mark.column, document)
    if "scanning an alias" in context or "scanning an anchor" in context:
        start = document.at(opened.line, opened.column) if opened is not None else place
        return Problem("alias", "text cannot begin with * or &", start, "quote it")
    if "expected ':'" in said and opened is not None:
        start = document.at(opened.line, opened.column)
        return Problem("yaml", "a colon is missing after this key", start, "write `key: value`")
    if "flow" in context:
        closing = "}" if "mapping" in context else "]"
        began = f"it was opened on line {opened.line + 1}" if opened is not None else ""
        return Problem("yaml", f"a comma or the closing {closing} is missing here", place, began)
    if "expected key" in said or "<block end>" in said or "'-' indicator" in said:
        return Problem("yaml", "this line does not fit the block that it is in", place, _misfit(began))
    if "cannot start any token" in said:
        return Problem("yaml", f"text cannot begin with {character}", place, "quote it")
    return Problem("yaml", said, place, began if "block" in context else "")


def _unexpected_colon(line: int, column: int, document: Document) -> Problem:
    """A colon where a value already stands: text with a colon in it, or a wrong line before."""
    text = document.lines[line]
    place = document.at(line, column)
    if _PAIR.match(text[:column]):
        return Problem("yaml", 'text that contains ": " needs quotes', place, "quote the whole value")
    above = next((n for n in range(line - 1, -1, -1) if document.lines[n].strip()), None)
    if above is not None and _WORD.fullmatch(document.lines[above]):
        before = document.lines[above]
        start = document.at(above, len(before) - len(before.lstrip()), len(before.strip()))
        return Problem("yaml", "a colon is missing after this key", start, f"write `{before.strip()}:`")
    hint = "keys of one mapping stand below each other; text of more lines needs quotes or |"
    return Problem("yaml", "this key does not line up with those before it", place, hint)


def _misfit(began: str) -> str:
    hint = "check its indentation, and the quotes of the line before"
    return f"{began}; {hint}" if began else hint
