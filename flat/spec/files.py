"""Which files a machine may read: those under its project root, and under roots its user named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from flat.errors import Problem, SpecError
from flat.spec.document import Document
from flat.spec.limits import LIMITS, Limits

MACHINE_NAMES = ("machine.yml", "machine.yaml", "machine.json")
_SUFFIXES = (".yml", ".yaml", ".json")


class Refused(Exception):
    """A reference that cannot be followed. The caller knows where it is written."""

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        self.code, self.message, self.hint = code, message, hint
        super().__init__(message)


class Files:
    """Reads files under the roots, once each, and keeps what was read."""

    def __init__(self, main: Path, roots: Iterable[Path | str] = (), limits: Limits = LIMITS) -> None:
        self.directory = main
        home = main.parent if main.name == "config" else main
        self.widened = tuple(Path(os.path.realpath(Path(root).expanduser())) for root in roots)
        self.roots = (Path(os.path.realpath(home)), *self.widened)
        self.limits = limits
        self.contents: dict[str, bytes] = {}
        self.documents: dict[Path, Document] = {}

    def resolve(self, reference: str, *bases: Path) -> Path:
        """The real path of a reference, from the first base where it exists. Nothing is read."""
        if "\0" in reference or not reference.strip():
            raise Refused("path", f"{reference!r} is not a path")
        given = Path(reference).expanduser() if reference.startswith("~") else Path(reference)
        candidates = [given] if given.is_absolute() else [base / given for base in bases]
        paths = [self._inside(reference, given, candidate) for candidate in candidates]
        try:
            found = next((path for path in paths if path.is_file()), None)
        except OSError as error:  # such as a name that is too long
            raise Refused("path", f"{reference[:60]!r} is not a path: {error.strerror}") from None
        if found is None:
            raise Refused("missing-file", f"there is no file {reference}", f"looked for {paths[0]}")
        return found

    def _inside(self, reference: str, given: Path, candidate: Path) -> Path:
        real = Path(os.path.realpath(candidate))
        allowed = self.widened if given.is_absolute() else self.roots
        if not any(real.is_relative_to(root) for root in allowed):
            how = "is an absolute path" if given.is_absolute() else f"leads out of {self.roots[0]}"
            hint = "files must be under the project's folder; name further folders with roots="
            raise Refused("outside", f"the path {reference} {how}", hint)
        return real

    def name(self, path: Path) -> str:
        """How a path is called: relative to the first root if it is below it."""
        if path.is_relative_to(self.roots[0]):
            return path.relative_to(self.roots[0]).as_posix()
        return path.as_posix()

    def read(self, path: Path, shown: str | None = None) -> Document:
        """Parse a file that `resolve` gave."""
        if path not in self.documents:
            from flat.spec.parse import parse

            data = read_capped(path, self.limits)
            self.contents[self.name(path)] = data
            self.documents[path] = parse(data, shown or self.shown(path), limits=self.limits)
        return self.documents[path]

    def shown(self, path: Path) -> str:
        """How messages call a file: like the main file was called, when it stands beside or below it."""
        real = Path(os.path.realpath(self.directory))
        if path.is_relative_to(real):
            return (self.directory / path.relative_to(real)).as_posix()
        return os.path.relpath(path)


def read_capped(path: Path, limits: Limits = LIMITS) -> bytes:
    """The bytes of a regular file; a byte more than allowed is read at most."""
    try:
        with path.open("rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SpecError(Problem("path", f"{path} is not a file"))
            return file.read(limits.size + 1) or b""
    except OSError as error:
        raise SpecError(Problem("missing-file", f"cannot read {path}: {error.strerror}")) from None


def find_machine(path: Path) -> Path:
    """The machine file that a path means: itself, or the one in that folder."""
    try:
        if path.is_file():
            return path
    except OSError as error:
        said = f"{str(path)[:60]!r} is not a path: {error.strerror}"
        raise SpecError(Problem("path", said)) from None
    if not path.is_dir():
        near = f"; in that folder: {_listed(path.parent)}" if path.parent.is_dir() else ""
        raise SpecError(Problem("missing-file", f"there is no machine file {path}{near}"))
    for folder in (path, path / "config"):
        for name in MACHINE_NAMES:
            if (folder / name).is_file():
                return folder / name
    found = [file for file in sorted(path.iterdir()) if file.suffix in _SUFFIXES and _is_machine(file)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise SpecError(Problem("missing-file", f"there is no machine.yml in {path}"))
    names = ", ".join(file.name for file in found)
    raise SpecError(
        Problem("missing-file", f"{path} has several machine files: {names}", hint="name one of them")
    )


def _is_machine(path: Path) -> bool:
    from flat.spec.parse import parse

    try:
        value = parse(read_capped(path), path.name).value
    except SpecError:
        return False
    return isinstance(value, dict) and value.get("spec") == "flatmachine"


def _listed(folder: Path) -> str:
    names = sorted(file.name for file in folder.iterdir() if file.suffix in _SUFFIXES)
    return ", ".join(names[:8]) or "no YAML file"
