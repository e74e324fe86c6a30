"""Every work backend and register of ours passes the public kit, on every event loop; and what is particular."""

from __future__ import annotations

import pickle
import sqlite3
from pathlib import Path

import pytest

from flat.backends import SQLiteStore
from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.memory.work import MemoryRegistrationBackend, MemoryWorkBackend
from flat.backends.sqlite.work import SQLiteRegistrationBackend, SQLiteWorkBackend
from flat.backends.work import WorkBackend
from flat.errors import BackendError, FlatError, WorkerNotFound, WorkItemNotFound, WorkNotHeld
from flat.testing.store_case import birth
from flat.testing.work import (
    LONE_REGISTRATION_CHECKS,
    LONE_WORK_CHECKS,
    REGISTRATION_CHECKS,
    WORK_CHECKS,
    Clock,
    WorkCheck,
    WorkPlace,
)

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


def in_memory(clock: Clock, keep_done: bool) -> WorkBackend:
    return MemoryWorkBackend(clock=clock, keep_done=keep_done)


@pytest.mark.parametrize("check", LONE_WORK_CHECKS, ids=name)
async def test_memory_pools(check: WorkCheck) -> None:
    async with WorkPlace(work=in_memory) as place:
        await check(place)


@pytest.mark.parametrize("check", WORK_CHECKS, ids=name)
async def test_sqlite_pools(check: WorkCheck, tmp_path: Path) -> None:
    def work(clock: Clock, keep_done: bool) -> WorkBackend:
        return SQLiteWorkBackend(tmp_path / "w.sqlite", clock=clock, keep_done=keep_done)

    async with WorkPlace(work=work) as place:
        await check(place)


@pytest.mark.parametrize("check", LONE_REGISTRATION_CHECKS, ids=name)
async def test_memory_register(check: WorkCheck) -> None:
    async with WorkPlace(registration=lambda clock: MemoryRegistrationBackend(clock=clock)) as place:
        await check(place)


@pytest.mark.parametrize("check", REGISTRATION_CHECKS, ids=name)
async def test_sqlite_register(check: WorkCheck, tmp_path: Path) -> None:
    path = tmp_path / "w.sqlite"
    async with WorkPlace(registration=lambda clock: SQLiteRegistrationBackend(path, clock=clock)) as place:
        await check(place)


def test_the_kit_is_large_and_its_names_are_unique() -> None:
    names = [name(check) for check in (*WORK_CHECKS, *REGISTRATION_CHECKS)]
    assert len(names) >= 40
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("store_first", [True, False])
async def test_work_stands_in_the_file_of_a_store(tmp_path: Path, store_first: bool) -> None:
    path = tmp_path / "flat.db"
    if store_first:
        async with SQLiteStore(path) as store:
            await store.create(birth())
    async with SQLiteWorkBackend(path) as work, SQLiteRegistrationBackend(path) as register:
        await work.pool("jobs").push(1)
        assert list(await register.list()) == []
    async with SQLiteStore(path) as store, SQLiteWorkBackend(path) as work:
        assert await store.create(birth()) is not store_first
        assert await work.pool("jobs").size() == 1


async def test_a_claim_does_not_look_at_the_backlog(tmp_path: Path) -> None:
    async with SQLiteWorkBackend(tmp_path / "w.sqlite") as work:
        from flat.backends.sqlite import work as sqlite_work

        await work.pool("jobs").push(1)
        plans = {
            query: [row[3] for row in work.file.execute(f"EXPLAIN QUERY PLAN {query}", values)]
            for query, values in (
                (sqlite_work.CLAIM, ("w", 0.0, None, None, 1)),
                (sqlite_work.CLAIM_MANY, ("w", 0.0, None, 1, 9)),
                (sqlite_work.OVERDUE, (1, 0.0)),
                (sqlite_work.CLAIMED_WITH, (1, "k", "w")),
                (f"DELETE FROM work_jobs WHERE {sqlite_work.HELD}", (1, 1, "w")),
                ("UPDATE work_jobs SET status = 0 WHERE pool = ? AND status = 1 AND worker = ?", (1, "w")),
            )
        }
    steps = [step for plan in plans.values() for step in plan]
    assert any("work_pending" in step for step in steps)
    assert not [step for step in steps if step.startswith("SCAN") or "TEMP B-TREE" in step]


async def test_a_foreign_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "theirs.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE work_pool (id TEXT)")
    connection.close()
    with pytest.raises(BackendError, match="another program"):
        SQLiteWorkBackend(path)


async def test_tables_of_another_format_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.sqlite"
    async with SQLiteWorkBackend(path) as work:
        work.file.execute("UPDATE work_format SET format = 9")
    with pytest.raises(BackendError, match="format 9"):
        SQLiteWorkBackend(path)


async def test_a_closed_backend_says_so(tmp_path: Path) -> None:
    work = SQLiteWorkBackend(tmp_path / "w.sqlite")
    await work.close()
    with pytest.raises(BackendError, match="is closed"):
        await work.pool("jobs").push(1)


async def test_the_factories_make_both_kinds(tmp_path: Path) -> None:
    assert isinstance(create_work_backend(), MemoryWorkBackend)
    assert isinstance(create_registration_backend("memory"), MemoryRegistrationBackend)
    work = create_work_backend("sqlite", db_path=tmp_path / "w.sqlite", keep_done=True)
    register = create_registration_backend("sqlite", db_path=str(tmp_path / "w.sqlite"))
    assert isinstance(work, SQLiteWorkBackend)
    assert isinstance(register, SQLiteRegistrationBackend)
    assert work.keep_done
    await work.close()
    await register.close()
    with pytest.raises(FlatError, match='did you mean "sqlite"'):
        create_work_backend("sqllite")
    with pytest.raises(BackendError, match="no db_path"):
        create_work_backend("memory", db_path="x")


@pytest.mark.parametrize(
    "error", [WorkItemNotFound("7", "jobs"), WorkNotHeld("7", "it is done", "w1"), WorkerNotFound("w1")]
)
def test_the_errors_read_well_and_survive_pickling(error: FlatError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    assert "'" not in str(error)
