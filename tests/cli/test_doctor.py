"""`flat doctor`, from the command line: what it says, and how it ends."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flat.agents.local_weights import weights_path
from flat.cli import doctor

if TYPE_CHECKING:
    from conftest import Project


def sql(project: Project, query: str) -> None:
    with closing(sqlite3.connect(project.folder / "flat.db")) as connection, connection:
        assert connection.execute(query).rowcount >= 1


def codes(project: Project, *args: str) -> tuple[int, list[tuple[str, str | None]]]:
    told = project.flat("doctor", "--json", *args)
    data = json.loads(told.out)
    assert data["exit_code"] == told.code
    assert data["version"] == 1
    return told.code, [(finding["code"], finding["execution_id"]) for finding in data["findings"]]


def test_where_all_is_well_it_says_so(project: Project) -> None:
    assert "nothing has run yet" in project.flat("doctor").out
    assert not (project.folder / "flat.db").exists()
    project.flat("run", ".", "-q")
    told = project.flat("doctor")
    assert told.code == 0
    lines = told.out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == ["flat", "python", "litellm", "extras", "store"]
    assert lines[5].startswith("looked at 1 execution, ")
    assert lines[5].endswith("nothing is wrong")
    assert codes(project) == (0, [])


def test_damage_ends_with_one_and_says_what_to_do(project: Project) -> None:
    project.flat("run", ".", "--id", "e", "-q")
    sql(project, "DELETE FROM bodies WHERE id & 4294967295 = 1")
    told = project.flat("doctor")
    assert told.code == 1
    assert "error[lost-body]: e lacks body 1 of 0 to " in told.out
    assert "--replace" in told.out
    assert codes(project, "--quick") == (0, [])


def test_a_run_in_doubt_ends_with_eleven(project: Project) -> None:
    # An action in flight that is not to be repeated on its own.
    project.write(machine=project.one_action("die_once", extra="      in_doubt: ask\n"))
    project.process("run", ".", "--id", "e", "-q")
    assert codes(project) == (0, [("stranded", "e")])
    assert project.flat("resume", "e", "-q").code == 11
    assert codes(project) == (11, [("in-doubt", "e")])
    assert project.flat("resume", "e", "--retry-in-doubt", "-q").code == 0
    assert codes(project) == (0, [])


def test_a_store_that_cannot_be_opened_is_a_finding(project: Project) -> None:
    (project.folder / "flat.db").write_bytes(b"no database at all" * 100)
    code, found = codes(project)
    assert (code, found) == (1, [("store", None)])
    assert "is not a SQLite database" in project.flat("doctor").out


def test_a_wrong_project_file_is_a_finding(project: Project) -> None:
    project.write(toml="[run]\nmachin = 'x'\n")
    assert codes(project) == (1, [("project", None)])
    project.write(
        toml="[run]\nmachine = 'machine.yml'\n[hooks]\na = 'gone.py:A'\n[verifiers]\nb = 'gone.py:b'\n"
        "[model]\nscript = 'gone.yml'\n"
    )
    assert codes(project) == (1, [("project", None)] * 3)


def test_half_of_the_weights_is_a_finding(project: Project) -> None:
    path = weights_path()
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    assert codes(project) == (0, [("weights", None)])


def test_stolen_releases_of_litellm_are_found(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    info = site / "litellm-1.82.8.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: litellm\nVersion: 1.82.8\n")
    (site / "litellm_init.pth").write_text("")
    monkeypatch.syspath_prepend(site)
    found = list(doctor.environment_findings(project.folder))
    assert [f.code for f in found] == ["litellm-stolen", "litellm-pth"]
    assert all("change every key" in f.do for f in found)


def test_many_findings_of_a_kind_are_counted(project: Project) -> None:
    project.write(machine=project.WAIT)
    for number in range(22):
        project.flat("run", ".", "-i", "task=a", "--id", f"e{number}", "-q")
    sql(project, "UPDATE executions SET channels = ''")
    told = project.flat("doctor")
    assert told.code == 1
    assert told.out.count("error[unwakeable]") == 20
    assert "and 2 more of [unwakeable]" in told.err
    assert told.out.splitlines()[-1].endswith("22 errors")
