"""The charter: everything that a tree may use, by name. It holds no state and serves any number of machines.

What is stored refers to code by the names given here, so a charter must know every node, tool and transition that
is to survive a restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from flat.errors import CharterError, CharterMismatch, did_you_mean
from flat.tree.commands import Command
from flat.tree.context import ToolContext
from flat.tree.executor import Executor, StandardExecutor
from flat.tree.naming import Ref, named
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.tools import ToolEntry, as_tool
from flat.tree.transitions import SerialTransition, Transition, TransitionEntry, as_transition

T = TypeVar("T")


@dataclass(frozen=True, init=False, eq=False, repr=False)
class Charter:
    """The registry of a family of trees."""

    name: str
    executor: StandardExecutor | Executor
    nodes: Mapping[str, Node[Any]]
    tools: Mapping[str, ToolEntry]
    transitions: Mapping[str, Transition]
    packs: tuple[Pack[Any], ...]
    instructions: str | None
    build_system_prompt: Callable[..., str] | None
    mappers: Mapping[str, Callable[[str], Any]]
    hooks: Any
    lifecycle_hooks: Any

    def __init__(
        self,
        name: str,
        *,
        executor: StandardExecutor | Executor | None = None,
        nodes: Mapping[str, Node[Any]] | Sequence[Node[Any]] | None = None,
        tools: Mapping[str, Any] | Iterable[Any] | None = None,
        transitions: Mapping[str, Any] | Iterable[Any] | None = None,
        packs: Iterable[Pack[Any]] | None = None,
        instructions: str | None = None,
        build_system_prompt: Callable[..., str] | None = None,
        mappers: Mapping[str, Callable[[str], Any]] | None = None,
        hooks: Any = None,
        lifecycle_hooks: Any = None,
    ) -> None:
        """`mappers` names the functions that map structured output, for nodes that are stored inline.

        `hooks` is an object with methods of the hooks interface, the name of one, `{name, args}`, or a list of those;
        `lifecycle_hooks` the same for the beginning and the end alone, in place of `hooks`.
        """
        where = f'charter "{name}"'
        put = object.__setattr__
        put(self, "name", name)
        put(self, "executor", StandardExecutor() if executor is None else executor)
        put(self, "nodes", named(nodes, "node", where, lambda e, k: _node(e, where)))
        put(self, "tools", named(tools, "tool", where, lambda e, k: as_tool(e, k, where, ToolContext)))
        put(
            self,
            "transitions",
            named(transitions, "transition", where, lambda e, k: _transition(e, k, where)),
        )
        put(self, "packs", tuple(packs or ()))
        put(self, "instructions", instructions)
        put(self, "build_system_prompt", build_system_prompt)
        put(self, "mappers", dict(mappers or {}))
        put(self, "hooks", hooks)
        put(self, "lifecycle_hooks", lifecycle_hooks)
        self._check(where)

    def __repr__(self) -> str:
        return f"Charter({self.name!r})"

    def _check(self, where: str) -> None:
        if not isinstance(self.executor, StandardExecutor | Executor):
            raise CharterError(
                "not_an_executor",
                f"{where}: {self.executor!r} is no executor: it has no method `call(request)`",
            )
        for field, given in (("hooks", self.hooks), ("lifecycle_hooks", self.lifecycle_hooks)):
            for one in given if isinstance(given, list | tuple) else (given,):
                if isinstance(one, type):
                    raise CharterError(
                        "bad_setting",
                        f"{where}: {field} is the class {one.__name__}; give an object: {one.__name__}()",
                    )
        names = [pack.name for pack in self.packs]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise CharterError(
                "duplicate_name", f'{where}: two packs have the name "{twice}"; their state would be one'
            )
        for key in self.nodes:
            if "." in key:
                raise CharterError(
                    "bad_name",
                    f'{where}: the node name "{key}" has a dot, which separates a node from its parts in refs',
                )
        self._check_packs(where)
        self._check_refs(where)

    def _check_packs(self, where: str) -> None:
        """One name, one pack: state is kept by name, so two packs that share one would share it unseen."""
        known = {pack.name: pack for pack in self.packs}
        for key, node in self.nodes.items():
            for pack in node.packs:
                if known.setdefault(pack.name, pack) is not pack:
                    raise CharterError(
                        "duplicate_name",
                        f'{where}: node "{key}" has another pack with the name "{pack.name}"; rename one',
                    )
            for name in node.pack_boundary:
                if name not in known:
                    raise CharterError(
                        "unknown_ref",
                        f'{where}: node "{key}" is a boundary for the pack "{name}", which nobody has; '
                        f"{did_you_mean(name, known)}",
                    )

    def _check_refs(self, where: str) -> None:
        problems = []
        for key, node in self.nodes.items():
            for name, entry in node.transitions.items():
                try:
                    found = self.resolved_transition(entry)
                    if isinstance(found, SerialTransition):
                        self.resolved_node(found.node)
                except CharterMismatch as mismatch:
                    problems += [
                        f"nodes.{key}.transitions.{name}: {text}" for _, _, text in mismatch.problems
                    ]
        if problems:
            raise CharterError("unknown_ref", f"{where}: " + "\n".join(problems))

    # -- by name ------------------------------------------------------------------

    def node(self, name: str) -> Node[Any]:
        """The node of this name. Raises `CharterMismatch`, as all of these do."""
        return _found(self.nodes, name, "node")

    def tool(self, ref: str) -> ToolEntry:
        """The tool `name`, or `name` of the node or pack that stands before the dot."""
        owner, part = self._owner(ref)
        tools: Mapping[str, ToolEntry] = self.tools if owner is None else owner.tools
        return _found(tools, part, "tool", ref)

    def transition(self, ref: str) -> Transition:
        """The transition `name`, or `name` of the node that stands before the dot."""
        owner, _, part = ref.partition(".")
        if not part:
            return _found(self.transitions, ref, "transition")
        entry = _found(_found(self.nodes, owner, "node", ref).transitions, part, "transition", ref)
        if isinstance(entry, Ref):
            if entry.ref == ref:
                raise CharterMismatch([("", ref, f'the transition "{ref}" refers to itself')])
            return self.transition(entry.ref)
        return entry

    def command(self, ref: str) -> Command[..., Any]:
        """The command of the node or pack that stands before the dot."""
        owner, part = self._owner(ref)
        if owner is None:
            raise CharterMismatch([("", ref, f'a command ref names its node: "node.{ref}"')])
        return _found(owner.commands, part, "command", ref)

    def pack(self, name: str) -> Pack[Any]:
        """The pack of this name, listed in the charter or on one of its nodes."""
        return _found(self.known_packs, name, "pack")

    def _owner(self, ref: str) -> tuple[Node[Any] | Pack[Any] | None, str]:
        owner, dot, part = ref.partition(".")
        if not dot:
            return None, ref
        if owner not in self.nodes and owner in self.known_packs:
            return self.known_packs[owner], part
        return _found(self.nodes, owner, "node", ref), part

    @cached_property
    def known_packs(self) -> Mapping[str, Pack[Any]]:
        """Every pack of the charter and its nodes, by name."""
        packs = [*self.packs, *(pack for node in self.nodes.values() for pack in node.packs)]
        return {pack.name: pack for pack in reversed(packs)}

    def describe(self) -> dict[str, Any]:
        """One JSON document about everything in here, with its hash, for clients and generated stubs."""
        from flat.tree.description import describe  # it reads charters, so it cannot be imported before them

        return describe(self)

    # -- by object ----------------------------------------------------------------

    def name_of(self, node: Node[Any]) -> str | None:
        """The key under which the node is registered. A copy with the same id counts as the same node."""
        return self._names.get(node.id)

    def label_of(self, node: Node[Any]) -> str:
        """What people call an instance of the node: its name, else its key here, else how its instructions begin."""
        return node.name or self.name_of(node) or node.label

    @cached_property
    def _names(self) -> Mapping[str, str]:
        return {node.id: key for key, node in reversed(list(self.nodes.items()))}

    def resolved_node(self, node: Node[Any] | Ref | str) -> Node[Any]:
        """The node behind a ref, or the node itself."""
        if isinstance(node, Node):
            return node
        return self.node(node if isinstance(node, str) else node.ref)

    def resolved_transition(self, entry: TransitionEntry) -> Transition:
        """The transition behind a ref, or the transition itself."""
        return self.transition(entry.ref) if isinstance(entry, Ref) else entry


def _node(entry: Any, where: str) -> Node[Any]:
    if not isinstance(entry, Node):
        raise CharterError("not_a_node", f"{where}: {entry!r} is no node")
    return entry


def _transition(entry: Any, key: str | None, where: str) -> Transition:
    found = as_transition(entry, key, where)
    if isinstance(found, Ref):
        raise CharterError("not_a_transition", f"{where}: a transition of the charter cannot be a ref itself")
    return found


def _found(entries: Mapping[str, T], name: str, kind: str, ref: str = "") -> T:
    if name in entries:
        return entries[name]
    hint = did_you_mean(name, entries)
    raise CharterMismatch(
        [("", ref or name, f'unknown {kind} "{ref or name}"' + (f"; {hint}" if hint else ""))]
    )
