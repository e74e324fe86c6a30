"""`flat validate` and `flat graph`: what can be known about a machine without running it."""

from __future__ import annotations

import contextlib
import json as json_format
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flat.cli.ending import DONE, say
from flat.cli.project import Project, find_project
from flat.cli.text import count
from flat.errors import DefinitionError, Problem, SpecError, did_you_mean, nearest

if TYPE_CHECKING:
    from flat.core.program import Program
    from flat.spec.document import Document
    from flat.spec.sources import MachineSource
    from flat.tree.charter import Charter

INVALID = SpecError.exit_code


def validate(paths: Sequence[Path], *, json: bool, strict: bool, compat: bool) -> int:
    """Check each machine, say what was found, and give 0 if all can be run."""
    found, charters = {}, {}
    for path in paths:
        charters[path], found[path] = _checked(path, compat)
    failed = any(p.severity == "error" or strict for problems in found.values() for p in problems)
    if json:
        data = [_data(path, problems, strict) for path, problems in found.items()]
        for one, charter in zip(data, charters.values(), strict=True):
            if charter is not None:
                one["charter"] = charter.describe()
        say(json_format.dumps(data, indent=2))
    else:
        for path, problems in found.items():
            for problem in problems:
                say(f"{problem}\n")
            say(_summary(path, problems))
            if (charter := charters[path]) is not None:
                from flat.cli.tree_checks import charter_lines

                say("\n".join(charter_lines(charter)))
    return INVALID if failed else DONE


def graph(path: Path, *, compat: bool) -> int:
    """Print the machine as Mermaid text."""
    from flat.runtime import load
    from flat.runtime.graph import mermaid

    project = find_project(path)
    if project.charter:
        from flat.cli import tree_checks

        say(tree_checks.charter_mermaid(tree_checks.load(path)).rstrip("\n"))
        return DONE
    say(mermaid(load(project.machine, compat=compat).program).rstrip("\n"))
    return DONE


def _checked(path: Path, compat: bool) -> tuple[Charter | None, list[Problem]]:
    """A charter, if it is one, and everything that is wrong with it or with the machine."""
    try:
        charter = find_project(path).charter
    except DefinitionError as error:
        return None, _of(error)
    if not charter:
        return None, _problems(path, compat)
    from flat.cli.tree_checks import charter_problems  # machines of states do without

    return charter_problems(path)


def _problems(path: Path, compat: bool) -> list[Problem]:
    """Everything that is wrong with a machine, its project file, its agents and its child machines."""
    try:
        project = find_project(path)
    except DefinitionError as error:
        return _of(error)
    problems = _machine_problems(project.machine, compat, {})
    with contextlib.suppress(DefinitionError):  # which was said above
        problems += _name_problems(project, compat)
    if project.script is not None and not project.script.is_file():
        problems.append(Problem("project", f"{project.file}: there is no script {project.script}"))
    return problems


def _machine_problems(path: Path, compat: bool, seen: dict[Path, None], **inherited: Any) -> list[Problem]:
    """The problems of a machine and of those below it, each file once: machines may call each other in a ring."""
    from flat.spec.load import load_machine
    from flat.spec.lower import lower

    try:
        source = load_machine(path, compat=compat, **inherited)
        seen[Path(os.path.realpath(path))] = None
        program = lower(source)
    except DefinitionError as error:
        return _of(error)
    return [*source.problems, *_agent_problems(program, compat), *_below(source, seen)]


def _name_problems(project: Project, compat: bool) -> Iterator[Problem]:
    """Warn of hooks and verifiers that a machine names and its project does not register; a Python program may."""
    from flat.spec.load import load_machine

    document = load_machine(project.machine, compat=compat).document
    registry = project.registry()
    states = document.get(("data", "states")) or {}
    yield from _verifier_problems(document, states, project)
    places = [
        ("data", "hooks"),
        ("data", "lifecycle_hooks"),
        *(("data", "states", s, "hooks") for s in states),
    ]
    for place in places:
        for name in _hook_names(document.get(place)):
            if name not in registry.factories:
                hint = f'add under [hooks] in flat.toml: {name} = "hooks.py:Class"'
                if nearest(name, list(registry.factories)):
                    hint = did_you_mean(name, registry.factories)
                said = f'nothing is registered as the hooks "{name}"'
                yield Problem("unknown-hooks", said, document.locate(place), hint, "warning")


