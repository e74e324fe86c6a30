"""A copy of the repository, the tools to work in it, and the way back."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio

from flat import FunctionTools, MachineHooks

REPOSITORY = Path("repository")
SCRATCH = Path("scratch")


def inside(path: str) -> Path:
    """A path in the scratch copy; a way out of it is refused."""
    found = (SCRATCH / path).resolve()
    if not found.is_relative_to(SCRATCH.resolve()):
        raise PermissionError(f"{path} is outside of the repository")
    return found


def read(path: str) -> str:
    """The text of a file."""
    return inside(path).read_text(encoding="utf-8")


def write(path: str, text: str) -> str:
    """Make a file, or replace all of it."""
    inside(path).parent.mkdir(parents=True, exist_ok=True)
    inside(path).write_text(text, encoding="utf-8")
    return f"wrote {path}"


def edit(path: str, old: str, new: str) -> str:
    """Replace a text, which must be there once."""
    text = read(path)
    if (times := text.count(old)) != 1:
        raise ValueError(f"that text is there {times} times")
    return write(path, text.replace(old, new))


async def bash(command: str) -> str:
    """Run a command in the repository; its output, and its exit code."""
    done = await anyio.run_process(
        ["bash", "-c", command], cwd=SCRATCH, stderr=subprocess.STDOUT, check=False
    )
    return f"{done.stdout.decode(errors='replace')[-4000:]}\nexit code {done.returncode}"


class Workbench(MachineHooks):
    def get_tool_provider(self, state_name: str) -> FunctionTools:
        return FunctionTools([read, write, edit, bash])

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        match action_name:
            case "copy_repository":
                shutil.rmtree(SCRATCH, ignore_errors=True)
                shutil.copytree(REPOSITORY, SCRATCH)
            case "check":
                tests = await anyio.run_process([sys.executable, "-m", "unittest"], cwd=SCRATCH, check=False)
                context["passed"] = tests.returncode == 0
                context["diff"] = difference()
            case "tell":
                said = {"role": "user", "content": context["feedback"] or "This is not right yet."}
                context["_tool_loop_chain"] = [*context["_tool_loop_chain"], said]
            case "take":
                shutil.copytree(SCRATCH, REPOSITORY, dirs_exist_ok=True)
        return context


def difference() -> str:
    """What is different in the scratch copy."""
    found = []
    for path in sorted(SCRATCH.rglob("*.py")):
        name = path.relative_to(SCRATCH)
        before = REPOSITORY / name
        old = before.read_text().splitlines(keepends=True) if before.exists() else []
        found += difflib.unified_diff(old, path.read_text().splitlines(keepends=True), str(name), str(name))
    return "".join(found)
