"""The commands and their options, as typer sees them. No work is done here, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.ending import finish
from flat.cli.show import loading

app = typer.Typer(
    name="flat",
    help="One durable state-machine engine for LLM agents.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
runs_app = typer.Typer(help="Look at what has run.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(runs_app, name="runs")

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
MaxCalls = Annotated[
    int | None, typer.Option(min=0, metavar="N", help="Stop after N model calls in all, with status `limit`.")
]


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"flat {version('flat')}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


@app.command()
def run(
    path: Annotated[Path, typer.Argument(metavar="FILE|FOLDER", help="A machine, or a folder with one.")],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", metavar="K=V",
            help="k=text, k:=json, k=@file (its text), @file.json or '{\"k\": …}'. May be repeated.",
        ),
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="The execution's id. Default: a new one.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Stop after N steps, with status `limit`.")
    ] = None,
    max_agent_calls: MaxCalls = None,
    store: Store = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    plain: Plain = False,
    compat: Compat = False,
    live: Live = None,
) -> None:  # fmt: skip
    """Run a machine until it ends, waits, or reaches a limit."""

    def work() -> int:
        show = loading(f"loading {path}", json=json, quiet=quiet, plain=plain)
        from flat.cli.running import run

        return run(
            path, inputs or [], show=show, store=store, execution_id=id, max_steps=max_steps,
            max_agent_calls=max_agent_calls, compat=compat, live=live, verbose=verbose,
        )  # fmt: skip

    finish(work, verbose=verbose, json=json)


@app.command()
def resume(
    id: Annotated[str, typer.Argument(metavar="ID", help="The execution; the beginning of its id will do.")],
    path: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE|FOLDER]", help="The machine. Default: where it was loaded from."),
    ] = None,
    more_steps: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Allow N steps from here on.")
    ] = None,
    max_agent_calls: MaxCalls = None,
    retry_in_doubt: Annotated[
        bool, typer.Option("--retry-in-doubt", help="Do again what may have happened already.")
    ] = False,
    mark_done: Annotated[
        str | None, typer.Option(metavar="JSON", help="Take what is in doubt as done, with this result.")
    ] = None,
    adopt: Annotated[
        bool, typer.Option("--adopt", help="Go on with the machine as its files are now.")
    ] = False,
    store: Store = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    plain: Plain = False,
    compat: Compat = False,
    live: Live = None,
) -> None:
    """Take an execution up where it stands."""

    def work() -> int:
        show = loading(f"loading execution {id}", json=json, quiet=quiet, plain=plain)
        from flat.cli.resuming import Wishes, resume

        wishes = Wishes(
            more_steps=more_steps, max_agent_calls=max_agent_calls, retry_in_doubt=retry_in_doubt,
            mark_done=mark_done, adopt=adopt, compat=compat, live=live,
        )  # fmt: skip
        return resume(id, path, wishes, show=show, store=store, verbose=verbose)

    finish(work, verbose=verbose, json=json)


@runs_app.command("list")
def list_runs(
    status: Annotated[
        str | None,
        typer.Option(help="running, interrupted, waiting, done, failed, cancelled, limit or in_doubt."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, newest first.")] = 50,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """List executions, newest first."""

    def work() -> int:
        from flat.cli.runs import list_runs

        return list_runs(store=store, status=status, limit=limit, json=json)

    finish(work, verbose=verbose, json=json)


@runs_app.command("show")
def show_run(
    id: Annotated[str, typer.Argument(metavar="ID")],
    steps: Annotated[bool, typer.Option("--steps", help="Every checkpoint, too.")] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show where an execution stands, and what it holds."""

    def work() -> int:
        from flat.cli.runs import show_run

        return show_run(id, store=store, steps=steps, json=json)

    finish(work, verbose=verbose, json=json)


@app.command()
def validate(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH…", help="Machine files, or folders.")],
    json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    compat: Compat = False,
    verbose: Verbose = 0,
) -> None:
    """Check machines, and everything they refer to, without running them."""

    def work() -> int:
        from flat.cli.checks import validate

        return validate(paths, json=json, strict=strict, compat=compat)

    finish(work, verbose=verbose, json=json)


@app.command()
def graph(
    path: Annotated[Path, typer.Argument(metavar="FILE|FOLDER")],
    compat: Compat = False,
    verbose: Verbose = 0,
) -> None:
    """Draw a machine, as Mermaid text on stdout."""

    def work() -> int:
        from flat.cli.checks import graph

        return graph(path, compat=compat)

    finish(work, verbose=verbose)


@app.command()
def cancel(
    id: Annotated[str, typer.Argument(metavar="ID")],
    reason: Annotated[str, typer.Option(help="Kept with the execution.")] = "",
    store: Store = None,
    verbose: Verbose = 0,
) -> None:
    """Stop an execution for good, wherever it runs."""

    def work() -> int:
        from flat.cli.runs import cancel_run

        return cancel_run(id, reason, store=store)

    finish(work, verbose=verbose)


@app.command()
def signal(
    channel: Annotated[str, typer.Argument(metavar="CHANNEL")],
    data: Annotated[
        str | None, typer.Argument(metavar="[JSON]", help="What to send; null if left out.")
    ] = None,
    store: Store = None,
    verbose: Verbose = 0,
) -> None:
    """Send a signal to whoever waits, or will wait, on a channel."""

    def work() -> int:
        from flat.cli.runs import send_signal

        return send_signal(channel, data, store=store)

    finish(work, verbose=verbose)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def script(
    file: Annotated[Path, typer.Argument(metavar="SCRIPT", help="A script of a model's answers.")],
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND…")],
    verbose: Verbose = 0,
) -> None:
    """Run a command with a scripted model in place of a real one."""

    def work() -> int:
        from flat.cli.scripted import run_command

        return run_command(file, command)

    finish(work, verbose=verbose)
