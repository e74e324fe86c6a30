"""Examples whose every step is bound by a schema, on the real small model: what holds for any answer of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import flat
from flat.agents.local import serve
from flat.cli.project import find_project

pytestmark = pytest.mark.real_model


@pytest.fixture(scope="module", autouse=True)
def model() -> Iterator[None]:
    with serve():
        yield


def on_the_local_model(folder: Path) -> None:
    """Do what the comment in the profiles says."""
    for profiles in folder.glob("profiles.*"):
        text = profiles.read_text(encoding="utf-8")
        changed = text.replace("# override: local", "override: local").replace(
            '"default": "fast"', '"default": "local"'
        )
        assert changed != text
        profiles.write_text(changed, encoding="utf-8")


@pytest.mark.parametrize("name", ["parallelism", "support_triage_json", "writer_critic"])
def test_the_small_model_fills_in_every_form(name: str, copied: Path) -> None:
    on_the_local_model(copied)
    output = anyio.run(output_of, copied)
    match name:
        case "parallelism":
            assert len(output["moods"]) == 3
            assert {*output["moods"]} <= {"happy", "unhappy"}
        case "support_triage_json":
            assert output["category"] in ("billing", "technical", "account", "other")
            assert output["to"] in ("customer", "person")
        case "writer_critic":
            assert isinstance(output["score"], int)
            assert 1 <= output["rounds"] <= 4


async def output_of(folder: Path) -> Any:
    project = find_project(folder)
    async with flat.Runtime(flat.MemoryStore()) as runtime:
        outcome = await runtime.start(flat.load(project.machine), project.input)
    return outcome.raise_for_failure().output
