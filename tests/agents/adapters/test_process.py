"""Commands: their lines, their ends, and that nothing is left of them."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.agents.process import Command, CommandTimeout, Ended, Events, Lines, run
from flat.errors import AgentFailed

PROGRAM = "tool"
pytestmark = pytest.mark.anyio

linux = pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux")


def command(tmp_path: Path, **more: Any) -> Command:
    return Command(**{"arguments": [PROGRAM, "a b", "$HOME; `id`"], "directory": tmp_path, **more})


async def test_arguments_reach_the_program_as_they_are(program: Any, tmp_path: Path) -> None:
    program.says({"lines": ["one", "two"], "stderr": "careful", "exit": 3})
    lines: list[bytes] = []
    ended = await run(command(tmp_path, stdin=b"hello", environment={"EXTRA": "1"}), lines.append)
    assert (lines, ended) == ([b"one", b"two"], Ended(status=3, stderr="careful"))
    (call,) = program.calls
    assert call["argv"] == ["a b", "$HOME; `id`"]
    assert (call["stdin"], call["cwd"], call["env"]["EXTRA"]) == ("hello", str(tmp_path), "1")


async def test_a_program_that_does_not_read_its_input_is_no_failure(tmp_path: Path) -> None:
    ended = await run(command(tmp_path, arguments=["true"], stdin=b"x" * 1_000_000), print)
    assert ended.status == 0


async def test_much_output_on_both_pipes_does_not_block(tmp_path: Path) -> None:
    code = "import sys\nfor i in range(3000): print('o' * 99); print('e' * 99, file=sys.stderr)"
    lines: list[bytes] = []
    ended = await run(command(tmp_path, arguments=[sys.executable, "-c", code]), lines.append)
    assert (len(lines), len(ended.stderr)) == (3000, 64 << 10)


async def test_the_end_by_a_signal_is_told(tmp_path: Path) -> None:
    ended = await run(command(tmp_path, arguments=["sh", "-c", "kill -9 $$"]), print)
    assert (ended.status, ended.words) == (-9, "killed by signal 9")


async def test_a_missing_program_is_told_with_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match='"no-such-tool" was not found: npm install it') as caught:
        await run(command(tmp_path, arguments=["no-such-tool"], install="npm install it"), print)
    assert (caught.value.code, caught.value.type) == ("model_unavailable", "FileNotFoundError")


async def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken").write_bytes(b"\0\0")
    (tmp_path / "broken").chmod(0o755)
    with pytest.raises(AgentFailed, match=r"cannot start .*broken: Exec format error"):
        await run(command(tmp_path, arguments=["./broken"]), print)


async def test_a_missing_working_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match=r"working directory .*nowhere does not exist"):
        await run(command(tmp_path / "nowhere", arguments=["true"]), print)


async def test_a_nul_in_an_argument_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match="NUL"):
        await run(command(tmp_path, arguments=["true", "a\0b"]), print)


@linux
async def test_a_command_that_takes_too_long_is_ended_with_all_it_started(
    program: Any, tmp_path: Path
) -> None:
    program.says({"child": "stubborn", "hang": True, "stderr": "still at it"})
    with pytest.raises(CommandTimeout, match=r"not done within 0\.5 s; stderr: still at it"):
        await run(command(tmp_path, timeout=0.5, grace=0.2), print)
    assert program.left() == []


@linux
async def test_a_cancelled_command_is_ended_with_all_it_started(program: Any, tmp_path: Path) -> None:
    program.says({"child": "stubborn", "lines": ["ready"], "hang": True})
    with anyio.CancelScope() as scope:
        await run(command(tmp_path, grace=0.2), lambda line: scope.cancel())
    assert scope.cancelled_caught
    assert program.left() == []


@linux
async def test_nothing_outlives_a_command_that_ends_by_itself(program: Any, tmp_path: Path) -> None:
    program.says({"child": "stubborn"})
    assert (await run(command(tmp_path, grace=0.2), print)).status == 0
    assert program.left() == []


async def test_an_error_of_the_reader_ends_the_command_and_is_raised_as_it_is(
    program: Any, tmp_path: Path
) -> None:
    program.says({"child": "stubborn", "lines": ["ready"], "hang": True})

    def refuse(line: bytes) -> None:
        raise ZeroDivisionError(line)

    with pytest.raises(ZeroDivisionError):
        await run(command(tmp_path, grace=0.2), refuse)
    assert program.left() == []


@linux
async def test_a_copy_of_our_end_of_the_channel_keeps_nothing_alive(program: Any, tmp_path: Path) -> None:
    program.says({"child": True, "lines": ["ready"], "hang": True})
    copies: list[int] = []

    def copy_all(line: bytes) -> None:
        # What a process that is forked now would hold.
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                    copies.append(os.dup(int(name)))
        scope.cancel()

    with anyio.fail_after(8), anyio.CancelScope() as scope:
        await run(command(tmp_path, grace=0.2), copy_all)
    assert program.left() == []
    for descriptor in copies:
        os.close(descriptor)


def test_a_command_dies_with_its_caller_however_that_dies(program: Any, tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("processes are watched by pidfd")
    program.says({"child": "stubborn", "lines": ["ready"], "hang": True})
    code = (
        "import anyio, sys; from pathlib import Path; from flat.agents.process import Command, run\n"
        f"command = Command(arguments=[{PROGRAM!r}], directory=Path({str(tmp_path)!r}), grace=0.2)\n"
        "anyio.run(run, command, lambda line: print('ready', flush=True))"
    )
    caller = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert caller.stdout is not None
    assert caller.stdout.readline() == b"ready\n"
    watched = [os.pidfd_open(int(pid)) for pid in (program.folder / "pids").read_text().split()]
    caller.send_signal(signal.SIGKILL)
    caller.communicate()
    waiting = set(watched)
    while waiting:
        gone, _, _ = select.select(list(waiting), [], [], 20)
        assert gone, "a process has outlived its caller"
        waiting -= set(gone)
    for descriptor in watched:
        os.close(descriptor)


def test_lines_are_cut_wherever_the_chunks_end() -> None:
    lines = Lines()
    found = [line for chunk in (b"on", b"e\r\ntw", b"", b"o\n\nthr", b"ee") for line in lines.feed(chunk)]
    assert [*found, *lines.finish()] == [b"one", b"two", b"", b"three"]


def test_a_line_that_is_too_long_is_left_out_and_not_held(caplog: pytest.LogCaptureFixture) -> None:
    lines = Lines(limit=10)
    found = list(lines.feed(b"short\n"))
    for _ in range(1000):
        found += lines.feed(b"x" * 1000)
    assert lines._pieces == []
    found += [*lines.feed(b"\nafter\n"), *lines.finish()]
    assert (found, lines.left_out) == ([b"short", b"after"], 1)
    assert "longer than the 10 allowed" in caplog.text


async def test_a_huge_line_of_a_program_is_left_out(program: Any, tmp_path: Path) -> None:
    program.says({"lines": ["before"], "long": 5_000_000})
    lines: list[bytes] = []
    ended = await run(command(tmp_path, max_line=1_000_000), lines.append)
    assert (lines, ended.lines_left_out) == ([b"before"], 1)


def test_what_is_no_json_object_is_logged_and_left_out(caplog: pytest.LogCaptureFixture) -> None:
    found: list[Any] = []
    events = Events("tool", found.append)
    for line in (b"", b"Welcome!", b'{"a": 1}', b"[1]", b"\xff{", b'{"cut": ', b"[" * 100_000):
        events(line)
    assert (found, events.garbage) == ([{"a": 1}], "Welcome!")
    assert caplog.text.count("no JSON object") == 5
