"""`flat.toml`: where it is looked for, and what it decides."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Project


@pytest.mark.parametrize("given", [".", "flat.toml", "machine.yml"])
def test_a_folder_a_project_file_and_a_machine_file_mean_the_same(project: Project, given: str) -> None:
    project.write(toml=project.TOML.replace("[hooks]", "max_steps = 2\n\n[hooks]"))
    assert project.flat("run", given).code == 6


def test_inputs_of_the_project_file_are_defaults(project: Project) -> None:
    project.write(
        machine=project.LOOP.replace("to: 3}", "to: 1, name: '{{ input.name }}/{{ input.other }}'}").replace(
            '{n: "{{ context.n }}"}', "{name: '{{ context.name }}'}"
        ),
        toml=project.TOML.replace("[hooks]", "input = {name = 'a', other = 'b'}\n\n[hooks]"),
    )
    assert json.loads(project.flat("run", ".", "-q", "-i", "name=c").out) == {"name": "c/b"}


def test_limits_of_the_project_file_are_defaults(project: Project) -> None:
    project.write(toml=project.TOML.replace("[hooks]", "max_steps = 2\n\n[hooks]"))
    assert project.flat("run", ".").code == 6
    assert project.flat("run", ".", "--max-steps", "9").code == 0


def test_a_project_file_above_a_config_folder_is_found(project: Project) -> None:
    (project.folder / "config").mkdir()
    shutil.move("machine.yml", "config/machine.yml")
    project.write(toml=project.TOML.replace("machine.yml", "config/machine.yml"))
    assert project.flat("run", ".").code == 0
    assert project.flat("run", "config/machine.yml").code == 0


def test_what_it_says_about_one_machine_does_not_hold_for_another(project: Project) -> None:
    shutil.copy("machine.yml", "other.yml")
    project.write(toml=project.TOML.replace("[hooks]", "max_steps = 2\n\n[hooks]"))
    assert project.flat("run", "other.yml").code == 0


def test_hooks_may_be_a_module_and_import_what_stands_beside_them(project: Project) -> None:
    (project.folder / "mine.py").write_text("from mine_base import Counting\n")
    (project.folder / "mine_base.py").write_text(project.HOOKS)
    project.write(toml=project.TOML.replace("hooks.py:Counting", "mine:Counting"))
    assert project.flat("run", ".").code == 0


def test_validating_and_drawing_import_no_hooks(project: Project) -> None:
    (project.folder / "hooks.py").write_text("raise SystemExit(99)\n")
    assert project.flat("validate", ".").code == 0
    assert project.flat("graph", ".").code == 0


def test_a_store_does_not_choose_code_outside_the_working_directory(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.flat("run", ".", "--id", "x", "--max-steps", "1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    store = str(project.folder / "flat.db")
    refused = project.flat("resume", "x", "--store", store, "--more-steps", "9")
    assert refused.code == 2
    assert "name its machine" in refused.err
    named = project.flat("resume", "x", str(project.folder), "--store", store, "--more-steps", "9")
    assert named.code == 0


def test_a_changed_machine_does_not_change_a_run_under_way(project: Project) -> None:
    project.flat("run", ".", "--id", "x", "--max-steps", "1")
    project.write(
        machine=project.LOOP.replace("to: 3}", "to: 3, extra: 1}").replace('{n: "', '{new: 1, n: "')
    )
    refused = project.flat("resume", "x", ".", "--more-steps", "9")
    assert refused.code == 3
    assert "--adopt" in refused.err
    result = project.flat("resume", "x", "--more-steps", "9")
    assert result.code == 0
    assert "machine.yml has changed; going on with the machine as it was" in result.out
    assert result.out.endswith('{\n  "n": "3"\n}\n')


def test_adopting_goes_on_with_the_changed_machine(project: Project) -> None:
    project.flat("run", ".", "--id", "x", "--max-steps", "1")
    project.write(machine=project.LOOP.replace('{n: "', '{new: 1, n: "'))
    assert json.loads(project.flat("resume", "x", "--adopt", "--more-steps", "9", "-q").out) == {
        "new": 1,
        "n": "3",
    }


def test_an_input_may_be_the_text_of_a_file(project: Project) -> None:
    project.write(
        machine=project.one_action("count", output="{log: '{{ context.log }}'}").replace(
            'said: ""', 'log: "{{ input.log }}"'
        )
    )
    (project.folder / "log.txt").write_text("day one", encoding="utf-8")
    project.write(toml='[run]\ninput_files = {log = "log.txt"}\n\n[hooks]\ncounting = "hooks.py:Counting"\n')
    assert json.loads(project.flat("run", ".", "-q").out) == {"log": "day one"}
    assert json.loads(project.flat("run", ".", "-q", "-i", "log=mine").out) == {"log": "mine"}
    (project.folder / "log.txt").unlink()
    refused = project.flat("run", ".")
    assert refused.code == 3
    assert "run.input_files.log: cannot read log.txt" in refused.err


VERIFIED = "      in_doubt: verify:written\n"
LEDGER = """\
import pathlib

pathlib.Path("imported").touch()

async def written(key, effect):
    pathlib.Path("asked").write_text(f"{key} {effect.action}")
    return {"n": 42} if pathlib.Path("ledger").exists() else None
"""


@pytest.fixture
def died(project: Project) -> Project:
    """A project whose run died in an action that only a verifier can tell about."""
    project.write(
        machine=project.one_action("die_once", extra=VERIFIED),
        toml=project.TOML + '\n[verifiers]\nwritten = "ledger.py:written"\n',
    )
    (project.folder / "ledger.py").write_text(LEDGER)
    assert project.process("run", ".", "--id", "x", "-q").code == 9
    assert not Path("imported").exists()
    return project


def test_a_verifier_of_the_project_file_is_asked_what_became_of_an_effect(died: Project) -> None:
    result = died.flat("resume", "x", "-q")
    assert (result.code, json.loads(result.out)) == (0, {"n": "42"})
    assert Path("asked").read_text() == "x/0/1/action die_once"


def test_a_worker_asks_the_verifier_too(
    died: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert died.flat("worker", "--drain").code == 0
    assert '{"n": "42"}' in died.flat("runs", "show", "x").out


def test_a_verifier_that_nobody_registered_is_named_with_its_table(died: Project) -> None:
    died.write(toml=died.TOML)
    result = died.flat("resume", "x", "-q")
    assert result.code == 3
    assert (
        'help: on the command line, name it in flat.toml: [verifiers] written = "file.py:function"'
        in result.err
    )
    warned = died.flat("validate", ".")
    assert warned.code == 0
    assert 'nothing is registered as the verifier "written"' in warned.out
    assert "machine.yml:11:" in warned.out


def test_a_verifier_that_cannot_be_imported_is_said(died: Project) -> None:
    (died.folder / "ledger.py").write_text("1/0\n")
    result = died.flat("resume", "x", "-q")
    assert result.code == 3
    assert 'the verifier "written" (ledger.py:written) cannot be imported: ZeroDivisionError' in result.err
    died.write(toml=died.TOML + '\n[verifiers]\nwritten = "ledger.py"\n')
    refused = died.flat("resume", "x", "-q")
    assert '"written" in [verifiers] does not say where it is' in refused.err
    assert 'write "file.py:function"' in refused.err
