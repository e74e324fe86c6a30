"""Values to JSON data and back: an allow-list of types, and nothing else is ever stored.

JSON's own types are stored as they are. Other types are stored under a name, `{"$": [name, data]}`,
when they were registered with `Types`; everything else is refused with its path, at the write. A user's
mapping with a key that begins with `$` is escaped. NaN and infinities are refused. Long texts are taken out
into content-addressed blobs (`{"$": ["blob", digest]}`), so that the same document is stored once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

from flat.core.events import Reply, Spent
from flat.core.failure import Failure
from flat.errors import IncompatibleSnapshot, NotStorable

BLOB_SIZE = 16_384
"""Texts from this many characters on are stored as blobs."""
INT_LIMIT = 2**63
DEPTH = 240
"""Levels that a value may nest: what writes JSON takes 254, and a snapshot is wrapped around the value."""

Blobs: TypeAlias = dict[str, bytes] | None
Encoder = Callable[[Any], Any]
Decoder = Callable[[Any], Any]


@dataclass
class Types:
    """The types that may be stored besides JSON's own, by name. An allow-list: data never names a class."""

    by_type: dict[type, tuple[str, Encoder]] = field(default_factory=dict)
    by_name: dict[str, Decoder] = field(default_factory=dict)

    def register(self, cls: type, name: str, encode: Encoder, decode: Decoder) -> None:
        """Allow instances of exactly `cls`. `encode` gives JSON data (or registered types) and `decode` undoes it."""
        self.by_type[cls] = (name, encode)
        self.by_name[name] = decode

    def copy(self) -> Types:
        return Types(dict(self.by_type), dict(self.by_name))


def core_types() -> Types:
    types = Types()
    types.register(tuple, "tuple", list, tuple)
    types.register(set, "set", _sorted, set)
    types.register(frozenset, "frozenset", _sorted, frozenset)
    types.register(bytes, "bytes", bytes.hex, bytes.fromhex)
    for cls in (Failure, Spent, Reply):
        types.register(cls, cls.__name__, _changed_fields, lambda data, cls=cls: cls(**data))  # type: ignore[misc]
    return types


def _sorted(values: Any) -> list[Any]:
    return sorted(values, key=lambda v: (type(v).__name__, repr(v)))


def _changed_fields(record: Any) -> dict[str, Any]:
    """The fields of a dataclass that differ from their defaults."""
    return {f.name: value for f in fields(record) if (value := getattr(record, f.name)) != f.default}


@dataclass(frozen=True, slots=True)
class Opaque:
    """A stored value of a type that is not registered here: shown, and written back, as it is stored."""

    name: str
    data: Any


