"""What a PostgreSQL URL says: which database, which schema of it, and how its connections are set up.

    postgresql://user@host/database?schema=flat&timeout=10&synchronous_commit=off

Everything else after the question mark is libpq's (`sslmode`, `target_session_attrs`, …). A secret is named and
not written: `postgresql://flat:${env:PGPASSWORD}@host/db`. It is looked up whenever a connection is opened, and
never shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from flat.errors import BackendError, BadStoreURL

SCHEMA = "flat"
TIMEOUT = 30.0
"""Seconds that a call may take, with all new connections and repetitions."""
SCHEMES = ("postgresql", "postgres")
LEVELS = ("on", "off", "local", "remote_write", "remote_apply")
EXAMPLE = "postgresql://user@host/database?schema=flat"
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_ENCODED = re.compile(r"%24%7Benv%3A([A-Za-z_][A-Za-z0-9_]*)%7D")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """A URL, taken apart."""

    url: str = field(repr=False)
    """What libpq gets, with references in place of secrets."""
    place: str
    """The database without user and password, for messages."""
    schema: str = SCHEMA
    timeout: float = TIMEOUT
    settings: Mapping[str, str] = field(default_factory=dict)
    """Of the server, for each connection."""
    options: str = ""
    """libpq's option of this name, to which ours are added."""

    def __str__(self) -> str:
        return f"{self.place}?schema={quote(self.schema)}"

    def conninfo(self) -> str:
        """The URL for libpq, secrets included. Raises `BackendError` when one is not there."""
        return _ENCODED.sub(_secret, self.url)

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises `BadStoreURL`."""
        try:
            # Inside of a reference a colon or an at sign separates nothing.
            parts = urlsplit(_ENV.sub(lambda found: f"%24%7Benv%3A{found[1]}%7D", url))
        except ValueError as error:
            raise BadStoreURL(f"that is no PostgreSQL URL ({error}); write {EXAMPLE}") from error
        if parts.scheme not in SCHEMES or not url.startswith(f"{parts.scheme}://"):
            raise BadStoreURL(f'a PostgreSQL URL begins with "postgresql://"; write {EXAMPLE}')
        if parts.fragment:
            raise BadStoreURL('a PostgreSQL URL has no part after "#"; write %23 for that character')
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        schema = _schema(options.pop("schema", SCHEMA))
        timeout = _seconds(options.pop("timeout", str(TIMEOUT)))
        settings = _settings(options)
        more = options.pop("options", "")
        where = parts.netloc.rpartition("@")[2]
        # Not geturl(), which leaves out the slashes before an empty host.
        plain = f"postgresql://{parts.netloc}{parts.path}{'?' if options else ''}{urlencode(options)}"
        return cls(
            url=plain, place=f"postgresql://{where}{unquote(parts.path)}", schema=schema, timeout=timeout,
            settings=settings, options=more,
        )  # fmt: skip


def _schema(name: str) -> str:
    if not name or "\0" in name or len(name.encode(errors="replace")) > 63:
        raise BadStoreURL("the schema of a PostgreSQL store is a name of 1 to 63 bytes")
    if name.startswith("pg_"):
        raise BadStoreURL(
            f'the schema "{name}" is PostgreSQL\'s own; choose one that does not begin with pg_'
        )
    return name


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds < 1e9:
        raise BadStoreURL(f'the option timeout of a PostgreSQL store is a number of seconds, not "{text}"')
    return seconds


def _settings(options: dict[str, str]) -> dict[str, str]:
    level = options.pop("synchronous_commit", None)
    if level is None:
        return {}
    if level not in LEVELS:
        raise BadStoreURL(f'synchronous_commit is one of {", ".join(LEVELS)}, not "{level}"')
    return {"synchronous_commit": level}


def _secret(found: re.Match[str]) -> str:
    if (value := os.environ.get(found[1])) is None:
        raise BackendError(
            f"the address of the store refers to the environment variable {found[1]}, which is not set"
        )
    return quote(value, safe="")
