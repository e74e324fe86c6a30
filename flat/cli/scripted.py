"""`flat script`: a command of the user's, with a scripted model in place of a real one."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

from flat.cli.ending import UsageError, complain
from flat.cli.models import scripted_model

SIGNALLED = 128


def run_command(script: Path, command: Sequence[str]) -> int:
    """Run the command; gives its exit code."""
    if not command:
        raise UsageError("name a command: flat script SCRIPT -- python run.py")
    with scripted_model(script) as url:
        complain(f"model: scripted from {script}, not a real model; OPENAI_BASE_URL is {url}")
        try:
            process = subprocess.Popen(command, env=os.environ.copy())
        except OSError as error:
            raise UsageError(f"cannot run {command[0]}: {error.strerror}") from None
        code = _wait(process)
    return SIGNALLED - code if code < 0 else code


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for the end, whatever comes: Ctrl-C reaches the command itself."""
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
