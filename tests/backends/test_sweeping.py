"""The stores that give back what nothing refers to pass the checks for it; the others do not pretend to."""

from __future__ import annotations

import pytest

from flat.backends import open_store
from flat.backends.sweeping import Sweepable
from flat.testing.store_case import Check, Place
from flat.testing.store_servers import StoreServers
from flat.testing.store_sweeping import CHECKS

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("kind", ["memory", "file", "sqlite", "redis", "postgres", "s3"])
async def test_the_checks(kind: str, check: Check, servers: StoreServers) -> None:
    url = "memory:" if kind == "memory" else servers.url(kind)
    async with Place(lambda: open_store(url)) as place:
        await check(place)


async def test_a_store_that_remembers_what_it_stored_is_not_swept(servers: StoreServers) -> None:
    url = servers.url("dynamodb")
    async with Place(lambda: open_store(url)) as place:
        assert not isinstance(place.open(), Sweepable)
