"""`flat schema`, as it is typed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from flat.spec.schema import KINDS, render

if TYPE_CHECKING:
    from tests.cli.conftest import Project


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_is_printed(project: Project, kind: str) -> None:
    result = project.flat("schema", kind)
    assert (result.code, result.out) == (0, render(kind))


def test_without_a_kind_it_is_the_schema_of_any_file(project: Project) -> None:
    assert project.flat("schema").out == render("flat")


def test_a_schema_for_a_file_has_its_names_and_the_projects_hooks(project: Project) -> None:
    result = project.flat("schema", "--for", "machine.yml", "-o", "out/machine.json")
    assert (result.code, result.out, result.err) == (0, "", "wrote out/machine.json\n")
    definitions = json.loads((project.folder / "out/machine.json").read_text())["definitions"]
    assert definitions["ThisTransition"]["properties"]["to"]["enum"] == ["count", "done"]
    (offered,) = definitions["ThisHooksCall"]["properties"]["name"]["anyOf"][0].values()
    assert {"counting", "logging"} <= set(offered)


def test_a_schema_for_a_file_is_made_while_its_project_is_broken(project: Project) -> None:
    project.write(toml="[hooks")
    project.write(machine=project.LOOP.replace("to: done", "to: nowhere"))
    assert project.flat("schema", "machine", "--for", "machine.yml").code == 0


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["machin"], 2, 'did you mean "machine"?'),
        (["agent", "--for", "machine.yml"], 2, "machine.yml is of the kind machine, not agent"),
        (["--for", "nope.yml"], 3, "cannot read nope.yml"),
        (["--for", "flat.toml"], 3, ""),
        (["-o", "machine.yml/x.json"], 2, "cannot write machine.yml/x.json"),
    ],
)
def test_what_has_no_schema_is_refused(project: Project, args: list[str], code: int, said: str) -> None:
    result = project.flat("schema", *args)
    assert (result.code, result.out) == (code, "")
    assert said in result.err
