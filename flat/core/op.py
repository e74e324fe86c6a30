"""What an op is, may see, and may answer.

An op is one instruction of a node: immutable data with a key that is unique in its node. `start` runs when
the cursor reaches it, `resume` when an effect it asked for is answered. Both are pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Protocol, TypeAlias

from flat.core.effects import Effect, StartChild
from flat.core.events import Done, Failed, Spent
from flat.core.failure import Failure
from flat.core.hookref import HookRefs
from flat.core.record import record


class Unset(Enum):
    """The type of `UNSET`, which stands for "leave it as it is"."""

    UNSET = "unset"


UNSET = Unset.UNSET


@record
class Next:
    """Go on with the next op. Output and context change only where given."""

    output: Any = UNSET
    context: Mapping[str, Any] | Unset = UNSET


@record
class Block:
    """Wait for effects. `local` is the op's own memory until they are answered. Context changes only where given."""

    effects: tuple[Effect, ...]
    local: Any = None
    context: Mapping[str, Any] | Unset = UNSET


@record
class Goto:
    """Leave this node for another, with this context where one is given."""

    target: str
    context: Mapping[str, Any] | Unset = UNSET
    keep: tuple[str, ...] = ()
    """Effects that stay pending. The first op of the other node asks for them again, so that they are found."""


@record
class End:
    """The instance is finished, with this output."""

    output: Any


@record
class Raise:
    """The op failed; the node's error targets decide."""

    failure: Failure


Answer: TypeAlias = Next | Block | Goto | End | Raise


class View(Protocol):
    """All that an op may look at. There is no clock in here, and no way out."""

    @property
    def context(self) -> Mapping[str, Any]: ...
    @property
    def scope(self) -> Mapping[str, Any]:
        """The names that templates and conditions see: `context`, `input` (the same) and `output`."""
        ...

    @property
    def output(self) -> Any:
        """What the last op that has an output gave."""
        ...

    @property
    def local(self) -> Any: ...
    @property
    def own(self) -> Any:
        """`local`, when the op itself has made it since the last snapshot, and may change it in place; else None."""
        ...

    @property
    def node(self) -> str: ...
    @property
    def hooks(self) -> HookRefs: ...
    @property
    def at(self) -> float:
        """When the event happened that is being handled."""
        ...

    @property
    def deadline(self) -> float | None: ...
    @property
    def execution_id(self) -> str: ...
    def effect_id(self, key: str, suffix: str = "") -> str: ...
    def spend(self, spent: Spent) -> None:
        """Add to what the execution has used."""
        ...

    def launch(self, child: StartChild) -> None:
        """Have an execution born with the next commit; nobody waits for it."""
        ...

    def say(self, *messages: Any) -> None:
        """Append messages to the execution's log, with the next commit. They are never written again."""
        ...

    @property
    def log_length(self) -> int:
        """How many messages the log has, with those that were said since the last commit."""
        ...


class Op(Protocol):
    """One instruction of a node."""

    @property
    def key(self) -> str: ...
    @property
    def kind(self) -> str: ...
    def start(self, here: View, /) -> Answer: ...
    def resume(self, here: View, event: Done | Failed, /) -> Answer: ...
