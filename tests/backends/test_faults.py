"""Every store passes the public kit of faults, on every event loop: those without a server what can befall them.

What can happen to files is in `test_file_faults` and `test_sqlite_faults`.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import anyio
import hiredis
import psycopg
import pytest

from flat.backends import DynamoStore, FileStore, MemoryStore, PostgresStore, SQLiteStore
from flat.backends.dynamodb.table import FORMAT, description, key
from flat.backends.protocols import CheckpointStore
from flat.backends.redis.store import RedisStore
from flat.backends.s3 import journal
from flat.backends.s3.store import S3Store
from flat.errors import BackendError
from flat.testing.servers import AwsServer, PostgresServer, RedisServer, aws_server
from flat.testing.store_case import birth
from flat.testing.store_faults import FAULT_CHECKS, THROTTLE_CHECKS, FaultCheck, Proxy
from flat.testing.store_owners import OWNER_CHECKS, OwnerCheck

pytestmark = pytest.mark.anyio
numbers = itertools.count()
HELD = "an_answer_that_does_not_come_ends_in_time"
BREAKS = "a_connection_that_breaks_at_any_call_loses_and_doubles_nothing"
DOWN = "a_server_that_goes_away_at_any_call_is_one_clear_error"
BUSY = "a_server_that_refuses_for_a_while_is_asked_again"
KILLED = "a_server_that_is_killed_and_started_again_goes_on_with_its_data"
LEFT = "a_place_that_is_left_at_any_moment_is_found_as_it_was"


EVERY = os.environ.get("FLAT_FAULTS_EVERY")
"""Of the faults of a sweep, each of which is a story of its own, one in so many is tried; unless this is told, in each
store as many as it has time for. For all of them, on all event loops: 1."""
ALL = EVERY == "1"


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


# -- stores without a server ----------------------------------------------------------------------------


@dataclass
class OwnPlace:
    """A folder, or this process's memory: nothing serves it, so that there is nothing to restart."""

    open: Callable[[], CheckpointStore]

    def direct(self) -> CheckpointStore:
        return self.open()

    def restart(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("check", OWNER_CHECKS, ids=name)
@pytest.mark.parametrize("kind", ["memory", "file", "sqlite"])
async def test_a_store_without_a_server(kind: str, check: OwnerCheck, tmp_path: Path) -> None:
    def place() -> OwnPlace:
        memory = MemoryStore()
        openers: dict[str, Callable[[], CheckpointStore]] = {
            "memory": lambda: memory,
            "file": lambda: FileStore(tmp_path / "store"),
            "sqlite": lambda: SQLiteStore(tmp_path / "store"),
        }
        return OwnPlace(openers[kind])

    await check(place)


# -- Redis ----------------------------------------------------------------------------------------------


def loading(said: bytes) -> bytes | None:
    """What a server answers to each command while it reads its data after a start."""
    reader, commands = hiredis.Reader(), 0
    reader.feed(said)
    while reader.gets() is not False:
        commands += 1
    rest = reader.has_data()
    return None if rest or not commands else b"-LOADING the dataset is being read\r\n" * commands


class RedisFaults:
    """A prefix of its own in a Valkey server, through a proxy and directly."""

    checks = (*FAULT_CHECKS, *THROTTLE_CHECKS)
    one_loop: ClassVar = {HELD: "asyncio", DOWN: "trio", KILLED: "asyncio", BUSY: "trio"}
    """Checks that mostly wait, or take long: once is enough for those."""

    def __init__(self, server: RedisServer, check: str) -> None:
        self.server, self.proxy = server, Proxy(server.port, loading)
        self.prefix = server.url().partition("prefix=")[2]

    def through(self, patience: float) -> RedisStore:
        return RedisStore(self.server.url(self.prefix, port=self.proxy.port, timeout=patience))

    def direct(self) -> RedisStore:
        return RedisStore(self.server.url(self.prefix))

    def restart(self) -> None:
        self.server.stop(signal.SIGKILL)
        self.server.start()

    def close(self) -> None:
        self.proxy.close()


# -- PostgreSQL -----------------------------------------------------------------------------------------


class PostgresFaults:
    """A schema of its own in a server, through a proxy and directly."""

    checks = FAULT_CHECKS
    one_loop: ClassVar = {HELD: "asyncio", DOWN: "trio"}
    every = int(EVERY or 7)
    """A connection is a process of the server's: all faults at all calls take minutes."""
    least = 0.25
    """Seconds that a call may take: on a busy machine starting that process alone takes a while."""

    def __init__(self, server: PostgresServer, check: str) -> None:
        self.server, self.proxy = server, Proxy(server.port)
        self.schema = server.borrow()

    def through(self, patience: float) -> PostgresStore:
        timeout = max(patience, self.least)
        return PostgresStore(self.server.url(self.schema, port=self.proxy.port, timeout=timeout))

    def direct(self) -> PostgresStore:
        return PostgresStore(self.server.url(self.schema))

    def restart(self) -> None:
        self.server.stop(signal.SIGQUIT)
        self.server.start()

    def close(self) -> None:
        self.proxy.close()
        self.server.give_back(self.schema)


@contextmanager
def few_connections(server: PostgresServer, schema: str) -> Iterator[str]:
    """The address of a role that may have one connection, and the schema, which is its own."""
    role = f"few_{schema}"
    with psycopg.connect(server.url("").partition("?")[0], autocommit=True) as admin:
        database = admin.info.dbname
        admin.execute(f'CREATE ROLE "{role}" LOGIN CONNECTION LIMIT 1')
        admin.execute(f'GRANT CREATE ON DATABASE "{database}" TO "{role}"')
        url = server.url(schema)
        try:
            yield f"postgresql://{role}@{url.partition('@')[2]}"
        finally:
            admin.execute(f'DROP OWNED BY "{role}" CASCADE')
            admin.execute(f'DROP ROLE "{role}"')


async def test_a_server_that_has_no_connection_left_is_asked_until_it_has(postgres: PostgresServer) -> None:
    with few_connections(postgres, f"few{os.getpid()}") as url:
        held = psycopg.connect(url.partition("?")[0])
        hasty, patient = PostgresStore(f"{url}&timeout=2"), PostgresStore(url)
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


# -- Amazon DynamoDB and S3 -----------------------------------------------------------------------------


def whole_request(said: bytes, without_length: int | None = None) -> bool:
    """Whether a client has said a call to its end."""
    head, _, body = said.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), without_length)
    return bool(head.strip()) and length is not None and len(body) >= length


