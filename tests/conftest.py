"""What all tests share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from flat.testing.servers import AwsServer, PostgresServer, RedisServer
from flat.testing.store_servers import StoreServers, store_servers

# A shell has its background jobs ignore Ctrl-C, and so would every process that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def servers() -> Iterator[StoreServers]:
    """Empty places for every kind of store; each server starts with the first test that asks for it."""
    with store_servers() as started:
        yield started


@pytest.fixture(scope="session")
def redis(servers: StoreServers) -> RedisServer:
    return servers.redis


@pytest.fixture(scope="session")
def postgres(servers: StoreServers) -> PostgresServer:
    return servers.postgres


@pytest.fixture(scope="session")
def aws(servers: StoreServers) -> AwsServer:
    return servers.aws
