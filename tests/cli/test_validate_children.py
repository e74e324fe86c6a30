"""`flat validate` looks into the child machines, too: those in the same file, and those in files of their own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.cli.conftest import Project

PARENT = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: parent
  machines: {child: sub/child.yml}
  states:
    s: {machine: child, transitions: [{to: d}]}
    d: {type: final}
"""
CHILD = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: child
  machines: {itself: child.yml, above: ../machine.yml, grandchild: grandchild.yml}
  states:
    s: {machine: grandchild, transitions: [{to: d}]}
    d: {type: final}
"""
WRONG = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: grandchild
  states:
    s: {transitions: [{to: dd, condition: context.a = 1}]}
    d: {type: final}
"""
INLINE = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: parent
  machines:
    child:
      spec: flatmachine
      spec_version: "4.2.1"
      data:
        name: child
        machines: {grandchild: sub/grandchild.yml}
        states:
          s: {machine: grandchild, transitions: [{to: TARGET}]}
          d: {type: final}
  states:
    s: {machine: child, transitions: [{to: d}]}
    d: {type: final}
"""


def family(project: Project, parent: str, grandchild: str) -> None:
    project.write(machine=parent)
    (project.folder / "sub").mkdir()
    (project.folder / "sub" / "child.yml").write_text(CHILD)
    (project.folder / "sub" / "grandchild.yml").write_text(grandchild)


def test_what_is_wrong_in_a_grandchild_is_told_at_its_place(project: Project) -> None:
    family(project, PARENT, WRONG)
    result = project.flat("validate", ".")
    assert result.code == 3
    assert 'sub/grandchild.yml:6:28: error[unknown-state]: there is no state "dd"' in result.out
    assert "sub/grandchild.yml:6:53: error[condition]" in result.out
    assert result.out.endswith(".: 2 errors\n")


def test_machines_that_call_each_other_in_a_ring_are_checked_once(project: Project) -> None:
    family(project, PARENT, WRONG.replace("to: dd, condition: context.a = 1", "to: d"))
    result = project.flat("validate", ".")
    assert (result.code, result.out) == (0, ".: ok\n")


def test_a_machine_inside_the_file_is_checked_where_it_is_written(project: Project) -> None:
    family(project, INLINE.replace("TARGET", "e"), WRONG)
    result = project.flat("validate", ".", "--json")
    (told,) = json.loads(result.out)
    (problem,) = told["problems"]
    assert (problem["code"], problem["file"], problem["line"], problem["column"]) == (
        "unknown-state", "machine.yml", 13, 55,
    )  # fmt: skip


def test_the_children_of_a_machine_inside_the_file_are_checked(project: Project) -> None:
    family(project, INLINE.replace("TARGET", "d"), WRONG)
    assert "sub/grandchild.yml:6:28: error[unknown-state]" in project.flat("validate", ".").out


def test_a_run_is_not_begun_with_a_bad_machine_inside_the_file(project: Project) -> None:
    family(project, INLINE.replace("TARGET", "e"), WRONG)
    result = project.flat("run", ".")
    assert result.code == 3
    assert "machine.yml:13:55: error[unknown-state]" in result.err


def test_what_is_let_pass_in_the_parent_is_let_pass_in_its_children(project: Project) -> None:
    family(project, PARENT, WRONG.replace(", condition: context.a = 1", ""))
    result = project.flat("validate", ".", "--compat")
    assert result.code == 0
    assert "sub/grandchild.yml:6:28: warning[unknown-state]" in result.out


def test_a_catalogue_handed_down_is_checked_once(project: Project) -> None:
    family(project, PARENT, WRONG.replace("to: dd, condition: context.a = 1", "to: d"))
    catalogue = "data: {model_profiles: {a: {name: x, temprature: 1}}, default: a}\n"
    (project.folder / "profiles.yml").write_text(catalogue)
    result = project.flat("validate", ".")
    assert result.out.count("temprature") == 2  # the message, and the line that it is about
    assert result.out.endswith(".: 1 warning\n")
