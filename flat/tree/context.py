"""What author's code is given while it runs: the state it may read and change, and whom it runs for.

Each kind of code has its own context. `state` is a copy of the plain data as it was when the code was called;
`model` is the same as the author's own type. Updates are validated at once and raise `StateError`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, cast

from pydantic import BaseModel
from typing_extensions import TypeVar

from flat.core.op import UNSET
from flat.tree.messages import Message
from flat.tree.results import Cede, Spawn, Suspend, cede, spawn, suspend
from flat.tree.state import Draft

S = TypeVar("S", default=Any)


class StateContext(Generic[S]):
    """The state half of every context."""

    def __init__(self, draft: Draft) -> None:
        self._draft = draft
        self._start = draft.state
        self.state: Any = draft.snapshot()
        """The state as plain data when the code was called. Changing this copy changes nothing."""

    @property
    def model(self) -> S:
        """The state when the code was called, as the author's type. Changing it changes nothing."""
        return cast(S, self._draft.schema.parse(self._start))

    def update_state(
        self,
        patch: Mapping[str, Any] | BaseModel | None = None,
        *,
        deep: bool = False,
        drop_keys: Iterable[str] = (),
    ) -> None:
        """Merge a patch into the state. Of a model, the fields that were set count.

        The merge is shallow unless `deep`. Raises `StateError` when the schema refuses the result.
        """
        if isinstance(patch, BaseModel):
            patch = patch.model_dump(mode="json", by_alias=True, exclude_unset=True)
        self._draft.update(patch, deep=deep, drop_keys=drop_keys)

    def replace_state(self, value: S | Mapping[str, Any]) -> None:
        """Replace the state as a whole. Raises `StateError` when the schema refuses it."""
        self._draft.replace(value)


class ToolContext(StateContext[S]):
    """What a tool of a node, an ancestor or the charter gets. `instance_id` is always the leaf that called."""

    def __init__(
        self,
        draft: Draft,
        *,
        instance_id: str,
        root_instance_id: str,
        messages: Sequence[Message] = (),
        idempotency_key: str = "",
    ) -> None:
        super().__init__(draft)
        self.instance_id, self.root_instance_id = instance_id, root_instance_id
        self.idempotency_key = idempotency_key
        """The same text whenever this very call is made again; pass it on to services that take one."""
        self._messages = messages

    def get_instance_messages(self) -> list[Message]:
        """The messages of this instance, as the history stood when the step began."""
        return own_messages(self._messages, self.instance_id)


class PackContext(StateContext[S]):
    """What a tool of a pack gets: the pack's state, and nothing of the node."""

    def __init__(self, draft: Draft, *, root_instance_id: str, idempotency_key: str = "") -> None:
        super().__init__(draft)
        self.root_instance_id, self.idempotency_key = root_instance_id, idempotency_key


class CommandContext(StateContext[S]):
    """What a command of a node gets. The helpers make the results that a command may return."""

    def __init__(self, draft: Draft, *, instance_id: str, messages: Sequence[Message] = ()) -> None:
        super().__init__(draft)
        self.instance_id = instance_id
        self._messages = messages

    def get_instance_messages(self) -> list[Message]:
        """The messages of this instance."""
        return own_messages(self._messages, self.instance_id)

    def cede(self, content: Any = None) -> Cede:
        """Leave the tree with this content for the parent; return it from the command."""
        return cede(content)

    def spawn(self, node: Any, state: Any = UNSET, **options: Any) -> Spawn:
        """Add children; return it from the command."""
        return spawn(node, state, **options)

    def suspend(self, reason: str, **options: Any) -> Suspend:
        """Wait for a resume; return it from the command."""
        return suspend(reason, **options)


class PackCommandContext(StateContext[S]):
    """What a command of a pack gets: the pack's state."""


@dataclass(frozen=True, slots=True)
class TransitionContext:
    """What a transition gets besides the state: the model's arguments and its reason."""

    args: Any = field(default_factory=dict)
    reason: str = ""


Ctx: TypeAlias = ToolContext[S]
PackCtx: TypeAlias = PackContext[S]
CommandCtx: TypeAlias = CommandContext[S]


def own_messages(history: Sequence[Message], instance_id: str) -> list[Message]:
    """The messages whose source is the instance."""
    return [
        message
        for message in history
        if message.metadata.source is not None and message.metadata.source.instance_id == instance_id
    ]
