"""The embedded default model: a small one, on this machine, without key or account.

    with serve() as model:
        print(model.describe(), model.api_base)

A process has one such server, started on first use and stopped at exit. `endpoint` is what the adapter asks
for when a profile says `provider: local`. Fetching the weights is `local_weights`'; the server's own program
is `local_server`.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from flat.agents.local_weights import SMOLLM2, Progress, Weights, ensure_weights, have_weights, weights_path
from flat.errors import BackendError

__all__ = [
    "SMOLLM2",
    "LocalModel",
    "Progress",
    "Weights",
    "endpoint",
    "ensure_weights",
    "have_weights",
    "serve",
    "weights_path",
]

MODEL = "openai/smollm2"
"""What litellm is told: any OpenAI-compatible server; the name behind the slash means nothing to it."""

_PROGRAM = Path(__file__).with_name("local_server.py")
_START_TIMEOUT = 60.0
_lock = threading.Lock()
_running: LocalModel | None = None


class LocalModel:
    """A running server with the local model; `close` or leaving the `with` block stops it."""

    model_name = SMOLLM2.name

    def __init__(self, weights: Path) -> None:
        self._owner = os.getpid()
        self._process, url = _start(weights)
        self.api_base = f"{url}/v1"
        atexit.register(self.close)

    def __enter__(self) -> LocalModel:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def alive(self) -> bool:
        """Whether the server still runs. A fork of the process that started it uses it, but cannot tell."""
        return os.getpid() != self._owner or self._process.poll() is None

    def describe(self) -> str:
        """One plain line, so that nobody mistakes the model for a large one."""
        return (
            f"SmolLM2-135M-Instruct (Q4_1, {SMOLLM2.size // 1_000_000} MB, {SMOLLM2.license}): a very small "
            "model running on this machine; good at filling in schemas, not at open questions"
        )

    def close(self) -> None:
        """Stops the server at once; there is nothing in it to lose. Harmless when repeated, or in a fork."""
        atexit.unregister(self.close)
        if os.getpid() == self._owner:
            _end(self._process)


def serve(progress: Progress | None = None) -> LocalModel:
    """The local model of this process, started if it is not running; `progress` watches a first download.

    Blocks for about a second, longer while the weights are fetched; event loops call it in a thread.
    """
    global _running
    with _lock:
        if _running is None or not _running.alive():
            _require_runtime()
            _running = LocalModel(ensure_weights(progress))
        return _running


def endpoint(profile: Mapping[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """What litellm is called with for a profile with `provider: local`. The calls cost nothing.

    Starts the server on first use; blocks like `serve`, and may be called from any thread.
    """
    name = profile.get("name") or SMOLLM2.name
    if name not in (SMOLLM2.name, "smollm2", "default"):
        raise BackendError(f'the provider "local" has one model, "{SMOLLM2.name}", not "{name}"')
    return {"model": MODEL, "api_base": serve(progress).api_base, "api_key": "none"}


def _require_runtime() -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        raise BackendError("the local model needs xllamacpp: pip install 'flat[local]'")


def _start(weights: Path) -> tuple[subprocess.Popen[bytes], str]:
    """The server's process and its address, once it is ready."""
    # -P: the program's directory is a package whose modules must not stand in for others of their name.
    command = [sys.executable, "-P", str(_PROGRAM), str(weights)]
    with tempfile.TemporaryFile() as noise:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            start_new_session=True,  # Ctrl-C is for the program that asks, not for the model
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        try:
            told = _first_line(process)
        except BaseException:
            _end(process)
            raise
        if "url" not in told:
            _end(process)
            noise.seek(0)
            said = noise.read().decode("utf-8", "replace").strip().splitlines()
            reason = told.get("error") or (said[-1] if said else f"it ended with {process.returncode}")
            raise BackendError(
                f"the local model does not start: {reason}; if its file is damaged, delete {weights.parent}"
            )
    return process, str(told["url"])


def _first_line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What the program prints when it is ready, or nothing when it dies first or takes too long."""
    alarm = threading.Timer(_START_TIMEOUT, process.kill)
    alarm.daemon = True
    alarm.start()
    try:
        line = _out(process).readline()
    finally:
        alarm.cancel()
    try:
        told = json.loads(line)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def _out(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
