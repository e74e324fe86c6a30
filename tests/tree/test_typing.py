"""Type checkers see what an author means, and what is wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SAMPLE = HERE / "typing_sample.py"


def expected() -> dict[int, str]:
    lines = SAMPLE.read_text().splitlines()[1:]
    found = {number: re.search(r"# error: ([\w-]+)", line) for number, line in enumerate(lines, 2)}
    return {number: match[1] for number, match in found.items() if match}


def test_mypy_strict_refuses_exactly_the_wrong_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--output=json", "--no-error-summary", str(SAMPLE)],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
    )
    errors = [json.loads(line) for line in done.stdout.splitlines()]
    mine = [e for e in errors if e["severity"] == "error" and Path(e["file"]).name == SAMPLE.name]
    found = {e["line"]: e["code"] for e in mine}
    assert done.stderr == ""
    assert len(found) > 10
    assert found == expected()


def test_pyright_refuses_exactly_the_wrong_lines() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(SAMPLE)],
        cwd=HERE.parents[1],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
        },  # it would look for a newer version of itself
    )
    if not done.stdout.startswith("{"):
        pytest.fail(done.stdout + done.stderr)
    errors = json.loads(done.stdout)["generalDiagnostics"]
    found = {e["range"]["start"]["line"] + 1 for e in errors if e["severity"] == "error"}
    assert found == set(expected())
