"""The quick start: the seed's files as they are, run from the command line and from Python."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flat.spec import load_machine

HERE = Path(__file__)
EXAMPLE = HERE.parents[2] / "examples" / "helloworld"
GOLDEN = HERE.parents[1] / "golden" / "cli" / "helloworld.txt"
FLAT = [sys.executable, "-m", "flat.cli"]
SCRIPTED = "model: scripted from script.yml, not a real model; set OPENAI_API_KEY to use the real one"

SEED = {
    "config/profiles.yml": "ee975335a9b406756b22f5d5bf52df68dac4c9f0b6aa4a822af928ab599fb8ab",
    "config/agent.yml": "2a02c62863b4f2b7aa1186256c241279fb33514888d15f85c23b1d904c4d0a3d",
    "config/machine.yml": "3bd4592ca1c28023653562812dcefbe186821d1cc0a32a41edcccd08b5ac2247",
    "run.py": "546b75edc22464e76dbf9ddebd828cdd75313186d4e3b7339dd7e671ca0dfa6a",
}
"""SHA-256 of the texts in the seed's read-me."""


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, which is the working directory, and no keys."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "FLAT_STORE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLAT_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "helloworld"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    monkeypatch.chdir(folder)
    return folder


def run(*command: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environ}, timeout=120)


def quick(folder: Path) -> None:
    """Pauses of the machine as short as a test can wait."""
    machine = folder / "config" / "machine.yml"
    machine.write_text(machine.read_text().replace("[2, 8, 16, 35]", "[0.01, 0.01, 0.01, 0.01]"))


def normalised(text: str) -> str:
    """The output without what differs from run to run: times, ids."""
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "ID", text)
    return re.sub(r"(^ *)?\d+\.\d+ s\b", "T s", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", SEED)
def test_the_files_are_the_seeds_own_but_for_the_import(name: str) -> None:
    text = (EXAMPLE / name).read_text(encoding="utf-8")
    if name == "run.py":
        text = text.replace("from flat import", "from flatmachines import")
    assert hashlib.sha256(text.encode()).hexdigest() == SEED[name]


def test_the_command_line_says_hello_on_the_scripted_model(example: Path) -> None:
    """As it is, with its pause of two seconds: this is what the read-me promises."""
    result = run(*FLAT, "run", str(example))
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert SCRIPTED in result.stdout
    shown = normalised(result.stdout.replace(str(example), "examples/helloworld"))
    assert shown == GOLDEN.read_text(encoding="utf-8")


def test_python_shows_its_two_result_lines(example: Path) -> None:
    quick(example)
    result = run(*FLAT, "script", "script.yml", "--", sys.executable, "run.py")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[-2].endswith("__main__ - INFO - Result: 'Hello, World!'")
    assert lines[-1].endswith("__main__ - INFO - Success: True")


def test_the_spelling_of_version_4_does_the_same(example: Path) -> None:
    result = run(*FLAT, "run", "v4", "-q", "-i", "target=Hi!")
    assert json.loads(result.stdout) == {"result": "Hi!", "success": True}
    assert SCRIPTED in result.stderr


def test_both_spellings_are_free_of_warnings() -> None:
    for folder in (EXAMPLE, EXAMPLE / "v4"):
        assert load_machine(folder).problems == []


@pytest.mark.parametrize(
    "faults",
    [
        "[{every: 2, text: '?'}]",
        "[{at: [1, 3], text: ''}, {at: [4], text: '   '}]",
        "[{at: [1], status: 429, retry_after: 0.01}, {at: [3], status: 500}, {at: [5], drop: true}]",
    ],
    ids=["wrong characters", "empty answers", "refusals"],
)
def test_it_says_hello_whatever_the_model_does(example: Path, faults: str) -> None:
    quick(example)
    script = (example / "script.yml").read_text()
    (example / "script.yml").write_text(script[: script.index("faults:")] + f"faults: {faults}\n")
    result = run(*FLAT, "run", ".", "-q", "-i", "target=Hi!")
    assert json.loads(result.stdout) == {"result": "Hi!", "success": True}, result.stderr


def test_with_a_key_the_provider_is_asked(example: Path) -> None:
    environ = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    quick(example)
    result = run(*FLAT, "run", ".", **environ)
    assert "model: openai/gpt-5-mini at http://127.0.0.1:9/v1" in result.stdout
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    scripted = run(*FLAT, "run", ".", "--scripted", "-q", "-i", "target=Hi", **environ)
    assert json.loads(scripted.stdout)["result"] == "Hi"
    assert "leave out --scripted to use the real one" in scripted.stderr
