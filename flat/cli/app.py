"""The commands and their options, as typer sees them. No work is done here, so that `--help` is quick."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.ending import UsageError, finish
from flat.cli.show import loading, show_for

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
signals_app = typer.Typer(
    help="Look at signals that nobody has taken.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(signals_app, name="signals")

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


@app.command()
def fork(
    id: Annotated[str, typer.Argument(metavar="ID", help="The execution; the beginning of its id will do.")],
    at: Annotated[
        str | None,
        typer.Option(
            metavar="STEP", help="The step to begin with; seq:N for a commit. Default: where it stands."
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="K=V", help="Change the context: k=text, k:=json, k=@file. May be repeated."
        ),
    ] = None,
    new_id: Annotated[str | None, typer.Option("--id", help="The fork's id. Default: a new one.")] = None,
    run: Annotated[bool, typer.Option("--run", help="Run it, too.")] = False,
    store: Store = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    plain: Plain = False,
    live: Live = None,
) -> None:
    """Make a new execution that begins where another one stood at a step. The other one stays as it is."""

    def work() -> int:
        from flat.cli.fork import fork
        from flat.cli.show import show_for

        return fork(
            id, at=at, changes=changes or [], new_id=new_id, run=run,
            show=show_for(json=json, quiet=quiet, plain=plain), store=store, live=live, verbose=verbose,
        )  # fmt: skip

    finish(work, verbose=verbose, json=json)


@runs_app.command("list")
def list_runs(
    status: Annotated[
        str | None,
        typer.Option(help="running, interrupted, waiting, done, failed, cancelled, limit or in_doubt."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="MACHINE", help="Only executions of this machine.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, newest first.")] = 50,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """List executions, newest first."""

    def work() -> int:
        from flat.cli.runs import list_runs

        return list_runs(store=store, status=status, name=name, limit=limit, json=json)

    finish(work, verbose=verbose, json=json)


@runs_app.command("show")
def show_run(
    id: Annotated[str, typer.Argument(metavar="ID")],
    steps: Annotated[bool, typer.Option("--steps", help="Every checkpoint, too.")] = False,
    at: Annotated[
        str | None,
        typer.Option(metavar="STEP", help="As it was when a step began; seq:N for a commit by its number."),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None, typer.Option(metavar="STEP STEP", help="What changed from one to the other.")
    ] = None,
    cost: Annotated[
        bool, typer.Option("--cost", help="Calls, tokens and money, by state and agent, with its children's.")
    ] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show where an execution stands, and what it holds, held, or cost."""

    def work() -> int:
        from flat.cli.looking import Asked, show_run

        return show_run(id, Asked(steps=steps, at=at, diff=diff, cost=cost), store=store, json=json)

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
def schema(
    kind: Annotated[
        str | None,
        typer.Argument(
            metavar="[KIND]", help="flat (any file), machine, agent, prompt, profile or checkpoint."
        ),
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--for", metavar="FILE", help="For this file: only the names that it has.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write it there.")
    ] = None,
    verbose: Verbose = 0,
) -> None:
    """Print the JSON Schema of a kind of file, for editors."""

    def work() -> int:
        from flat.cli.schema import show_schema

        return show_schema(kind, file=file, output=output)

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
    target: Annotated[
        str, typer.Argument(metavar="CHANNEL|ID", help="A channel, or the execution it is for.")
    ],
    data: Annotated[
        str | None, typer.Argument(metavar="[JSON]", help="What to send; null if left out.")
    ] = None,
    trigger: Trigger = None,
    trigger_path: TriggerPath = None,
    store: Store = None,
    verbose: Verbose = 0,
) -> None:
    """Send a signal to whoever waits, or will wait, on a channel; or to one execution that waits."""

    def work() -> int:
        from flat.cli.signals import send_signal

        return send_signal(target, data, store=store, trigger=trigger, trigger_path=trigger_path)

    finish(work, verbose=verbose)


@signals_app.command("list")
def list_signals(
    channel: Annotated[str | None, typer.Option(help="Only those on this channel.")] = None,
    dead: Annotated[bool, typer.Option("--dead", help="Dead letters, with the reason.")] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """List signals that nobody has taken yet, oldest first."""

    def work() -> int:
        from flat.cli.signals import list_signals

        return list_signals(channel, dead=dead, store=store, json=json)

    finish(work, verbose=verbose, json=json)


@signals_app.command("retry")
def retry_signal(
    id: Annotated[str, typer.Argument(metavar="ID", help="The dead letter.")],
    trigger: Trigger = None,
    trigger_path: TriggerPath = None,
    store: Store = None,
    verbose: Verbose = 0,
) -> None:
    """Put a dead letter back on its channel."""

    def work() -> int:
        from flat.cli.signals import retry_signal

        return retry_signal(id, store=store, trigger=trigger, trigger_path=trigger_path)

    finish(work, verbose=verbose)


@app.command()
def dispatch(
    once: Annotated[bool, typer.Option("--once", help="Until nothing is left to do, then end.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="For ever.")] = False,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Resume so many at a time.")] = 16,
    attempts: Annotated[
        int, typer.Option(min=1, metavar="N", help="Tries before a signal is a dead letter.")
    ] = 3,
    poll: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="With --watch: look at least so often.")
    ] = 5.0,
    trigger: Trigger = None,
    trigger_path: TriggerPath = None,
    project: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Resume what was started below it. Default: this folder. May be repeated."),
    ] = None,
    print_units: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Print what makes systemd or launchd run this, in this folder."),
    ] = None,
    install_units: Annotated[
        Path | None, typer.Option(metavar="DIR", help="With --print-units: write them there instead.")
    ] = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
    live: Live = None,
) -> None:  # fmt: skip
    """Resume whatever waits and has a signal, or a timer that is due."""

    def work() -> int:
        if (once, watch, print_units is not None).count(True) != 1:
            raise UsageError("say one of --once, --watch and --print-units KIND")
        if print_units is not None:
            from flat.cli.units import print_units as print_them

            return print_them(
                print_units, store=store, concurrency=concurrency, trigger_path=trigger_path,
                install=install_units,
            )  # fmt: skip
        if install_units is not None:
            raise UsageError("--install-units needs --print-units systemd or launchd")
        show = show_for(json=json, quiet=False, plain=True)
        from flat.cli.dispatching import Order, dispatch

        order = Order(
            watch=watch, concurrency=concurrency, attempts=attempts, poll=poll, projects=project or (),
            trigger=trigger, trigger_path=trigger_path, live=live,
        )  # fmt: skip
        return dispatch(order, show=show, store=store, verbose=verbose)

    finish(work, verbose=verbose, json=json)


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
