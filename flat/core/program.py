"""A program: nodes made of named ops. Immutable data, with a digest; it names code and never holds any.

Both front ends lower to this. `START` and `END` are two nodes that a program has only when a lifecycle hook
steers the beginning or the end; visits to them are not counted as steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flat.core.hookref import HookRefs
from flat.core.ops import AnyOp, Branch, Converse, Hook
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
    virtual: bool = False
    """True for `START` and `END`: no state of the author's, no step."""
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
    max_depth: int | None = None
    """How many machines deep machines may start machines, this one's parents included. None: as its parent says."""


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
    hooks: tuple[HookRefs, ...] = ()
    """Every reference to hooks that some node has, once."""
    limits: Limits = field(default_factory=Limits)
    agents: Mapping[str, Any] = field(default_factory=dict)
    """Plain configuration of each agent, as the agent layer reads it."""
    machines: Mapping[str, Any] = field(default_factory=dict)
    """What each child machine is: `{"path": …}` relative to this machine's folder, `{"inline": …}` or `{"tree": …}`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""
    uses_machine: bool = True
    """True when some template or condition may read `context.machine`."""

    @property
    def entry(self) -> str:
        """The node where a fresh execution begins."""
        return START if START in self.nodes else self.initial


class LazyNodes(dict[str, Node]):
    """Nodes by name, each made when it is first asked for: a run that visits ten of a thousand makes ten.

    A dict underneath, because looking up a node that is there must cost no more than that.
    """

    def __init__(self, names: Iterable[str], make: Callable[[str], Node]) -> None:
        super().__init__()
        self._names = dict.fromkeys(names)
        self._make = make

    def __missing__(self, name: str) -> Node:
        if name not in self._names:
            raise KeyError(name)
        node = self[name] = self._make(name)
        return node

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._names else default

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def keys(self) -> Any:
        return self._names.keys()

    def values(self) -> Any:
        return [self[name] for name in self._names]

    def items(self) -> Any:
        return [(name, self[name]) for name in self._names]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and dict(self.items()) == dict(other.items())

    __hash__ = None


def bound(program: Program, steers: Mapping[HookRefs, frozenset[str]]) -> Program:
    """The program without the hook points that nobody steers.

    `steers` tells, for each hooks reference in the program, the points that its object overrides with code
    that may change something. The digest stays: what is left out would have answered "unchanged".
    """
    lifecycle = steers.get(program.lifecycle, frozenset())
    unsteered = {START} - ({START} if "machine_start" in lifecycle else set())
    unsteered |= {END} - ({END} if "machine_end" in lifecycle else set())
    names = [name for name in program.nodes if name not in unsteered]
    nodes = LazyNodes(names, lambda name: _bound_node(program.nodes[name], steers))
    return replace(program, nodes=nodes)


def _bound_node(node: Node, steers: Mapping[HookRefs, frozenset[str]]) -> Node:
    points = steers.get(node.hooks, frozenset())
    ops = tuple(
        _bound_op(op, points) for op in node.ops if not (isinstance(op, Hook) and op.point not in points)
    )
    return replace(node, ops=ops, error_steered=node.error_steered and "error" in points)


def _bound_op(op: AnyOp, points: frozenset[str]) -> AnyOp:
    if isinstance(op, Branch) and op.steered and "transition" not in points:
        return replace(op, steered=False)
    if isinstance(op, Converse):
        calls, result = op.on_calls and "tool_calls" in points, op.on_result and "tool_result" in points
        return replace(op, on_calls=calls, on_result=result)
    steered_at = getattr(op, "steered_at", None)  # the op of a front end that asks hooks itself
    bound_op: AnyOp = op if steered_at is None else steered_at(points)
    return bound_op
