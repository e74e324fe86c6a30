"""`python -m flat.cli`, for where the `flat` program is not on the path."""

from flat.cli import main

main()
