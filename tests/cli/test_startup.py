"""Starting is quick, imports little, and opens no socket."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

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

EAR = """
import json, sys
class Ear:
    def __init__(self, out): self.out, self.told = out, False
    def __getattr__(self, name): return getattr(self.out, name)
    def write(self, text):
        if not self.told and text.strip():
            self.told = True
            print(json.dumps({"line": text, "imported": sorted(sys.modules)}), file=sys.stderr)
        return self.out.write(text)
sys.stdout = Ear(sys.stdout)
from flat.cli import main
main()
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


def test_the_first_line_comes_before_anything_slow_is_imported(project: Project) -> None:
    command = [sys.executable, "-c", EAR, "run", "."]
    done = subprocess.run(command, cwd=project.folder, env=project.environ, capture_output=True, text=True)
    told = json.loads(next(line for line in done.stderr.splitlines() if line.startswith("{")))
    assert told["line"] == "loading ."
    slow = {"litellm", "jinja2", "yaml", "anyio", "sqlite3", "rich", "orjson", "flat.core", "flat.spec"}
    assert slow.isdisjoint(told["imported"])
    assert "flat.cli" in told["imported"]
