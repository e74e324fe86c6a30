"""The schema of machine files for one of them: where a name is wanted, only the names that it has will do.

The file may have errors, as long as it can be parsed: it is being written. Machines written inside of it have
states of their own, so what is narrowed are copies of the definitions, used for the outermost machine alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flat.errors import Problem, SpecError, did_you_mean
from flat.spec.document import Document, mapping
from flat.spec.files import read_capped
from flat.spec.parse import parse
from flat.spec.schema import SPECS, Schema, schema

_COPIED = ("MachineFile", "MachineData", "State", "Transition", "MachineInput", "HooksCall")
_PREFIX = "#/definitions/"
_OWN = "This"


def read(path: Path) -> Document:
    """A file to make a schema for. Raises `SpecError` if it cannot be read or parsed."""
    return parse(read_capped(path), path.as_posix())


def kind_of(document: Document) -> str:
    """Which kind of file it is, by its `spec`."""
    spec = mapping(document.value).get("spec")
    if isinstance(spec, str) and spec in SPECS:
        return SPECS[spec]
    said = "the file does not say what it is" if spec is None else f'there is no spec "{spec}"'
    hint = (
        did_you_mean(spec, SPECS)
        if isinstance(spec, str)
        else f"begin it with `spec:` and {', '.join(SPECS)}"
    )
    raise SpecError(Problem("spec", said, document.locate(("spec",)), hint))


def narrowed(document: Document, hooks: Iterable[str] = ()) -> Schema:
    """The schema for this very file. `hooks` are names that are registered for it."""
    kind = kind_of(document)
    whole = schema(kind)
    if kind != "machine":
        return whole
    data = mapping(mapping(document.value).get("data"))
    definitions = whole["definitions"]
    definitions |= {_OWN + name: _with_own(copy.deepcopy(definitions[name])) for name in _COPIED}
    # A machine that is written inside of this one is any machine.
    own = definitions[_OWN + "MachineData"]["properties"]
    own["machines"] = definitions["MachineData"]["properties"]["machines"]
    states, agents, machines = (_names(data.get(key)) for key in ("states", "agents", "machines"))
    state = definitions[_OWN + "State"]["properties"]
    _only(definitions[_OWN + "Transition"]["properties"], "to", states)
    _only(definitions[_OWN + "MachineInput"]["properties"], "name", machines)
    _only(state, "on_error", states)
    _only(state, "agent", agents)
    _only(state, "machine", machines)
    _only(state, "launch", machines)
    known = sorted({*hooks, *_used(data)})
    for place in (state["hooks"], own["hooks"], own["lifecycle_hooks"]):
        _offer(place, known)
    _offer(definitions[_OWN + "HooksCall"]["properties"]["name"], known)
    whole["allOf"] = [{"$ref": f"{_PREFIX}{_OWN}MachineFile"}]
    return whole


def _names(value: Any) -> list[str]:
    return [key for key in mapping(value) if isinstance(key, str)]


def _with_own(node: Any) -> Any:
    """References to what is copied, turned to the copies."""
    if isinstance(node, list):
        return [_with_own(item) for item in node]
    if not isinstance(node, dict):
        return node
    found = node.get("$ref")
    if isinstance(found, str) and found.removeprefix(_PREFIX) in _COPIED:
        return {"$ref": f"{_PREFIX}{_OWN}{found.removeprefix(_PREFIX)}"}
    return {key: _with_own(value) for key, value in node.items()}


def _only(properties: Schema, name: str, names: Sequence[str]) -> None:
    """Let only these names stand where the property wants text. With none there is nothing to choose from yet."""
    if names:
        for text in _texts(properties[name]):
            kinds = text.pop("type")
            text.pop("minLength", None)
            text["enum"] = [*names, None] if isinstance(kinds, list) else list(names)


def _offer(part: Schema, names: Sequence[str]) -> None:
    """Offer the names where text is wanted, and take others too: hooks are registered in Python."""
    if names:
        for text in _texts(part):
            kind = {"type": text.pop("type")}
            text["anyOf"] = [{"enum": list(names)}, kind]


def _texts(part: Schema) -> list[Schema]:
    """The places in a property, lists and mappings included, where plain text is wanted."""
    kinds = part.get("type")
    if (kinds == "string" or kinds == ["string", "null"]) and "enum" not in part and "const" not in part:
        return [part]
    inner = [*part.get("anyOf", ()), *part.get("allOf", ())]
    inner += [part[key] for key in ("items", "additionalProperties") if isinstance(part.get(key), dict)]
    return [text for one in inner for text in _texts(one)]


def _used(data: Mapping[str, Any]) -> set[str]:
    """Names of hooks that the file uses: what registers them may be any Python."""
    found: set[str] = set()
    waiting: list[Any] = [data.get("hooks"), data.get("lifecycle_hooks")]
    waiting += [mapping(state).get("hooks") for state in mapping(data.get("states")).values()]
    while waiting:
        ref = waiting.pop()
        if isinstance(ref, list):
            waiting += ref
        elif isinstance(name := mapping(ref).get("name", ref), str):
            found.add(name)
    return found
