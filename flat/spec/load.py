"""From a path, or a mapping, to a `MachineSource`: files read, shapes checked, references followed.

The models are imported only when a machine is loaded: whoever has a compiled program needs none of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flat.errors import Problem, SpecError
from flat.spec.document import Document
from flat.spec.files import Files, find_machine
from flat.spec.limits import LIMITS, Limits
from flat.spec.sources import MachineSource, Part


def load_machine(
    path: str | os.PathLike[str],
    *,
    compat: bool = False,
    roots: Iterable[Path | str] = (),
    profiles_file: str | os.PathLike[str] | None = None,
    catalogue: Mapping[str, Any] | None = None,
    check: bool = True,
    limits: Limits = LIMITS,
) -> MachineSource:
    """Load a machine file, or the machine of a folder, with all that it refers to.

    Everything that is wrong in any of the files comes in one `SpecError`; warnings are in `.problems`.
    `catalogue` has the profiles, as plain data, for a machine that has none of its own. `check=False` leaves out
    names, targets, templates and conditions, which `check_machine` checks.
    """
    main = find_machine(Path(path).expanduser())
    files = Files(main.parent, roots, limits)
    real = Path(os.path.realpath(main))
    try:
        document = files.read(real, main.as_posix())
    except RecursionError:
        raise SpecError(Problem("too-deep", f"{main} is nested too deeply")) from None
    return _assemble(document, files, compat, profiles_file, catalogue, check)


def load_machine_dict(
    config: Mapping[str, Any],
    base_dir: str | os.PathLike[str] | None = None,
    *,
    compat: bool = False,
    roots: Iterable[Path | str] = (),
    profiles_file: str | os.PathLike[str] | None = None,
    catalogue: Mapping[str, Any] | None = None,
    check: bool = True,
    limits: Limits = LIMITS,
) -> MachineSource:
    """Load a machine from a mapping. Problems name the path of keys, since there is no file to point into."""
    files = Files(Path(base_dir) if base_dir is not None else Path.cwd(), roots, limits)
    value = dict(config) if isinstance(config, Mapping) else config
    return _assemble(Document(value), files, compat, profiles_file, catalogue, check)


def _assemble(
    document: Document,
    files: Files,
    compat: bool,
    profiles_file: str | os.PathLike[str] | None,
    catalogue: Mapping[str, Any] | None,
    check: bool,
) -> MachineSource:
    from flat.spec.assemble import Assembly

    if not isinstance(document.value, Mapping):
        hint = "a machine file begins with `spec: flatmachine`"
        said = "the file is empty" if document.value is None else "the file is not a mapping"
        raise SpecError(Problem("spec", said, document.locate(()), hint))
    compat = compat or _asks_for_compat(document)
    assembly = Assembly(Part(value=document.value, document=document), files, compat)
    return assembly.finish(profiles_file, catalogue, check)


def _asks_for_compat(document: Document) -> bool:
    asked = document.get(("data", "settings", "compat"))
    return bool(asked) and str(asked).lower() not in ("false", "no", "off")
