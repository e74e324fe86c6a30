"""What locks by name have in common, beside the leases that every run has on its execution.

    async with lock.hold("nightly report") as lease:  # waits, renews, is cancelled if the lock is lost
        await work(fence=lease.token)

    if await lock.acquire("nightly report"):          # does not wait
        …
        await lock.release("nightly report")

A lock that ends by itself, when its holder has not been heard of, cannot keep two apart by time alone: a holder that
was merely slow believes that it holds it still. So each lease of a lock has a *fencing token*, higher than that of
whoever held the lock before. Give it to what the lock protects, and let that refuse smaller ones: then the late one is
harmless. flat's stores do this with tokens of their own, so that a run is fenced with or without such a lock.
"""

from __future__ import annotations

import random
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import anyio

from flat.backends.checks import check_text
from flat.errors import BackendError

TTL = 300.0
"""Seconds that a lock lasts unless it is renewed."""
RENEWALS = 3
"""Renewals within one ttl."""
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
"""Seconds between two attempts to get a lock that somebody has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LockLease:
    """A lock that was acquired."""

    key: str
    holder: str
    token: int
    """Higher than that of everybody who held this lock before."""


class LockLost(BackendError):
    """The lock is no longer ours: it was not renewed in time."""

    exit_code = 8

    def __init__(self, key: str, why: str) -> None:
        self.key, self.why = key, why
        super().__init__(f'the lock "{key}" was lost: {why}')

    def __reduce__(self) -> tuple[type[LockLost], tuple[str, str]]:
        return type(self), (self.key, self.why)


class LockPlace(Protocol):
    """Where locks are kept. Each method is one atomic operation, which may be done twice when its answer was lost."""

    async def take(self, key: str, holder: str, ttl: float) -> int | None:
        """The token, higher than all before, or None when another holder has the lock. A holder may take it again."""
        ...

    async def extend(self, lease: LockLease, ttl: float) -> bool:
        """Hold it for another `ttl` from now. False if it has ended."""
        ...

    async def give_back(self, lease: LockLease) -> None: ...

    async def holds(self, lease: LockLease) -> bool: ...

    async def close(self) -> None:
        """Leave nothing open. What comes after that opens it again, if the place is one that can."""
        ...


class LeaseLock:
    """Locks by name in one place; each is held by the object that acquired it, and not twice.

    Whoever uses `acquire` and `release` renews what it holds for longer than `ttl`, by `renew` or by running `keep`
    in a task of its own; `hold` does so itself. Objects that are given the same `owner` are one holder.
    """

    def __init__(self, place: LockPlace, *, ttl: float = TTL, owner: str = "") -> None:
        check_text("owner", owner)
        if not 0 < ttl < 1e9:
            raise BackendError(f"a lock lasts a number of seconds above 0, not {ttl!r}: its holder may die")
        self.ttl, self.pause = ttl, ttl / RENEWALS
        self.owner = owner
        self.held: dict[str, LockLease] = {}
        self._place = place

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Give back all that is held, as far as the place can be reached."""
        with anyio.CancelScope(shield=True):
            with suppress(BackendError):
                for key in tuple(self.held):
                    await self.release(key)
            await self._place.close()

    async def acquire(self, key: str) -> bool:
        """True if the lock is ours now. False when somebody has it, this very object too unless it has an `owner`."""
        return await self.lease(key) is not None

    async def lease(self, key: str) -> LockLease | None:
        """`acquire`, with the token that fences: None when somebody has the lock."""
        check_text("key", key)
        # Another name each time, so that only the repetition of one and the same call finds it taken by itself.
        holder = self.owner or uuid.uuid4().hex
        if (token := await self._place.take(key, holder, self.ttl)) is None:
            return None
        self.held[key] = lease = LockLease(key=key, holder=holder, token=token)
        return lease

    async def holds(self, lease: LockLease) -> bool:
        """Whether a lock is still held under this very lease, as its place sees it now."""
        return await self._place.holds(lease)

    async def renew(self, key: str) -> bool:
        """Hold it for another `ttl`. False if it has ended meanwhile, and somebody else may have had it."""
        if (lease := self.held.get(key)) is None:
            return False
        if renewed := await self._place.extend(lease, self.ttl):
            return renewed
        if self.held.get(key) is lease:
            del self.held[key]
        return False

    async def release(self, key: str) -> None:
        """Give it back. Does nothing when it is not ours (any more)."""
        if (lease := self.held.pop(key, None)) is not None:
            await self._place.give_back(lease)

    async def keep(self) -> None:
        """Renew all that is held until cancelled, or until something is lost."""
        heard = anyio.current_time()
        while True:
            await anyio.sleep(self.pause)
            try:
                for key in tuple(self.held):
                    if not await self.renew(key) and key not in self.held:
                        return
                heard = anyio.current_time()
            except BackendError:
                if anyio.current_time() - heard > self.ttl:
                    self.held.clear()
                    return

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[LockLease]:
        """Wait for a lock, keep it for the block, and release it. Raises `LockLost` when it is lost meanwhile."""
        lease = await self._wait(key)
        lost = over = False
        failed: Exception | None = None
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal lost
                while self.held.get(key) is lease:
                    await self.keep()
                lost = not over
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                yield lease
            except Exception as error:
                failed = error  # raised below, where no group wraps it
            finally:
                over = True
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), suppress(BackendError):
                    if self.held.get(key) is lease:
                        await self.release(key)
        if failed is not None:
            raise failed
        if lost:
            raise LockLost(key, "it was not renewed in time, and its ttl is over")

    async def _wait(self, key: str) -> LockLease:
        pause = FIRST_PAUSE
        while (lease := await self.lease(key)) is None:
            if key in self.held and await self.holds(self.held[key]):
                raise BackendError(
                    f'the lock "{key}" is held by this very object, which would wait for itself'
                )
            await anyio.sleep(min(pause, self.pause) * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)
        return lease
