"""`--get`: one field of an output, and nothing else, for scripts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from flat.cli.field import FieldNotFound, field_of
from tests.cli.tree_projects import write_charter

if TYPE_CHECKING:
    from tests.cli.conftest import Project

OUTPUT = "{n: '{{ context.n }}', said: 'two\\nlines \\u001b[1m', report: {items: [{name: Zoë}, {name: Bo}]}}"


@pytest.fixture
def shouting(project: Project) -> Project:
    """A project whose hooks print to stdout, with much in its output."""
    project.write(
        machine=project.one_action("shout", output=OUTPUT.replace("'two", '"two').replace("m'", 'm"'))
    )
    return project


@pytest.mark.parametrize(
    ("field", "printed"),
    [
        ("said", "two\nlines \x1b[1m\n"),
        ("n", "0\n"),
        ("report.items.1.name", "Bo\n"),
        ("report", '{"items": [{"name": "Zoë"}, {"name": "Bo"}]}\n'),
        ("report.items.0", '{"name": "Zoë"}\n'),
    ],
)
def test_text_comes_as_it_is_and_the_rest_as_json(shouting: Project, field: str, printed: str) -> None:
    result = shouting.flat("run", ".", "--id", "x", "--get", field)
    assert (result.code, result.out) == (0, printed)
    assert "printed by a hook" in result.err
    assert shouting.flat("runs", "show", "x", "--get", field).out == printed


def test_a_field_that_is_not_there_ends_with_9_and_says_what_is(shouting: Project) -> None:
    for command in (("run", ".", "--id", "x"), ("runs", "show", "x")):
        result = shouting.flat(*command, "--get", "report.item")
        assert (result.code, result.out) == (9, "")
        assert 'error: --get report.item: "report" of the output has no "item"; it has: items\n' in result.err
    assert shouting.flat("runs", "show", "x").code == 0


@pytest.mark.parametrize(
    ("output", "path", "words"),
    [
        ({"a": 1}, "b.c", 'the output has no "b"; it has: a'),
        ({}, "a", "it is empty"),
        ({"a": [1, 2]}, "a.2", 'has no "2"; it is a list of 2, counted from 0'),
        ({"a": "text"}, "a.b", 'it is "text"'),
        (None, "a", "it is null"),
    ],
)
def test_where_a_path_stops_is_said(output: Any, path: str, words: str) -> None:
    with pytest.raises(FieldNotFound, match=words):
        field_of(output, path)


def test_a_key_may_have_dots_in_it() -> None:
    assert field_of({"a": {"b.c": 1}}, "a.b.c") == 1


def test_a_run_that_is_not_done_prints_nothing_and_has_its_own_exit_code(project: Project) -> None:
    project.write(machine=project.WAIT)
    result = project.flat("run", ".", "-i", "task=1", "--id", "x", "--get", "answer")
    assert (result.code, result.out) == (4, "")
    result = project.flat("runs", "show", "x", "--get", "answer")
    assert (result.code, result.out) == (9, "")
    assert "execution x is waiting and has no output" in result.err
    project.flat("signal", "approval/1", '{"value": "yes"}')
    assert project.flat("resume", "x", "--get", "answer").out == "yes\n"


def test_a_turn_of_a_tree_has_its_answer_under_content(project: Project) -> None:
    write_charter(project.folder)
    result = project.flat("run", "desk.py:charter", "-m", "hi", "--get", "content")
    assert (result.code, result.out) == (0, "Turn 1.\n")


@pytest.mark.parametrize("command", [["run", "."], ["runs", "show", "x"], ["resume", "x"]])
def test_one_field_and_json_exclude_each_other(project: Project, command: list[str]) -> None:
    project.flat("run", ".", "--id", "x", "--max-steps", "1")
    result = project.flat(*command, "--get", "n", "--json")
    assert result.code == 2
    assert "--get and --json exclude each other" in result.err
