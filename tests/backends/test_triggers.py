"""Triggers: waking whoever listens, and folders that are really the user's own."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from flat.backends.by_name import create_trigger_backend
from flat.backends.triggers import FileTrigger, NoOpTrigger, SocketTrigger, TriggerBackend, own_folder
from flat.errors import BackendError, UnknownName

pytestmark = pytest.mark.anyio

MAKERS: dict[str, Callable[[Path], TriggerBackend]] = {
    "file": FileTrigger,
    "socket": lambda folder: SocketTrigger(folder / "s.sock"),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], TriggerBackend]:
    """Makes triggers of one kind at one place, as several processes would."""
    return lambda: MAKERS[request.param](tmp_path / "t")


# -- waking ------------------------------------------------------------------------------------


async def test_a_listener_is_woken(make: Callable[[], TriggerBackend]) -> None:
    async with make().listen() as woken, anyio.create_task_group() as group:
        with anyio.fail_after(30):
            group.start_soon(make().notify, "c")
            await woken.wait()


async def test_what_happened_since_the_last_wait_wakes_at_once(make: Callable[[], TriggerBackend]) -> None:
    async with make().listen() as woken:
        for _ in range(3):
            await make().notify("c")
            with anyio.fail_after(30):
                await woken.wait()


async def test_nobody_is_woken_without_a_reason(make: Callable[[], TriggerBackend]) -> None:
    await make().notify("before anybody listened")
    async with make().listen() as woken:
        await make().notify("c")
        await woken.wait()
        with anyio.move_on_after(0.25) as scope:
            await woken.wait()
        assert scope.cancelled_caught


@pytest.mark.parametrize(
    "channel", ["", "c" * 100_000, "nul\0", "../../etc", "日本 🙂", "half \ud83d", "a\nb"]
)
async def test_any_channel_wakes(make: Callable[[], TriggerBackend], channel: str) -> None:
    async with make().listen() as woken:
        await make().notify(channel)
        with anyio.fail_after(30):
            await woken.wait()


async def test_a_thousand_notices_stop_nobody(make: Callable[[], TriggerBackend]) -> None:
    async with make().listen() as woken:
        for number in range(1000):
            await make().notify(f"c{number}")
        with anyio.fail_after(30):
            await woken.wait()


async def test_to_notify_with_nobody_there_is_no_error(
    make: Callable[[], TriggerBackend], tmp_path: Path
) -> None:
    await make().notify("c")
    trigger = make()
    for path in sorted((tmp_path / "t").glob("*")):
        path.unlink()
    (tmp_path / "t").rmdir()
    await trigger.notify("c")


async def test_no_op_wakes_nobody() -> None:
    trigger = NoOpTrigger()
    async with trigger.listen() as woken:
        await trigger.notify("c")
        with anyio.move_on_after(0.05) as scope:
            await woken.wait()
        assert scope.cancelled_caught


async def test_two_may_watch_one_file(tmp_path: Path) -> None:
    trigger = FileTrigger(tmp_path)
    async with trigger.listen() as one, FileTrigger(tmp_path).listen() as other:
        await trigger.notify("c")
        with anyio.fail_after(30):
            await one.wait()
            await other.wait()


# -- sockets -----------------------------------------------------------------------------------


async def test_a_second_listener_on_a_socket_is_told_so(tmp_path: Path) -> None:
    trigger = SocketTrigger(tmp_path / "s")
    async with trigger.listen():
        with pytest.raises(BackendError, match="another process listens"):
            async with SocketTrigger(tmp_path / "s").listen():
                pass
    assert not trigger.path.exists()


async def test_the_socket_of_a_dead_listener_is_in_nobodys_way(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as dead:
        dead.bind(str(tmp_path / "s"))
    trigger = SocketTrigger(tmp_path / "s")
    async with trigger.listen() as woken:
        await trigger.notify("c")
        with anyio.fail_after(30):
            await woken.wait()


async def test_a_file_in_the_way_of_a_socket_stays(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("precious")
    with pytest.raises(BackendError, match="not a socket"):
        async with SocketTrigger(tmp_path / "s").listen():
            pass
    assert (tmp_path / "s").read_text() == "precious"


async def test_a_listener_removes_no_socket_but_its_own(tmp_path: Path) -> None:
    async with SocketTrigger(tmp_path / "s").listen():
        (tmp_path / "s").rename(tmp_path / "moved")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(tmp_path / "s"))
    assert (tmp_path / "s").is_socket()


async def test_the_socket_is_for_its_user_alone(tmp_path: Path) -> None:
    trigger = SocketTrigger(tmp_path / "s")
    async with trigger.listen():
        assert stat.S_IMODE(trigger.path.stat().st_mode) == 0o600


async def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="too long"):
        SocketTrigger(tmp_path / ("x" * 120))


# -- folders -----------------------------------------------------------------------------------


@pytest.fixture
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_the_default_folder_is_the_users_own(runtime_dir: Path) -> None:
    assert FileTrigger().path == runtime_dir / "flat" / "trigger"
    assert SocketTrigger().path == runtime_dir / "flat" / "trigger.sock"
    assert stat.S_IMODE((runtime_dir / "flat").stat().st_mode) == 0o700


def test_without_a_runtime_folder_it_is_named_by_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert own_folder() == tmp_path / f"flat-{os.getuid()}"


def test_a_folder_that_is_too_open_is_closed(runtime_dir: Path) -> None:
    (runtime_dir / "flat").mkdir()
    (runtime_dir / "flat").chmod(0o777)
    own_folder()
    assert stat.S_IMODE((runtime_dir / "flat").stat().st_mode) == 0o700


def test_a_link_in_place_of_the_folder_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "elsewhere").mkdir()
    (runtime_dir / "flat").symlink_to(runtime_dir / "elsewhere")
    with pytest.raises(BackendError, match="a link or a file"):
        FileTrigger()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a folder that belongs to somebody else")
def test_a_folder_of_somebody_else_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "flat").mkdir()
    os.chown(runtime_dir / "flat", 12345, -1)
    with pytest.raises(BackendError, match="belongs to user 12345"):
        own_folder()


def test_a_file_in_place_of_the_folder_is_refused(runtime_dir: Path) -> None:
    (runtime_dir / "flat").write_text("")
    with pytest.raises(BackendError, match="cannot make the folder"):
        own_folder()


async def test_a_link_in_place_of_the_trigger_file_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / "trigger").symlink_to(victim)
    trigger = FileTrigger(tmp_path / "t")
    await trigger.notify("c")
    assert not victim.exists()
    with pytest.raises(BackendError, match="cannot listen"):
        async with trigger.listen():
            pass


def test_the_file_is_there_once_somebody_notified(tmp_path: Path) -> None:
    trigger = FileTrigger(tmp_path / "a" / "b")
    assert not trigger.path.exists()
    anyio.run(trigger.notify, "c")
    assert trigger.path.read_bytes() == b""


# -- by name -----------------------------------------------------------------------------------


def test_triggers_are_made_by_name(tmp_path: Path) -> None:
    assert isinstance(create_trigger_backend(), NoOpTrigger)
    assert isinstance(create_trigger_backend("none"), NoOpTrigger)
    made = create_trigger_backend("file", base_path=tmp_path)
    assert isinstance(made, FileTrigger)
    assert made.folder == tmp_path
    by_socket = create_trigger_backend("socket", socket_path=tmp_path / "s")
    assert isinstance(by_socket, SocketTrigger)
    assert by_socket.path == tmp_path / "s"
    assert all(isinstance(one, TriggerBackend) for one in (made, by_socket, NoOpTrigger()))


@pytest.mark.parametrize("name", ["", "inotify", "sockett"])
def test_a_kind_that_does_not_exist_is_refused_with_those_that_do(name: str) -> None:
    with pytest.raises(UnknownName) as told:
        create_trigger_backend(name)
    assert set(told.value.known) == {"none", "file", "socket", "redis", "postgres"}
    with pytest.raises(UnknownName, match="option of a trigger"):
        create_trigger_backend("file", path="x")
