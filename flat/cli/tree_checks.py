"""`flat validate`, `flat graph` and `flat tree` for charters: what is in one, what is wrong with it, and its client."""

from __future__ import annotations

import inspect
import json as json_format
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import CodeType
from typing import Any

from flat.cli.ending import DONE, UsageError, complain, say
from flat.cli.project import find_project
from flat.cli.text import count
from flat.errors import BindingError, DefinitionError, FlatError, Problem, SpecError, did_you_mean
from flat.runtime.treeload import find_charter, machines_beside, named_machines
from flat.tree.charter import Charter
from flat.tree.node import Node
from flat.tree.stubs import client_stubs
from flat.tree.toolset import generate_tool_definitions
from flat.tree.transitions import CodeTransition, SerialTransition, Transition


def load(path: Path) -> Charter:
    """The charter that a reference, a folder or a project file names."""
    project = find_project(path)
    if not project.charter:
        raise UsageError(f"{path} is no charter; name one as module:charter or folder/file.py:charter")
    return find_charter(project.machine.name, project.machine.parent.expanduser())


# -- what is wrong ---------------------------------------------------------------------------


def charter_problems(path: Path) -> tuple[Charter | None, list[Problem]]:
    """The charter, and everything that is wrong with it."""
    try:
        charter = load(path)
    except SpecError as error:
        return None, list(error.problems)
    except FlatError as error:
        return None, [Problem("charter", str(error))]
    return charter, list(_problems(charter, path.parent))


def entry_problems(
    name: str, entry: Mapping[str, Any], folder: Path, beside: Collection[str]
) -> Iterator[Problem]:
    """What is wrong with an entry of `machines` that names a charter; `beside` are the names of all entries."""
    where = f'machine "{name}" (tree {entry.get("tree")})'
    try:
        charter = find_charter(str(entry.get("tree")), folder)
        if entry.get("node"):
            charter.node(str(entry["node"]))
    except FlatError as error:
        yield Problem("machine", f"{where}: {error}")
        return
    for missing in sorted(named_machines(charter) - {*beside}):
        said = f'{where}: it uses the machine "{missing}", which has no entry in `machines` here'
        yield Problem("machine", said, hint=did_you_mean(missing, beside))


def _problems(charter: Charter, folder: Path) -> Iterator[Problem]:
    try:
        machines_beside(charter, folder)
    except BindingError as error:
        yield Problem("machine", str(error))
    if not charter.nodes:
        yield Problem("charter", f'charter "{charter.name}" has no node')
    for name, node in charter.nodes.items():
        try:
            generate_tool_definitions(charter, node)
        except FlatError as error:
            yield Problem("node", f'node "{name}": {error}')


# -- what is in it ---------------------------------------------------------------------------


def charter_lines(charter: Charter) -> list[str]:
    """A charter for people: a line per node, with what it has."""
    packs = charter.known_packs
    head = f"charter {charter.name}: {count(len(charter.nodes), 'node')}"
    if packs:
        head += f", {count(len(packs), 'pack')}"
    wide = max((len(name) for name in charter.nodes), default=0)
    return [
        head,
        *(f"  {name:<{wide}}  {'; '.join(_words(charter, node))}" for name, node in charter.nodes.items()),
        *(
            f"  pack {name}: {', '.join([*pack.tools, *pack.commands]) or 'state only'}"
            for name, pack in packs.items()
        ),
    ]


def _words(charter: Charter, node: Node[Any]) -> Iterator[str]:
    if node.worker:
        yield "worker"
    if node.machine is not None:
        yield f"runs machine {node.machine.program}"
    if tools := [*node.tools, *charter.tools]:
        yield f"tools {', '.join(dict.fromkeys(tools))}"
    moves = []
    for name in node.transitions:
        targets = ", ".join(targets_of(charter, node, name))
        moves.append(f"{name} → {targets}" if targets else name)
    if moves:
        yield f"transitions {', '.join(moves)}"
    if node.commands:
        yield f"commands {', '.join(node.commands)}"
    if node.packs:
        yield f"packs {', '.join(pack.name for pack in node.packs)}"


def targets_of(charter: Charter, node: Node[Any], name: str) -> list[str]:
    """The nodes that a transition may lead to, as far as it shows: those that its code names."""
    entry: Transition = charter.resolved_transition(node.transitions[name])
    if isinstance(entry, SerialTransition):
        target = charter.resolved_node(entry.node)
        return [charter.name_of(target) or target.label]
    if not isinstance(entry, CodeTransition) or not inspect.isfunction(entry.execute):
        return []
    used = inspect.getclosurevars(entry.execute).nonlocals
    known = {**entry.execute.__globals__, **used}
    found = [known[n] for n in _names(entry.execute.__code__) if isinstance(known.get(n), Node)]
    return [key for target in found if (key := charter.name_of(target)) is not None]


def _names(code: CodeType) -> dict[str, None]:
    """The names that code uses, each once; a comprehension is code of its own in some releases of Python."""
    inner = [_names(part) for part in code.co_consts if isinstance(part, CodeType)]
    return dict.fromkeys(name for names in (code.co_names, code.co_freevars, *inner) for name in names)


def charter_mermaid(charter: Charter) -> str:
    """The nodes as boxes, their transitions as arrows; the first node is where a tree begins. Stable for git."""
    from flat.runtime.graph import escaped

    ids = {name: f"n{number}" for number, name in enumerate(charter.nodes)}
    lines = ["flowchart TD", "    begin((( )))"]
    for name, node in charter.nodes.items():
        text = "<br/>".join(escaped(word) for word in [name, *_box_words(charter, node)])
        lines.append(f'    {ids[name]}(["{text}"])' if node.worker else f'    {ids[name]}["{text}"]')
    if ids:
        lines.append(f"    begin --> {next(iter(ids.values()))}")
    for name, node in charter.nodes.items():
        for transition in node.transitions:
            for target in targets_of(charter, node, transition):
                if target in ids:
                    lines.append(f'    {ids[name]} -->|"{escaped(transition)}"| {ids[target]}')
    return "\n".join(lines) + "\n"


def _box_words(charter: Charter, node: Node[Any]) -> Iterator[str]:
    if node.machine is not None:
        yield f"machine {node.machine.program}"
    yield from (f"tool {name}" for name in node.tools)
    yield from (f"pack {pack.name}" for pack in node.packs)
    # What leads to no node hands over, or waits.
    yield from (f"transition {name}" for name in node.transitions if not targets_of(charter, node, name))


# -- for clients -----------------------------------------------------------------------------


def describe_charter(path: Path, output: Path | None) -> int:
    """Write the charter's description, which clients are made from."""
    text = json_format.dumps(load(path).describe(), indent=2, ensure_ascii=False)
    return _write(text, output)


def charter_stubs(path: Path, output: Path | None) -> int:
    """Write a typed client module: from a charter, or from a description that was written before."""
    return _write(client_stubs(_description(path)).rstrip("\n"), output)


def _description(path: Path) -> Mapping[str, Any]:
    if path.suffix != ".json":
        return load(path).describe()
    try:
        document = json_format.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise DefinitionError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or "nodes" not in document:
        raise DefinitionError(f"{path} is no description of a charter; make one with flat tree describe")
    return document


def _write(text: str, output: Path | None) -> int:
    if output is None:
        say(text)
        return DONE
    try:
        output.write_text(f"{text}\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    complain(f"wrote {output}")
    return DONE
