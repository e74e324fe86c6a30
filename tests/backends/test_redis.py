"""The store in Redis passes the public kit against a real server, on every event loop; and what is particular."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import hiredis
import pytest
import trustme

from flat.backends import open_store, store_opener
from flat.backends.redis.address import Address, parse_url, resolved
from flat.backends.redis.connection import pack
from flat.backends.redis.store import RedisStore
from flat.errors import BackendError, BadStoreURL
from flat.testing.faults_proxy import Proxy
from flat.testing.servers import RedisServer, redis_server
from flat.testing.store_case import ALICE, TTL, birth, signal, step, waiting
from flat.testing.stores import CHECKS, Check, Place

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.mark.parametrize("check", CHECKS, ids=name)
async def test_the_kit(check: Check, server: RedisServer) -> None:
    url = server.url()
    async with Place(lambda: RedisStore(url)) as place:
        await check(place)


# -- addresses --------------------------------------------------------------------------------------


def test_an_address_is_read_from_a_url() -> None:
    address = parse_url("rediss://me:p%40ss:w%2F@[::1]:7000/3?prefix=app.1&timeout=0.5&fsync=true&replicas=2")
    assert (address.host, address.port, address.db, address.tls) == ("::1", 7000, 3, True)
    assert (address.username, address.password) == ("me", "p@ss:w/")
    assert (address.prefix, address.timeout, address.fsync, address.replicas) == ("app.1", 0.5, True, 2)
    assert parse_url("redis://h") == Address(host="h")


@pytest.mark.parametrize(
    "url",
    ["redis:", "redis:///0", "redis://h:port/0", "redis://h:99999/0", "redis://h/zero", "redis://h/0?prefix=a:b",
     "redis://h/0?prefix=", "redis://h/0?timeout=-1", "redis://h/0?timeout=nan", "redis://h/0?fsync=maybe",
     "redis://h/0?cluster=true", "redis://h/-1", "redis://[::1/0"],
)  # fmt: skip
def test_a_wrong_address_is_refused_before_anything_is_touched(url: str) -> None:
    with pytest.raises(BadStoreURL) as caught:
        store_opener(url)
    assert len(str(caught.value)) > 20


def test_a_password_is_a_reference_and_never_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store("redis://:${env:FLAT_TEST_PASSWORD}@localhost:1/0?prefix=p")
    assert isinstance(store, RedisStore)
    assert store.address.password == "${env:FLAT_TEST_PASSWORD}"
    monkeypatch.setenv("FLAT_TEST_PASSWORD", "s3cret:@/")
    assert resolved(store.address.password) == "s3cret:@/"
    plain = open_store("redis://me:s3cret@localhost:1/0")
    assert "s3cret" not in f"{store!r} {plain!r}"
    monkeypatch.delenv("FLAT_TEST_PASSWORD")
    with pytest.raises(BackendError, match="FLAT_TEST_PASSWORD, which is not set"):
        resolved(store.address.password)


async def test_a_password_is_asked_for_and_told(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = server.url()
    monkeypatch.setenv("FLAT_TEST_PASSWORD", "s3cret:@/")
    async with RedisStore(url) as admin:
        await admin.create(birth())
        _ask(admin.address, "ACL", "SETUSER", "worker", "on", ">s3cret:@/", "~*", "&*", "+@all")
    told = url.replace("redis://", "redis://worker:${env:FLAT_TEST_PASSWORD}@")
    async with RedisStore(told) as store:
        assert await store.get("e1") is not None
    monkeypatch.setenv("FLAT_TEST_PASSWORD", "wrong")
    async with RedisStore(told) as store:
        with pytest.raises(BackendError, match="refuses the user or the password") as caught:
            await store.get("e1")
    assert "wrong" not in str(caught.value).replace("WRONGPASS", "")


async def test_an_encrypted_connection_is_one_like_any_other(
    server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with _encrypting(server.port, authority) as port:
        url = server.url(port=port).replace("redis://", "rediss://")
        async with RedisStore(f"{url}&timeout=0.5") as store:
            with pytest.raises(BackendError, match="certificate"):
                await store.get("e1")
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        async with RedisStore(url) as store:
            lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
            assert lease is not None
            bodies = [bytes(range(256)) * 4096, b"small"]
            for seq, body in enumerate(bodies, 1):
                await store.commit(step(lease, seq, body))
            assert [body for _, _, body in await store.bodies("e1")][1:] == bodies


async def test_a_server_that_is_not_there_is_told_in_time() -> None:
    async with RedisStore("redis://127.0.0.1:1/0?timeout=0.05") as store:
        with anyio.fail_after(5), pytest.raises(BackendError, match="could not be reached"):
            await store.create(birth())


# -- what a server must be ----------------------------------------------------------------------------


async def test_a_store_of_another_format_is_refused(server: RedisServer) -> None:
    address = parse_url(server.url())
    async with RedisStore(address) as store:
        await store.create(birth())
    _ask(address, "SET", f"{address.prefix}:format", "99")
    async with RedisStore(address) as store:
        with pytest.raises(BackendError, match="format b'99'"):
            await store.get("e1")


async def test_a_server_that_evicts_any_key_is_refused(server: RedisServer) -> None:
    address = parse_url(server.url())
    _ask(address, "CONFIG", "SET", "maxmemory", "1gb")
    _ask(address, "CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        async with RedisStore(address) as store:
            with pytest.raises(BackendError, match="would lose executions"):
                await store.create(birth())
    finally:
        _ask(address, "CONFIG", "SET", "maxmemory", "0")
        _ask(address, "CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_a_full_memory_refuses_whole_commits(server: RedisServer) -> None:
    address = parse_url(server.url())
    async with RedisStore(address) as store:
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        _ask(address, "CONFIG", "SET", "maxmemory", "1")
        try:
            with pytest.raises(BackendError, match="no memory left"):
                await store.commit(
                    step(lease, 1, head=waiting("c"), log=(b"line",), births=(birth("child"),))
                )
            assert await store.get("child") is None
            stored = await store.load("e1")
        finally:
            _ask(address, "CONFIG", "SET", "maxmemory", "0")
        assert stored is not None
        assert (stored.execution.seq, list(stored.log), stored.execution.status) == (0, [], "running")
        await store.commit(step(lease, 1))


async def test_scripts_that_the_server_forgot_are_sent_again(server: RedisServer) -> None:
    address = parse_url(server.url())
    async with RedisStore(address) as store:
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        _ask(address, "SCRIPT", "FLUSH")
        await store.commit(step(lease, 1))
        _ask(address, "SCRIPT", "FLUSH")
        assert await store.send(signal())
        assert len(await store.bodies("e1")) == 2


async def test_two_prefixes_share_nothing(server: RedisServer) -> None:
    prefix = parse_url(server.url()).prefix
    async with RedisStore(server.url(prefix)) as a, RedisStore(server.url(f"{prefix}.b")) as b:
        assert await a.create(birth("b:e1"))
        assert await b.create(birth("e1"))
        assert [one.execution_id async for one in a.find()] == ["b:e1"]
        assert [one.execution_id async for one in b.find()] == ["e1"]


@pytest.mark.parametrize("option", ["fsync", "replicas"])
async def test_a_commit_waits_until_it_is_kept_where_it_was_told_to(server: RedisServer, option: str) -> None:
    url = server.url(None, **({"fsync": "true"} if option == "fsync" else {"replicas": 1, "timeout": 0.1}))
    async with RedisStore(url) as store:
        if option == "replicas":  # there is none
            with pytest.raises(BackendError, match="0 of 1 replicas have it"):
                await store.create(birth())
            assert await store.get("e1") is not None
            return
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        async with anyio.create_task_group() as group:
            for number in range(8):
                group.start_soon(store.send, signal(f"s{number}"))
            group.start_soon(store.commit, step(lease, 1))
        assert len(await store.signals()) == 8


async def test_waiting_for_a_file_that_is_not_written_is_an_error(server: RedisServer) -> None:
    address = parse_url(server.url(None, fsync="true"))
    _ask(address, "CONFIG", "SET", "appendonly", "no")
    try:
        async with RedisStore(address) as store:
            with pytest.raises(BackendError, match="appendonly"):
                await store.create(birth())
    finally:
        _ask(address, "CONFIG", "SET", "appendonly", "yes")


# -- round trips and event loops ----------------------------------------------------------------------


async def test_commits_that_are_ready_together_share_a_round_trip(server: RedisServer) -> None:
    with Proxy(server.port) as proxy:
        async with RedisStore(server.url(port=proxy.port)) as store:
            leases = []
            for number in range(32):
                lease = await store.begin(birth(f"e{number}"), ALICE, now=1000.0, ttl=TTL)
                assert lease is not None
                leases.append(lease)
            await store.commit(step(leases[0], 1))
            await store.commit(step(leases[0], 2, head=waiting("c1")))  # now the server knows the scripts
            proxy.count()
            await store.commit(step(leases[0], 3, head=waiting("c1"), log=(b"line",), send=(signal(),)))
            assert proxy.calls == 1, "a commit is one round trip"
            proxy.count()
            async with anyio.create_task_group() as group:
                for lease in leases[1:]:
                    group.start_soon(store.commit, step(lease, 1))
            assert proxy.calls <= 3, f"{proxy.calls} round trips for 31 commits at once"
            assert len(await store.ready(now=0)) == 1


def test_a_store_outlives_an_event_loop(server: RedisServer) -> None:
    store = RedisStore(server.url())

    async def first() -> None:
        await store.create(birth())

    async def then() -> None:
        assert await store.get("e1") is not None
        await store.close()

    anyio.run(first)
    anyio.run(first, backend="trio")
    anyio.run(then)


def test_a_store_serves_event_loops_in_several_threads(server: RedisServer) -> None:
    store = RedisStore(server.url())
    born: list[bool] = []

    async def bear(which: int) -> None:
        for number in range(20):
            born.append(await store.create(birth(f"e{number}")))
            await store.create(birth(f"{which}/{number}"))

    threads = [threading.Thread(target=anyio.run, args=(bear, which)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    async def count() -> int:
        async with store:
            return len([one async for one in store.find()])

    assert (len(born), sum(born), anyio.run(count)) == (80, 20, 100)


async def test_many_cancelled_callers_leave_the_others_their_answers(server: RedisServer) -> None:
    async with RedisStore(server.url()) as store:
        chance = random.Random(1)
        answers: list[bool] = []

        async def call(name: str, scope: anyio.CancelScope) -> None:
            with scope:
                answers.append(await store.create(birth(name)))

        for turn in range(60):
            scopes = [anyio.CancelScope() for _ in range(12)]
            async with anyio.create_task_group() as group:
                for number, scope in enumerate(scopes):
                    group.start_soon(call, f"{turn}/{number}", scope)
                for _ in range(chance.randrange(4)):
                    await anyio.lowlevel.checkpoint()
                for scope in chance.sample(scopes, chance.randrange(12)):
                    scope.cancel()
        assert all(answers)
        assert len(answers) >= 60
        assert (await store.signals(), await store.get("none")) == ([], None)


# -- names, and how much there is -----------------------------------------------------------------------


async def test_ten_thousand_hostile_names_stay_where_they_belong(server: RedisServer) -> None:
    """Pieces of the protocol, of Lua, of patterns and of keys like ours, in every place that takes a text."""
    chance = random.Random(20_261_121)
    address = parse_url(server.url())
    pieces = [
        "\r\n", "*3\r\n$3\r\nDEL\r\n", "\0", "'", '"', "]]", "--", "*", "?", "[a-z]", "{", "}", ":", "@", "=", "+", ",",
        "e:1", "b:1", "ids", f"{address.prefix}:", "return redis.call('FLUSHALL')", "../", "%", "日本", "🙂", "e\u0301",
        "", "0", "-1", "nan", "inf", "nil", "stale", "gone", "x" * 300,
    ]  # fmt: skip
    names = list(
        dict.fromkeys("".join(chance.choices(pieces, k=chance.randrange(1, 6))) for _ in range(2500))
    )
    async with RedisStore(address) as store:
        await store.create(birth("bystander", channels=("quiet",), status="waiting"))
        before = await store.load("bystander")

        async def use(name: str) -> None:
            other = chance.choice(names)
            assert await store.create(
                birth(name, channels=(name,), status="waiting", parent=other, name=name)
            )
            assert await store.send(signal(name, name, to=name))
            assert [one.signal_id for one in await store.signals(name, to=name)] == [name]
            assert [one.execution_id async for one in store.find(channel=name)] == [name]
            assert await store.get(name) is not None

        async with anyio.create_task_group() as group:
            for part in range(8):

                async def work(part: int = part) -> None:
                    for name in names[part::8]:
                        await use(name)

                group.start_soon(work)
        assert len(await store.ready(now=0)) == len(names)
        assert await store.load("bystander") == before
        assert {one.execution_id async for one in store.find()} == {*names, "bystander"}
        for name in names[::5]:
            assert await store.take(name)
            assert await store.delete(name)
    assert _foreign_keys(address) == []


async def test_who_is_ready_is_told_fast_among_ten_thousand_parked(server: RedisServer) -> None:
    async with RedisStore(server.url()) as store:

        async def park(part: int) -> None:
            for number in range(part, 10_000, 50):
                await store.create(
                    birth(
                        f"e{number}", status="waiting", channels=(f"c{number}", "all"), wake_at=1e9 + number
                    )
                )

        async with anyio.create_task_group() as group:
            for part in range(50):
                group.start_soon(park, part)
        await store.send(signal("s", "c77"))
        await store.send(signal("t", "c78", to="e78", at=1600.0))
        await store.send(signal("u", "nobody waits here"))
        took = []
        for _ in range(20):
            began = time.perf_counter()
            assert [one.execution_id for one in await store.ready(now=1e9 - 1)] == ["e77", "e78"]
            took.append(time.perf_counter() - began)
        assert min(took) < 0.01, f"{min(took) * 1000:.1f} ms"
        assert [one.execution_id for one in await store.ready(now=1e9, limit=3)] == ["e77", "e78", "e0"]


# -- helpers ---------------------------------------------------------------------------------------------


def _ask(address: Address, *command: str) -> Any:
    """Ask the server itself, whatever a store would say to it."""
    reader = hiredis.Reader()
    with contextlib.closing(socket.create_connection((address.host, address.port), 5)) as connection:
        connection.sendall(pack(*command))
        while (reply := reader.gets()) is False:
            reader.feed(connection.recv(1 << 20))
    assert not isinstance(reply, Exception), reply
    return reply


def _foreign_keys(address: Address) -> list[bytes]:
    """Keys under our prefix that are not of a form that `redis.lua` names."""
    form = re.compile(
        rb"[\w.]+:(ids|all|due|owners|seen|sids|nums|snums|floor|open|dead|calls|letters|blobs|configs|format"
        rb"|r:[0-9a-f]{16}:\d+|[sepblgwc]:([0-9a-f]{40}|\d+)|ch:[0-9a-f]{40}|q:[0-9a-f]{40}(:[0-9a-f]{40})?)"
    )
    keys = _ask(address, "KEYS", f"{address.prefix}:*")
    return [key for key in keys if not form.fullmatch(key)]


@contextlib.contextmanager
def _encrypting(target: int, authority: trustme.CA) -> Iterator[int]:
    """A port that speaks TLS, in front of one that does not."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            plain,
            context.wrap_socket(plain, server_side=True) as client,
            socket.create_connection(("127.0.0.1", target)) as behind,
        ):
            back = threading.Thread(target=pump, args=(behind, client), daemon=True)
            back.start()
            pump(client, behind)
            back.join()

    def listen(ear: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(ear.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as ear:
        threading.Thread(target=listen, args=(ear,), daemon=True).start()
        yield ear.getsockname()[1]
        ear.shutdown(socket.SHUT_RDWR)
