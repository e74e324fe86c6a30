"""`--profile`: which model answers, and that a run keeps to it whoever goes on with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cli.tree_projects import write_charter

if TYPE_CHECKING:
    from tests.cli.conftest import Project

MACHINE = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: asking
  agents:
    helper:
      spec: flatagent
      spec_version: "4.2.1"
      data: {model: big, user: "{{ model.name }}"}
  states:
    wait: {wait_for: go, transitions: [{to: ask}]}
    ask:
      agent: helper
      output_to_context: {said: "{{ output.content }}"}
      transitions: [{to: done}]
    done: {type: final, output: {said: "{{ context.said }}"}}
"""
PROFILES = """\
spec: flatprofile
data:
  model_profiles:
    big: {provider: openai, name: gpt-big}
    small: {provider: openai, name: gpt-small}
"""
SCRIPT = "rules:\n  - match: '(.*)'\n    reply: '$1'\n"
AT_ONCE = MACHINE.replace("    wait: {wait_for: go, transitions: [{to: ask}]}\n", "")


@pytest.fixture
def asking(project: Project) -> Project:
    """A project whose model says what it is called."""
    project.write(machine=AT_ONCE, toml='[run]\nmachine = "machine.yml"\n[model]\nscript = "script.yml"\n')
    (project.folder / "profiles.yml").write_text(PROFILES)
    (project.folder / "script.yml").write_text(SCRIPT)
    return project


def test_a_run_asks_the_model_of_the_profile(asking: Project) -> None:
    said = [json.loads(asking.flat("run", ".", "-q", *more).out) for more in ((), ("--profile", "small"))]
    assert said == [{"said": "openai/gpt-big"}, {"said": "openai/gpt-small"}]


def test_an_unknown_profile_ends_with_3_and_lists_those_there_are(asking: Project) -> None:
    result = asking.flat("run", ".", "--profile", "tiny")
    assert result.code == 3
    assert result.err == 'error: there is no profile "tiny" in the catalogue; it has big, small\n'
    assert not Path("flat.db").exists()


@pytest.mark.parametrize("named", [(), ("machine.yml",), ("machine.yml", "--adopt")])
def test_a_resumed_run_stays_on_its_profile(asking: Project, named: tuple[str, ...]) -> None:
    asking.write(machine=MACHINE)
    assert asking.flat("run", ".", "--id", "x", "--profile", "small").code == 4
    asking.flat("signal", "go", "{}")
    result = asking.flat("resume", "x", *named, "--json")
    assert result.json_lines()[-1]["output"] == {"said": "openai/gpt-small"}
    assert "has changed" not in result.out


def test_a_file_that_changed_is_noticed_beside_a_profile(asking: Project) -> None:
    asking.write(machine=MACHINE)
    asking.flat("run", ".", "--id", "x", "--profile", "small")
    asking.write(machine=MACHINE.replace('said: "{{ context.said }}"', "told: 1"))
    asking.flat("signal", "go", "{}")
    assert "has changed" in asking.flat("resume", "x").out


def test_a_worker_runs_what_was_queued_on_its_profile(
    asking: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    asking.flat("start", ".", "--id", "x", "--profile", "small")
    assert asking.flat("worker", "--drain").code == 0
    assert "gpt-small" in asking.flat("runs", "show", "x").out
    assert asking.flat("start", ".", "--profile", "tiny").code == 3


@pytest.mark.parametrize("command", ["run", "start"])
def test_a_charter_has_no_profiles(project: Project, command: str) -> None:
    write_charter(project.folder)
    result = project.flat(command, "desk.py:charter", "-i", "message=hi", "--profile", "small")
    assert result.code == 2
    assert "its executor says which model" in result.err
