"""Checks of signals: who may take one, who has one to take, copies for many, dead letters, and what is sent once."""

from __future__ import annotations

import anyio

from flat.backends.protocols import DeadSignal, Head
from flat.errors import FlatError, SignalGone
from flat.testing.store_case import (
    ALICE,
    BOB,
    TTL,
    Checks,
    Place,
    begin,
    execution,
    newest,
    park,
    ready_ids,
    refused,
    signal,
    signal_ids,
    step,
    waiting,
)
from flat.testing.store_values import HOSTILE

LONE = Checks()
SHARED = Checks()

MEANT_HARM = (
    *HOSTILE,
    "' OR '1'='1", "c' UNION SELECT id FROM signals --", "\"; DELETE FROM waits; --", "c1\0", "%", "_", "*",
    "[a-z]*", "{{ 7*7 }}", "${HOME}", "$(id)", "`id`", "a\r\nb", "~fan-out", "c1@e1", "@", "NULL", "null", "None",
    "0", "-1", "1e999", "\ufeffbom", "\u2028", "a\u0000b", "~" * 300, "../" * 40 + "x", "C:\\con", "\\\\host\\share",
)  # fmt: skip


# -- sent once ---------------------------------------------------------------------------------


@LONE
async def a_consumed_signal_is_not_sent_again(place: Place) -> None:
    store = place.open()
    await store.send(signal("s"))
    lease = await begin(store)
    await store.commit(step(lease, 1, consume=("s",)))
    assert not await store.send(signal("s"))
    await store.commit(step(lease, 2, send=(signal("s"),)))
    assert await signal_ids(store) == []


# -- who may take it ---------------------------------------------------------------------------


@LONE
async def an_addressed_signal_comes_back_as_it_was_sent(place: Place) -> None:
    store = place.open()
    await store.send(signal("s", "c", b"\0", to="e1"))
    assert list(await store.signals("c")) == [signal("s", "c", b"\0", to="e1")]


@LONE
async def an_execution_may_take_what_is_for_it_or_for_anybody(place: Place) -> None:
    store = place.open()
    await store.send(signal("1", to="e1"))
    await store.send(signal("2"))
    await store.send(signal("3", to="e2"))
    await store.send(signal("4", to="e1"))
    await store.send(signal("5", "c2"))
    assert await signal_ids(store, "c1", to="e1") == ["1", "2", "4"]
    assert await signal_ids(store, "c1", to="e2") == ["2", "3"]
    assert await signal_ids(store, "c1", to="e3") == ["2"]
    assert await signal_ids(store, "c1") == ["1", "2", "3", "4"]
    assert sorted(await signal_ids(store, to="e2")) == ["2", "3", "5"]
    assert await signal_ids(store, "c1", to="e2", limit=1) == ["2"]
    assert await signal_ids(store, "c1", to="e1", limit=2) == ["1", "2"]
    assert await signal_ids(store, "c1", to="e1", limit=0) == []


