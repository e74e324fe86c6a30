"""What goes wrong with a SQLite file, and that a failed commit leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.backends import Lease, SQLiteStore
from flat.backends.sqlite.schema import PAGE_SIZE, VERSION
from flat.errors import BackendError
from flat.testing.store_case import begin, birth, newest, step, waiting

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "store.db")


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """As a user to whom permissions apply."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def write(path: str, data: bytes) -> None:
    Path(path).write_bytes(data)


async def commit_until_it_fails(store: SQLiteStore, lease: Lease) -> tuple[int, str]:
    seq = 0
    while True:
        try:
            await store.commit(step(lease, seq + 1, b"x" * 3000))
        except BackendError as error:
            return seq, str(error)
        seq += 1


async def test_a_full_disk_fails_the_commit_and_keeps_what_was_stored(path: str) -> None:
    async with SQLiteStore(path) as store:
        lease = await begin(store)
        store._connection.execute("PRAGMA max_page_count = 160").fetchone()
        last, message = await commit_until_it_fails(store, lease)
        assert path in message
        assert "full" in message
        assert last > 3
        assert await newest(store) == last
        with pytest.raises(BackendError, match="full"):
            await store.commit(step(lease, last + 1, b"x" * 3000, head=waiting("c1"), log=(b"line",)))
        store._connection.execute("PRAGMA max_page_count = 4000").fetchone()
        await store.commit(step(lease, last + 1, head=waiting("c1")))
        assert await newest(store) == last + 1
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


async def test_a_full_disk_fails_a_whole_group_and_stores_none_of_it(path: str) -> None:
    async with SQLiteStore(path) as store:
        leases = [await begin(store, f"e{number}") for number in range(6)]
        store._connection.execute("PRAGMA max_page_count = 60").fetchone()
        errors: list[str] = []

        async def drive(lease: Lease) -> None:
            with pytest.raises(BackendError) as caught:
                await store.commit(step(lease, 1, b"x" * 9000))
            errors.append(str(caught.value))

        async with anyio.create_task_group() as group:
            for lease in leases:
                group.start_soon(drive, lease)
        assert len(errors) == 6
        assert all("full" in error for error in errors)
        assert [await newest(store, f"e{number}") for number in range(6)] == [0] * 6
        store._connection.execute("PRAGMA max_page_count = 4000").fetchone()
        for lease in leases:
            await store.commit(step(lease, 1))


async def test_a_locked_database_says_who_may_hold_it(path: str) -> None:
    async with SQLiteStore(path) as store:
        lease, other = await begin(store, "e1"), await begin(store, "e2")
        store._connection.execute("PRAGMA busy_timeout = 20").fetchone()
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(BackendError, match=r"locked: another process.*fuser"):
            await store.commit(step(lease, 1))
        with pytest.raises(BackendError, match="locked"):
            await store.commit(step(lease, 1, head=waiting("c1")))
        with pytest.raises(BackendError, match="locked"):
            await store.release(other)
        assert await newest(store) == 0
        holder.close()
        await store.commit(step(lease, 1))
        assert await newest(store) == 1


async def test_a_locked_database_fails_a_lone_commit_too(path: str) -> None:
    async with SQLiteStore(path) as store:
        lease = await begin(store)
        store._connection.execute("PRAGMA busy_timeout = 20").fetchone()
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            for rest in (dict[str, Any](), {"log": (b"line",)}):
                with pytest.raises(BackendError, match="locked"):
                    await store.commit(step(lease, 1, **rest))
        await store.commit(step(lease, 1))


async def test_a_file_that_may_not_be_written_is_refused_when_opened(path: str) -> None:
    async with SQLiteStore(path) as store:
        await begin(store)
    os.chmod(path, 0o444)
    os.chmod(os.path.dirname(path), 0o555)
    for folder in Path(path).parents[1:]:
        if "pytest-" in str(folder):
            os.chmod(folder, 0o755)
    with nobody(), pytest.raises(BackendError, match=r"cannot be (written|opened)"):
        SQLiteStore(path)


async def test_a_store_that_becomes_read_only_fails_cleanly(path: str) -> None:
    async with SQLiteStore(path) as store:
        lease = await begin(store)
        store._connection.execute("PRAGMA query_only = 1")
        for rest in (dict[str, Any](), {"head": waiting("c1")}):
            with pytest.raises(BackendError, match="read-only"):
                await store.commit(step(lease, 1, **rest))
        store._connection.execute("PRAGMA query_only = 0")
        await store.commit(step(lease, 1))


