"""Machines that leaves have called and that wait for somebody: the tree goes on meanwhile, without those leaves.

Such a call is an entry of `called` in the context, by the id of its effect:

    leaf, node, machine, input     who has called what; enough to ask for it again
    reason, channels               why the machine waits, as it was told
    call, parts                    of a tool: which of the leaf's calls it is, and its lane as far as that came
    came                           what the call came to, once that is known

The effect stays pending under its first id, whichever visit the tree is in by then, so the machine stays the same one.
With the end of the step the leaf is suspended, and what its calls before this one have changed is applied; what it said
is not in the log yet. When the machine is done, the lane is taken back into a step, makes the calls that are left, and
is settled like any other. Only then is the leaf suspended no more: a step that is forgotten loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from flat.core.effects import StartChild, child_id
from flat.core.events import Done, Ended, Failed, Waits
from flat.core.op import Answer
from flat.tree.instance import Instance, active_instance, active_leaves, path_to, walk
from flat.tree.run_hooks import after_call, refusal
from flat.tree.run_work import Data, Phase, Work

PART = re.compile(r"(lane|out|rule|steer|end)(\d+)(\.\d+)?")
"""The entries of `local` that are a lane's."""


# -- leaving ----------------------------------------------------------------------------


def leave(work: Work, lane: int, effect: StartChild, waits: Waits, call: int | None = None) -> None:
    """Take a lane out of its step: its machine waits. It is asked for again, patiently."""
    entry: dict[str, Any] = {
        "leaf": work.local["run"][lane],
        "node": effect.node,
        "machine": effect.machine,
        "input": effect.input,
        "reason": waits.reason,
        "channels": list(waits.channels),
    }
    if call is not None:
        entry |= {"call": call, "parts": packed(work.local, lane)}
    work.context["called"] = {**work.called, effect.id: entry}
    work.local[f"lane{lane}"] = {"called": effect.id}
    work.beside.append(replace(effect, patient=True))


def packed(local: dict[str, Any], lane: int) -> dict[str, Any]:
    """What `local` has of a lane, taken out of it, without the lane's number."""
    found = [part for key in local if (part := PART.fullmatch(key)) is not None and int(part[2]) == lane]
    return {part[1] + (part[3] or ""): local.pop(part[0]) for part in found}


def unpacked(parts: Data, lane: int) -> dict[str, Any]:
    """Undo `packed`, maybe for another lane."""
    named = ((name.partition("."), value) for name, value in parts.items())
    return {f"{head}{lane}{dot}{k}": value for (head, dot, k), value in named}


def suspension(work: Work, effect_id: str) -> Data:
    """What the tree knows of a leaf that has called."""
    entry = work.called[effect_id]
    return {
        "suspendId": effect_id,
        "reason": entry["reason"],
        "executionId": child_id(work.here.execution_id, effect_id),
        "metadata": {"kind": "call", "channels": entry["channels"]},
    }


def again(work: Work) -> list[StartChild]:
    """The effects of all calls that nothing has come of yet."""
    return [
        StartChild(effect_id, entry["node"], entry["machine"], entry["input"])
        for effect_id, entry in work.called.items()
        if "came" not in entry
    ]


# -- waiting ---------------------------------------------------------------------------


def waiting(work: Work) -> bool:
    """Whether the one that a user talks to waits itself, or nobody may run because somebody waits."""
    *above, primary = path_to(work.root, active_instance(work.root).id)
    halted = primary.suspended is not None or any(instance.halted for instance in above)
    return halted or not active_leaves(work.root)


# -- coming back ------------------------------------------------------------------------


def answered(work: Work, event: Done | Failed) -> Phase | Answer:
    """Keep what a call came to. Where nothing else runs, that begins a step."""
    entry = work.called[event.effect_id]
    work.context["called"] = {**work.called, event.effect_id: {**entry, "came": came_of(work, entry, event)}}
    return work.reenter(inbox=[]) if work.local["stage"] == "wait" else work.block()


def came_of(work: Work, entry: Data, event: Done | Failed) -> Data:
    """What becomes of the call: a tool's outcome, or what the leaf cedes."""
    leaf_id = entry["leaf"]
    if not work.path(leaf_id):  # somebody has taken it out of the tree: only the cost is left
        if isinstance(event, Done):
            work.here.spend(event.value.spent)
        return {}
    if "call" not in entry:
        return machine_lane(work, leaf_id, event)
    call = entry["parts"]["lane"]["calls"][entry["call"]]
    if isinstance(event, Failed):
        return refusal("tool_failed", f"{call['name']} failed: {event.failure.message}")
    return machine_result(work, work.tree, leaf_id, call, event.value)


def machine_lane(work: Work, leaf_id: str, event: Done | Failed) -> dict[str, Any]:
    """What a leaf cedes whose work another machine did."""
    leaf = work.path(leaf_id)[-1]
    if isinstance(event, Failed):
        return {"cede": f'"{leaf.node.label}" failed: {event.failure.message}'}
    value = event.value
    if isinstance(value, Ended):
        work.here.spend(value.spent)
        value = value.output
    if leaf.launch:
        return {"cede": value.get("content") if isinstance(value, dict) else value}
    try:
        return {"cede": work.binding.node_content(work.tree, leaf_id, value)}
    except Exception as error:  # the author's own function made it
        return {"cede": f'"{leaf.node.label}" failed: {error}'}


def machine_result(work: Work, tree: Data, leaf_id: str, call: Data, ended: Ended) -> Data:
    """The outcome of a tool call that another machine has made."""
    work.here.spend(ended.spent)
    return work.binding.machine_outcome(tree, leaf_id, call, ended.output)


def back(work: Work) -> list[str]:
    """The calls that something came of, and whose leaf may go on with that now."""
    return [
        effect_id
        for effect_id, entry in work.called.items()
        if "came" in entry and may_go_on(path_to(work.root, entry["leaf"]), effect_id)
    ]


def may_go_on(path: Sequence[Instance[Any]], effect_id: str) -> bool:
    if not path or not path[-1].waits_for(effect_id):
        return False
    return all(child.background for child in path[-1].children) and not any(i.halted for i in path[:-1])


def take_back(work: Work, effect_ids: Sequence[str]) -> None:
    """Have the leaves of these calls among those that run in the step that begins."""
    local = work.local
    leaves = {work.called[effect_id]["leaf"]: effect_id for effect_id in effect_ids}
    run = local["run"] = [one.id for one, _ in walk(work.root) if one.id in leaves or one.id in local["run"]]
    for lane, leaf_id in enumerate(run):
        if (effect_id := leaves.get(leaf_id)) is None:
            continue
        entry = work.called[effect_id]
        local[f"back{lane}"] = effect_id
        if "call" not in entry:
            local[f"lane{lane}"] = entry["came"]
            continue
        k = entry["call"]
        local.update(unpacked(entry["parts"], lane))
        local[f"out{lane}.{k}"] = entry["came"]
        after_call(work, lane, k, local[f"lane{lane}"]["calls"][k])
