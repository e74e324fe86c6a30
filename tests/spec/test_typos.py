"""Typing errors: the right suggestion, and never a traceback."""

from __future__ import annotations

import random
import shutil
import string
from collections.abc import Callable, Iterator
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flat.errors import SpecError, nearest
from flat.spec import load_machine
from flat.spec.machine import MachineData, RetryExecution, Settings, State, ToolLoop, Transition
from flat.spec.parse import parse
from flat.spec.shape import keys_of

QUICKSTART = Path(__file__).parent / "quickstart" / "config"
STATES = (
    "start",
    "build_char",
    "append_char",
    "done",
    "review",
    "approved",
    "rejected",
    "wait_for_human",
    "retry",
)
FAMILIES = (
    *(keys_of(model) for model in (MachineData, State, Transition, RetryExecution, ToolLoop, Settings)),
    STATES,
)


def slips(name: str) -> Iterator[str]:
    """Every text one typing error away, with a handful of letters for insertions and replacements."""
    letters = random.Random(name).sample(string.ascii_lowercase, 6)
    for at in range(len(name) + 1):
        for letter in letters:
            yield name[:at] + letter + name[at:]
    for at in range(len(name)):
        yield name[:at] + name[at + 1 :]
        for letter in letters:
            yield name[:at] + letter + name[at + 1 :]
    for at in range(len(name) - 1):
        yield name[:at] + name[at + 1] + name[at] + name[at + 2 :]


def test_typos_of_one_letter_get_the_right_suggestion() -> None:
    cases = [
        (family, name, slip)
        for family in FAMILIES
        for name in family
        for slip in slips(name)
        if slip and slip not in family
    ]
    right = sum(nearest(slip, family) == name for family, name, slip in cases)
    assert len(cases) > 5000
    assert right / len(cases) >= 0.95


def test_typos_of_keys_and_targets_in_a_file_are_found_with_their_suggestion(tmp_path: Path) -> None:
    shutil.copytree(QUICKSTART, tmp_path, dirs_exist_ok=True)
    text = (QUICKSTART / "machine.yml").read_text()
    chance = random.Random(7)
    right = total = 0
    for word in (
        "transitions:",
        "output_to_context:",
        "agent: builder",
        "execution:",
        "to: append_char",
        "to: build_char",
    ):
        name = word.split()[-1].rstrip(":")
        for slip in chance.sample(sorted(set(slips(name)) - {name, ""}), 12):
            (tmp_path / "machine.yml").write_text(text.replace(word, word.replace(name, slip), 1))
            total += 1
            try:
                load_machine(tmp_path)
            except SpecError as error:
                right += f'did you mean "{name}"?' in str(error)
    assert right / total >= 0.95


def placed(read: Callable[[], object]) -> bool:
    """Whether reading succeeds, or is refused with a place for every problem."""
    try:
        read()
    except SpecError as error:
        return bool(error.problems) and all(problem.location is not None for problem in error.problems)
    return True


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_file_loads_or_is_refused_with_a_place(tmp_path: Path, data: st.DataObject) -> None:
    if not (tmp_path / "agent.yml").exists():
        shutil.copytree(QUICKSTART, tmp_path, dirs_exist_ok=True)
    name = data.draw(st.sampled_from(["machine.yml", "agent.yml", "profiles.yml"]))
    original = (QUICKSTART / name).read_text()
    text = original
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.integers(0, 12))
        put = data.draw(
            st.sampled_from(
                [
                    "",
                    " ",
                    "\n",
                    "\t",
                    ":",
                    "{{",
                    "}}",
                    "{%",
                    "'",
                    '"',
                    "-",
                    "*",
                    "&",
                    "!",
                    "#",
                    "[",
                    "]",
                    "null",
                ]
            )
            | st.text(max_size=3)
        )
        text = text[:at] + put + text[at + cut :]
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    try:
        assert placed(lambda: load_machine(tmp_path))
    finally:
        path.write_text(original)


@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{},'\"|>&*!%@\n\t #?", max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for file in ("f.yml", "f.json"):
        assert placed(lambda file=file: parse(text, file))