class ValueCodec:
    """Writes and reads values with a set of allowed types. `blobs` collects what the caller has to store.

    An `opaque` codec reads types that it does not know as `Opaque`, for those who look and do not drive.
    """

    def __init__(self, types: Types | None = None, *, opaque: bool = False) -> None:
        self.types = types or CORE_TYPES
        self.opaque = opaque

    # -- values -------------------------------------------------------------------

    def plain(self, value: Any, path: str, blobs: Blobs) -> Any:
        """The value as JSON data. Raises `NotStorable` naming the path of what cannot be stored."""
        try:
            return self._plain(value, blobs, 0)
        except _Refused as refused:
            raise NotStorable(path + "".join(reversed(refused.path)), refused.type, refused.hint) from None

    def member(self, value: Any, of: str, key: Any, blobs: Blobs) -> Any:
        """As `plain`, for the path `of.key`, which is made only when it has to be told."""
        try:
            return self._plain(value, blobs, 0)
        except _Refused as refused:
            path = f"{of}.{key}" + "".join(reversed(refused.path))
            raise NotStorable(path, refused.type, refused.hint) from None

    def _plain(self, value: Any, blobs: Blobs, depth: int) -> Any:
        cls = type(value)
        if (leaf := _LEAVES.get(cls)) is not None:
            return leaf(value, blobs)
        if depth > DEPTH:
            raise _Refused(cls.__name__, "it is nested too deeply, or contains itself")
        if cls is dict or cls.__base__ is dict:
            return self._mapping(value, blobs, depth + 1)
        if cls is list or cls.__base__ is list:
            return self._list(value, blobs, depth + 1)
        if (known := self.types.by_type.get(cls)) is not None:
            name, encode = known
            return {"$": [name, self._plain(encode(value), blobs, depth + 3)]}
        if cls is Opaque:
            return {"$": [value.name, value.data]}
        if isinstance(value, Mapping):
            return self._mapping(value, blobs, depth + 1)
        raise _Refused(f"{cls.__module__}.{cls.__qualname__}", "store plain data, or register the type")

    def _list(self, value: list[Any], blobs: Blobs, depth: int) -> list[Any]:
        result: list[Any] = []
        try:
            for item in value:
                result.append(self._plain(item, blobs, depth))
        except _Refused as refused:
            refused.path.append(f"[{len(result)}]")
            raise
        return result

    def _mapping(self, value: Mapping[Any, Any], blobs: Blobs, depth: int) -> dict[str, Any]:
        result, key = {}, ""
        try:
            for key, item in value.items():
                if type(key) is not str or not (key.isascii() or is_utf8(key)):
                    raise _Refused(type(key).__name__, "keys of stored mappings are text", f" key {key!r}")
                result["$" + key if key.startswith("$") else key] = self._plain(item, blobs, depth)
        except _Refused as refused:
            refused.path.append(refused.where or f".{key}")
            refused.where = ""
            raise
        return result

    def value(self, data: Any, blobs: Mapping[str, bytes]) -> Any:
        """JSON data back to the value."""
        if type(data) is dict:
            tagged = data.get("$")
            if tagged is not None and len(data) == 1:
                return self._tagged(tagged, blobs)
            return {unescaped(k): self.value(v, blobs) for k, v in data.items()}
        if type(data) is list:
            return [self.value(v, blobs) for v in data]
        return data

    def _tagged(self, tagged: Any, blobs: Mapping[str, bytes]) -> Any:
        if type(tagged) is not list or len(tagged) != 2:
            raise IncompatibleSnapshot(f"a stored body is damaged: it holds the tag {tagged!r}")
        name, data = tagged
        if name == "blob":
            try:
                return blobs[data].decode("utf-8", "surrogatepass")
            except KeyError:
                raise IncompatibleSnapshot(f"the blob {data} is missing from the store") from None
        decode = _OWN.get(name) or self.types.by_name.get(name)
        if decode is None and self.opaque:
            return Opaque(name, data)
        if decode is None:
            known = ", ".join(sorted(self.types.by_name))
            raise IncompatibleSnapshot(
                f'stored data holds a "{name}", a type that is not registered here; known: {known}'
            )
        inner = self.value(data, blobs)
        try:
            return decode(inner)
        except Exception as error:
            raise IncompatibleSnapshot(f'a stored "{name}" cannot be read any more: {error}') from error


def unescaped(key: str) -> str:
    return key[1:] if key.startswith("$") else key


def digest_of(data: bytes) -> str:
    """The name of a blob or a config: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


class _Refused(Exception):
    """A value that cannot be stored. The path is put together on the way out, so that storing never pays for it."""

    def __init__(self, type: str, hint: str, where: str = "") -> None:
        self.type, self.hint, self.where = type, hint, where
        self.path: list[str] = []


def _same(value: Any, blobs: Blobs) -> Any:
    return value


def _text(value: str, blobs: Blobs) -> Any:
    if blobs is not None and len(value) >= BLOB_SIZE:
        data = value.encode("utf-8", "surrogatepass")
        name = digest_of(data)
        blobs[name] = data
        return {"$": ["blob", name]}
    if not value.isascii() and not is_utf8(value):
        return {"$": ["text", value.encode("utf-8", "surrogatepass").hex()]}
    return value


def is_utf8(value: str) -> bool:
    """False for text with lone surrogates, which models do produce and JSON cannot hold."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _integer(value: int, blobs: Blobs) -> Any:
    return value if -INT_LIMIT <= value < INT_LIMIT else {"$": ["int", str(value)]}


def _number(value: float, blobs: Blobs) -> Any:
    if math.isfinite(value):
        return value
    raise _Refused(repr(value), "JSON has no such number; use null or text")


_LEAVES: dict[type, Callable[[Any, Blobs], Any]] = {
    str: _text,
    int: _integer,
    float: _number,
    bool: _same,
    type(None): _same,
}
SCALARS: frozenset[type] = frozenset(_LEAVES)
"""Types whose values have nothing inside."""
_OWN: dict[str, Decoder] = {
    "int": int,
    "text": lambda data: bytes.fromhex(data).decode("utf-8", "surrogatepass"),
}
CORE_TYPES = core_types()
