"""Examples in folders of their own, run by the command line or by a runtime, on their scripted models."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from .graphs import EXAMPLES

KEYS = (
    "OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "ANTHROPIC_API_KEY", "FLAT_STORE", "FORCE_COLOR",
    "FLATMACHINES_DB_PATH",
)  # fmt: skip


class Said(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    text: str


class Commands:
    """Runs `flat` commands as processes that need no time to begin."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self._out, self._given = folder / "said.txt", folder / "given.txt"
        here = Path(__file__).with_name("zygote.py")
        first = [sys.executable, str(here), str(EXAMPLES / "writer_critic")]
        self._process = subprocess.Popen(
            first, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**environ, "FLAT_CACHE": str(folder / "cache"), "PYTHONWARNINGS": "default"},
        )  # fmt: skip
        self._ready = False

    def __call__(
        self, folder: Path, args: Sequence[str], *, die_at: str | None = None, given: str = ""
    ) -> Said:
        """Run a command to its end, or until it says `die_at`; `given` is what is typed."""
        self._given.write_text(given, encoding="utf-8")
        job = {
            "args": list(args), "folder": str(folder), "out": str(self._out), "given": str(self._given),
            "die_at": die_at,
        }  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self._ready:
            assert self._process.stdout.readline() == "ready\n", self._process.communicate()[1]
            self._ready = True
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, self._process.communicate()[1]
        return Said(json.loads(answer)["code"], self._out.read_text(encoding="utf-8"))

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    environ = {name: value for name, value in os.environ.items() if name not in KEYS}
    started = Commands(tmp_path_factory.mktemp("zygote"), environ)
    yield started
    started.close()


@pytest.fixture
def keyless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An environment without keys, with a cache of its own."""
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLAT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def copied(name: str, tmp_path: Path, keyless: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of the example `name`, which is the working directory."""
    folder = tmp_path / name
    shutil.copytree(EXAMPLES / name, folder, ignore=shutil.ignore_patterns("__pycache__", "*.db*"))
    monkeypatch.chdir(folder)
    path, modules = list(sys.path), set(sys.modules)
    yield folder
    sys.path[:] = path
    for module in set(sys.modules) - modules:
        if str(folder) in str(getattr(sys.modules[module], "__file__", None)):
            del sys.modules[module]


def read_yaml(path: Path) -> Any:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8"))
