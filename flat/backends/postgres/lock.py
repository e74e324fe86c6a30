"""A lock by name in a PostgreSQL database, for any number of hosts, whatever they keep their executions in.

    lock = PostgresLock("postgresql://user@host/db", ttl=30)

`backends.locks` has what it can do. One holder at a time, by the clock of the server: a lock that is not renewed ends
after its `ttl`. Tokens come from one row of a table, which whoever acquires a lock keeps locked until that is stored:
so they rise in the order in which locks are acquired. A statement whose answer was lost is sent again, and finds the
lock taken by itself.

The tables stand in the schema of a store, or in one of their own. Connections are opened when they are first needed,
and closed when nothing is held, because a lock made for one run is not told of its end.
"""

from __future__ import annotations

from typing import Any

from flat.backends.locks import TTL, LeaseLock, LockLease
from flat.backends.postgres.answers import Rows
from flat.backends.postgres.names import key as looked_up_by
from flat.backends.postgres.pool import Database
from flat.backends.postgres.schema import Part, open_database
from flat.backends.postgres.url import Address

SCHEMA = (
    "CREATE TABLE locks (key BYTEA PRIMARY KEY, holder BYTEA NOT NULL, token BIGINT NOT NULL, until FLOAT8 NOT NULL)",
    "CREATE INDEX locks_until ON locks (until)",
    "CREATE TABLE lock_fence (one BOOLEAN PRIMARY KEY CHECK (one), token BIGINT NOT NULL)",
)
LOCKS: Part = ("locks", 1, SCHEMA)

NOW = "extract(epoch FROM clock_timestamp())::float8"
TAKE = f"""
WITH fence AS (
    INSERT INTO lock_fence AS f VALUES (true, 1) ON CONFLICT (one) DO UPDATE SET token = f.token + 1 RETURNING token
),
over AS (
    DELETE FROM locks WHERE key IN (
        SELECT key FROM locks WHERE until <= {NOW} AND key <> $1 ORDER BY until LIMIT 100 FOR UPDATE SKIP LOCKED)
)
INSERT INTO locks AS l SELECT $1, $2, token, {NOW} + $3::float8 FROM fence
ON CONFLICT (key) DO UPDATE SET holder = excluded.holder, token = excluded.token, until = {NOW} + $3::float8
WHERE l.holder = excluded.holder OR l.until <= {NOW}
RETURNING token
"""
THIS = f"key = $1 AND holder = $2 AND token = $3 AND until > {NOW}"
EXTEND = f"UPDATE locks SET until = {NOW} + $4::float8 WHERE {THIS} RETURNING 1"
GIVE_BACK = f"DELETE FROM locks WHERE {THIS}"
HOLDS = f"SELECT 1 FROM locks WHERE {THIS}"


class PostgresLock(LeaseLock):
    """Locks by name in one schema of a database."""

    def __init__(self, address: str | Address, *, ttl: float = TTL, owner: str = "") -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        super().__init__(_Schema(self.address), ttl=ttl, owner=owner)

    def __repr__(self) -> str:
        return f"PostgresLock({str(self.address)!r})"


class _Schema:
    def __init__(self, address: Address) -> None:
        self._address = address
        self._open: Database | None = None
        self._taken: set[LockLease] = set()
        self._users = 0

    async def _rows(self, doing: str, statement: str, *values: Any) -> Rows:
        if self._open is None:
            self._open = open_database(self._address, LOCKS)
        self._users += 1
        try:
            return await self._open.rows(doing, statement, *values)
        finally:
            self._users -= 1

    async def _left(self) -> None:
        if not self._taken and not self._users and self._open is not None:
            database, self._open = self._open, None
            await database.close()

    async def take(self, key: str, holder: str, ttl: float) -> int | None:
        try:
            values = (looked_up_by(key), looked_up_by(holder), ttl)
            rows = await self._rows("acquiring a lock", TAKE, *values)
            if not rows:
                return None
            self._taken = {lease for lease in self._taken if lease.key != key}
            self._taken.add(LockLease(key=key, holder=holder, token=rows[0][0]))
            return int(rows[0][0])
        finally:
            await self._left()

    async def extend(self, lease: LockLease, ttl: float) -> bool:
        if await self._rows("renewing a lock", EXTEND, *_this(lease), ttl):
            return True
        self._taken.discard(lease)
        await self._left()
        return False

    async def give_back(self, lease: LockLease) -> None:
        try:
            await self._rows("releasing a lock", GIVE_BACK, *_this(lease))
        finally:
            self._taken.discard(lease)
            await self._left()

    async def holds(self, lease: LockLease) -> bool:
        try:
            return bool(await self._rows("looking at a lock", HOLDS, *_this(lease)))
        finally:
            await self._left()

    async def close(self) -> None:
        self._taken.clear()
        await self._left()


def _this(lease: LockLease) -> tuple[bytes, bytes, int]:
    return (looked_up_by(lease.key), looked_up_by(lease.holder), lease.token)
