"""From a charter to a machine that a runtime drives: found by a reference, with its child machines beside it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flat.errors import BindingError, DefinitionError, UnknownName
from flat.runtime.machine import Machine
from flat.tree.charter import Charter
from flat.tree.lower import TreeBinding
from flat.tree.run import Until, tree_program
from flat.tree.run_intake import MAX_STEPS


def tree_machine(
    charter: Charter,
    *,
    node: str = "",
    until: Until = "session",
    max_steps: int = MAX_STEPS,
    max_agent_calls: int | None = None,
    machines: Mapping[str, Any] | None = None,
    origin: Path | None = None,
) -> Machine:
    """A charter as a machine. `machines` are those that its tools and nodes name: machines, or files of such."""
    given = dict(machines or {})
    refs = {
        name: {"given": one.name} if isinstance(one, Machine) else {"path": str(one)}
        for name, one in given.items()
    }
    for name, one in given.items():
        if isinstance(one, Charter):
            raise BindingError(
                "machine", name, hint="a charter is made a machine with flat.tree_machine(charter)"
            )
    missing = sorted(named_machines(charter) - given.keys())
    if missing:
        raise UnknownName("machine", missing[0], sorted(given))
    program = tree_program(
        charter, node=node, until=until, max_steps=max_steps, max_agent_calls=max_agent_calls, machines=refs
    )
    machine = Machine(program, tree=TreeBinding(charter), origin=origin)
    machine.children.update({name: one for name, one in given.items() if isinstance(one, Machine)})
    return machine


def named_machines(charter: Charter) -> set[str]:
    """The machines that the tools and nodes of a charter name."""
    from flat.tree.machines import MachineTool

    found = {node.machine.program for node in charter.nodes.values() if node.machine is not None}
    packs = charter.known_packs.values()
    for tools in (charter.tools, *(n.tools for n in charter.nodes.values()), *(p.tools for p in packs)):
        found |= {tool.use.program for tool in tools.values() if isinstance(tool, MachineTool)}
    return found


def find_charter(reference: str, folder: Path | None = None) -> Charter:
    """The charter that `package.module:name` or `file.py:name` stands for."""
    found = found_object(reference, folder or Path.cwd())
    if isinstance(found, Charter):
        return found
    raise DefinitionError(f'"{reference}" is a {type(found).__name__}, not a charter')


def found_object(reference: str, folder: Path) -> Any:
    """What `module:name` or `file.py:name` stands for; modules are looked for in the folder too."""
    module, _, name = reference.partition(":")
    if not name:
        raise BindingError("charter", reference, hint="write module:name, or file.py:name")
    if module.endswith(".py"):
        loaded = _from_file((folder / module).resolve())
    else:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        try:
            loaded = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is not None and not (module == error.name or module.startswith(error.name + ".")):
                raise
            raise BindingError(
                "charter", reference, hint=f'there is no module "{module}" in {folder} or on the Python path'
            ) from None
    if not hasattr(loaded, name):
        raise UnknownName(f"name in {module}", name, [n for n in vars(loaded) if not n.startswith("_")])
    return getattr(loaded, name)


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise DefinitionError(f"there is no file {path}")
    known = sys.modules.get(path.stem)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    specification = importlib.util.spec_from_file_location(path.stem, path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    sys.modules.setdefault(path.stem, loaded)  # dataclasses and the like look their module up
    specification.loader.exec_module(loaded)
    return loaded


def tree_child(parent: Machine, ref: Mapping[str, Any], folder: Path) -> Machine:
    """The machine behind an entry of `machines` that names a charter. It ends when it has an answer."""
    until: Any = ref.get("until") or "cede"
    machine = tree_machine(
        find_charter(str(ref["tree"]), folder),
        node=ref.get("node") or "",
        until=until,
        max_steps=ref.get("max_steps") or MAX_STEPS,
        machines=dict(parent.children) | dict((ref.get("machines") or {}).items()),
        origin=parent.origin,
    )
    return replace(machine, hooks=parent.hooks, bindings=parent.bindings, roots=parent.roots)
