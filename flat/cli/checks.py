"""`flat validate` and `flat graph`: what can be known about a machine without running it."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flat.cli.ending import DONE, say
from flat.cli.project import find_project
from flat.cli.text import count
from flat.errors import DefinitionError, Problem, SpecError

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
    """Everything that is wrong with a machine, its project file and its agents."""
    from flat.agents.bundle import check_agent
    from flat.spec.load import load_machine
    from flat.spec.lower import lower

    try:
        project = find_project(path)
        source = load_machine(project.machine, compat=compat)
        program = lower(source)
    except SpecError as error:
        return list(error.problems)
    except DefinitionError as error:
        return [Problem("invalid", str(error))]
    problems = list(source.problems)
    for name, config in program.agents.items():
        if not config.get("problem"):
            said = check_agent(
                config["config"], config["catalogue"], name=config["name"] or name, compat=compat
            )
            problems += [Problem("agent", one) for one in said]
    if project.script is not None and not project.script.is_file():
        problems.append(Problem("project", f"{project.file}: there is no script {project.script}"))
    return problems


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
