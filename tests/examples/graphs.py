"""The picture in an example's README. Run this file to draw all of them anew."""

from __future__ import annotations

import re
from pathlib import Path

from flat.cli.project import find_project
from flat.cli.tree_checks import charter_mermaid
from flat.cli.tree_checks import load as load_charter
from flat.runtime import load
from flat.runtime.graph import mermaid

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(folder.parent.name for folder in EXAMPLES.glob("*/README.md"))
_FENCE = re.compile(r"```mermaid\n(.*?)```", re.DOTALL)


def drawn(folder: Path) -> str:
    """What `flat graph` draws."""
    project = find_project(folder)
    return (
        charter_mermaid(load_charter(folder)) if project.charter else mermaid(load(project.machine).program)
    )


def shown(folder: Path) -> str:
    """What the README shows."""
    found = _FENCE.search((folder / "README.md").read_text(encoding="utf-8"))
    return found.group(1) if found else ""


def redraw(folder: Path) -> None:
    """Put the picture into the README, in place of the one that is there."""
    readme = folder / "README.md"
    text = readme.read_text(encoding="utf-8")
    picture = f"```mermaid\n{drawn(folder)}```"
    readme.write_text(_FENCE.sub(lambda _: picture, text), encoding="utf-8")


if __name__ == "__main__":
    for name in NAMES:
        redraw(EXAMPLES / name)
