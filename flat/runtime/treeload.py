"""From a charter to a machine that a runtime drives: found by a reference, with its child machines beside it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from pydantic_core import to_json

from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.backends.memory.store import MemoryStore
from flat.core.hookref import GIVEN, GIVEN_LIFECYCLE, HookRef, HookRefs
from flat.errors import AgentFailed, BindingError, DefinitionError, FlatError, UnknownName
from flat.hooks import CompositeHooks
from flat.runtime.machine import Machine
from flat.tree.charter import Charter
from flat.tree.lower import TreeBinding
from flat.tree.run import Until, tree_program
from flat.tree.run_act import LAUNCHED
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
    given = {
        name: tree_machine(one, until="end_turn") if isinstance(one, Charter) else one
        for name, one in (machines or {}).items()
    }
    refs = {name: _ref(one) for name, one in given.items()}
    for name, one in given.items():
        if isinstance(one, Charter):
            raise BindingError(
                "machine", name, hint="a charter is made a machine with flat.tree_machine(charter)"
            )
    missing = sorted(named_machines(charter) - given.keys())
    if missing:
        raise UnknownName("machine", missing[0], sorted(given))
    hooks, shared = named_hooks(charter.hooks, GIVEN)
    lifecycle, beside = named_hooks(charter.lifecycle_hooks, GIVEN_LIFECYCLE)
    program = tree_program(
        charter,
        node=node,
        until=until,
        max_steps=max_steps,
        max_agent_calls=max_agent_calls,
        machines=refs,
        hooks=hooks,
        lifecycle=lifecycle or hooks,
    )
    machine = Machine(
        program, tree=TreeBinding(charter), origin=origin, shared_hooks=shared, lifecycle_hooks=beside
    )
    machine.children.update({name: one for name, one in given.items() if isinstance(one, Machine)})
    return machine


def named_hooks(given: Any, name: str) -> tuple[HookRefs, Any]:
    """What a program says of hooks, and the object that stands behind `name` in it, if one was given."""
    if given is None:
        return (), None
    parts = list(given) if isinstance(given, list | tuple) else [given]
    objects = [one for one in parts if not isinstance(one, str | Mapping)]
    refs = [
        HookRef(one, "{}")
        if isinstance(one, str)
        else HookRef(one["name"], to_json(one.get("args") or {}).decode())
        for one in parts
        if isinstance(one, str | Mapping)
    ]
    if not objects:
        return tuple(refs), None
    shared = objects[0] if len(objects) == 1 else CompositeHooks(*objects)
    return (HookRef(name), *refs), shared


def launched_machine(parent: Machine, name: str) -> Machine:
    """What runs a part of a tree as an execution of its own: the same charter, until the root of the part cedes."""
    if name != LAUNCHED:
        raise UnknownName("machine", name, parent.program.machines)
    known = {key: parent.children.get(key) or Beside(ref) for key, ref in parent.program.machines.items()}
    machine = tree_machine(parent.tree.charter, until="cede", machines=known, origin=parent.origin)
    return _below(parent, machine, parent.roots)


def _below(parent: Machine, machine: Machine, roots: Sequence[Path]) -> Machine:
    """A tree that answers names, for the machines that it starts in turn, with its parent's registry and agents."""
    return replace(
        machine,
        hooks=parent.hooks,
        bindings=parent.bindings,
        agents=parent.agents,
        make_agent=parent.make_agent,
        model=parent.model,
        roots=tuple(roots),
    )


def _ref(machine: Any) -> Mapping[str, Any]:
    """What a program says of a machine."""
    if isinstance(machine, Beside):
        return dict(machine)
    return {"given": machine.name} if isinstance(machine, Machine) else {"path": str(machine)}


def named_machines(charter: Charter) -> set[str]:
    """The machines that the tools and nodes of a charter name."""
    from flat.tree.machines import MachineTool

    found = {node.machine.program for node in charter.nodes.values() if node.machine is not None}
    packs = charter.known_packs.values()
    for tools in (charter.tools, *(n.tools for n in charter.nodes.values()), *(p.tools for p in packs)):
        found |= {tool.use.program for tool in tools.values() if isinstance(tool, MachineTool)}
    return found


def machines_beside(charter: Charter, folder: Path) -> dict[str, str]:
    """The files of the machines that a charter names. They lie beside it: `invoice` in `invoice.yml` or `invoice/`."""
    found = {}
    for name in sorted(named_machines(charter)):
        for file in (f"{name}.yml", f"{name}.yaml", name):
            if (folder / file).exists():
                found[name] = file
                break
        else:
            hint = f"put {name}.yml, or a folder {name} with a machine, beside the charter"
            raise BindingError("machine", name, hint=hint)
    return found


def find_charter(reference: str, folder: Path | None = None) -> Charter:
    """The charter that `package.module:name` or `file.py:name` stands for."""
    folder = folder or Path.cwd()
    return _charter(reference, folder, (folder,))


def found_object(reference: str, folder: Path, roots: Sequence[Path] = ()) -> Any:
    """What `module:name` or `file.py:name` stands for; a module is looked for in the folder when there is no other."""
    module, _, name = reference.partition(":")
    if not name:
        raise BindingError("charter", reference, hint="write module:name, or file.py:name")
    try:
        if module.endswith(".py"):
            loaded = _from_file((folder / module).resolve(), roots or (folder,))
        else:
            loaded = _module(module, folder, reference)
    except FlatError:
        raise
    except Exception as error:  # whatever the author's module raises while it is imported
        raise DefinitionError(
            f"{module} cannot be imported: {_where(error)}{type(error).__name__}: {error}"
        ) from error
    if not hasattr(loaded, name):
        raise UnknownName(f"name in {module}", name, [n for n in vars(loaded) if not n.startswith("_")])
    return getattr(loaded, name)


