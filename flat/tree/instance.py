"""Instances: live occupants of nodes, as an immutable tree, and how that tree is read and rebuilt.

An instance has its node, its state as plain data, and its children. Pack states are kept on the instance that
owns them, which is the root unless a node declares a boundary. Every function here is pure: a change builds new
objects along the path to the root.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias
from uuid import uuid4

from typing_extensions import TypeVar

from flat.core.op import UNSET, Unset
from flat.errors import CallRefused, TreeError
from flat.tree.changes import SuspendInfo
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.schema import as_plain

S = TypeVar("S", default=Any)
MAX_DEPTH = 100
"""How deep a tree may be. What is stored nests twice per instance, and the codec takes more, for nested states."""


@dataclass(frozen=True, init=False, repr=False)
class Instance(Generic[S]):
    """A node with its state at one place in the tree.

    >>> Instance(desk, {"legs": []}, children=[Instance(fare_watch, {"leg": "Oslo"})])
    """

    node: Node[S]
    state: Any
    children: tuple[Instance[Any], ...]
    pack_states: Mapping[str, Any]
    packs: tuple[Pack[Any], ...]
    """The packs behind `pack_states`."""
    suspended: SuspendInfo | None
    background: bool
    """True for a child beside which its parent goes on."""
    brief: str | None
    launch: bool
    """True for a worker that is an execution of its own."""
    id: str

    def __init__(
        self,
        node: Node[S],
        state: S | Mapping[str, Any] | Unset = UNSET,
        children: Instance[Any] | Iterable[Instance[Any]] | None = None,
        pack_states: Mapping[str, Any] | None = None,
        *,
        packs: Iterable[Pack[Any]] = (),
        suspended: SuspendInfo | None = None,
        background: bool = False,
        brief: str | None = None,
        launch: bool = False,
        id: str | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "node", node)
        put(self, "state", node.first_state() if state is UNSET else as_plain(state))
        put(self, "children", (children,) if isinstance(children, Instance) else tuple(children or ()))
        put(self, "pack_states", {name: as_plain(value) for name, value in (pack_states or {}).items()})
        put(self, "packs", tuple(packs))
        put(self, "suspended", suspended)
        put(self, "background", background)
        put(self, "brief", brief)
        put(self, "launch", launch)
        put(self, "id", id or str(uuid4()))

    def __repr__(self) -> str:
        below = f", {len(self.children)} below" if self.children else ""
        return f"Instance({self.node.label!r}, {self.id!r}{below})"

    def having(self, **changes: Any) -> Instance[Any]:
        """The same instance with some fields changed, sharing all that was not."""
        new: Instance[Any] = object.__new__(Instance)
        for name in self.__dataclass_fields__:
            object.__setattr__(new, name, changes.get(name, getattr(self, name)))
        return new

    @property
    def is_worker(self) -> bool:
        return self.node.worker

    @property
    def halted(self) -> bool:
        """Whether it waits and all below it, too: it does for a person, not for a machine that it has called."""
        return self.suspended is not None and self.suspended.execution_id is None

    def waits_for(self, suspend_id: str) -> bool:
        return self.suspended is not None and self.suspended.suspend_id == suspend_id


AnyInstance: TypeAlias = Instance[Any]


@dataclass(frozen=True, slots=True)
class ActiveLeaf:
    """An instance that may run: the way to it, root first and itself last, and the child positions of that way."""

    path: tuple[Instance[Any], ...]
    leaf_index: tuple[int, ...]

    @property
    def instance(self) -> Instance[Any]:
        return self.path[-1]

    @property
    def ancestors(self) -> tuple[Instance[Any], ...]:
        """Root first, parent last."""
        return self.path[:-1]

    @property
    def is_worker(self) -> bool:
        return self.path[-1].node.worker


# -- reading ----------------------------------------------------------------------


def active_leaves(root: Instance[Any]) -> list[ActiveLeaf]:
    """The instances that may run, depth first: not suspended, below nothing halted, without foreground child."""
    return list(_active(root, (), ()))


def _active(
    instance: Instance[Any], path: tuple[Instance[Any], ...], index: tuple[int, ...]
) -> Iterator[ActiveLeaf]:
    waits = instance.suspended
    if waits is not None and waits.execution_id is None:
        return
    path = (*path, instance)
    if waits is None and all(child.background for child in instance.children):
        yield ActiveLeaf(path, index)
    for position, child in enumerate(instance.children):
        yield from _active(child, path, (*index, position))


def instance_path(root: Instance[Any]) -> list[Instance[Any]]:
    """The way from the root to the active instance: always the last foreground child that is no worker."""
    path = [root]
    while onward := [c for c in path[-1].children if not c.node.worker and not c.background]:
        path.append(onward[-1])
    return path


def active_instance(root: Instance[Any]) -> Instance[Any]:
    """The instance that a user talks to, suspended or not."""
    known: tuple[Instance[Any], ...] | None = root.__dict__.get("_active")
    if known is None:  # without the root: a tree that held itself would be freed late
        known = tuple(instance_path(root)[1:])
        object.__setattr__(root, "_active", known)
    return known[-1] if known else root


def all_instances(root: Instance[Any], max_depth: int = MAX_DEPTH) -> list[Instance[Any]]:
    """Every instance, depth first. Raises on an id that is there twice, and on a tree that is too deep."""
    found: dict[str, Instance[Any]] = {}
    for instance, depth in walk(root):
        if depth > max_depth:
            raise TreeError("tree_too_deep", f"the tree is more than {max_depth} instances deep")
        if instance.id in found:
            raise TreeError("tree_cycle", f'the instance id "{instance.id}" is there twice')
        found[instance.id] = instance
    return list(found.values())


def walk(root: Instance[Any], depth: int = 0) -> Iterator[tuple[Instance[Any], int]]:
    """Every instance with its depth, depth first; never deeper than one below the limit."""
    yield root, depth
    if depth <= MAX_DEPTH:
        for child in root.children:
            yield from walk(child, depth + 1)


def suspended_instances(root: Instance[Any]) -> list[Instance[Any]]:
    """Every instance that waits, depth first."""
    return [instance for instance, _ in walk(root) if instance.suspended is not None]


def find_instance(root: Instance[Any], id: str) -> Instance[Any] | None:
    """The instance with this id, or None."""
    path = path_to(root, id)
    return path[-1] if path else None


def path_to(root: Instance[Any], id: str) -> tuple[Instance[Any], ...]:
    """The way from the root to an instance, itself included; empty when it is not there."""
    if id == root.id:
        return (root,)
    above = _above(root)
    if id not in above:
        return ()
    way: list[Instance[Any]] = []
    at = id
    while at != root.id:
        instance, at = above[at]
        way.append(instance)
    return (root, *reversed(way))


def _above(root: Instance[Any]) -> Mapping[str, tuple[Instance[Any], str]]:
    """Every instance below by its id, with the id of the one above it; kept, for a tree does not change."""
    known: dict[str, tuple[Instance[Any], str]] | None = root.__dict__.get("_above")
    if known is None:
        known = {}
        for instance, _ in walk(root):
            for child in instance.children:
                known.setdefault(child.id, (child, instance.id))
        object.__setattr__(root, "_above", known)
    return known


def get_path(root: Instance[Any], id: str) -> tuple[Instance[Any], ...]:
    """`path_to`, or an error that lists what is there."""
    path = path_to(root, id)
    if not path:
        known = ", ".join(f"{i.id} ({i.node.label})" for i, _ in walk(root))
        raise CallRefused("unknown_instance", f'no instance "{id}" in the tree; there are: {known}')
    return path


def pack_owner(path: tuple[Instance[Any], ...], pack_name: str) -> Instance[Any]:
    """The instance that holds a pack's state for the last one of a path: the nearest with an entry, else the root."""
    for instance in path[::-1]:
        if pack_name in instance.pack_states:
            return instance
    return path[0]


