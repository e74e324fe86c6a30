"""`flat runs export` and `flat runs import`, from the command line."""

from __future__ import annotations

import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

if TYPE_CHECKING:
    from conftest import Project


def parked(project: Project, task: str = "a", id_: str = "one") -> None:
    project.write(machine=project.WAIT)
    assert project.flat("run", ".", "-i", f"task={task}", "--id", id_, "-q").code == 4


def listed(project: Project, store: str) -> dict[str, str]:
    rows = json.loads(project.flat("runs", "list", "--json", "--store", store).out)
    return {row["execution_id"]: row["status"] for row in rows}


def test_a_parked_run_moves_to_another_store_and_ends_there(project: Project) -> None:
    parked(project)
    assert project.flat("signal", "approval/a", '{"value": "yes"}', "--trigger", "none").code == 0
    told = project.flat("runs", "export", "one", "-o", "one.jsonl")
    assert told.out.startswith(
        "exported 1 execution, 2 commits, 1 program, 1 signal that waits to one.jsonl ("
    )
    told = project.flat("runs", "import", "one.jsonl", "--store", "file:other")
    assert told.out == "imported 1 execution, 2 commits, 1 signal that waits into file:other\n"
    ended = project.flat("resume", "one", "--store", "file:other", "-q")
    assert (ended.code, json.loads(ended.out)) == (0, {"answer": "yes"})
    assert listed(project, "flat.db") == {"one": "waiting"}


def test_what_goes_out_is_chosen_by_id_status_or_all(project: Project) -> None:
    project.flat("run", ".", "--id", "counted", "-q")
    parked(project)
    parked(project, "b", "two")
    for choice, there in (
        (["one", "counted"], {"one", "counted"}),
        (["--status", "done"], {"counted"}),
        (["--status", "done,waiting"], {"one", "two", "counted"}),
        (["--all"], {"one", "two", "counted"}),
        (["co"], {"counted"}),
    ):
        assert project.flat("runs", "export", *choice, "-o", "some.jsonl").code == 0
        assert project.flat("runs", "import", "some.jsonl", "--store", "some.db").code == 0
        assert listed(project, "some.db").keys() == there
        for file in project.folder.glob("some.db*"):
            file.unlink()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "say which executions"),
        (("one", "--all"), "say which executions"),
        (("--status", "finished"), 'there is no status "finished"'),
    ],
)
def test_a_choice_that_is_none_is_refused(args: tuple[str, ...], message: str, project: Project) -> None:
    parked(project)
    refused = project.flat("runs", "export", *args)
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err


def test_it_goes_through_a_pipe(project: Project) -> None:
    parked(project)
    exported = project.process("runs", "export", "--all")
    assert exported.code == 0
    assert exported.err.startswith("exported 1 execution")
    command = [sys.executable, "-m", "flat.cli", "runs", "import", "-", "--store", "piped.db"]
    imported = subprocess.run(
        command, input=exported.out, capture_output=True, text=True, env=project.environ, check=False
    )
    assert (imported.returncode, imported.stderr) == (0, "")
    assert listed(project, "piped.db") == {"one": "waiting"}


def test_taken_ids_are_refused_skipped_or_replaced(project: Project) -> None:
    parked(project)
    project.flat("runs", "export", "--all", "-o", "one.jsonl")
    refused = project.flat("runs", "import", "one.jsonl")
    assert refused.code == 8
    assert "one is in the store already" in refused.err
    skipped = project.flat("runs", "import", "one.jsonl", "--skip-existing")
    assert skipped.out.endswith("left out 1 execution that the store has already\n")
    replaced = project.flat("runs", "import", "one.jsonl", "--replace")
    assert replaced.out.endswith("replaced 1 execution\n")
    assert project.flat("runs", "import", "one.jsonl", "--replace", "--skip-existing").code == 2


