"""What drivers do with steps: join several into one, and tell one with nothing left to do."""

from __future__ import annotations

from flat.core.turn import Advance


def started(step: Advance) -> Advance:
    """The step, with nothing left to do about it."""
    return Advance(step.snapshot, (), ())


def joined(*steps: Advance) -> Advance:
    """Steps one after another as one: what they asked for and no later one has dropped."""
    last = steps[-1]
    if len(steps) == 1:
        return last
    pending = frozenset(last.snapshot.pending)
    return Advance(
        last.snapshot,
        (*[e for step in steps[:-1] for e in step.effects if e.id in pending], *last.effects),
        tuple([one for step in steps for one in step.path]),
        tuple([one for step in steps for one in step.launched]),
        tuple([one for step in steps for one in step.said]),
    )
