"""Programs for the adapters to run: Python scripts on PATH that say what the test gives them to say."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

SCRIPT = """\
#!{python} -IS
import json, os, signal, subprocess, sys
home = {home!r}
with open(home + "/calls.jsonl", "a+") as log:
    log.seek(0)
    number = len(log.readlines())
    facts = {{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ), "stdin": sys.stdin.read()}}
    log.write(json.dumps(facts) + "\\n")
with open(home + "/turns.json") as file:
    turns = json.load(file)
turn = turns[min(number, len(turns) - 1)]
if turn.get("child"):
    # A grandchild in a session of its own; a stubborn one ignores SIGTERM.
    ignore = "signal.signal(15, signal.SIG_IGN); " if turn["child"] == "stubborn" else ""
    code = "import os, signal; " + ignore + "print(os.getpid(), flush=True); signal.pause()"
    child = subprocess.Popen([sys.executable, "-IS", "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    child.stdout.readline()
    with open(home + "/pids", "w") as file:
        file.write(str(os.getpid()) + " " + str(child.pid))
for line in turn.get("lines", ()):
    print(line.replace("$SESSION", sys.argv[sys.argv.index("--session-id") + 1]) if "$SESSION" in line else line)
if turn.get("long"):
    print("x" * turn["long"])
sys.stdout.flush()
sys.stderr.write(turn.get("stderr", ""))
sys.stderr.flush()
if turn.get("hang"):
    while True:
        signal.pause()
sys.exit(turn.get("exit", 0))
"""


class Program:
    """A fake program and what it was called with. Each call says the next turn; the last one from then on."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.path = folder, folder / name
        self.path.write_text(SCRIPT.format(python=sys.executable, home=str(folder)))
        self.path.chmod(0o755)

    def says(self, *turns: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
        """Each turn is a list of events, or a mapping with `events`, `lines`, `stderr`, `exit`, `hang`,
        `child` (True or "stubborn")."""
        told = [dict(turn) if isinstance(turn, Mapping) else {"events": turn} for turn in turns]
        for turn in told:
            turn["lines"] = [json.dumps(event) for event in turn.pop("events", ())] + turn.get("lines", [])
        (self.folder / "turns.json").write_text(json.dumps(told))

    @property
    def calls(self) -> list[dict[str, Any]]:
        log = self.folder / "calls.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def left(self) -> list[int]:
        """Those of its processes that are still there. One that was ended before it got so far has written no ids."""
        pids = self.folder / "pids"
        return [pid for pid in map(int, pids.read_text().split()) if _lives(pid)] if pids.exists() else []


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Program:
    """The fake program that the module's `PROGRAM` names, first on PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return Program(folder, request.module.PROGRAM)
