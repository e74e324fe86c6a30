"""`load`: from files to a machine, through a cache of compiled programs.

Reading YAML, checking it against the models and lowering it is done once per content: the program is kept
under the digest of everything it was made from, and a warm start reads that instead (no pydantic, no YAML).
The cache holds JSON, in the user's cache folder; `FLAT_CACHE=off` does without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from flat import __version__
from flat.agents.cache import cache_dir
from flat.agents.protocol import Agent
from flat.bindings import Bindings
from flat.core.program import Program
from flat.core.program_codec import program_from_data, program_to_data
from flat.errors import DefinitionError, IncompatibleSnapshot, Problem, UnknownName
from flat.hooks import HooksRegistry
from flat.runtime.machine import Machine, MakeAgent, litellm_agent

if TYPE_CHECKING:
    from flat.agents.adapters import AgentAdapter, AgentAdapterRegistry
    from flat.spec.sources import MachineSource

CACHE_FORMAT = 1

Compiled = tuple[Program, list[str], Path | None]
"""A program, the warnings about it, and the file that it is from."""


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    config: Mapping[str, Any] | None = None,
    hooks: HooksRegistry | Mapping[str, Callable[..., Any]] | None = None,
    agents: Mapping[str, Agent] | None = None,
    shared_hooks: Any = None,
    lifecycle_hooks: Any = None,
    bindings: Bindings | None = None,
    profiles_file: str | os.PathLike[str] | None = None,
    compat: bool = False,
    overrides: Mapping[str, Any] | None = None,
    tool_provider: Any = None,
    agent_registry: AgentAdapterRegistry | None = None,
    agent_adapters: Iterable[AgentAdapter] | None = None,
    directory: str | os.PathLike[str] | None = None,
    catalogue: Mapping[str, Any] | None = None,
    profile: str | None = None,
) -> Machine:
    """A machine from a file or a folder, or from a mapping. Raises `SpecError` with everything that is wrong.

    `hooks` answers the names in the file: a registry, or factories by name. `agents` are used instead of the
    file's, by name. `tool_provider` runs the tools of states whose hooks have none. `compat` lets pass with a warning
    what the seed system lets pass. `overrides` replace keys of the file's `data`. `agent_adapters` make agents of
    further types, beside the built-in ones; `agent_registry` is asked instead of those. `directory` is what paths in
    a mapping are relative to; `catalogue` has profiles, as plain data, for a machine without any. With `profile` every
    agent, also those of child machines, runs as if it named that one of the catalogue's profiles; see `on_profile`.
    """
    registry = _registry_of(hooks)
    given = (shared_hooks is not None, lifecycle_hooks is not None)
    wanted = Wanted(profiles_file, compat, *given, catalogue=catalogue)
    program, warnings, origin = _compiled(path, config, overrides or {}, directory, wanted)
    if profile is not None:
        program = _on_profile(program, profile)
    return Machine(
        program,
        registry,
        bindings or Bindings(),
        agents=agents or {},
        shared_hooks=shared_hooks,
        lifecycle_hooks=lifecycle_hooks,
        make_agent=_maker(program, agent_registry, agent_adapters, tool_provider),
        origin=origin,
        directory=None if path is not None or directory is None else Path(directory),
        warnings=warnings,
        tool_provider=tool_provider,
    )


def _registry_of(hooks: HooksRegistry | Mapping[str, Callable[..., Any]] | None) -> HooksRegistry:
    if isinstance(hooks, HooksRegistry):
        return hooks
    if hooks is not None and not isinstance(hooks, Mapping):
        raise DefinitionError(
            "hooks by name are a HooksRegistry; one object for all states is shared_hooks=…"
        )
    return HooksRegistry(hooks or {})


def _compiled(
    path: str | os.PathLike[str] | None,
    config: Mapping[str, Any] | None,
    overrides: Mapping[str, Any],
    directory: str | os.PathLike[str] | None,
    wanted: Wanted,
) -> Compiled:
    """The program of a file, or else of a mapping."""
    if path is not None:
        main = Path(path).expanduser()
        return _with_overrides(main, overrides, wanted) if overrides else _from_file(main, wanted)
    if config is None:
        raise DefinitionError("give a machine file, or a config")
    if not isinstance(config, Mapping):
        raise DefinitionError(f"a config is a mapping, as a machine file has it, not {type(config).__name__}")
    data = config.get("data")
    if overrides and isinstance(data, Mapping):
        config = {**config, "data": {**data, **overrides}}
    return _from_mapping(config, Path(directory or Path.cwd()), wanted)


def _maker(
    program: Program,
    registry: AgentAdapterRegistry | None,
    adapters: Iterable[AgentAdapter] | None,
    tool_provider: Any,
) -> MakeAgent:
    """What makes a machine's agents: the built-in adapters, unless it is given others."""
    if registry is None and adapters is None and tool_provider is None:
        return litellm_agent
    from flat.agents.adapters import check_types, default_registry

    registry = registry or default_registry(adapters)
    made = {n: c for n, c in program.agents.items() if not c.get("problem") and c.get("type") != "tree"}
    check_types(made, registry)
    return partial(litellm_agent, registry=registry, tool_provider=tool_provider)


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a file is to be loaded."""

    profiles_file: Any = None
    compat: bool = False
    given_hooks: bool = False
    given_lifecycle: bool = False
    roots: tuple[Path, ...] = ()
    catalogue: Mapping[str, Any] | None = None
    """Profiles for a machine that has none of its own, as plain data."""


def child_of(machine: Machine, name: str) -> Machine:
    """The machine behind an entry of `machines`, loaded when it is first run.

    It answers names with its parent's registry, and has hooks objects of its own. Its files may lie wherever its
    parent's may.
    """
    known = machine.children.get(name)
    if known is None:
        known = machine.children[name] = _load_child(machine, name)
    return known


def _load_child(parent: Machine, name: str) -> Machine:
    ref = parent.program.machines.get(name)
    if ref is None and parent.tree is not None:
        from flat.runtime.treeload import launched_machine  # charters are Python, and bring their front end

        return launched_machine(parent, name)
    if ref is None:
        raise UnknownName("machine", name, parent.program.machines)
    folder = _folder(parent)
    # The project of a machine in `config/` is the folder above.
    roots = parent.roots or (folder.parent if folder.name == "config" else folder,)
    wanted = Wanted(compat=ref.get("compat", False), roots=roots, catalogue=ref.get("profiles"))
    if "path" in ref:
        program, warnings, origin = _from_file(folder / ref["path"], wanted)
    elif "inline" in ref:
        program, warnings, _ = _from_mapping(ref["inline"], folder, wanted)
        origin = parent.origin
    else:
        from flat.runtime.treeload import tree_child  # charters are Python, and bring their front end

        return tree_child(parent, ref["tree"], folder, roots)
    if "profile" in ref:
        program = _on_profile(program, ref["profile"], handed=ref.get("profiles"), child=True)
    return as_child(parent, program, origin, warnings, roots)


def _on_profile(program: Program, name: str, **of_parent: Any) -> Program:
    from flat.runtime.profiles import on_profile  # most runs are on the profiles that the files name

    return on_profile(program, name, **of_parent)


def as_child(
    parent: Machine,
    program: Program,
    origin: Path | None,
    warnings: Sequence[str] = (),
    roots: tuple[Path, ...] | None = None,
) -> Machine:
    """A machine of this program that answers names with its parent's registry, agents and adapters."""
    return replace(
        parent,
        program=program,
        tree=None,
        shared_hooks=None,
        lifecycle_hooks=None,
        origin=origin,
        warnings=warnings,
        tool_provider=None,
        invoker=None,
        roots=parent.roots if roots is None else roots,
        children={},
        _config_text=None,
    )


