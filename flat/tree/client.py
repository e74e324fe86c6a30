"""For user interfaces: trees as data, and data as objects that build command invocations. Nothing is run here.

This module needs nothing but the standard library, so that a client can use it without the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Invoke = Callable[..., dict[str, Any]]


def is_command(data: Any) -> bool:
    """Whether data is the invocation of a command."""
    return isinstance(data, Mapping) and data.get("type") == "command" and isinstance(data.get("name"), str)


def is_resume(data: Any) -> bool:
    """Whether data is a resume."""
    if not isinstance(data, Mapping) or data.get("type") != "resume":
        return False
    return isinstance(data.get("instanceId"), str) and isinstance(data.get("suspendId"), str)


def is_ref(data: Any) -> bool:
    """Whether data points into the charter."""
    return isinstance(data, Mapping) and isinstance(data.get("ref"), str)


# -- dry: live objects to data ----------------------------------------------------


def create_dry_client_node(node: Any) -> dict[str, Any]:
    """What a client may know of a node: its texts, the schemas, and what can be commanded."""
    dry: dict[str, Any] = {
        "instructions": node.instructions if isinstance(node.instructions, str) else "",
        "validator": _document(node.schema),
        "commands": _commands(node.commands),
    }
    if node.packs:
        dry["packs"] = [create_dry_client_pack(pack) for pack in node.packs]
    return dry


def create_dry_client_pack(pack: Any) -> dict[str, Any]:
    """What a client may know of a pack; its state is not among it."""
    return {
        "name": pack.name,
        "description": pack.description,
        "validator": _document(pack.schema),
        "commands": _commands(pack.commands),
    }


def create_dry_client_instance(instance: Any) -> dict[str, Any]:
    """What a client may know of one instance: no children, no suspension."""
    dry = {"id": instance.id, "state": instance.state, "node": create_dry_client_node(instance.node)}
    if instance.pack_states:
        dry["packStates"] = dict(instance.pack_states)
    return dry


def _document(schema: Any) -> dict[str, Any]:
    return {"$schema": DIALECT, **schema.json_schema()}


def _commands(commands: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"name": name, "description": c.description, "inputSchema": _document(c.schema)}
        for name, c in commands.items()
    }


# -- hydrated: data to callables --------------------------------------------------


def hydrate_client_node(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data with commands as callables: `input` gives the invocation."""
    hydrated = {**data, "commands": {name: _invoker(name) for name in data.get("commands", {})}}
    if "packs" in data:
        hydrated["packs"] = [hydrate_client_pack(pack) for pack in data["packs"]]
    return hydrated


def hydrate_client_pack(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data with commands as callables."""
    return {**data, "commands": {name: _invoker(name) for name in data.get("commands", {})}}


def hydrate_client_instance(data: Mapping[str, Any]) -> dict[str, Any]:
    """The same data with the commands of its node as callables."""
    return {**data, "node": hydrate_client_node(data["node"])}


def _invoker(name: str) -> Invoke:
    def invoke(input: Any = None, **fields: Any) -> dict[str, Any]:
        """The invocation of this command, as data to send."""
        value = {**(input or {}), **fields} if fields else {} if input is None else input
        return {"type": "command", "name": name, "input": value}

    invoke.__name__ = name
    return invoke


# -- contracts --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CommandHandle:
    """A command that a client counts on: of a node or pack by name, or of any."""

    name: str
    scope: str | None = None


class Commands(Mapping[str, Any]):
    """Handles by name or scope, also as attributes."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        self._entries = MappingProxyType(dict(entries))

    def __getitem__(self, key: str) -> Any:
        return self._entries[key]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        try:
            return self._entries[name]
        except KeyError:
            known = ", ".join(sorted(self._entries))
            raise AttributeError(f'the contract has no "{name}"; it has: {known}') from None

    def __iter__(self) -> Any:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True, slots=True)
class MachineContract:
    """The commands that a client counts on."""

    commands: Commands
    handles: tuple[CommandHandle, ...] = field(default=())


def create_machine_contract(commands: Iterable[tuple[str, ...]]) -> MachineContract:
    """A contract of `(scope, name)` and `(name,)` entries: `contract.commands.desk.clear`."""
    handles = []
    for entry in commands:
        parts = (entry,) if isinstance(entry, str) else tuple(entry)
        if len(parts) not in (1, 2):
            raise ValueError(f"a contract entry is (name,) or (scope, name), got {entry!r}")
        handles.append(CommandHandle(parts[-1], parts[0] if len(parts) == 2 else None))
    tree: dict[str, Any] = {}
    for handle in handles:
        if handle.scope is None:
            tree[handle.name] = handle
        else:
            tree.setdefault(handle.scope, {})[handle.name] = handle
    made = {key: Commands(value) if isinstance(value, dict) else value for key, value in tree.items()}
    return MachineContract(Commands(made), tuple(handles))


def find_command(instance: Mapping[str, Any], handle: CommandHandle) -> CommandHandle | None:
    """The handle, if the active node of a displayed tree has the command, or a pack at its root has; else None.

    A handle with a scope asks for the command of just that node or pack.
    """
    leaf: Mapping[str, Any] = instance
    while children := [c for c in _children(leaf) if not _node(c).get("worker") and not c.get("background")]:
        leaf = children[-1]
    node = _node(leaf)
    if handle.scope in (None, node.get("name")) and handle.name in node.get("commands", {}):
        return handle
    for pack in instance.get("packs") or ():
        if handle.scope in (None, pack.get("name")) and handle.name in (pack.get("commands") or {}):
            return handle
    return None


def _children(instance: Mapping[str, Any]) -> list[Any]:
    children = instance.get("children") or []
    return children if isinstance(children, list) else [children]


def _node(instance: Mapping[str, Any]) -> Mapping[str, Any]:
    node = instance.get("node")
    return node if isinstance(node, Mapping) else {}
