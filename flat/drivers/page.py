"""The page of executions that a pool worker takes from: how many it looks at, and which of them it leaves to others.

Theory of operation. Hundreds of workers must not fight for the oldest execution. A look into the store brings a page of
them, which are hints and may be stale. As the register says how many workers there are, each prefers its own share of
the page, by a hash of the ids; it takes of the others' only when its own is not enough. Pages grow while many attempts
are lost all the same, and shrink to what is needed when nobody else is there, so that a lone worker keeps the order of
the queue. What another one is seen to own is not tried.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from random import Random
from zlib import crc32

from flat.backends.protocols import Execution
from flat.drivers.dispatch import PAGE
from flat.drivers.fleet import Fleet

MANY_LOST, FEW_LOST = 0.25, 0.05
"""Shares of lost attempts at which pages become longer, or shorter."""
STALE_AFTER = 1.0
"""Seconds after which what is left of a page is looked up again."""


@dataclass
class Page:
    """What one worker has looked up, and not yet tried."""

    fleet: Fleet
    concurrency: int
    random: Random
    foreign: int = field(default=0, init=False)
    """How many of those looked up others were driving."""
    _left: deque[Execution] = field(default_factory=deque, init=False, repr=False)
    _looked_at: float = field(default=0.0, init=False, repr=False)
    _reach: float = field(default=1.0, init=False, repr=False)
    """How many times longer a page is than what is taken out of it."""
    _tries: int = field(default=0, init=False, repr=False)
    _lost: int = field(default=0, init=False, repr=False)

    def __bool__(self) -> bool:
        return bool(self._left)

    def take(self) -> Execution:
        return self._left.popleft()

    def clear(self) -> None:
        self._left.clear()

    def forget_stale(self, now: float) -> None:
        if now - self._looked_at > STALE_AFTER:
            self._left.clear()

    # -- filling it --------------------------------------------------------------------------

    def length(self, wanted: int) -> int:
        """How many to look up, beside those that cannot be taken, so that `wanted` can be."""
        few = max(wanted, self.concurrency)
        return min(PAGE, round(few * self.fleet.workers * self._reach))

    def open_of(self, found: Sequence[Execution], running: Container[str]) -> list[Execution]:
        """Those of what was looked up that nobody drives; the others are counted."""
        others = [e for e in found if e.execution_id not in running]
        free = [e for e in others if e.owner is None]
        self.foreign = len(others) - len(free)
        return free

    def fill(self, found: Sequence[Execution], wanted: int, now: float) -> None:
        """Keep as many of these as it takes, those first that no other worker prefers."""
        self._left, self._looked_at = deque(self._share_of(found, wanted)), now

    def _share_of(self, found: Sequence[Execution], wanted: int) -> list[Execution]:
        few = max(wanted, self.concurrency)
        if self.fleet.workers == 1:
            if len(found) <= few or self._reach == 1.0:
                return list(found[:few])
            chosen = set(self.random.sample(range(len(found)), few))
            return [e for number, e in enumerate(found) if number in chosen]
        mine: list[Execution] = []
        others: list[Execution] = []
        for e in found:
            is_mine = crc32(e.execution_id.encode(errors="replace")) % self.fleet.workers == self.fleet.rank
            (mine if is_mine else others).append(e)
        missing = max(0, min(wanted - len(mine), len(others)))
        return [*mine[:few], *self.random.sample(others, missing)]

    # -- how long it is ----------------------------------------------------------------------

    def tried(self) -> None:
        self._tries += 1

    def lost(self) -> None:
        """Another worker was faster."""
        self._lost += 1

    async def adapt(self) -> None:
        """Make pages longer when many attempts were lost to others, and shorter when hardly any was."""
        if self._tries < self.concurrency // 2 + 1:
            return
        share = self._lost / self._tries
        if share > MANY_LOST:
            self._reach = min(self._reach * 2, max(1.0, PAGE / self.concurrency))
            await self.fleet.count()
        elif share < FEW_LOST:
            self._reach = max(self._reach / 2, 1.0)
        self._tries = self._lost = 0
