"""The stores that give back what nothing refers to pass the checks for it; the others do not pretend to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flat.backends import FileStore, MemoryStore, SQLiteStore, open_store
from flat.backends.protocols import CheckpointStore
from flat.backends.sweeping import Sweepable
from flat.testing.servers import AwsServer, RedisServer, redis_server
from flat.testing.store_case import Check, Place
from flat.testing.store_sweeping import CHECKS

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as started:
        yield started


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["memory", "file", "sqlite", "redis", "postgres", "s3"])
async def test_the_checks(kind: str, check: Check, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    def url(name: str, **options: str) -> str:
        return str(request.getfixturevalue(name).url(**options))

    openers: dict[str, Callable[[], CheckpointStore]] = {
        "memory": MemoryStore,
        "file": lambda: FileStore(tmp_path / "store"),
        "sqlite": lambda: SQLiteStore(tmp_path / "store.db"),
        "redis": lambda: open_store(url("redis")),
        "postgres": lambda: open_store(url("postgres")),
        "s3": lambda: open_store(url("aws", scheme="s3")),
    }
    async with Place(openers[kind]) as place:
        await check(place)


async def test_a_store_that_remembers_what_it_stored_is_not_swept(aws: AwsServer) -> None:
    async with Place(lambda: open_store(aws.url())) as place:
        assert not isinstance(place.open(), Sweepable)
