"""One event in, the next snapshot and the effects to perform out. Pure.

Theory of operation. A `Turn` is a private, mutable working copy of one instance. The event is given to the
op at the cursor; its answer moves the cursor, and ops run one after another (`core.turn`).

An event for an effect that is not pending is refused before anything changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flat.core.effects import Effect, StartChild, instance_of
from flat.core.events import Cancelled, Done, Doubted, Event, Failed, Limited, Parked, Resumed, Spent, Started
from flat.core.program import Program
from flat.core.snapshot import FINISHED, ROOT, Instance, Snapshot, Status
from flat.core.turn import Advance, Turn
from flat.errors import FlatError


class UnexpectedEvent(FlatError):
    """An event that the snapshot is not waiting for. The snapshot is unchanged."""


def begin(
    program: Program,
    execution_id: str,
    event: Started,
    *,
    max_steps: int | None,
    max_agent_calls: int | None,
    parent: str | None = None,
    depth: int = 0,
    launched: bool = False,
) -> Snapshot:
    """The snapshot of an execution that has not entered any node."""
    context = program.context.render({"input": event.input})
    root = Instance(ROOT, program.entry, "", 0, context)
    return Snapshot(
        execution_id,
        "running",
        0,
        {ROOT: root},
        Spent(),
        max_steps,
        max_agent_calls,
        event.at,
        event.at,
        parent=parent,
        depth=depth,
        launched=launched,
    )


def advance(program: Program, snapshot: Snapshot, event: Event) -> Advance:
    """The next snapshot, and what to do about it."""
    if snapshot.status in FINISHED:
        raise UnexpectedEvent(f'execution "{snapshot.execution_id}" is {snapshot.status}')
    if type(event) is Done or type(event) is Failed:
        instance = snapshot.instances.get(event.effect_id.partition("/")[0])
        if instance is None or event.effect_id not in instance.pending:
            raise UnexpectedEvent(
                f'effect "{event.effect_id}" is not pending in execution "{snapshot.execution_id}"'
            )
        turn = Turn(program, snapshot, instance, event.at)
        turn.answer(event)
        return turn.close()
    if isinstance(event, Cancelled):
        return Advance(stopped(snapshot, "cancelled", event.reason, event.at), (), ())
    if isinstance(event, Doubted):
        return Advance(stopped(snapshot, "in_doubt", ", ".join(event.effect_ids), event.at), (), ())
    if isinstance(event, Parked):
        return Advance(stopped(snapshot, "waiting", "", event.at), (), ())
    if isinstance(event, Limited):
        return Advance(stopped(snapshot, "limit", event.reason, event.at), (), ())
    if isinstance(event, Resumed):
        snapshot = _with_limits(snapshot, event)
    return _continued(program, snapshot, event.at)


def advance_all(program: Program, snapshot: Snapshot, events: Sequence[Done | Failed]) -> Advance:
    """What several answers to one instance lead to, one after another, with one snapshot at the end.

    An answer that nobody waits for any more, because of one before it, is passed over.
    """
    instance = snapshot.instances.get(instance_of(events[0].effect_id))
    if instance is None or not any(event.effect_id in instance.pending for event in events):
        return Advance(snapshot, (), ())
    turn = Turn(program, snapshot, instance, events[0].at)
    effects: list[Effect] = []
    path: list[tuple[str, str, int]] = []
    for event in events:
        if event.effect_id in turn.pending:
            turn.status = "running"
            effects += turn.again(event)
            path += turn.path
            if turn.local is not instance.local:
                turn.own = turn.local
    pending = frozenset(turn.pending)
    turn.effects = tuple([effect for effect in effects if effect.id in pending])
    turn.path = path
    return turn.close()


def _continued(program: Program, snapshot: Snapshot, at: float) -> Advance:
    """Take every instance up where it stands: enter its node, or ask again for what is pending."""
    effects: tuple[Effect, ...] = ()
    path: tuple[tuple[str, str, int], ...] = ()
    launched: tuple[StartChild, ...] = ()
    said: tuple[Any, ...] = ()
    for instance in tuple(snapshot.instances.values()):
        if instance.children or instance.suspended:
            continue
        turn = Turn(program, snapshot, instance, at)
        turn.take_up()
        snapshot, more, steps, born, words = turn.close()
        effects += more
        path += steps
        launched += born
        said += words
    return Advance(snapshot, effects, path, launched, said)


def _with_limits(snapshot: Snapshot, event: Resumed) -> Snapshot:
    unchanged = event.max_steps is None and event.max_agent_calls is None
    if unchanged and len(snapshot.instances) == 1 and not snapshot.root.suspended:
        return snapshot  # it is going to be made anew when its only instance is taken up
    return replace(
        snapshot,
        status="running",
        reason="",
        max_steps=snapshot.max_steps if event.max_steps is None else event.max_steps,
        max_agent_calls=snapshot.max_agent_calls if event.max_agent_calls is None else event.max_agent_calls,
    )


def stopped(snapshot: Snapshot, status: Status, reason: str, at: float) -> Snapshot:
    """The snapshot as it stands, with another status. What was pending stays named."""
    return replace(snapshot, status=status, reason=reason, at=at)
