"""`flat schema`: JSON Schemas for editors."""

from __future__ import annotations

from pathlib import Path

from flat.cli.ending import DONE, UsageError, complain, say
from flat.cli.project import find_project
from flat.errors import FlatError, did_you_mean
from flat.hooks.registry import BUILT_IN
from flat.spec.narrow import kind_of, narrowed, read
from flat.spec.schema import KINDS, rendered, schema


def show_schema(kind: str | None, *, file: Path | None, output: Path | None) -> int:
    """Print a schema, or write it into a file."""
    if kind is not None and kind not in KINDS:
        raise UsageError(f'there is no schema "{kind}"; {did_you_mean(kind, KINDS)}')
    text = rendered(schema(kind or KINDS[0]) if file is None else _for(file, kind))
    if output is None:
        say(text.rstrip("\n"))
        return DONE
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"cannot write {output}: {error.strerror}") from None
    complain(f"wrote {output}")
    return DONE


def _for(file: Path, kind: str | None) -> dict[str, object]:
    document = read(file)
    found = kind_of(document)
    if kind not in (None, KINDS[0], found):
        raise UsageError(f"{file} is of the kind {found}, not {kind}")
    return narrowed(document, [*BUILT_IN, *_registered(file)])


def _registered(file: Path) -> list[str]:
    """The hooks that the project file names; none if there is no such file, or it is being written too."""
    try:
        return list(find_project(file).hooks)
    except FlatError:
        return []
