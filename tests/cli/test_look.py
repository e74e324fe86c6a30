"""Looking without running: `validate`, `graph`, `runs`, and `script`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project

GRAPH = """\
flowchart TD
    begin((( )))
    s0["count<br/>action count"]
    s1(["done"])
    begin --> s0
    s0 -->|"context.n #62;= context.to"| s1
    s0 --> s0
"""


def test_a_machine_without_faults_is_ok(project: Project) -> None:
    result = project.flat("validate", ".")
    assert (result.code, result.out) == (0, ".: ok\n")


def test_every_problem_of_every_file_is_shown(project: Project) -> None:
    project.write(machine=project.LOOP.replace("to: done}", "to: doen}"))
    result = project.flat("validate", ".", "nope.yml")
    assert result.code == 3
    assert 'did you mean "done"?' in result.out
    assert "nope.yml: 1 error" in result.out


def test_problems_are_data_when_json_is_asked_for(project: Project) -> None:
    project.write(machine=project.LOOP.replace("to: done}", "to: doen}"))
    (told,) = json.loads(project.flat("validate", ".", "--json").out)
    assert told["ok"] is False
    problem = told["problems"][0]
    assert (problem["code"], problem["file"], problem["line"]) == ("unknown-state", "machine.yml", 12)


def test_warnings_are_errors_when_strict(project: Project) -> None:
    project.write(machine=project.LOOP + "    lost: {type: final}\n")
    assert project.flat("validate", ".").code == 0
    assert project.flat("validate", ".", "--strict").code == 3


def test_compat_lets_pass_with_a_warning_what_upstream_lets_pass(project: Project) -> None:
    project.write(machine=project.LOOP.replace("to: done}", "to: doen}"))
    result = project.flat("validate", ".", "--compat")
    assert result.code == 0
    assert "1 warning" in result.out


def test_agents_and_the_script_are_checked_too(project: Project) -> None:
    project.write(machine=project.one_call(), toml=project.TOML + '[model]\nscript = "nope.yml"\n')
    assert "there is no script nope.yml" in project.flat("validate", ".").out


def test_the_graph_is_mermaid(project: Project) -> None:
    assert project.flat("graph", ".").out == GRAPH


def test_names_cannot_break_out_of_the_graph(project: Project) -> None:
    machine = project.LOOP.replace("    done:", "    'do\"]; click s0 \"x<b>':").replace(
        "to: done}", "to: 'do\"]; click s0 \"x<b>'}"
    )
    project.write(machine=machine)
    line = next(line for line in project.flat("graph", ".").out.splitlines() if "click" in line)
    assert line == '    s1(["do#34;]#59; click s0 #34;x#60;b#62;"])'


def test_an_empty_store_has_no_runs(project: Project) -> None:
    result = project.flat("runs", "list")
    assert (result.code, result.out) == (0, "")
    assert "nothing has run yet" in result.err
    assert not Path("flat.db").exists()
    assert json.loads(project.flat("runs", "list", "--json").out) == []


def test_runs_are_listed_newest_first_and_by_status(project: Project) -> None:
    project.flat("run", ".", "--id", "one")
    project.flat("run", ".", "--id", "two", "--max-steps", "1")
    listed = json.loads(project.flat("runs", "list", "--json").out)
    assert [e["execution_id"] for e in listed] == ["two", "one"]
    assert [e["status"] for e in listed] == ["limit", "done"]
    assert "one" not in project.flat("runs", "list", "--status", "limit").out
    assert project.flat("runs", "list", "--limit", "1").out.count("\n") == 2
    assert project.flat("runs", "list", "--status", "dnoe").code == 2


def test_a_run_is_shown_with_every_checkpoint(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    shown = project.flat("runs", "show", "x", "--steps").out
    assert "status:    done" in shown
    assert 'output:    {"n": "3"}' in shown
    assert '{"n": 2}' in shown
    data = json.loads(project.flat("runs", "show", "x", "--steps", "--json").out)
    assert data["context"]["n"] == 3
    assert data["checkpoints"][-1]["output"] == {"n": "3"}


def test_a_signal_must_be_json(project: Project) -> None:
    assert project.flat("signal", "channel", "{nope").code == 2
    assert project.flat("signal", "channel").code == 0


def test_a_scripted_command_gets_the_model_and_gives_its_exit_code(project: Project) -> None:
    (project.folder / "script.yml").write_text("replies: [hi]\n")
    code = "import os, sys; print(os.environ['OPENAI_API_KEY'], os.environ['OPENAI_BASE_URL']); sys.exit(5)"
    result = project.process("script", "script.yml", "--", sys.executable, "-c", code)
    assert result.code == 5
    assert result.out.startswith("scripted http://127.0.0.1:")
    assert "not a real model" in result.err


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["nope.yml", "--", "true"], 3),
        (["script.yml", "--", "no-such-command"], 2),
        (["script.yml"], 2),
    ],
)
def test_a_script_or_command_that_is_not_there_is_named(project: Project, args: list[str], code: int) -> None:
    (project.folder / "script.yml").write_text("replies: [hi]\n")
    result = project.process("script", *args)
    assert result.code == code
    assert "Traceback" not in result.err
