"""A store in PostgreSQL passes the public kit, on every event loop; and what is particular to it."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from urllib.parse import quote

import anyio
import psycopg
import pytest

from flat.backends import PostgresStore, open_store
from flat.backends.postgres.commit import WRITE
from flat.backends.postgres.names import escape, key, unescape
from flat.backends.postgres.schema import STORE, VERSION
from flat.backends.postgres.url import Address
from flat.backends.protocols import Head, Lease
from flat.errors import BackendError, BadStoreURL, NotStorable, SignalGone, StaleSnapshot
from flat.testing.servers import PostgresServer
from flat.testing.store_case import (
    ALICE,
    BOB,
    TTL,
    begin,
    birth,
    newest,
    ready_ids,
    signal,
    signal_ids,
    step,
    waiting,
)
from flat.testing.store_values import HOSTILE
from flat.testing.stores import CHECKS, Check, Place

pytestmark = pytest.mark.anyio


@pytest.fixture
def url(postgres: PostgresServer) -> str:
    return postgres.url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(url) as opened:
        yield opened


@contextmanager
def sql(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of somebody else to the schema of a store."""
    address = Address.parse(url)
    with psycopg.connect(address.conninfo(), autocommit=True) as connection:
        connection.execute(f"SET search_path TO {address.schema}".encode())
        yield connection


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: str(check.__name__))
async def test_kit(check: Check, postgres_url: str) -> None:
    async with Place(lambda: PostgresStore(postgres_url)) as place:
        await check(place)


# -- addresses ---------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
async def test_a_url_opens_a_store_and_touches_nothing(scheme: str) -> None:
    store = open_store(f"{scheme}://somebody@nowhere.invalid/db?schema=mine&timeout=2")
    assert isinstance(store, PostgresStore)
    assert (store.address.schema, store.address.timeout) == ("mine", 2.0)
    assert str(store.address) == "postgresql://nowhere.invalid/db?schema=mine"
    await store.close()


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql:db", "begins with"),
        ("postgresql://host/db?schema=", "1 to 63 bytes"),
        ("postgresql://host/db?schema=pg_catalog", "PostgreSQL's own"),
        ("postgresql://host/db?timeout=soon", "number of seconds"),
        ("postgresql://host/db?synchronous_commit=maybe", "one of on, off"),
        ("postgresql://host/db#x", "after"),
        ("postgresql://[host/db", "no PostgreSQL URL"),
    ],
)
async def test_a_url_that_makes_no_sense_says_why(url: str, message: str) -> None:
    with pytest.raises(BadStoreURL, match=message):
        open_store(url)


