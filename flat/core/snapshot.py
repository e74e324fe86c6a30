"""The complete value of an execution: a tree of instances, each with its cursor, and what is shared by all.

A cursor is (node name, op key), both names, so that a release which inserts an op moves no sleeping
execution. Instances are a flat table by id; `parent` and `children` make it a tree. A YAML machine has one
instance, `ROOT`. Messages are not in here: they are rows of the execution's log, and `log_length` says how
many belong to this snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeAlias

from flat.core.events import Spent
from flat.core.failure import Failure
from flat.core.record import record

Status: TypeAlias = Literal["running", "waiting", "done", "failed", "cancelled", "limit", "in_doubt"]
ROOT = "0"
FINISHED: frozenset[str] = frozenset({"done", "failed", "cancelled"})
"""Statuses that an execution never leaves."""


@record
class Instance:
    """A live occupant of a node."""

    id: str
    node: str
    op: str
    """Key of the op in progress; empty when the node is yet to be entered."""
    step: int
    """Number of this visit; part of the ids of its effects."""
    context: Mapping[str, Any]
    output: Any = None
    """What the last op with an output gave, within this visit."""
    local: Any = None
    """Memory of the op in progress."""
    pending: tuple[str, ...] = ()
    """Ids of the effects that are asked for and not answered."""
    deadline: float | None = None
    """When this visit runs out of time (seconds since the epoch)."""
    parent: str | None = None
    children: tuple[str, ...] = ()
    suspended: str | None = None


@record
class Snapshot:
    """One execution at one moment."""

    execution_id: str
    status: Status
    steps: int
    """Visits of nodes so far, over all instances."""
    instances: Mapping[str, Instance]
    spent: Spent = field(default_factory=Spent)
    max_steps: int | None = 1000
    max_agent_calls: int | None = None
    started_at: float = 0.0
    at: float = 0.0
    """When the last event happened."""
    output: Any = None
    failure: Failure | None = None
    reason: str = ""
    """Why it stopped, for status `limit`, `cancelled` and `in_doubt`."""
    parent: str | None = None
    depth: int = 0
    log_length: int = 0
    launched: bool = False
    """True for a child that nobody waits for."""

    @property
    def root(self) -> Instance:
        return self.instances[ROOT]

    @property
    def pending(self) -> tuple[str, ...]:
        """Every unanswered effect of every instance."""
        if len(self.instances) == 1:
            return next(iter(self.instances.values())).pending
        return tuple(e for i in self.instances.values() for e in i.pending)