def pack_state(path: tuple[Instance[Any], ...], pack: Pack[Any]) -> Any:
    """A pack's state as the last instance of a path sees it."""
    owner = pack_owner(path, pack.name)
    return owner.pack_states[pack.name] if pack.name in owner.pack_states else pack.first_state()


# -- rebuilding -------------------------------------------------------------------


def updated(
    root: Instance[Any], id: str, change: Callable[[Instance[Any]], Instance[Any] | None]
) -> Instance[Any]:
    """The tree with one instance changed, or removed where `change` gives None. The root cannot be removed."""
    path = path_to(root, id)
    if not path:
        return root
    old, new = path[-1], change(path[-1])
    for above in reversed(path[:-1]):
        place = next(i for i, child in enumerate(above.children) if child is old)
        kept = () if new is None else (new,)
        old, new = (
            above,
            above.having(children=(*above.children[:place], *kept, *above.children[place + 1 :])),
        )
    return root if new is None else new


def clear_suspension(instance: Instance[Any]) -> Instance[Any]:
    """A copy that does not wait."""
    return instance.having(suspended=None)


def without_calls(root: Instance[Any]) -> Instance[Any]:
    """The tree as another execution begins with it, which has called no machines."""
    for instance in suspended_instances(root):
        if not instance.halted:
            root = updated(root, instance.id, clear_suspension)
    return root