async def test_secrets_are_looked_up_when_a_connection_is_opened_and_never_shown(
    postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = postgres.url()
    url = plain.replace("flat@", "flat:${env:FLAT_TEST_PASSWORD}@")
    monkeypatch.delenv("FLAT_TEST_PASSWORD", raising=False)
    async with PostgresStore(url) as store:
        with pytest.raises(BackendError, match="FLAT_TEST_PASSWORD, which is not set"):
            await store.get("e1")
        monkeypatch.setenv("FLAT_TEST_PASSWORD", "p@ss/w:rd ${env:X}")
        assert "p%40ss%2Fw%3Ard%20" in store.address.conninfo()
        assert await store.get("e1") is None
        shown = f"{store!r} {store.address!r} {store.address}"
    assert "ss/w" not in shown
    assert "flat:" not in shown


async def test_a_role_or_database_that_is_not_there_is_one_clear_error(postgres: PostgresServer) -> None:
    for url in (
        postgres.url().replace("/postgres?", "/no_such_database?"),
        postgres.url().replace("flat@", "nobody_here@"),
        postgres.url() + "&no_such_option=1",
    ):
        began = time.monotonic()
        async with PostgresStore(url) as store:
            with pytest.raises(BackendError, match=r"cannot be opened: .*(not exist|no_such_option)"):
                await store.get("e1")
        assert time.monotonic() - began < 10


async def test_durability_can_be_chosen(postgres: PostgresServer) -> None:
    async with PostgresStore(postgres.url(synchronous_commit="off")) as store:
        assert await store._database.rows("", "SHOW synchronous_commit") == [("off",)]
        assert await store._database.rows("", "SHOW transaction_isolation") == [("read committed",)]


async def test_any_name_may_be_a_schema(postgres: PostgresServer, anyio_backend_name: str) -> None:
    last = anyio_backend_name[0]
    for name in ('we"ird \\ schema', "Größe", "x" * 62, "select "):
        name += last
        async with PostgresStore(postgres.url(quote(name))) as store:
            lease = await begin(store)
            await store.commit(step(lease, 1, log=(b"line",)))
            assert await newest(store) == 1
        with psycopg.connect(postgres.url().partition("?")[0]) as connection:
            query = "SELECT count(*) FROM pg_tables WHERE schemaname = %s AND tablename = 'executions'"
            assert connection.execute(query, [name]).fetchone() == (1,)


# -- the schema --------------------------------------------------------------------------------


async def test_many_stores_that_open_a_new_schema_at_once_make_it_once(url: str) -> None:
    async def use(number: int) -> None:
        async with PostgresStore(url) as store:
            assert await store.create(birth(f"e{number}"))

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(use, number)
    with sql(url) as connection:
        assert connection.execute("SELECT * FROM meta").fetchall() == [(STORE[0], VERSION)]
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (8,)


async def test_another_format_is_refused(store: PostgresStore, url: str) -> None:
    await store.get("e1")
    with sql(url) as connection:
        connection.execute("UPDATE meta SET version = 99")
    async with PostgresStore(url) as other:
        with pytest.raises(BackendError, match="store format 99, this version of flat writes format 1"):
            await other.get("e1")


async def test_a_schema_that_was_dropped_is_one_clear_error(store: PostgresStore, url: str) -> None:
    await store.create(birth())
    with sql(url) as connection:
        connection.execute(f"DROP SCHEMA {store.address.schema} CASCADE".encode())
    with pytest.raises(BackendError, match="was the schema dropped"):
        await store.get("e1")


# -- names -------------------------------------------------------------------------------------


async def test_every_text_comes_back_and_no_two_keys_are_equal() -> None:
    names = [*HOSTILE, "\\0", "\0", "\\\\0", "\\", "a\\", "\\\0", "x" * 32, "x" * 31, "é" * 16]
    names += [key(name).decode("latin-1") for name in names]
    for name in names:
        assert unescape(escape(name)) == name
        assert "\0" not in escape(name)
    assert len({key(name) for name in names}) == len(set(names))


async def test_sql_in_names_stays_text(store: PostgresStore) -> None:
    attempts = [
        "'); DROP TABLE executions; --", "$1", "$$; SELECT 1; $$", "E'\\x27'", "\\'; DELETE FROM bodies; --",
        '"; DROP SCHEMA flat CASCADE; --', "{1,2}", "NULL", "%s %(x)s", '{"key": 1}', "\\u0000", "${env:HOME}",
    ]  # fmt: skip
    for text in attempts:
        lease = await store.begin(
            birth(text, name=text, parent=text, channels=(text,)), ALICE, now=1000.0, ttl=TTL
        )
        assert lease is not None
        await store.send(signal(text, text, to=text))
        await store.commit(
            step(
                lease,
                1,
                head=waiting(text),
                consume=(text,),
                send=(signal(f"{text}2", text),),
                blobs={text: b"b"},
            )
        )
        found = await store.get(text)
        assert found is not None
        assert (found.name, found.parent, found.channels) == (text, text, (text,))
        assert [one.execution_id async for one in store.find(parent=text, channel=text)] == [text]
        assert await signal_ids(store, text) == [f"{text}2"]
    assert len([one async for one in store.find()]) == len(attempts)


async def test_half_a_character_anywhere_is_refused_alone(store: PostgresStore) -> None:
    half = "half \ud83d"
    good, bad = await begin(store, "e1"), await begin(store, "e2")
    refused: list[str] = []

    async def badly(commit: Any) -> None:
        with pytest.raises(NotStorable):
            await store.commit(commit)
        refused.append("")

    async with anyio.create_task_group() as group:
        group.start_soon(badly, step(bad, 1, head=Head(status=half)))
        group.start_soon(badly, step(bad, 1, blobs={half: b""}))
        group.start_soon(lambda: store.commit(step(good, 1, log=(b"line",))))
    assert len(refused) == 2
    assert (await newest(store, "e1"), await newest(store, "e2")) == (1, 0)
    with pytest.raises(NotStorable):
        await store.begin(birth("e3", name=half), ALICE, now=1000.0, ttl=TTL)
    with pytest.raises(NotStorable):
        await store.create(birth("e3", name=half))
    for call in (store.get(half), store.get_blob(half), store.cancel_requested(half)):
        with pytest.raises(NotStorable):
            await call


# -- commits that share a statement ------------------------------------------------------------


def count_statements(store: PostgresStore) -> list[str]:
    """Note what is sent from now on."""
    sent: list[str] = []
    ask = store._database.ask

    async def noting(answer: Any, doing: str, statement: str, *rest: Any, **more: Any) -> None:
        sent.append(statement)
        await ask(answer, doing, statement, *rest, **more)

    store._database.ask = noting  # type: ignore[method-assign]
    return sent


async def test_commits_that_are_ready_together_share_statements(store: PostgresStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(64)]
    sent = count_statements(store)

    async def drive(lease: Lease) -> None:
        for seq in range(1, 11):
            await store.commit(step(lease, seq, log=(b"line",) if seq % 5 == 0 else ()))

    async with anyio.create_task_group() as group:
        for lease in leases:
            group.start_soon(drive, lease)
    assert [await newest(store, lease.execution_id) for lease in leases] == [10] * 64
    commits = [one for one in sent if "bodies" in one or one == WRITE]
    assert len(commits) <= 30


async def test_a_refused_member_leaves_no_trace_and_disturbs_nobody(store: PostgresStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(6)]
    await store.create(birth("taken", b"first"))
    results: dict[str, object] = {}

    async def commit(lease: Lease, seq: int, **rest: Any) -> None:
        try:
            await store.commit(step(lease, seq, **rest))
        except StaleSnapshot as error:
            results[lease.execution_id] = type(error)

    bad: dict[str, Any] = {"send": (signal("never"),), "births": (birth("never"),), "log": (b"x",)}
    async with anyio.create_task_group() as group:
        group.start_soon(commit, leases[0], 1)
        group.start_soon(lambda: commit(leases[1], 9, **bad))
        group.start_soon(lambda: commit(leases[2], 1, consume=("gone",), head=waiting("never"), **bad))
        group.start_soon(lambda: commit(leases[3], 1, head=waiting("yes"), send=(signal("sent"),)))
        group.start_soon(commit, Lease(execution_id="e4", owner="x", token=0), 1)
        group.start_soon(commit, leases[5], 1)

        async def start(execution_id: str) -> None:
            results[execution_id] = await store.begin(birth(execution_id), BOB, now=1000.0, ttl=TTL)

        group.start_soon(start, "taken")
        group.start_soon(start, "new")
    assert isinstance(results.pop("new"), Lease)
    assert results == {"e1": StaleSnapshot, "e2": SignalGone, "e4": StaleSnapshot, "taken": None}
    assert [await newest(store, f"e{number}") for number in range(6)] == [1, 0, 0, 1, 0, 1]
    assert await signal_ids(store) == ["sent"]
    assert await store.get("never") is None
    for lease in (leases[1], leases[2], leases[4]):
        await store.commit(step(lease, 1))


async def test_cancelled_commits_are_stored_whole_or_not_and_disturb_nobody(store: PostgresStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(16)]
    for round_ in range(6):
        returned: set[str] = set()

        async def commit(lease: Lease, scope: anyio.CancelScope, returned: set[str] = returned) -> None:
            with scope:
                seq = await newest(store, lease.execution_id) + 1
                await store.commit(step(lease, seq, log=(b"line",)))
                returned.add(lease.execution_id)

        before = {lease.execution_id: await newest(store, lease.execution_id) for lease in leases}
        scopes = [anyio.CancelScope() for _ in leases]
        async with anyio.create_task_group() as group:
            for lease, scope in zip(leases, scopes, strict=True):
                group.start_soon(commit, lease, scope)
            for _ in range(round_ * 3):
                await anyio.lowlevel.cancel_shielded_checkpoint()
            for number in range(0, 16, 3):
                scopes[number].cancel()
        for number, lease in enumerate(leases):
            name = lease.execution_id
            stored = await store.load(name)
            assert stored is not None
            assert len(stored.bodies) - 1 == len(stored.log) == stored.execution.seq
            assert stored.execution.seq - before[name] in ((1,) if name in returned else (0, 1))
            assert number % 3 == 0 or name in returned
    with psycopg.connect(store.address.conninfo()) as connection:
        query = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'flat' AND state LIKE 'idle in%'"
        )
        assert connection.execute(query).fetchone() == (0,)


