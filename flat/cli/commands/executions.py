"""Run, resume and end executions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.commands.options import Compat, Get, Json, Live, MaxCalls, Plain, Profile, Quiet, Store, Verbose
from flat.cli.ending import finish
from flat.cli.show import loading, show_for


def run(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="FILE|FOLDER|MODULE:NAME", help="A machine, a folder with one, or a charter: desk.py:charter."
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", "-i", metavar="K=V",
            help="k=text, k:=json, k=@file (its text), @file.json or '{\"k\": …}'. May be repeated.",
        ),
    ] = None,
    message: Annotated[
        str | None,
        typer.Option("--message", "-m", metavar="TEXT", help="What to say to a tree; the input `message`."),
    ] = None,
    id: Annotated[str | None, typer.Option("--id", help="The execution's id. Default: a new one.")] = None,
    max_steps: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="Stop after N steps, with status `limit`.")
    ] = None,
    max_agent_calls: MaxCalls = None,
    profile: Profile = None,
    store: Store = None,
    json: Json = False,
    get: Get = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    plain: Plain = False,
    compat: Compat = False,
    live: Live = None,
) -> None:  # fmt: skip
    """Run a machine until it ends, waits, or reaches a limit."""

    def work() -> int:
        show = loading(f"loading {path}", json=json, quiet=quiet, plain=plain, get=get)
        from flat.cli.running import run

        given = list(inputs or [])
        if message is not None:  # what begins with @ would be a file
            given.append(f"message={'@' if message.startswith('@') else ''}{message}")
        return run(
            path, given, show=show, store=store, execution_id=id, max_steps=max_steps,
            max_agent_calls=max_agent_calls, compat=compat, live=live, verbose=verbose, profile=profile,
        )  # fmt: skip

    finish(work, verbose=verbose, json=json)


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
    get: Get = None,
    quiet: Quiet = False,
    verbose: Verbose = 0,
    plain: Plain = False,
    compat: Compat = False,
    live: Live = None,
) -> None:
    """Take an execution up where it stands."""

    def work() -> int:
        show = loading(f"loading execution {id}", json=json, quiet=quiet, plain=plain, get=get)
        from flat.cli.resuming import Wishes, resume

        wishes = Wishes(
            more_steps=more_steps, max_agent_calls=max_agent_calls, retry_in_doubt=retry_in_doubt,
            mark_done=mark_done, adopt=adopt, compat=compat, live=live,
        )  # fmt: skip
        return resume(id, path, wishes, show=show, store=store, verbose=verbose)

    finish(work, verbose=verbose, json=json)


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

        return fork(
            id, at=at, changes=changes or [], new_id=new_id, run=run,
            show=show_for(json=json, quiet=quiet, plain=plain), store=store, live=live, verbose=verbose,
        )  # fmt: skip

    finish(work, verbose=verbose, json=json)


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
