"""`flat runs export` and `flat runs import`: executions out of a store into a file, and into a store again."""

from __future__ import annotations

import contextlib
import json as json_format
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING

import anyio

from flat.cli.ending import DONE, FAILED, UsageError, complain, say
from flat.cli.project import find_project
from flat.cli.runs import check_statuses, shown_status
from flat.cli.stores import full_id, is_missing, store_url
from flat.cli.text import count
from flat.errors import BackendError
from flat.runtime import Runtime
from flat.runtime.transfer import (
    Contents,
    Existing,
    Exported,
    Imported,
    check_file,
    everything,
    export_runs,
    families,
    import_runs,
)

if TYPE_CHECKING:
    from flat.runtime.from_flatmachines import Carried

STREAM = "-"
SHOWN = 10
IN_MEMORY = 8 << 20
"""A file that comes through a pipe is kept in memory up to this size, and on disk beyond it."""


def export(
    ids: Sequence[str], *, statuses: Sequence[str], all_: bool, output: str | None, store: str | None, json: bool
) -> int:  # fmt: skip
    """Write executions, with their families, into a file."""
    if (bool(ids), bool(statuses), all_).count(True) != 1:
        raise UsageError("say which executions: their ids, --status, or --all")
    check_statuses(statuses)
    if output is None and sys.stdout.isatty():
        raise UsageError("name a file: -o FILE (or -o - for standard output)")
    url = store_url(store)
    if is_missing(url):
        raise BackendError(f"there is no store at {url}; name it with --store")
    with _opened_for_writing(output or STREAM) as out:
        told = anyio.run(_export, url, ids, statuses, all_, out)
    _tell_export(told, output or STREAM, json)
    return FAILED if told.damaged else DONE


async def _export(
    url: str, ids: Sequence[str], statuses: Sequence[str], all_: bool, out: IO[bytes]
) -> Exported:
    async with Runtime(url) as runtime:
        store = runtime.opened()
        if all_:
            return await export_runs(store, await everything(store), out, whole=True, now=runtime.clock.now)
        named = [await full_id(runtime, given) for given in ids]
        if statuses:
            found = [e for e in await runtime.list() if await shown_status(runtime, e) in statuses]
            named = [e.execution_id for e in reversed(found)]
        return await export_runs(store, await families(store, named), out, now=runtime.clock.now)


@contextlib.contextmanager
def _opened_for_writing(output: str) -> Iterator[IO[bytes]]:
    """The file to write, which is there whole or not at all; or standard output."""
    if output == STREAM:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    path = Path(output)
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BackendError(f"{path} cannot be written: {error.strerror or error}") from error
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise BackendError(f"{path} cannot be written: {error.strerror or error}") from error
        raise


def _tell_export(told: Exported, output: str, json: bool) -> None:
    # Standard output may be the file itself.
    tell = complain if output == STREAM else say
    if json:
        tell(json_format.dumps(asdict(told)))
        return
    parts = [
        count(told.executions, "execution"),
        count(told.commits, "commit"),
        count(told.programs, "program"),
    ]
    for number, noun in (
        (told.blobs, "blob"), (told.signals, "signal that waits"), (told.dead, "dead letter"),
    ):  # fmt: skip
        if number:
            parts.append(count(number, noun) if noun != "signal that waits" else _waiting(number))
    where = "" if output == STREAM else f" to {output}"
    tell(f"exported {', '.join(parts)}{where} ({told.bytes:,} bytes)")
    for id_ in told.driven[:SHOWN]:
        complain(f"warning: {id_} is being driven; what it does from now on is not in the file")
    for id_ in told.damaged:
        complain(f"not exported: {id_} is damaged; flat doctor tells more")
    _warn_missing(told.missing, "the store does not have")


def _waiting(number: int) -> str:
    return "1 signal that waits" if number == 1 else f"{number:,} signals that wait"


