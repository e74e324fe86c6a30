"""A machine: a program together with the Python behind its names, ready to run."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import orjson
from anyio.abc import TaskGroup

from flat.agents.protocol import Agent
from flat.bindings import Bindings
from flat.core.hookref import GIVEN, GIVEN_LIFECYCLE, HookRefs
from flat.core.program import Program, bound
from flat.core.program_codec import program_from_data, program_to_data
from flat.core.snapshot import Snapshot
from flat.core.turn import Advance
from flat.drivers.draft import draft_of
from flat.errors import BindingError, DefinitionError, UnknownName
from flat.hooks import CompositeHooks, HooksRegistry, members, observed_points, steered_points
from flat.hooks.base import POINTS, plain_copy, settled
from flat.runtime.configured import with_places

if TYPE_CHECKING:
    from flat.runtime.tree_hooks import TreeTelling

log = logging.getLogger("flat")
MakeAgent = Callable[[str, Mapping[str, Any]], Agent]


def litellm_agent(
    name: str, config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None, **given: Any
) -> Agent:
    """An agent from its plain configuration, by the built-in adapters: on litellm, unless its type says otherwise.

    Nothing heavy is imported before this is called. `overrides` are model settings that win over every profile;
    a registry of adapters and a tool provider may be given.
    """
    from flat.agents.adapters import make_agent

    if config.get("type") == "tree":
        from flat.runtime.treeload import tree_agent

        return tree_agent(name, config)
    return make_agent(name, config, overrides=overrides, **given)


@dataclass
class Machine:
    """One machine. Make it with `flat.load`; run it with a `Runtime`."""

    program: Program
    hooks: HooksRegistry = field(default_factory=HooksRegistry)
    bindings: Bindings = field(default_factory=Bindings)
    make_agent: MakeAgent = litellm_agent
    agents: Mapping[str, Agent] = field(default_factory=dict)
    """Agents that are there already, by name; they win over the program's configuration."""
    shared_hooks: Any = None
    """The object that serves the machine and every state that names no hooks of its own, if one was given."""
    lifecycle_hooks: Any = None
    """The object that serves the machine's beginning and end alone, if one was given."""
    origin: Path | None = None
    """The folder or file it was loaded from, kept with its executions so that they can be resumed by id alone."""
    directory: Path | None = None
    """What its paths are relative to, for one that was loaded from a mapping."""
    warnings: Sequence[str] = ()
    invoker: Any = None
    """Starts what the machine launches, where that is not to be an execution of the same store."""
    tool_provider: Any = None
    """What runs the tools of a tool loop where no hooks do."""
    tree: Any = None
    """The charter behind a tree's program (`flat.tree.lower.TreeBinding`), or None for a machine of states."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the model client that win over a charter's, such as those of a scripted model."""
    roots: tuple[Path, ...] = ()
    """Folders that the files of its children may lie in, besides their own."""
    children: dict[str, Machine] = field(default_factory=dict, repr=False, compare=False)
    """The child machines that were loaded so far, by name."""
    _config_text: bytes | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        return self.program.name

    def hooks_object(self, refs: HookRefs) -> Any:
        """A new hooks object for a reference, or None for the empty one."""
        given = {GIVEN: self.shared_hooks, GIVEN_LIFECYCLE: self.lifecycle_hooks}
        made = [
            given[r.name]
            if r.name in given
            else self.hooks.resolve({"name": r.name, "args": self._hook_args(r.name, orjson.loads(r.args))})
            for r in refs
        ]
        if not made:
            return None
        return made[0] if len(made) == 1 else CompositeHooks(*made)

    def _hook_args(self, name: str, args: Mapping[str, Any]) -> Mapping[str, Any]:
        if self.hooks.is_built_in(name) and name == "distributed-worker":
            return with_places(args, self.program.settings)
        return args

    def agent(self, name: str) -> Agent:
        if name in self.agents:
            return self.agents[name]
        config = self.program.agents.get(name)
        if config is None:
            raise UnknownName("agent", name, [*self.agents, *self.program.agents])
        if config.get("problem"):
            raise FileNotFoundError(config["problem"])
        return self.make_agent(name, config)

    def config_text(self) -> bytes:
        """What the config store keeps: enough to run the program again without its files."""
        if self._config_text is None:
            origin = str(self.origin.resolve()) if self.origin else None
            self._config_text = orjson.dumps({"origin": origin, "program": program_to_data(self.program)})
        return self._config_text

    def calls_models(self) -> bool:
        """Whether a run of this machine is going to need the model client."""
        return self.make_agent is litellm_agent and any(
            name not in self.agents and config.get("type", "flatagent") == "flatagent"
            for name, config in self.program.agents.items()
        )


def program_of(text: bytes) -> tuple[Program, Path | None]:
    """The program in a config text, and where it was loaded from."""
    data = orjson.loads(text)
    return program_from_data(data["program"]), Path(data["origin"]) if data["origin"] else None


