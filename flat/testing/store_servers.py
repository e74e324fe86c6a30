"""Empty places for every kind of store, by name: files in a folder, or servers that start when they are asked for.

with store_servers() as servers:
    store = open_store(servers.url("postgres"))
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path

from flat.testing.servers import (
    AwsServer,
    PostgresServer,
    RedisServer,
    aws_server,
    postgres_server,
    redis_server,
)


class StoreServers:
    """One server of each sort, shared by all who ask; and a folder for the stores that need none."""

    def __init__(self, folder: Path, started: ExitStack) -> None:
        self._folder, self._started, self._files = folder, started, 0

    @cached_property
    def redis(self) -> RedisServer:
        return self._started.enter_context(redis_server())

    @cached_property
    def postgres(self) -> PostgresServer:
        return self._started.enter_context(postgres_server())

    @cached_property
    def aws(self) -> AwsServer:
        return self._started.enter_context(aws_server())

    def url(self, kind: str) -> str:
        """The address of a place that nobody has used."""
        match kind:
            case "redis":
                return self.redis.url()
            case "postgres":
                return self.postgres.url()
            case "dynamodb" | "s3":
                return self.aws.url(scheme=kind)
            case "sqlite" | "file":
                self._files += 1
                return f"{kind}:{self._folder / f'{kind}-{self._files}'}"
        raise ValueError(f"{kind!r} is none of sqlite, file, redis, postgres, dynamodb and s3")


@contextmanager
def store_servers() -> Iterator[StoreServers]:
    """Whatever was started in the block ends with it."""
    with tempfile.TemporaryDirectory(prefix="flat-stores-") as folder, ExitStack() as started:
        yield StoreServers(Path(folder), started)
