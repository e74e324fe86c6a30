"""Names, locks and atomic writes inside the folder of a file store, on any operating system."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from flat.errors import BackendError

LOCK_TIMEOUT = 5.0
"""Seconds to wait for another process's write before giving up."""

_PLAIN = re.compile(r"[a-z0-9_-][a-z0-9._-]{0,127}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?")


def safe_name(name: str) -> str:
    """A file name for any text: itself if that is harmless on every system, else some of it and its digest.

    Capitals are not harmless where `A` and `a` are one file. The tilde, which no plain name holds, keeps
    a made-up name from passing for the digest of another.
    """
    if _PLAIN.fullmatch(name) and not name.endswith((".", ".tmp")) and not _RESERVED.fullmatch(name):
        return name
    shown = re.sub(r"[^a-z0-9_-]+", "-", name[:40].lower())
    return f"{shown}~{hashlib.sha256(name.encode()).hexdigest()}"


def write_whole(path: Path, data: bytes, *, sync: bool) -> None:
    """Write a file so that it is there entirely or not at all."""
    os.replace(stage(path, data, sync=sync), path)
    if sync:
        sync_folder(path.parent)


def stage(path: Path, data: bytes, *, sync: bool) -> Path:
    """Write what is to become `path` next to it; renaming cannot run out of space any more."""
    staged = path.with_name(path.name + ".tmp")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o666)
    try:
        write_all(descriptor, data)
        if sync:
            os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        staged.unlink(missing_ok=True)
        raise
    os.close(descriptor)
    return staged


def write_all(descriptor: int, data: bytes) -> None:
    """`os.write` may stop short, on a full disk for one; the rest then fails with the reason."""
    while data:
        data = data[os.write(descriptor, data) :]


def read_all(descriptor: int, size: int) -> bytes:
    """`os.read` may stop short too."""
    parts = []
    while size > 0 and (part := os.read(descriptor, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def sync_folder(folder: Path) -> None:
    """Make new names in a folder durable; Windows has no such call and needs none."""
    if sys.platform != "win32":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


_BINARY: int = getattr(os, "O_BINARY", 0)
READ = os.O_RDONLY | _BINARY
UPDATE = os.O_RDWR | _BINARY


class Lock:
    """A lock file that one holder at a time has, across threads and processes. The system frees it on death.

    It is polled, not waited for: a process that was stopped while it holds the lock must not stop all others
    for ever.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o666)
        self._thread = threading.RLock()
        self._depth = 0

    def __enter__(self) -> None:
        self._thread.acquire()
        try:
            if self._depth == 0:
                self._wait()
            self._depth += 1
        except BaseException:
            self._thread.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            _unlock(self._descriptor)
        self._thread.release()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _wait(self) -> None:
        if self._descriptor < 0:
            raise BackendError(f"the store {self.path.parent} is closed; open it again")
        if _try_lock(self._descriptor):
            return
        deadline, pause = time.monotonic() + LOCK_TIMEOUT, 0.0005
        while not _try_lock(self._descriptor):
            if time.monotonic() > deadline:
                raise BackendError(
                    f"the store {self.path.parent} is locked: another process has held {self.path} for more "
                    f"than {LOCK_TIMEOUT:g} s; see which one (`fuser {self.path}`), end it, and try again"
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 0.02)


if sys.platform == "win32":

    def _try_lock(descriptor: int) -> bool:
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        with contextlib.suppress(OSError):
            msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _try_lock(descriptor: int) -> bool:
        import fcntl

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def explain(error: OSError, root: Path, doing: str) -> BackendError:
    """Say what a file system error means, where it happened, and what to do about it."""
    match error.errno:
        case errno.ENOSPC | errno.EFBIG | errno.EDQUOT:
            text = (
                "cannot grow: the disk, the quota or the file size limit is full; free some space and "
                "resume, everything stored before is safe"
            )
        case errno.EACCES | errno.EPERM | errno.EROFS:
            text = (
                "cannot be written: it is read-only for this user; change its permissions, "
                "or choose another folder"
            )
        case errno.EMFILE | errno.ENFILE:
            text = "needs more open files than the system allows; raise the limit (`ulimit -n`)"
        case errno.ENOTDIR | errno.EEXIST:
            text = "is not a folder; choose another path, or move that file away"
        case _:
            text = "failed"
    return BackendError(f"the store {root} {text} [while {doing}: {error}]")
