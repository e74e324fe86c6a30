"""Files that cannot be run: exit code 3, one clear message, and nothing has run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project


def refused(project: Project, *args: str) -> str:
    """The message of a run that must not begin."""
    result = project.flat("run", *args)
    assert result.code == 3, result
    assert "Traceback" not in result.err
    assert not Path("flat.db").exists() or "execution" not in project.flat("runs", "list").out
    return result.err


def test_a_file_that_is_not_there_is_named(project: Project) -> None:
    assert "nope.yml" in refused(project, "nope.yml")


def test_bad_yaml_is_shown_with_its_place(project: Project) -> None:
    project.write(machine=project.LOOP.replace("  states:", " states:"))
    assert "machine.yml:7" in refused(project, ".")


def test_an_error_goes_to_stdout_too_when_json_is_asked_for(project: Project) -> None:
    result = project.flat("run", "nope.yml", "--json")
    assert result.json_lines()[-1]["event"] == "error"
    assert result.json_lines()[-1]["exit_code"] == 3


def test_an_unknown_profile_is_named_with_its_place(project: Project) -> None:
    machine = project.one_call().replace("model: {provider: openai, name: gpt-5-mini}", "model: fsat")
    project.write(machine=machine.replace("  agents:", "  profiles: ./profiles.yml\n  agents:"))
    fast = "{model_profiles: {fast: {provider: openai, name: m}}}"
    profiles = f"spec: flatprofile\nspec_version: '4.2.1'\ndata: {fast}\n"
    (project.folder / "profiles.yml").write_text(profiles)
    told = refused(project, ".")
    assert 'did you mean "fast"?' in told


def test_a_missing_key_is_named_before_anything_runs(project: Project) -> None:
    project.write(machine=project.one_call())
    told = refused(project, ".")
    assert 'agent "helper" cannot call openai/gpt-5-mini: OPENAI_API_KEY is not set' in told
    assert "export OPENAI_API_KEY" in told


def test_live_does_not_fall_back_on_the_script(project: Project) -> None:
    project.write(machine=project.one_call(), toml=project.TOML + '[model]\nscript = "script.yml"\n')
    (project.folder / "script.yml").write_text("replies: [hi]\n")
    assert "leave out --live" in refused(project, ".", "--live")


@pytest.mark.parametrize("script", [None, "replies: [", "rulez: []"])
def test_a_script_that_cannot_be_used_is_named(project: Project, script: str | None) -> None:
    project.write(machine=project.one_call(), toml=project.TOML + '[model]\nscript = "script.yml"\n')
    if script is not None:
        (project.folder / "script.yml").write_text(script)
    assert "script.yml" in refused(project, ".")


def test_hooks_that_no_project_file_names_are_explained(project: Project) -> None:
    project.write(toml="[run]\nmachine = 'machine.yml'\n")
    told = refused(project, ".")
    assert '"counting"' in told
    assert 'in flat.toml: [hooks] counting = "hooks.py:Class"' in told


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nope.py:Counting", "nope.py"),
        ("hooks.py:Countign", 'did you mean "Counting"?'),
        ("no_such_module:Counting", "no_such_module"),
        ("broken.py:Counting", "ZeroDivisionError"),
    ],
)
def test_hooks_that_cannot_be_made_are_named(project: Project, where: str, words: str) -> None:
    (project.folder / "broken.py").write_text("1 / 0\n")
    project.write(toml=project.TOML.replace("hooks.py:Counting", where))
    assert words in refused(project, ".")


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("[run\n", "is not TOML"),
        ("[rum]\n", 'flat.toml:1:2: error[project]: unknown table "rum"'),
        ("[run]\nmachin = 'x'\n", 'did you mean "machine"?'),
        ("[run]\nmax_steps = 'x'\n", '"max_steps" in [run] is not a number'),
        ("[run]\nmax_steps = true\n", "is not a number"),
        ("[hooks]\ncounting = 'hooks.py'\n", "file.py:Class"),
        ("hooks = 3\n", '"hooks" is not a table'),
        ("[run]\nmachine = 'nope.yml'\n", "nope.yml"),
    ],
)
def test_a_project_file_with_a_mistake_is_shown_with_its_place(
    project: Project, toml: str, words: str
) -> None:
    project.write(toml=toml)
    assert words in refused(project, ".")


def test_hooks_that_nothing_is_registered_as_are_warned_of_with_their_place(project: Project) -> None:
    project.write(machine=project.LOOP.replace("hooks: counting", "hooks: [logging, {name: countng}]"))
    result = project.flat("validate", ".")
    assert result.code == 0
    assert 'nothing is registered as the hooks "countng"' in result.out
    assert 'did you mean "counting"?' in result.out
    assert "machine.yml:6:" in result.out
    assert project.flat("validate", ".", "--strict").code == 3