async def test_a_cancelled_start_leaves_nobody_owning_it(store: PostgresStore) -> None:
    for round_ in range(6):
        returned: dict[str, Lease] = {}
        names = [f"{round_}/{number}" for number in range(8)]

        async def start(name: str, scope: anyio.CancelScope, returned: dict[str, Lease] = returned) -> None:
            with scope:
                lease = await store.begin(birth(name), ALICE, now=1000.0, ttl=TTL)
                assert lease is not None
                returned[name] = lease

        scopes = [anyio.CancelScope() for _ in names]
        async with anyio.create_task_group() as group:
            for name, scope in zip(names, scopes, strict=True):
                group.start_soon(start, name, scope)
            for _ in range(round_ * 2):
                await anyio.lowlevel.cancel_shielded_checkpoint()
            for number in range(0, 8, 2):
                scopes[number].cancel()
        for number, name in enumerate(names):
            found = await store.get(name)
            assert number % 2 == 0 or name in returned
            if (lease := returned.get(name)) is not None:
                await store.commit(step(lease, 1))
            elif found is not None:
                assert found.owner is None
                await store.acquire(name, BOB, now=1000.0, ttl=TTL)


async def test_a_cancelled_acquirer_owns_nothing(store: PostgresStore) -> None:
    for number in range(8):
        name = f"e{number}"
        await store.create(birth(name))
        acquired = False
        async with anyio.create_task_group() as group:

            async def acquire(name: str = name) -> None:
                nonlocal acquired
                await store.acquire(name, ALICE, now=1000.0, ttl=TTL)
                acquired = True

            group.start_soon(acquire)
            for _ in range(number):
                await anyio.lowlevel.checkpoint()
            group.cancel_scope.cancel()
        found = await store.get(name)
        assert found is not None
        assert (found.owner == "alice") == acquired


