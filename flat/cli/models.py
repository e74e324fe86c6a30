"""Which model answers a run: the provider's, the one on this machine, or a script; always said in a line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flat.cli.ending import UsageError
from flat.cli.project import Project
from flat.cli.show import Show
from flat.errors import DefinitionError, FlatError
from flat.runtime import Machine

LOCAL = "local"
SCRIPT_KEY = "scripted"


@contextlib.contextmanager
def model_for(machine: Machine, project: Project, live: bool | None, show: Show) -> Iterator[None]:
    """While this is open the machine's agents are answered. Raises at once when they could not be."""
    settings = _settings(machine)
    if not settings:
        yield
        return
    missing = _missing(settings)
    if live is False and project.script is None:
        raise UsageError('--scripted needs a script: set `script = "script.yml"` under [model] in flat.toml')
    if project.script is not None and (live is False or (missing and live is None)):
        _start_import()
        with scripted_model(project.script) as url:
            machine.make_agent = partial(_scripted_agent, machine.make_agent, url)
            machine.model = _scripted_settings(url)
            show.note(_scripted_line(project.script, missing))
            yield
        return
    if missing:
        raise DefinitionError(_missing_words(missing, settings, project))
    _start_import()
    if local := [name for name, s in settings.items() if _provider(s) == LOCAL]:
        _start_local(show)
    if others := {name: s for name, s in settings.items() if name not in local}:
        show.note(_live_line(others))
    yield


def _settings(machine: Machine) -> dict[str, Mapping[str, Any]]:
    """The model settings of all agents that a run may ask, those of child machines included."""
    found: dict[str, Mapping[str, Any]] = {}
    for one in _family(machine):
        for name, settings in _own_settings(one).items():
            found[f"{one.name}/{name}" if name in found else name] = settings
    return found


def _family(machine: Machine) -> Iterator[Machine]:
    """The machine and those below it, each once: machines may call each other in a ring."""
    from flat.runtime.loading import child_of

    # Loaded apart from those that will run: these are to get their models when it is known which.
    todo, seen = [replace(machine, children={})], set[str]()
    while todo:
        one = todo.pop(0)
        if one.program.digest in seen:
            continue
        seen.add(one.program.digest)
        yield one
        for name, reference in one.program.machines.items():
            if "tree" not in reference:  # `_own_settings` asks the trees
                with contextlib.suppress(FlatError, OSError):  # it is told when the child is run
                    todo.append(child_of(one, name))


def _own_settings(machine: Machine) -> dict[str, Mapping[str, Any]]:
    """Those of its own agents, by name; of a tree, and of the trees that it runs, by node."""
    found: dict[str, Mapping[str, Any]] = {}
    if machine.tree is not None or any("tree" in ref for ref in machine.program.machines.values()):
        from flat.cli.trees import node_settings

        found = node_settings(machine)
    if not machine.calls_models():
        return found
    from flat.agents.bundle import model_settings

    wanted = {
        n: c for n, c in machine.program.agents.items() if n not in machine.agents and not c.get("problem")
    }
    own = {n: model_settings(c["config"], c["catalogue"], name=c["name"] or n) for n, c in wanted.items()}
    return {**found, **own}


def _missing(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[str, ...]]]:
    """By agent, the environment variables that are not set; of each tuple, one is enough."""
    from flat.agents.credentials import missing_variables

    found = {name: missing_variables(s) for name, s in settings.items()}
    return {name: variables for name, variables in found.items() if variables}


def _provider(settings: Mapping[str, Any]) -> str | None:
    from flat.agents.credentials import provider

    return provider(settings)


def _start_import() -> None:
    """Importing the model client takes a second or more: it begins while the machine does."""
    from flat.agents.llm_thread import prefetch

    prefetch()


# -- a script --------------------------------------------------------------------------------


@contextlib.contextmanager
def scripted_model(script: Path) -> Iterator[str]:
    """A scripted model on loopback, with this process's environment pointing at it; gives its URL."""
    import yaml

    from flat.testing.model_server import ScriptedModel

    try:
        model = ScriptedModel.from_file(script)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        said = getattr(error, "strerror", None) or error
        raise DefinitionError(f"cannot read the script {script}: {said}") from None
    with model, _environment({"OPENAI_BASE_URL": model.base_url, "OPENAI_API_KEY": SCRIPT_KEY}):
        yield model.base_url


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _scripted_agent(make: Any, url: str, name: str, config: Mapping[str, Any]) -> Any:
    """The agent as written, but for its model: whatever its profile says, the script answers."""
    return make(name, config, overrides=_scripted_settings(url))


def _scripted_settings(url: str) -> dict[str, Any]:
    return {"provider": "openai", "base_url": url, "api_key": SCRIPT_KEY}


def _scripted_line(script: Path, missing: Mapping[str, list[tuple[str, ...]]]) -> str:
    variables = " and ".join(_words(names) for names in _distinct(missing))
    real = f"set {variables}" if variables else "leave out --scripted"
    return f"model: scripted from {script.name}, not a real model; {real} to use the real one"


def _missing_words(
    missing: Mapping[str, list[tuple[str, ...]]], settings: Mapping[str, Mapping[str, Any]], project: Project
) -> str:
    from flat.agents.profiles import model_name

    agent = next(iter(missing))
    variables = " and ".join(_words(names) for names in _distinct(missing))
    hint = f"export {_distinct(missing)[0][0]}=…"
    if project.script is not None:
        hint += f", or leave out --live to run on {project.script.name}"
    said = f'agent "{agent}" cannot call {model_name(settings[agent])}: {variables} is not set'
    return f"{said}\n  help: {hint}"


def _distinct(missing: Mapping[str, list[tuple[str, ...]]]) -> list[tuple[str, ...]]:
    return list(dict.fromkeys(names for variables in missing.values() for names in variables))


def _words(names: tuple[str, ...]) -> str:
    return " or ".join(names)


# -- real ones --------------------------------------------------------------------------------


def _start_local(show: Show) -> None:
    """Fetch the weights if they are not there, and have the model ready while the rest is imported."""
    from flat.agents.local import serve

    show.note(f"model: {serve(show.download).describe()}")


def _live_line(settings: Mapping[str, Mapping[str, Any]]) -> str:
    from flat.agents.credentials import base_url
    from flat.agents.profiles import model_name

    seen: dict[str, None] = {}
    for one in settings.values():
        where = base_url(one)
        seen[f"{model_name(one)} at {where}" if where else str(model_name(one))] = None
    return f"model: {', '.join(seen)}"


def end_models() -> None:
    """End what answered, so that the process ends at once and without a word."""
    import sys

    if "flat.agents.llm_thread" in sys.modules:
        from flat.agents.llm_thread import close

        with contextlib.suppress(FlatError):
            close()
