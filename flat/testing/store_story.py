"""A story that uses every method of a store, one act after another, and all that is stored when it has been told.

`store_faults` tells it again and again, with something that breaks at another moment each time.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any

from flat.backends.protocols import CheckpointStore, Head, Lease
from flat.testing.store_case import ALICE, TTL, birth, signal, step, waiting


@dataclass
class Teller:
    """What one telling of the story knows: the lease that it holds."""

    lease: Lease | None = None

    @property
    def held(self) -> Lease:
        assert self.lease is not None
        return self.lease


Act = Callable[[CheckpointStore, Teller], Awaitable[Any]]


async def _create(store: CheckpointStore, teller: Teller) -> Any:
    return await store.create(birth("other", channels=("news",), status="waiting"))


async def _begin(store: CheckpointStore, teller: Teller) -> Any:
    teller.lease = await store.begin(birth("e1"), ALICE, now=1000.0, ttl=TTL)
    return teller.lease is not None


async def _plain(store: CheckpointStore, teller: Teller) -> Any:
    await store.commit(step(teller.held, 1, b"x" * 100_000))


async def _send(store: CheckpointStore, teller: Teller) -> Any:
    return await store.send(signal("in", "c1"))


async def _everything(store: CheckpointStore, teller: Teller) -> Any:
    await store.commit(
        step(
            teller.held, 2, base=True, head=waiting("c2", "news", wake_at=5000.0), log=(b"one", b"two"),
            blobs={"d1": b"blob"}, consume=("in",),
            send=(signal("out", "news"), signal("mine", "c2", to="e1")),
            births=(birth("child", parent="e1"),),
        )
    )  # fmt: skip


async def _ready(store: CheckpointStore, teller: Teller) -> Any:
    return [one.execution_id for one in await store.ready(now=1e9)]


async def _fan_out(store: CheckpointStore, teller: Teller) -> Any:
    return await store.fan_out("out", ["e1", "other"])


async def _signals(store: CheckpointStore, teller: Teller) -> Any:
    return list(await store.signals("news", to="e1"))


async def _take(store: CheckpointStore, teller: Teller) -> Any:
    return await store.take("out@other")


async def _bury(store: CheckpointStore, teller: Teller) -> Any:
    return await store.bury("out@e1", "why", 1003.0)


async def _dead(store: CheckpointStore, teller: Teller) -> Any:
    return list(await store.dead())


async def _revive(store: CheckpointStore, teller: Teller) -> Any:
    return await store.revive("out@e1")


async def _config(store: CheckpointStore, teller: Teller) -> Any:
    await store.put_config("p", b"text")
    return await store.get_config("p")


async def _heartbeat(store: CheckpointStore, teller: Teller) -> Any:
    await store.heartbeat(ALICE, now=1005.0, ttl=TTL)
    return await store.abandoned("e1", now=1005.0 + TTL)


async def _request_cancel(store: CheckpointStore, teller: Teller) -> Any:
    return await store.request_cancel("e1")


async def _cancel_requested(store: CheckpointStore, teller: Teller) -> Any:
    return list(await store.cancel_requested("alice"))


async def _find(store: CheckpointStore, teller: Teller) -> Any:
    return [one.execution_id async for one in store.find(status="waiting")]


async def _acquire(store: CheckpointStore, teller: Teller) -> Any:
    teller.lease = await store.acquire("e1", ALICE, now=1006.0, ttl=TTL)


async def _cancelled(store: CheckpointStore, teller: Teller) -> Any:
    await store.commit(
        step(teller.held, 3, head=Head(status="cancelled"), consume=("mine",), log=(b"three",))
    )


async def _park(store: CheckpointStore, teller: Teller) -> Any:
    await store.commit(step(teller.held, 4, head=waiting("c9"), release=True))


async def _read(store: CheckpointStore, teller: Teller) -> Any:
    found = await store.load("e1", at=1)
    return found and found.bodies, await store.get_blob("d1"), len(await store.bodies("e1"))


async def _delete(store: CheckpointStore, teller: Teller) -> Any:
    return await store.delete("other")


STORY: tuple[Act, ...] = (
    _create, _begin, _plain, _send, _everything, _ready, _fan_out, _signals, _take, _bury, _dead, _revive, _config,
    _heartbeat, _request_cancel, _cancel_requested, _find, _acquire, _cancelled, _park, _read, _delete,
)  # fmt: skip
HOLDING = range(STORY.index(_begin) + 1, STORY.index(_park) + 1)
"""The acts before which the lease is held."""


async def look(store: CheckpointStore) -> Any:
    """All that is stored, save who owns what."""
    executions = {}
    async for found in store.find():
        name = found.execution_id
        stored = await store.load(name)
        assert stored is not None
        executions[name] = (
            replace(found, owner=None, token=0), await store.bodies(name), list(stored.log),
        )  # fmt: skip
    found_by = {
        channel: [one.execution_id async for one in store.find(channel=channel)]
        for channel in ("c2", "c9", "news")
    }
    return {
        "executions": executions, "found by channel": found_by,
        "found by parent": [one.execution_id async for one in store.find(parent="e1")],
        "found by timer": [one.execution_id async for one in store.find(due=1e9)],
        "ready": [one.execution_id for one in await store.ready(now=1e9)],
        "signals": list(await store.signals()), "dead": list(await store.dead()),
        "blob": await store.get_blob("d1"), "config": await store.get_config("p"),
    }  # fmt: skip