def test_a_damaged_file_is_refused_by_its_line(project: Project) -> None:
    parked(project)
    project.flat("runs", "export", "--all", "-o", "one.jsonl")
    text = (project.folder / "one.jsonl").read_text()
    (project.folder / "altered.jsonl").write_text(text.replace('"waiting"', '"running"', 1))
    (project.folder / "short.jsonl").write_text(text[: len(text) // 2])
    (project.folder / "later.jsonl").write_text(text.replace('"version":1', '"version":7', 1))
    for name, said in (
        ("altered", "line 3: the checksum"),
        ("short", "cut off"),
        ("later", "line 1: the file has version 7"),
    ):
        refused = project.flat("runs", "import", f"{name}.jsonl", "--store", "new.db")
        assert refused.code == 3, refused.err
        assert said in refused.err
    assert not list(project.folder.glob("new.db*"))
    assert "cannot be read" in project.flat("runs", "import", "nowhere.jsonl").err


def test_an_export_that_fails_leaves_the_old_file(project: Project) -> None:
    parked(project)
    file = project.folder / "one.jsonl"
    file.write_text("old")
    assert project.flat("runs", "export", "nobody", "-o", "one.jsonl").code == 9
    assert file.read_text() == "old"
    assert [path.name for path in project.folder.glob(".one*")] == []
    assert project.flat("runs", "export", "one", "-o", "nowhere/one.jsonl").code == 1
    assert project.flat("runs", "export", "one", "-o", "one.jsonl").code == 0
    # It holds what runs were told: nobody else's business.
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_json_tells_the_figures(project: Project) -> None:
    parked(project)
    told = project.flat("runs", "export", "--all", "-o", "one.jsonl", "--json")
    assert json.loads(told.out)["executions"] == 1
    told = project.flat("runs", "import", "one.jsonl", "--store", "new.db", "--json")
    assert json.loads(told.out) == {
        "executions": 1, "commits": 2, "signals": 0, "dead": 0, "replaced": [], "skipped": [], "missing": [],
    }  # fmt: skip


# -- from flatmachines -----------------------------------------------------------------------------------


def layouts() -> Any:
    path = Path(__file__).parents[1] / "runtime" / "flatmachines_layouts.py"
    spec = importlib.util.spec_from_file_location("flatmachines_layouts", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_executions_of_flatmachines_come_over(project: Project) -> None:
    made = layouts()
    place = made.Files(project.folder)
    place.save(made.snapshot("half", 1, "execute", "count", context={"n": 1, "to": 3}))
    place.save(made.snapshot("over", 4, "machine_end", "end", output={"n": 3}))
    place.save(made.snapshot("lost", 1, "execute", "nowhere"))
    told = project.flat("runs", "import", "--from-flatmachines", ".checkpoints", "--machine", ".")
    assert told.code == 1
    assert told.out.splitlines() == [
        "imported 2 executions into sqlite:///flat.db: 1 over, 0 parked, 1 to resume",
        "go on with: flat resume half",
    ]
    assert 'not carried over: lost: it stands in state "nowhere"' in told.err
    ended = project.flat("resume", "half", "-q")
    assert (ended.code, json.loads(ended.out)) == (0, {"n": "3"})
    assert "done" in project.flat("runs", "show", "over").out


def test_its_sqlite_file_comes_over_with_the_configs_in_it(project: Project) -> None:
    made = layouts()
    place = made.Tables(project.folder)
    config = yaml.safe_load(project.WAIT)
    place.config("c" * 64, yaml.safe_dump(config))
    place.save(made.snapshot(
        "parked", 2, "waiting", "ask", context={"task": "x"}, waiting_channel="approval/x",
        machine_name="approval", config_hash="c" * 64,
    ))  # fmt: skip
    told = project.flat("runs", "import", "--from-flatmachines", "flatmachines.sqlite", "--json")
    assert told.code == 0
    assert json.loads(told.out)["carried"]["parked"] == ["parked"]
    project.flat("signal", "approval/x", '{"value": 1}', "--trigger", "none")
    project.write(machine=project.WAIT)
    assert project.flat("resume", "parked", ".", "--adopt", "-q").code == 0


def test_something_else_is_not_imported(project: Project) -> None:
    refused = project.flat("runs", "import", "--from-flatmachines", "hooks.py")
    assert refused.code == 2
    assert "no SQLite file" in refused.err
    assert not list(project.folder.glob("flat.db*"))
    assert project.flat("runs", "import").code == 2
    assert project.flat("runs", "import", "a", "--from-flatmachines", ".").code == 2
