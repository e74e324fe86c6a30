"""Steering hooks in a step: the user's code that looks at calls before they are made, at moves before they are taken,
at what calls gave, and at failures of a model.

A tree changes by the records of its log alone. So of what a hook returns only a few keys count, the same ones as in a
tool loop: `_skip_tools` (names or ids of calls), `_abort_tool_loop` (the leaf's turn is over), `_steering_messages`
(silent messages to the leaf). A hook that raises refuses what it was asked about, and the model reads why.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flat.core.effects import RunHook
from flat.core.events import Done, Failed, Steered
from flat.core.failure import Failure
from flat.core.ops.converse import ABORT, SKIP, STEER
from flat.tree.naming import TRANSITION, TRANSITION_PREFIX
from flat.tree.run_work import Data, Work
from flat.tree.schema import as_plain

CALLS, MOVE, SEEN, ERROR = "calls", "move", "seen", "error"
"""How the ids of these effects end."""
POINTS = {MOVE: "transition", SEEN: "tool_result"}
SKIPPED = "{} was skipped by policy."
ABORTED = "{} was not called: this turn was ended by policy."
REFUSED = "{} was refused: {}"
WITHHELD = "{} was called, and what it gave is withheld: {}"
RECOVERIES = ("retry", "cede", "suspend")


def is_transition(name: str) -> bool:
    return name == TRANSITION or name.startswith(TRANSITION_PREFIX)


def refusal(code: str, text: str) -> dict[str, Any]:
    """The outcome of a call that was not made, or whose move was not taken."""
    return {"content": text, "is_error": True, "code": code}


# -- asking -----------------------------------------------------------------------------


def due(work: Work, lane: int, calls: Sequence[Data], tree: Data) -> RunHook | None:
    """The hook that has to answer before the lane goes on, if any."""
    steered, local = work.run.steered, work.local
    if not steered or not calls:
        return None
    if "tool_calls" in steered and f"rule{lane}" not in local:
        return effect(work, lane, "tool_calls", (CALLS,), tree, calls=list(calls))
    waiting = local.get(f"hook{lane}")
    if not waiting:
        return None
    what, k = waiting[0]
    call, outcome = calls[k], local[f"out{lane}.{k}"]
    if what == MOVE:
        record = outcome["changes"][0]
        return effect(work, lane, "transition", (k, MOVE), tree, {"effect": record}, to=target(record))
    result = {
        "tool_call_id": call["id"],
        "name": call["name"],
        "arguments": call.get("arguments") or {},
        "content": outcome["content"],
        "is_error": bool(outcome.get("is_error")),
    }
    return effect(work, lane, "tool_result", (k, SEEN), tree, result=result)


def effect(
    work: Work,
    lane: int,
    point: str,
    suffix: Sequence[Any],
    tree: Data,
    seen: Data | None = None,
    **arguments: Any,
) -> RunHook:
    """A hook at a point, with what it may look at of the tree."""
    leaf_id = work.local["run"][lane]
    leaf = next(one for one in _instances(work.binding.tree(tree)) if one.id == leaf_id)
    context = {
        "instance": leaf_id,
        "state": as_plain(leaf.state),
        "turn": work.turn,
        "tree": tree,
        **(seen or {}),
    }
    label = work.binding.charter.label_of(leaf.node)
    id_ = work.effect_id(work.suffix(lane, *suffix))
    return RunHook(id_, label, point, work.here.hooks, context, arguments)


def _instances(root: Any) -> Any:
    yield root
    for child in root.children:
        yield from _instances(child)


def after_call(work: Work, lane: int, k: int, call: Data) -> None:
    """Note which hooks look at what a call has given."""
    steered, outcome = work.run.steered, work.local[f"out{lane}.{k}"]
    if not steered or outcome is None:
        return
    asked = []
    moved = is_transition(call["name"]) and outcome.get("changes") and not outcome.get("is_error")
    if moved and "transition" in steered:
        asked.append([MOVE, k])
    if "tool_result" in steered:
        asked.append([SEEN, k])
    if asked:
        work.local[f"hook{lane}"] = [*work.local.get(f"hook{lane}", ()), *asked]


def target(record: Data) -> str:
    """Where a move leads, in a word, for a hook that only knows states."""
    nodes = [record["node"]] if "node" in record else [child["node"] for child in record.get("children", ())]
    named = [str(node.get("ref") or node.get("name") or "inline") for node in nodes]
    kind: str = record["kind"]
    return ", ".join(named) or {"cede": "ceded", "suspend": "suspended"}.get(kind, kind)


# -- what they answer ---------------------------------------------------------------------


def hooked(work: Work, lane: int, parts: Sequence[str], event: Done | Failed, calls: Sequence[Data]) -> None:
    """Do what a hook has answered."""
    local = work.local
    if parts[-1] == CALLS:
        local[f"rule{lane}"] = True
        judged(work, lane, event, calls)
        return
    what, k = local[f"hook{lane}"][0]
    rest = local[f"hook{lane}"][1:]
    if rest:
        local[f"hook{lane}"] = rest
    else:
        del local[f"hook{lane}"]
    name, out = calls[k]["name"], f"out{lane}.{k}"
    if isinstance(event, Failed):
        text = REFUSED if what == MOVE else WITHHELD
        local[out] = refusal("refused_by_hook", text.format(name, event.failure.message))
        return
    context = event.value.context if isinstance(event.value, Steered) else event.value
    steer(work, lane, context)
    if what == SEEN and context.get(ABORT):
        abort(work, lane, calls)


def judged(work: Work, lane: int, event: Done | Failed, calls: Sequence[Data]) -> None:
    """Refuse the calls of an answer that a hook does not want made."""
    local = work.local
    if isinstance(event, Failed):
        for k, call in enumerate(calls):
            local[f"out{lane}.{k}"] = refusal(
                "refused_by_hook", REFUSED.format(call["name"], event.failure.message)
            )
        return
    context: Data = event.value
    steer(work, lane, context)
    if context.get(ABORT):
        abort(work, lane, calls)
    skip = context.get(SKIP) or ()
    for k, call in enumerate(calls):
        if call["name"] in skip or call["id"] in skip:
            local.setdefault(f"out{lane}.{k}", refusal("skipped", SKIPPED.format(call["name"])))


def abort(work: Work, lane: int, calls: Sequence[Data]) -> None:
    """The leaf's turn is over: what was not called yet never is."""
    work.local[f"end{lane}"] = True
    for k, call in enumerate(calls):
        work.local.setdefault(f"out{lane}.{k}", refusal("aborted", ABORTED.format(call["name"])))


def steer(work: Work, lane: int, context: Data) -> None:
    """Keep what a hook has to say to the leaf, for the end of the step."""
    given = context.get(STEER) or ()
    notes = [given] if isinstance(given, str | Mapping) else list(given)
    texts = [str(note.get("content", "")) if isinstance(note, Mapping) else str(note) for note in notes]
    if texts:
        work.local[f"steer{lane}"] = [*work.local.get(f"steer{lane}", ()), *texts]


# -- failures -------------------------------------------------------------------------------


def recovery(event: Done, failure: Failure) -> tuple[str | None, Failure]:
    """What a hook wants done about a model that failed, and the failure, which tells of a wish that nobody knows."""
    value = event.value.value
    if value is None or value in RECOVERIES:
        return value, failure
    known = ", ".join(RECOVERIES)
    text = f"{failure.message} (on_error returned {value!r}; in a tree it returns {known}, or None)"
    return None, Failure(type=failure.type, message=text, names=failure.names, retryable=failure.retryable)
