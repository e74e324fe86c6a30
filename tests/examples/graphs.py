"""The picture in an example's README, and the list of all examples. Run this file to write them anew."""

from __future__ import annotations

import re
from pathlib import Path

from flat.cli.examples import examples
from flat.cli.project import find_project
from flat.cli.tree_checks import charter_mermaid
from flat.cli.tree_checks import load as load_charter
from flat.runtime import load
from flat.runtime.graph import mermaid

EXAMPLES = Path(__file__).parents[2] / "examples"
NAMES = sorted(folder.parent.name for folder in EXAMPLES.glob("*/README.md"))
LIST = EXAMPLES / "README.md"
_LIST = """\
# Examples

Each is a folder with a README, a picture of its states, and all that it needs: `flat run FOLDER`.
Without a key a script answers in place of the model, and says so.
`flat examples` prints this list, `flat init --from NAME DIR` makes one your own.

*Local*: whether all its steps fill in schemas, as a very small model on your own machine can.
`pip install 'flat[local]'`, and `flat run FOLDER --profile local` leads it to its end.
What that model says need not make sense.

| example | local | what it shows |
| --- | --- | --- |
"""
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


def all_listed() -> str:
    """The page that lists all examples."""
    rows = (f"| [{one.name}]({one.name}/README.md) | {one.locally} | {one.about} |\n" for one in examples())
    return _LIST + "".join(rows)


if __name__ == "__main__":
    LIST.write_text(all_listed(), encoding="utf-8")
    for name in NAMES:
        redraw(EXAMPLES / name)
