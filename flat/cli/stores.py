"""Which store a command uses, and which execution in it a shortened id means."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

from flat.backends import store_opener
from flat.backends.protocols import Execution
from flat.cli.ending import UsageError
from flat.cli.text import short_id
from flat.errors import ExecutionNotFound
from flat.runtime import Runtime

DEFAULT = "sqlite:///flat.db"
MEMORY = "memory:"
SHOWN = 5


def store_url(given: str | None) -> str:
    """The store's URL, or the default. A folder that exists is a file store. Raises if it is written wrongly."""
    url = given or DEFAULT
    if ":" not in url and Path(url).is_dir():
        url = f"file:{url}"
    store_opener(url)
    return url


def is_missing(url: str) -> bool:
    """Whether the store's file is certainly not there: then there is nothing to look up, or to create."""
    scheme, colon, rest = url.partition(":")
    if not colon or len(scheme) == 1:
        return not Path(url).exists()
    path = unquote(rest.partition("?")[0])
    if path.startswith("///"):
        path = path[3:]
    return scheme in ("sqlite", "file", "files") and not Path(path).exists()


def need_store(url: str, execution_id: str) -> None:
    """Raise when an execution is looked for where there is no store."""
    if is_missing(url):
        raise ExecutionNotFound(execution_id, hint=f"there is no store at {url}; name it with --store")


async def full_id(runtime: Runtime, given: str) -> str:
    """The one execution whose id is, or begins with, the given text."""
    if await runtime.opened().get(given) is not None:
        return given
    found: list[Execution] = [e for e in await runtime.list() if e.execution_id.startswith(given)]
    if not found or not given:
        raise ExecutionNotFound(given, hint="list them with: flat runs list")
    if len(found) > 1:
        shown = ", ".join(e.execution_id for e in found[:SHOWN])
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise UsageError(f'"{given}" may mean {len(found)} executions: {shown}{more}')
    return found[0].execution_id


def resume_hint(execution_id: str, store: str | None, path: Path | None = None, more: str = "") -> str:
    """The command that goes on with an execution."""
    parts = ["flat resume", short_id(execution_id)]
    if path is not None and not path.resolve().is_relative_to(Path.cwd()):
        parts.append(str(path))
    if more:
        parts.append(more)
    if store and store != DEFAULT:
        parts.append(f"--store {store}")
    return " ".join(parts)
