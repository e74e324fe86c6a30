"""What happened to a tree, as records: every change of a tree is one of these, in the history and on the wire.

They are plain data. A node in them is a ref or an inline definition (`flat.tree.refs`), never a live object,
so that replaying the records from the first tree gives the last one. Names are `snake_case` here and `camelCase`
on the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from flat.core.op import UNSET
from flat.errors import TreeError, did_you_mean

NodeData: TypeAlias = Mapping[str, Any]
"""`{"ref": name}`, or an inline node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePatch:
    """Top-level keys of an instance's state that were set and dropped; `value` where the state is no object."""

    kind: ClassVar[str] = "state"
    instance_id: str
    patch: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    value: Any = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPatch:
    """The same for a pack's state; `owner_id` is the instance that holds it, or None for the root."""

    kind: ClassVar[str] = "packState"
    pack_name: str
    patch: Mapping[str, Any]
    drop: tuple[str, ...] = ()
    owner_id: str | None = None
    value: Any = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Transitioned:
    """An instance has another node and state now. Its children are gone; its id stays."""

    kind: ClassVar[str] = "transition"
    instance_id: str
    node: NodeData
    state: Any = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class NewChild:
    """One instance that a spawn adds."""

    node: NodeData
    state: Any = UNSET
    id: str = ""
    brief: str | None = None
    background: bool = False
    launch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawned:
    """An instance has more children now."""

    kind: ClassVar[str] = "spawn"
    parent_instance_id: str
    children: tuple[NewChild, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceded:
    """An instance and all below it are gone; its parent gets the content."""

    kind: ClassVar[str] = "cede"
    instance_id: str
    content: Any = None
    """None, text, or a list of messages as wire data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SuspendInfo:
    """Why and since when an instance waits. `suspended_at` is ISO 8601 text in UTC, empty until it is recorded."""

    suspend_id: str
    reason: str
    suspended_at: str = ""
    metadata: Mapping[str, Any] | None = None
    channel: str | None = None
    """A signal channel other than the usual one."""
    timeout: float | None = None
    on_timeout: str = "keep"
    execution_id: str | None = None
    """The execution that it waits for, which waits itself: the instance has called that machine, and only what comes
    of it resumes the instance. What is below the instance goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """An instance waits, and all below it."""

    kind: ClassVar[str] = "suspend"
    instance_id: str
    suspend_info: SuspendInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed:
    """An instance waits no more; a payload becomes a user message to it."""

    kind: ClassVar[str] = "resume"
    instance_id: str
    suspend_id: str = ""
    payload: Any = UNSET


Change: TypeAlias = StatePatch | PackPatch | Transitioned | Spawned | Ceded | Suspended | Resumed

_KINDS: dict[str, type[Any]] = {
    cls.kind: cls for cls in (StatePatch, PackPatch, Transitioned, Spawned, Ceded, Suspended, Resumed)
}
_WIRE = {
    "instance_id": "instanceId",
    "pack_name": "packName",
    "owner_id": "ownerId",
    "parent_instance_id": "parentInstanceId",
    "suspend_info": "suspendInfo",
    "suspend_id": "suspendId",
    "suspended_at": "suspendedAt",
    "on_timeout": "onTimeout",
    "execution_id": "executionId",
}
_FIELDS = {wire: name for name, wire in _WIRE.items()}
_ALWAYS = frozenset({"patch", "children", "reason", "suspend_id"})


def change_data(change: Change) -> dict[str, Any]:
    """The record as wire data. What has its default is left out."""
    return {"kind": change.kind, **record_data(change)}


def record_data(record: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, spec in type(record).__dataclass_fields__.items():
        value = getattr(record, name, UNSET)
        if spec._field_type.name == "_FIELD_CLASSVAR" or value is UNSET:
            continue
        if value != spec.default or name in _ALWAYS:
            data[_WIRE.get(name, name)] = _plain(value)
    return data


def _plain(value: Any) -> Any:
    if hasattr(type(value), "__dataclass_fields__"):
        return record_data(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def change_from_data(data: Mapping[str, Any]) -> Change:
    """Undo `change_data`. Raises `TreeError` when the data is no change."""
    kind = data.get("kind")
    cls = _KINDS.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise TreeError("bad_effect", f"no effect of kind {kind!r}; {did_you_mean(str(kind), _KINDS)}")
    fields = {key: value for key, value in data.items() if key != "kind"}
    if cls is Spawned:
        fields["children"] = tuple(_record(NewChild, child) for child in _list(fields.get("children")))
    if cls is Suspended and isinstance(fields.get("suspendInfo"), Mapping):
        fields["suspendInfo"] = suspend_info_from_data(fields["suspendInfo"])
    change: Change = _record(cls, fields)
    return change


def suspend_info_from_data(data: Mapping[str, Any]) -> SuspendInfo:
    """Undo `record_data` of a `SuspendInfo`."""
    info: SuspendInfo = _record(SuspendInfo, data)
    return info


def _record(cls: type[Any], data: Mapping[str, Any]) -> Any:
    fields = {_FIELDS.get(key, key): value for key, value in data.items()}
    if isinstance(fields.get("drop"), list):
        fields["drop"] = tuple(fields["drop"])
    try:
        return cls(**fields)
    except TypeError as error:
        raise TreeError("bad_effect", f"not a {cls.__name__}: {error} in {dict(data)!r}") from None


def _list(value: Any) -> Sequence[Mapping[str, Any]]:
    return value if isinstance(value, list | tuple) else ()
