"""`flat fork`, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project


@pytest.fixture
def counted(project: Project) -> Project:
    """A project with one execution, which has counted to three."""
    assert project.flat("run", ".", "--id", "x").code == 0
    return project


def test_a_fork_is_made_and_can_be_resumed(counted: Project) -> None:
    result = counted.flat("fork", "x", "--at", "2", "--set", "to:=5", "--id", "f")
    assert (result.code, result.err) == (0, "")
    assert result.out == "f: forked from x at step 2 (state count, commit 2)\nrun it with: flat resume f\n"
    assert "forked:    from x at step 2 (commit 2)" in counted.flat("runs", "show", "f").out
    assert counted.flat("resume", "f", "--quiet").out == '{\n  "n": "5"\n}\n'
    shown = json.loads(counted.flat("runs", "show", "x", "--json").out)
    assert (shown["status"], shown["output"], shown["forked_from"]) == ("done", {"n": "3"}, None)


def test_a_fork_can_be_run_at_once(counted: Project) -> None:
    result = counted.flat("fork", "x", "--at", "3", "--set", "to:=4", "--id", "f", "--run", "--plain")
    assert result.code == 0
    assert "f: forked from x at step 3" in result.out
    assert result.out.endswith('{\n  "n": "4"\n}\n')
    told = counted.flat("fork", "x", "--at", "3", "--run", "--json").json_lines()
    assert told[0]["event"] == "forked"
    assert (told[-1]["event"], told[-1]["output"]) == ("result", {"n": "3"})
    assert told[-1]["execution_id"] == told[0]["execution_id"]


def test_what_a_fork_was_made_of_is_data_when_json_is_asked_for(counted: Project) -> None:
    (told,) = counted.flat(
        "fork", "x", "--at", "seq:2", "--set", "t=1", "--set", "n=1", "--json"
    ).json_lines()
    assert told["forked_from"] == {"execution_id": "x", "step": 2, "seq": 2, "state": "count"}
    assert (told["event"], told["status"], told["waiting_on"]) == ("forked", "running", [])
    assert told["notes"] == [
        'the context had no "t" before; did you mean "to"?',
        '"n" was a number and is text now; for JSON, write n:=…',
    ]


def test_doubtful_values_are_noted(counted: Project) -> None:
    result = counted.flat("fork", "x", "--at", "2", "--set", "n=7")
    assert result.err == 'note: "n" was a number and is text now; for JSON, write n:=…\n'


def test_a_fork_of_a_waiting_run_says_that_both_wait(project: Project) -> None:
    project.write(machine=project.WAIT)
    project.flat("run", ".", "--id", "w", "-i", "task=a")
    result = project.flat("fork", "w", "--set", "task=b", "--id", "f")
    assert 'it waits for a signal on "approval/b", of which one wakes one execution' in result.out
    project.flat("signal", "approval/b", '"yes"')
    assert project.flat("resume", "f", "--quiet").out == '{\n  "answer": "yes"\n}\n'
    assert json.loads(project.flat("runs", "show", "w", "--json").out)["status"] == "waiting"


def test_a_limit_that_was_reached_needs_more_steps(project: Project) -> None:
    project.flat("run", ".", "--id", "x", "--max-steps", "1")
    result = project.flat("fork", "x", "--id", "f")
    assert result.out.endswith("run it with: flat resume f --more-steps 100\n")
    assert project.flat("resume", "f", "--more-steps", "100", "--quiet").code == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["x", "--at", "9"], 9, "has not come to step 9"),
        (["x", "--at", "-"], 2, "names no step"),
        (["x", "--set", "n"], 2, "--set 'n' is not understood"),
        (["x", "--set", "n:=[1"], 2, "is not JSON"),
        (["x", "--set", "machine=1"], 3, "cannot be set"),
        (["x", "--id", "x"], 8, "choose another id"),
        (["x", "--id", " "], 2, "--id is empty"),
        (["nobody"], 9, 'no execution "nobody"'),
        (["x", "--store", "nothing.db"], 9, "there is no store"),
        (["x", "--store", "memory:"], 2, "keeps something"),
    ],
)
def test_what_cannot_be_forked_is_refused(counted: Project, args: list[str], code: int, said: str) -> None:
    result = counted.flat("fork", *args)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
    assert len(json.loads(counted.flat("runs", "list", "--json").out)) == 1
    assert not Path("nothing.db").exists()
