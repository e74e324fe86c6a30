"""JSON Schemas of the files, generated from the models, for editors. Run as a module to write `schemas/`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from flat.spec.agent import AgentFile, ProfileFile, PromptFile
from flat.spec.machine import MachineFile

MODELS: dict[str, type[BaseModel]] = {
    "machine": MachineFile,
    "agent": AgentFile,
    "prompt": PromptFile,
    "profile": ProfileFile,
}


def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one kind of file."""
    body = MODELS[kind].model_json_schema(by_alias=True)
    return {"$schema": GenerateJsonSchema.schema_dialect, "$id": f"flat/schemas/{kind}.json", **body}


def render(kind: str) -> str:
    """A schema as the text of its file."""
    return json.dumps(schema(kind), indent=2, ensure_ascii=False) + "\n"


def write(folder: Path) -> None:
    """Write all schemas into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in MODELS:
        (folder / f"{kind}.json").write_text(render(kind), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "schemas"))
