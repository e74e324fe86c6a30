"""Taking an execution up: what was read before it was owned is used only if nobody has written since."""

from __future__ import annotations

from dataclasses import replace

import pytest

from flat import MemoryStore
from flat.backends.protocols import Owner, Stored
from flat.bindings import standard_types
from flat.core.codec import Codec
from flat.core.snapshot import ROOT, Instance, Snapshot
from flat.drivers.keeper import Keeper, take_up
from flat.testing.store_case import ALICE, BOB, TTL, birth

pytestmark = pytest.mark.anyio
CODEC = Codec(standard_types())


class Counting(MemoryStore):
    """Counts how often it is read."""

    loads = 0

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        self.loads += 1
        return await super().load(execution_id, at=at)


def snapshot(steps: int = 0) -> Snapshot:
    return Snapshot(
        "e1", "running", steps, {ROOT: Instance(ROOT, "a", "", 0, {"steps": steps})}, started_at=1000.0
    )


async def stored() -> tuple[Counting, Stored]:
    store = Counting()
    assert await store.create(birth("e1", CODEC.first(snapshot())))
    read = await store.load("e1")
    assert read is not None
    store.loads = 0
    return store, read


async def taken(store: Counting, read: Stored | None, owner: Owner = ALICE) -> Keeper:
    return await take_up(store, CODEC, "e1", owner, now=1000.0, ttl=TTL, read=read)


async def test_what_was_just_read_is_not_read_again() -> None:
    store, read = await stored()
    keeper = await taken(store, read)
    assert store.loads == 0
    assert (keeper.seq, keeper.stored) == (0, snapshot())


async def test_what_somebody_has_written_since_is_read() -> None:
    store, read = await stored()
    other = await taken(store, None, BOB)
    await other.keep(replace(snapshot(1), at=1001.0))
    await other.release()
    store.loads = 0
    keeper = await taken(store, read)
    assert store.loads == 1
    assert (keeper.seq, keeper.stored.steps) == (1, 1)


async def test_what_its_owner_may_have_written_since_is_read() -> None:
    """Its lease is not given back, so the token is the same as when it was read."""
    store, _ = await stored()
    other = await taken(store, None, BOB)
    read = await store.load("e1")
    await other.keep(replace(snapshot(1), at=1001.0))
    store.loads = 0
    keeper = await take_up(store, CODEC, "e1", ALICE, now=1000.0 + 2 * TTL, ttl=TTL, read=read)
    assert store.loads == 1
    assert (keeper.seq, keeper.stored.steps) == (1, 1)
