"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Store = Annotated[
    str | None,
    typer.Option(
        envvar="FLAT_STORE", metavar="URL",
        help="Where executions are kept: sqlite:///FILE, file:FOLDER, a path ending in .db, or memory: to "
        "keep nothing. Default: sqlite:///flat.db",
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, and nothing else.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the output.")]
Get = Annotated[
    str | None,
    typer.Option(
        "--get", metavar="FIELD", help="Only this field of the output (a.b.0): text as it is, else JSON."
    ),
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        show_default=False,
        help="The log on stderr, and tracebacks; -vv for more.",
    ),
]
Plain = Annotated[bool, typer.Option("--plain", help="One line per event, also in a terminal.")]
Compat = Annotated[
    bool, typer.Option("--compat", help="Let pass, with a warning, what flatmachines lets pass.")
]
Live = Annotated[
    bool | None,
    typer.Option(
        "--live/--scripted",
        help="Insist on the real model, or on the script in flat.toml. Default: the real one with a key.",
    ),
]
Trigger = Annotated[
    str | None,
    typer.Option(
        envvar="FLAT_TRIGGER", metavar="KIND",
        help="How a dispatcher is woken: file, socket or none. Default: file.",
    ),
]  # fmt: skip
TriggerPath = Annotated[
    Path | None,
    typer.Option(
        envvar="FLAT_TRIGGER_PATH", metavar="PATH",
        help="The trigger's folder, or its socket. Default: a folder of this user's own.",
    ),
]  # fmt: skip
Profile = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Run every agent on this profile of the machine's catalogue, whichever it names."
    ),
]
MaxCalls = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Stop after N model calls in all, with status `limit`.")
]
CharterPath = Annotated[
    Path, typer.Argument(metavar="MODULE:NAME", help="A charter: module:charter or folder/file.py:charter.")
]
WrittenTo = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")]