async def test_a_commit_that_waits_for_a_lock_can_be_cancelled(store: PostgresStore, url: str) -> None:
    lease = await begin(store)
    with sql(url) as connection, connection.transaction():
        connection.execute("SELECT 1 FROM executions FOR UPDATE")
        began = time.monotonic()
        with anyio.move_on_after(0.2) as scope:
            await store.commit(step(lease, 1))
        assert scope.cancelled_caught
        assert time.monotonic() - began < 10
    assert await newest(store) in (0, 1)
    await store.commit(step(lease, await newest(store) + 1))


async def test_deadlocks_are_waited_out(store: PostgresStore, url: str) -> None:
    one, two = await begin(store, "e1"), await begin(store, "e2")
    started, done = threading.Event(), threading.Event()

    def interfere() -> None:
        with sql(url) as connection:
            for _ in range(3):
                try:
                    with connection.transaction():
                        connection.execute("SELECT 1 FROM executions WHERE id = 'e2' FOR UPDATE")
                        started.set()
                        done.wait(0.3)
                        connection.execute("SELECT 1 FROM executions WHERE id = 'e1' FOR UPDATE")
                except psycopg.errors.DeadlockDetected:
                    continue

    thread = threading.Thread(target=interfere)
    thread.start()
    assert await anyio.to_thread.run_sync(started.wait, 10)
    async with anyio.create_task_group() as group:
        for lease in (one, two):
            group.start_soon(store.commit, step(lease, 1, log=(b"x",)))
    await anyio.to_thread.run_sync(thread.join)
    assert (await newest(store, "e1"), await newest(store, "e2")) == (1, 1)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_event_loops_in_several_threads_may_share_a_store(store: PostgresStore) -> None:
    leases = [await begin(store, f"e{number}") for number in range(12)]

    async def drive(some: list[Lease]) -> None:
        async def one(lease: Lease) -> None:
            for seq in range(1, 31):
                await store.commit(step(lease, seq, log=(b"x",) if seq % 3 == 0 else ()))

        async with anyio.create_task_group() as group:
            for lease in some:
                group.start_soon(one, lease)

    async def in_thread(run: Callable[[], None]) -> None:
        await anyio.to_thread.run_sync(run)

    async with anyio.create_task_group() as group:
        for part, backend in enumerate(("asyncio", "trio", "asyncio")):
            group.start_soon(in_thread, partial(anyio.run, drive, leases[part::3], backend=backend))
    assert [await newest(store, f"e{number}") for number in range(12)] == [30] * 12


# -- who is ready ------------------------------------------------------------------------------


async def test_looking_for_who_is_ready_among_ten_thousand_is_quick(store: PostgresStore, url: str) -> None:
    await store.create(birth("template", status="waiting", channels=("c",)))
    with sql(url) as connection:
        connection.execute("""
            INSERT INTO executions (key, id, name, kind, created_at, stamp, program, wake_at, channels, status, token,
                updated_at, seq)
            SELECT convert_to('e' || n, 'UTF8'), 'e' || n, 'm', 'yaml', 0, 0, 'p', 1e9 + n, ARRAY['approval/' || n],
                'waiting', n, 0, 0 FROM generate_series(1, 10000) AS n""")
        connection.execute("""
            INSERT INTO waits SELECT convert_to('approval/' || substr(id, 2), 'UTF8'), num FROM executions
            WHERE id LIKE 'e%'""")
    for number in (7, 5000, 9999):
        await store.send(signal(f"s{number}", f"approval/{number}", at=float(number)))
    times = []
    for _ in range(12):
        began = time.perf_counter()
        assert await ready_ids(store, now=1000.0, limit=100) == ["e7", "e5000", "e9999"]
        times.append(time.perf_counter() - began)
    assert min(times) <= 0.010, times


# -- the end of connections -------------------------------------------------------------------
# Waking is in `test_waking`.


async def test_connections_that_the_server_ended_while_idle_are_not_used(
    store: PostgresStore, url: str
) -> None:
    lease = await begin(store)
    for seq in range(1, 4):
        with sql(url) as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'flat'"
            )
        await store.commit(step(lease, seq))
    assert await newest(store) == 3
