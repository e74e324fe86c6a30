"""Values, snapshots and changes of snapshots to bytes and back. Versioned JSON; nothing else is ever stored.

Values. JSON's own types are stored as they are. Other types are stored under a name, `{"$": [name, data]}`,
when they were registered with `Types`; everything else is refused with its path, at the write. A user's
mapping with a key that begins with `$` is escaped. NaN and infinities are refused. Long texts are taken out
into content-addressed blobs (`{"$": ["blob", digest]}`), so that the same document is stored once.

Snapshots. A *base* is a whole snapshot. A *delta* holds only what differs from the snapshot before, found by
identity: what `advance` did not touch is the same object and costs nothing. A list that only grew is stored
as what was added (`+`), so history is written once and never again.

Keys are short because a delta is written per step. `s` steps, `t` milliseconds since the start, `S` status,
`i` other instances; of an instance: `n` node, `o` op, `v` visit, `c` context entries, `-` removed keys,
`+` appended items, `r` output, `l` local, `p` pending (left out for the usual single effect), `d` deadline.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import orjson

from flat.core.events import Reply, Spent
from flat.core.failure import Failure
from flat.core.grown import Grown
from flat.core.snapshot import ROOT, Instance, Snapshot
from flat.errors import IncompatibleSnapshot, NotStorable

FORMAT = 1
BLOB_SIZE = 16_384
"""Texts from this many characters on are stored as blobs."""
INT_LIMIT = 2**63
DEPTH = 200

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


def _core_types() -> Types:
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


class Codec:
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
                if type(key) is not str or not (key.isascii() or _is_utf8(key)):
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
            return {_unescaped(k): self.value(v, blobs) for k, v in data.items()}
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

    # -- snapshots ----------------------------------------------------------------

    def base(self, snapshot: Snapshot) -> tuple[bytes, dict[str, bytes]]:
        """A whole snapshot, and the blobs it refers to."""
        blobs: dict[str, bytes] = {}
        return self._base(snapshot, blobs), blobs

    def first(self, snapshot: Snapshot) -> bytes:
        """A whole snapshot that refers to nothing outside: what an execution is born with."""
        return self._base(snapshot, None)

    def _base(self, snapshot: Snapshot, blobs: Blobs) -> bytes:
        data = {
            "format": FORMAT,
            "id": snapshot.execution_id,
            "status": snapshot.status,
            "steps": snapshot.steps,
            "instances": {k: self._instance(i, blobs) for k, i in snapshot.instances.items()},
            "spent": self.plain(snapshot.spent, "spent", blobs),
            "max_steps": snapshot.max_steps,
            "max_agent_calls": snapshot.max_agent_calls,
            "started_at": snapshot.started_at,
            "at": snapshot.at,
            "output": self.plain(snapshot.output, "output", blobs),
            "failure": self.plain(snapshot.failure, "failure", blobs),
            "reason": self.plain(snapshot.reason, "reason", None),
            "parent": snapshot.parent,
            "depth": snapshot.depth,
            "log_length": snapshot.log_length,
        }
        return orjson.dumps(data)

    def _instance(self, i: Instance, blobs: Blobs) -> dict[str, Any]:
        return {
            "node": i.node,
            "op": i.op,
            "step": i.step,
            "context": self.plain(i.context, "context", blobs),
            "output": self.plain(i.output, "output", blobs),
            "local": self.plain(i.local, "local", blobs),
            "pending": list(i.pending),
            "deadline": i.deadline,
            "parent": i.parent,
            "children": list(i.children),
            "suspended": i.suspended,
        }

    def snapshot(self, body: bytes, blobs: Mapping[str, bytes]) -> Snapshot:
        """Read a base."""
        with _undamaged():
            return self._read_base(_load(body), blobs)

    def _read_base(self, data: dict[str, Any], blobs: Mapping[str, bytes]) -> Snapshot:
        if data.get("format") != FORMAT:
            raise IncompatibleSnapshot(
                f"checkpoint format {data.get('format')!r}, this release reads {FORMAT}"
            )
        instances = {
            k: Instance(
                k,
                i["node"],
                i["op"],
                i["step"],
                self.value(i["context"], blobs),
                self.value(i["output"], blobs),
                self.value(i["local"], blobs),
                tuple(i["pending"]),
                i["deadline"],
                i["parent"],
                tuple(i["children"]),
                i["suspended"],
            )
            for k, i in data["instances"].items()
        }
        return Snapshot(
            data["id"],
            data["status"],
            data["steps"],
            instances,
            self.value(data["spent"], blobs),
            data["max_steps"],
            data["max_agent_calls"],
            data["started_at"],
            data["at"],
            self.value(data["output"], blobs),
            self.value(data["failure"], blobs),
            self.value(data["reason"], blobs),
            data["parent"],
            data["depth"],
            data["log_length"],
        )

    # -- deltas -------------------------------------------------------------------

    def delta(self, old: Snapshot, new: Snapshot) -> tuple[bytes, dict[str, bytes]]:
        """What is different in `new`, and the blobs it refers to."""
        blobs: dict[str, bytes] = {}
        data: dict[str, Any] = {}
        if new.steps != old.steps:
            data["s"] = new.steps
        data["t"] = round((new.at - new.started_at) * 1000)
        if len(new.instances) == 1 and len(old.instances) == 1 and ROOT in old.instances:
            self._instance_delta(old.instances[ROOT], new.instances[ROOT], data, blobs)
        else:
            self._instances_delta(old, new, data, blobs)
        if new.spent is not old.spent:
            data["u"] = self.plain(new.spent, "spent", blobs)
        if new.status != old.status or new.status != "running":
            data["S"] = [new.status, self.plain(new.reason, "reason", None)]
            data["r!"] = self.plain(new.output, "output", blobs)
            data["f"] = self.plain(new.failure, "failure", blobs)
        if new.max_steps != old.max_steps or new.max_agent_calls != old.max_agent_calls:
            data["m"] = [new.max_steps, new.max_agent_calls]
        if new.log_length != old.log_length:
            data["L"] = new.log_length
        return orjson.dumps(data), blobs

    def _instances_delta(
        self, old: Snapshot, new: Snapshot, data: dict[str, Any], blobs: dict[str, bytes]
    ) -> None:
        changes: dict[str, Any] = {}
        for key, instance in new.instances.items():
            before = old.instances.get(key)
            if before is None:
                changes[key] = {"=": self._instance(instance, blobs)}
            elif before is not instance:
                self._instance_delta(before, instance, changes.setdefault(key, {}), blobs)
        changes.update((key, None) for key in old.instances.keys() - new.instances.keys())
        if changes:
            data["i"] = changes

    def _instance_delta(
        self, old: Instance, new: Instance, data: dict[str, Any], blobs: dict[str, bytes]
    ) -> None:
        if new.context is not old.context:
            self._context_delta(old.context, new.context, data, blobs)
        if new.node != old.node:
            data["n"] = new.node
        if new.op != old.op:
            data["o"] = new.op
        if new.step != data.get("s", old.step):
            data["v"] = new.step
        if new.output is not old.output:
            data["r"] = self.plain(new.output, "output", blobs)
        if new.local is not old.local:
            data["l"] = self.plain(new.local, "local", blobs)
        if new.pending != (usual_effect(new),):
            data["p"] = list(new.pending)
        if new.deadline != old.deadline:
            data["d"] = new.deadline
        if (new.parent, new.children, new.suspended) != (old.parent, old.children, old.suspended):
            data["k"] = [new.parent, list(new.children), new.suspended]

    def _context_delta(
        self, old: Mapping[str, Any], new: Mapping[str, Any], data: dict[str, Any], blobs: dict[str, bytes]
    ) -> None:
        changed: dict[str, Any] = {}
        appended: dict[str, Any] = {}
        for key, value in new.items():
            before = old.get(key, _MISSING)
            if before is value:
                continue
            if (
                isinstance(value, list)
                and isinstance(before, list)
                and (kept := kept_prefix(before, value)) is not None
            ):
                if kept < len(value):
                    appended[key] = self.plain(value[kept:], f"context.{key}", blobs)
            else:
                changed[key] = self.plain(value, f"context.{key}", blobs)
        if changed:
            data["c"] = self._keys(changed)
        if appended:
            data["+"] = self._keys(appended)
        if len(new) < len(old) + len(changed) and (gone := [k for k in old if k not in new]):
            data["-"] = gone

    @staticmethod
    def _keys(changes: dict[str, Any]) -> dict[str, Any]:
        escaped = False
        for key in changes:
            if type(key) is not str or not (key.isascii() or _is_utf8(key)):
                raise NotStorable(
                    f"context key {key!r}", type(key).__name__, "keys of stored mappings are text"
                )
            escaped = escaped or key.startswith("$")
        return {("$" + k if k.startswith("$") else k): v for k, v in changes.items()} if escaped else changes

    def applied(self, snapshot: Snapshot, body: bytes, blobs: Mapping[str, bytes]) -> Snapshot:
        """The snapshot with a delta applied."""
        with _undamaged():
            return self._applied(snapshot, _load(body), blobs)

    def _applied(self, snapshot: Snapshot, data: dict[str, Any], blobs: Mapping[str, bytes]) -> Snapshot:
        steps = data.get("s", snapshot.steps)
        instances = dict(snapshot.instances)
        if "i" in data:
            for key, change in data["i"].items():
                if change is None:
                    del instances[key]
                elif "=" in change:
                    whole = {"instances": {key: change["="]}}
                    instances[key] = _only(self.snapshot(orjson.dumps({**_EMPTY, **whole}), blobs))
                else:
                    instances[key] = self._instance_applied(instances[key], change, steps, blobs)
        elif ROOT in instances and len(instances) == 1:
            instances[ROOT] = self._instance_applied(instances[ROOT], data, data.get("s"), blobs)
        status, reason = self.value(data.get("S", ["running", ""]), blobs)
        max_steps, max_agent_calls = data.get("m", (snapshot.max_steps, snapshot.max_agent_calls))
        return Snapshot(
            snapshot.execution_id,
            status,
            steps,
            instances,
            self.value(data["u"], blobs) if "u" in data else snapshot.spent,
            max_steps,
            max_agent_calls,
            snapshot.started_at,
            snapshot.started_at + data["t"] / 1000,
            self.value(data["r!"], blobs) if "r!" in data else snapshot.output,
            self.value(data["f"], blobs) if "f" in data else snapshot.failure,
            reason,
            snapshot.parent,
            snapshot.depth,
            data.get("L", snapshot.log_length),
        )

    def _instance_applied(
        self, old: Instance, data: Mapping[str, Any], steps: int | None, blobs: Mapping[str, bytes]
    ) -> Instance:
        context = old.context
        if "c" in data or "+" in data or "-" in data:
            context = {k: v for k, v in old.context.items() if k not in data.get("-", ())}
            context.update((_unescaped(k), self.value(v, blobs)) for k, v in data.get("c", {}).items())
            for name, items in data.get("+", {}).items():
                key = _unescaped(name)
                context[key] = [*context[key], *self.value(items, blobs)]
        step = data.get("v", steps if steps is not None and "s" in data else old.step)
        parent, children, suspended = data.get("k", (old.parent, old.children, old.suspended))
        node, op = data.get("n", old.node), data.get("o", old.op)
        instance = Instance(
            old.id,
            node,
            op,
            step,
            context,
            self.value(data["r"], blobs) if "r" in data else old.output,
            self.value(data["l"], blobs) if "l" in data else old.local,
            (),
            data.get("d", old.deadline),
            parent,
            tuple(children),
            suspended,
        )
        pending = tuple(data["p"]) if "p" in data else (usual_effect(instance),)
        return _copy_pending(instance, pending)


def _copy_pending(i: Instance, pending: tuple[str, ...]) -> Instance:
    return Instance(
        i.id,
        i.node,
        i.op,
        i.step,
        i.context,
        i.output,
        i.local,
        pending,
        i.deadline,
        i.parent,
        i.children,
        i.suspended,
    )


def usual_effect(i: Instance) -> str:
    """The id of the one effect that most ops ask for."""
    return f"{i.id}/{i.step}/{i.op}"


def kept_prefix(old: Sequence[Any], new: list[Any]) -> int | None:
    """How many items of `new` are the items of `old`, all of them and in place; None if it is another list.

    A list that a draft grew says so itself; for others the items are compared by identity.
    """
    if type(new) is Grown and new.grew_from(old):
        return len(old)
    kept = len(old)
    if kept <= len(new) and all(map(operator.is_, old, new)):
        return kept
    return None


def _unescaped(key: str) -> str:
    return key[1:] if key.startswith("$") else key


def digest_of(data: bytes) -> str:
    """The name of a blob or a config: the first 32 hex digits of its SHA-256."""
    return hashlib.sha256(data).hexdigest()[:32]


@contextmanager
def _undamaged() -> Iterator[None]:
    """What a stored body lacks, or holds in a form that we never write, is damage."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise IncompatibleSnapshot(f"a stored body is damaged: {error!r}") from error


def _load(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise IncompatibleSnapshot(f"a stored body is damaged: {error}") from error
    if not isinstance(data, dict):
        raise IncompatibleSnapshot("a stored body is damaged: it is not a mapping")
    return data


def _only(snapshot: Snapshot) -> Instance:
    return next(iter(snapshot.instances.values()))


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
    if not value.isascii() and not _is_utf8(value):
        return {"$": ["text", value.encode("utf-8", "surrogatepass").hex()]}
    return value


def _is_utf8(value: str) -> bool:
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
_MISSING = object()
_OWN: dict[str, Decoder] = {
    "int": int,
    "text": lambda data: bytes.fromhex(data).decode("utf-8", "surrogatepass"),
}
_EMPTY: dict[str, Any] = {
    "format": FORMAT,
    "id": "",
    "status": "running",
    "steps": 0,
    "spent": {"$": ["Spent", {}]},
    "max_steps": None,
    "max_agent_calls": None,
    "started_at": 0,
    "at": 0,
    "output": None,
    "failure": None,
    "reason": "",
    "parent": None,
    "depth": 0,
    "log_length": 0,
}
CORE_TYPES = _core_types()
