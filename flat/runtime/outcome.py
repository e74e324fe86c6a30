"""What a run came to, as it is told to whoever started it, and to those who asked for it by URI."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.core.events import Spent
from flat.core.failure import Failure, failure_of
from flat.core.snapshot import Snapshot
from flat.drivers.doubts import InDoubt
from flat.drivers.local import Drive
from flat.errors import ExecutionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    execution_id: str
    status: str
    output: Any
    failure: Failure | None
    reason: str
    steps: int
    spent: Spent
    context: Mapping[str, Any]
    node: str
    waiting_on: tuple[str, ...] = ()
    in_doubt: tuple[InDoubt, ...] = ()
    """Effects that were in flight when an earlier run ended, and how they were treated."""
    ran: bool = True
    """False when the execution was over already, so that nothing was left to do."""
    cause: BaseException | None = field(default=None, compare=False, repr=False)
    """The exception behind a failure of this very run."""

    def raise_for_failure(self) -> Outcome:
        """Raise `ExecutionError` if the execution failed, else return self."""
        if self.failure is not None:
            raise ExecutionError(
                self.failure.detail or self.failure.message,
                type=self.failure.type,
                node=self.node,
                execution_id=self.execution_id,
            ) from self.cause
        return self


def outcome_of(snapshot: Snapshot, drive: Drive | None = None) -> Outcome:
    """What is to be told of a snapshot; `drive` is the run that came to it, if there was one just now."""
    root = snapshot.root
    error = drive.performer.last_error if drive else None
    return Outcome(
        execution_id=snapshot.execution_id,
        status=snapshot.status,
        output=snapshot.output,
        failure=snapshot.failure,
        reason=snapshot.reason,
        steps=snapshot.steps,
        spent=snapshot.spent,
        context=root.context,
        node=root.node,
        waiting_on=drive.waiting_on if drive else (),
        in_doubt=tuple(drive.doubts.found) if drive else (),
        ran=drive is not None,
        cause=error if error is not None and failure_of(error) == snapshot.failure else None,
    )


def result_of(snapshot: Snapshot) -> Any:
    """What an execution that is over came to, for those who asked for it by URI."""
    if snapshot.failure is not None:
        return {"_error": snapshot.failure.message, "_error_type": snapshot.failure.type}
    return snapshot.output
