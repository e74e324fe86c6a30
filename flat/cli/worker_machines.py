"""Which machine an execution in a store belongs to, and whether this process may run it.

An execution goes on with the program that is stored with it. Its hooks come from the project that its family was
started from, and only if that is below a folder, or is a file, that the user named: a store must not choose which code
is imported. Whatever else there is, is declined, and left to those who may run it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flat.cli.ending import UsageError
from flat.cli.family import top_of
from flat.cli.models import model_for
from flat.cli.project import Project, find_project, is_reference
from flat.cli.show import Show
from flat.drivers.dispatch import Declined
from flat.errors import BackendError, ExecutionNotFound, FlatError
from flat.runtime import Machine, Runtime
from flat.runtime.machine import program_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """What may be run: whatever was started from below these folders, or from these files and charters."""

    folders: Sequence[Path] = ()
    files: Sequence[Path] = ()
    hint: str = ""
    """What to do about an execution that came from elsewhere."""

    def check(self, origin: Path) -> None:
        """Raise unless this file, folder or charter is one of them. Both ways of writing it are resolved."""
        if origin in self.files or origin in (file.parent for file in self.files):
            return
        if any(_code_of(origin).is_relative_to(folder) for folder in self.folders):
            return
        shown = " or ".join(str(place) for place in (*self.folders, *self.files))
        raise BackendError(f"it came from {origin}, which is not below {shown}{self.hint}")


def trusted(places: Sequence[Path], *, hint: str) -> Trust:
    """Trust in the folders and files that were named, or else in the working directory. Raises if one is not there."""
    folders: list[Path] = []
    files: list[Path] = []
    for place in (one.expanduser() for one in places or (Path.cwd(),)):
        if place.is_dir():
            folders.append(place.resolve())
        elif place.is_file():
            files += {place.resolve(), find_project(place).machine.resolve()}
        elif is_reference(place):
            files.append(place.resolve())
        else:
            raise UsageError(f"{place} is neither a folder nor a machine file")
    return Trust(folders=folders, files=files, hint=hint)


def _code_of(origin: Path) -> Path:
    """The file that a charter is to be imported from, or the machine file or folder itself.

    A module that is not beside the place where it is said to be is somewhere else on the Python path.
    """
    if not is_reference(origin):
        return origin
    module = origin.name.partition(":")[0]
    if module.endswith(".py"):
        return (origin.parent / module).resolve()
    inside = origin.parent.joinpath(*module.split("."))
    for file in (inside.with_name(f"{inside.name}.py"), inside / "__init__.py"):
        if file.is_file():
            return file.resolve()
    raise BackendError(
        f"it came from {origin}, and there is no such module; if it is installed, name the charter: {origin.name}"
    )


@dataclass
class Finder:
    """Finds the machine of an execution; each is made once, and its model started once."""

    runtime: Runtime
    trust: Trust
    stack: contextlib.ExitStack
    """What ends the models."""
    live: bool | None
    show: Show
    _machines: dict[tuple[str, str], Machine] = field(default_factory=dict)

    async def machine(self, execution_id: str) -> Machine:
        """The machine. Raises `Declined` if it is not for us, or cannot be made."""
        store = self.runtime.opened()
        execution = await store.get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        # A child's names are answered by the project that its family was started from.
        top = await top_of(self.runtime, execution)
        key = (execution.program, top.program)
        if (known := self._machines.get(key)) is not None:
            return known
        text, home = await store.get_config(execution.program), await store.get_config(top.program)
        try:
            if text is None or home is None:
                raise BackendError("its program is not in this store")
            machine = self._machines[key] = self._make(text, home)
        except FlatError as error:
            # Nobody's fault but ours: it must stay as it is until this is mended, or for another process.
            raise Declined(str(error)) from error
        return machine

    def _make(self, text: bytes, top: bytes) -> Machine:
        (program, own), (first, origin) = program_of(text), program_of(top)
        if origin is None:
            raise BackendError("its store does not say which file it came from; use flat resume ID FILE")
        origin = origin.resolve()
        self.trust.check(origin)
        if not origin.exists() and not is_reference(origin):
            raise BackendError(f"{origin}, which it was started from, is gone; use flat resume ID FILE")
        project: Project = find_project(origin)
        names = project.registry(), project.bindings()
        if program.kind == "tree":
            from flat.cli.trees import tree_of  # machines of states do without

            machine = tree_of(project, program, Machine(first, *names, origin=origin))
        else:
            machine = Machine(program, *names, origin=own)
        self.stack.enter_context(model_for(machine, project, self.live, self.show))
        return machine
