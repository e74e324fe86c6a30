"""What the executions of one family share while a process drives them, and what a driver needs of their parent.

A child is an execution of its own, with a derived id, in the same store. Its parent's driver asks `Children` to run
it, and is told how it ended, or that it is *held*: it waits for something outside, or the family's budget is used
up. A parent all of whose pending effects are held is parked itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from flat.backends.protocols import Birth
from flat.core.effects import StartChild
from flat.core.events import Done, Failed
from flat.core.snapshot import Snapshot


@dataclass
class Budget:
    """Model calls that a family may make together. Calls that are out count, so that it is never exceeded."""

    limit: int
    used: int = 0
    out: int = 0

    def take(self) -> bool:
        """Whether one more call may be made; it is out until `settle`."""
        if self.used + self.out >= self.limit:
            return False
        self.out += 1
        return True

    def settle(self, calls: int) -> None:
        """The call is back, and counted as so many."""
        self.out -= 1
        self.used += calls

    @property
    def reason(self) -> str:
        return f"max_agent_calls ({self.limit}) reached"


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An effect that is not answered by waiting for it here: a signal, a child that waits, a budget used up."""

    effect_id: str
    channel: str = ""
    """The channel that tells when it is worth looking again; empty for a budget."""
    deadline: float | None = None
    waiting_on: tuple[str, ...] = ()
    """What it waits for in the end, for people: the channels of a child that waits."""
    reason: str = ""
    """Why a child waits, in words."""
    limited: str = ""
    """Why nothing more may be spent, for a budget that is used up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Came:
    """How a child ended. `found`: it was stored already, so that it may have told so on its channel."""

    event: Done | Failed
    found: bool = False


class Children(Protocol):
    """What a driver asks of the runtime about the children of its execution."""

    async def run(self, effect: StartChild, parent: Snapshot) -> Came | Held:
        """Drive a child until it stops: a new one, or the stored one of this id."""
        ...

    async def births(self, launched: Sequence[StartChild], parent: Snapshot) -> Sequence[Birth]:
        """What a commit needs to have these executions born."""
        ...

    async def take_up(self, parent: Snapshot) -> None:
        """See to the children that an earlier run of the execution has left, other than those it waits for."""
        ...

    def launch(self, launched: Sequence[StartChild], parent: Snapshot) -> None:
        """Drive executions that are born now, in the background."""
        ...

    async def end(self, effect: StartChild, parent: Snapshot, reason: str) -> None:
        """Cancel a child that nobody waits for any more."""
        ...

    async def end_all(self, parent: Snapshot, reason: str) -> None:
        """Cancel all unfinished children of an execution that was cancelled."""
        ...
