"""Which tools a leaf has: what the model is offered, and what a call's name stands for.

One order serves both, and the first match wins: the tree's own tools, then those of the leaf's node, of its
ancestors (nearest first), of the charter, and of the packs on the leaf's node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from flat.core.op import UNSET
from flat.errors import CallRefused, did_you_mean
from flat.tree.charter import Charter
from flat.tree.machines import MachineTool
from flat.tree.naming import TRANSITION, TRANSITION_PREFIX, UPDATE_STATE
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.schema import JsonObject, is_object_schema, json_schema_or_open, partial_schema
from flat.tree.tools import BuiltinTool, Tool, ToolEntry
from flat.tree.transitions import (
    CodeTransition,
    GeneralTransition,
    Transition,
    argument_schema,
    transition_has_arguments,
)

Owner: TypeAlias = Literal["node", "ancestor", "charter", "pack"]

REASON = {"type": "string", "description": "Why you take this transition."}
UPDATE_STATE_TEXT = "Change your state: the keys of the patch replace keys of the state, whole."
TRANSITION_TEXT = "Take a transition. At most one per turn."


@dataclass(frozen=True, slots=True)
class Offered:
    """A tool of a leaf, and whose it is: `ancestor` counts from the parent, 0."""

    entry: ToolEntry
    owner: Owner
    ancestor: int = 0
    pack: Pack[Any] | None = None


def offered_tools(
    charter: Charter, node: Node[Any], ancestor_nodes: Sequence[Node[Any]] = ()
) -> dict[str, Offered]:
    """The tools of a leaf by name, in the order in which they are offered. Ancestors are root first."""
    found: dict[str, Offered] = {}
    for name, offered in _all_tools(charter, node, ancestor_nodes):
        found.setdefault(name, offered)
    return found


def _all_tools(
    charter: Charter, node: Node[Any], ancestor_nodes: Sequence[Node[Any]]
) -> Iterator[tuple[str, Offered]]:
    for name, entry in node.tools.items():
        yield name, Offered(entry, "node")
    for distance, ancestor in enumerate(reversed(ancestor_nodes)):
        for name, entry in ancestor.tools.items():
            yield name, Offered(entry, "ancestor", distance)
    for name, entry in charter.tools.items():
        yield name, Offered(entry, "charter")
    for pack in active_packs(node):
        for name, entry in pack.tools.items():
            yield name, Offered(entry, "pack", pack=pack)


def active_packs(node: Node[Any]) -> tuple[Pack[Any], ...]:
    """The packs whose tools a leaf of this node has. Workers have none."""
    return () if node.worker else node.packs


def resolve_tool(
    charter: Charter, node: Node[Any], ancestor_nodes: Sequence[Node[Any]], name: str
) -> Offered:
    """The tool behind a name. Raises `CallRefused` with what there is."""
    tools = offered_tools(charter, node, ancestor_nodes)
    if name in tools:
        return tools[name]
    known = [*tools, *(d["name"] for d in tree_tools(charter, node))]
    hint = did_you_mean(name, known)
    raise CallRefused("unknown_tool", f'unknown tool "{name}"' + (f"; {hint}" if hint else ""))


# -- definitions ------------------------------------------------------------------


def generate_tool_definitions(
    charter: Charter, node: Node[Any], ancestor_nodes: Sequence[Node[Any]] = ()
) -> list[JsonObject]:
    """The tools as the model is offered them: name, description and JSON Schema of the input."""
    definitions = tree_tools(charter, node)
    for name, offered in offered_tools(charter, node, ancestor_nodes).items():
        entry = offered.entry
        if isinstance(entry, BuiltinTool):
            definitions.append({"type": entry.builtin_type, "name": entry.name})
        else:
            definitions.append(definition(name, entry.description, json_schema_or_open(entry.schema)))
    return definitions


def tree_tools(charter: Charter, node: Node[Any]) -> list[JsonObject]:
    """The tools that change the leaf itself: its state, and its transitions."""
    definitions = []
    if has_object_state(node):
        patch = partial_schema(json_schema_or_open(node.schema))
        defs = {"$defs": patch.pop("$defs")} if "$defs" in patch else {}
        schema = {"type": "object", "properties": {"patch": patch}, "required": ["patch"], **defs}
        definitions.append(definition(UPDATE_STATE, UPDATE_STATE_TEXT, schema))
    resolved = resolved_transitions(charter, node)
    if plain := [name for name, entry in resolved.items() if not transition_has_arguments(entry)]:
        schema = {
            "type": "object",
            "properties": {"to": {"type": "string", "enum": plain}, "reason": REASON},
            "required": ["to", "reason"],
        }
        definitions.append(definition(TRANSITION, TRANSITION_TEXT, schema))
    for name, entry in resolved.items():
        if transition_has_arguments(entry):
            schema = transition_schema(entry)
            definitions.append(definition(f"{TRANSITION_PREFIX}{name}", entry.description, schema))
    return definitions


def definition(name: str, description: str, schema: JsonObject) -> JsonObject:
    """One tool as a model is offered it."""
    shown = {key: value for key, value in schema.items() if key != "$schema"}
    return {"name": name, "description": description, "input_schema": shown}


def function_tool(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same in the form that agents take. A provider's own tool stays as it is."""
    if "input_schema" not in definition:
        return definition
    function = {
        "name": definition["name"],
        "description": definition["description"],
        "parameters": definition["input_schema"],
    }
    return {"type": "function", "function": function}