def _warn_missing(missing: Sequence[str], where: str) -> None:
    for what in missing[:SHOWN]:
        complain(f"warning: {where} {what}; that execution cannot be read in full")
    if len(missing) > SHOWN:
        complain(f"warning: and {len(missing) - SHOWN} more")


# -- in ----------------------------------------------------------------------------------------------


def import_(file: str, *, skip: bool, replace: bool, store: str | None, json: bool) -> int:
    """Store the executions of a file."""
    if skip and replace:
        raise UsageError("say one of --skip-existing and --replace")
    existing: Existing = "skip" if skip else "replace" if replace else "refuse"
    url = store_url(store)
    with _opened_for_reading(file) as source:
        told = anyio.run(_import, url, source, check_file(source), existing)
    if json:
        say(json_format.dumps(asdict(told)))
        return DONE
    parts = [count(told.executions, "execution"), count(told.commits, "commit")]
    if told.signals:
        parts.append(_waiting(told.signals))
    if told.dead:
        parts.append(count(told.dead, "dead letter"))
    say(f"imported {', '.join(parts)} into {url}")
    if told.skipped:
        say(f"left out {count(len(told.skipped), 'execution')} that the store has already")
    if told.replaced:
        say(f"replaced {count(len(told.replaced), 'execution')}")
    _warn_missing(told.missing, "the file does not have")
    return DONE


async def _import(url: str, source: IO[bytes], contents: Contents, existing: Existing) -> Imported:
    """Store what is in a file that was found whole; opening a store that is not there makes it."""
    async with Runtime(url) as runtime:
        return await import_runs(
            runtime.opened(), source, existing=existing, contents=contents, now=runtime.clock.now
        )


@contextlib.contextmanager
def _opened_for_reading(file: str) -> Iterator[IO[bytes]]:
    """The file to read; what comes through a pipe is kept, because it is read twice."""
    if file == STREAM:
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as kept:
            shutil.copyfileobj(sys.stdin.buffer, kept)
            yield kept
        return
    try:
        source = open(file, "rb")  # noqa: SIM115 - closed below, and only opening it is explained
    except OSError as error:
        raise BackendError(f"{file} cannot be read: {error.strerror or error}") from error
    with source:
        if source.seekable():
            yield source
            return
        with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as kept:
            shutil.copyfileobj(source, kept)
            yield kept


def import_flatmachines(
    path: Path, machines: Sequence[Path], *, compat: bool, skip: bool, replace: bool, store: str | None, json: bool
) -> int:  # fmt: skip
    """Store the executions that flatmachines keeps at a path; 1 if some of them had to be left there."""
    if skip and replace:
        raise UsageError("say one of --skip-existing and --replace")
    from flat.runtime import load
    from flat.runtime.flatmachines_files import open_source
    from flat.runtime.from_flatmachines import convert

    url = store_url(store)
    existing: Existing = "skip" if skip else "replace" if replace else "refuse"
    loaded = [load(find_project(machine).machine, compat=compat) for machine in machines]
    with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as kept:
        with contextlib.closing(open_source(path)) as source:
            carried = convert(source, loaded, kept, compat=compat)
        told = anyio.run(_import, url, kept, check_file(kept), existing)
    if json:
        say(json_format.dumps({**asdict(told), "carried": asdict(carried)}))
    else:
        _tell_carried(carried, told, url)
    return FAILED if carried.left else DONE


def _tell_carried(carried: Carried, told: Imported, url: str) -> None:
    say(
        f"imported {count(told.executions, 'execution')} into {url}: {len(carried.done):,} over, "
        f"{len(carried.parked):,} parked, {len(carried.running):,} to resume"
        + (f"; {_waiting(told.signals)}" if told.signals else "")
    )
    if told.skipped:
        say(f"left out {count(len(told.skipped), 'execution')} that the store has already")
    for id_, note in carried.notes:
        complain(f"note: {id_ + ': ' if id_ else ''}{note}")
    for id_, why in carried.left:
        complain(f"not carried over: {id_}: {why}")
    for id_ in carried.running[:SHOWN]:
        say(f"go on with: flat resume {id_}")
