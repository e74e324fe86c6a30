"""Looking without running: `validate`, `graph`, `runs`, and `script`."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from flat import Runtime
from flat.backends.protocols import Birth
from flat.cli.tables import table, width_of

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


@pytest.mark.parametrize(
    ("asked", "listed"),
    [
        (["--status", "done,limit"], ["two", "one"]),
        (["--status", "limit", "--status", "waiting, interrupted"], ["three", "two"]),
        (["--status", "waiting,ready"], ["three"]),
        (["--status", "done,limit,waiting", "--limit", "2"], ["three", "two"]),
        (["--status", "failed,cancelled"], []),
    ],
)
def test_runs_of_several_statuses_are_listed_together(
    project: Project, asked: list[str], listed: list[str]
) -> None:
    project.flat("run", ".", "--id", "one")
    project.flat("run", ".", "--id", "two", "--max-steps", "1")
    project.write(machine=project.WAIT)
    project.flat("run", ".", "--id", "three", "-i", "task=1")
    found = json.loads(project.flat("runs", "list", *asked, "--json").out)
    assert [e["execution_id"] for e in found] == listed


def test_statuses_that_are_wrong_empty_or_of_nobody_are_said(project: Project) -> None:
    project.flat("run", ".")
    assert (
        'no status "dnoe"; did you mean "done"' in project.flat("runs", "list", "--status", "limit,dnoe").err
    )
    assert project.flat("runs", "list", "--status", "").code == 2
    assert "no execution is failed or limit" in project.flat("runs", "list", "--status", "failed,limit").err


def test_a_run_is_shown_with_every_checkpoint(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    shown = project.flat("runs", "show", "x", "--steps").out
    assert "status:    done" in shown
    assert 'output:    {"n": "3"}' in shown
    assert '{"n": 2}' in shown
    data = json.loads(project.flat("runs", "show", "x", "--steps", "--json").out)
    assert data["context"]["n"] == 3
    assert data["checkpoints"][-1]["output"] == {"n": "3"}


def test_runs_are_listed_by_machine(project: Project) -> None:
    project.flat("run", ".", "--id", "one")
    project.write(machine=project.LOOP.replace("name: counter", "name: other"))
    project.flat("run", ".", "--id", "two")
    listed = json.loads(project.flat("runs", "list", "--name", "counter", "--limit", "1", "--json").out)
    assert [e["execution_id"] for e in listed] == ["one"]
    told = project.flat("runs", "list", "--name", "nobody")
    assert (told.code, told.out) == (0, "")
    assert 'no execution of "nobody"' in told.err


def test_a_step_is_shown_as_it_was_when_it_began(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    shown = project.flat("runs", "show", "x", "--at", "3").out
    assert "shown:     step 3 (state count, commit 3) of commits 0 to 4" in shown
    assert 'context:   {"n": 2, "to": 3}' in shown
    assert "stands at: count/action" in shown
    begun = json.loads(project.flat("runs", "show", "x", "--at", "seq:0", "--json").out)
    assert (begun["seq"], begun["steps"], begun["context"]) == (0, 0, {"n": 0, "to": 3})
    assert (
        "the beginning of step 1 (state count, commit 0)"
        in project.flat("runs", "show", "x", "--at", "0").out
    )


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["--at", "nine"], 2, "names no step"),
        (["--at", "seq:-1"], 2, "names no step"),
        (["--at", "9"], 9, "has not come to step 9; its last one is 4"),
        (["--at", "seq:9"], 9, "its commits are 0 to 4"),
        (["--diff", "1", "x"], 2, "names no step"),
        (["--at", "1", "--cost"], 2, "exclude each other"),
    ],
)
def test_a_moment_that_is_not_there_is_refused(
    project: Project, args: list[str], code: int, said: str
) -> None:
    project.flat("run", ".", "--id", "x")
    result = project.flat("runs", "show", "x", *args)
    assert (result.code, result.out) == (code, "")
    assert said in result.err


def test_two_steps_are_compared(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    assert project.flat("runs", "show", "x", "--diff", "1", "4").out == (
        "x from step 1 (state count, commit 1) to step 4 (state done, commit 4)\n"
        "  status   running → done\n  cursor   count/action → done/finish\n~ context.n: 0 → 3\n"
    )
    data = json.loads(project.flat("runs", "show", "x", "--diff", "1", "2", "--json").out)
    assert data["context"] == [{"path": ["n"], "kind": "changed", "before": 0, "after": 1}]
    assert (data["status"], data["cursors"]) == (None, [])
    assert "nothing is different" in project.flat("runs", "show", "x", "--diff", "2", "seq:2").out


def test_costs_are_shown_by_state_and_agent(project: Project) -> None:
    (project.folder / "script.yml").write_text("replies: [hi]\n")
    project.write(machine=project.one_call(), toml=project.TOML + '[model]\nscript = "script.yml"\n')
    assert project.process("run", ".", "--id", "x").code == 0
    lines = project.flat("runs", "show", "x", "--cost").out.splitlines()
    assert lines[1].split()[:3] == ["ask", "helper", "1"]
    assert lines[2].startswith("this execution")
    data = json.loads(project.flat("runs", "show", "x", "--cost", "--json").out)
    assert (data["own"], data["children"]) == (data["family"], [])
    assert data["shares"][0]["agent"] == "helper"
    project.write(machine=project.LOOP)
    project.flat("run", ".", "--id", "free")
    assert project.flat("runs", "show", "free", "--cost").out.splitlines()[1].split()[-2:] == ["0", "$0"]


def test_a_waiting_run_says_how_to_wake_it(project: Project) -> None:
    project.write(machine=project.WAIT)
    project.flat("run", ".", "--id", "w", "-i", "task=it's", "--store", "my.db")
    shown = project.flat("runs", "show", "w", "--store", "my.db").out
    assert "waits on:  approval/it's\n" in shown
    assert """signal:    flat signal 'approval/it'"'"'s' JSON --store my.db\n""" in shown
    assert "then:      flat resume w --store my.db\n" in shown
    data = json.loads(project.flat("runs", "show", "w", "--store", "my.db", "--json").out)
    assert data["next"] == [
        """flat signal 'approval/it'"'"'s' JSON --store my.db""",
        "flat resume w --store my.db",
    ]


def test_a_run_whose_process_died_is_interrupted_at_once(project: Project) -> None:
    project.write(machine=project.one_action("die_once"))
    assert project.process("run", ".", "--id", "d").code == 9
    shown = project.flat("runs", "show", "d").out
    assert "status:    interrupted\n" in shown
    assert "continue:  flat resume d\n" in shown
    (listed,) = json.loads(project.flat("runs", "list", "--status", "interrupted", "--json").out)
    assert (listed["execution_id"], listed["status"]) == ("d", "interrupted")
    assert json.loads(project.flat("runs", "list", "--status", "running", "--json").out) == []


def family(store: str) -> None:
    """A parent, two children, and a grandchild of the first."""

    async def go() -> None:
        async with Runtime(f"sqlite:///{store}") as runtime:
            (old,) = await runtime.list()
            (_, _, body), *_ = await runtime.opened().bodies(old.execution_id)
            for name, parent in (("kid-a", "top"), ("kid-b", "top"), ("grandkid", "kid-a"), ("top", None)):
                columns = replace(
                    old, execution_id=name, parent=parent, name="made\x1b[31m", seq=0, owner=None
                )
                assert await runtime.opened().create(Birth(execution=columns, body=body))

    anyio.run(go)


def test_a_family_is_shown_as_a_tree(project: Project) -> None:
    project.flat("run", ".", "--id", "x")
    family("flat.db")
    tree = [
        "family:", "top             made  done", "├─ kid-a        made  done  ← this one",
        "│  └─ grandkid  made  done", "└─ kid-b        made  done",
    ]  # fmt: skip
    assert project.flat("runs", "show", "kid-a").out.splitlines()[-5:] == tree
    assert "family:" not in project.flat("runs", "show", "x").out
    data = json.loads(project.flat("runs", "show", "kid-b", "--json").out)["family"]
    assert [c["execution_id"] for c in data["children"]] == ["kid-a", "kid-b"]
    rows = project.flat("runs", "show", "top", "--cost").out.splitlines()
    assert [row.split()[0] for row in rows] == ["state", "this", "kid-a", "grandkid", "kid-b", "with"]


def test_a_narrow_terminal_loses_columns_before_it_loses_ids(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [("id", "machine", "started"), ("an-execution", "名前" * 10, "2026-01-01"), ("b", "short", "")]
    assert table(rows, None)[0] == f"id            machine{' ' * 35}started"
    assert table(rows, 40, spare=(2,)) == [
        "id            machine", f"an-execution  {'名前' * 6}…", "b             short",
    ]  # fmt: skip
    assert all(width_of(line) <= 12 for line in table(rows, 12))
    assert table([("a", "empty"), ("x", "")], None) == ["a", "x"]
    project.flat("run", ".", "--id", "x" * 60)
    monkeypatch.setattr("flat.cli.runs.room", lambda: 30)
    lines = project.flat("runs", "list").out.splitlines()
    assert [len(line) for line in lines] == [len(line[:30]) for line in lines]
    assert lines[0].split() == ["id", "status"]


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
