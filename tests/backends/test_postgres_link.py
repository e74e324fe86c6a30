"""Connections to PostgreSQL: values there and back, many statements at once, and cancellation, on every event loop."""

from __future__ import annotations

import gc
import math
import time
from typing import Any

import anyio
import psycopg
import pytest

from flat.backends.postgres.answers import Answer
from flat.backends.postgres.names import Document
from flat.backends.postgres.pool import CONNECTIONS, Database
from flat.backends.postgres.schema import STORE, open_database
from flat.backends.postgres.url import Address
from flat.errors import BackendError, NotStorable
from flat.testing.servers import PostgresServer
from flat.testing.store_values import HOSTILE

pytestmark = pytest.mark.anyio
TEXTS = [
    *HOSTILE,
    "",
    "\0",
    "\\",
    "\\0",
    "\\\0\\",
    "NULL",
    "{}",
    '"',
    ",",
    " ",
    "ünïcode 😀",
    "$1",
    "%s",
    "x" * 70_000,
]
INTEGERS = [0, 1, -1, 32_767, 32_768, -(1 << 31), 1 << 31, (1 << 63) - 1, -(1 << 63)]


@pytest.fixture
def address(postgres: PostgresServer) -> Address:
    return Address.parse(postgres.url())


@pytest.fixture
def database(address: Address) -> Database:
    return open_database(address, STORE)


async def echo(database: Database, kind: str, value: Any) -> Any:
    ((found,),) = await database.rows("echoing", f"SELECT $1::{kind}", value)
    return found


async def test_every_value_comes_back_alone_and_in_a_list(database: Database) -> None:
    columns: dict[str, list[Any]] = {
        "text": TEXTS, "bytea": [text.encode() for text in TEXTS], "int8": INTEGERS, "boolean": [True, False],
        "float8": [0.0, -1.5, 1e300, 5e-324, math.inf, 1_700_000_000.123_456],
    }  # fmt: skip
    for kind, values in columns.items():
        for value in values:
            assert await echo(database, kind, value) == value
        assert await echo(database, f"{kind}[]", values) == values
        assert await echo(database, f"{kind}[]", []) == []
        assert await echo(database, kind, None) is None
    assert await echo(database, "text[]", ["a", None, "\0"]) == ["a", None, "\0"]
    assert await database.rows("", "SELECT 'f\\\\'::text || $1", "x") == [("f\\x",)]
    assert await database.rows("", "SELECT $1::jsonb->>'a'", Document(b'{"a": "b"}')) == [("b",)]
    await database.close()


async def test_an_integer_of_any_size_uses_the_same_prepared_statement(database: Database) -> None:
    for value in INTEGERS * 5:
        assert await echo(database, "int8", value) == value
    query = "SELECT count(*) FROM pg_prepared_statements WHERE statement = 'SELECT $1::int8'"
    assert await database.rows("", query) == [(1,)]
    await database.close()


async def test_half_a_character_is_refused_and_the_connection_goes_on(database: Database) -> None:
    before = await database.rows("", "SELECT pg_backend_pid()")
    for value in ("\ud83d", ["a", "\ud83d"]):
        with pytest.raises(NotStorable):
            await database.rows("", "SELECT $1::text", value)
    assert await database.rows("", "SELECT pg_backend_pid()") == before
    await database.close()


async def test_more_statements_than_connections_take_turns(database: Database) -> None:
    results: list[int] = []

    async def ask(number: int) -> None:
        ((found, _),) = await database.rows("", "SELECT $1::int8, pg_sleep(0.01)", number)
        results.append(found)

    async with anyio.create_task_group() as group:
        for number in range(4 * CONNECTIONS):
            group.start_soon(ask, number)
    assert sorted(results) == list(range(4 * CONNECTIONS))
    ((count,),) = await database.rows(
        "",
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flat' AND query LIKE '%pg_sleep(0.01)%'",
    )
    assert count <= CONNECTIONS + 1
    await database.close()


async def test_who_waits_in_line_for_too_long_is_told_that_nothing_was_done(postgres: PostgresServer) -> None:
    database = open_database(Address.parse(postgres.url(timeout=0.5)), STORE)
    await database.rows("", "SELECT 1")
    said: list[str] = []

    async def ask(number: int) -> None:
        with pytest.raises(BackendError) as caught:
            await database.rows("", "SELECT pg_sleep(60)")
        said.append(str(caught.value))

    began = time.monotonic()
    async with anyio.create_task_group() as group:
        for number in range(CONNECTIONS + 1):
            group.start_soon(ask, number)
    assert time.monotonic() - began < 20
    assert len(said) == CONNECTIONS + 1
    assert sum("may have been done or not" in text for text in said) <= CONNECTIONS
    await database.close()


async def test_a_statement_that_is_cancelled_is_finished_and_its_rows_are_kept(database: Database) -> None:
    before = await database.rows("", "SELECT pg_backend_pid()")
    answer = Answer()
    with anyio.move_on_after(0.1) as scope:
        await database.ask(answer, "", "SELECT pg_backend_pid(), pg_sleep(0.5)", ())
    assert scope.cancelled_caught
    assert answer.rows is not None
    assert answer.rows[0][0] == before[0][0]
    assert await database.rows("", "SELECT pg_backend_pid()") == before
    await database.close()


async def test_what_nobody_closes_leaves_no_connection(address: Address) -> None:
    """Nor a warning: the machines of the seed system's API have no end at which they could close it."""
    database = open_database(address, STORE)
    await database.rows("", f"SELECT 1 AS {address.schema}")
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flat' AND query LIKE %s"
    with psycopg.connect(address.conninfo(), autocommit=True) as connection:
        assert connection.execute(query, [f"%AS {address.schema}"]).fetchone() == (1,)
        del database
        gc.collect()
        with anyio.fail_after(10):
            while connection.execute(query, [f"%AS {address.schema}"]).fetchone() != (0,):
                await anyio.lowlevel.checkpoint()
