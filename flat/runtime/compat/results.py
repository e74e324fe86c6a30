"""Results of executions by URI, and machines started as processes of their own."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import anyio
import orjson

from flat.errors import DefinitionError

SCHEME = "flatagents://"


def make_uri(execution_id: str, path: str = "result") -> str:
    """`flatagents://ID/result`."""
    return f"{SCHEME}{execution_id}/{path}"


def parse_uri(uri: str) -> tuple[str, str]:
    """The execution's id and the path, which is `result` when it is left out."""
    if not uri.startswith(SCHEME):
        raise ValueError(f"Invalid FlatAgents URI: {uri}")
    execution_id, _, path = uri.removeprefix(SCHEME).partition("/")
    return execution_id, path or "result"


@runtime_checkable
class ResultBackend(Protocol):
    """Where results are found by URI. A failed execution's result is `{"_error": …, "_error_type": …}`."""

    async def write(self, uri: str, data: Any) -> None: ...

    async def read(self, uri: str, block: bool = True, timeout: float | None = None) -> Any:
        """The result; when it is not there, wait for it at most `timeout` seconds, or give None at once."""
        ...

    async def exists(self, uri: str) -> bool: ...

    async def delete(self, uri: str) -> None: ...


class InMemoryResultBackend:
    """Results of this process."""

    def __init__(self) -> None:
        self._results: dict[str, Any] = {}
        self._written: dict[str, anyio.Event] = {}

    async def write(self, uri: str, data: Any) -> None:
        parse_uri(uri)
        self._results[uri] = data
        if (event := self._written.pop(uri, None)) is not None:
            event.set()

    async def read(self, uri: str, block: bool = True, timeout: float | None = None) -> Any:
        parse_uri(uri)
        if uri not in self._results:
            if not block:
                return None
            event = self._written.setdefault(uri, anyio.Event())
            with anyio.move_on_after(timeout):
                await event.wait()
            if uri not in self._results:
                raise TimeoutError(f"Timeout waiting for result at {uri}")
        return self._results[uri]

    async def exists(self, uri: str) -> bool:
        return uri in self._results

    async def delete(self, uri: str) -> None:
        self._results.pop(uri, None)


_default: list[InMemoryResultBackend] = []


def get_default_result_backend() -> InMemoryResultBackend:
    """The one that machines of this process share unless they are given another."""
    if not _default:
        _default.append(InMemoryResultBackend())
    return _default[0]


def reset_default_result_backend() -> None:
    """Forget the shared one with all its results."""
    _default.clear()


@dataclass
class LaunchIntent:
    """A machine that is to be started, as stored beside the execution that wants it."""

    execution_id: str
    machine: str
    input: dict[str, Any]
    launched: bool = False

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> LaunchIntent:
        return cls(**data)


def launch_machine(
    machine_config: str | Path | Mapping[str, Any],
    input_data: Mapping[str, Any] | None,
    execution_id: str | None = None,
    working_dir: str | Path | None = None,
    parent_id: str | None = None,
) -> str:
    """Start a machine in a process of its own, which outlives this one. Its id comes back at once.

    The process runs `flat run` in `working_dir`, with the store and the project file that are found there, so that
    hooks named in the file are the project's.
    """
    del parent_id  # an execution of another process's store has no parent here
    execution_id = execution_id or str(uuid.uuid4())
    if isinstance(machine_config, Mapping):
        with tempfile.NamedTemporaryFile(
            "wb", suffix=".json", prefix="machine-", dir=working_dir, delete=False
        ) as file:
            file.write(orjson.dumps(dict(machine_config)))
        path = Path(file.name)
    else:
        path = Path(machine_config).expanduser().resolve()
    if not path.exists():
        raise DefinitionError(f"there is no machine file {path}")
    command = [sys.executable, "-m", "flat.cli", "run", str(path), "--id", execution_id, "--json"]
    given = orjson.dumps(dict(input_data or {})).decode()
    subprocess.Popen(
        [*command, "--input", given],
        cwd=working_dir or path.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    return execution_id


class SubprocessInvoker:
    """Starts what a machine launches as processes of their own."""

    def __init__(self, machine_path: str | None = None, working_dir: str | Path | None = None) -> None:
        del machine_path
        self.working_dir = working_dir

    async def launch(
        self, caller_machine: Any, target_config: Any, input_data: Mapping[str, Any], execution_id: str
    ) -> None:
        """Start it, and do not wait."""
        del caller_machine
        launch_machine(target_config, input_data, execution_id, self.working_dir)
