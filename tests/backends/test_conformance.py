"""Every store of ours passes the public kit, on every event loop."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flat.backends import FileStore, MemoryStore, SQLiteStore
from flat.testing.stores import CHECKS, LONE_CHECKS, Check, Place

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.mark.parametrize("check", LONE_CHECKS, ids=name)
async def test_memory(check: Check) -> None:
    async with Place(MemoryStore) as place:
        await check(place)


@pytest.mark.parametrize("check", CHECKS, ids=name)
async def test_files(check: Check, tmp_path: Path) -> None:
    async with Place(lambda: FileStore(tmp_path / "store")) as place:
        await check(place)
    assert os.listdir(tmp_path) == ["store"]


@pytest.mark.parametrize("check", CHECKS, ids=name)
async def test_sqlite(check: Check, tmp_path: Path) -> None:
    async with Place(lambda: SQLiteStore(tmp_path / "store.db")) as place:
        await check(place)


def test_the_kit_is_large_and_its_names_are_unique() -> None:
    names = [name(check) for check in CHECKS]
    assert len(set(names)) == len(names)
    assert len(LONE_CHECKS) >= 100, "a store in memory passes as many"
