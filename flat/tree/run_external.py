"""State that is owned outside, in a run: what its owners are asked and told is an effect, so that it is recorded.

A handler is live code, and what it makes visible has to outlive the process. So handlers are called in the effects
that can give changes back: the call of a tool, a command, a record from outside, and one effect more before a step in
which a scope is new. What handlers set there is part of the recorded outcome, and reaches the tree as any other change.
"""

from __future__ import annotations

from flat.core.effects import RunTool
from flat.core.events import Done, Failed
from flat.tree.changes import PackPatch, StatePatch, change_from_data
from flat.tree.external import scope_of, wanted_scopes
from flat.tree.run_work import NODE, Data, Phase, Work

UNKNOWN = "it is not known whether the owner of the state has taken the record: the process died meanwhile"


def hydration(work: Work) -> RunTool | None:
    """The effect that meets the owners of scopes which this turn has not met yet, if there are any."""
    if not work.binding.external:
        return None
    turn = work.turn["n"]
    known_turn, known = work.context.get("hydrated", (None, ()))
    met = list(known) if known_turn == turn else []
    new = [name for name in scope_names(work) if name not in met]
    if not new:
        return None
    work.context["hydrated"] = [turn, [*met, *new]]
    work.local = {"stage": "hydrate"}
    return hydrate_effect(work)


def scope_names(work: Work) -> list[str]:
    """The scopes of the tree, each with the node that brings it: an instance may have another one later."""
    charter = work.binding.charter
    found = []
    for scope, _ in wanted_scopes(charter, work.root):
        node = "" if scope.kind == "pack" else charter.label_of(work.path(scope.name)[-1].node)
        found.append(f"{scope.id}@{node}")
    return found


def hydrate_effect(work: Work) -> RunTool:
    id_ = work.effect_id(work.suffix("hydrate"))
    context = {"tree": work.tree, "external": (), "step": work.turn["step"]}
    return RunTool(id_, NODE, "hydrate", {}, "", context, in_doubt="retry")


def hydrated(work: Work, event: Done | Failed) -> Phase:
    """What the owners made visible of scopes that are new."""
    if isinstance(event, Done):
        adopt(work, event.value["changes"])
    return "begin"


def adopt(work: Work, changes: list[Data]) -> None:
    """Take what owners have made visible into the tree, and into the log."""
    for change in changes:
        if not work.change(change):
            work.say({"role": "instance", "items": change})


def owned_outside(work: Work, record: Data) -> bool:
    """Whether a record from outside is for the owner of a state, and not for the tree."""
    if not work.binding.external or record.get("kind") not in (StatePatch.kind, PackPatch.kind):
        return False
    scope = scope_of(change_from_data(record))
    return scope is not None and any(
        scope == one for one, _ in wanted_scopes(work.binding.charter, work.root)
    )


def record_effect(work: Work) -> RunTool:
    context = {"tree": work.tree, "external": [work.local["record"]], "step": work.turn["step"]}
    return RunTool(work.effect_id(work.local["asked"]), NODE, "record", {}, "", context, in_doubt="fail")


def recorded(work: Work, event: Done | Failed) -> Phase:
    """What the owner of a state made of a record from outside."""
    state = work.local["drain"]
    if isinstance(event, Done):
        adopt(work, event.value["changes"])
    else:
        state = {**state, "refused": [*state["refused"], {"code": "outcome_unknown", "message": UNKNOWN}]}
    work.local = {"drain": state}
    return "drain"
