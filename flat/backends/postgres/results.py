"""Results in a PostgreSQL database, for any number of hosts: `PostgresResults("postgresql://user@host/db")`.

A write and the news of it are one statement. Whoever waits listens first and looks then, so that no result is missed,
and nobody looks twice. Results stay until they are discarded. The table stands in the schema of a store, or in one of
its own.
"""

from __future__ import annotations

import hashlib
from types import TracebackType
from typing import Self

from flat.backends.checks import check_text
from flat.backends.postgres.names import key
from flat.backends.postgres.schema import Part, open_database
from flat.backends.postgres.trigger import listening
from flat.backends.postgres.url import Address

RESULTS: Part = ("results", 1, ("CREATE TABLE results (key BYTEA PRIMARY KEY, body BYTEA NOT NULL)",))

PUT = """
WITH put AS (
    INSERT INTO results VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET body = excluded.body RETURNING 1
)
SELECT pg_notify($3, '') FROM put
"""
GET = "SELECT body FROM results WHERE key = $1"
DISCARD = "DELETE FROM results WHERE key = $1 RETURNING 1"


class PostgresResults:
    """Bytes under names in one schema of a database."""

    def __init__(self, address: str | Address) -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        self._database = open_database(self.address, RESULTS)

    def __repr__(self) -> str:
        return f"PostgresResults({str(self.address)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def put(self, name: str, body: bytes) -> None:
        await self._database.rows("writing a result", PUT, _key(name), body, self._topic(name))

    async def get(self, name: str) -> bytes | None:
        rows = await self._database.rows("reading a result", GET, _key(name))
        return bytes(rows[0][0]) if rows else None

    async def wait(self, name: str) -> bytes:
        if (found := await self.get(name)) is not None:
            return found
        async with listening(self._database, self._topic(name)) as written:
            while (found := await self.get(name)) is None:
                await written.wait()
        return found

    async def discard(self, name: str) -> bool:
        return bool(await self._database.rows("removing a result", DISCARD, _key(name)))

    async def close(self) -> None:
        await self._database.close()

    def _topic(self, name: str) -> str:
        """What is listened at: one topic for each result, which may be longer than a topic's name."""
        of_schema = hashlib.sha256(self.address.schema.encode()).digest()
        return f"flat_{hashlib.sha256(of_schema + name.encode()).hexdigest()[:48]}"


def _key(name: str) -> bytes:
    check_text("name", name)
    return key(name)
