"""`flat init`: a folder to start from, copied from an example."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from flat.cli.ending import DONE, UsageError, say
from flat.cli.examples import README, Example, find_example
from flat.cli.text import count

DEFAULT = "writer_critic"
LEFT_OUT = ("__pycache__", "*.pyc", "*.db", "*.db-*", ".checkpoints", ".flat")
"""What running an example leaves in its folder."""


def start_from(name: str, folder: Path) -> int:
    """Copy an example into a new folder, and say what to type next."""
    example = find_example(name)
    folder = folder.expanduser()
    _refuse_what_is_there(folder)
    try:
        ignored = shutil.ignore_patterns(*LEFT_OUT)
        shutil.copytree(example.folder, folder, ignore=ignored, dirs_exist_ok=True)
        _say_here(folder / README, example)
    except OSError as error:
        raise UsageError(f"cannot write {error.filename or folder}: {error.strerror}") from None
    files = sum(path.is_file() for path in folder.rglob("*"))
    say(f"{folder}: {count(files, 'file')} from the example {example.name}")
    say(f"run it: {_next(folder, example)}")
    return DONE


def _refuse_what_is_there(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.is_dir():
        raise UsageError(f"{folder} is not empty; name a folder that is new or empty")
    if folder.exists():
        raise UsageError(f"{folder} is a file; name a folder that is new or empty")


def _say_here(readme: Path, example: Example) -> None:
    """The commands of the README, for who stands in the copy."""
    text = readme.read_text(encoding="utf-8")
    readme.write_text(_here(text, example), encoding="utf-8")


def _here(text: str, example: Example) -> str:
    return text.replace(f"{example.called}/", "").replace(example.called, ".")


def _next(folder: Path, example: Example) -> str:
    command = _here(example.command, example)
    return command if folder == Path() else f"cd {shlex.quote(str(folder))} && {command}"
