"""Send signals, look at them, and resume whoever waits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.commands.options import Json, Live, Store, Trigger, TriggerPath, Verbose
from flat.cli.ending import UsageError, finish
from flat.cli.show import show_for

signals_app = typer.Typer(
    help="Look at signals that nobody has taken.", no_args_is_help=True, rich_markup_mode=None
)


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
