"""Checks of stores that blobs and configs can be taken out of (`flat.backends.sweeping`)."""

from __future__ import annotations

from flat.backends.sweeping import Sweepable
from flat.testing.store_case import Checks, Place, begin, step

CHECKS = Checks()
A, B, C = ("0123456789abcdef" * 2, "f" * 32, "e" * 32)


@CHECKS
async def what_is_not_spared_is_removed_and_the_rest_stays(place: Place) -> None:
    store = place.open()
    assert isinstance(store, Sweepable)
    lease = await begin(store)
    await store.commit(step(lease, 1, blobs={A: b"a", B: b"b"}))
    names = await store.kept("blob")
    assert len(names) == 2
    await store.commit(step(lease, 2, blobs={C: b"c"}))
    assert await store.drop("blob", names, but={B, "no such"}) == 1
    assert [await store.get_blob(name) for name in (A, B, C)] == [None, b"b", b"c"]
    assert len(await store.kept("blob")) == 2
    await store.commit(step(lease, 3, blobs={A: b"a"}))
    assert await store.get_blob(A) == b"a"


@CHECKS
async def configs_and_blobs_of_one_name_are_two_things(place: Place) -> None:
    store = place.open()
    assert isinstance(store, Sweepable)
    lease = await begin(store)
    await store.commit(step(lease, 1, blobs={A: b"blob"}))
    text = b'{"origin":null}'
    await store.put_config(A, text)
    assert await store.drop("config", await store.kept("config"), but=()) == 1
    assert await store.get_config(A) is None
    assert await store.get_blob(A) == b"blob"
    await store.put_config(A, text)
    assert await store.get_config(A) == text


@CHECKS
async def configs_of_other_people_stay(place: Place) -> None:
    store = place.open()
    assert isinstance(store, Sweepable)
    await store.put_config("a" * 64, b"data: {}")
    await store.put_config("short", b"data: {}")
    assert not await store.kept("config")
