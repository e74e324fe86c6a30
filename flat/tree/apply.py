"""Changes applied to a tree: every change is checked, and one that would break the tree is refused.

This is the meaning of the records in `flat.tree.changes`. Applying all records of a history to the first tree gives
the last one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from flat.core.op import UNSET
from flat.errors import CallRefused, TreeError
from flat.tree.changes import (
    Ceded,
    Change,
    NewChild,
    PackPatch,
    Resumed,
    Spawned,
    StatePatch,
    Suspended,
    Transitioned,
)
from flat.tree.charter import Charter
from flat.tree.instance import (
    Instance,
    check_depth,
    check_invariants,
    get_path,
    hoisted,
    path_to,
    prepared,
    updated,
)
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.restore import deserialize_node
from flat.tree.schema import Schema


@dataclass(frozen=True, slots=True)
class Applied:
    """A tree after changes, what ceded instances hand over, and which changes were refused and why."""

    root: Instance[Any]
    ceded: tuple[Ceded, ...] = ()
    refused: tuple[tuple[Change, TreeError], ...] = ()


def apply_changes(charter: Charter, root: Instance[Any], changes: Iterable[Change]) -> Applied:
    """Apply what can be applied, in order. A refused change leaves the tree as it was."""
    ceded: list[Ceded] = []
    refused: list[tuple[Change, TreeError]] = []
    for change in changes:
        try:
            root = applied(charter, root, change)
        except TreeError as error:
            refused.append((change, error))
            if not (isinstance(change, Ceded) and change.instance_id == root.id):
                continue
        if isinstance(change, Ceded):
            ceded.append(change)
    return Applied(root, tuple(ceded), tuple(refused))


def applied(charter: Charter, root: Instance[Any], change: Change) -> Instance[Any]:
    """The tree after one change. Raises `TreeError` when the change cannot be."""
    if isinstance(change, StatePatch):
        return _state(root, change)
    if isinstance(change, PackPatch):
        return _pack_state(charter, root, change)
    if isinstance(change, Transitioned):
        return _transition(charter, root, change)
    if isinstance(change, Spawned):
        return _spawn(charter, root, change)
    if isinstance(change, Ceded):
        return _cede(root, change)
    if isinstance(change, Suspended):
        get_path(root, change.instance_id)
        return updated(root, change.instance_id, lambda i: i.having(suspended=change.suspend_info))
    return _resume(root, change)


def _state(root: Instance[Any], change: StatePatch) -> Instance[Any]:
    instance = get_path(root, change.instance_id)[-1]
    state = patched(instance.node.schema, instance.state, change)
    return updated(root, instance.id, lambda i: i.having(state=state))


def _pack_state(charter: Charter, root: Instance[Any], change: PackPatch) -> Instance[Any]:
    owner = get_path(root, change.owner_id or root.id)[-1]
    pack = known_pack(charter, root, owner, change.pack_name)
    old = owner.pack_states[pack.name] if pack.name in owner.pack_states else pack.first_state()
    new = patched(pack.schema, old, change)
    known = owner.packs if any(p.name == pack.name for p in owner.packs) else (*owner.packs, pack)
    return updated(
        root, owner.id, lambda i: i.having(pack_states={**i.pack_states, pack.name: new}, packs=known)
    )


def known_pack(charter: Charter, root: Instance[Any], owner: Instance[Any], name: str) -> Pack[Any]:
    """The pack of this name: of the owner, of the charter, or of a node in the tree."""
    for pack in (*owner.packs, *owner.node.packs, *root.packs):
        if pack.name == name:
            return pack
    return charter.pack(name)


def patched(schema: Schema[Any], state: Any, change: StatePatch | PackPatch) -> Any:
    """A state with the keys of a record set and dropped, validated."""
    if change.value is not UNSET:
        return schema.validate(change.value)
    if not isinstance(state, Mapping):
        raise TreeError("state_patch_invalid", f"a {type(state).__name__} cannot be patched")
    kept = {key: value for key, value in state.items() if key not in change.drop}
    return schema.validate({**kept, **change.patch})


def _transition(charter: Charter, root: Instance[Any], change: Transitioned) -> Instance[Any]:
    get_path(root, change.instance_id)
    node = deserialize_node(charter, change.node)
    state = target_state(node, change.state)
    new = updated(root, change.instance_id, lambda i: i.having(node=node, state=state, children=()))
    check_invariants(new)
    return hoisted(new, change.instance_id, charter.known_packs)


def target_state(node: Node[Any], state: Any) -> Any:
    """The state an instance begins with in a node: the given one, else the initial one; validated."""
    if state is UNSET:
        state = node.first_state()
        if state is UNSET:
            raise CallRefused(
                "missing_target_state",
                f'"{node.label}" has no initial state; give it one, or give a state with the transition',
            )
    return node.schema.validate(state)


def _spawn(charter: Charter, root: Instance[Any], change: Spawned) -> Instance[Any]:
    check_depth(len(get_path(root, change.parent_instance_id)))
    children = [_child(charter, child) for child in change.children]
    new = updated(root, change.parent_instance_id, lambda i: i.having(children=(*i.children, *children)))
    check_invariants(new)
    if (twice := _taken(root, children)) is not None:
        raise CallRefused("tree_cycle", f'the instance id "{twice}" is taken')
    for child in children:
        if child.node.packs or child.node.pack_boundary:
            new = hoisted(new, child.id, charter.known_packs)
    return new


def _taken(root: Instance[Any], children: Sequence[Instance[Any]]) -> str | None:
    """An id among those of new children that is there already."""
    seen: set[str] = set()
    for child in children:
        if child.id in seen or path_to(root, child.id):
            return child.id
        seen.add(child.id)
    return None


def _child(charter: Charter, child: NewChild) -> Instance[Any]:
    node = deserialize_node(charter, child.node)
    return Instance(
        node,
        target_state(node, child.state),
        background=child.background,
        brief=child.brief,
        launch=child.launch,
        id=child.id or str(uuid4()),
    )


def _cede(root: Instance[Any], change: Ceded) -> Instance[Any]:
    get_path(root, change.instance_id)
    if change.instance_id == root.id:
        raise CallRefused("cannot_cede_root", "the root has no parent to cede to; the tree stays as it is")
    return updated(root, change.instance_id, lambda i: None)


def _resume(root: Instance[Any], change: Resumed) -> Instance[Any]:
    instance = get_path(root, change.instance_id)[-1]
    check_resume(instance, change)
    return updated(root, instance.id, lambda i: i.having(suspended=None))


def check_resume(instance: Instance[Any], change: Resumed) -> None:
    """Refuse a resume of what does not wait, or waits for something else. Without an id any wait will do."""
    if instance.suspended is None:
        raise CallRefused("not_suspended", f'"{instance.node.label}" ({instance.id}) is not suspended')
    waits_for = instance.suspended.suspend_id
    if change.suspend_id and waits_for != change.suspend_id:
        raise CallRefused(
            "suspend_id_mismatch",
            f'"{instance.node.label}" ({instance.id}) waits for "{waits_for}" and not for "{change.suspend_id}"',
        )


def check_resumable(instance: Instance[Any]) -> None:
    """Refuse that somebody resumes what waits for a machine that it has called."""
    info = instance.suspended
    if info is not None and info.execution_id is not None:
        channels = ", ".join((info.metadata or {}).get("channels", ()))
        raise CallRefused(
            "waits_for_machine",
            f'"{instance.node.label}" ({instance.id}) goes on when the machine that it has called is done; '
            f"answer that one: execution {info.execution_id}, on {channels or 'none of its channels'}",
        )


def start_tree(charter: Charter, root: Instance[Any]) -> Instance[Any]:
    """A tree ready to run under a charter: states validated and kept, packs hoisted, invariants checked."""
    return prepared(root, charter.known_packs)


def replayed(charter: Charter, root: Instance[Any], changes: Sequence[Change]) -> Instance[Any]:
    """The tree that a history of changes leads to. Raises the first refusal."""
    for change in changes:
        root = applied(charter, root, change)
    return root
