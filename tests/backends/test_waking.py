"""Stores and triggers in servers wake those who listen there: with each signal, again after a loss, and nobody else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flat.backends import PostgresStore
from flat.backends.by_name import create_trigger_backend
from flat.backends.postgres.trigger import PostgresTrigger
from flat.backends.redis.store import RedisStore
from flat.backends.redis.trigger import RedisTrigger
from flat.backends.triggers import TriggerBackend, Woken
from flat.drivers.dispatch import Dispatcher
from flat.errors import BackendError
from flat.testing.faults_proxy import Proxy
from flat.testing.store_case import begin, birth, signal, step
from flat.testing.store_servers import StoreServers

pytestmark = pytest.mark.anyio
STORES: dict[str, type[RedisStore | PostgresStore]] = {"redis": RedisStore, "postgres": PostgresStore}
TRIGGERS: dict[str, type[RedisTrigger | PostgresTrigger]] = {
    "redis": RedisTrigger, "postgres": PostgresTrigger
}  # fmt: skip
NOWHERE = {
    "redis": "redis://127.0.0.1:1/0?timeout=0.05", "postgres": "postgresql://flat@127.0.0.1:1/db?timeout=0.2"
}  # fmt: skip


@pytest.fixture(params=STORES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(kind: str, servers: StoreServers) -> str:
    return servers.url(kind)


@pytest.fixture
async def store(kind: str, url: str) -> AsyncIterator[RedisStore | PostgresStore]:
    async with STORES[kind](url) as opened:
        yield opened


async def hears_nothing(woken: Woken) -> bool:
    with anyio.move_on_after(0.05) as scope:
        await woken.wait()
    return scope.cancelled_caught


async def test_a_store_wakes_listeners_with_each_signal(kind: str, url: str, store: Any) -> None:
    lease = await begin(store)
    async with STORES[kind](url) as other, other.listen() as woken:
        with anyio.fail_after(30):
            await store.send(signal("s1"))
            await woken.wait()
            await store.commit(step(lease, 1, send=(signal("s2"),)))
            await woken.wait()
            await TRIGGERS[kind](url).notify("anything")
            await woken.wait()
        assert await hears_nothing(woken), "woken without a reason"
    assert isinstance(store, TriggerBackend)


async def test_what_was_notified_before_the_wait_wakes_at_once(kind: str, url: str, store: Any) -> None:
    async with create_trigger_backend(kind, url=url).listen() as woken:
        await store.send(signal("s1"))
        await store.send(signal("s2"))
        with anyio.fail_after(30):
            await woken.wait()


async def test_stores_in_other_places_wake_nobody(kind: str, store: Any, servers: StoreServers) -> None:
    async with TRIGGERS[kind](servers.url(kind)).listen() as woken:
        await store.send(signal("s"))
        assert await hears_nothing(woken)


async def test_a_listener_that_lost_its_connection_listens_again_and_says_so(
    kind: str, url: str, servers: StoreServers
) -> None:
    port = getattr(servers, kind).port
    with Proxy(port) as proxy:
        trigger = TRIGGERS[kind](url.replace(f":{port}/", f":{proxy.port}/"))
        async with trigger.listen() as woken:
            proxy.cut()
            with anyio.fail_after(30):
                await woken.wait()  # it may have missed something
                await TRIGGERS[kind](url).notify("c")
                await woken.wait()


async def test_notifying_never_raises_and_listening_says_what_is_wrong(kind: str) -> None:
    trigger = TRIGGERS[kind](NOWHERE[kind])
    await trigger.notify("c")
    with pytest.raises(BackendError, match="cannot listen"):
        async with trigger.listen():
            raise AssertionError("nobody is there")


async def test_a_dispatcher_wakes_by_the_store_alone(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.create(birth(status="waiting", channels=("c1",)))
    resumed: list[str] = []
    listening, listen = anyio.Event(), store.listen

    @asynccontextmanager
    async def told() -> AsyncIterator[Woken]:
        async with listen() as woken:
            listening.set()
            yield woken

    monkeypatch.setattr(store, "listen", told)
    async with anyio.create_task_group() as group:

        async def resume(execution_id: str) -> None:
            (found,) = await store.signals("c1")
            await store.take(found.signal_id)
            resumed.append(execution_id)
            group.cancel_scope.cancel()

        group.start_soon(Dispatcher(store, resume, poll_interval=3600.0).watch)
        with anyio.fail_after(30):
            await listening.wait()
            await store.send(signal())
            await anyio.sleep_forever()
    assert resumed == ["e1"]
