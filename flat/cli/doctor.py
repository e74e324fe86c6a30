"""`flat doctor`: what is wrong with a store and with this installation, and what to do about each thing."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json as json_format
import os
import re
import site
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio

from flat.cli.ending import DONE, FAILED, IN_DOUBT, complain, say
from flat.cli.stores import is_missing, store_url
from flat.cli.text import count, one_line, short_id
from flat.errors import FlatError
from flat.runtime import Runtime
from flat.runtime.doctor import Doctor, Finding, Seen

OLDEST_PYTHON = (3, 11)
STOLEN = ("1.82.7", "1.82.8")
"""Releases of litellm that sent credentials away."""
INNER = ("test", "dev", "all")
"""Extras that nobody who only runs machines wants."""
SHOWN = 20


def doctor(*, store: str | None, quick: bool, json: bool) -> int:
    """Examine everything; 1 if something is broken, 11 if a run waits for a decision, else 0."""
    url = store_url(store)
    facts = environment()
    findings = list(environment_findings(Path.cwd()))
    seen: Seen | None = None
    if is_missing(url):
        facts["store"] = f"{url} (nothing has run yet)"
    else:
        facts["store"] = url
        try:
            more, seen = anyio.run(_examine, url, quick)
            findings += more
        except FlatError as error:
            findings.append(
                Finding(
                    code="store", severity="error", message=f"the store cannot be opened: {error}",
                    do="see what the message says; with another store: flat doctor --store URL",
                )
            )  # fmt: skip
    code = _code(findings)
    if json:
        say(json_format.dumps(_data(facts, seen, findings, code), indent=2))
    else:
        _show(facts, seen, findings)
    return code


def _code(findings: Sequence[Finding]) -> int:
    if any(finding.severity == "error" for finding in findings):
        return FAILED
    return IN_DOUBT if any(finding.code == "in-doubt" for finding in findings) else DONE


async def _examine(url: str, quick: bool) -> tuple[list[Finding], Seen]:
    async with Runtime(url) as runtime:
        examined = Doctor(runtime.opened(), now=runtime.clock.now(), quick=quick)
        return [finding async for finding in examined.findings()], examined.seen


def _data(facts: dict[str, str], seen: Seen | None, findings: Sequence[Finding], code: int) -> dict[str, Any]:
    looked_at = None
    if seen is not None:
        looked_at = {
            "executions": seen.executions, "bodies": seen.bodies, "blobs": seen.blobs, "programs": seen.programs,
        }  # fmt: skip
    return {
        "version": 1, "environment": facts, "looked_at": looked_at, "exit_code": code,
        "findings": [finding.data() for finding in findings],
    }  # fmt: skip


def _show(facts: dict[str, str], seen: Seen | None, findings: Sequence[Finding]) -> None:
    width = max(len(name) for name in facts)
    for name, value in facts.items():
        say(f"{name:<{width}}  {one_line(value)}")
    shown: dict[str, int] = {}
    for finding in findings:
        shown[finding.code] = shown.get(finding.code, 0) + 1
        if shown[finding.code] > SHOWN:
            continue
        whose = f"{short_id(finding.execution_id)} " if finding.execution_id is not None else ""
        say(f"{finding.severity}[{finding.code}]: {whose}{one_line(finding.message, 400)}")
        say(f"  {one_line(finding.do, 400)}")
    for code, number in shown.items():
        if number > SHOWN:
            complain(f"and {number - SHOWN:,} more of [{code}]; --json lists all")
    if seen is not None:
        depth = f", {count(seen.bodies, 'body')}" if seen.bodies == 1 else f", {seen.bodies:,} bodies"
        say(
            f"looked at {count(seen.executions, 'execution')}{depth if seen.bodies else ''}: {_sum(findings)}"
        )
    elif findings:
        say(_sum(findings))


def _sum(findings: Sequence[Finding]) -> str:
    words = []
    for severity in ("error", "warning", "note"):
        if number := sum(finding.severity == severity for finding in findings):
            words.append(count(number, severity))
    return ", ".join(words) or "nothing is wrong"


# -- this installation -------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    """What `flat` runs on."""
    return {
        "flat": importlib.metadata.version("flat"),
        "python": f"{sys.version.split()[0]} ({sys.executable})",
        "litellm": _version("litellm") or "not installed",
        "extras": ", ".join(f"{name}{'' if there else ' (no)'}" for name, there in _extras()) or "none",
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _extras() -> Iterator[tuple[str, bool]]:
    """The extras of this package, and whether all that each asks for is there."""
    facts = importlib.metadata.metadata("flat")
    required = importlib.metadata.requires("flat") or []
    for extra in facts.get_all("Provides-Extra") or []:
        if extra not in INNER:
            wanted = [
                line for line in required if re.search(rf"extra\s*==\s*['\"]{re.escape(extra)}['\"]", line)
            ]
            names = [re.match(r"[A-Za-z0-9._-]+", line) for line in wanted]
            yield extra, all(name is None or bool(_version(name[0])) for name in names)


def environment_findings(folder: Path) -> Iterator[Finding]:
    """What is wrong with this installation, and with the project in a folder."""
    if sys.version_info < OLDEST_PYTHON:
        yield _broken("python", "this Python is too old", "install Python 3.11 or later")
    yield from _litellm_findings()
    yield from _project_findings(folder)
    yield from _weights_findings()


def _litellm_findings() -> Iterator[Finding]:
    version = _version("litellm")
    if version in STOLEN:
        yield _broken(
            "litellm-stolen", f"litellm {version} sends credentials to strangers",
            "uninstall it, change every key that this machine has seen, and install another release",
        )  # fmt: skip
    folders = [*site.getsitepackages(), site.getusersitepackages()]
    for folder in dict.fromkeys([*folders, *sys.path]):
        if (pth := Path(folder) / "litellm_init.pth").is_file():
            yield _broken(
                "litellm-pth", f"{pth} was left by a release of litellm that sends credentials to strangers",
                "delete it, and change every key that this machine has seen",
            )  # fmt: skip
    if not version:
        yield Finding(
            code="litellm", severity="warning", do="pip install litellm",
            message="litellm is not installed: agents can only be asked by adapters and scripts",
        )  # fmt: skip


def _project_findings(folder: Path) -> Iterator[Finding]:
    from flat.cli.project import NAME, find_project

    if not (folder / NAME).is_file():
        return
    try:
        project = find_project(folder)
    except (FlatError, OSError) as error:
        yield _broken("project", f"{NAME}: {error}", f"correct {folder / NAME}")
        return
    if project.script is not None and not project.script.is_file():
        yield _broken(
            "project", f"{NAME} names the script {project.script}, which is not there", "correct its [model]"
        )
    for table, names in (("hooks", project.hooks), ("verifiers", project.verifiers)):
        for name, where in names.items():
            module, _, _ = where.partition(":")
            if module.endswith(".py") and not (project.folder / module).is_file():
                said = f'{NAME}: "{name}" in [{table}] is in {module}, which is not there'
                yield _broken("project", said, f"correct its [{table}]")


def _weights_findings() -> Iterator[Finding]:
    from flat.agents.local_weights import SMOLLM2, have_weights, weights_path

    path = weights_path()
    if os.path.lexists(path) and not have_weights():
        yield Finding(
            code="weights", severity="warning", message=f"{path} is not the whole file of the local model",
            do=f"delete it; the next run that needs {SMOLLM2.name} fetches it again",
        )  # fmt: skip


def _broken(code: str, message: str, do: str) -> Finding:
    return Finding(code=code, severity="error", message=message, do=do)