def _where(error: Exception) -> str:
    """The place in the author's module, as far as the error tells."""
    if isinstance(error, SyntaxError):
        return ""  # its message names the place
    trace = error.__traceback__
    last = None
    while trace is not None:
        last, trace = trace, trace.tb_next
    return "" if last is None else f"{Path(last.tb_frame.f_code.co_filename).name}:{last.tb_lineno}: "


def _module(module: str, folder: Path, reference: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _is_of(error, module):
            raise
    _importable(folder.resolve())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not _is_of(error, module):
            raise
        hint = f'there is no module "{module}" on the Python path or in {folder}'
        raise BindingError("charter", reference, hint=hint) from None


def _is_of(error: ModuleNotFoundError, module: str) -> bool:
    """Whether it is the module itself that is missing, and not one that it imports."""
    return error.name is not None and (module == error.name or module.startswith(f"{error.name}."))


def _from_file(path: Path, roots: Sequence[Path]) -> Any:
    if not any(path.is_relative_to(root.resolve()) for root in roots):
        raise DefinitionError(f"{path} is outside the project ({', '.join(map(str, roots))})")
    if not path.is_file():
        raise DefinitionError(f"there is no file {path}")
    name = path.stem
    for known in (sys.modules.get(name), sys.modules.get(_own_name(path))):
        if known is not None and getattr(known, "__file__", None) == str(path):
            return known
    if name in sys.modules:  # another file, or a library, is called the same
        name = _own_name(path)
    _importable(path.parent)
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None
    assert specification.loader is not None
    loaded = importlib.util.module_from_spec(specification)
    sys.modules[name] = loaded  # dataclasses and the like look their module up
    try:
        specification.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    return loaded


def _own_name(path: Path) -> str:
    return f"{path.stem}_{sha256(str(path).encode()).hexdigest()[:8]}"


def _importable(folder: Path) -> None:
    """What a charter imports may stand beside it, too."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()


def tree_child(parent: Machine, ref: Mapping[str, Any], folder: Path, roots: Sequence[Path]) -> Machine:
    """The machine behind an entry of `machines` that names a charter. It is over when it has an answer.

    Machines that the charter's tools name are those of its parent with the same names.
    """
    charter = _charter(str(ref["tree"]), folder, roots)
    until: Any = ref.get("until") or "cede"
    names = named_machines(charter)
    machine = tree_machine(
        charter,
        node=ref.get("node") or "",
        until=until,
        machines={name: Beside(entry) for name, entry in parent.program.machines.items() if name in names},
        origin=parent.origin,
    )
    return _below(parent, machine, roots)


def tree_below(parent: Machine, name: str) -> Machine | None:
    """The child machine of a machine whose charter has this name."""
    from flat.runtime.loading import child_of

    if parent.tree is not None and parent.name == name:
        return child_of(parent, LAUNCHED)
    for key, ref in parent.program.machines.items():
        if "path" in ref or "inline" in ref:
            continue
        child = child_of(parent, key)
        if child.tree is not None and child.name == name:
            return child
    return None


class Beside(dict[str, Any]):
    """A machine as the program of another one names it."""


def _charter(reference: str, folder: Path, roots: Sequence[Path]) -> Charter:
    found = found_object(reference, folder, roots)
    if not isinstance(found, Charter):
        raise DefinitionError(f'"{reference}" is a {type(found).__name__}, not a charter')
    return found


def tree_agent(name: str, config: Mapping[str, Any]) -> TreeAgent:
    """An agent of `type: tree`: one turn of a tree is its answer."""
    inner = config.get("config") or {}
    reference = config.get("ref") or inner.get("tree")
    if not reference:
        raise DefinitionError(f'agent "{name}" is a tree and has no `ref`: write ref: "module:charter"')
    unknown = sorted(inner.keys() - {"tree", "node", "max_steps"})
    if unknown:
        raise DefinitionError(f'agent "{name}": a tree agent has no {", ".join(unknown)} in its config')
    folder = Path(config.get("directory") or Path.cwd())
    machine = tree_machine(
        _charter(str(reference), folder, (folder,)),
        node=inner.get("node") or "",
        until="end_turn",
        max_steps=inner.get("max_steps") or MAX_STEPS,
    )
    return TreeAgent(name, machine)


class TreeAgent:
    """Answers each request with one turn of a fresh tree. Nothing of it is stored; a machine of its own is."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name, self.machine = name, machine

    async def call(self, request: AgentRequest) -> AgentResult:
        from flat.runtime.runtime import Runtime  # it loads machines, and so this module

        given = dict(request.input)
        state = given.pop("state", None)
        message = next((given[key] for key in ("message", "task", "prompt") if given.get(key)), None)
        if message is None:
            message = to_json(given).decode()
        outcome = (
            await Runtime(MemoryStore()).lent().start(self.machine, {"message": message, "state": state})
        )
        spent = outcome.spent
        usage = Usage(
            input_tokens=spent.input_tokens,
            output_tokens=spent.output_tokens,
            api_calls=spent.calls,
            cost=spent.cost if spent.priced else None,
            cost_source="estimate" if spent.priced else "unknown",
        )
        if outcome.status != "done":
            failure = outcome.failure
            text = (
                failure.message
                if failure is not None
                else f"it is {outcome.status}, and nobody can answer it here"
            )
            retryable = failure is not None and bool(failure.retryable)
            raise AgentFailed(
                f'agent "{self.name}": {text}', code="server_error", retryable=retryable, usage=usage
            )
        return AgentResult(content=outcome.output["content"], usage=usage, finish_reason="stop")
