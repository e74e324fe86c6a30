"""Starting is quick, imports little, and opens no socket."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

BARE = """
import pathlib, typer
def run(path: pathlib.Path): print(path)
typer.run(run)
"""
PROBE = """
import json, sys
sockets = []
sys.addaudithook(lambda event, args: sockets.append(event) if event.startswith("socket.") else None)
from flat.cli import main
sys.argv = ["flat", *sys.argv[1:]]
try:
    main()
except SystemExit:
    pass
heavy = [m for m in ("litellm", "pydantic", "jinja2", "yaml", "anyio", "sqlite3", "rich") if m in sys.modules]
print(json.dumps({"heavy": heavy, "sockets": sockets}), file=sys.stderr)
"""


def probe(project: Project, *args: str) -> dict[str, list[str]]:
    """What a command imported, and which sockets it touched."""
    command = [sys.executable, "-c", PROBE, *args]
    done = subprocess.run(
        command, cwd=project.folder, env=project.environ, capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = json.loads(done.stderr.splitlines()[-1])
    return found


def test_help_imports_nothing_of_the_engine(project: Project) -> None:
    assert probe(project, "--help") == {"heavy": [], "sockets": []}


@pytest.mark.parametrize("command", ["validate", "graph"])
def test_checking_and_drawing_open_no_socket_and_import_no_model_client(
    project: Project, command: str
) -> None:
    project.write(machine=project.one_call())
    found = probe(project, command, ".")
    assert found["sockets"] == []
    assert "litellm" not in found["heavy"]


def test_a_machine_without_models_does_not_import_the_model_client(project: Project) -> None:
    assert "litellm" not in probe(project, "run", ".", "-q")["heavy"]


def test_the_version_is_told(project: Project) -> None:
    result = project.flat("--version")
    assert result.code == 0
    assert result.out.startswith("flat ")


def test_the_first_line_comes_before_anything_slow(project: Project) -> None:
    """Against a program of typer's that does nothing, so that a busy machine does not matter."""

    def first_line(command: list[str]) -> float:
        best = 60.0
        for _ in range(3):
            began = time.perf_counter()
            process = subprocess.Popen(
                command, cwd=project.folder, env=project.environ, stdout=subprocess.PIPE
            )
            assert process.stdout is not None
            process.stdout.readline()
            best = min(best, time.perf_counter() - began)
            process.stdout.read()
            process.wait()
            process.stdout.close()
        return best

    bare = first_line([sys.executable, "-c", BARE, "."])
    assert first_line([sys.executable, "-m", "flat.cli", "run", "."]) < 2 * bare
