"""`flat validate` and `flat graph`: what can be known about a machine without running it."""

from __future__ import annotations

import contextlib
import json as json_format
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flat.cli.ending import DONE, say
from flat.cli.project import find_project
from flat.cli.text import count
from flat.errors import DefinitionError, Problem, SpecError

if TYPE_CHECKING:
    from flat.core.program import Program
    from flat.spec.sources import MachineSource

INVALID = SpecError.exit_code


def validate(paths: Sequence[Path], *, json: bool, strict: bool, compat: bool) -> int:
    """Check each machine, say what was found, and give 0 if all can be run."""
    found = {path: _problems(path, compat) for path in paths}
    failed = any(p.severity == "error" or strict for problems in found.values() for p in problems)
    if json:
        say(json_format.dumps([_data(path, problems, strict) for path, problems in found.items()], indent=2))
    else:
        for path, problems in found.items():
            for problem in problems:
                say(f"{problem}\n")
            say(_summary(path, problems))
    return INVALID if failed else DONE


def graph(path: Path, *, compat: bool) -> int:
    """Print the machine as Mermaid text."""
    from flat.runtime import load
    from flat.runtime.graph import mermaid

    say(mermaid(load(find_project(path).machine, compat=compat).program).rstrip("\n"))
    return DONE


def _problems(path: Path, compat: bool) -> list[Problem]:
    """Everything that is wrong with a machine, its project file, its agents and its child machines."""
    try:
        project = find_project(path)
    except DefinitionError as error:
        return _of(error)
    problems = _machine_problems(project.machine, compat, {})
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
        if child.inline:  # what is wrong in it was said where it stands
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
