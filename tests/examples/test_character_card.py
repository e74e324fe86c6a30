"""The character card, with somebody at the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Commands


@pytest.mark.parametrize("name", ["character_card"])
def test_lines_are_asked_for_and_the_talk_goes_on_after_a_kill(copied: Path, commands: Commands) -> None:
    first = ["run", ".", "--id", "talk", "--plain", "-i", "lines:=null"]
    said = commands(copied, first, given="Are you alone?\n", die_at="3  reply: agent character answered")
    assert said.code == -9, said.text
    assert "Ada Quill: Mind the last step, it is not there.\nyou: " in said.text
    said = commands(copied, ["resume", "talk", "-q"], given="And in fog?\n\n")
    assert said.code == 0, said.text
    assert "Ada Quill: Alone? There is the lamp, and now there is you.\nyou: " in said.text
    assert "Ada Quill: I count the ships by their horns." in said.text
