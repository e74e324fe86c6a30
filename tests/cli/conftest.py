"""Small projects to run by the command line, in this process or in one of their own."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

COMMAND = [sys.executable, "-m", "flat.cli"]

LOOP = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: counter
  context: {n: 0, to: 3}
  hooks: counting
  states:
    count:
      type: initial
      action: count
      transitions:
        - {condition: "context.n >= context.to", to: done}
        - {to: count}
    done:
      type: final
      output: {n: "{{ context.n }}"}
"""
WAIT = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: approval
  context: {task: "{{ input.task }}"}
  states:
    ask:
      type: initial
      wait_for: "approval/{{ context.task }}"
      output_to_context: {answer: "{{ output.value }}"}
      transitions: [{to: done}]
    done:
      type: final
      output: {answer: "{{ context.answer }}"}
"""
HOOKS = """\
import os, pathlib, time
from flat import MachineHooks

class Counting(MachineHooks):
    def on_action(self, action_name, context):
        return getattr(self, action_name)(context)

    def count(self, context):
        context["n"] += 1
        return context

    def slow(self, context):
        time.sleep(0.05)
        return self.count(context)

    def shout(self, context):
        print("\\x1b[31mprinted by a hook")
        context["said"] = "\\x1b[31mred\\x1b]0;title\\x07 [bold]not markup[/bold]"
        return context

    def fail(self, context):
        raise ValueError("no \\x1b[31mgood")

    def die_once(self, context):
        with open("ledger", "a") as ledger:
            ledger.write("x")
        if os.path.getsize("ledger") == 1:
            os._exit(9)
        context["n"] = 7
        return context
"""
TOML = """\
[run]
machine = "machine.yml"

[hooks]
counting = "hooks.py:Counting"
"""


def one_action(action: str, output: str = "{n: '{{ context.n }}'}", extra: str = "") -> str:
    """A machine of one action, then done."""
    return f"""\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: one
  context: {{n: 0, said: ""}}
  hooks: counting
  states:
    act:
      type: initial
      action: {action}
{extra}      transitions: [{{to: done}}]
    done: {{type: final, output: {output}}}
"""


def one_call(extra: str = "", settings: str = "") -> str:
    """A machine that asks one agent."""
    return f"""\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: asking
  agents:
    helper:
      spec: flatagent
      spec_version: "4.2.1"
      data:
        model: {{provider: openai, name: gpt-5-mini{settings}}}
        user: "Say {{{{ input.word }}}}"
  context: {{word: hi}}
  states:
    ask:
      type: initial
      agent: helper
      input: {{word: "{{{{ context.word }}}}"}}
      output_to_context: {{said: "{{{{ output.content }}}}"}}
{extra}      transitions: [{{to: done}}]
    done: {{type: final, output: {{said: "{{{{ context.said }}}}"}}}}
"""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    def json_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


class Project:
    """A folder with a machine, hooks and a project file; the working directory of the commands."""

    LOOP, WAIT, HOOKS, TOML = LOOP, WAIT, HOOKS, TOML
    one_action, one_call = staticmethod(one_action), staticmethod(one_call)

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder, self.environ = folder, environ
        self.write(machine=LOOP)
        (folder / "hooks.py").write_text(HOOKS)
        (folder / "flat.toml").write_text(TOML)

    def write(self, *, machine: str | None = None, toml: str | None = None) -> None:
        if machine is not None:
            (self.folder / "machine.yml").write_text(machine)
        if toml is not None:
            (self.folder / "flat.toml").write_text(toml)

    def flat(self, *args: str) -> Result:
        """Run a command in this process."""
        from flat.cli.app import app

        result = CliRunner().invoke(app, list(args))
        return Result(result.exit_code, result.stdout, result.stderr)

    def start(self, *args: str, **more: Any) -> subprocess.Popen[str]:
        """Start a command as a process."""
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
        return subprocess.Popen([*COMMAND, *args], cwd=self.folder, env=self.environ, **options)

    def process(self, *args: str) -> Result:
        """Run a command as a process, to its end."""
        process = self.start(*args)
        out, err = process.communicate(timeout=60)
        return Result(process.returncode, out, err)


@pytest.fixture
def environ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """An environment without keys, with a cache of its own."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "OPENAI_API_BASE", "FLAT_STORE", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FLAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONWARNINGS", "default")
    return dict(os.environ)


@pytest.fixture
def project(tmp_path: Path, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    path, modules, handlers = list(sys.path), set(sys.modules), list(logging.getLogger("flat").handlers)
    yield Project(folder, environ)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) and str(folder) in str(sys.modules[name].__file__):
            del sys.modules[name]
    logging.getLogger("flat").handlers[:] = handlers
