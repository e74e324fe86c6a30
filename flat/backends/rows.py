"""What the rows of stores that speak SQL are as records: they select their columns in this order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flat.backends.protocols import Execution


def execution_of(row: Sequence[Any], channels: tuple[str, ...]) -> Execution:
    """An execution; what its column of channels says is for the store to read."""
    return Execution(
        execution_id=row[0],
        name=row[1],
        kind=row[2],
        program=row[3],
        status=row[4],
        seq=row[5],
        created_at=row[6],
        updated_at=row[7],
        parent=row[8],
        wake_at=row[9],
        channels=channels,
        owner=row[11],
        token=row[12],
    )
