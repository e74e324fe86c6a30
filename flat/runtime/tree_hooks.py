"""Telling hooks what happens in a tree: after each commit, with copies, and without an answer.

To hooks a tree is in one of six states: `intake`, `think`, `act`, `settle`, `wait` and `done`. A commit may pass
through several of them at once; they are told in order. Since no hook moves a tree from one of these to another, a
method that steers states in a machine of states (`on_state_enter`, `on_state_exit`) only watches here; what it returns
is dropped.
Every move of an instance is told as a transition to those who watch transitions.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flat.core.snapshot import FINISHED, Snapshot
from flat.core.turn import Advance
from flat.drivers.draft import draft_of
from flat.hooks import members
from flat.hooks.base import POINTS, is_observer, overrides, settled
from flat.tree.run_hooks import target
from flat.tree.run_work import NODE

if TYPE_CHECKING:
    from flat.runtime.machine import HooksOfRun

MOVES = frozenset({"transition", "spawn", "cede", "suspend", "resume"})
STATES = {
    "command": "intake",
    "hydrate": "intake",
    "think": "think",
    "act": "act",
    "look": "act",
    "wait": "wait",
}
"""What hooks are told of each stage of a run."""
log = logging.getLogger("flat")


@dataclass
class Before:
    """An execution as it was told last."""

    state: str
    steps: Any
    tree: Mapping[str, Any]


class TreeTelling:
    """Tells the hooks of one run."""

    def __init__(self, hooks: HooksOfRun) -> None:
        self._hooks = hooks
        self._before: dict[str, Before] = {}

    @property
    def watching(self) -> bool:
        return any(hears(one, point) for one in self._members() for point in ("state_enter", "state_exit"))

    def _members(self) -> tuple[Any, ...]:
        hooks = self._hooks.get(self._hooks.machine.program.nodes[NODE].hooks)
        return () if hooks is None else members(hooks)

    async def tell(self, step: Advance) -> None:
        """Tell what a commit has led to."""
        snapshot = step.snapshot
        context, state = snapshot.root.context, state_of(snapshot)
        before = self._before.get(snapshot.execution_id)
        if snapshot.status in FINISHED:
            self._before.pop(snapshot.execution_id, None)
        if "tree" not in context or not state:
            return
        moves = [record for message in step.said if (record := move_of(message)) is not None]
        known = None if before is None else before.state
        steps = context.get("steps")
        new = steps if before is not None and steps is not before.steps else None
        way = states_between(known, state, settles=new is not None)
        seen = {"tree": context["tree"], "turn": context["turn"], "lanes": lanes(snapshot)}
        if known is not None and way:
            await self._tell("state_exit", seen, known, output=None)
        elder = context["tree"] if before is None else before.tree
        for record in moves:
            origin = record.get("instanceId") or record.get("parentInstanceId")
            label = label_of(elder, origin) or label_of(context["tree"], origin) or str(origin)
            await self._tell("transition", {**seen, "effect": record}, label, target(record))
        for place, name in enumerate(way):
            await self._tell("state_enter", seen, name)
            if place < len(way) - 1:
                output = new if name == "settle" else None
                await self._tell("state_exit", seen, name, output=output)
        if snapshot.status not in FINISHED:
            self._before[snapshot.execution_id] = Before(state, steps, context["tree"])

    async def _tell(self, point: str, seen: Mapping[str, Any], *names: str, **output: Any) -> None:
        for hooks in self._members():
            if not hears(hooks, point):
                continue
            try:
                await settled(getattr(hooks, POINTS[point])(*names, draft_of(seen), *output.values()))
            except Exception:
                log.exception("observing hook %s of %s raised", POINTS[point], type(hooks).__name__)


def hears(hooks: Any, point: str) -> bool:
    """Whether an object is told of a point: at moves only those who watch, since others are asked before."""
    method = POINTS[point]
    if point == "transition":
        return is_observer(hooks, method)
    return overrides(hooks, method)


def state_of(snapshot: Snapshot) -> str:
    """The state that a tree is in, as hooks know it; empty where there is nothing to tell."""
    if snapshot.status in FINISHED:
        return "done" if snapshot.status == "done" else ""
    stage = (snapshot.root.local or {}).get("stage") if isinstance(snapshot.root.local, Mapping) else None
    return STATES.get(str(stage), "") if snapshot.root.node == NODE else ""


def states_between(before: str | None, after: str, *, settles: bool) -> Sequence[str]:
    """The states that are entered on the way from one commit to the next."""
    if before in ("think", "act") and settles:
        return ("settle", after)
    if before in (None, "wait"):
        return ("intake",) if after == "intake" else ("intake", after)
    return () if before == after else (after,)


def move_of(message: Any) -> Mapping[str, Any] | None:
    """The record of a move in a message of the log."""
    if not isinstance(message, Mapping) or message.get("role") != "instance":
        return None
    record = message.get("items")
    return record if isinstance(record, Mapping) and record.get("kind") in MOVES else None


def lanes(snapshot: Snapshot) -> list[str]:
    """The instances that the step runs."""
    local = snapshot.root.local
    return list(local.get("run") or ()) if isinstance(local, Mapping) else []


def label_of(tree: Mapping[str, Any], instance_id: Any) -> str:
    """What an instance of a tree as data is called; empty when it is not there."""
    for one in _walk(tree):
        if one.get("id") == instance_id:
            node = one.get("node") or {}
            return str(node.get("ref") or node.get("name") or instance_id)
    return ""


def _walk(tree: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield tree
    for child in tree.get("children") or ():
        yield from _walk(child)
