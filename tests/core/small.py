"""Programs and snapshots for tests of the core, made by hand: no files, no event loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flat.core.advance import advance, begin
from flat.core.condition import Condition
from flat.core.effects import Effect, RunAction
from flat.core.events import Done, Failed, Started
from flat.core.failure import Failure
from flat.core.ops import Action, AnyOp, Arm, Assign, Branch, Call, Finish
from flat.core.program import END, START, Limits, Node, Program
from flat.core.program_codec import with_digest
from flat.core.snapshot import Snapshot
from flat.core.template import compile_value
from flat.core.turn import Advance

AT = 1000.0


def node(name: str, *ops: AnyOp, **rest: Any) -> Node:
    return Node(name=name, ops=ops, virtual=name in (START, END), **rest)


def go(*arms: tuple[str | None, str], **rest: Any) -> Branch:
    """Transitions: pairs of a condition, or None, and a target."""
    return Branch(arms=tuple(Arm(Condition(c) if c else None, target) for c, target in arms), **rest)


def program(*nodes: Node, context: Mapping[str, Any] | None = None, **rest: Any) -> Program:
    """A program that begins at its first node."""
    return with_digest(
        Program(
            name="small",
            kind="yaml",
            spec_version="4.0.0",
            initial=nodes[0].name,
            context=compile_value(dict(context or {}), native=True),
            nodes={n.name: n for n in nodes},
            limits=rest.pop("limits", Limits()),
            **rest,
        )
    )


def final(name: str = "end") -> Node:
    return node(name, Finish())


def one(op: AnyOp, **rest: Any) -> Program:
    """A program whose first node does one op and then ends."""
    return program(node("work", op, go((None, "end")), **rest), final(), context={"n": 1})


def started(
    of: Program,
    input: Mapping[str, Any] | None = None,
    *,
    max_steps: int | None = 1000,
    max_agent_calls: int | None = None,
) -> Advance:
    event = Started(input or {}, AT)
    return advance(of, begin(of, "e1", event, max_steps=max_steps, max_agent_calls=max_agent_calls), event)


def done(of: Program, step: Advance, value: Any = None, *, at: float = AT) -> Advance:
    """Answer the only effect."""
    (effect,) = step.effects
    return advance(of, step.snapshot, Done(effect.id, value, at))


def failed(of: Program, step: Advance, failure: Failure | str = "Boom", *, at: float = AT) -> Advance:
    (effect,) = step.effects
    if isinstance(failure, str):
        failure = Failure(type=failure, message="it failed", names=("ValueError", "Exception"))
    return advance(of, step.snapshot, Failed(effect.id, failure, at))


def act(
    of: Program, snapshot: Advance, does: Callable[[Effect, Snapshot], Any], *, most: int = 10_000
) -> Advance:
    """Answer every effect with what `does` returns for it, until there is none."""
    step = snapshot
    for _ in range(most):
        if not step.effects:
            return step
        effect = step.effects[0]
        step = advance(of, step.snapshot, Done(effect.id, does(effect, step.snapshot), AT))
    raise AssertionError("it does not end")


def counting(effect: Effect, _: Snapshot) -> Any:
    assert isinstance(effect, RunAction)
    return {**effect.context, "n": effect.context["n"] + 1}


__all__ = [
    "AT",
    "Action",
    "Advance",
    "Assign",
    "Call",
    "act",
    "counting",
    "done",
    "failed",
    "final",
    "go",
    "node",
    "one",
    "program",
    "started",
]
