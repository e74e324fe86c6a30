"""What an author is told about each mistake, word for word.

Every `tests/golden/errors/*.yml` has a `.txt` with the messages. `FLAT_REGENERATE=1` writes them anew.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flat.errors import SpecError
from flat.spec import load_machine

FOLDER = Path(__file__).parent.parent / "golden" / "errors"
CASES = sorted(path.name for path in FOLDER.glob("*.yml"))
THREE_EACH = (
    "alias", "condition", "dead-end", "duplicate-key", "key", "missing", "number", "quote", "spec", "tag",
    "template", "type", "undefined-name", "unknown-agent", "unknown-key", "unknown-machine", "unknown-state",
    "value", "yaml", "no-states", "outside",
)  # fmt: skip


def answer(name: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_machine(name)
    return str(caught.value).replace(str(FOLDER.parent.parent.parent), "<project>") + "\n"


@pytest.mark.parametrize("name", CASES)
def test_each_mistake_is_answered_in_the_expected_words(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER)
    expected = (FOLDER / name).with_suffix(".txt")
    given = answer(name)
    if os.environ.get("FLAT_REGENERATE"):
        expected.write_text(given, encoding="utf-8")
    assert given == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("code", THREE_EACH)
def test_the_main_codes_have_three_cases(code: str) -> None:
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.txt")]
    assert sum(f"[{code}]" in text for text in texts) >= 3


@pytest.mark.parametrize("name", CASES)
def test_each_message_names_file_line_and_column(name: str) -> None:
    text = (FOLDER / name).with_suffix(".txt").read_text(encoding="utf-8")
    heads = [line for line in text.splitlines() if "error[" in line or "warning[" in line]
    assert heads
    assert all(line.startswith(f"{name}:") for line in heads)
