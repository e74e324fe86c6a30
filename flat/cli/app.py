"""The command line as a whole: `flat --help`."""

from __future__ import annotations

from typing import Annotated

import typer

from flat.cli.commands.executions import cancel, fork, resume, run
from flat.cli.commands.files import examples, graph, init, schema, script, validate
from flat.cli.commands.runs import doctor, runs_app
from flat.cli.commands.signals import dispatch, signal, signals_app
from flat.cli.commands.trees import tree_app
from flat.cli.commands.workers import start, worker, workers

app = typer.Typer(
    name="flat",
    help="One durable state-machine engine for LLM agents.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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


for command in (
    run, resume, start, fork, cancel, signal, dispatch, worker, workers,
    validate, graph, schema, doctor, examples, init,
):  # fmt: skip
    app.command()(command)
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(script)
app.add_typer(runs_app, name="runs")
app.add_typer(signals_app, name="signals")
app.add_typer(tree_app, name="tree")
