"""Stores pass the public kit of faults, on every event loop: those without a server what can befall them.

What can happen to files is in `test_file_faults` and `test_sqlite_faults`.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hiredis
import pytest

from flat.backends import FileStore, MemoryStore, SQLiteStore
from flat.backends.protocols import CheckpointStore
from flat.backends.redis.store import RedisStore
from flat.testing.servers import RedisServer, redis_server
from flat.testing.store_faults import FAULT_CHECKS, THROTTLE_CHECKS, FaultCheck, Proxy
from flat.testing.store_owners import OWNER_CHECKS, OwnerCheck

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


# -- stores without a server ----------------------------------------------------------------------------


@dataclass
class OwnPlace:
    """A folder, or this process's memory: nothing serves it, so that there is nothing to restart."""

    folder: Path | None = None
    kind: type[FileStore | SQLiteStore] = SQLiteStore

    def __post_init__(self) -> None:
        self._memory = MemoryStore()

    def direct(self) -> CheckpointStore:
        return self._memory if self.folder is None else self.kind(self.folder / "store")

    def restart(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("check", OWNER_CHECKS, ids=name)
async def test_memory(check: OwnerCheck) -> None:
    await check(OwnPlace)


@pytest.mark.parametrize("check", OWNER_CHECKS, ids=name)
async def test_files(check: OwnerCheck, tmp_path: Path) -> None:
    await check(lambda: OwnPlace(tmp_path, FileStore))


@pytest.mark.parametrize("check", OWNER_CHECKS, ids=name)
async def test_sqlite(check: OwnerCheck, tmp_path: Path) -> None:
    await check(lambda: OwnPlace(tmp_path))


# -- Redis ----------------------------------------------------------------------------------------------


def busy(said: bytes) -> bytes | None:
    """What a server answers to each command while it reads its data after a start."""
    reader, commands = hiredis.Reader(), 0
    reader.feed(said)
    while reader.gets() is not False:
        commands += 1
    rest = reader.has_data()
    return None if rest or not commands else b"-LOADING the dataset is being read\r\n" * commands


class RedisFaults:
    """A prefix of its own in a Valkey server, through a proxy and directly."""

    def __init__(self, server: RedisServer) -> None:
        self.server, self.proxy = server, Proxy(server.port, busy)
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


ONE_LOOP = {
    "an_answer_that_does_not_come_ends_in_time": "asyncio",
    "a_server_that_goes_away_at_any_call_is_one_clear_error": "trio",
    "a_server_that_is_killed_and_started_again_goes_on_with_its_data": "asyncio",
    "a_server_that_refuses_for_a_while_is_asked_again": "trio",
}
"""Checks that mostly wait: once is enough for those."""
CASES = [
    pytest.param(check, loop, id=f"{loop}-{check.__name__}")
    for check in (*FAULT_CHECKS, *THROTTLE_CHECKS)
    for loop in ("asyncio", "trio")
    if ONE_LOOP.get(check.__name__, loop) == loop
]


@pytest.mark.parametrize(("check", "anyio_backend"), CASES)
async def test_redis(check: FaultCheck, redis: RedisServer) -> None:
    await check(lambda: RedisFaults(redis))
