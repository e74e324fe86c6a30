"""Look at machines without running them; begin with an example."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flat.cli.commands.options import Compat, Json, Verbose
from flat.cli.ending import finish


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


def examples(json: Json = False, verbose: Verbose = 0) -> None:
    """List the examples that come with flat."""

    def work() -> int:
        from flat.cli.examples import list_examples

        return list_examples(json=json)

    finish(work, verbose=verbose, json=json)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make; an empty one will do.")],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="NAME", help="The example to copy. Default: writer_critic."),
    ] = None,
    verbose: Verbose = 0,
) -> None:
    """Make a folder to start from: a copy of an example, which runs without a key."""

    def work() -> int:
        from flat.cli.starting import DEFAULT, start_from

        return start_from(source or DEFAULT, folder)

    finish(work, verbose=verbose)


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
