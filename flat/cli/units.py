"""Files by which systemd or launchd starts `flat dispatch --once` when a signal arrives, and once a minute for timers.

Nothing of ours then runs in between. The minute also catches a signal that came in the moment in which the dispatcher
had looked for the last time and the system had not begun to watch again.
"""

from __future__ import annotations

import hashlib
import plistlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from flat.backends.triggers import FileTrigger
from flat.cli.ending import DONE, UsageError, say
from flat.cli.stores import MEMORY, store_url

KINDS = ("systemd", "launchd")
EVERY = 60
"""Seconds between two looks for timers."""


@dataclass(frozen=True, slots=True)
class Activation:
    """What the system is to start, where, and what it watches."""

    folder: Path
    trigger: Path
    command: Sequence[str]

    @property
    def name(self) -> str:
        """One per project and store, and the same every time."""
        told = "\0".join((str(self.folder), *self.command[1:]))
        return f"flat-dispatch-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def print_units(
    kind: str, *, store: str | None, concurrency: int, trigger_path: Path | None, install: Path | None
) -> int:
    """Print the files, or write them into a folder and say what to do next."""
    if kind not in KINDS:
        raise UsageError(f'there are units for {" and ".join(KINDS)}, not for "{kind}"')
    trigger = FileTrigger(trigger_path)
    url = absolute_url(store_url(store))
    command = [sys.executable, "-m", "flat.cli", "dispatch", "--once", "--store", url]
    if concurrency != 16:
        command += ["--concurrency", str(concurrency)]
    activation = Activation(Path.cwd(), trigger.path, command)
    for text in (str(activation.folder), str(activation.trigger), *command):
        if any(ord(character) < 32 for character in text):
            raise UsageError(f"{text!r} has a line break or a control character, which no unit can hold")
    files = systemd_units(activation) if kind == "systemd" else launchd_agent(activation)
    if install is None:
        for name, text in files.items():
            say(f"# {name}\n{text}" if kind == "systemd" else text.rstrip())
        return DONE
    install = install.expanduser()
    try:
        install.mkdir(parents=True, exist_ok=True)
        trigger.touch()  # there has to be something to watch
        for name, text in files.items():
            (install / name).write_text(text, encoding="utf-8")
            say(f"wrote {install / name}")
    except OSError as error:
        raise UsageError(f"cannot write the units: {error}") from error
    for line in _next_steps(kind, activation.name, install):
        say(line)
    return DONE


def absolute_url(url: str) -> str:
    """The URL of a store that means the same from any folder."""
    if url == MEMORY:
        raise UsageError("a dispatcher needs a store that is kept; name one with --store")
    scheme, colon, rest = url.partition(":")
    if not colon or len(scheme) == 1:
        return f"sqlite:///{quote(str(Path(url).absolute()), safe='/')}"
    if scheme not in ("sqlite", "file", "files"):
        return url
    path, mark, options = rest.partition("?")
    if path.startswith("//"):
        path = path[2:].partition("/")[2]
    absolute = quote(str(Path(unquote(path)).absolute()), safe="/")
    return f"{scheme}:{'///' if scheme == 'sqlite' else ''}{absolute}{mark}{options}"


# -- systemd -----------------------------------------------------------------------------------


def systemd_units(activation: Activation) -> Mapping[str, str]:
    """The units of a user, by file name: a path that is watched, a timer, and the service that both start."""
    name = activation.name
    about = f"Description=Resume executions of {_value(str(activation.folder))}"
    service = f"""\
[Unit]
{about}

[Service]
Type=oneshot
WorkingDirectory={_value(str(activation.folder))}
ExecStart={" ".join(_argument(part) for part in activation.command)}
# Keys of models, one NAME=value a line; this file need not be there.
EnvironmentFile=-%h/.config/flat/dispatch.env
"""
    path = f"""\
[Unit]
{about}: a signal has come

[Path]
PathChanged={_value(str(activation.trigger))}
Unit={name}.service

[Install]
WantedBy=default.target
"""
    timer = f"""\
[Unit]
{about}: timers that are due

[Timer]
OnActiveSec={EVERY}
OnUnitInactiveSec={EVERY}
Unit={name}.service

[Install]
WantedBy=default.target
"""
    return {f"{name}.service": service, f"{name}.path": path, f"{name}.timer": timer}


def _value(text: str) -> str:
    """A whole value: only specifiers are special in it."""
    return text.replace("%", "%%")


def _argument(text: str) -> str:
    """One word of a command line."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_value(escaped)}"'


# -- launchd -----------------------------------------------------------------------------------


def launchd_agent(activation: Activation) -> Mapping[str, str]:
    """The agent of a user, by file name."""
    label = activation.name
    logs = Path.home() / "Library" / "Logs" / f"{label}.log"
    agent = {
        "Label": label,
        "ProgramArguments": list(activation.command),
        "WorkingDirectory": str(activation.folder),
        "WatchPaths": [str(activation.trigger)],
        "StartInterval": EVERY,
        "ThrottleInterval": 1,
        "RunAtLoad": True,
        "StandardOutPath": str(logs),
        "StandardErrorPath": str(logs),
    }
    return {f"{label}.plist": plistlib.dumps(agent, sort_keys=False).decode()}


def _next_steps(kind: str, name: str, folder: Path) -> list[str]:
    if kind == "launchd":
        plist = folder / f"{name}.plist"
        return [
            f"load it:    launchctl bootstrap gui/$(id -u) '{plist}'",
            f"unload it:  launchctl bootout gui/$(id -u)/{name}",
        ]
    return [
        f"start it:  systemctl --user daemon-reload && systemctl --user enable --now {name}.path {name}.timer",
        f"stop it:   systemctl --user disable --now {name}.path {name}.timer",
    ]
