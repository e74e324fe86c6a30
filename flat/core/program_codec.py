"""Programs to plain data and back, and their digest.

A program is data, so it is stored and cached as JSON. Dataclasses become `[kind, {fields}]`; templates,
conditions and compiled mappings become their source and place. Decoding is lazy by node: a run that visits
ten states of a thousand decodes ten.

The digest names what a program *does*. Places in files are left out of it, so that a comment or a blank line
changes no digest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, cast

import orjson

from flat.core.condition import Condition, condition_class
from flat.core.events import Done, Failed
from flat.core.hookref import HookRef
from flat.core.op import Answer, View
from flat.core.ops import (
    Action,
    Arm,
    Assign,
    Branch,
    Call,
    ChildCall,
    Children,
    Converse,
    Finish,
    Guardrails,
    Hook,
    Launch,
    Wait,
)
from flat.core.program import LazyNodes, Limits, Node, Program
from flat.core.strategies import Parsed, Retry, Sample, Single, Vote
from flat.core.template import CompiledMapping, Template, compile_value
from flat.errors import IncompatibleSnapshot, Location

FORMAT = 1
CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (
        *(
            Action,
            Arm,
            Assign,
            Branch,
            Call,
            ChildCall,
            Children,
            Converse,
            Finish,
            Guardrails,
            Hook,
            HookRef,
        ),
        *(Launch, Limits, Node, Parsed, Retry, Sample, Single, Vote, Wait),
    )
}


def with_digest(program: Program) -> Program:
    """The program with the digest of what it does."""
    data = {"format": FORMAT, **_program(program, places=False)}
    text = orjson.dumps(data, option=orjson.OPT_SORT_KEYS)
    return replace(program, digest=hashlib.sha256(text).hexdigest()[:32])


def program_to_data(program: Program) -> dict[str, Any]:
    """The whole program as JSON data, with places and digest."""
    return {"format": FORMAT, "digest": program.digest, **_program(program, places=True)}


def program_from_data(data: Mapping[str, Any]) -> Program:
    """Undo `program_to_data`."""
    if data.get("format") != FORMAT:
        raise IncompatibleSnapshot(f"program format {data.get('format')!r}, this release reads {FORMAT}")
    nodes = data["nodes"]
    return Program(
        name=data["name"],
        kind=data["kind"],
        spec_version=data["spec_version"],
        initial=data["initial"],
        context=_decode(data["context"]),
        nodes=LazyNodes(nodes, lambda name: cast(Node, _decode(nodes[name]))),
        lifecycle=_decode(data["lifecycle"]),
        hooks=_decode(data["hooks"]),
        limits=_decode(data["limits"]),
        agents=data["agents"],
        machines=data["machines"],
        settings=data["settings"],
        digest=data["digest"],
        uses_machine=data["uses_machine"],
    )


def _program(program: Program, *, places: bool) -> dict[str, Any]:
    return {
        "name": program.name,
        "kind": program.kind,
        "spec_version": program.spec_version,
        "initial": program.initial,
        "context": _encode(program.context, places),
        "nodes": {name: _encode(node, places) for name, node in program.nodes.items()},
        "lifecycle": _encode(program.lifecycle, places),
        "hooks": _encode(program.hooks, places),
        "limits": _encode(program.limits, places),
        "agents": {
            name: config if places else {k: v for k, v in config.items() if k not in ("places", "directory")}
            for name, config in program.agents.items()
        },
        "machines": dict(program.machines),
        "settings": dict(program.settings),
        "uses_machine": program.uses_machine,
    }


_ATOMS = frozenset({str, bool, int, float, type(None)})
_STORED: dict[type, tuple[tuple[str, Any], ...]] = {}
"""The names and defaults of the fields of each dataclass: asking for them each time is most of encoding one."""


def _encode(value: Any, places: bool) -> Any:
    cls = type(value)
    if cls in _ATOMS:
        return value
    if cls is tuple:
        return ["$t", *[_encode(v, places) for v in value]]
    if cls is Arm:
        return ["$D", "Arm", {"condition": _encode(value.condition, places), "target": value.target}]
    if cls is Template:
        return ["$T", value.source, _flags(value), _place(value.location) if places else None]
    if isinstance(value, Condition):
        engine = [] if value.engine == "simple" else [value.engine]
        return ["$C", value.source, _place(value.location) if places else None, *engine]
    if cls is CompiledMapping:
        marks = [[list(path), _place(at)] for path, at in value.places()] if places else []
        return ["$M", value.value, _flags(next(iter(value.templates()), None)), marks]
    if is_dataclass(cls):
        return ["$D", cls.__name__, _fields(value, places)]
    if isinstance(value, list):
        return ["$l", *[_encode(v, places) for v in value]]
    if isinstance(value, Mapping):
        return {k: _encode(v, places) for k, v in value.items()}
    raise TypeError(f"a program cannot hold a {cls.__name__}")


def _fields(value: Any, places: bool) -> dict[str, Any]:
    """What differs from its default."""
    cls = type(value)
    known = _STORED.get(cls)
    if known is None:
        stored = (f for f in fields(cls) if f.metadata.get("stored", True))
        known = _STORED[cls] = tuple((f.name, f.default) for f in stored)
    changed = {}
    for name, default in known:
        field = getattr(value, name)
        if field is not default and field != default:
            changed[name] = _encode(field, places)
    return changed


def _flags(template: Template | None) -> int:
    return 0 if template is None else template.native + 2 * template.lenient


def _decode(data: Any) -> Any:
    if type(data) is list:
        return _TAGS[data[0]](data)
    if type(data) is dict:
        return {k: _decode(v) for k, v in data.items()}
    return data


def _mapping(data: list[Any]) -> CompiledMapping:
    marks = {tuple(path): _location(place) for path, place in data[3]}
    native, lenient = bool(data[2] & 1), bool(data[2] & 2)
    mapping: dict[str, Any] = data[1]
    compiled: CompiledMapping = compile_value(
        mapping, lambda *keys: marks.get(keys), native=native, lenient=lenient
    )
    return compiled


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """An op that is made of code, as read from a stored program: it can be looked at, and not run."""

    key: str
    kind: str
    fields: Mapping[str, Any]

    def start(self, here: View) -> Answer:
        raise IncompatibleSnapshot(
            f"a program of kind {self.kind} cannot be run from its stored text: give the code that it is made of"
        )

    def resume(self, here: View, event: Done | Failed) -> Answer:
        return self.start(here)


def _made(name: str, given: dict[str, Any]) -> Any:
    cls = CLASSES.get(name)
    return Coded(key=given["key"], kind=given["kind"], fields=given) if cls is None else cls(**given)


_TAGS: dict[str, Callable[[list[Any]], Any]] = {
    "$T": lambda d: Template(d[1], _location(d[3]), bool(d[2] & 1), lenient=bool(d[2] & 2)),
    "$C": lambda d: condition_class(d[3] if len(d) > 3 else "simple")(d[1], _location(d[2])),
    "$M": _mapping,
    "$D": lambda d: _made(d[1], {k: _decode(v) for k, v in d[2].items()}),
    "$t": lambda d: tuple(_decode(v) for v in d[1:]),
    "$l": lambda d: [_decode(v) for v in d[1:]],
}


def _place(location: Location | None) -> list[Any] | None:
    return (
        None
        if location is None
        else [location.file, location.line, location.column, location.text, location.width]
    )


def _location(place: list[Any] | None) -> Location | None:
    return None if place is None else Location(*place)
