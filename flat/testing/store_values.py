"""Checks of what a store keeps: any bytes, values under their digests, and names that mean harm."""

from __future__ import annotations

import hashlib

from flat.backends.protocols import Head
from flat.errors import FlatError
from flat.testing.store_case import (
    ALICE,
    TTL,
    Checks,
    Place,
    begin,
    birth,
    execution,
    ids,
    newest,
    refused,
    signal,
    signal_ids,
    step,
    waiting,
)

LONE = Checks()
SHARED = Checks()

HOSTILE = (
    "nul\0in the middle", "../../etc/passwd", "..", ".", "/absolute", "a/b\\c", "", " ", "x" * 5000,
    "ünï©ødé 日本 🙂", "'; DROP TABLE executions; --", "%_*?[a]", "CON", "nul.txt", "trailing.",
    "line\nbreak",
    "Case", "case", "a~b", "-rf", "journal", "lock", "e1.tmp", "\u202egnp", "e\u0301", "\u00e9",
)  # fmt: skip


@LONE
async def bodies_are_any_bytes(place: Place) -> None:
    store = place.open()
    bodies = [b"", b"\0", bytes(range(256)), b"x" * 5_000, b"\n" * 3, b"{}", "日本".encode()]
    await store.create(birth(body=bodies[0]))
    lease = await store.acquire("e1", ALICE, now=0, ttl=TTL)
    for seq, body in enumerate(bodies[1:], 1):
        await store.commit(
            step(lease, seq, body, log=(body,), blobs={f"d{seq}": body}, send=(signal(f"s{seq}", body=body),))
        )
    assert [body for _, _, body in await store.bodies("e1")] == bodies
    stored = await store.load("e1")
    assert stored is not None
    assert list(stored.log) == bodies[1:]
    assert [await store.get_blob(f"d{seq}") for seq in range(1, len(bodies))] == bodies[1:]
    assert [one.body for one in await store.signals()] == bodies[1:]


@LONE
async def a_large_body_comes_back_whole(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    body = hashlib.sha256(b"seed").digest() * 100_000
    await store.commit(step(lease, 1, body))
    await store.commit(step(lease, 2))
    stored = await store.load("e1", at=1)
    assert stored is not None
    assert stored.bodies[-1] == (1, body)


@LONE
async def the_first_config_under_a_digest_stays(place: Place) -> None:
    store = place.open()
    await store.put_config("p", b"first")
    await store.put_config("p", b"second")
    await store.put_config("q", b"")
    assert await store.get_config("p") == b"first"
    assert await store.get_config("q") == b""
    assert await store.get_config("r") is None


@LONE
async def the_same_blob_is_stored_once(place: Place) -> None:
    store = place.open()
    first, second = await begin(store, "e1"), await begin(store, "e2")
    await store.commit(step(first, 1, blobs={"d": b"value", "e": b"other"}))
    await store.commit(step(second, 1, blobs={"d": b"value"}))
    assert await store.get_blob("d") == b"value"
    assert await store.get_blob("f") is None


@LONE
async def blobs_and_configs_are_apart(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.put_config("d", b"config")
    await store.commit(step(lease, 1, blobs={"d": b"blob"}))
    assert (await store.get_config("d"), await store.get_blob("d")) == (b"config", b"blob")


@LONE
async def hostile_ids_are_ids_like_any_other(place: Place) -> None:
    store = place.open()
    for number, name in enumerate(HOSTILE):
        assert await store.create(birth(name, str(number).encode())), name
        lease = await store.acquire(name, ALICE, now=0, ttl=TTL)
        await store.commit(step(lease, 1, log=(b"line",)))
        await store.request_cancel(name)
    assert sorted(await ids(store.find())) == sorted(HOSTILE)
    assert sorted(await store.cancel_requested("alice")) == sorted(HOSTILE)
    for number, name in enumerate(HOSTILE):
        assert (await execution(store, name)).execution_id == name
        assert [body for _, _, body in await store.bodies(name)] == [str(number).encode(), b"body 1"]
        assert await store.delete(name)
        assert await store.get(name) is None


@LONE
async def hostile_channels_are_channels_like_any_other(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, head=waiting(*HOSTILE)))
    assert (await execution(store)).channels == HOSTILE
    for number, name in enumerate(HOSTILE):
        await store.send(signal(name, name, str(number).encode()))
        assert await ids(store.find(channel=name)) == ["e1"], name
        assert [(one.signal_id, one.channel, one.body) for one in await store.signals(name)] == [
            (name, name, str(number).encode())
        ]
    await store.commit(step(lease, 2, consume=HOSTILE, head=Head(status="running")))
    assert list(await store.signals()) == []


@LONE
async def hostile_digests_and_owners_do_no_harm(place: Place) -> None:
    store = place.open()
    for number, name in enumerate(HOSTILE):
        await store.put_config(name, str(number).encode())
        lease = await begin(store, f"e{number}")
        await store.commit(step(lease, 1, blobs={name: str(number).encode()}))
    for number, name in enumerate(HOSTILE):
        assert await store.get_config(name) == str(number).encode()
        assert await store.get_blob(name) == str(number).encode()
        assert list(await store.cancel_requested(name)) == []


@LONE
async def text_that_is_not_unicode_is_refused_and_leaves_nothing(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    half = "half \ud83d"
    async with refused(FlatError):
        await store.create(birth(half))
    async with refused(FlatError):
        await store.send(signal(half))
    async with refused(FlatError):
        await store.send(signal("s", half))
    for rest in ({"head": waiting(half)}, {"births": (birth(half),)}, {"send": (signal("s", half),)}):
        async with refused(FlatError):
            await store.commit(step(lease, 1, **rest))
    async with refused(FlatError):
        await store.get(half)
    assert await newest(store) == 0
    assert list(await store.signals()) == []
    await store.commit(step(lease, 1))
    assert await ids(store.find()) == ["e1"]


@SHARED
async def hostile_names_survive_reopening(place: Place) -> None:
    store = place.open()
    for name in HOSTILE:
        await store.create(birth(name, channels=(name,)))
        await store.send(signal(name, name))
    store = await place.reopen(store)
    assert await ids(store.find()) == list(reversed(HOSTILE))
    assert await signal_ids(store) == list(HOSTILE)
