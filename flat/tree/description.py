"""One JSON document about a charter: what a client, a generated stub, or a stored machine needs to know of it.

The hash is over the document, so that it changes with every name, text, schema and setting, and with no line of code
inside a function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import orjson

from flat.core.op import UNSET
from flat.errors import TreeError
from flat.tree.charter import Charter
from flat.tree.commands import Command
from flat.tree.naming import Ref
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.schema import json_schema_or_open
from flat.tree.tools import BuiltinTool, ToolEntry, tool_options
from flat.tree.toolset import transition_schema
from flat.tree.transitions import SerialTransition, TransitionEntry, transition_has_arguments

FORMAT = "flat.charter/1"


def describe(charter: Charter) -> dict[str, Any]:
    """The whole charter as data, with its hash."""
    document = {
        "format": FORMAT,
        "name": charter.name,
        "instructions": charter.instructions,
        "nodes": {key: _node(node, charter) for key, node in charter.nodes.items()},
        "tools": {key: _tool(tool) for key, tool in charter.tools.items()},
        "transitions": {key: _transition(entry, charter) for key, entry in charter.transitions.items()},
        "packs": {key: _pack(pack) for key, pack in sorted(charter.known_packs.items())},
    }
    return {**document, "hash": _hash(document)}


def digest_of(charter: Charter) -> str:
    """The hash of the charter's description."""
    digest: str = describe(charter)["hash"]
    return digest


def _hash(document: Mapping[str, Any]) -> str:
    text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return f"sha256:{hashlib.sha256(text).hexdigest()}"


def _node(node: Node[Any], charter: Charter) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "instructions": node.instructions if isinstance(node.instructions, str) else None,
        "validator": json_schema_or_open(node.schema),
        "tools": {key: _tool(tool) for key, tool in node.tools.items()},
        "transitions": {key: _transition(entry, charter) for key, entry in node.transitions.items()},
        "commands": {key: _command(command) for key, command in node.commands.items()},
        "packs": [pack.name for pack in node.packs],
        "worker": node.worker,
        "packBoundary": sorted(node.pack_boundary),
        "history": node.sees if isinstance(node.sees, str) else "code",
        "onEndTurn": node.on_end_turn,
        "maxSteps": node.max_steps,
    }
    if node.name is not None:
        shown["name"] = node.name
    if node.initial_state is not UNSET:
        shown["initialState"] = node.initial_state
    if (config := node.executor_config) is not None:
        shown["executorConfig"] = [config.model, config.max_tokens, config.temperature]
    if node.machine is not None:
        shown["machine"] = node.machine.program
    if node.output is not None:
        shown["output"] = json_schema_or_open(node.output.schema)
    return shown


def _tool(tool: ToolEntry) -> dict[str, Any]:
    if isinstance(tool, BuiltinTool):
        return {"builtinType": tool.builtin_type, "name": tool.name}
    return {
        "description": tool.description,
        "inputSchema": json_schema_or_open(tool.schema),
        **tool_options(tool),
    }


def _command(command: Command[..., Any]) -> dict[str, Any]:
    return {"description": command.description, "inputSchema": json_schema_or_open(command.schema)}


def _transition(entry: TransitionEntry, charter: Charter) -> dict[str, Any]:
    if isinstance(entry, Ref):
        return {"ref": entry.ref}
    shown: dict[str, Any] = {"type": entry.type, "description": entry.description}
    if isinstance(entry, SerialTransition):
        target = entry.node
        shown["node"] = target.ref if isinstance(target, Ref) else charter.name_of(target) or target.label
    if transition_has_arguments(entry):
        try:
            shown["inputSchema"] = transition_schema(entry)
        except TreeError:
            shown["inputSchema"] = {"type": "object"}
    return shown


def _pack(pack: Pack[Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "description": pack.description,
        "instructions": pack.instructions if isinstance(pack.instructions, str) else None,
        "validator": json_schema_or_open(pack.schema),
        "tools": {key: _tool(tool) for key, tool in pack.tools.items()},
        "commands": {key: _command(command) for key, command in pack.commands.items()},
    }
    if pack.initial_state is not UNSET:
        shown["initialState"] = pack.initial_state
    return shown
