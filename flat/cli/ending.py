"""How a command ends: its exit code, and one clear message when it did not do what was asked.

0 done · 1 run failed · 2 bad usage · 3 config invalid · 4 waiting · 5 cancelled · 6 limit · 7 timed out
8 owned by another, or finished already · 9 not found · 11 in doubt · 70 bug in flat · 130 interrupted
"""

from __future__ import annotations

import contextlib
import gc
import json as json_format
import os
import sys
import traceback
from collections.abc import Callable
from typing import IO, Any

import typer

from flat.cli.text import clean
from flat.errors import FlatError

DONE, FAILED, USAGE, WAITING, CANCELLED, LIMIT, TIMED_OUT = 0, 1, 2, 4, 5, 6, 7
TAKEN, MISSING, IN_DOUBT, BUG, INTERRUPTED = 8, 9, 11, 70, 130
BY_STATUS = {
    "done": DONE,
    "failed": FAILED,
    "waiting": WAITING,
    "cancelled": CANCELLED,
    "limit": LIMIT,
    "in_doubt": IN_DOUBT,
}


class UsageError(FlatError):
    """The command line asks for something that cannot be."""

    exit_code = USAGE


class Interrupted(Exception):
    """Ctrl-C, or a request to end. The message says how to go on."""


def finish(work: Callable[[], int], *, verbose: int = 0, json: bool = False) -> None:
    """Do a command's work and leave with its exit code."""
    try:
        code = work()
    except Interrupted as stopped:
        code = _told(str(stopped), INTERRUPTED, json)
    except KeyboardInterrupt:
        code = _told("interrupted", INTERRUPTED, json)
    except typer.Exit:
        raise
    except FlatError as error:
        code = _told(f"error: {_without_error(str(error))}", error.exit_code, json)
        _trace(error, verbose)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
        hint = "" if verbose else "; run it again with -v to see where, and report it"
        code = _told(f"this is a bug in flat: {message}{hint}", BUG, json)
        _trace(error, verbose)
    # Nothing here needs the cycles of what was loaded to be collected, and looking for them takes time.
    gc.freeze()
    raise typer.Exit(code)


def _without_error(message: str) -> str:
    return message.removeprefix("error: ")


def _told(message: str, code: int, json: bool) -> int:
    if json:
        say_json({"event": "error", "message": message, "exit_code": code})
    complain(message)
    return code


def _trace(error: BaseException, verbose: int) -> None:
    if verbose:
        complain("".join(traceback.format_exception(error)).rstrip())


def complain(message: str) -> None:
    """A message on standard error."""
    with contextlib.suppress(OSError):
        print(clean(message), file=sys.stderr, flush=True)


def say(text: str = "", file: IO[str] | None = None, *, raw: bool = False) -> None:
    """Text on standard output, cleaned unless it is wanted raw. A run goes on when its reader has gone away."""
    out = file or sys.stdout
    try:
        print(text if raw else clean(text), file=out, flush=True)
    except BrokenPipeError:
        # What is still buffered would be written, and complained about, at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


def say_json(value: Any, file: IO[str] | None = None) -> None:
    """One line of JSON on standard output."""
    say(json_format.dumps(value, default=str), file)


def prepare_streams() -> None:
    """Characters that a terminal cannot show are replaced, not fatal."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")
