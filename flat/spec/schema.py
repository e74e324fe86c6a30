"""JSON Schemas of the files and of stored bodies, generated from the models. Run as a module to write `schemas/`.

They are written for editors, in draft-07, which all of them read. What the models tell apart by looking at a value
(the kind of a file, an agent's two shapes, the types of an execution) is told apart by `if` and `then`, so that an
editor complains about the shape that was meant, and not about every other one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from flat.spec.agent import AgentFile, ProfileFile, PromptFile
from flat.spec.checkpoint import VALUE, VALUE_MARK, BaseBody, DeltaBody
from flat.spec.machine import MachineFile

Schema = dict[str, Any]
DRAFT = "http://json-schema.org/draft-07/schema#"
ANY = "flat"
"""The schema of any of the files: which one it is, its `spec` says."""
MODELS: dict[str, type[BaseModel]] = {
    "machine": MachineFile,
    "agent": AgentFile,
    "prompt": PromptFile,
    "profile": ProfileFile,
}
SPECS = {
    "flatmachine": "machine", "flatagent": "agent", "prompt": "prompt", "flatprofile": "profile",
    "flatprofiles": "profile",
}  # fmt: skip
"""Which kind of file begins with `spec:` and this."""
KINDS = (ANY, *MODELS, "checkpoint")
_REFERENCE = "#/definitions/{model}"
COMPUTED = r"\{\{|\{%|^\s*(output|context|input)(\.[A-Za-z_][A-Za-z0-9_]*)*\s*$|^\s*[-+]?[0-9.]+([eE][-+]?[0-9]+)?\s*$"
"""Text that may stand for a number: a template, a bare path, or digits."""
Choice = tuple[Schema | None, str]
"""A condition, and the definition that is meant when it holds."""


def _typed(name: str) -> Schema:
    return {"required": ["type"], "properties": {"type": {"const": name}}}


_CHOICES: dict[frozenset[str], Sequence[Choice]] = {
    frozenset({"LegacyAgentData", "BundleAgentData"}): (
        ({"anyOf": [{"required": ["prompt"]}, {"required": ["profile"]}]}, "BundleAgentData"),
        (None, "LegacyAgentData"),
    ),
    frozenset({"AgentFile", "TypedAgent"}): (
        ({"anyOf": [{"required": ["spec"]}, {"required": ["data"]}]}, "AgentFile"),
        (None, "TypedAgent"),
    ),
    frozenset({"MachineFile", "TreeRef"}): (({"required": ["tree"]}, "TreeRef"), (None, "MachineFile")),
    frozenset({"DefaultExecution", "RetryExecution", "ParallelExecution", "VotingExecution"}): (
        (_typed("retry"), "RetryExecution"),
        (_typed("parallel"), "ParallelExecution"),
        (_typed("mdap_voting"), "VotingExecution"),
        (None, "DefaultExecution"),
    ),
    frozenset({"BaseBody", "DeltaBody"}): (({"required": ["format"]}, "BaseBody"), (None, "DeltaBody")),
}


def schema(kind: str) -> Schema:
    """The JSON Schema of one kind of file, of any file (`flat`), or of a stored body (`checkpoint`)."""
    if kind == ANY:
        return _any_file()
    if kind == "checkpoint":
        parts = (_defined(body, files=False) for body in (BaseBody, DeltaBody))
        bodies, definitions = zip(*parts, strict=True)
        merged = {**definitions[0], **definitions[1], "Value": VALUE}
        said = "A stored body of an execution: a base is the whole snapshot, a delta what is new in it."
        return _document(kind, {"description": said, **_chosen([_named(b) for b in bodies])}, merged)
    reference, definitions_of = _defined(MODELS[kind])
    return _document(kind, {"description": MODELS[kind].__doc__, "allOf": [reference]}, definitions_of)


def _any_file() -> Schema:
    definitions: Schema = {}
    branches = []
    for kind, model in MODELS.items():
        reference, more = _defined(model)
        definitions |= more
        specs = [spec for spec, its in SPECS.items() if its == kind]
        condition = {"required": ["spec"], "properties": {"spec": {"enum": specs}}}
        branches.append({"if": condition, "then": reference})
    spec = {"description": "The kind of file.", "enum": list(SPECS), "examples": list(SPECS)}
    body = {
        "description": "A file of flat. Its `spec` says which kind it is.", "type": "object",
        "required": ["spec"], "properties": {"spec": spec}, "allOf": branches,
    }  # fmt: skip
    return _document(ANY, body, definitions)


def _document(kind: str, body: Schema, definitions: Schema) -> Schema:
    ordered = dict(sorted(definitions.items()))
    return {
        "$schema": DRAFT,
        "$id": f"flat/schemas/{kind}.json",
        "title": kind,
        **body,
        "definitions": ordered,
    }


def _defined(model: type[BaseModel], *, files: bool = True) -> tuple[Schema, Schema]:
    """A reference to the model's definition, and all definitions that it needs.

    People write files, where a key without a value counts as absent. Nobody but the codec writes bodies.
    """
    body = model.model_json_schema(by_alias=True, ref_template=_REFERENCE)
    definitions = body.pop("$defs", {})
    if "$ref" not in body:
        definitions[model.__name__] = body
    tidied = {name: _tidy(definition, files) for name, definition in definitions.items()}
    return {"$ref": _REFERENCE.format(model=model.__name__)}, tidied


def _named(reference: Schema) -> str:
    return str(reference["$ref"]).rpartition("/")[2]


# -- from what pydantic says to what editors like --------------------------------------------------------


def _tidy(node: Any, files: bool) -> Any:
    if isinstance(node, list):
        return [_tidy(item, files) for item in node]
    if not isinstance(node, dict):
        return node
    if VALUE_MARK in node:
        node = {"$ref": "#/definitions/Value", **{k: v for k, v in node.items() if k != VALUE_MARK}}
    result: Schema = {}
    for key, value in node.items():
        if key == "properties":
            required = node.get("required", ())
            parts = {name: _tidy(part, files) for name, part in value.items()}
            result[key] = {
                name: _property(name, part) if files and name not in required else part
                for name, part in parts.items()
            }
        elif key in ("examples", "enum", "const") or (key == "default" and files):
            result[key] = value
        elif key not in ("title", "default"):
            result["items" if key == "prefixItems" else key] = _tidy(value, files)
    if "oneOf" in result:
        result |= _union(result.pop("oneOf"))
    elif [b.get("type") for b in result.get("anyOf", ())][:3] == ["integer", "number", "string"]:
        result["anyOf"] = [{"type": "number"}, {"type": "string", "pattern": COMPUTED}, *result["anyOf"][3:]]
    if "$ref" in result and len(result) > 1:  # draft-07 ignores what stands beside a reference
        result["allOf"] = [{"$ref": result.pop("$ref")}]
    return result


def _property(name: str, part: Schema) -> Schema:
    """An optional property as the loader takes it: versions may be numbers, and no value counts as absent."""
    if name == "spec_version":
        part = {**part, "type": ["string", "number"]}
    elif name == "compat" and part.get("type") == "boolean":
        part = {**part, "type": ["boolean", "number", "string"]}
    if _takes_null(part):
        return part
    if isinstance(part.get("type"), str) and "enum" not in part and "const" not in part:
        return {**part, "type": [part["type"], "null"]}
    if isinstance(part.get("type"), list):
        return {**part, "type": [*part["type"], "null"]}
    said = {k: v for k, v in part.items() if k in ("description", "examples", "default")}
    rest = {k: v for k, v in part.items() if k not in said}
    branches = rest["anyOf"] if rest.keys() == {"anyOf"} else [rest]
    return {**said, "anyOf": [*branches, {"type": "null"}]}


def _takes_null(part: Mapping[str, Any]) -> bool:
    kinds = {"description", "examples", "default"}
    return part.keys() <= kinds or any(b == {"type": "null"} for b in part.get("anyOf", ()))


def _union(branches: Sequence[Schema]) -> Schema:
    """One of several shapes. Of mappings, the one that is meant is found by what is in them."""
    names = [_named(b) for b in branches if b.keys() == {"$ref"}]
    others = [b for b in branches if b.keys() != {"$ref"}]
    if len(names) > 1:
        return {"anyOf": [*others, _chosen(names)]} if others else _chosen(names)
    return {"anyOf": list(branches)}


def _chosen(names: Sequence[str]) -> Schema:
    chain: Schema = {}
    for condition, name in reversed(_CHOICES[frozenset(names)]):
        reference = {"$ref": _REFERENCE.format(model=name)}
        chain = reference if condition is None else {"if": condition, "then": reference, "else": chain}
    return {"type": "object", **chain}


# -- files -----------------------------------------------------------------------------------------------


def rendered(body: Mapping[str, Any]) -> str:
    """A schema as the text of its file."""
    return json.dumps(body, indent=2, ensure_ascii=False) + "\n"


def render(kind: str) -> str:
    """The schema of one kind as the text of its file."""
    return rendered(schema(kind))


def write(folder: Path) -> None:
    """Write all schemas into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind}.json").write_text(render(kind), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "schemas"))
