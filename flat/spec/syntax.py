"""What is wrong with a text that the YAML parser refuses, in the author's terms."""

from __future__ import annotations

import re
from typing import Any

from flat.errors import Problem
from flat.spec.document import Document

_UNQUOTED = re.compile(
    r"(?P<lead>\s*(?:-\s+)*(?:[^\s#'\"{\[-][^#'\"{]*?:\s+)?)(?P<value>\{[{%].*?)\s*(?:\s#.*)?$"
)


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
        hint = 'quote text that contains ": ", and indent the keys of one mapping equally'
        return Problem("yaml", "a mapping cannot begin here", place, hint)
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


def _misfit(began: str) -> str:
    hint = "check its indentation, and the quotes of the line before"
    return f"{began}; {hint}" if began else hint