def hoisted(root: Instance[Any], id: str, known: Mapping[str, Pack[Any]]) -> Instance[Any]:
    """The tree with the packs of one instance's node begun, at the node's own boundaries or above.

    A boundary opens an entry of its own; else the nearest entry above serves, and the root gets one where there
    is none. Workers have no packs. `known` are the charter's packs, for boundaries of packs that only nodes below use.
    """
    path = path_to(root, id)
    node = path[-1].node
    here = {pack.name: pack for pack in node.packs}
    for name in sorted(node.pack_boundary):
        if (pack := here.get(name) or known.get(name)) is not None:
            root = _opened(root, id, pack)
    for pack in () if node.worker else node.packs:
        path = path_to(root, id)
        root = _opened(root, pack_owner(path, pack.name).id, pack)
    return root


def _opened(root: Instance[Any], id: str, pack: Pack[Any]) -> Instance[Any]:
    owner = path_to(root, id)[-1]
    if pack.name in owner.pack_states and any(p.name == pack.name for p in owner.packs):
        return root
    return updated(root, id, lambda instance: _with_pack(instance, pack))


def _with_pack(instance: Instance[Any], pack: Pack[Any]) -> Instance[Any]:
    states = dict(instance.pack_states)
    if pack.name not in states:
        states[pack.name] = pack.first_state()
    packs = instance.packs
    if not any(known.name == pack.name for known in packs):
        packs = (*packs, pack)
    return instance.having(pack_states=states, packs=packs)


def check_invariants(root: Instance[Any]) -> None:
    """Refuse a tree with two primaries, or a primary below a worker."""
    for instance, _ in walk(root):
        front = [c for c in instance.children if not c.node.worker]
        if len(front) > 1:
            names = " and ".join(f'"{c.node.label}"' for c in front)
            raise CallRefused(
                "two_primaries", f"{names} would both talk to the user; make all but one of them workers"
            )
        if front and instance.node.worker:
            raise CallRefused(
                "two_primaries",
                f'the worker "{instance.node.label}" cannot have "{front[0].node.label}" below it, which is no worker',
            )
        if instance.launch and instance.children:
            raise CallRefused(
                "launched",
                f'"{instance.node.label}" is an execution of its own, and what is below it is there',
            )
        if front and front[0].background:
            raise CallRefused(
                "two_primaries", f'"{front[0].node.label}" runs in the background and is no worker'
            )


def check_depth(depth: int) -> None:
    """Refuse an instance so deep that its tree could not be stored."""
    if depth > MAX_DEPTH:
        raise CallRefused(
            "tree_too_deep",
            f"the tree would be more than {MAX_DEPTH} instances deep; cede instead of going deeper",
        )


def prepared(root: Instance[Any], known: Mapping[str, Pack[Any]]) -> Instance[Any]:
    """A tree ready to run: every state validated and kept as validated, packs hoisted, invariants checked.

    `known` are the charter's packs. Raises `TreeError` with every state that is refused. What was given is not
    touched.
    """
    instances = all_instances(root)
    problems = []
    for instance in instances:
        try:
            root = updated(root, instance.id, _validated)
        except TreeError as error:
            problems.append(f'instance of node "{instance.node.label}" ({instance.id}): {error.message}')
    if problems:
        raise TreeError("invalid_state", "; ".join(problems))
    check_invariants(root)
    check_depth(max(depth for _, depth in walk(root)))
    for instance in instances:
        root = hoisted(root, instance.id, known)
    return root


def _validated(instance: Instance[Any]) -> Instance[Any]:
    states = dict(instance.pack_states)
    for pack in (*instance.node.packs, *instance.packs):
        if pack.name in states:
            states[pack.name] = pack.schema.validate(states[pack.name])
    return instance.having(state=validated_state(instance), pack_states=states)


def validated_state(instance: Instance[Any]) -> Any:
    """The state of an instance as its node's schema has it."""
    if instance.state is UNSET:
        raise TreeError("missing_target_state", "it has no state, and its node no initial one")
    return instance.node.schema.validate(instance.state)
