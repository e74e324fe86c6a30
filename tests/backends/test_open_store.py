"""Stores by URL."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import flat.backends
from flat.backends import FileStore, MemoryStore, SQLiteStore, open_store
from flat.errors import BackendError, UnknownName

pytestmark = pytest.mark.anyio


async def test_memory() -> None:
    assert isinstance(open_store("memory:"), MemoryStore)
    assert isinstance(open_store("memory://"), MemoryStore)


@pytest.mark.parametrize(
    "url", ["file:runs", "files:runs", "file:./runs", "file:///runs", "file:runs?fsync=true"]
)
async def test_files(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    assert isinstance(store, FileStore)
    assert store.fsync == ("fsync" in url)
    assert (tmp_path / "runs" / "format").exists()
    await store.close()


@pytest.mark.parametrize("url", ["sqlite:///my%20runs.db", "my runs.db", "sqlite:my runs.db", "./my runs.db"])
async def test_relative_databases(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store(url)
    assert isinstance(store, SQLiteStore)
    assert store.synchronous == "NORMAL"
    assert (tmp_path / "my runs.db").exists()
    await store.close()


@pytest.mark.parametrize("start", ["sqlite:///", "", "sqlite:"])
async def test_absolute_databases(start: str, tmp_path: Path) -> None:
    store = open_store(f"{start}{tmp_path}/runs.sqlite")
    assert (tmp_path / "runs.sqlite").exists()
    await store.close()


async def test_a_database_can_be_told_to_wait_for_the_disk(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/runs.db?synchronous=full")
    assert isinstance(store, SQLiteStore)
    assert store.synchronous == "FULL"
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    await store.close()


@pytest.mark.parametrize(
    ("url", "library", "extra"),
    [("redis://h", "hiredis", "redis"), ("postgresql://h/d", "psycopg", "postgres"),
     ("dynamodb://t?region=r", "aiobotocore", "aws"), ("s3://b?region=r", "aiobotocore", "aws")],
)  # fmt: skip
def test_a_client_library_that_is_missing_is_named_with_its_command(
    url: str, library: str, extra: str
) -> None:
    program = (
        f"import sys; sys.modules[{library!r}] = None\n"
        f"from flat.backends import open_store\nfrom flat.errors import BackendError\n"
        f"try: open_store({url!r})\nexcept BackendError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip().endswith(f"pip install 'flat[{extra}]'")


@pytest.mark.parametrize("url", ["sqlight:///x.db", "runs", "", "some/where"])
async def test_an_unknown_kind_lists_what_exists(url: str) -> None:
    with pytest.raises(UnknownName, match="sqlite"):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory:runs", "takes no path"),
        ("sqlite://host/runs.db", 'no host, and "host"'),
        ("sqlite:", "names no path"),
        ("file:", "names no path"),
        ("sqlite:///x.db?synchronous=OFF", "NORMAL or FULL"),
        ("sqlite:///x.db?colour=red", "no option colour"),
        ("file:x?fsync=perhaps", "true or false"),
    ],
)
async def test_a_url_that_makes_no_sense_says_why(
    url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BackendError, match=message):
        open_store(url)


def test_every_public_name_exists() -> None:
    for name in flat.backends.__all__:
        assert getattr(flat.backends, name)
    with pytest.raises(AttributeError, match="Nonsense"):
        _ = flat.backends.Nonsense
