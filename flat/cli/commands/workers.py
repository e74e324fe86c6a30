"""Queue runs, and work them off."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.commands.options import (
    Compat,
    Json,
    Live,
    MaxCalls,
    Profile,
    Store,
    Trigger,
    TriggerPath,
    Verbose,
)
from flat.cli.ending import finish
from flat.cli.show import show_for


def start(
    path: Annotated[
        Path, typer.Argument(metavar="FILE|FOLDER", help="A machine, a folder with one, or module:charter.")
    ],
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
    profile: Profile = None,
    trigger: Trigger = None,
    trigger_path: TriggerPath = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
    compat: Compat = False,
) -> None:  # fmt: skip
    """Queue a run for the workers, and print its id at once."""

    def work() -> int:
        from flat.cli.start import Wanted, start

        wanted = Wanted(
            execution_id=id, max_steps=max_steps, max_agent_calls=max_agent_calls, compat=compat,
            profile=profile, trigger=trigger, trigger_path=trigger_path,
        )  # fmt: skip
        show = show_for(json=json, quiet=True, plain=True)
        return start(path, inputs or [], wanted, show=show, store=store, verbose=verbose)

    finish(work, verbose=verbose, json=json)


def worker(
    places: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FOLDER|FILE…]", help="Run what was started from there. Default: from below this folder."
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, metavar="N", help="Run so many at a time.")] = 16,
    once: Annotated[bool, typer.Option("--once", help="Take what there is, so many at most, and end.")] = False,
    drain: Annotated[bool, typer.Option("--drain", help="Until nothing is left to take, then end.")] = False,
    attempts: Annotated[
        int,
        typer.Option(min=1, metavar="N", help="Workers that may die of one execution, or tries for a signal."),
    ] = 3,
    poll: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="Look about so often, though nobody calls.")
    ] = 5.0,
    lease: Annotated[
        float, typer.Option(min=0.5, metavar="SECONDS", help="Others take over after so long without a sign.")
    ] = 30.0,
    grace: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Told to stop, break off what takes longer. Default: wait."),
    ] = None,
    name: Annotated[str, typer.Option(help="Its name in `flat workers`. Default: host:pid.")] = "",
    trigger: Trigger = None,
    trigger_path: TriggerPath = None,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
    live: Live = None,
) -> None:  # fmt: skip
    """Run what is queued, what waited and has its signal, and what another worker left behind."""

    def work() -> int:
        from flat.cli.worker import Post, work

        post = Post(
            places=places or (), concurrency=concurrency, once=once, drain=drain, attempts=attempts, poll=poll,
            lease=lease, grace=grace, name=name, trigger=trigger, trigger_path=trigger_path, live=live,
        )  # fmt: skip
        show = show_for(json=json, quiet=False, plain=True)
        return work(post, show=show, store=store, verbose=verbose)

    finish(work, verbose=verbose, json=json)


def workers(
    everyone: Annotated[bool, typer.Option("--all", help="Also those that have ended or were lost.")] = False,
    store: Store = None,
    json: Json = False,
    verbose: Verbose = 0,
) -> None:
    """List the workers on a store: when each was last heard of, and what it runs."""

    def work() -> int:
        from flat.cli.worker import list_workers

        return list_workers(everyone=everyone, store=store, json=json)

    finish(work, verbose=verbose, json=json)
