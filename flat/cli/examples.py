"""`flat examples`: what ships as an example, and where.

An example is a folder with a README: its first paragraph says what it shows, its first indented line is the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import flat
from flat.cli.ending import DONE, UsageError, say, say_json
from flat.cli.project import find_project
from flat.cli.tables import room, table
from flat.errors import did_you_mean

README = "README.md"
_CODE = " " * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One folder that can be run, and copied as a start for something else."""

    name: str
    about: str
    command: str
    """What its README says to type, beside the folder of examples."""
    folder: Path
    model: bool
    """Whether it asks a model at all."""
    local: bool
    """Whether its profiles have the small model of this machine, for `flat run --profile local`."""

    @property
    def called(self) -> str:
        """How its README calls its folder."""
        return f"examples/{self.name}"

    @property
    def locally(self) -> str:
        """Whether the small model of this machine can run it, in a word or two."""
        if not self.model:
            return "no model"
        return "yes" if self.local else "no"


def examples() -> list[Example]:
    """All that ship, by name."""
    return [_read(folder) for folder in _folders()]


def find_example(name: str) -> Example:
    """The example of that name. Raises `UsageError` that lists what exists."""
    known = {folder.name: folder for folder in _folders()}
    if name not in known:
        raise UsageError(f'there is no example "{name}"; {did_you_mean(name, known)}')
    return _read(known[name])


def list_examples(*, json: bool) -> int:
    """Print every example with what it shows."""
    found = examples()
    if json:
        say_json([{**asdict(one), "folder": str(one.folder)} for one in found])
        return DONE
    rows = [("example", "local", "what it shows"), *((one.name, one.locally, one.about) for one in found)]
    for line in table(rows, room()):
        say(line)
    say("\nlocal: on a very small model on this machine (flat[local]): flat run … --profile local")
    say("make one your own: flat init --from NAME DIR")
    return DONE


def _home() -> Path:
    """Inside the package where it was installed, beside it in a checkout."""
    package = Path(flat.__file__).parent
    return next(f for f in (package / "examples", package.parent / "examples") if f.is_dir())


def _folders() -> Iterator[Path]:
    return (folder for folder in sorted(_home().iterdir()) if (folder / README).is_file())


def _read(folder: Path) -> Example:
    text = (folder / README).read_text(encoding="utf-8")
    paragraphs = [one for one in text.split("\n\n") if not one.startswith(("#", _CODE))]
    about = " ".join(paragraphs[0].split()) if paragraphs else ""
    command = next((line.strip() for line in text.splitlines() if line.startswith(_CODE)), "")
    profiles = [settings for file in folder.rglob("profiles.*") for settings in _profiles(file)]
    return Example(
        name=folder.name,
        about=re.split(r"(?<=\.) ", about, maxsplit=1)[0].rstrip(".:"),
        command=re.split(r"\s{2,}#", command, maxsplit=1)[0],
        folder=folder,
        model=bool(profiles) or find_project(folder).script is not None,
        local=any(settings.get("provider") == "local" for settings in profiles),
    )


def _profiles(file: Path) -> Iterator[Mapping[str, Any]]:
    from flat.agents.profiles import read_catalogue
    from flat.spec.parse import parse

    yield from read_catalogue(parse(file.read_bytes(), file.name).value).profiles.values()
