"""Results in a Redis or Valkey server, for any number of hosts: `RedisResults("redis://localhost:6379/0")`.

A write and the news of it are one script. Whoever waits listens first and looks then, so that no result is missed, and
nobody looks twice. With `ttl`, results end after so many seconds; else they stay until they are discarded. They may
stand under the same prefix as a store. What the server promises about keeping them is said in `backends.redis.store`.
"""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Self

import anyio

from flat.backends.checks import check_text
from flat.backends.redis.address import Address
from flat.backends.redis.connection import Client, Script
from flat.backends.redis.lua import ANSWERED, BASE
from flat.backends.redis.trigger import RedisTrigger

PUT = Script(
    BASE
    + """
local name, body, ttl = sha(take()), take(), text(take())
if ttl then call('SET', p..'res:'..name, body, 'PX', ttl) else call('SET', p..'res:'..name, body) end
call('PUBLISH', p..'res:'..name, '')
return 'ok'
"""
)
GET = Script(BASE + "return call('GET', p..'res:'..sha(take()))", writes=False)
DISCARD = Script(
    BASE
    + ANSWERED
    + """
return answer(string.format('%d', call('DEL', p..'res:'..sha(take()))))
"""
)


class RedisResults:
    """Bytes under names in a Redis server."""

    def __init__(self, address: str | Address, *, ttl: float | None = None) -> None:
        self._client = Client(address)
        self._ttl = None if ttl is None else max(1, round(ttl * 1000))

    def __repr__(self) -> str:
        return f"RedisResults({str(self._client.address)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def put(self, name: str, body: bytes) -> None:
        check_text("name", name)
        await self._client.run("writing a result", PUT, name, body, self._ttl)

    async def get(self, name: str) -> bytes | None:
        check_text("name", name)
        found: bytes | None = await self._client.run("reading a result", GET, name)
        return found

    async def wait(self, name: str) -> bytes:
        if (found := await self.get(name)) is not None:
            return found
        digest = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
        async with RedisTrigger(self._client.address, topic=f"res:{digest}").listen() as written:
            while (found := await self.get(name)) is None:
                await written.wait()
        return found

    async def discard(self, name: str) -> bool:
        check_text("name", name)
        return bool(await self._client.run("removing a result", DISCARD, name) == b"1")

    async def close(self) -> None:
        with anyio.CancelScope(shield=True):
            await self._client.close()