@LONE
async def a_commit_may_send_an_addressed_signal(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.commit(step(lease, 1, send=(signal("s", to="e2"),)))
    assert await signal_ids(store, "c1", to="e1") == []
    assert await signal_ids(store, "c1", to="e2") == ["s"]


# -- who is ready ------------------------------------------------------------------------------


@LONE
async def nobody_is_ready_without_a_signal(place: Place) -> None:
    store = place.open()
    await park(store, "e1", "c1")
    await store.send(signal("s", "c2"))
    assert await ready_ids(store, now=1e12) == []


@LONE
async def whoever_waits_on_a_channel_with_a_signal_is_ready(place: Place) -> None:
    store = place.open()
    for name, channel in (("e1", "c1"), ("e2", "c2"), ("e3", "c1")):
        await park(store, name, channel)
    await store.send(signal("s"))
    assert sorted(await ready_ids(store)) == ["e1", "e3"]
    first, _ = await store.ready(now=0)
    assert first == await execution(store, first.execution_id)


@LONE
async def an_addressed_signal_makes_its_addressee_ready_alone(place: Place) -> None:
    store = place.open()
    for name in ("e1", "e2"):
        await park(store, name, "c1")
    await store.send(signal("s", to="e2"))
    await store.send(signal("t", to="nobody"))
    await store.send(signal("u", "elsewhere", to="e1"))
    assert await ready_ids(store) == ["e2"]


@LONE
async def only_what_waits_is_ready(place: Place) -> None:
    store = place.open()
    lease = await begin(store, "e1")
    await store.send(signal("s"))
    await store.commit(step(lease, 1, head=Head(status="running", channels=("c1",), wake_at=1.0)))
    assert await ready_ids(store, now=5.0) == []
    await store.commit(step(lease, 2, head=waiting("c1")))
    assert await ready_ids(store) == ["e1"], "also while somebody owns it"
    await store.commit(step(lease, 3, head=waiting("c1"), consume=("s",)))
    assert await ready_ids(store) == []


@LONE
async def a_due_timer_makes_ready(place: Place) -> None:
    store = place.open()
    await park(store, "soon", "c1", wake_at=10.0)
    await park(store, "late", wake_at=20.0)
    await park(store, "never", "c1")
    assert await ready_ids(store, now=9.99) == []
    assert await ready_ids(store, now=10.0) == ["soon"]
    assert await ready_ids(store, now=30.0) == ["soon", "late"]


@LONE
async def whoever_could_go_on_first_comes_first(place: Place) -> None:
    store = place.open()
    for name, channel in (("e1", "c1"), ("e2", "c2"), ("e3", "c3"), ("e5", "c5")):
        await park(store, name, channel)
    await park(store, "e4", "c4", wake_at=25.0)
    await store.send(signal("z", "c2", at=10.0))
    await store.send(signal("y", "c3", at=20.0, to="e3"))
    await store.send(signal("x", "c1", at=30.0))
    await store.send(signal("w", "c2", at=40.0))
    await store.send(signal("v", "c5", at=50.0))
    await store.send(signal("u", "c5", at=51.0, to="e5"))
    assert await ready_ids(store, now=99.0) == ["e2", "e3", "e4", "e1", "e5"]
    assert await ready_ids(store, now=99.0, limit=2) == ["e2", "e3"]
    assert await ready_ids(store, now=99.0, limit=0) == []


@LONE
async def who_is_ready_for_several_reasons_is_told_once(place: Place) -> None:
    store = place.open()
    await park(store, "e1", "c1", "c2", wake_at=1.0)
    for number, channel in enumerate(("c1", "c2", "c1")):
        await store.send(signal(f"s{number}", channel, to="e1" if number else None))
    assert await ready_ids(store, now=2.0) == ["e1"]


@LONE
async def many_are_ready_at_once(place: Place) -> None:
    store = place.open()
    for number in range(120):
        await park(store, f"e{number}", f"c{number}", "all")
    for number in range(0, 120, 3):
        await store.send(signal(f"s{number}", f"c{number}", at=float(number)))
    assert await ready_ids(store) == [f"e{number}" for number in range(0, 120, 3)]
    await store.send(signal("s", "all", at=1000.0))
    assert len(await ready_ids(store)) == 120
    assert len(await ready_ids(store, limit=50)) == 50


# -- copies for many ---------------------------------------------------------------------------


@LONE
async def a_fanned_out_signal_is_there_once_for_each(place: Place) -> None:
    store = place.open()
    await store.send(signal("s", body=b"news", at=7.5))
    assert await store.fan_out("s", ["e1", "e2", "e1"])
    assert sorted(await signal_ids(store)) == ["s@e1", "s@e2"]
    for name in ("e1", "e2"):
        copy = signal(f"s@{name}", body=b"news", at=7.5, to=name)
        assert list(await store.signals("c1", to=name)) == [copy]
    assert await signal_ids(store, to="e3") == []


@LONE
async def copies_keep_the_place_in_the_order(place: Place) -> None:
    store = place.open()
    for name in ("1", "2", "3"):
        await store.send(signal(name))
    await store.send(signal("4", to="e1"))
    assert await store.fan_out("2", ["e1", "e2"])
    assert await store.fan_out("3", ["e2"])
    assert await signal_ids(store, "c1", to="e1") == ["1", "2@e1", "4"]
    assert await signal_ids(store, "c1", to="e2") == ["1", "2@e2", "3@e2"]


@LONE
async def what_is_gone_or_addressed_is_not_fanned_out(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    for name in ("consumed", "dead", "none"):
        await store.send(signal(name))
    await store.send(signal("addressed", to="e1"))
    await store.commit(step(lease, 1, consume=("consumed",)))
    await store.bury("dead", "why", 1.0)
    for name in ("consumed", "dead", "addressed", "unknown"):
        assert not await store.fan_out(name, ["e1", "e2"]), name
    assert not await store.fan_out("none", [])
    assert sorted(await signal_ids(store)) == ["addressed", "none"]


@LONE
async def a_fanned_out_signal_is_gone_and_was_sent(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("s"))
    assert await store.fan_out("s", ["e1", "e2"])
    assert not await store.fan_out("s", ["e1", "e2"])
    assert not await store.send(signal("s"))
    async with refused(SignalGone):
        await store.commit(step(lease, 1, consume=("s",)))
    await store.commit(step(lease, 1, consume=("s@e1",)))
    assert await signal_ids(store) == ["s@e2"]
    assert not await store.send(signal("s@e1"))


@LONE
async def a_copy_is_not_lost_to_a_signal_of_its_name(place: Place) -> None:
    store = place.open()
    await store.send(signal("s@e1", "c2", b"not the copy"))
    await store.send(signal("s"))
    assert await store.fan_out("s", ["e1"])
    assert [one.body for one in await store.signals("c1", to="e1")] == [b"payload"]
    assert [one.body for one in await store.signals("c2")] == [b"not the copy"]


@LONE
async def a_taken_signal_is_gone_and_was_sent(place: Place) -> None:
    store = place.open()
    for name in ("s", "t"):
        await store.send(signal(name))
    assert await store.take("s")
    assert not await store.take("s")
    assert not await store.take("unknown")
    assert not await store.send(signal("s"))
    assert await signal_ids(store) == ["t"]


# -- dead letters ------------------------------------------------------------------------------


@LONE
async def a_buried_signal_is_out_of_the_way_and_can_be_read(place: Place) -> None:
    store = place.open()
    await park(store, "e1", "c1")
    await store.send(signal("1", at=3.0))
    await store.send(signal("2", at=4.0, to="e1"))
    assert await store.bury("1", "no agent of that name", 99.5)
    assert await signal_ids(store) == ["2"]
    assert list(await store.dead()) == [
        DeadSignal(signal=signal("1", at=3.0), reason="no agent of that name", at=99.5)
    ]
    assert await store.bury("2", "again", 100.0)
    assert await ready_ids(store) == []
    assert [one.signal.to for one in await store.dead("c1")] == [None, "e1"]
    assert list(await store.dead("c2")) == []
    assert [one.signal.signal_id for one in await store.dead(limit=1)] == ["1"]


@LONE
async def a_buried_signal_was_sent_and_cannot_be_taken(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("s"))
    assert await store.bury("s", "why", 1.0)
    assert not await store.bury("s", "twice", 2.0)
    assert not await store.send(signal("s"))
    async with refused(SignalGone):
        await store.commit(step(lease, 1, consume=("s",)))
    assert [one.reason for one in await store.dead()] == ["why"]
    assert await newest(store) == 0


@LONE
async def a_revived_signal_has_its_place_again(place: Place) -> None:
    store = place.open()
    for name in ("1", "2", "3"):
        await store.send(signal(name))
    await store.bury("2", "why", 1.0)
    assert await store.revive("2")
    assert await signal_ids(store, "c1") == ["1", "2", "3"]
    assert list(await store.dead()) == []
    assert not await store.revive("2")
    assert await store.bury("2", "again", 2.0)
    assert [(one.reason, one.at) for one in await store.dead()] == [("again", 2.0)]


@LONE
async def what_is_gone_is_neither_buried_nor_revived(place: Place) -> None:
    store = place.open()
    lease = await begin(store)
    await store.send(signal("s"))
    await store.commit(step(lease, 1, consume=("s",)))
    for name in ("s", "unknown"):
        assert not await store.bury(name, "why", 1.0)
        assert not await store.revive(name)
    assert list(await store.dead()) == []


@LONE
async def a_reason_is_any_text(place: Place) -> None:
    store = place.open()
    for number, reason in enumerate((*MEANT_HARM, "half \ud83d")):
        await store.send(signal(f"s{number:03}"))
        assert await store.bury(f"s{number:03}", reason, 1.0)
    assert [one.reason for one in await store.dead()] == [*MEANT_HARM, "half \\ud83d"]


# -- names that mean harm ----------------------------------------------------------------------


@LONE
async def hostile_channels_and_addressees_reach_nobody_else(place: Place) -> None:
    store = place.open()
    for name in MEANT_HARM:
        await park(store, name, name)
    await park(store, "bystander", "bystanders")
    for name in MEANT_HARM:
        await store.send(signal(name, name, to=name))
        assert await ready_ids(store) == [name], name
        assert await signal_ids(store, name, to=name) == [name]
        assert await signal_ids(store, name, to="bystander") == []
        assert await signal_ids(store, "bystanders", to=name) == []
        assert await store.bury(name, name, 1.0)
        assert await ready_ids(store) == []
        assert [one.signal.signal_id for one in await store.dead(name)] == [name]
    for name in MEANT_HARM:
        assert await store.revive(name)
    assert await ready_ids(store) == list(MEANT_HARM)


@LONE
async def hostile_signals_are_fanned_out_to_hostile_executions(place: Place) -> None:
    store = place.open()
    for name in MEANT_HARM:
        await store.send(signal(f"{name}!", name))
        assert await store.fan_out(f"{name}!", [name, "bystander"])
        assert [one.to for one in await store.signals(name, to=name)] == [name]
    assert len(await store.signals()) == 2 * len(MEANT_HARM)


@LONE
async def addressees_that_are_not_unicode_are_refused(place: Place) -> None:
    store = place.open()
    half = "half \ud83d"
    await store.send(signal("s"))
    async with refused(FlatError):
        await store.send(signal("t", to=half))
    async with refused(FlatError):
        await store.fan_out("s", ["e1", half])
    assert await signal_ids(store) == ["s"]


# -- races -------------------------------------------------------------------------------------


@LONE
async def a_signal_is_taken_fanned_out_or_buried_but_only_one_of_them(place: Place) -> None:
    store = place.open()
    leases = [await begin(store, f"e{number}") for number in range(3)]
    for number in range(12):
        name = f"s{number}"
        won: list[str] = []
        await store.send(signal(name))

        async def take(which: int, name: str = name, won: list[str] = won) -> None:
            lease = leases[which]
            seq = await newest(store, lease.execution_id) + 1
            try:
                await store.commit(step(lease, seq, consume=(name,)))
            except SignalGone:
                return
            won.append("taken")

        async def fan_out(name: str = name, won: list[str] = won) -> None:
            if await store.fan_out(name, ["e0", "e1"]):
                won.append("fanned out")

        async def bury(name: str = name, won: list[str] = won) -> None:
            if await store.bury(name, "why", 1.0):
                won.append("buried")

        async with anyio.create_task_group() as group:
            for which in range(3):
                group.start_soon(take, which)
            group.start_soon(fan_out)
            group.start_soon(bury)
        assert len(won) == 1, won


@SHARED
async def signals_survive_reopening_with_all_they_are(place: Place) -> None:
    store = place.open()
    await park(store, "e1", "c1")
    for name in ("1", "2", "3", "4"):
        await store.send(signal(name))
    await store.fan_out("2", ["e1"])
    await store.bury("3", "why", 5.0)
    store = await place.reopen(store)
    assert await signal_ids(store, "c1", to="e1") == ["1", "2@e1", "4"]
    assert [(one.signal.signal_id, one.reason, one.at) for one in await store.dead()] == [("3", "why", 5.0)]
    assert await ready_ids(store) == ["e1"]
    assert not await store.send(signal("2"))
    assert await store.revive("3")
    assert await signal_ids(store, "c1", to="e1") == ["1", "2@e1", "3", "4"]


@SHARED
async def two_store_objects_share_one_fan_out(place: Place) -> None:
    one, other = place.open(), place.open()
    for name in ("e1", "e2"):
        await park(one, name, "c1")
    await one.send(signal("s"))
    assert await ready_ids(other) == await ready_ids(one)
    assert await other.fan_out("s", ["e1", "e2"])
    assert not await one.fan_out("s", ["e1", "e2"])
    assert sorted(await signal_ids(one)) == ["s@e1", "s@e2"]
    taker = await one.acquire("e1", ALICE, now=1000, ttl=TTL)
    await one.commit(step(taker, 1, consume=("s@e1",), head=Head(status="running")))
    assert await ready_ids(other) == ["e2"]


@SHARED
async def a_copy_is_taken_by_one_of_two_store_objects(place: Place) -> None:
    one, other = place.open(), place.open()
    await park(one, "e1", "c1")
    await one.send(signal("s"))
    await one.fan_out("s", ["e1"])
    first = await one.acquire("e1", ALICE, now=1000, ttl=TTL)
    second = await other.acquire("e1", BOB, now=1000 + 2 * TTL, ttl=TTL)
    async with refused(FlatError):
        await one.commit(step(first, 1, consume=("s@e1",)))
    await other.commit(step(second, 1, consume=("s@e1",)))
    assert await signal_ids(one) == []