def _folder(machine: Machine) -> Path:
    """What the paths of a machine are relative to."""
    origin = machine.origin
    if origin is None:
        return machine.directory or Path.cwd()
    return origin if origin.is_dir() else origin.parent


def _from_mapping(config: Mapping[str, Any], directory: Path, wanted: Wanted) -> Compiled:
    from flat.spec.load import load_machine_dict
    from flat.spec.lower import lower

    source = load_machine_dict(
        config,
        directory,
        compat=wanted.compat,
        profiles_file=wanted.profiles_file,
        roots=wanted.roots,
        catalogue=wanted.catalogue,
    )
    return (
        lower(source, given_hooks=wanted.given_hooks, given_lifecycle=wanted.given_lifecycle),
        [str(p) for p in _doubts(source, wanted)],
        None,
    )


def _with_overrides(path: Path, overrides: Mapping[str, Any], wanted: Wanted) -> Compiled:
    from flat.spec.load import load_machine

    source = load_machine(path, compat=wanted.compat, profiles_file=wanted.profiles_file, check=False)
    config = dict(source.document.value)
    config["data"] = {**config["data"], **overrides}
    program, warnings, _ = _from_mapping(config, source.directory, wanted)
    return program, warnings, path


def _from_file(path: Path, wanted: Wanted) -> Compiled:
    from flat.spec.files import find_machine

    main = find_machine(path)
    key = _key(main, wanted)
    entry = _cache_path(key) if key else None
    if entry is not None and (cached := _read(entry)) is not None:
        return cached, [], main

    from flat.spec.load import load_machine
    from flat.spec.lower import lower

    source = load_machine(
        main,
        compat=wanted.compat,
        profiles_file=wanted.profiles_file,
        roots=wanted.roots,
        catalogue=wanted.catalogue,
    )
    program = lower(source, given_hooks=wanted.given_hooks, given_lifecycle=wanted.given_lifecycle)
    doubts = _doubts(source, wanted)
    if entry is not None and not doubts:
        root = source.roots[0]
        files = {str(root / name): _digest(data) for name, data in source.files.items()}
        beside = source.directory / "profiles.yml"
        files.setdefault(str(beside), "" if not beside.exists() else _digest(beside.read_bytes()))
        _write(entry, {"format": CACHE_FORMAT, "files": files, "program": program_to_data(program)})
    return program, [str(p) for p in doubts], main


