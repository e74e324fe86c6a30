"""Trees to stored data: code is written as its name in the charter, and what has no name inline.

    Node      {"ref": name}, or the whole node with refs for its tools, commands and code transitions
    Pack      {"ref": name}, or the whole pack
    Instance  id, node, state, and where they apply children, packInstances, suspended, background, brief, launch

What cannot be written is refused with the path, never left out silently, unless `lossy` says so.
Reading is in `flat.tree.restore`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flat.core.op import UNSET
from flat.errors import CharterError, TreeError
from flat.tree.changes import record_data
from flat.tree.charter import Charter
from flat.tree.instance import Instance
from flat.tree.instructions import instruction_text
from flat.tree.messages import Message, message_data
from flat.tree.naming import Ref
from flat.tree.node import Node, Output
from flat.tree.pack import Pack
from flat.tree.schema import to_safe_json_schema
from flat.tree.tools import BuiltinTool
from flat.tree.transitions import SerialTransition, TransitionEntry

FORMAT = "flat.tree/1"


@dataclass(frozen=True)
class _Writer:
    charter: Charter | None
    lossy: bool = False
    shared: bool = False
    """True: what an instance was written as is kept with it, and shared by all who ask."""

    # -- nodes --------------------------------------------------------------------

    def node(
        self, node: Node[Any] | Ref, path: str, *, inline: bool = False, state: Any = UNSET
    ) -> dict[str, Any]:
        if isinstance(node, Ref):
            return {"ref": node.ref}
        key = self.charter.name_of(node) if self.charter is not None else None
        if key is not None and not inline:
            return {"ref": key}
        data: dict[str, Any] = {"name": key or node.name} if key or node.name else {}
        data["instructions"] = self.instructions(node, path, state, registered=key is not None)
        data["validator"] = _validator(node, path)
        parts = {
            "transitions": {
                k: self.transition(e, f"{path}.transitions.{k}") for k, e in node.transitions.items()
            },
            "tools": self.entries(node.tools, "tools", path),
            "commands": self.entries(node.commands, "commands", path),
        }
        data.update(
            (word, {k: v for k, v in part.items() if v is not None}) for word, part in parts.items() if part
        )
        if node.initial_state is not UNSET:
            data["initialState"] = copy.deepcopy(node.initial_state)
        data.update(self.settings(node, path))
        return data

    def settings(self, node: Node[Any], path: str) -> Iterator[tuple[str, Any]]:
        """What a node has besides its texts and code, where it differs from the default."""
        if node.worker:
            yield "worker", True
        if node.packs:
            yield "packs", [self.pack_name(pack, path) for pack in node.packs]
        if node.executor_config is not None:
            names = {"model": "model", "max_tokens": "maxTokens", "temperature": "temperature"}
            yield (
                "executorConfig",
                {wire: v for k, wire in names.items() if (v := getattr(node.executor_config, k)) is not None},
            )
        if node.output is not None:
            yield "output", self.output(node.output, path)
        if node.pack_boundary:
            yield "packBoundary", sorted(node.pack_boundary)
        if callable(node.history) or node.build_system_prompt or node.externalize:
            self.unnamed(f"{path}: a function of the node (history, build_system_prompt or externalize)")
        elif node.history is not None:
            yield "history", node.history
        if node.machine is not None:
            if node.machine.input is not None or node.machine.output is not None:
                self.unnamed(f"{path}.machine: a function that maps its input or output")
            yield "machine", node.machine.program
        if node.on_end_turn != "cede":
            yield "onEndTurn", node.on_end_turn
        if node.max_steps is not None:
            yield "maxSteps", node.max_steps

    def instructions(self, node: Node[Any], path: str, state: Any, *, registered: bool) -> str:
        """The text; of a function the text for this state, which is what a person edits when the node is inlined."""
        if isinstance(node.instructions, str):
            return node.instructions
        if not registered:
            self.unnamed(f"{path}.instructions: a function")
        return instruction_text(node.instructions, node.first_state() if state is UNSET else state)

    def entries(self, entries: Mapping[str, Any], word: str, path: str) -> dict[str, Any]:
        return {key: self.entry(entry, key, word, f"{path}.{word}.{key}") for key, entry in entries.items()}

    def entry(self, entry: Any, key: str, word: str, path: str) -> Any:
        if isinstance(entry, BuiltinTool):
            return {"type": entry.type, "name": entry.name, "builtinType": entry.builtin_type}
        ref = self.found(entry, word, key)
        return {"ref": ref} if ref else self.unnamed(path)

    def transition(self, entry: TransitionEntry, path: str) -> Any:
        if isinstance(entry, Ref):
            return {"ref": entry.ref}
        if isinstance(entry, SerialTransition):
            data = {
                "type": "serial",
                "description": entry.description,
                "node": self.node(entry.node, f"{path}.node"),
            }
            return (
                {**data, "arguments": copy.deepcopy(dict(entry.arguments))}
                if entry.arguments is not None
                else data
            )
        ref = self.found(entry, "transitions", "")
        return {"ref": ref} if ref else self.unnamed(path)

    def found(self, entry: Any, word: str, key: str) -> str | None:
        """The ref under which the charter has this very object, if it has."""
        if self.charter is None:
            return None
        own: Mapping[str, Any] = getattr(self.charter, word, {})
        flat = next((name for name, known in own.items() if known is entry), None)
        if flat is not None:
            return flat
        for name, node in self.charter.nodes.items():
            parts: Mapping[str, Any] = getattr(node, word)
            if key and parts.get(key) is entry:
                return f"{name}.{key}"
            if not key and (part := next((p for p, known in parts.items() if known is entry), None)):
                return f"{name}.{part}"
        return None

    def output(self, output: Output[Any], path: str) -> dict[str, Any]:
        data: dict[str, Any] = {"schema": to_safe_json_schema(output.schema)}
        if output.map_text_block is not None:
            mappers = self.charter.mappers if self.charter is not None else {}
            name = next((name for name, known in mappers.items() if known is output.map_text_block), None)
            if name is None:
                self.unnamed(f"{path}.output: the mapper")
            else:
                data["mapper"] = name
        return data

    def pack_name(self, pack: Pack[Any], path: str) -> str:
        if self.charter is None or self.charter.known_packs.get(pack.name) is not pack:
            self.unnamed(f'{path}.packs: the pack "{pack.name}"')
        return pack.name

    def unnamed(self, what: str) -> None:
        if not self.lossy:
            raise CharterError(
                "unregistered_inline",
                f"{what} is not registered in the charter, so stored data cannot refer to it; register it, "
                "or register the whole node",
            )

    # -- packs and instances ------------------------------------------------------

    def pack(self, pack: Pack[Any], state: Any) -> dict[str, Any]:
        known = self.charter.known_packs.get(pack.name) if self.charter is not None else None
        text = _pack_text(pack, state)
        if known is not None and (known is pack or _pack_text(known, state) == text):
            return {"ref": pack.name}
        data: dict[str, Any] = {"name": pack.name, "description": pack.description}
        if text:
            data["instructions"] = text
        data["validator"] = to_safe_json_schema(pack.schema)
        for word in ("tools", "commands"):
            if entries := getattr(pack, word):
                data[word] = {key: {"ref": f"{pack.name}.{key}"} for key in entries}
        if pack.initial_state is not UNSET:
            data["initialState"] = copy.deepcopy(pack.initial_state)
        return data

    def instance(self, instance: Instance[Any], path: str) -> Mapping[str, Any]:
        if not self.shared:
            return self.written(instance, path)
        known: tuple[Charter | None, Mapping[str, Any]] | None = instance.__dict__.get("_written")
        if known is None or known[0] is not self.charter:
            known = (self.charter, self.written(instance, path))
            object.__setattr__(instance, "_written", known)
        return known[1]

    def written(self, instance: Instance[Any], path: str) -> dict[str, Any]:
        data: dict[str, Any] = {
            "id": instance.id,
            "node": self.node(instance.node, f"{path}.node", state=instance.state),
            "state": copy.deepcopy(instance.state),
        }
        if packs := list(self.pack_instances(instance)):
            data["packInstances"] = packs
        if instance.children:
            data["children"] = [
                self.instance(child, f"{path}.children[{i}]") for i, child in enumerate(instance.children)
            ]
        if instance.suspended is not None:
            data["suspended"] = record_data(instance.suspended)
        if instance.background:
            data["background"] = True
        if instance.brief is not None:
            data["brief"] = instance.brief
        if instance.launch:
            data["launch"] = True
        return data

    def pack_instances(self, instance: Instance[Any]) -> Iterator[dict[str, Any]]:
        """Every pack state, also those whose pack nobody lists any more."""
        packs = {pack.name: pack for pack in reversed((*instance.packs, *instance.node.packs))}
        for name, state in instance.pack_states.items():
            pack = packs.get(name)
            yield {
                "state": copy.deepcopy(state),
                "pack": {"ref": name} if pack is None else self.pack(pack, state),
            }


def _validator(node: Node[Any], path: str) -> Any:
    try:
        return to_safe_json_schema(node.schema)
    except CharterError as error:
        raise CharterError(
            "unregistered_inline", f"{path}.validator: {error.message}; register the node"
        ) from None


def _pack_text(pack: Pack[Any], state: Any) -> str:
    try:
        return instruction_text(pack.instructions, state)
    except Exception as error:
        raise TreeError(
            "instructions_failed", f'the instructions of pack "{pack.name}" failed: {error}'
        ) from error


def serialize_node(
    node: Node[Any],
    charter: Charter | None = None,
    *,
    no_node_ref: bool = False,
    lossy: bool = False,
    state: Any = UNSET,
) -> dict[str, Any]:
    """A node as data: a ref where the charter has it. `no_node_ref` writes it inline all the same, to be edited."""
    return _Writer(charter, lossy).node(node, "node", inline=no_node_ref, state=state)


def serialize_pack(pack: Pack[Any], charter: Charter | None = None, state: Any = None) -> dict[str, Any]:
    """A pack as data: a ref where the charter has it with the same instructions for this state."""
    return _Writer(charter).pack(pack, pack.first_state() if state is None else state)


def serialize_instance(
    instance: Instance[Any], charter: Charter | None = None, *, lossy: bool = False
) -> dict[str, Any]:
    """An instance and all below it as data."""
    return _Writer(charter, lossy).written(instance, "instance")


def shared_data(instance: Instance[Any], charter: Charter) -> Mapping[str, Any]:
    """The same for those who only read it: what has not changed since it was last written is not written again."""
    return _Writer(charter, shared=True).instance(instance, "instance")


def machine_data(
    charter: Charter,
    instance: Instance[Any],
    history: Sequence[Message] = (),
    *,
    queue: Sequence[Message] = (),
    digest: str = "",
    turn: Mapping[str, Any] | None = None,
    seq: int = 0,
) -> dict[str, Any]:
    """A whole machine as data: the tree and its history, and what `flat` keeps beside them."""
    data: dict[str, Any] = {
        "format": FORMAT,
        "charter": {"name": charter.name, **({"hash": digest} if digest else {})},
        "instance": serialize_instance(instance, charter),
        "history": [message_data(message) for message in history],
    }
    if queue:
        data["queue"] = [message_data(message) for message in queue]
    if turn is not None:
        data["turn"] = dict(turn)
    if seq:
        data["seq"] = seq
    return data