class HooksOfRun:
    """The hooks objects of one run: made once per reference, asked what they steer, told what they watch."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.objects: dict[HookRefs, Any] = {}
        self.observed: dict[HookRefs, frozenset[str]] = {}
        program = machine.program
        self.program = program
        self.told_of_tree: TreeTelling | None = None
        if machine.tree is not None:
            from flat.runtime.tree_hooks import TreeTelling  # machines of states run without it

            self.told_of_tree = TreeTelling(self)
        for refs in {(), program.lifecycle, *program.hooks}:
            hooks = self.get(refs)
            if hooks is not None:
                self.observed[refs] = observed_points(hooks)
        if self.objects.keys() != {()}:
            steers = {
                refs: steered_points(hooks) for refs, hooks in self.objects.items() if hooks is not None
            }
            self.program = bound(program, steers)

    def get(self, refs: HookRefs) -> Any:
        if refs not in self.objects:
            hooks = self.objects[refs] = self.machine.hooks_object(refs)
            if isinstance(hooks, CompositeHooks):
                hooks.tells_observers = False  # `tell` does
        return self.objects[refs]

    def in_background(self, group: TaskGroup | None, snapshot: Snapshot | None) -> anyio.CancelScope | None:
        """Start what hooks do beside the execution; the scope ends it. None if they do nothing."""
        if group is None or not self.observed:  # no hooks at all
            return None
        objects = {id(one): one for made in self.objects.values() for one in members(made)}
        beside = [o for o in objects.values() if iscoroutinefunction(getattr(o, "on_background", None))]
        if not beside:
            return None
        known = {} if snapshot is None else snapshot.root.context
        facts = {"execution_id": "" if snapshot is None else snapshot.execution_id}
        scope = anyio.CancelScope()
        group.start_soon(_beside, scope, beside, {**known, "machine": facts})
        return scope

    @property
    def watching(self) -> bool:
        return any(self.observed.values()) or (self.told_of_tree is not None and self.told_of_tree.watching)

    async def tell(self, step: Advance) -> None:
        """Call the observing methods for the nodes that were left and entered, in order."""
        if self.told_of_tree is not None:
            await self.told_of_tree.tell(step)
            return
        nodes, snapshot = self.program.nodes, step.snapshot
        left: str | None = None
        for kind, name, _ in step.path:
            refs = nodes[name].hooks
            if kind == "leave":
                left = name
                await self._tell(refs, "state_exit", snapshot, name, output=snapshot.output)
                continue
            if left is not None:
                await self._tell(nodes[left].hooks, "transition", snapshot, left, name)
            await self._tell(refs, "state_enter", snapshot, name)

    async def tell_lifecycle(self, point: str, snapshot: Snapshot) -> None:
        output = {"output": snapshot.output} if point == "machine_end" else {}
        await self._tell(self.machine.program.lifecycle, point, snapshot, **output)

    async def _tell(self, refs: HookRefs, point: str, snapshot: Snapshot, *names: str, **output: Any) -> None:
        if point not in self.observed.get(refs, ()):
            return
        context = draft_of(snapshot.root.context)
        for hooks in members(self.objects[refs]):
            if point in observed_points(hooks):
                try:
                    await settled(getattr(hooks, POINTS[point])(*names, context, *output.values()))
                except Exception:
                    log.exception("observing hook %s of %s raised", POINTS[point], type(hooks).__name__)


async def _beside(scope: anyio.CancelScope, beside: Sequence[Any], context: Mapping[str, Any]) -> None:
    async def one(hooks: Any) -> None:
        try:
            await hooks.on_background(plain_copy(context))
        except Exception:  # what runs beside an execution must not end it
            log.exception("on_background of %s raised and is over", type(hooks).__name__)

    with scope:
        async with anyio.create_task_group() as group:
            for hooks in beside:
                group.start_soon(one, hooks)


def from_module(spec: str, directory: Path) -> Any:
    """The object that `module:name` or `file.py:name` in a project file stands for."""
    module, _, attribute = spec.partition(":")
    if not attribute:
        raise BindingError("object", spec, hint="write module:name, or file.py:name")
    if module.endswith(".py"):
        path = (directory / module).resolve()
        if not path.is_file():
            raise DefinitionError(f"there is no file {path}")
        specification = importlib.util.spec_from_file_location(path.stem, path)
        assert specification is not None
        assert specification.loader is not None
        loaded = importlib.util.module_from_spec(specification)
        sys.modules.setdefault(path.stem, loaded)  # dataclasses and the like look their module up
        specification.loader.exec_module(loaded)
    else:
        loaded = importlib.import_module(module)
    try:
        return getattr(loaded, attribute)
    except AttributeError:
        known = [n for n in vars(loaded) if not n.startswith("_")]
        raise UnknownName(f"name in {module}", attribute, known) from None
