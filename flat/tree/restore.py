"""Stored data to trees: every name is looked up in the charter, and every problem is told at once.

A `CharterMismatch` lists the path and the name of each thing that is missing, and each state that is refused.
`on_missing` lets a migration say what stands for a name that is gone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from flat.core.op import UNSET
from flat.errors import CharterMismatch, TreeError
from flat.tree.changes import suspend_info_from_data
from flat.tree.charter import Charter
from flat.tree.instance import MAX_DEPTH, Instance, all_instances, check_invariants
from flat.tree.machines import MachineUse
from flat.tree.messages import Message, is_ref, message_from_data
from flat.tree.naming import Ref
from flat.tree.node import Node, Output
from flat.tree.pack import Pack
from flat.tree.schema import JsonSchema, from_safe_json_schema, restore_schema_keys
from flat.tree.tools import BuiltinTool
from flat.tree.transitions import GeneralTransition, SerialTransition

OnMissing: TypeAlias = Callable[[str, str], Any]
"""Given the kind (`node`, `tool`, `transition`, `command`, `pack`) and the ref: what stands for it, or None."""


@dataclass
class _Reader:
    charter: Charter
    on_missing: OnMissing | None = None
    shared: bool = False
    """True: the data is kept with what was made of it, for whoever writes it again."""
    problems: list[tuple[str, str, str]] = field(default_factory=list)

    @contextmanager
    def at(self, path: str, ref: str = "") -> Iterator[None]:
        """Collect what goes wrong here."""
        try:
            yield
        except CharterMismatch as mismatch:
            self.problems += [
                (f"{path}.{p}" if p else path, r or ref, message) for p, r, message in mismatch.problems
            ]
        except TreeError as error:
            self.problems.append((path, ref, error.message))

    def look_up(self, kind: str, ref: Any) -> Any:
        if not isinstance(ref, str):
            raise TreeError("bad_data", f"a ref is text, got {ref!r}")
        try:
            return getattr(self.charter, kind)(ref)
        except CharterMismatch:
            found = self.on_missing(kind, ref) if self.on_missing is not None else None
            if found is None:
                raise
            return found

    # -- nodes --------------------------------------------------------------------

    def node(self, data: Any, path: str) -> Node[Any] | None:
        if not isinstance(data, Mapping):
            self.problems.append((path, "", f"a node is a ref or an object, got {type(data).__name__}"))
            return None
        if "ref" in data:
            with self.at(path, str(data["ref"])):
                found: Node[Any] = self.look_up("node", data["ref"])
                return found
            return None
        if path.count(".node") > MAX_DEPTH:
            raise TreeError("tree_too_deep", f"nodes are nested more than {MAX_DEPTH} deep")
        before = len(self.problems)
        parts: dict[str, Any] = {
            word: self.parts(data.get(word), path, word, read)
            for word, read in (
                ("tools", self.tool),
                ("transitions", self.transition),
                ("commands", self.command),
            )
        }
        settings = self.settings(data, path)
        if len(self.problems) > before:
            return None
        with self.at(path):
            return Node(
                _text(data, "instructions"),
                validator(data.get("validator")),
                name=data.get("name"),
                initial_state=copy.deepcopy(data["initialState"]) if "initialState" in data else UNSET,
                **parts,
                **settings,
            )
        return None

    def settings(self, data: Mapping[str, Any], path: str) -> dict[str, Any]:
        found: dict[str, Any] = {
            "worker": bool(data.get("worker", False)),
            "executor_config": data.get("executorConfig"),
            "pack_boundary": data.get("packBoundary") or (),
            "history": data.get("history"),
            "on_end_turn": data.get("onEndTurn", "cede"),
            "max_steps": data.get("maxSteps"),
            "machine": MachineUse(data["machine"]) if "machine" in data else None,
        }
        packs = []
        for index, name in enumerate(data.get("packs") or ()):
            with self.at(f"{path}.packs[{index}]", str(name)):
                packs.append(self.look_up("pack", name))
        found["packs"] = packs
        if (output := data.get("output")) is not None:
            with self.at(f"{path}.output"):
                found["output"] = self.output(output)
        return found

    def output(self, data: Mapping[str, Any]) -> Output[Any]:
        name = data.get("mapper")
        if name is not None and name not in self.charter.mappers:
            raise CharterMismatch([("mapper", name, f'unknown mapper "{name}"')])
        mapper = self.charter.mappers[name] if name is not None else None
        return Output(validator(data.get("schema")), mapper)

    def parts(self, data: Any, path: str, word: str, read: Callable[[Any, str, str], Any]) -> dict[str, Any]:
        found = {}
        if data is not None and not isinstance(data, Mapping):
            self.problems.append(
                (f"{path}.{word}", "", f"an object by name is expected, got {type(data).__name__}")
            )
            return {}
        for key, part in (data or {}).items():
            here = f"{path}.{word}.{key}"
            with self.at(here, part["ref"] if is_ref(part) else ""):
                found[key] = read(part, key, here)
        return found

    def tool(self, data: Any, key: str, path: str) -> Any:
        if isinstance(data, Mapping) and "builtinType" in data:
            return BuiltinTool(
                data.get("name", key), data["builtinType"], data.get("type", "anthropic-builtin")
            )
        if not is_ref(data):
            raise TreeError("bad_data", "a stored tool is a ref")
        return self.look_up("tool", data["ref"])

    def command(self, data: Any, key: str, path: str) -> Any:
        if not is_ref(data):
            raise TreeError("bad_data", "a stored command is a ref")
        return self.look_up("command", data["ref"])

    def transition(self, data: Any, key: str, path: str) -> Any:
        if is_ref(data):
            found = self.look_up("transition", data["ref"])
            return found if self.on_missing is not None else Ref(data["ref"])
        if isinstance(data, Mapping) and data.get("type") == "general":
            return GeneralTransition(_text(data, "description"))
        if not isinstance(data, Mapping) or data.get("type") != "serial":
            raise TreeError("bad_data", "a stored transition is a ref or a serial transition")
        node = self.serial_target(data.get("node"), f"{path}.node")
        return (
            None
            if node is None
            else SerialTransition(node, _text(data, "description"), data.get("arguments"))
        )

    def serial_target(self, data: Any, path: str) -> Node[Any] | Ref | None:
        if not is_ref(data):
            return self.node(data, path)
        found: Node[Any] = self.look_up("node", data["ref"])
        return found if self.on_missing is not None else Ref(data["ref"])

    # -- packs and instances ------------------------------------------------------

    def pack(self, data: Any, path: str) -> Pack[Any]:
        """The charter's pack; of an inline one the texts and the initial state are the data's own."""
        if is_ref(data):
            found: Pack[Any] = self.look_up("pack", data["ref"])
            return found
        if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
            raise TreeError("bad_data", "a stored pack is a ref or an object with a name")
        known: Pack[Any] = self.look_up("pack", data["name"])
        return replace(
            known,
            description=data.get("description", known.description),
            instructions=data.get("instructions"),
            initial_state=data.get("initialState", UNSET),
        )

    def instance(self, data: Any, path: str, depth: int = 0) -> Instance[Any] | None:
        if not isinstance(data, Mapping):
            self.problems.append((path, "", f"an instance is an object, got {type(data).__name__}"))
            return None
        if depth > MAX_DEPTH:
            raise TreeError("tree_too_deep", f"the tree is more than {MAX_DEPTH} instances deep")
        node = self.node(data.get("node"), f"{path}.node")
        states, packs = self.packs(data, path)
        children = [
            self.instance(child, f"{path}.children[{i}]", depth + 1)
            for i, child in enumerate(data.get("children") or ())
        ]
        suspended = None
        if data.get("suspended") is not None:
            with self.at(f"{path}.suspended"):
                suspended = suspend_info_from_data(data["suspended"])
        if node is None:
            return None
        state = UNSET
        with self.at(f"{path}.state"):
            state = node.schema.validate(data.get("state"))
        made: Instance[Any] = Instance(
            node,
            state,
            [child for child in children if child is not None],
            states,
            packs=packs,
            suspended=suspended,
            background=bool(data.get("background", False)),
            brief=data.get("brief"),
            launch=bool(data.get("launch", False)),
            id=data.get("id"),
        )
        if self.shared and state == data.get("state"):
            object.__setattr__(made, "_written", (self.charter, data))
        return made

    def packs(self, data: Mapping[str, Any], path: str) -> tuple[dict[str, Any], list[Pack[Any]]]:
        states: dict[str, Any] = {}
        packs = []
        entries = list(data.get("packInstances") or ())
        entries += [{"pack": {"ref": name}, "state": s} for name, s in (data.get("packStates") or {}).items()]
        for index, entry in enumerate(entries):
            here = f"{path}.packInstances[{index}]"
            ref = entry.get("pack", {})
            with self.at(here, str(ref.get("ref", ref.get("name", "")))):
                pack = self.pack(ref, here)
                packs.append(pack)
                states[pack.name] = pack.schema.validate(entry.get("state", {}))
        return states, packs


def _text(data: Mapping[str, Any], key: str) -> str:
    value = data.get(key)
    if not isinstance(value, str):
        raise TreeError("bad_data", f"`{key}` is text, got {type(value).__name__}")
    return value


def validator(data: Any) -> JsonSchema[Any]:
    """The schema of an inline node."""
    if not isinstance(data, Mapping):
        raise TreeError("bad_data", f"a stored validator is a JSON Schema, got {type(data).__name__}")
    return from_safe_json_schema(restore_schema_keys(data))


def _checked(reader: _Reader) -> None:
    if reader.problems:
        raise CharterMismatch(reader.problems)


def deserialize_node(
    charter: Charter, data: Mapping[str, Any], *, on_missing: OnMissing | None = None
) -> Node[Any]:
    """The node behind a ref or an inline definition."""
    reader = _Reader(charter, on_missing)
    node = reader.node(data, "node")
    _checked(reader)
    assert node is not None
    return node


resolve_node_ref = deserialize_node


def deserialize_instance(
    charter: Charter, data: Mapping[str, Any], *, on_missing: OnMissing | None = None
) -> Instance[Any]:
    """An instance and all below it, with every state validated."""
    return _instance(_Reader(charter, on_missing), data)


def shared_instance(charter: Charter, data: Mapping[str, Any]) -> Instance[Any]:
    """The same for data that does not change: `flat.tree.refs.shared_data` gives it back for what has not changed."""
    return _instance(_Reader(charter, shared=True), data)


def _instance(reader: _Reader, data: Mapping[str, Any]) -> Instance[Any]:
    instance = reader.instance(data, "instance")
    _checked(reader)
    assert instance is not None
    all_instances(instance)
    check_invariants(instance)
    return instance


@dataclass(frozen=True, kw_only=True)
class MachineData:
    """What a stored machine holds, with the tree made live."""

    instance: Instance[Any]
    history: list[Message]
    queue: list[Message]
    turn: Mapping[str, Any] | None = None
    digest: str = ""
    seq: int = 0


def machine_from_data(
    charter: Charter, data: Mapping[str, Any], *, on_missing: OnMissing | None = None
) -> MachineData:
    """Undo `flat.tree.refs.machine_data`."""
    stored = data.get("charter") or {}
    return MachineData(
        instance=deserialize_instance(charter, data.get("instance", {}), on_missing=on_missing),
        history=[message_from_data(message) for message in data.get("history") or ()],
        queue=[message_from_data(message) for message in data.get("queue") or ()],
        turn=data.get("turn"),
        digest=stored.get("hash", ""),
        seq=data.get("seq", 0),
    )
