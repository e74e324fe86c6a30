"""The pages about files: their tables are the models', and the files they show load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from flat.spec import agent, machine
from flat.spec.load import load_machine
from flat.spec.lower import lower
from flat.spec.reference import PAGES, filled, table, tables

ROOT = Path(__file__).parents[2]
SHOWN = (
    machine.MachineData, machine.State, machine.RetryExecution, machine.ParallelExecution, machine.VotingExecution,
    machine.ToolLoop, machine.Settings, machine.Persistence, agent.PromptData, agent.OutputField, agent.ModelConfig,
    agent.McpServer,
)  # fmt: skip
CHILD = """\
spec: flatmachine
data:
  name: child
  states: {done: {type: final}}
"""
AGENT = "spec: flatagent\ndata: {model: fast, user: hello}\n"
PROFILES = "spec: flatprofile\ndata: {model_profiles: {fast: {name: m}}, default: fast}\n"


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def machines() -> Iterator[str]:
    for page in sorted((ROOT / "docs").glob("*.md")):
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            if "spec: flatmachine" in block and "states:" in block:
                yield block


@pytest.mark.parametrize("page", PAGES)
def test_the_tables_are_fresh(page: str) -> None:
    assert text(page) == filled(text(page)), "run: python -m flat.spec.reference"


def test_every_model_that_a_reader_needs_has_its_table() -> None:
    found = [name for page in PAGES for name in tables(text(page))]
    assert sorted(found) == sorted(model.__name__ for model in SHOWN)


def test_a_table_has_a_row_for_each_field() -> None:
    rows = table("State").splitlines()[2:]
    assert len(rows) == len(machine.State.model_fields)
    assert "| `as` | `doc` | `item` | What `foreach` calls an item. |" in rows


@pytest.mark.parametrize("block", list(machines()))
def test_a_machine_on_a_page_is_a_good_machine(block: str, tmp_path: Path) -> None:
    (tmp_path / "machine.yml").write_text(block)
    (tmp_path / "profiles.yml").write_text(PROFILES)
    for name in ("writer.yml", "job.yml"):
        (tmp_path / name).write_text(CHILD)
    (tmp_path / "critic.yml").write_text(AGENT)
    source = load_machine(tmp_path / "machine.yml")
    assert source.problems == []
    lower(source)


def test_steps_are_limited_by_the_machine_and_by_its_settings_first(tmp_path: Path) -> None:
    def limit(said: str) -> int:
        (tmp_path / "machine.yml").write_text(CHILD + said)
        return lower(load_machine(tmp_path / "machine.yml")).limits.max_steps

    assert limit("") == 1000
    assert limit("  max_steps: 7\n") == 7
    assert limit("  max_steps: 7\n  settings: {max_steps: 3}\n") == 3
    assert limit("  max_steps: 0\n") == 0
