"""Workers on stores in servers: woken without polling, taking over, burying; with the real time, and real servers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest

from flat import MachineHooks, Runtime
from flat.backends import open_store
from flat.backends.protocols import CheckpointStore, Owner
from flat.drivers.dispatch import Report
from flat.drivers.stranded import is_buried, is_queued
from flat.hooks import HooksRegistry
from flat.runtime import Machine, load
from flat.runtime.queue import register_of
from flat.testing.store_servers import StoreServers

pytestmark = pytest.mark.anyio


GONE = Owner(owner="gone", host="elsewhere", pid=1)


@pytest.fixture(params=["redis", "postgres", "dynamodb"])
async def store(request: pytest.FixtureRequest, servers: StoreServers) -> AsyncIterator[CheckpointStore]:
    opened = open_store(servers.url(request.param))
    yield opened
    await opened.close()


class Noting(MachineHooks):
    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        return {**context, "did": action_name}


def job(**first: Any) -> Machine:
    states = {
        "a": {"type": "initial", "transitions": [{"to": "b"}], **first},
        "b": {"action": "act", "transitions": [{"to": "c"}]},
        "c": {"type": "final", "output": {"did": "{{ context.did }}"}},
    }
    data = {"name": "job", "context": {"did": None}, "states": states, "hooks": "noting"}
    config = {"spec": "flatmachine", "spec_version": "4.2.1", "data": data}
    return load(config=config, hooks=HooksRegistry({"noting": Noting}))


@pytest.mark.parametrize("store", ["redis", "postgres"], indirect=True)  # elsewhere its workers poll
async def test_an_idle_worker_is_woken_by_the_queue_and_by_signals(store: CheckpointStore) -> None:
    made = job(wait_for="go")
    async with Runtime(store, machines={"job": made}) as runtime, anyio.create_task_group() as group:
        worker, idle = runtime.worker(poll=1000), anyio.Event()
        told, heard = anyio.create_memory_object_stream[Report](10)
        asked = worker.store.ready

        async def ready(*, now: float, limit: int | None = None) -> Any:
            found = await asked(now=now, limit=limit)
            idle.set()
            return found

        store.ready = ready  # type: ignore[method-assign]
        group.start_soon(lambda: worker.run(told=told.send_nowait))
        with anyio.fail_after(60):
            await idle.wait()
            async with Runtime(store) as elsewhere:
                await elsewhere.enqueue(made, execution_id="x")
                assert (await heard.receive()).resumed == ["x"]
                await elsewhere.signal("go", 1)
                assert (await heard.receive()).resumed == ["x"]
        worker.stop()
    found = await store.get("x")
    assert found is not None
    assert found.status == "done"
    told.close()
    heard.close()


async def test_the_dead_are_counted_buried_and_revived(store: CheckpointStore) -> None:
    made = job()
    async with Runtime(store, machines={"job": made}) as runtime:
        await runtime.enqueue(made, execution_id="x")
        # Its lease has ended long ago.
        await store.acquire("x", GONE, now=time.time() - 100, ttl=1)
        assert (await runtime.worker(attempts=1).drain()).ran == 0
        found = await store.get("x")
        assert found is not None
        assert is_buried(found)
        assert len(await store.dead()) == 1
        assert (await runtime.worker(attempts=1).drain()).ran == 0
        assert await runtime.revive("x")
        found = await store.get("x")
        assert found is not None
        assert is_queued(found)
        assert await store.dead() == []
        assert (await runtime.worker(attempts=1).drain()).ran == 1
        assert (await runtime.inspect("x")).output == {"did": "act"}


async def test_a_stranded_execution_is_taken_over_once(store: CheckpointStore) -> None:
    made = job()
    async with Runtime(store, machines={"job": made}) as one, Runtime(store, machines={"job": made}) as other:
        for id_ in "xyz":
            await one.enqueue(made, execution_id=id_)
            await store.acquire(id_, GONE, now=time.time() - 100, ttl=1)
        workers = [one.worker(name="one"), other.worker(name="other")]
        async with anyio.create_task_group() as group:
            for worker in workers:
                group.start_soon(worker.drain)
        assert sum(worker.tally.ran for worker in workers) == 3
        assert {e.status for e in await one.list()} == {"done"}
        assert await store.dead() == []


async def test_workers_are_in_the_register_of_their_store(store: CheckpointStore) -> None:
    async with Runtime(store) as runtime:
        await runtime.worker(name="w1").drain()
    opener = register_of(store, time.time)
    assert opener is not None
    register = opener()
    (record,) = await register.list()
    assert (record.worker_id, record.status, record.metadata["running"]) == ("w1", "terminated", 0)
    await register.close()
