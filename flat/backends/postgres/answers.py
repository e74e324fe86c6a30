"""What comes back from a PostgreSQL server: rows, a refusal, or nothing that anybody can be sure of."""

from __future__ import annotations

from typing import Any

from flat.errors import BackendError

Rows = list[tuple[Any, ...]]

GRACE = 2.0
"""Seconds that a statement under way has to finish when its task is cancelled."""


class Unreachable(BackendError):
    """The database cannot be reached, or its answer was lost: what was asked for may have been done or not."""


class Refused(Exception):
    """The server answered with an error; nothing was done."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class Lost(Exception):
    """The connection broke, and nobody knows what became of the statement."""


class Answer:
    """Rows that a statement gave, even if its task was cancelled while it waited for them."""

    __slots__ = ("repeated", "rows", "sent")

    def __init__(self) -> None:
        self.rows: Rows | None = None
        self.sent = False
        """Whether the statement may have been executed by the last attempt."""
        self.repeated = False
        """True when the statement may have been executed before the time that gave the rows."""
