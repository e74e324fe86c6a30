"""A lock in Redis by name, for what people want to keep apart besides executions, which have leases of their own.

    lock = RedisLock("redis://localhost:6379/0", ttl=30)
    if await lock.acquire("nightly report"):          # does not wait
        …
        await lock.release("nightly report")

    async with lock.hold("nightly report") as lease:  # waits, renews, is cancelled if the lock is lost
        await work(fence=lease.token)

**What is guaranteed.** One holder at a time, by the clock of the server: a lock that is not renewed ends after its
`ttl`, so that a holder that died keeps nobody out for ever. Every acquisition has a *fencing token* higher than all
before it in this server and prefix; `backends.locks` says what it is for. It is a number in the server, so it is
kept, and lost, like everything else there (`backends.redis.store`): after a failover that loses the newest writes, a
token may be given out a second time, and the lock with it. Where that must not be, lock in Consul.
"""

from __future__ import annotations

from flat.backends.locks import TTL, LeaseLock, LockLease
from flat.backends.redis.address import Address
from flat.backends.redis.connection import Client, Script
from flat.backends.redis.lua import BASE

ACQUIRE = Script(
    BASE
    + """
local key, mine, ttl = p..'lock:'..sha(take()), take(), take()
local holder, by = call('GET', key), ':'..caller..'.'..number
if holder then
  if again == '1' and string.sub(holder, -#by) == by then return string.match(holder, ':(%d+):') end
  return ''
end
local token = string.format('%d', call('INCR', p..'fence'))
call('SET', key, mine..':'..token..by, 'PX', ttl)
return token
"""
)
HOLDING = """
local key, lease = p..'lock:'..sha(take()), take()
local function holding()
  local holder = call('GET', key)
  return holder and string.sub(holder, 1, #lease) == lease
end
"""
RENEW = Script(
    BASE
    + HOLDING
    + """
if not holding() then return '0' end
call('PEXPIRE', key, take())
return '1'
"""
)
RELEASE = Script(
    BASE
    + HOLDING
    + """
if holding() then call('DEL', key) end
return '1'
"""
)
HOLDS = Script(BASE + HOLDING + "return holding() and '1' or '0'", writes=False)


class RedisLock(LeaseLock):
    """Locks by name in one server."""

    def __init__(self, address: str | Address, *, ttl: float = TTL) -> None:
        self._client = Client(address)
        super().__init__(_Server(self._client), ttl=ttl)

    def __repr__(self) -> str:
        return f"RedisLock({str(self._client.address)!r})"


class _Server:
    def __init__(self, client: Client) -> None:
        self._client = client

    async def take(self, key: str, holder: str, ttl: float) -> int | None:
        found = await self._client.run("acquiring a lock", ACQUIRE, key, holder, _milliseconds(ttl))
        return None if found == b"" else int(found)

    async def extend(self, lease: LockLease, ttl: float) -> bool:
        return await self._ask("renewing a lock", RENEW, lease, _milliseconds(ttl))

    async def give_back(self, lease: LockLease) -> None:
        await self._ask("releasing a lock", RELEASE, lease)

    async def holds(self, lease: LockLease) -> bool:
        return await self._ask("looking at a lock", HOLDS, lease)

    async def close(self) -> None:
        await self._client.close()

    async def _ask(self, doing: str, script: Script, lease: LockLease, *values: int) -> bool:
        mine = f"{lease.holder}:{lease.token}:"
        return bool(await self._client.run(doing, script, lease.key, mine, *values) == b"1")


def _milliseconds(ttl: float) -> int:
    return max(1, round(ttl * 1000))
