"""Checks of the reading half of a store: loading, finding, and signals in their order."""

from __future__ import annotations

from flat.backends.protocols import Head
from flat.testing.store_case import (
    ALICE,
    TTL,
    Checks,
    Place,
    begin,
    birth,
    execution,
    ids,
    signal,
    signal_ids,
    step,
    waiting,
)

LONE = Checks()
SHARED = Checks()


@LONE
async def loading_gives_the_newest_base_and_what_follows(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for seq in range(1, 8):
        await store.commit(step(lease, seq, base=seq in (3, 5)))
    stored = await store.load("e1")
    assert stored is not None
    assert stored.execution == await execution(store)
    assert [seq for seq, _ in stored.bodies] == [5, 6, 7]
    assert stored.bodies[0] == (5, b"body 5")


@LONE
async def any_earlier_step_can_be_loaded(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for seq in range(1, 8):
        await store.commit(step(lease, seq, base=seq in (3, 5)))
    wanted = {0: [0], 1: [0, 1], 2: [0, 1, 2], 3: [3], 4: [3, 4], 5: [5], 6: [5, 6], 7: [5, 6, 7]}
    for at, expected in wanted.items():
        stored = await store.load("e1", at=at)
        assert stored is not None
        assert [seq for seq, _ in stored.bodies] == expected


@LONE
async def a_step_that_does_not_exist_cannot_be_loaded(place: Place) -> None:
    store = place.open()
    await begin(store)
    assert await store.load("e1", at=1) is None
    assert await store.load("e1", at=-1) is None
    assert await store.load("nobody") is None
    assert await store.get("nobody") is None
    assert list(await store.bodies("nobody")) == []


@LONE
async def all_bodies_say_whether_they_are_bases(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for seq in range(1, 5):
        await store.commit(step(lease, seq, base=seq == 2))
    assert [(seq, base) for seq, base, _ in await store.bodies("e1")] == [
        (0, True), (1, False), (2, True), (3, False), (4, False),
    ]  # fmt: skip


@LONE
async def log_rows_keep_their_order(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for seq in range(1, 5):
        await store.commit(step(lease, seq, log=[f"{seq}.{n}".encode() for n in range(seq)]))
    stored = await store.load("e1")
    assert stored is not None
    assert list(stored.log) == [f"{seq}.{n}".encode() for seq in range(1, 5) for n in range(seq)]


@LONE
async def an_earlier_step_has_the_log_of_its_time(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, log=(b"a", b"b")))
    await store.commit(step(lease, 2))
    await store.commit(step(lease, 3, log=(b"c",), base=True))
    logs = []
    for at in range(4):
        stored = await store.load("e1", at=at)
        assert stored is not None
        logs.append(list(stored.log))
    assert logs == [[], [b"a", b"b"], [b"a", b"b"], [b"a", b"b", b"c"]]


@LONE
async def executions_do_not_mix(place: Place) -> None:
    store = place.open()
    leases = {name: await begin(store, name) for name in ("e1", "e2", "e3")}
    for seq in range(1, 4):
        for name, lease in leases.items():
            await store.commit(step(lease, seq, f"{name}/{seq}".encode(), log=(name.encode(),)))
    await store.delete("e2")
    for name in ("e1", "e3"):
        assert [body for _, _, body in await store.bodies(name)][1:] == [
            f"{name}/{n}".encode() for n in (1, 2, 3)
        ]
        stored = await store.load(name)
        assert stored is not None
        assert list(stored.log) == [name.encode()] * 3


@LONE
async def everything_is_found_newest_first(place: Place) -> None:
    store = place.open()
    for name in ("b", "c", "a"):
        await store.create(birth(name))
    assert await ids(store.find()) == ["a", "c", "b"]


@LONE
async def an_empty_store_finds_nothing(place: Place) -> None:
    store = place.open()
    assert await ids(store.find()) == []
    assert list(await store.signals()) == []
    assert await store.get_config("p") is None
    assert await store.get_blob("d") is None
    assert list(await store.cancel_requested("alice")) == []


@LONE
async def executions_are_found_by_status(place: Place) -> None:
    store = place.open()
    lease = await begin(store, "e1")
    await store.create(birth("e2"))
    await store.create(birth("e3", status="done"))
    assert await ids(store.find(status="running")) == ["e2", "e1"]
    await store.commit(step(lease, 1, head=Head(status="done")))
    assert await ids(store.find(status="running")) == ["e2"]
    assert await ids(store.find(status="done")) == ["e3", "e1"]
    assert await ids(store.find(status="failed")) == []


@LONE
async def executions_are_found_by_channel(place: Place) -> None:
    store = place.open()
    first, second = await begin(store, "e1"), await begin(store, "e2")
    await store.commit(step(first, 1, head=waiting("a", "b")))
    await store.commit(step(second, 1, head=waiting("b", "b")))
    await store.create(birth("e3", channels=("b",), status="waiting"))
    assert await ids(store.find(channel="a")) == ["e1"]
    assert await ids(store.find(channel="b")) == ["e3", "e2", "e1"]
    await store.commit(step(first, 2, head=waiting("a")))
    assert await ids(store.find(channel="b")) == ["e3", "e2"]
    await store.commit(step(first, 3, head=Head(status="running")))
    assert await ids(store.find(channel="a")) == []


@LONE
async def executions_are_found_by_due_timer(place: Place) -> None:
    store = place.open()
    await store.create(birth("soon", wake_at=10.0))
    await store.create(birth("never"))
    await store.create(birth("late", wake_at=20.0))
    await store.create(birth("zero", wake_at=0.0))
    assert await ids(store.find(due=9.99)) == ["zero"]
    assert await ids(store.find(due=10.0)) == ["zero", "soon"]
    assert await ids(store.find(due=1e9)) == ["zero", "late", "soon"]
    lease = await store.acquire("soon", ALICE, now=10, ttl=TTL)
    await store.commit(step(lease, 1, head=Head(status="running")))
    assert await ids(store.find(due=1e9)) == ["zero", "late"]


@LONE
async def executions_are_found_by_parent(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, births=(birth("k1", parent="e1"), birth("k2", parent="e1"))))
    await store.create(birth("other", parent="e9"))
    assert await ids(store.find(parent="e1")) == ["k2", "k1"]
    assert await ids(store.find(parent="k1")) == []


@LONE
async def conditions_add_up(place: Place) -> None:
    store = place.open()
    for number in range(8):
        await store.create(
            birth(
                f"e{number}", status="waiting" if number & 1 else "running",
                parent="p" if number & 2 else None,
                channels=("c",) if number & 4 else (), wake_at=float(number),
            )
        )  # fmt: skip
    assert await ids(store.find(status="waiting", parent="p", channel="c")) == ["e7"]
    assert await ids(store.find(status="waiting", due=4.0)) == ["e3", "e1"]
    assert await ids(store.find(channel="c", due=5.0)) == ["e5", "e4"]
    assert await ids(store.find(parent="p", due=6.0, limit=2)) == ["e6", "e3"]


@LONE
async def a_limit_ends_the_search(place: Place) -> None:
    store = place.open()
    for number in range(5):
        await store.create(birth(f"e{number}"))
    assert await ids(store.find(limit=2)) == ["e4", "e3"]
    assert await ids(store.find(limit=0)) == []
    assert len(await ids(store.find(limit=99))) == 5


@LONE
async def many_executions_are_all_found(place: Place) -> None:
    store = place.open()
    for number in range(600):
        await store.create(birth(f"e{number}", status="waiting", channels=("all",)))
    expected = [f"e{number}" for number in reversed(range(600))]
    assert await ids(store.find()) == expected
    assert await ids(store.find(channel="all")) == expected
    assert await ids(store.find(status="waiting", limit=300)) == expected[:300]


@LONE
async def the_store_may_be_written_while_it_is_searched(place: Place) -> None:
    store = place.open()
    for number in range(4):
        await store.create(birth(f"e{number}"))
    seen = []
    async for found in store.find(status="running"):
        seen.append(found.execution_id)
        lease = await store.acquire(found.execution_id, ALICE, now=0, ttl=TTL)
        await store.commit(step(lease, 1, head=Head(status="done"), release=True))
    assert seen == ["e3", "e2", "e1", "e0"]
    assert len(await ids(store.find(status="done"))) == 4


@LONE
async def a_search_may_be_left_early(place: Place) -> None:
    store = place.open()
    for number in range(4):
        await store.create(birth(f"e{number}"))
    found = store.find()
    assert (await anext(found)).execution_id == "e3"
    await store.delete("e2")
    assert await ids(store.find()) == ["e3", "e1", "e0"]
    assert hasattr(found, "aclose")
    await found.aclose()


@LONE
async def signals_come_oldest_first(place: Place) -> None:
    store = place.open()
    for name, channel in (("z", "c1"), ("a", "c2"), ("y", "c1"), ("b", "c2"), ("x", "c1")):
        assert await store.send(signal(name, channel))
    assert await signal_ids(store, "c1") == ["z", "y", "x"]
    assert await signal_ids(store, "c2") == ["a", "b"]
    assert await signal_ids(store, "c3") == []
    assert sorted(await signal_ids(store)) == ["a", "b", "x", "y", "z"]
    assert [one.signal_id for one in await store.signals("c1", limit=2)] == ["z", "y"]
    assert list(await store.signals("c1", limit=0)) == []


@LONE
async def a_signal_comes_back_as_it_was_sent(place: Place) -> None:
    store = place.open()
    await store.send(signal("s", "c", b"\0bytes"))
    assert list(await store.signals("c")) == [signal("s", "c", b"\0bytes")]


@LONE
async def a_signal_is_sent_once(place: Place) -> None:
    store = place.open()
    assert await store.send(signal("s", "c1", b"first"))
    assert not await store.send(signal("s", "c1", b"second"))
    assert not await store.send(signal("s", "c2", b"elsewhere"))
    assert [one.body for one in await store.signals()] == [b"first"]


@SHARED
async def the_order_of_birth_survives_reopening(place: Place) -> None:
    store = place.open()
    for name in ("b", "c", "a"):
        await store.create(birth(name))
    store = await place.reopen(store)
    await store.create(birth("d"))
    assert await ids(store.find()) == ["d", "a", "c", "b"]


@SHARED
async def two_store_objects_find_what_the_other_wrote(place: Place) -> None:
    one, other = place.open(), place.open()
    lease = await begin(one)
    assert await ids(other.find(status="running")) == ["e1"]
    await one.commit(
        step(lease, 1, head=waiting("c"), send=(signal("s"),), births=(birth("k", parent="e1"),))
    )
    assert await ids(other.find(channel="c")) == ["e1"]
    assert await ids(other.find(parent="e1")) == ["k"]
    assert await signal_ids(other) == ["s"]
    assert not await other.send(signal("s"))
    assert not await other.create(birth("k"))
    await other.delete("k")
    assert await ids(one.find(parent="e1")) == []
