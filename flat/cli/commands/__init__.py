"""The commands and their options, as typer sees them. No work is done here, so that `--help` is quick."""