def exceeded(said: bytes) -> bytes | None:
    """What DynamoDB answers to a call when there were too many."""
    if not whole_request(said):
        return None
    kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
    answer = json.dumps({"__type": kind, "message": "The level of throughput is exceeded."}).encode()
    return (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer)
    )


def slow_down(said: bytes) -> bytes | None:
    """What S3 answers to a call when there were too many."""
    if not whole_request(said, without_length=0):
        return None
    answer = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    head = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n"
    return head % len(answer) + answer


class AwsFaults:
    """A table or bucket of its own in a server, through a proxy and directly."""

    checks = (*FAULT_CHECKS, *THROTTLE_CHECKS)
    one_loop: ClassVar = {
        BREAKS: "asyncio", HELD: "trio", DOWN: "asyncio", BUSY: "trio", KILLED: "trio", LEFT: "asyncio"
    }  # fmt: skip
    every = int(EVERY or 47)
    scheme = "dynamodb"
    store: type[DynamoStore | S3Store] = DynamoStore
    refusal = staticmethod(exceeded)
    often = 4
    """Of the many restarts that a check asks for, one in so many is made: each takes a second."""

    def __init__(self, server: AwsServer, check: str) -> None:
        self.server, self.proxy = server, Proxy(server.port, self.refusal, lingers=True)
        self.restarts = self.often if check == KILLED and not ALL else 1
        self.place, self.asked = f"faults-{os.getpid()}-{next(numbers)}", 0
        self.create()

    def create(self) -> None:
        self._ask("CreateTable", description(self.place))
        self._ask(
            "PutItem", {"TableName": self.place, "Item": {**key("format", "format"), "fmt": {"S": FORMAT}}}
        )

    def _ask(self, operation: str, arguments: dict[str, Any]) -> None:
        headers = {
            "X-Amz-Target": f"DynamoDB_20120810.{operation}", "Content-Type": "application/x-amz-json-1.0",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/aws4_request, "
            "SignedHeaders=host, Signature=0",
        }  # fmt: skip
        send(urllib.request.Request(self.server.endpoint, json.dumps(arguments).encode(), headers))

    def _url(self, **options: Any) -> str:
        return self.server.url(self.place, scheme=self.scheme, create="false", **options)

    def through(self, patience: float) -> CheckpointStore:
        return self.store(self._url(port=self.proxy.port, timeout=patience))

    def direct(self) -> CheckpointStore:
        return self.store(self._url())

    def restart(self) -> None:
        self.asked += 1
        if self.asked % self.restarts:
            return
        self.server.stop()
        self.server.start()

    def close(self) -> None:
        self.proxy.close()


class S3Faults(AwsFaults):
    one_loop: ClassVar = {  # one that starts the server 22 times only with all faults
        BREAKS: "trio", HELD: "asyncio", DOWN: "trio", BUSY: "asyncio", KILLED: "none", LEFT: "trio"
    }  # fmt: skip
    every = int(EVERY or 101)
    scheme = "s3"
    store = S3Store
    refusal = staticmethod(slow_down)
    often = 1

    def create(self) -> None:
        for path, body in (("", b""), ("/format", journal.FORMAT)):
            send(urllib.request.Request(f"{self.server.endpoint}/{self.place}{path}", body, method="PUT"))


def send(request: urllib.request.Request) -> None:
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 200


# -- all that are in servers ----------------------------------------------------------------------------


KINDS: dict[str, Any] = {
    "redis": RedisFaults, "postgres": PostgresFaults, "dynamodb": AwsFaults, "s3": S3Faults
}  # fmt: skip
CASES = [
    pytest.param(kind, check, loop, id=f"{kind}-{loop}-{name(check)}")
    for kind, place in KINDS.items()
    for check in place.checks
    for loop in ("asyncio", "trio")
    if ALL or place.one_loop.get(name(check), loop) == loop
]


@pytest.fixture
def server(kind: str, check: FaultCheck, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The shared server, or one that keeps its data when it is asked to stop, and is started again."""
    if kind in ("redis", "postgres"):
        yield request.getfixturevalue(kind)
    elif name(check) in (KILLED, LEFT):
        with aws_server(keeps=True) as started:
            yield started
    else:
        yield request.getfixturevalue("aws")


@pytest.mark.parametrize(("kind", "check", "anyio_backend"), CASES)
async def test_a_store_in_a_server(kind: str, check: FaultCheck, server: Any) -> None:
    await check(lambda: KINDS[kind](server, name(check)))
