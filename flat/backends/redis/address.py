"""Where a Redis server is, as a URL says it, and what the server's errors mean to people."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from flat.errors import BackendError, BadStoreURL

PATIENCE = 5.0
"""Seconds that a call may take, with all new connections and repetitions, unless the URL says otherwise."""
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")
BUSY = ("LOADING ", "BUSY ", "TRYAGAIN ", "MASTERDOWN ", "ERR max number of clients reached")
"""How errors begin that are over soon: the server reads its data, runs a long script, has no primary, is full."""
_EXAMPLE = "redis://localhost:6379/0?prefix=flat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a server is, and which keys are ours. Prints without its password."""

    host: str = "localhost"
    port: int = 6379
    db: int = 0
    prefix: str = "flat"
    tls: bool = False
    username: str = ""
    password: str = ""
    """As written: a reference `${env:NAME}` is looked up whenever a connection is opened."""
    timeout: float = PATIENCE
    fsync: bool = False
    replicas: int = 0

    def __repr__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'rediss' if self.tls else 'redis'}://{host}:{self.port}/{self.db}?prefix={self.prefix}"

    __str__ = __repr__


def parse_url(url: str) -> Address:
    """The address in a URL such as `rediss://:${env:REDIS_PASSWORD}@host:6380/0?prefix=app`. Raises `BadStoreURL`."""
    try:
        # Inside of a reference a colon or an at sign separates nothing.
        parts = urlsplit(_ENV.sub(lambda found: f"%24%7Benv%3A{found[1]}%7D", url))
        port = parts.port or 6379
    except ValueError as error:
        raise BadStoreURL(f"the address of the Redis server is wrong ({error}); write {_EXAMPLE}") from error
    if not parts.hostname:
        raise BadStoreURL(f"the address names no host; write {_EXAMPLE}")
    db = parts.path.strip("/") or "0"
    if not db.isascii() or not db.isdigit():
        raise BadStoreURL(f'a Redis database is a number, not "{unquote(db)}"; write {_EXAMPLE}')
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = options.pop("prefix", "flat")
    if not _PREFIX.fullmatch(prefix):
        raise BadStoreURL(f'a prefix is made of letters, digits, ".", "_" and "-", not "{prefix}"')
    address = Address(
        host=parts.hostname, port=port, db=int(db), prefix=prefix, tls=parts.scheme == "rediss",
        username=unquote(parts.username or ""), password=unquote(parts.password or ""),
        timeout=_number("timeout", options.pop("timeout", str(PATIENCE)), 0.001),
        fsync=_yes_or_no("fsync", options.pop("fsync", "false")),
        replicas=int(_number("replicas", options.pop("replicas", "0"), 0)),
    )  # fmt: skip
    if options:
        raise BadStoreURL(
            f"a redis store has no option {', '.join(options)}; it has prefix, timeout, fsync and replicas"
        )
    return address


def _number(name: str, text: str, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value < 1e9:
        raise BadStoreURL(f'the option {name} of a redis store is a number from {least:g} on, not "{text}"')
    return value


def _yes_or_no(name: str, text: str) -> bool:
    if text not in ("true", "false"):
        raise BadStoreURL(f'the option {name} of a redis store is true or false, not "{text}"')
    return text == "true"


def resolved(text: str) -> str:
    def value(found: re.Match[str]) -> str:
        if (known := os.environ.get(found[1])) is None:
            raise BackendError(
                f"the address of the store refers to the environment variable {found[1]}, which is not set"
            )
        return known

    return _ENV.sub(value, text)


def is_busy(error: Exception) -> bool:
    """Whether the server refuses now what it may do in a moment: it did nothing, and can be asked again."""
    return str(error).startswith(BUSY)


def explain(error: Exception, address: Address, doing: str) -> BackendError:
    """Say what an error of the server means, and what to do about it."""
    said = str(error)
    match said.partition(" ")[0]:
        case "OOM":
            text = "has no memory left (maxmemory); give it more, or delete finished executions"
        case "MISCONF":
            text = "cannot write its data to disk and so takes none; see its log, and free the disk"
        case "READONLY":
            text = "is a replica, which cannot be written; name the primary"
        case "NOREPLICAS":
            text = "has fewer replicas than it was told to have (min-replicas-to-write)"
        case "WRONGPASS" | "NOAUTH":
            text = "refuses the user or the password; check both in the store's address"
        case "LOADING" | "BUSY" | "TRYAGAIN" | "MASTERDOWN":
            text = f"was busy for {address.timeout:g} s; try again"
        case "NOPERM":
            text = "does not allow its user to do this; see its access control list (ACL)"
        case "MOVED" | "CROSSSLOT" | "ASK" | "CLUSTERDOWN":
            text = "is part of a cluster, which flat does not support; use a server that stands alone"
        case "WRONGTYPE":
            text = f"has keys of another program under our prefix; choose another than {address.prefix}"
        case _ if "WAITAOF" in said and "unknown command" in said:
            text = "cannot be waited for with fsync=true: that needs Valkey, or Redis 7.2"
        case _ if "HELLO" in said or "NOPROTO" in said:
            text = "is too old; flat needs Redis 6.2 or Valkey"
        case _:
            text = "failed"
    return BackendError(f"the Redis server at {address} {text} [while {doing}: {said}]")
