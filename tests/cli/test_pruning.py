"""`flat runs prune`, from the command line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from flat.cli.ending import UsageError
from flat.cli.pruning import age_of

if TYPE_CHECKING:
    from conftest import Project


def ids(project: Project) -> set[str]:
    return {row["execution_id"] for row in json.loads(project.flat("runs", "list", "--json").out)}


@pytest.fixture
def filled(project: Project) -> Project:
    """Three runs that are done, and one that waits."""
    for number in range(3):
        assert project.flat("run", ".", "--id", f"done{number}", "-q").code == 0
    project.write(machine=project.WAIT)
    assert project.flat("run", ".", "-i", "task=a", "--id", "parked", "-q").code == 4
    return project


def test_a_dry_run_shows_and_changes_nothing(filled: Project) -> None:
    told = filled.flat("runs", "prune", "--keep", "1", "--dry-run")
    assert told.code == 0
    lines = told.out.splitlines()
    assert lines[0] == (
        "would remove 2 executions in 2 families (2 done); kept: 1 that run or wait, 1 not asked for"
    )
    assert [line.split()[0] for line in lines[2:4]] == ["done1", "done0"]
    assert lines[-1] == "then blobs and programs that nothing refers to any more"
    told = filled.flat("runs", "prune", "--older-than", "0s", "--dry-run", "--json")
    data = json.loads(told.out)
    assert (data["executions"], data["kept"]) == (3, {"living": 1, "others": 0})
    assert len(ids(filled)) == 4


def test_it_removes_what_was_shown(filled: Project) -> None:
    told = filled.flat("runs", "prune", "--keep", "1", "--yes")
    assert told.out.splitlines() == [
        "removed 2 executions; kept: 1 that run or wait, 1 not asked for",
        "removed 0 blobs and 0 programs that nothing refers to",
    ]
    assert ids(filled) == {"done2", "parked"}
    told = filled.flat("runs", "prune", "--status", "done", "-y", "--json")
    data = json.loads(told.out)
    # The program was stored a moment ago; somebody may count on it.
    assert (data["executions"], data["collected"]["programs"]) == (1, 0)
    assert ids(filled) == {"parked"}
    assert (
        filled.flat("runs", "prune", "--leftovers").out
        == "removed 0 blobs and 1 program that nothing refers to\n"
    )
    assert filled.flat("signal", "approval/a", '{"value": 1}', "--trigger", "none").code == 0
    assert filled.flat("resume", "parked", "-q").code == 0


def test_nothing_is_removed_that_is_young(filled: Project) -> None:
    told = filled.flat("runs", "prune", "--older-than", "30d", "--dry-run")
    assert told.out.startswith("nothing to remove in sqlite:///flat.db; kept: ")
    filled.flat("runs", "prune", "--older-than", "30d", "--yes")
    assert len(ids(filled)) == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "say what to remove"),
        (("--older-than", "30"), '"30" is no age'),
        (("--older-than", "-1d"), '"-1d" is no age'),
        (("--status", "waiting"), "what is waiting is never pruned"),
        (("--status", "done,finished"), 'there is no status "finished"'),
        (("--leftovers", "--keep", "3"), "give it alone"),
    ],
)
def test_what_cannot_be_meant_is_refused(args: tuple[str, ...], message: str, filled: Project) -> None:
    refused = filled.flat("runs", "prune", *args, *(() if "--leftovers" in args else ("--yes",)))
    assert (refused.code, refused.out) == (2, "")
    assert message in refused.err
    assert len(ids(filled)) == 4


def test_without_a_terminal_it_asks_for_a_yes(filled: Project) -> None:
    refused = filled.flat("runs", "prune", "--older-than", "0s")
    assert refused.code == 2
    assert "--yes" in refused.err
    assert '"3x" is no age' in filled.flat("runs", "prune", "--older-than", "3x").err
    assert len(ids(filled)) == 4


def test_ages_are_read() -> None:
    assert [age_of(text) for text in ("90s", "1.5m", "2h", "30d", "4w")] == [
        90,
        90,
        7200,
        2_592_000,
        2_419_200,
    ]
    with pytest.raises(UsageError):
        age_of("1e9d")
