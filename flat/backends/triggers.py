"""Triggers: how whoever sends a signal wakes a dispatcher that is asleep.

The signal itself is durable and in the store; a trigger carries nothing, and a lost one costs a delay at most. So
`notify` never raises. A dispatcher listens *before* it looks into the store:

    async with trigger.listen() as woken:
        while True:
            ...                   # look, and do all that there is to do
            await woken.wait()    # returns at once if somebody notified since the last time it did

`file` is one empty file that is touched, which systemd and launchd can watch, too. `socket` is a datagram to a Unix
socket, for one listener. `redis` is a server that many hosts share (`backends.redis.trigger`), and so is
`postgres`. `none` does nothing: dispatchers look now and then anyway. A store may be a trigger itself, and wakes
dispatchers without being told to.

The folder that both use unless told otherwise is the user's own: nobody else may wake, or watch, our dispatchers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from os import PathLike
from pathlib import Path
from typing import Protocol, runtime_checkable

import anyio

from flat.errors import BackendError

log = logging.getLogger("flat")

FILE, SOCKET = "trigger", "trigger.sock"
LOOK_EVERY = 0.1
"""Seconds between two looks at a trigger file. One `stat` costs some microseconds."""
DATAGRAM = 4096


class Woken(Protocol):
    """What a listener waits on."""

    async def wait(self) -> None:
        """Wait until somebody notifies; return at once if that happened since the last return."""
        ...


@runtime_checkable
class TriggerBackend(Protocol):
    """Wakes whoever listens."""

    async def notify(self, channel: str) -> None:
        """Say that there is something new on a channel. Never raises."""
        ...

    def listen(self) -> AbstractAsyncContextManager[Woken]:
        """Hear of every `notify` from now on."""
        ...


class NoOpTrigger:
    """Wakes nobody."""

    async def notify(self, channel: str) -> None: ...

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Woken]:
        yield _Never()


class _Never:
    async def wait(self) -> None:
        await anyio.sleep_forever()


class FileTrigger:
    """Touches the file `trigger` in a folder, whatever the channel: `FileTrigger("/run/user/1000/flat")`."""

    def __init__(self, base_path: str | PathLike[str] | None = None) -> None:
        self.folder = own_folder() if base_path is None else _folder(Path(base_path))
        self.path = self.folder / FILE

    def __repr__(self) -> str:
        return f"FileTrigger({str(self.folder)!r})"

    def touch(self) -> None:
        """Create the file, or give it the present time. Raises `OSError`."""
        flags = os.O_WRONLY | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        descriptor = os.open(self.path, flags, 0o600)
        try:
            # In nanoseconds: the kernel's own "now" ticks too slowly to tell two touches apart.
            now = time.time_ns()
            os.utime(descriptor if os.utime in os.supports_fd else self.path, ns=(now, now))
        finally:
            os.close(descriptor)

    async def notify(self, channel: str) -> None:
        try:
            self.touch()
        except OSError as error:
            log.debug("nobody was woken for %r: %s", channel, error)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Woken]:
        try:
            self.touch()
        except OSError as error:
            raise BackendError(
                f"cannot listen at {self.path}: {error.strerror}; choose another folder"
            ) from error
        yield _Watched(self.path)


class _Watched:
    def __init__(self, path: Path) -> None:
        self._path, self._seen = path, _touched(path)

    async def wait(self) -> None:
        while (now := _touched(self._path)) == self._seen:  # noqa: ASYNC110 - a file has no event to wait for
            await anyio.sleep(LOOK_EVERY)
        self._seen = now


def _touched(path: Path) -> tuple[int, int]:
    try:
        facts = path.lstat()
    except OSError:
        return 0, 0
    return facts.st_mtime_ns, facts.st_ino


class SocketTrigger:
    """Sends the channel's name to a Unix datagram socket. There is one listener at a time."""

    def __init__(self, socket_path: str | PathLike[str] | None = None) -> None:
        if not hasattr(socket, "AF_UNIX"):
            raise BackendError("this system has no Unix sockets; use the trigger file in place of socket")
        if socket_path is None:
            self.path = own_folder() / SOCKET
        else:
            self.path = _folder(Path(socket_path).parent) / Path(socket_path).name
        if len(os.fsencode(self.path)) > 100:
            raise BackendError(f"{self.path} is too long for the path of a socket; choose a shorter one")

    def __repr__(self) -> str:
        return f"SocketTrigger({str(self.path)!r})"

    async def notify(self, channel: str) -> None:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.setblocking(False)
                text = channel.encode(errors="backslashreplace")[:DATAGRAM]
                sender.sendto(text, str(self.path))
        except OSError as error:
            # No listener, or one that has enough to wake up to already.
            log.debug("nobody was woken for %r: %s", channel, error)

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Woken]:
        self._make_way()
        async with await anyio.create_unix_datagram_socket(local_path=self.path, local_mode=0o600) as ear:
            mine = self.path.lstat().st_ino
            try:
                yield _Ear(ear)
            finally:
                # Another listener may have taken the place meanwhile; that socket is not ours to remove.
                with contextlib.suppress(OSError):
                    if self.path.lstat().st_ino == mine:
                        self.path.unlink()

    def _make_way(self) -> None:
        """Remove the socket of a listener that is gone; refuse anything else that is in the way."""
        try:
            facts = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(facts.st_mode):
            raise BackendError(f"{self.path} is there and not a socket; move it away, or choose another path")
        if facts.st_uid != os.getuid():
            raise BackendError(f"the socket {self.path} belongs to user {facts.st_uid}; choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(str(self.path))
            except ConnectionRefusedError:
                self.path.unlink(missing_ok=True)
                return
            except FileNotFoundError:
                return
        raise BackendError(f"another process listens at {self.path}; end it, or choose another path")


class _Ear:
    def __init__(self, ear: anyio.abc.UNIXDatagramSocket) -> None:
        self._ear = ear

    async def wait(self) -> None:
        await self._ear.receive()


# -- folders -----------------------------------------------------------------------------------


def own_folder() -> Path:
    """The user's own folder for triggers, made if need be. Raises `BackendError` when it is somebody else's."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(base) / "flat" if base else Path(tempfile.gettempdir()) / f"flat-{_user()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts = folder.lstat()
    except OSError as error:
        raise BackendError(f"cannot make the folder {folder} for triggers: {error.strerror}") from error
    if not stat.S_ISDIR(facts.st_mode):
        raise BackendError(f"{folder} is not a folder but a link or a file; remove it, or name a folder")
    if hasattr(os, "getuid"):
        if facts.st_uid != os.getuid():
            raise BackendError(f"{folder} belongs to user {facts.st_uid}; name a folder of your own")
        if facts.st_mode & 0o077:
            folder.chmod(0o700)
    return folder


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def _folder(folder: Path) -> Path:
    """A folder that was asked for by name."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"cannot make the folder {folder} for triggers: {error.strerror}") from error
    return folder.absolute()
