"""What goes wrong with the files of a file store, and that nothing half stored is ever loaded."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.backends import Commit, FileStore, Lease, Stored
from flat.backends.files import folder
from flat.errors import BackendError, StaleSnapshot
from flat.testing.store_case import (
    BOB,
    TTL,
    begin,
    birth,
    execution,
    ids,
    newest,
    signal,
    signal_ids,
    step,
    waiting,
)

pytestmark = pytest.mark.anyio


async def load(root: Path) -> Stored:
    async with FileStore(root) as store:
        stored = await store.load("e1")
    assert stored is not None
    return stored


async def fill(root: Path) -> tuple[Lease, Path, bytes, int]:
    """A store of two steps; its journal as bytes, and where the last record starts."""
    async with FileStore(root) as store:
        lease = await begin(store)
        await store.commit(step(lease, 1))
        journal = root / "executions" / "e1" / "journal"
        start = len(read(journal))
        await store.commit(step(lease, 2, log=(b"line",)))
    return lease, journal, read(journal), start


def read(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


async def test_a_last_record_cut_at_any_byte_is_dropped_and_written_over(tmp_path: Path) -> None:
    lease, journal, whole, start = await fill(tmp_path / "store")
    for size in range(start, len(whole)):
        write(journal, whole[:size])
        stored = await load(tmp_path / "store")
        assert stored.bodies == [(0, b"body 0"), (1, b"body 1")], size
        assert list(stored.log) == []
        async with FileStore(tmp_path / "store") as store:
            await store.commit(step(lease, 2, b"again"))
        assert (await load(tmp_path / "store")).bodies[-1] == (2, b"again")


async def test_a_last_record_that_ends_in_zeros_is_dropped(tmp_path: Path) -> None:
    _, journal, whole, start = await fill(tmp_path / "store")
    for size in range(start, len(whole) - 1):
        write(journal, whole[:size] + bytes(len(whole) - size))
        if size > start + 12 or size == start:
            assert (await load(tmp_path / "store")).execution.seq == 1


async def test_a_flipped_bit_anywhere_is_an_error(tmp_path: Path) -> None:
    _, journal, whole, _ = await fill(tmp_path / "store")
    for at in range(len(whole)):
        write(journal, whole[:at] + bytes([whole[at] ^ (1 << at % 8)]) + whole[at + 1 :])
        async with FileStore(tmp_path / "store") as store:
            with pytest.raises(BackendError, match="is damaged at byte"):
                await store.load("e1")
            with pytest.raises(BackendError, match="is damaged at byte"):
                await store.get("e1")


async def test_damage_to_one_execution_does_not_stop_another(tmp_path: Path) -> None:
    _, journal, whole, _ = await fill(tmp_path / "store")
    write(journal, whole[:20] + b"?" + whole[21:])
    async with FileStore(tmp_path / "store") as store:
        lease = await begin(store, "e2")
        await store.commit(step(lease, 1, send=(signal(),)))
        assert await newest(store, "e2") == 1


async def test_damage_is_noticed_by_a_store_that_is_open(tmp_path: Path) -> None:
    async with FileStore(tmp_path / "store") as store:
        lease = await begin(store)
        await store.commit(step(lease, 1))
        journal = tmp_path / "store" / "executions" / "e1" / "journal"
        write(journal, read(journal) + b"garbage that is no record")
        with pytest.raises(BackendError, match="is damaged"):
            await store.commit(step(lease, 2))


class FullDisk:
    """Stands in for `os.write` and gives out after so many bytes."""

    def __init__(self, left: int) -> None:
        self.left, self.write = left, os.write

    def __call__(self, descriptor: int, data: bytes) -> int:
        if self.left <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = self.write(descriptor, data[: self.left])
        self.left -= written
        return written


EVERYTHING: dict[str, Any] = {
    "head": waiting("c1"), "log": (b"line",), "blobs": {"d": b"blob"}, "consume": ("in",),
    "send": (signal("out"),), "births": (birth("child", parent="e1"),), "release": True,
}  # fmt: skip


async def fits(store: FileStore, commit: Commit) -> bool:
    """Whether the commit was stored, and not refused for want of space."""
    try:
        await store.commit(commit)
    except BackendError as refused:
        if "cannot grow" not in str(refused):
            raise
        return False
    return True


async def test_a_disk_that_is_full_at_any_byte_stores_nothing_of_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileStore(tmp_path / "store") as store:
        lease = await begin(store)
        await store.send(signal("in"))
        left = 0
        while True:
            disk = FullDisk(left)
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", disk)
                if await fits(store, step(lease, 1, **EVERYTHING)):
                    break
            assert await newest(store) == 0
            assert await signal_ids(store) == ["in"]
            assert await ids(store.find()) == ["e1"]
            left += 23
        assert left > 400
        assert await newest(store) == 1
        assert await signal_ids(store) == ["out"]
        assert await ids(store.find()) == ["child", "e1"]


class PowerCutError(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("dies_at", range(12))
async def test_a_crash_between_any_two_renames_leaves_all_of_a_commit_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int, fsync: bool
) -> None:
    async with FileStore(tmp_path / "store", fsync=fsync) as store:
        lease = await begin(store)
        await store.send(signal("in"))
        calls = 0

        def dying(real: Callable[..., object]) -> Callable[..., object]:
            def call(*args: object, **options: object) -> object:
                nonlocal calls
                calls += 1
                if calls > dies_at:
                    raise PowerCutError
                return real(*args, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(os, name, dying(getattr(os, name)))
            with contextlib.suppress(PowerCutError):
                await store.commit(step(lease, 1, **EVERYTHING))
    async with FileStore(tmp_path / "store") as store:
        if (await execution(store)).seq == 0:
            assert await signal_ids(store) == ["in"]
            assert await ids(store.find()) == ["e1"]
        else:
            assert await signal_ids(store) == ["out"]
            assert await ids(store.find()) == ["child", "e1"]
            assert await store.get_blob("d") == b"blob"
        assert os.listdir(tmp_path / "store" / "intents") in ([], ["e1.tmp"])
        await store.acquire("e1", BOB, now=1001 + TTL, ttl=TTL)


async def test_a_lock_that_is_never_given_back_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "LOCK_TIMEOUT", 0.02)
    async with FileStore(tmp_path / "store") as one, FileStore(tmp_path / "store") as other:
        lease = await begin(one)
        with other._lock, pytest.raises(BackendError, match=r"is locked: another process.*fuser"):
            await one.commit(step(lease, 1))
        await one.commit(step(lease, 1))


async def test_a_folder_of_other_files_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "thesis.txt", b"...")
    with pytest.raises(BackendError, match=r"holds other files \(thesis.txt\)"):
        FileStore(tmp_path)


async def test_another_format_is_refused(tmp_path: Path) -> None:
    async with FileStore(tmp_path / "store"):
        pass
    write(tmp_path / "store" / "format", b"flat file store 9\n")
    with pytest.raises(BackendError, match="flat file store 9"):
        FileStore(tmp_path / "store")


async def test_a_file_is_no_folder(tmp_path: Path) -> None:
    write(tmp_path / "file", b"")
    with pytest.raises(BackendError, match="is not a folder"):
        FileStore(tmp_path / "file")
    with pytest.raises(BackendError):
        FileStore("nul\0")


async def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    lease = await begin(store)
    await store.close()
    with pytest.raises(BackendError, match="is closed"):
        await store.commit(step(lease, 1))


async def test_names_that_differ_in_case_only_have_different_files(tmp_path: Path) -> None:
    names = ["Order-7", "order-7", "ORDER-7", "con", "a.tmp", "x." * 100]
    files = [folder.safe_name(name) for name in names]
    assert len({file.lower() for file in files}) == len(names)
    assert files[1] == "order-7"
    assert all(len(file) < 120 and folder.safe_name(file) != file for file in files if "~" in file)


async def test_many_tasks_race_for_one_execution(tmp_path: Path) -> None:
    async with FileStore(tmp_path / "store") as store:
        lease = await begin(store)
        refused = 0

        async def commit(seq: int) -> None:
            nonlocal refused
            try:
                await store.commit(step(lease, seq))
            except StaleSnapshot:
                refused += 1

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(commit, 1)
        assert refused == 4


@pytest.mark.parametrize("fsync", [False, True])
@pytest.mark.parametrize("dies_at", range(7))
async def test_a_crash_between_any_two_renames_fans_out_to_all_or_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int, fsync: bool
) -> None:
    async with FileStore(tmp_path / "store", fsync=fsync) as store:
        await store.send(signal("s"))
        with monkeypatch.context() as patch:
            die_after(dies_at, patch)
            with contextlib.suppress(PowerCutError):
                await store.fan_out("s", ["e1", "e2"])
    async with FileStore(tmp_path / "store") as store:
        found = await signal_ids(store)
        assert sorted(found) in (["s"], ["s@e1", "s@e2"])
        assert not await store.send(signal("s"))
        assert await store.fan_out("s", ["e1", "e2"]) == (found == ["s"])
        assert sorted(await signal_ids(store)) == ["s@e1", "s@e2"]


@pytest.mark.parametrize("dies_at", range(3))
async def test_a_crash_while_burying_or_reviving_leaves_one_of_the_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    for number, act in enumerate((FileStore.bury, FileStore.revive)):
        async with FileStore(tmp_path / f"store{number}") as store:
            await store.send(signal("s"))
            await store.bury("s", "before", 1.0) if number else None
            with monkeypatch.context() as patch:
                die_after(dies_at, patch)
                with contextlib.suppress(PowerCutError):
                    await (store.revive("s") if act is FileStore.revive else store.bury("s", "why", 1.0))
        async with FileStore(tmp_path / f"store{number}") as store:
            there, dead = await signal_ids(store), await store.dead()
            assert len(there) + len(dead) == 1
            assert await store.revive("s") == bool(dead)
            assert await signal_ids(store) == ["s"]
            assert list(await store.dead()) == []


async def test_a_disk_that_is_full_at_any_byte_fans_out_to_all_or_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with FileStore(tmp_path / "store") as store:
        await store.send(signal("s"))
        for left in range(0, 5000, 23):
            with monkeypatch.context() as patch:
                patch.setattr(os, "write", FullDisk(left))
                with contextlib.suppress(BackendError):
                    await store.fan_out("s", ["e1", "e2"])
                    break
            assert await signal_ids(store) == ["s"]
        assert left > 400
        assert sorted(await signal_ids(store)) == ["s@e1", "s@e2"]


def die_after(calls_left: int, patch: pytest.MonkeyPatch) -> None:
    """The process ends at the rename or removal after so many."""
    calls = 0

    def dying(real: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **options: object) -> object:
            nonlocal calls
            calls += 1
            if calls > calls_left:
                raise PowerCutError
            return real(*args, **options)

        return call

    for name in ("replace", "unlink"):
        patch.setattr(os, name, dying(getattr(os, name)))
