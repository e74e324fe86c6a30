"""Names and values on their way into PostgreSQL.

PostgreSQL's text has no NUL and its indexes have no room for long keys, and ids may be any text. So a NUL is written
as `\\0` and a backslash as two, and what is looked up is not the text but its `key`. Parameters and rows are escaped
by the connection (`postgres.link`); what stands inside of a JSON document is escaped where that is made.
"""

from __future__ import annotations

import hashlib
import re

from flat.errors import NotStorable

_ESCAPED = re.compile(r"\\(.)")


class Document(bytes):
    """JSON that is handed on as it is, as a parameter of type `jsonb`."""


def escape(text: str) -> str:
    """Text as PostgreSQL can hold it."""
    if "\0" in text or "\\" in text:
        return text.replace("\\", "\\\\").replace("\0", "\\0")
    return text


def unescape(text: str) -> str:
    if "\\" in text:
        return _ESCAPED.sub(lambda found: "\0" if found[1] == "0" else found[1], text)
    return text


def utf8(text: str) -> bytes:
    """Raises `NotStorable`."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise NotStorable("name", "text with half a character") from error


def key(text: str) -> bytes:
    """What a name is looked up by: its own bytes when they are few, else their SHA-256, which is never as short."""
    raw = utf8(text)
    return raw if len(raw) < 32 else hashlib.sha256(raw).digest()


def maybe_key(text: str | None) -> bytes | None:
    return None if text is None else key(text)
