"""Charters that are found by a reference to their file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from flat import find_charter

DESK = """\
from flat import Charter, Node, StandardExecutor
from {beside} import NAME

charter = Charter(NAME, executor=StandardExecutor(model="openai/x"), nodes=[Node("Greet.", name="g")])
"""


@pytest.fixture(autouse=True)
def modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in list(sys.modules):
        monkeypatch.setitem(sys.modules, name, sys.modules[name])


def project(folder: Path, name: str) -> Path:
    folder.mkdir()
    (folder / "desk_file.py").write_text(DESK.format(beside=f"beside_{name}"))
    (folder / f"beside_{name}.py").write_text(f"NAME = {name!r}\n")
    return folder


def test_a_charter_may_import_what_stands_beside_its_file(tmp_path: Path) -> None:
    assert find_charter("desk_file.py:charter", project(tmp_path / "a", "one")).name == "one"


def test_files_of_the_same_name_are_told_apart_and_each_is_imported_once(tmp_path: Path) -> None:
    first, second = project(tmp_path / "a", "one"), project(tmp_path / "b", "two")
    found = find_charter("desk_file.py:charter", first)
    assert find_charter("desk_file.py:charter", second).name == "two"
    assert find_charter("desk_file.py:charter", first) is found


def test_a_file_that_is_called_like_a_library_does_not_take_its_place(tmp_path: Path) -> None:
    folder = project(tmp_path / "a", "one")
    (folder / "desk_file.py").rename(folder / "json.py")
    assert find_charter("json.py:charter", folder).name == "one"
    assert hasattr(sys.modules["json"], "dumps")