async def test_what_is_not_a_database_is_left_alone(path: str) -> None:
    text = b"dear diary, " * 100
    write(path, text)
    with pytest.raises(BackendError, match="is not a SQLite database"):
        SQLiteStore(path)
    assert read(path) == text


async def test_the_database_of_another_program_is_left_alone(path: str) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    with pytest.raises(BackendError, match=r"another program \(tables bookmarks\)"):
        SQLiteStore(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("bookmarks",)]
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)


async def test_a_newer_format_is_refused(path: str) -> None:
    async with SQLiteStore(path) as store:
        store._connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    with pytest.raises(BackendError, match=f"format {VERSION + 1}"):
        SQLiteStore(path)


async def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be opened"):
        SQLiteStore(tmp_path)
    with pytest.raises(BackendError):
        SQLiteStore("nul\0")


async def test_missing_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "store.db"
    async with SQLiteStore(path) as store:
        await begin(store)
    async with SQLiteStore(path) as again:
        assert await newest(again) == 0


async def test_an_unknown_promise_is_refused(path: str) -> None:
    with pytest.raises(BackendError, match=r'"NORMAL" or "FULL"'):
        SQLiteStore(path, "OFF")  # type: ignore[arg-type]


async def filled(path: str) -> bytes:
    """A store of 30 steps, its write-ahead log folded in, as bytes."""
    async with SQLiteStore(path) as store:
        lease = await begin(store)
        for seq in range(1, 31):
            await store.commit(step(lease, seq, b"%d" % seq * 300))
    return read(path)


async def test_a_damaged_file_gives_an_error_or_the_truth(path: str) -> None:
    whole, failed = await filled(path), 0
    for page in range(0, len(whole), PAGE_SIZE):
        write(path, whole[:page] + os.urandom(PAGE_SIZE) + whole[page + PAGE_SIZE :])
        failed += await fails_cleanly_or_tells_the_truth(path)
    assert failed > 0


async def test_a_truncated_file_gives_an_error_or_the_truth(path: str) -> None:
    whole, failed = await filled(path), 0
    for size in range(1, len(whole), PAGE_SIZE + 3):
        write(path, whole[:size])
        failed += await fails_cleanly_or_tells_the_truth(path)
    assert failed > 0


async def fails_cleanly_or_tells_the_truth(path: str) -> bool:
    """Whether it failed; what fails says which file it was."""
    try:
        async with SQLiteStore(path) as store:
            stored = await store.load("e1")
    except BackendError as error:
        if path not in str(error):
            raise
        return True
    assert stored is None or [len(body) for _, body in stored.bodies][:1] == [6]
    return False


async def test_a_torn_write_ahead_log_loses_the_last_commit_and_nothing_else(
    path: str, tmp_path: Path
) -> None:
    store = SQLiteStore(path)
    store._connection.execute("PRAGMA wal_autocheckpoint = 0").fetchone()
    lease = await begin(store)
    for seq in range(1, 4):
        await store.commit(step(lease, seq))
    database, log = read(path), read(path + "-wal")
    await store.close()
    frame = PAGE_SIZE + 24
    for cut in (*range(1, frame, 47), frame):
        copy = str(tmp_path / f"cut{cut}.db")
        write(copy, database)
        write(f"{copy}-wal", log[:-cut])
        async with SQLiteStore(copy) as torn:
            stored = await torn.load("e1")
            assert stored is not None
            assert stored.bodies == [(0, b"body 0"), (1, b"body 1"), (2, b"body 2")]
            await torn.commit(step(lease, 3, b"again"))


async def test_a_closed_store_says_so(path: str) -> None:
    store = SQLiteStore(path)
    lease = await begin(store)
    await store.close()
    with pytest.raises(BackendError, match="is closed"):
        await store.commit(step(lease, 1))
    with pytest.raises(BackendError, match="is closed"):
        await store.get("e1")
    with pytest.raises(BackendError, match="is closed"):
        await store.create(birth("e2"))


async def test_a_python_with_an_old_sqlite_is_told_at_once(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 26, 0))
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.26.0")
    with pytest.raises(BackendError, match=r"comes with SQLite 3\.26\.0, and a store needs 3\.35 or newer"):
        SQLiteStore(path)
