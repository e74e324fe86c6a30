"""The same as functions: `create_charter(...)`, `create_node(...)`, and transition helpers bound to a node's type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from typing_extensions import TypeVar

from flat.core.op import UNSET, Unset
from flat.tree.charter import Charter
from flat.tree.commands import Command
from flat.tree.instance import Instance
from flat.tree.messages import Message
from flat.tree.node import Node
from flat.tree.pack import Pack
from flat.tree.results import Cede, Spawn, Suspend, TransitionTo, cede, spawn, suspend, transition_to

S = TypeVar("S", default=Any)

create_charter = Charter
create_node = Node
create_instance = Instance
create_pack = Pack
create_command = Command


@dataclass(frozen=True, slots=True)
class Helpers(Generic[S]):
    """The results of a transition to one node, checked against that node's state."""

    node: Node[S]

    def transition_to(self, state: S | Mapping[str, Any] | Unset = UNSET) -> TransitionTo:
        """Become the node."""
        return transition_to(self.node, state)

    def spawn(self, state: S | Mapping[str, Any] | Unset = UNSET, *, brief: str | None = None) -> Spawn:
        """Add the node below this instance."""
        return spawn(self.node, state, brief=brief)

    def cede(self, content: str | Sequence[Message] | None = None) -> Cede:
        """Leave the tree and hand the content to the parent."""
        return cede(content)

    def suspend(self, reason: str, suspend_id: str | None = None) -> Suspend:
        """Wait until somebody resumes this instance."""
        return suspend(reason, suspend_id)


def create_helpers(node: Node[S]) -> Helpers[S]:
    """Transition helpers for a node."""
    return Helpers(node)


__all__ = [
    "create_charter",
    "create_command",
    "create_helpers",
    "create_instance",
    "create_node",
    "create_pack",
]
