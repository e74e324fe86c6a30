"""Runs a command for one turn of an agent: lines of its output as they come, and nothing left of it afterwards.

The command is a list of arguments, never a text for a shell. It and everything it starts end with the turn: when
the turn is over, when it takes too long, when the caller is cancelled, and when the caller's process dies in any
way. `process_guard`, which runs between us and the command, sees to that; closing our end of its channel is all
that is ever needed to stop everything.

What the lines mean is the business of the adapters.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE
from typing import IO, Any

import anyio
from anyio.abc import ByteReceiveStream, ByteSendStream, Process

from flat.errors import AgentFailed

log = logging.getLogger("flat.agents")

MAX_LINE = 64 << 20
"""Bytes of one line of output; a longer line is left out."""
KEPT_STDERR = 64 << 10
"""Bytes of the end of stderr that are kept for messages."""
GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""
AFTERMATH = 1.0
"""Seconds that are read on when a command has ended and its pipes have not."""

_GUARD = Path(__file__).with_name("process_guard.py")
_SHOWN = 2000
"""Characters of what a command printed that an error tells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What to run. `environment` is added to ours; `timeout` is in seconds, None for as long as it takes."""

    arguments: Sequence[str]
    directory: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    stdin: bytes = b""
    timeout: float | None = None
    grace: float = GRACE
    max_line: int = MAX_LINE
    install: str = ""
    """What to do when the program is not there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended: its exit status, negative for a signal, and the end of its stderr."""

    status: int
    stderr: str
    lines_left_out: int = 0

    @property
    def words(self) -> str:
        """How it ended, for messages."""
        how = f"exit code {self.status}" if self.status >= 0 else f"killed by signal {-self.status}"
        return how + told_on_stderr(self.stderr)


class CommandTimeout(Exception):
    """The command took longer than it was given; it has been ended."""

    def __init__(self, seconds: float, stderr: str) -> None:
        super().__init__(f"not done within {seconds:g} s{told_on_stderr(stderr)}")


def told_on_stderr(stderr: str) -> str:
    """The end of what a command wrote to stderr, to be put after a message; nothing if it wrote nothing."""
    text = stderr.strip()
    if not text:
        return ""
    return f"; stderr: {text if len(text) <= _SHOWN else '…' + text[-_SHOWN:]}"


async def run(command: Command, on_line: Callable[[bytes], None]) -> Ended:
    """Run the command; `on_line` gets each line of its stdout, without the line end.

    Raises `CommandTimeout`, or `AgentFailed` when it cannot be started. What `on_line` raises ends the command
    and is raised here.
    """
    if not hasattr(os, "fork"):
        raise AgentFailed("agents that are commands need Linux or macOS", code="model_unavailable")
    arguments = [_program(command), *command.arguments[1:]]
    _check(command)
    ours, theirs = socket.socketpair()
    with ours:
        # Shielded: a start that is cancelled halfway would leave nobody to wait for the process.
        with theirs, anyio.CancelScope(shield=True):
            process = await _start(command, arguments, theirs)
        lines, stderr = Lines(command.max_line), _Tail(KEPT_STDERR)
        seconds = math.inf if command.timeout is None else command.timeout
        try:
            with anyio.move_on_after(seconds) as limit:
                try:
                    await _talk(process, command.stdin, lines, stderr, on_line)
                except BaseExceptionGroup as group:
                    raise _alone(group) from None  # what `on_line` raised
            if limit.cancelled_caught:
                raise CommandTimeout(seconds, stderr.text)
            report = _report(ours)
        finally:
            # Closing would not do: a forked child of ours may hold a copy.
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            await _wait_until_gone(process, command.grace)
    if "error" in report:
        reason = os.strerror(report["error"])
        raise AgentFailed(f"cannot start {arguments[0]}: {reason}", code="model_unavailable", type="OSError")
    return Ended(status=report["status"], stderr=stderr.text, lines_left_out=lines.left_out)


class Conversation:
    """A command that stays, and is talked with by lines. It dies with us like any other, and when it is stopped."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self._lines = Lines(command.max_line)
        self._process: Process | None = None
        self._channel: socket.socket | None = None
        self._stderr: IO[bytes] | None = None
        self._saying: anyio.Lock | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.returncode is None

    async def start(self) -> None:
        """Raises `AgentFailed` when the program is not there."""
        arguments = [_program(self.command), *self.command.arguments[1:]]
        _check(self.command)
        self._saying = anyio.Lock()
        self._channel, theirs = socket.socketpair()
        # A file: nobody has to read it, so that it never fills up.
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs, anyio.CancelScope(shield=True):
            self._process = await _start(self.command, arguments, theirs, self._stderr)

    async def send(self, line: bytes) -> None:
        """Say a line. One that cannot be said is found out by whoever listens for the answer."""
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._saying is not None
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError, OSError):
            async with self._saying:
                await self._process.stdin.send(line + b"\n")

    async def hear(self) -> list[bytes] | None:
        """The lines that have come, at least a piece of one; None when the other side has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        chunk = await _receive(self._process.stdout)
        return list(self._lines.feed(chunk)) if chunk else None

    @property
    def stderr(self) -> str:
        """The end of what the command wrote to stderr."""
        if self._stderr is None:
            return ""
        size = os.fstat(self._stderr.fileno()).st_size
        return os.pread(self._stderr.fileno(), KEPT_STDERR, max(0, size - KEPT_STDERR)).decode(
            errors="replace"
        )

    async def stop(self) -> None:
        """End the command, and wait until it is gone."""
        process, self._process = self._process, None
        if process is not None and self._channel is not None:
            with contextlib.suppress(OSError):
                self._channel.shutdown(socket.SHUT_RDWR)
            self._channel.close()
            await _wait_until_gone(process, self.command.grace)
        told, self._stderr = self._stderr, None
        if told is not None:
            told.close()


class Lines:
    """Cuts a stream of bytes into lines. A line that is too long is left out, and never held whole."""

    def __init__(self, limit: int = MAX_LINE) -> None:
        self.limit = limit
        self.left_out = 0
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The lines that end in this chunk."""
        *ending, rest = chunk.split(b"\n")
        for piece in ending:
            yield from self._end(piece)
        self._add(rest)

    def finish(self) -> Iterator[bytes]:
        """The last line, if it has no line end."""
        if self._size:
            yield from self._end(b"")

    def _add(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self.limit:
            self._pieces = []
        elif piece:
            self._pieces.append(piece)

    def _end(self, piece: bytes) -> Iterator[bytes]:
        self._add(piece)
        pieces, size = self._pieces, self._size
        self._pieces, self._size = [], 0
        if size <= self.limit:
            yield b"".join(pieces).removesuffix(b"\r")
        else:
            self.left_out += 1
            log.warning("a line of %d bytes is longer than the %d allowed and was left out", size, self.limit)


class Events:
    """Reads JSON lines: calls `on_event` with each object. Lines that are none are logged and left out."""

    def __init__(self, program: str, on_event: Callable[[dict[str, Any]], None]) -> None:
        self.program, self.on_event = program, on_event
        self.garbage = ""
        """The first line that was no JSON object, cut; it often says what is wrong."""

    def __call__(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict):
            self.on_event(event)
            return
        text = line[:400].decode(errors="replace").strip()
        self.garbage = self.garbage or text
        log.warning("%s printed a line that is no JSON object: %s", self.program, text)


class _Tail:
    """The end of a stream."""

    def __init__(self, limit: int) -> None:
        self.limit, self.data = limit, bytearray()

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        del self.data[: -self.limit]

    @property
    def text(self) -> str:
        return self.data.decode(errors="replace")


def _program(command: Command) -> str:
    """The path of the program; where relative, then to the directory the command runs in."""
    name = command.arguments[0]
    if os.sep in name:
        path = command.directory / Path(name).expanduser()
        found = str(path.absolute()) if os.access(path, os.X_OK) and path.is_file() else None
    else:
        found = shutil.which(name, path=command.environment.get("PATH"))
    if found is None:
        raise AgentFailed(
            f'the program "{name}" was not found' + (f": {command.install}" if command.install else ""),
            code="model_unavailable",
            type="FileNotFoundError",
            hint=command.install,
        )
    return os.path.abspath(found)


def _check(command: Command) -> None:
    if any("\0" in argument for argument in command.arguments):
        raise AgentFailed(
            "a text for a command holds a NUL character", code="invalid_request", type="ValueError"
        )
    if not command.directory.is_dir():
        raise AgentFailed(
            f"the working directory {command.directory} does not exist",
            code="invalid_request",
            type="FileNotFoundError",
        )


async def _start(
    command: Command, arguments: list[str], channel: socket.socket, stderr: int | IO[bytes] = PIPE
) -> Process:
    # -I and -S: nothing of the user's Python settings, and no packages, may touch the guard.
    guard = [sys.executable or "python3", "-I", "-S", str(_GUARD)]
    facts = [str(channel.fileno()), str(os.getpid()), str(command.grace)]
    return await anyio.open_process(
        [*guard, *facts, *arguments],
        cwd=command.directory,
        env={**os.environ, **command.environment},
        pass_fds=(channel.fileno(),),
        start_new_session=True,
        stderr=stderr,
    )


async def _talk(
    process: Process, given: bytes, lines: Lines, stderr: _Tail, on_line: Callable[[bytes], None]
) -> None:
    """Feed stdin, read stdout and stderr to their ends, and wait for the end of the process."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_stop_reading, process, tasks.cancel_scope)
        await _pass_on(process, given, lines, stderr, on_line)
        tasks.cancel_scope.cancel()
    for line in lines.finish():
        on_line(line)
    await process.wait()


async def _stop_reading(process: Process, scope: anyio.CancelScope) -> None:
    """Where orphans cannot be found, one may hold our pipes open for ever: nothing of it is waited for."""
    await process.wait()
    await anyio.sleep(AFTERMATH)
    scope.cancel()


async def _pass_on(
    process: Process, given: bytes, lines: Lines, stderr: _Tail, on_line: Callable[[bytes], None]
) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(_feed, process.stdin, given)
        tasks.start_soon(_collect, process.stderr, stderr)
        while chunk := await _receive(process.stdout):
            for line in lines.feed(chunk):
                on_line(line)


def _alone(error: BaseException) -> BaseException:
    """The one error in nested groups of one."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _receive(stream: ByteReceiveStream) -> bytes:
    """The next piece of a stream, empty at its end."""
    try:
        return await stream.receive(1 << 16)
    except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
        return b""


async def _feed(stream: ByteSendStream, data: bytes) -> None:
    try:
        if data:
            await stream.send(data)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError, BrokenPipeError, ConnectionResetError):
        pass  # a command need not read all of it
    finally:
        with anyio.CancelScope(shield=True):
            await _close(stream)


async def _close(stream: ByteSendStream) -> None:
    # Its other end may be closed already.
    with contextlib.suppress(anyio.BrokenResourceError, BrokenPipeError, ConnectionResetError):
        await stream.aclose()


async def _collect(stream: ByteReceiveStream, into: _Tail) -> None:
    while chunk := await _receive(stream):
        into.add(chunk)


async def _wait_until_gone(process: Process, grace: float) -> None:
    """The guard ends by itself when its channel is closed; the deadline is for a guard that was stopped."""
    with anyio.CancelScope(shield=True):
        with anyio.move_on_after(grace + 10):
            await process.wait()
        if process.returncode is None:
            process.kill()
        await process.aclose()


def _report(channel: socket.socket) -> dict[str, Any]:
    """What the guard, which has ended, had to say."""
    channel.setblocking(False)
    try:
        report = json.loads(channel.recv(4096))
    except (OSError, ValueError):
        raise AgentFailed("the command was ended from outside", type="ProcessLookupError") from None
    return dict(report)