def _doubts(source: MachineSource, wanted: Wanted) -> list[Problem]:
    """The warnings about a machine; with hooks from Python there is somebody to run its actions."""
    return [p for p in source.problems if not (wanted.given_hooks and p.code == "unheard-action")]


# -- the cache ----------------------------------------------------------------------------


def cache_folder() -> Path | None:
    """Where compiled programs are kept, or None when the environment says not to."""
    return None if os.environ.get("FLAT_CACHE") == "off" else cache_dir() / "programs"


def _key(main: Path, wanted: Wanted) -> str | None:
    try:
        text = main.read_bytes()
    except OSError:
        return None
    # The path is part of the key because the program holds it, for messages.
    parts = (_compiler(), str(main), os.getcwd(), repr(wanted))
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + text).hexdigest()[:40]


def _compiler() -> str:
    """Which release, or which state of a checkout, compiles programs: what another one made is not used."""
    package = Path(__file__).parent.parent
    folders = [package / "spec", package / "core", package / "core" / "ops", package / "core" / "strategies"]
    seen = [(e.name, e.stat().st_mtime_ns) for f in folders for e in os.scandir(f) if e.name.endswith(".py")]
    return f"{__version__} {CACHE_FORMAT} {sorted(seen)}"


def _cache_path(key: str) -> Path | None:
    folder = cache_folder()
    return None if folder is None else folder / f"{key}.json"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _read(entry: Path) -> Program | None:
    """The cached program, if every file it was made from is still as it was."""
    try:
        data = orjson.loads(entry.read_bytes())
        if data["format"] != CACHE_FORMAT:
            return None
        for name, digest in data["files"].items():
            file = Path(name)
            if _digest(file.read_bytes()) != digest if digest else file.exists():
                return None
        return program_from_data(data["program"])
    except (OSError, ValueError, KeyError, TypeError, IncompatibleSnapshot):
        return None


def _write(entry: Path, data: Mapping[str, Any]) -> None:
    import tempfile  # only a cold start writes

    # A cache that cannot be written is no reason to fail: the next start is a cold one.
    with contextlib.suppress(OSError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=entry.parent, suffix=".part")
        with os.fdopen(handle, "wb") as file:
            file.write(orjson.dumps(data))
        os.replace(temporary, entry)
