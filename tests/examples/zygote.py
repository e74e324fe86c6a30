"""A process that has imported everything, and forks a `flat` command for each line that it reads.

Importing the model client takes seconds; a fork of one that has done so takes none. Each line is JSON, `{args, folder,
out, given, die_at}`: the command's output goes to the file `out`, its input comes from the file `given`. With `die_at`
the command kills itself, as `kill -9` would, when a text with this in it leaves it. The answer to each line is
`{code}`, negative for a signal.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, TextIO


class Watched:
    """Standard output that kills its own process at a text."""

    def __init__(self, out: TextIO, text: str) -> None:
        self._out, self._text = out, text

    def write(self, said: str) -> int:
        if self._text in said:
            os.kill(os.getpid(), signal.SIGKILL)
        return self._out.write(said)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)


def command(job: dict[str, Any]) -> int:
    """Be the command: never to return into the server's loop."""
    os.chdir(job["folder"])
    out = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    os.dup2(os.open(job.get("given") or os.devnull, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0)
    sys.stdout = os.fdopen(1, "w", buffering=1)
    if job.get("die_at"):
        sys.stdout = Watched(sys.stdout, job["die_at"])  # type: ignore[assignment]
    return flat(job["args"])


def flat(args: list[str]) -> int:
    """Run a `flat` command in this process; gives its exit code."""
    from flat.cli.app import app

    try:
        app(args, prog_name="flat")
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def warm() -> None:
    """Import what a command needs, by running one. It leaves no thread behind when we fork."""
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        if flat(["run", sys.argv[1], "--store", "memory:", "--quiet"]):
            raise SystemExit("the first command failed")
    finally:
        sys.stdout = out


def main() -> None:
    warm()
    print("ready", flush=True)
    for line in sys.stdin:
        if not (pid := os.fork()):
            code = 70
            try:
                code = command(json.loads(line))
            finally:
                sys.stdout.flush()
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


if __name__ == "__main__":
    main()
