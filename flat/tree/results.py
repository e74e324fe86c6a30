"""What a transition may decide: become another node, add children, leave, or wait.

These are what author's code returns. Nothing has happened yet: whoever runs the transition checks the result and
records it as a change (`flat.tree.changes`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload
from uuid import uuid4

from typing_extensions import TypeVar

from flat.core.op import UNSET, Unset
from flat.errors import CallRefused, did_you_mean

if TYPE_CHECKING:
    from flat.tree.messages import Message
    from flat.tree.naming import Ref
    from flat.tree.node import Node

S = TypeVar("S", default=Any)
OnTimeout: TypeAlias = Literal["resume", "cede", "keep"]
ON_TIMEOUT = ("resume", "cede", "keep")


@dataclass(frozen=True, slots=True)
class TransitionTo:
    """Become another node. Children go, the instance keeps its id."""

    node: Node[Any] | Ref
    state: Any = UNSET


@dataclass(frozen=True, slots=True)
class SpawnTarget:
    """One child to add."""

    node: Node[Any] | Ref
    state: Any = UNSET
    brief: str | None = None
    """The first thing that a worker with a history of its own is told."""
    background: bool = False
    """True lets the parent go on beside it; only workers may."""
    launch: bool = False
    """True runs the child as an execution of its own, with a history of its own; only workers may."""


@dataclass(frozen=True, slots=True)
class Spawn:
    """Add children below this instance."""

    children: tuple[SpawnTarget, ...]


@dataclass(frozen=True, slots=True)
class Cede:
    """Leave the tree. The parent gets the content: nothing, text, or messages."""

    content: str | Sequence[Message] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspend:
    """Wait, with all below, until a resume with this id comes."""

    reason: str
    suspend_id: str = field(default_factory=lambda: str(uuid4()))
    metadata: Mapping[str, Any] | None = None
    channel: str | None = None
    timeout: float | None = None
    on_timeout: OnTimeout = "keep"


TransitionResult: TypeAlias = TransitionTo | Spawn | Cede | Suspend


def transition_to(node: Node[S] | Ref, state: S | Mapping[str, Any] | Unset = UNSET) -> TransitionTo:
    """Become `node`, with this state or else the node's initial one.

    >>> @transition("Hand over to billing")
    ... def billing(state: Desk, account: str) -> TransitionTo:
    ...     return transition_to(billing_node, {"account": account})
    """
    return TransitionTo(node, state)


@overload
def spawn(
    node: Node[S] | Ref,
    state: S | Mapping[str, Any] | Unset = UNSET,
    *,
    brief: str | None = None,
    background: bool = False,
    launch: bool = False,
) -> Spawn: ...
@overload
def spawn(node: Sequence[SpawnTarget | Node[Any] | tuple[Node[Any] | Ref, Any]], /) -> Spawn: ...
def spawn(
    node: Any,
    state: Any = UNSET,
    *,
    brief: str | None = None,
    background: bool = False,
    launch: bool = False,
) -> Spawn:
    """Add one child, or several given as `(node, state)` pairs, nodes or `SpawnTarget`s."""
    if isinstance(node, list | tuple):
        if state is not UNSET or brief or background or launch:
            raise CallRefused(
                "bad_transition_result",
                "spawn: with a list of children, give state and options to each: SpawnTarget(node, state, brief=…)",
            )
        return Spawn(tuple(_target(part) for part in node))
    return Spawn((SpawnTarget(node, state, brief, background, launch),))


def _target(part: Any) -> SpawnTarget:
    if isinstance(part, SpawnTarget):
        return part
    if isinstance(part, tuple | list):
        return SpawnTarget(*part)
    if isinstance(part, Mapping):
        return SpawnTarget(**part)
    return SpawnTarget(part)


def cede(content: str | Sequence[Message] | None = None) -> Cede:
    """Leave the tree and hand the content to the parent."""
    return Cede(content)


def suspend(
    reason: str,
    suspend_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    channel: str | None = None,
    timeout: float | None = None,
    on_timeout: OnTimeout = "keep",
) -> Suspend:
    """Wait until somebody resumes this instance.

    `channel` names a signal that resumes it besides its own; after `timeout` seconds `on_timeout` applies.
    """
    if on_timeout not in ON_TIMEOUT:
        hint = did_you_mean(str(on_timeout), ON_TIMEOUT)
        raise CallRefused("bad_transition_result", f"suspend: on_timeout cannot be {on_timeout!r}; {hint}")
    return Suspend(
        reason=reason,
        suspend_id=str(uuid4()) if suspend_id is None else suspend_id,
        metadata=metadata,
        channel=channel,
        timeout=timeout,
        on_timeout=on_timeout,
    )
