"""Trees for people's eyes: everything expanded, nothing to be read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flat.core.op import UNSET
from flat.errors import CharterError, CharterMismatch
from flat.tree.changes import record_data
from flat.tree.charter import Charter
from flat.tree.client import MachineContract
from flat.tree.instance import Instance
from flat.tree.instructions import instruction_text
from flat.tree.naming import Ref
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.schema import Schema, to_safe_json_schema
from flat.tree.transitions import SerialTransition, TransitionEntry

INLINE = "(inline)"
CODE = "(code)"
FAILED = "(these instructions cannot be computed)"


def serialize_instance_for_display(instance: Instance[Any], charter: Charter | None = None) -> dict[str, Any]:
    """An instance and all below it, with nodes and packs spelled out."""
    shown: dict[str, Any] = {
        "id": instance.id,
        "node": serialize_node_for_display(instance.node, charter, instance.state),
        "state": instance.state,
    }
    if instance.children:
        shown["children"] = [serialize_instance_for_display(child, charter) for child in instance.children]
    if instance.pack_states:
        packs = {pack.name: pack for pack in (*instance.node.packs, *instance.packs)}
        shown["packs"] = [
            serialize_pack_for_display(packs[name], state)
            for name, state in instance.pack_states.items()
            if name in packs
        ]
        shown["packStates"] = dict(instance.pack_states)
    if instance.suspended is not None:
        shown["suspended"] = record_data(instance.suspended)
    if instance.background:
        shown["background"] = True
    return shown


def serialize_node_for_display(
    node: Node[Any], charter: Charter | None = None, state: Any = UNSET
) -> dict[str, Any]:
    """A node, under its name in the charter or else marked as inline."""
    shown: dict[str, Any] = {
        "name": _name(node, charter),
        "instructions": _instructions(node.instructions, node.first_state() if state is UNSET else state),
        "validator": _schema(node.schema),
        "tools": list(node.tools),
        "transitions": {name: _target(entry, charter) for name, entry in node.transitions.items()},
        "commands": _commands(node.commands),
    }
    if node.initial_state is not UNSET:
        shown["initialState"] = node.initial_state
    if node.packs:
        shown["packNames"] = [pack.name for pack in node.packs]
    if node.worker:
        shown["worker"] = True
    if (config := node.executor_config) is not None:
        wire = {"model": config.model, "maxTokens": config.max_tokens, "temperature": config.temperature}
        shown["executorConfig"] = {key: value for key, value in wire.items() if value is not None}
    return shown


def serialize_pack_for_display(pack: Pack[Any], state: Any) -> dict[str, Any]:
    """A pack with its state and the instructions that follow from it."""
    shown: dict[str, Any] = {
        "name": pack.name,
        "description": pack.description,
        "instructions": _instructions(pack.instructions, state),
        "state": state,
        "validator": _schema(pack.schema),
        "commands": _commands(pack.commands),
    }
    if callable(pack.instructions):
        shown["instructionsComputed"] = True
    return shown


def _name(node: Node[Any], charter: Charter | None) -> str:
    key = charter.name_of(node) if charter is not None else None
    return key or f"{INLINE} {node.name or ''}".strip()


def _instructions(instructions: Any, state: Any) -> str:
    try:
        return instruction_text(instructions, state)
    except Exception:  # what is shown to a person must not fail because of one text
        return FAILED


def _schema(schema: Schema[Any]) -> Mapping[str, Any]:
    try:
        return to_safe_json_schema(schema)
    except CharterError as error:
        return {"error": error.message}


def _commands(commands: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {"name": name, "description": command.description, "inputSchema": _schema(command.schema)}
        for name, command in commands.items()
    }


def _target(entry: TransitionEntry, charter: Charter | None) -> str:
    if isinstance(entry, Ref):
        return entry.ref
    if isinstance(entry, SerialTransition):
        if isinstance(entry.node, Ref):
            return entry.node.ref
        return _name(entry.node, charter)
    names = charter.transitions.items() if charter is not None else ()
    return next((name for name, known in names if known is entry), CODE)


def assert_machine_contract(contract: MachineContract, charter: Charter) -> None:
    """Raise one error that lists every command of the contract which the charter has not."""
    scopes: dict[str, set[str]] = {}
    for key, node in charter.nodes.items():
        for name in (key, node.name):
            if name:
                scopes.setdefault(name, set()).update(node.commands)
    for pack in charter.known_packs.values():
        scopes.setdefault(pack.name, set()).update(pack.commands)
    anywhere = set().union(*scopes.values()) if scopes else set()
    missing = []
    for handle in contract.handles:
        if handle.scope is None and handle.name not in anywhere:
            missing.append((handle.name, handle.name, "no node and no pack has this command"))
        elif handle.scope is not None and handle.name not in scopes.get(handle.scope, set()):
            path = f"{handle.scope}.{handle.name}"
            known = handle.scope in scopes
            what = "has no such command" if known else "is no node and no pack"
            missing.append((path, path, f'"{handle.scope}" {what}'))
    if missing:
        raise CharterMismatch(missing, code="contract_violation")
