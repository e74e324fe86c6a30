"""Where a machine's file says that its executions are kept, when nobody who runs it says so."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flat import FlatMachine, MemoryStore

if TYPE_CHECKING:
    from tests.cli.conftest import Project


def waiting(said: str) -> str:
    return f"""\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: small
{said}
  states:
    ask: {{wait_for: answers, transitions: [{{to: done}}]}}
    done: {{type: final}}
"""


PLACES = [
    ("  persistence: {backend: local}", ".checkpoints", "file:.checkpoints"),
    ("  persistence: {backend: sqlite, db_path: a/b c.db}", "a/b c.db", "sqlite:///a/b%20c.db"),
    ("  persistence: {backend: sqlite}", "flatmachines.sqlite", "sqlite:///flatmachines.sqlite"),
    ("  settings: {backends: {persistence: sqlite, sqlite_path: x.db}}", "x.db", "sqlite:///x.db"),
    ("  settings: {backends: {persistence: 'file:kept'}}", "kept", "file:kept"),
]


@pytest.mark.parametrize(("said", "place", "url"), PLACES)
def test_a_file_chooses_the_store_and_the_next_command_is_told_of_it(
    project: Project, said: str, place: str, url: str
) -> None:
    project.write(machine=waiting(said))
    result = project.flat("run", "machine.yml", "--id", "x")
    assert result.code == 4, result.err
    assert (project.folder / place).exists()
    assert f"flat resume x --store {url}" in result.err
    assert project.flat("signal", "answers", "1", "--store", url).code == 0
    assert project.flat("resume", "x", "machine.yml", "--store", url).code == 0


def test_resuming_a_named_machine_looks_where_its_file_says(project: Project) -> None:
    project.write(machine=waiting("  persistence: {backend: local}"))
    assert project.flat("run", "machine.yml", "--id", "x").code == 4
    assert project.flat("signal", "answers", "1", "--store", "file:.checkpoints").code == 0
    assert project.flat("resume", "x").code == 9
    assert project.flat("resume", "x", "machine.yml", "--store", "other.db").code == 9
    assert project.flat("resume", "x", "machine.yml").code == 0


@pytest.mark.parametrize("said", [said for said, _, _ in PLACES])
def test_the_command_line_and_the_environment_win_over_the_file(
    project: Project, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    project.write(machine=waiting(said))
    before = set(project.folder.iterdir())
    assert project.flat("run", "machine.yml", "--store", "one.db").code == 4
    monkeypatch.setenv("FLAT_STORE", "two.db")
    assert project.flat("run", "machine.yml").code == 4
    made = {path.name for path in set(project.folder.iterdir()) - before}
    assert {name for name in made if not name.endswith(("-wal", "-shm"))} == {"one.db", "two.db"}


def test_the_seed_systems_variable_names_the_database(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLATMACHINES_DB_PATH", "named.db")
    project.write(machine=waiting("  persistence: {backend: sqlite}"))
    assert project.flat("run", "machine.yml").code == 4
    assert (project.folder / "named.db").exists()


@pytest.mark.parametrize(
    "said", ["  persistence: {backend: memory}", "  settings: {backends: {persistence: memory}}"]
)
def test_memory_is_the_seed_systems_default_and_leaves_the_command_lines_own(
    project: Project, said: str
) -> None:
    project.write(machine=waiting(said))
    assert project.flat("run", "machine.yml").code == 4
    assert (project.folder / "flat.db").exists()


def test_nothing_is_kept_where_the_file_says_so(project: Project) -> None:
    project.write(machine=waiting("  persistence: {enabled: false}"))
    result = project.flat("run", "machine.yml")
    assert "nothing was kept" in result.err
    assert not (project.folder / "flat.db").exists()


def test_a_backend_that_does_not_exist_is_an_error_of_the_file(project: Project) -> None:
    project.write(machine=waiting("  settings: {backends: {persistence: sqlit}}"))
    result = project.flat("run", "machine.yml")
    assert result.code == 3
    assert (
        'machine.yml:5:38: error[unknown-backend]: there is no backend "sqlit" for persistence' in result.err
    )
    assert 'did you mean "sqlite"?' in result.err


@pytest.mark.parametrize(
    ("named", "told"),
    [
        ("redis", 'does not say where; write a URL there, such as "redis://'),
        ("nosuch://x", 'unknown kind of store "nosuch"'),
        ("sqlite://host", "names"),
    ],
)
def test_a_backend_that_cannot_be_opened_is_named_with_the_field(
    project: Project, named: str, told: str
) -> None:
    project.write(machine=waiting(f"  settings: {{backends: {{persistence: '{named}'}}}}"))
    result = project.flat("run", "machine.yml")
    assert result.code == 2
    assert f'settings.backends.persistence is "{named}"' in result.err
    assert told in result.err or "host" in result.err
    assert project.flat("run", "machine.yml", "--store", "memory:").code == 4


def test_an_event_that_does_not_exist_is_a_warning(project: Project) -> None:
    project.write(machine=waiting("  persistence: {checkpoint_on: [machine_start, machine_ent]}"))
    result = project.flat("validate", "machine.yml")
    assert result.code == 0
    assert 'there is no event "machine_ent"' in result.out
    assert 'did you mean "machine_end"?' in result.out


def test_flatmachine_asks_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    states = {"ask": {"wait_for": "answers", "transitions": [{"to": "done"}]}, "done": {"type": "final"}}

    def kept(**data: object) -> object:
        config = {
            "spec": "flatmachine",
            "spec_version": "4.2.1",
            "data": {"name": "m", "states": states, **data},
        }
        return FlatMachine(config_dict=config).persistence

    assert isinstance(kept(), MemoryStore)
    assert kept(persistence={"enabled": False}) is None
    assert kept(persistence={"backend": "local"}) == "file:.checkpoints"
    assert kept(persistence={"backend": "sqlite"}) == "sqlite:///flatmachines.sqlite"
    assert kept(settings={"backends": {"persistence": "sqlite", "sqlite_path": "b.db"}}) == "sqlite:///b.db"
    both = {"persistence": {"backend": "local"}, "settings": {"backends": {"persistence": "sqlite"}}}
    assert kept(**both) == "file:.checkpoints"
