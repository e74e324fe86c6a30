"""Results at rest: bytes under a name, for whoever was told the name. What they mean is not known here.

A store keeps the output of every execution in any case. A result backend is for those who have no store in common
with it, and only the name: a result is written when an execution is over, and read once or often, perhaps by somebody
who has been waiting for it.
"""

from __future__ import annotations

from typing import Protocol

import anyio

from flat.backends.checks import check_text
from flat.backends.work import WorkBackend, WorkPool

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds between two looks for a result that is not there yet."""


class ResultStore(Protocol):
    """Bytes under names. A write replaces what was there."""

    async def put(self, name: str, body: bytes) -> None: ...

    async def get(self, name: str) -> bytes | None: ...

    async def wait(self, name: str) -> bytes:
        """The result, waiting until there is one. Cancel it to wait no longer."""
        ...

    async def discard(self, name: str) -> bool:
        """Remove a result. False if there is none."""
        ...

    async def close(self) -> None: ...


class PoolResults:
    """Results in the work pools of any backend, one pool for each: the newest job of the pool is the result.

    Waiting looks from time to time. `redis.results` and `postgres.results` have a way that needs no looking.
    """

    def __init__(self, work: WorkBackend) -> None:
        self._work = work

    def _pool(self, name: str) -> WorkPool:
        check_text("name", name)
        return self._work.pool(f"result:{name}")

    async def put(self, name: str, body: bytes) -> None:
        pool = self._pool(name)
        newest = await pool.push(body.decode())
        for item in await pool.items():
            if item.id != newest:
                await pool.discard(item.id)

    async def get(self, name: str) -> bytes | None:
        items = await self._pool(name).items()
        return None if not items else str(items[-1].data).encode()

    async def wait(self, name: str) -> bytes:
        pause = FIRST_PAUSE
        while (found := await self.get(name)) is None:
            await anyio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        return found

    async def discard(self, name: str) -> bool:
        pool = self._pool(name)
        return any([await pool.discard(item.id) for item in await pool.items()])

    async def close(self) -> None:
        await self._work.close()