def has_object_state(node: Node[Any]) -> bool:
    """Whether a patch of the node's state makes sense."""
    if node.initial_state is not UNSET and not isinstance(node.initial_state, Mapping):
        return False
    return is_object_schema(json_schema_or_open(node.schema))


def resolved_transitions(charter: Charter, node: Node[Any]) -> dict[str, Transition]:
    """The transitions of a node by name, with refs followed."""
    return {name: charter.resolved_transition(entry) for name, entry in node.transitions.items()}


def transition_schema(entry: Transition) -> JsonObject:
    """The input schema of a transition that has arguments: `reason` beside them."""
    if isinstance(entry, GeneralTransition):
        schema = _beside_reason("node", INLINE_NODE)
    elif isinstance(entry, CodeTransition):
        schema, is_object = argument_schema(entry)
        if not is_object:
            return _beside_reason("args", schema)
        kept = {key: value for key, value in schema.items() if key not in ("properties", "required", "title")}
        return {
            **kept,
            "type": "object",
            "properties": {"reason": REASON, **schema.get("properties", {})},
            "required": ["reason", *schema.get("required", [])],
        }
    else:
        schema = _beside_reason("args", dict(entry.arguments or {}))
    return schema


def _beside_reason(name: str, schema: JsonObject) -> JsonObject:
    schema = dict(schema)
    defs = {"$defs": schema.pop("$defs")} if "$defs" in schema else {}
    properties = {"reason": REASON, name: schema}
    return {"type": "object", "properties": properties, "required": ["reason", name], **defs}


_REFS: JsonObject = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "properties": {"ref": {"type": "string"}},
        "required": ["ref"],
    },
}
INLINE_NODE: JsonObject = {
    "type": "object",
    "description": "A new node. Tools and transitions are refs to what is registered.",
    "properties": {
        "name": {"type": "string"},
        "instructions": {"type": "string"},
        "validator": {"type": "object", "description": "JSON Schema of the node's state."},
        "tools": _REFS,
        "transitions": _REFS,
        "initialState": {
            "type": "object",
            "description": "The state to begin with; the validator must accept it.",
        },
    },
    "required": ["instructions", "validator", "initialState"],
}


def is_tree_tool(name: str) -> bool:
    """Whether a call is for the tree and not for author's code."""
    return name in (UPDATE_STATE, TRANSITION) or name.startswith(TRANSITION_PREFIX)


def runnable(entry: ToolEntry) -> Tool[..., Any] | None:
    """The tool, unless the provider runs it. Raises `CallRefused` for a machine, which only the engine can start."""
    if isinstance(entry, MachineTool):
        raise CallRefused(
            "needs_machine", f'"{entry.name}" runs the machine "{entry.use.program}" and cannot be called'
        )
    return None if isinstance(entry, BuiltinTool) else entry
