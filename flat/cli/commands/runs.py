"""Look at what has run, move it, and clean up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.commands.options import Compat, Get, Json, Store, Trigger, TriggerPath, Verbose
from flat.cli.ending import UsageError, finish

runs_app = typer.Typer(help="Look at what has run.", no_args_is_help=True, rich_markup_mode=None)


@runs_app.command("list")
def list_runs(
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="ready, running, interrupted, buried, waiting, done, failed, cancelled, limit or in_doubt. "
            "May be repeated, or a,b."
        ),
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

        return list_runs(store=store, statuses=_split(status), name=name, limit=limit, json=json)

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
    get: Get = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Show where an execution stands, and what it holds, held, or cost."""

    def work() -> int:
        from flat.cli.looking import Asked, show_run

        return show_run(id, Asked(steps=steps, at=at, diff=diff, cost=cost, get=get), store=store, json=json)

    finish(work, verbose=verbose, json=json)


@runs_app.command("export")
def export_runs(
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID…]", help="Executions; their whole families go with them."),
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="All executions of this status. May be repeated, or a,b.")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="Everything in the store.")] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write; - is standard output."),
    ] = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Write executions, with all that they need, into one file."""

    def work() -> int:
        from flat.cli.transfer import export

        return export(
            ids or [], statuses=_split(status), all_=all, output=output, store=store, json=json
        )  # fmt: skip

    finish(work, verbose=verbose, json=json)


@runs_app.command("import")
def import_runs(
    file: Annotated[
        str | None, typer.Argument(metavar="[FILE]", help="What flat runs export wrote; - is standard input.")
    ] = None,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave out executions that the store has.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put the file's executions in place of the store's.")
    ] = False,
    from_flatmachines: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="In place of FILE: what flatmachines keeps, its folder or SQLite file."
        ),
    ] = None,
    machine: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="With --from-flatmachines: a machine to go on with. May be repeated."
        ),
    ] = None,
    compat: Compat = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Store the executions of a file. All of it is checked before anything is written."""

    def work() -> int:
        from flat.cli.transfer import import_, import_flatmachines

        if (file is None) == (from_flatmachines is None):
            raise UsageError("name the file to import, or --from-flatmachines PATH")
        if from_flatmachines is not None:
            return import_flatmachines(
                from_flatmachines, machine or [], compat=compat, skip=skip_existing, replace=replace,
                store=store, json=json,
            )  # fmt: skip
        assert file is not None
        return import_(file, skip=skip_existing, replace=replace, store=store, json=json)

    finish(work, verbose=verbose, json=json)


@runs_app.command("prune")
def prune_runs(
    older_than: Annotated[
        str | None, typer.Option(metavar="AGE", help="Not changed for so long: 30d, 36h, 4w.")
    ] = None,
    keep: Annotated[
        int | None, typer.Option(min=0, metavar="N", help="The newest N of those that match stay.")
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(
            help="done, failed, cancelled, limit or in_doubt. May be repeated, or a,b. Default: the first three."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    leftovers: Annotated[
        bool,
        typer.Option("--leftovers", help="Only blobs and programs that nothing refers to, and half imports."),
    ] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Remove executions that are over, by whole families. What runs or waits stays."""

    def work() -> int:
        from flat.cli.pruning import Order, prune_runs

        order = Order(
            older_than=older_than,
            keep=keep,
            statuses=_split(status),
            dry_run=dry_run,
            yes=yes,
            leftovers=leftovers,
        )
        return prune_runs(order, store=store, json=json)

    finish(work, verbose=verbose, json=json)


def _split(given: list[str] | None) -> list[str]:
    """The statuses of an option that may be repeated, or hold several with commas between."""
    words = [word.strip() for one in given or () for word in one.split(",") if word.strip()]
    if given and not words:
        raise UsageError("--status is empty")
    return words


@runs_app.command("revive")
def revive_run(
    id: Annotated[str, typer.Argument(metavar="ID", help="The execution; the beginning of its id will do.")],
    trigger: Trigger = None,
    trigger_path: TriggerPath = None,
    store: Store = None,
    verbose: Verbose = 0,
) -> None:
    """Give an execution that was buried, or interrupted, to the workers again."""

    def work() -> int:
        from flat.cli.worker import revive_run

        return revive_run(id, store=store, trigger=trigger, trigger_path=trigger_path)

    finish(work, verbose=verbose)


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not read what executions hold.")] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """Look for damage, stranded runs and lost signals in a store, and for what this installation lacks.

    Ends with 1 if something is broken, and with 11 if a run needs a decision.
    """

    def work() -> int:
        from flat.cli.doctor import doctor

        return doctor(store=store, quick=quick, json=json)

    finish(work, verbose=verbose, json=json)
