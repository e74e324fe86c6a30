"""A program: nodes made of named ops. Immutable data, with a digest; it names code and never holds any.

Both front ends lower to this. `START` and `END` are two nodes that a program has only when a lifecycle hook
steers the beginning or the end; visits to them are not counted as steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flat.core.hookref import HookRefs
from flat.core.ops import AnyOp, Branch, Hook
from flat.core.template import CompiledMapping

START = "(start)"
END = "(end)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A place an instance can be: a short run of ops, and where errors lead."""

    name: str
    ops: tuple[AnyOp, ...]
    on_error: Mapping[str, str] = field(default_factory=dict)
    """Target by failure name; `default` catches the rest."""
    hooks: HookRefs = ()
    timeout: float | None = None
    """Seconds that one visit may take."""
    final: bool = False
    error_steered: bool = True
    """True when a hook may choose where an error leads that `on_error` does not catch."""

    def index(self, key: str) -> int:
        """Where the op with this key is, or -1."""
        for i, op in enumerate(self.ops):
            if op.key == key:
                return i
        return -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a run may use before it stops with status `limit`. None: no limit."""

    max_steps: int | None = 1000
    max_agent_calls: int | None = None
    max_depth: int | None = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """The compiled definition of one machine."""

    name: str
    kind: str
    spec_version: str
    initial: str
    context: CompiledMapping
    nodes: Mapping[str, Node]
    lifecycle: HookRefs = ()
    limits: Limits = field(default_factory=Limits)
    agents: Mapping[str, Any] = field(default_factory=dict)
    """Plain configuration of each agent, as the agent layer reads it."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    uses_machine: bool = True
    """True when some template or condition may read `context.machine`."""

    @property
    def entry(self) -> str:
        """The node where a fresh execution begins."""
        return START if START in self.nodes else self.initial


def bound(program: Program, steers: Mapping[HookRefs, frozenset[str]]) -> Program:
    """The program without the hook points that nobody steers.

    `steers` tells, for each hooks reference in the program, the points that its object overrides with code
    that may change something. The digest stays: what is left out would have answered "unchanged".
    """
    nodes: dict[str, Node] = {}
    changed = False
    for name, node in program.nodes.items():
        points = steers.get(program.lifecycle if name in (START, END) else node.hooks, frozenset())
        if name in (START, END) and not points & {"machine_start", "machine_end"} & {_point(node)}:
            changed = True
            continue
        ops = tuple(
            replace(op, steered=False) if isinstance(op, Branch) and op.steered and "transition" not in points else op
            for op in node.ops
            if not (isinstance(op, Hook) and op.point not in points)
        )
        steered = node.error_steered and "error" in points
        if ops != node.ops or steered != node.error_steered:
            changed = True
            node = replace(node, ops=ops, error_steered=steered)
        nodes[name] = node
    return replace(program, nodes=nodes) if changed else program


def _point(node: Node) -> str:
    return next((op.point for op in node.ops if isinstance(op, Hook)), "")
