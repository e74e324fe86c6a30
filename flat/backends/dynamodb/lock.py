"""A lock in a table of DynamoDB by name: one item for each, changed by conditions.

    lock = DynamoLock("dynamodb://flat?region=eu-central-1", ttl=30)
    async with lock.hold("nightly report") as lease:  # waits, renews, is cancelled if the lock is lost
        await work(fence=lease.token)

**What is guaranteed.** One holder at a time, by the clocks of those who want it: DynamoDB tells no time, so clocks that
differ by more than the ttl break it. Every acquisition of a lock has a *fencing token* higher than all before it;
`backends.locks` says what it is for.
"""

from __future__ import annotations

import time

from flat.backends.aws import Address, parse_url
from flat.backends.dynamodb.table import NEW, OLD, Item, Table, hashed, key, text, whole
from flat.backends.locks import TTL, LeaseLock, LockLease
from flat.backends.work import Clock

EXAMPLE = "dynamodb://flat?region=eu-central-1"


class DynamoLock(LeaseLock):
    """Locks by name in one table."""

    def __init__(
        self, address: str | Address, *, ttl: float = TTL, owner: str = "", clock: Clock = time.time
    ) -> None:
        self.table = Table(parse_url("dynamodb", address, EXAMPLE) if isinstance(address, str) else address)
        super().__init__(_Items(self.table, clock), ttl=ttl, owner=owner)

    def __repr__(self) -> str:
        return f"DynamoLock({self.table!r})"


class _Items:
    """The locks of a table: `own` holder, `til` end, `tok` token, `ver` version."""

    def __init__(self, table: Table, clock: Clock) -> None:
        self._table, self._clock = table, clock

    async def take(self, key: str, holder: str, ttl: float) -> int | None:
        doing, where = "acquiring a lock", _key(key)
        while True:
            item = await self._item(doing, key)
            now = self._clock()
            facts = {"own": text(holder), "til": text(repr(now + ttl))}
            if item is None:
                token = 1
                change = self._table.put({**where, **facts, "tok": whole(token), "ver": whole(1)}, NEW)
            elif item.get("own", {}).get("S") not in (None, holder) and _end(item) >= now:
                return None
            else:
                token = int(item["tok"]["N"]) + 1
                change = self._table.update(
                    where, "SET own = :own, til = :til, tok = :tok, ver = ver + :one", "ver = :ver",
                    **facts, tok=whole(token), one=whole(1), ver=item["ver"],
                )  # fmt: skip
            if await self._table.try_write(doing, [change]):
                return token

    async def extend(self, lease: LockLease, ttl: float) -> bool:
        doing = "renewing a lock"
        while (item := await self._held(doing, lease)) is not None:
            change = self._table.update(
                _key(lease.key), "SET til = :til, ver = ver + :one", "ver = :ver",
                til=text(repr(self._clock() + ttl)), one=whole(1), ver=item["ver"],
            )  # fmt: skip
            if await self._table.try_write(doing, [change]):
                return True
        return False

    async def give_back(self, lease: LockLease) -> None:
        change = self._table.update(
            _key(lease.key), "SET ver = ver + :one REMOVE own", f"{OLD} AND own = :own AND tok = :tok",
            one=whole(1), own=text(lease.holder), tok=whole(lease.token),
        )  # fmt: skip
        await self._table.try_write("releasing a lock", [change])

    async def holds(self, lease: LockLease) -> bool:
        return await self._held("looking at a lock", lease) is not None

    async def close(self) -> None:
        await self._table.close()

    async def _item(self, doing: str, key: str) -> Item | None:
        return await self._table.get(doing, *_place(key))

    async def _held(self, doing: str, lease: LockLease) -> Item | None:
        """The item of a lock, if it is still held under this very lease."""
        item = await self._item(doing, lease.key)
        if item is None or item.get("own") != text(lease.holder) or item["tok"] != whole(lease.token):
            return None
        return item if _end(item) >= self._clock() else None


def _end(item: Item) -> float:
    return float(item["til"]["S"])


def _place(name: str) -> tuple[str, str]:
    return hashed("z", name, "key"), "z"


def _key(name: str) -> Item:
    return key(*_place(name))