def _verifier_problems(document: Document, states: Iterable[str], project: Project) -> Iterator[Problem]:
    places = [("data", "settings", "in_doubt"), *(("data", "states", s, "in_doubt") for s in states)]
    for place in places:
        policy = document.get(place)
        name = policy.removeprefix("verify:") if isinstance(policy, str) else policy
        if name != policy and name not in project.verifiers:
            hint = f'add under [verifiers] in flat.toml: {name} = "file.py:function"'
            if nearest(name, list(project.verifiers)):
                hint = did_you_mean(name, project.verifiers)
            said = f'nothing is registered as the verifier "{name}"'
            yield Problem("unknown-verifier", said, document.locate(place), hint, "warning")


def _hook_names(value: Any) -> list[str]:
    """The names in a `hooks` field, however it is written."""
    if isinstance(value, list):
        return [name for one in value for name in _hook_names(one)]
    name = value.get("name") if isinstance(value, Mapping) else value
    return [name] if isinstance(name, str) and name else []


def _of(error: DefinitionError) -> list[Problem]:
    return list(error.problems) if isinstance(error, SpecError) else [Problem("invalid", str(error))]


def _agent_problems(program: Program, compat: bool) -> Iterator[Problem]:
    from flat.agents.bundle import check_agent

    for name, config in program.agents.items():
        if not config.get("problem"):
            said = check_agent(
                config["config"], config["catalogue"], name=config["name"] or name, compat=compat
            )
            yield from (Problem("agent", one) for one in said)


def _below(source: MachineSource, seen: dict[Path, None]) -> Iterator[Problem]:
    """The problems of the child machines that are in files of their own."""
    from flat.spec.load import load_machine_dict
    from flat.spec.lower import profiles_data

    catalogue = None if source.catalogue is None else profiles_data(source.catalogue)
    inherited: dict[str, Any] = {"roots": source.roots, "catalogue": catalogue}
    for child in source.machines.values():
        if child.tree is not None:
            from flat.cli.tree_checks import entry_problems  # machines of states do without

            yield from entry_problems(child.name, child.tree, source.directory, source.machines)
        elif child.inline:  # what is wrong in it was said where it stands
            with contextlib.suppress(DefinitionError):
                nested = load_machine_dict(child.inline, source.directory, compat=source.compat, **inherited)
                yield from _below(nested, seen)
        elif child.path is not None and Path(os.path.realpath(child.path)) not in seen:
            seen[Path(os.path.realpath(child.path))] = None
            yield from _machine_problems(_shown(child.path), source.compat, seen, **inherited)


def _shown(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _summary(path: Path, problems: Sequence[Problem]) -> str:
    errors = sum(p.severity == "error" for p in problems)
    warnings = len(problems) - errors
    parts = [count(n, word) for n, word in ((errors, "error"), (warnings, "warning")) if n]
    return f"{path}: {', '.join(parts) or 'ok'}"


def _data(path: Path, problems: Sequence[Problem], strict: bool) -> dict[str, Any]:
    shown = [replace(p, severity="error") for p in problems] if strict else problems
    return {
        "path": str(path),
        "ok": not any(p.severity == "error" for p in shown),
        "problems": [_problem_data(p) for p in shown],
    }


def _problem_data(problem: Problem) -> dict[str, Any]:
    at = problem.location
    place = {"file": at.file, "line": at.line, "column": at.column} if at else {}
    return {
        "code": problem.code, "severity": problem.severity, "message": problem.message,
        "hint": problem.hint, **place,
    }  # fmt: skip
