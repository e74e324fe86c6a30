"""The doctor finds what is wrong in a store, says what to do, and finds nothing where nothing is wrong."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from runtime_machines import machine

from flat import Machine, MemoryStore, Outcome, Runtime, SQLiteStore
from flat.backends.liveness import this_process
from flat.backends.protocols import CheckpointStore, Head, Owner
from flat.core.effects import child_channel
from flat.core.storable import BLOB_SIZE, digest_of
from flat.drivers.keeper import IMPORTING
from flat.runtime.doctor import Doctor, Finding
from flat.testing.agents import ScriptedAgent
from flat.testing.store_case import ALICE, TTL, birth, park, signal, step

pytestmark = pytest.mark.anyio
LATER = 3e9
GONE = Owner(owner="gone", host="elsewhere.example", pid=1)


def talking(long: str = "x" * (2 * BLOB_SIZE)) -> Machine:
    """A machine that stores a blob, in several commits."""
    ask: dict[str, Any] = {"agent": "a", "output_to_context": {"said": "{{ output.content }}"}}
    return machine(
        {
            "ask": {"type": "initial", **ask, "transitions": [{"to": "wait"}]},
            "wait": {"wait_for": "inbox", "transitions": [{"to": "again"}]},
            "again": {**ask, "transitions": [{"to": "end"}]},
            "end": {"type": "final", "output": {"said": "{{ context.said }}"}},
        },
        context={"said": ""},
        answering={"a": ScriptedAgent(long)},
    )


async def run(store: CheckpointStore, id_: str = "e") -> Outcome:
    """A run that is done."""
    async with Runtime(store) as runtime:
        await runtime.start(made := talking(), execution_id=id_)
        await runtime.signal("inbox", to=id_)
        return await runtime.resume(id_, made)


async def findings(store: CheckpointStore, *, now: float = LATER, quick: bool = False) -> list[Finding]:
    return [finding async for finding in Doctor(store, now=now, quick=quick).findings()]


async def codes(
    store: CheckpointStore, *, now: float = LATER, quick: bool = False
) -> list[tuple[str, str | None]]:
    found = await findings(store, now=now, quick=quick)
    assert all(finding.do and finding.message for finding in found)
    return [(finding.code, finding.execution_id) for finding in found]


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    store = SQLiteStore(tmp_path / "runs.db")
    yield store
    await store.close()


def sql(store: SQLiteStore, query: str, *values: Any) -> None:
    with closing(sqlite3.connect(store.path)) as connection, connection:
        assert connection.execute(query, values).rowcount >= 1


async def test_nothing_is_found_where_nothing_is_wrong(file: SQLiteStore) -> None:
    assert (await run(file)).status == "done"
    doctor = Doctor(file, now=LATER)
    assert [finding async for finding in doctor.findings()] == []
    assert (doctor.seen.executions, doctor.seen.blobs, doctor.seen.programs) == (1, 1, 1)
    assert doctor.seen.bodies >= 4
    assert await codes(file, quick=True) == []


# -- damage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "values", "code"),
    [
        ("DELETE FROM bodies WHERE id & 4294967295 = 2", (), "lost-body"),
        ("UPDATE bodies SET body = ? WHERE id & 4294967295 = 2", (b"broken",), "bad-body"),
        ("UPDATE bodies SET body = ? WHERE id & 4294967295 = 1", (b'{"+":{"nothing":[1]}}',), "bad-body"),
        ("UPDATE bodies SET body = CAST(replace(body, '\"id\":\"e\"', '\"id\":\"f\"') AS BLOB)", (), "wrong-body"),
        ("DELETE FROM kept WHERE kind = 'blob'", (), "bad-blob"),
        ("UPDATE kept SET body = ? WHERE kind = 'blob'", (b"other",), "bad-blob"),
        ("DELETE FROM kept WHERE kind = 'config'", (), "lost-program"),
        ("UPDATE kept SET body = ? WHERE kind = 'config'", (b"other",), "bad-program"),
        ("UPDATE executions SET status = 'failed'", (), "status"),
    ],
)  # fmt: skip
async def test_damage_is_an_error_that_names_the_execution(
    query: str, values: tuple[Any, ...], code: str, file: SQLiteStore
) -> None:
    await run(file)
    sql(file, query, *values)
    found = await findings(file)
    assert [(f.code, f.severity, f.execution_id) for f in found if f.severity == "error"] == [
        (code, "error", "e")
    ]


async def test_a_damaged_file_is_found(file: SQLiteStore) -> None:
    await run(file)
    with closing(sqlite3.connect(file.path)) as connection, connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET rootpage = 3 WHERE name = 'executions_parent'")
    found = await findings(file)
    assert found[0].code == "damaged-file"
    assert "recover" in found[0].do


async def test_one_lost_program_is_told_for_each_that_needs_it() -> None:
    store = MemoryStore()
    for id_ in ("a", "b"):
        await store.create(birth(id_, status="done"))
    assert await codes(store, quick=True) == [("lost-program", "a"), ("lost-program", "b")]


# -- who drives ------------------------------------------------------------------------------------------


async def standing(status: str, owner: Owner | None, *, now: float = LATER) -> list[str]:
    store = MemoryStore()
    await store.create(birth("e", status=status))
    if owner is not None:
        await store.acquire("e", owner, now=1000.0, ttl=TTL)
    return [code for code, _ in await codes(store, now=now, quick=True) if code != "lost-program"]


async def test_what_nobody_drives_is_stranded() -> None:
    assert await standing("running", None) == ["stranded"]
    assert await standing("running", GONE) == ["stranded"]
    assert await standing("running", ALICE, now=1001.0) == []
    assert await standing("running", this_process(), now=1001.0) == []


async def test_what_needs_a_decision_is_told() -> None:
    assert await standing("in_doubt", None) == ["in-doubt"]
    assert await standing("limit", None) == ["limit"]
    assert await standing("done", GONE) == ["stale-lease"]
    assert await standing("done", GONE, now=1001.0) == []
    assert await standing(IMPORTING, None) == ["half-import"]
    assert await standing(IMPORTING, ALICE, now=1001.0) == []


async def test_a_clock_that_is_wrong_is_noticed() -> None:
    store = MemoryStore()
    await store.create(birth("e", status="done"))
    assert "clock" not in [code for code, _ in await codes(store, now=950.0, quick=True)]
    found = [f for f in await findings(store, now=900.0, quick=True) if f.code == "clock"]
    assert "100 s in the future" in found[0].message


# -- what is waited for ------------------------------------------------------------------------------------


async def waits(store: CheckpointStore, *, now: float = 2000.0) -> list[str]:
    return [code for code, _ in await codes(store, now=now, quick=True) if code != "lost-program"]


async def test_what_nothing_can_wake_is_an_error() -> None:
    store = MemoryStore()
    await park(store, "e")
    assert await waits(store) == ["unwakeable"]


async def test_late_timers_and_undelivered_signals_ask_for_a_dispatcher() -> None:
    store = MemoryStore()
    await park(store, "timer", wake_at=1900.0)
    await park(store, "soon", wake_at=1999.0)
    await park(store, "inbox", "inbox")
    await park(store, "patient", "outbox")
    assert await waits(store) == ["overdue"]
    await store.send(signal(channel="inbox"))
    found = [f for f in await findings(store, now=2000.0, quick=True) if f.code != "lost-program"]
    assert [(f.execution_id, f.code) for f in found] == [("timer", "overdue"), ("inbox", "undelivered")]
    assert all("flat dispatch" in f.do for f in found)


async def test_a_dead_letter_is_told_where_it_is_missed() -> None:
    store = MemoryStore()
    await park(store, "e", "inbox")
    await store.send(signal("s", "inbox"))
    await store.bury("s", "three tries", 1600.0)
    found = [f for f in await findings(store, now=2000.0, quick=True) if f.code != "lost-program"]
    assert [f.code for f in found] == ["dead-letter", "dead-letters"]
    assert "three tries" in found[0].message
    assert found[0].do == "try again: flat signals retry s"


async def test_a_parent_that_its_child_will_never_wake_is_found() -> None:
    store = MemoryStore()
    for parent, child in (("a", "over"), ("b", "nowhere"), ("c", "busy")):
        await park(store, parent, child_channel(child))
    await store.create(birth("over", status="done"))
    await park(store, "busy", "inbox")
    found = [f for f in await findings(store, now=2000.0, quick=True) if f.code != "lost-program"]
    assert [(f.execution_id, f.code) for f in found] == [("a", "lost-signal"), ("b", "lost-child")]
    await store.send(signal("told", child_channel("over"), to="a"))
    found = await findings(store, now=2000.0, quick=True)
    assert ("a", "undelivered") in [(f.execution_id, f.code) for f in found]


async def test_the_advice_for_a_lost_signal_helps(file: SQLiteStore) -> None:
    """`flat resume` really ends the wait of a parent whose child is over."""
    child = {
        "name": "child",
        "states": {
            "wait": {"type": "initial", "wait_for": "inbox", "transitions": [{"to": "end"}]},
            "end": {"type": "final", "output": {"n": 7}},
        },
    }
    config: Mapping[str, Any] = {"spec": "flatmachine", "spec_version": "4.2.1", "data": child}
    made = machine(
        {
            "below": {
                "type": "initial", "machine": "child", "output_to_context": {"n": "{{ output.n }}"},
                "transitions": [{"to": "end"}],
            },
            "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
        },
        machines={"child": config},
    )  # fmt: skip
    async with Runtime(file) as runtime:
        parked = await runtime.start(made, execution_id="top")
        (below,) = await runtime.list(parent="top")
        await runtime.signal("inbox", to=below.execution_id)
        assert (await runtime.resume(below.execution_id)).status == "done"
        for sent in await runtime.signals():
            await file.take(sent.signal_id)
        assert parked.status == "waiting"
        assert await codes(file) == [("lost-signal", "top")]
        assert (await runtime.resume("top", made)).output == {"n": 7}
    assert await codes(file) == []


# -- leftovers -----------------------------------------------------------------------------------------------


async def test_leftovers_are_noted() -> None:
    store = MemoryStore()
    await store.create(birth("e", status="done"))
    lease = await store.acquire("e", ALICE, now=1.0, ttl=TTL)
    blob = b"unused"
    await store.commit(
        step(lease, 1, b"{}", blobs={digest_of(blob): blob}, head=Head(status="done"), release=True)
    )
    await store.send(signal("s", "inbox", to="e"))
    await store.put_config("0" * 32, b"{}")
    found = await findings(store)
    notes = [(f.code, f.message) for f in found if f.severity == "note"]
    assert notes == [
        ("unwanted-signals", "for executions that are over, or not here: 1 signal"),
        ("unreferenced", "no execution refers to 1 blob"),
        ("unreferenced", "no execution refers to 1 program"),
    ]


def test_findings_are_plain_data() -> None:
    finding = Finding(code="c", severity="note", message="m", do="d", execution_id="e")
    assert finding.data() == {"code": "c", "severity": "note", "message": "m", "do": "d", "execution_id": "e"}
