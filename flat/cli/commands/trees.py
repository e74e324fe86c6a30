"""What clients need to know of a charter."""

from __future__ import annotations

import typer

from flat.cli.commands.options import CharterPath, Verbose, WrittenTo
from flat.cli.ending import finish

tree_app = typer.Typer(
    help="What clients need to know of a charter.", no_args_is_help=True, rich_markup_mode=None
)


@tree_app.command("describe")
def describe_tree(path: CharterPath, output: WrittenTo = None, verbose: Verbose = 0) -> None:
    """Print one JSON document with a charter's nodes, packs, commands and schemas, and its hash."""

    def work() -> int:
        from flat.cli.tree_checks import describe_charter

        return describe_charter(path, output)

    finish(work, verbose=verbose)


@tree_app.command("stubs")
def stubs_of_tree(path: CharterPath, output: WrittenTo = None, verbose: Verbose = 0) -> None:
    """Print a typed Python client for a charter's commands; from its description (a .json file), too."""

    def work() -> int:
        from flat.cli.tree_checks import charter_stubs

        return charter_stubs(path, output)

    finish(work, verbose=verbose)
