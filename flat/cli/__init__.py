"""The command line: `flat run`, `resume`, `runs`, `validate`, `graph`, `cancel`, `signal`,
`signals`, `dispatch`, `script`.

`app` declares the commands and imports nothing of the engine; each command's work is in a module of its own,
imported when the command runs.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """The entry point of the `flat` program."""
    from flat.cli.app import app
    from flat.cli.ending import prepare_streams

    prepare_streams()
    app()
