"""Stands between `process` and a command, so that the command and all its descendants die with their caller.

Run as a script, in a session of its own:

    python -I -S process_guard.py CHANNEL_FD CALLER_PID GRACE PROGRAM ARGUMENT…

The command gets our stdin, stdout and stderr. It is ended when the caller closes its end of the channel (a
socket) or is gone, however it went: the kernel closes the socket, and a pidfd tells of the death of a caller whose
forked children still hold it. Ending means SIGTERM, and after `GRACE` seconds SIGKILL. Descendants that made
groups or sessions of their own are found too, since orphans are handed to us (Linux). None of them outlives the
command itself. In the end one line of JSON on the channel says how it went: `{"status": n}`, or `{"error": errno}`
when it could not be started.

It uses the standard library only and imports nothing of flat: it has to start fast, and in any environment.
(A death signal set by the caller itself would not do: it reports the end of the *thread* that started a process,
and does not reach grandchildren.)
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import signal
import socket
import sys
import time

_AFTERMATH = 1.0
"""Seconds that descendants get to end by themselves when the command has ended."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36


def main(arguments: list[str]) -> None:
    channel = socket.socket(fileno=int(arguments[0]))
    channel.set_inheritable(False)
    guard = Guard(channel, int(arguments[1]), float(arguments[2]))
    try:
        guard.start(arguments[3:])
        report = {"status": guard.watch()}
    except OSError as error:
        report = {"error": error.errno or errno.EIO}
    with contextlib.suppress(OSError):  # nobody is left to be told
        channel.sendall(json.dumps(report).encode())


class Guard:
    """One command and those it started."""

    def __init__(self, channel: socket.socket, caller: int, grace: float) -> None:
        self.channel, self.caller, self.grace = channel, caller, grace
        self.child = 0
        self.status: int | None = None
        self.asked = False
        """Whether somebody sent a signal to end us."""
        self._awake, waker = os.pipe()
        os.set_blocking(self._awake, False)
        os.set_blocking(waker, False)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)
        self._watched = [channel.fileno(), *_pidfd(caller)]

    def _ask(self, *_: object) -> None:
        self.asked = True

    def start(self, command: list[str]) -> None:
        """Start the command in a group of its own. Raises `OSError` when it cannot be."""
        if os.getppid() != self.caller:
            raise ProcessLookupError(errno.ESRCH, "the caller is gone")
        told, tell = os.pipe()
        ours = os.getpid()
        self.child = os.fork()
        if self.child == 0:
            self._become(command, ours, tell)
        os.close(tell)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):  # else the caller would see neither end of file nor a broken pipe
            os.dup2(nothing, number)
        with os.fdopen(told, "rb") as pipe:
            failed = pipe.read()
        if failed:
            os.waitpid(self.child, 0)
            raise OSError(int(failed), os.strerror(int(failed)))

    def _become(self, command: list[str], guard: int, tell: int) -> None:
        try:
            os.setpgid(0, 0)
            _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores them, and that is inherited
                signal.signal(number, signal.SIG_DFL)
            if os.getppid() == guard:
                os.execv(command[0], command)
        except OSError as error:
            os.write(tell, str(error.errno or errno.EIO).encode())
        finally:
            os._exit(127)

    def watch(self) -> int:
        """Wait for the end of the command, or for a reason to end it; gives its exit status, negative for a signal."""
        while self.status is None and not self.asked:
            ready, _, _ = select.select([self._awake, *self._watched], [], [])
            self._drain()
            self._reap()
            if any(number in ready for number in self._watched):
                break
        self._end(self.grace if self.status is None else _AFTERMATH)
        return -signal.SIGKILL if self.status is None else self.status

    def _end(self, grace: float) -> None:
        """SIGTERM to all that are left, then SIGKILL."""
        deadline, told = time.monotonic() + grace, set[int]()
        while self._reap() and (left := deadline - time.monotonic()) > 0:
            # Orphans come to us one after the other, as their parents end.
            for pid in set(self._children()) - told:
                told.add(pid)
                self._signal(pid, signal.SIGTERM)
            select.select([self._awake], [], [], left)
            self._drain()
        while self._reap():
            for pid in self._children():
                self._signal(pid, signal.SIGKILL)
            select.select([self._awake], [], [], 0.05)
            self._drain()

    def _reap(self) -> bool:
        """Take the status of those that have ended; whether there are others."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self.child:
                self.status = os.waitstatus_to_exitcode(status)

    def _children(self) -> list[int]:
        """Our children, adopted ones included; without /proc the command alone is known."""
        ours, found = str(os.getpid()).encode(), []
        with contextlib.suppress(OSError):
            for name in os.listdir("/proc"):
                if not name.isdigit():
                    continue
                with contextlib.suppress(OSError, IndexError):  # it may have gone in the meantime
                    with open(f"/proc/{name}/stat", "rb") as file:
                        # "pid (name) state parent …", and the name may hold anything.
                        parent = file.read().rpartition(b")")[2].split()[1]
                    if parent == ours:
                        found.append(int(name))
        return found or ([self.child] if self.status is None else [])

    def _signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if pid == self.child:
                os.killpg(pid, number)
            else:
                os.kill(pid, number)

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self._awake, 4096):
                pass


def _pidfd(pid: int) -> list[int]:
    """A descriptor that becomes readable when the process ends, where there is such a thing."""
    if sys.platform != "linux":
        return []
    with contextlib.suppress(OSError):
        return [os.pidfd_open(pid)]
    return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
