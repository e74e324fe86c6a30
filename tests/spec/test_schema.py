"""The generated JSON Schemas."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flat.spec.schema import MODELS, render, schema, write

FOLDER = Path(__file__).parents[2] / "schemas"


@pytest.mark.parametrize("kind", MODELS)
def test_the_schemas_in_the_repository_are_fresh(kind: str) -> None:
    assert (FOLDER / f"{kind}.json").read_text(encoding="utf-8") == render(kind), (
        "run: python -m flat.spec.schema"
    )


def fields(body: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    for part in (body, *body.get("$defs", {}).values()):
        yield from part.get("properties", {}).items()


@pytest.mark.parametrize("kind", MODELS)
def test_every_field_has_a_description_and_an_example(kind: str) -> None:
    for name, field in fields(schema(kind)):
        assert field.get("description"), name
        assert field.get("examples"), name


def test_writing_gives_one_file_for_each_kind(tmp_path: Path) -> None:
    write(tmp_path / "schemas")
    assert sorted(path.stem for path in (tmp_path / "schemas").iterdir()) == sorted(MODELS)
