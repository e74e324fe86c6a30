"""A store in PostgreSQL passes the public kit of faults, on every event loop."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import anyio
import psycopg
import pytest

from flat.backends.postgres.store import PostgresStore
from flat.errors import BackendError
from flat.testing.servers import PostgresServer
from flat.testing.store_case import birth
from flat.testing.store_faults import FAULT_CHECKS, FaultCheck, Proxy

pytestmark = pytest.mark.anyio

LEAST = 0.25
"""Seconds that a call may take in these tests."""
ONE_LOOP = {
    "an_answer_that_does_not_come_ends_in_time": "asyncio",
    "a_server_that_goes_away_at_any_call_is_one_clear_error": "trio",
}
"""Checks that mostly wait: once is enough for those."""
EVERY = int(os.environ.get("FLAT_FAULTS_EVERY", "7"))
"""A connection to PostgreSQL is a process of the server's: all faults at all calls take minutes."""


class PostgresFaults:
    """A schema of its own in a server, through a proxy and directly."""

    every = EVERY

    def __init__(self, server: PostgresServer) -> None:
        self.server, self.proxy = server, Proxy(server.port)
        self.schema = server.borrow()

    def through(self, patience: float) -> PostgresStore:
        # A connection is a process that the server starts: on a busy machine that alone takes a while.
        timeout = max(patience, LEAST)
        return PostgresStore(self.server.url(self.schema, port=self.proxy.port, timeout=timeout))

    def direct(self) -> PostgresStore:
        return PostgresStore(self.server.url(self.schema))

    def restart(self) -> None:
        self.server.stop(signal.SIGQUIT)
        self.server.start()

    def close(self) -> None:
        self.proxy.close()
        self.server.give_back(self.schema)


CASES = [
    pytest.param(check, loop, id=f"{loop}-{check.__name__}")
    for check in FAULT_CHECKS
    for loop in ("asyncio", "trio")
    if ONE_LOOP.get(check.__name__, loop) == loop
]


@pytest.mark.parametrize(("check", "anyio_backend"), CASES)
async def test_postgres(check: FaultCheck, postgres: PostgresServer) -> None:
    await check(lambda: PostgresFaults(postgres))


@contextmanager
def few_connections(server: PostgresServer, schema: str) -> Iterator[str]:
    """The address of a role that may have one connection, and the schema, which is its own."""
    role = f"few_{schema}"
    with psycopg.connect(server.url("").partition("?")[0], autocommit=True) as admin:
        database = admin.info.dbname
        admin.execute(f'CREATE ROLE "{role}" LOGIN CONNECTION LIMIT 1')
        admin.execute(f'GRANT CREATE ON DATABASE "{database}" TO "{role}"')
        url = server.url(schema)
        yield f"postgresql://{role}@{url.partition('@')[2]}"
        admin.execute(f'DROP OWNED BY "{role}" CASCADE')
        admin.execute(f'DROP ROLE "{role}"')


async def test_a_server_that_has_no_connection_left_is_asked_until_it_has(postgres: PostgresServer) -> None:
    with few_connections(postgres, f"few{os.getpid()}") as url:
        held = psycopg.connect(url.partition("?")[0])
        hasty, patient = PostgresStore(f"{url}&timeout=0.5"), PostgresStore(url)
        with pytest.raises(BackendError, match="too many connections"):
            await hasty.create(birth())
        await hasty.close()

        async def free() -> None:
            await anyio.wait_all_tasks_blocked()
            held.close()

        async with anyio.create_task_group() as group:
            group.start_soon(free)
            assert await patient.create(birth())
        assert held.closed
        assert await patient.get("e1") is not None
        await patient.close()
