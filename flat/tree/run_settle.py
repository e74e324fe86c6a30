"""The end of a step: what every leaf said and changed, in leaf order, and who goes on.

A leaf goes on when it has used tools, when its answer was cut off for the first time, when it became a leaf because
a child has ceded, when it was made by a leaf that used tools, or when something was delivered to it. The turn is over
when nobody goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from flat.core.failure import Failure
from flat.core.op import Answer
from flat.tree.calls import CallOutcome, ToolCall, reason_of, step_messages
from flat.tree.changes import Ceded, Change, Spawned, change_data, change_from_data
from flat.tree.instance import Instance, active_instance, active_leaves, path_to
from flat.tree.lower import outcome_data, outcome_from_data
from flat.tree.messages import Source, user_message
from flat.tree.prompt import CUT_OFF_NOTE, NUDGE_NOTE
from flat.tree.run_act import calls_of, cut_off
from flat.tree.run_called import back, suspension, waiting
from flat.tree.run_hooks import is_transition
from flat.tree.run_intake import fresh_drain, late_queue
from flat.tree.run_work import Data, Phase, Work, content_text, told_to

NUDGES = 2
FINAL = ("end_turn", "external")


@dataclass
class Lane:
    """What became of one leaf in this step."""

    leaf: Instance[Any]
    parent: str | None
    primary: bool
    reason: str = "end_turn"
    cede: Any = None
    """What it handed over, when it ceded."""
    ceded: bool = False
    spawned: tuple[str, ...] = ()
    goes_on: bool = False
    detail: str = ""


@dataclass
class Settled:
    """What became of the step."""

    lanes: list[Lane] = field(default_factory=list)
    delivered: set[str] = field(default_factory=set)
    """Instances that a child has ceded to."""
    failure: Failure | None = None
    closed: Lane | None = None
    """The lane of the root, when that has ceded."""


def settle(work: Work) -> Phase | Answer:
    """Write the step, apply what it changed, report it, and decide what comes next."""
    local, turn = work.local, work.turn
    first = active_instance(work.root).id
    settled = Settled()
    paths = {leaf_id: work.path(leaf_id) for leaf_id in local["run"]}
    for order, leaf_id in enumerate(local["run"]):
        path = paths[leaf_id]
        lane = Lane(path[-1], path[-2].id if len(path) > 1 else None, leaf_id == first)
        settled.lanes.append(lane)
        settle_lane(work, settled, lane, order)
    since = turn.get("carry")
    work.set_turn(carry=None)
    since = local["at"] if since is None else since
    if settled.failure is not None:
        report(work, settled, since, local["run"], late=False)
        work.context["wants"] = wanting(work, settled)
        return work.stop(settled.failure)
    called = bool(work.called and back(work))
    late = late_queue(work, local.get("late", ()))
    if settled.closed is not None:
        work.record("cede", True, since, cede_content=settled.closed.cede)
        return work.close("cede", settled.closed.cede)
    wants = wanting(work, settled)
    if turn.get("until") == "primary" and any(x.primary and x.reason in FINAL for x in settled.lanes):
        wants, called = [], False
    report(work, settled, since, wants, bool(late) or called)
    work.context["wants"] = wants
    if late:
        work.local = {"drain": fresh_drain(work, late, mid=True)}
        return "drain"
    return "begin" if wants or called else "finish"


# -- one lane -------------------------------------------------------------------------------


def settle_lane(work: Work, settled: Settled, lane: Lane, order: int) -> None:
    """Say what a leaf said, and apply what it changed."""
    answer = work.local[f"lane{order}"]
    if not work.path(lane.leaf.id):
        return  # a leaf before it in this step has taken it out of the tree, with all that it did
    source = Source(instance_id=lane.leaf.id, is_primary=lane.primary)
    if (effect_id := work.local.get(f"back{order}")) is not None:
        come_back(work, lane, source, effect_id)
    if "called" in answer:
        lane.reason = "call"
        wait_for_machine(work, lane, source, answer["called"])
        return
    if "cede" in answer:
        lane.reason = "cede"
        hand_over(work, settled, lane, source, answer["cede"])
        return
    if "suspend" in answer:
        lane.reason = "suspend"
        stop_for_a_person(work, order, lane, source, answer["suspend"])
        return
    work.say(answer["message"])
    if lane.primary and work.run.until == "end_turn":
        work.context["answer"] = content_text(answer["message"].get("items"))
    calls, outcomes = made(work, lane, order)
    patches, moves = applied(work, calls, outcomes)
    asked = [ToolCall(call["id"], call["name"], call.get("arguments") or {}) for call in calls]
    work.say(*step_messages(asked, outcomes, patches, moves, source))
    lane.spawned = tuple(c.id for move in moves if isinstance(move, Spawned) for c in move.children)
    lane.reason = reason(answer, calls, outcomes, moves)
    if f"end{order}" in work.local and lane.reason == "tool_use":
        lane.reason = "end_turn"
    lane.detail = "refused" if answer.get("finish") in ("content_filter", "refusal") else ""
    for data in ceded_by(outcomes, moves):
        delivered(work, settled, lane, data)
    if not lane.ceded:
        work.say(*(told_to(lane.leaf.id, note, silent=True) for note in work.local.get(f"steer{order}", ())))
        ended(work, settled, lane, source, content_text(answer["message"].get("items")))


def made(work: Work, lane: Lane, order: int) -> tuple[list[dict[str, Any]], dict[str, CallOutcome]]:
    """The calls of a lane, and the outcomes of those that were made by us."""
    calls = calls_of(work, order)
    found = {call["id"]: work.local.get(f"out{order}.{k}") for k, call in enumerate(calls)}
    return calls, {id_: outcome_from_data(data) for id_, data in found.items() if data is not None}


def applied(
    work: Work, calls: Sequence[Data], outcomes: dict[str, CallOutcome]
) -> tuple[list[Change], list[Change]]:
    """Apply the changes of a lane's calls. What another leaf's changes have made impossible is told to the model."""
    patches: list[Change] = []
    moves: list[Change] = []
    for call in sorted(calls, key=lambda c: is_transition(c["name"])):
        outcome = outcomes.get(call["id"])
        if outcome is None or not outcome.changes:
            continue
        changes = [work.dated(change_data(change)) for change in outcome.changes]
        of_root = [c for c in changes if c["kind"] == "cede" and c["instanceId"] == work.root_id]
        before = work.tree if len(changes) > 1 else None
        refused = [] if of_root else work.change(*changes)
        if refused:
            if before is not None:
                work.tree = before
            error = refused[0][1]
            outcomes[call["id"]] = CallOutcome(content=error.message, is_error=True, code=error.code)
            continue
        records = [change_from_data(change) for change in changes]
        (moves if is_transition(call["name"]) else patches).extend(records)
    return patches, moves


def ceded_by(outcomes: Mapping[str, CallOutcome], moves: Sequence[Change]) -> list[Any]:
    """What was handed over by the transitions that were taken."""
    return [move.content for move in moves if isinstance(move, Ceded)]


def reason(
    answer: Data, calls: Sequence[Data], outcomes: Mapping[str, CallOutcome], moves: Sequence[Change]
) -> str:
    """Why a leaf has stopped."""
    if cut_off(answer):
        return "max_tokens"
    if calls and outcomes:
        return reason_of(outcomes.values(), moves)
    if answer.get("finish") in ("pause", "pause_turn"):
        return "tool_use"
    return "external" if answer.get("finish") == "external" else "end_turn"


def delivered(work: Work, settled: Settled, lane: Lane, content: Any) -> None:
    """The leaf is gone; whoever is above it gets what it hands over."""
    lane.ceded, lane.cede = True, content
    work.forget(lane.leaf.id)
    if lane.parent is None:
        settled.closed = lane
        return
    settled.delivered.add(lane.parent)
    work.deliver(content, lane.leaf.id, lane.parent)


def hand_over(work: Work, settled: Settled, lane: Lane, source: Source, content: Any) -> None:
    """Have the leaf cede without its doing."""
    record: dict[str, Any] = {"kind": "cede", "instanceId": lane.leaf.id}
    if content is not None:
        record["content"] = content
    if lane.parent is not None:
        work.change(record)
    metadata = {"source": {"instanceId": source.instance_id, "isPrimary": bool(source.is_primary)}}
    work.say({"role": "instance", "items": record, "metadata": metadata})
    delivered(work, settled, lane, content)


def stop_for_a_person(work: Work, order: int, lane: Lane, source: Source, why: str) -> None:
    """Have the leaf wait, as a hook wants it."""
    suspend(work, lane, source, {"suspendId": f"error-{work.suffix(order)}", "reason": why})


def suspend(work: Work, lane: Lane, source: Source, info: Data) -> None:
    recorded(work, source, work.dated({"kind": "suspend", "instanceId": lane.leaf.id, "suspendInfo": info}))


def recorded(work: Work, source: Source, record: Data) -> None:
    """Apply a record, and say it in the name of the leaf."""
    work.change(record)
    metadata = {"source": {"instanceId": source.instance_id, "isPrimary": bool(source.is_primary)}}
    work.say({"role": "instance", "items": record, "metadata": metadata})


def wait_for_machine(work: Work, lane: Lane, source: Source, effect_id: str) -> None:
    """Suspend a leaf whose machine waits. What its calls before that have changed is seen at once."""
    entry = work.called[effect_id]
    if "parts" in entry:
        parts = dict(entry["parts"])
        calls = parts["lane"]["calls"]
        places = {call["id"]: f"out.{k}" for k, call in enumerate(calls)}
        outcomes = {
            id_: outcome_from_data(out) for id_, k in places.items() if (out := parts.get(k)) is not None
        }
        patches, _ = applied(work, calls, outcomes)
        work.say(*step_messages((), {}, patches, (), source))
        for id_, outcome in outcomes.items():
            parts[places[id_]] = outcome_data(replace(outcome, changes=()))
        work.context["called"] = {**work.called, effect_id: {**entry, "parts": parts}}
    suspend(work, lane, source, suspension(work, effect_id))


def come_back(work: Work, lane: Lane, source: Source, effect_id: str) -> None:
    """A leaf whose machine is done is suspended no more."""
    recorded(work, source, {"kind": "resume", "instanceId": lane.leaf.id, "suspendId": effect_id})
    work.context["called"] = {id_: entry for id_, entry in work.called.items() if id_ != effect_id}
    if not work.context["called"]:
        del work.context["called"]


def ended(work: Work, settled: Settled, lane: Lane, source: Source, text: str) -> None:
    """Whether a leaf that is still there goes on, and what becomes of a worker that ended its turn."""
    if lane.reason == "tool_use":
        lane.goes_on = True
    if lane.reason == "max_tokens":
        again = work.turn.get("again", [])
        if lane.leaf.id not in again:
            work.set_turn(again=[*again, lane.leaf.id])
            work.say(user_message(CUT_OFF_NOTE, to=lane.leaf.id))
            lane.goes_on = True
    here = work.path(lane.leaf.id)
    if not here or not here[-1].node.worker or (lane.parent is None and work.run.until != "cede"):
        return
    worked(work, settled, lane, source, text, here[-1])


def worked(work: Work, settled: Settled, lane: Lane, source: Source, text: str, leaf: Instance[Any]) -> None:
    counts: Data = work.context.get("counts", {})
    count = {"steps": 0, "nudges": 0, **counts.get(leaf.id, {})}
    count["steps"] += 1
    final = not lane.goes_on and lane.reason in ("end_turn", "max_tokens") and not work.has_children(leaf.id)
    if final and leaf.node.on_end_turn == "error":
        settled.failure = Failure(
            type="WorkerEndedTurn",
            message=f'the worker "{leaf.node.label}" ({leaf.id}) ended its turn without ceding',
        )
    elif final and leaf.node.on_end_turn == "nudge" and count["nudges"] < NUDGES:
        count["nudges"] += 1
        work.say(told_to(leaf.id, NUDGE_NOTE))
        lane.goes_on = True
    elif final and leaf.node.on_end_turn in ("cede", "nudge"):
        hand_over(work, settled, lane, source, text or None)
    if lane.goes_on and leaf.node.max_steps is not None and count["steps"] >= leaf.node.max_steps:
        lane.goes_on = False
        notice = f'"{leaf.node.label}" was stopped after {count["steps"]} steps, its limit. {text}'.rstrip()
        hand_over(work, settled, lane, source, notice)
    if not lane.ceded:
        work.context["counts"] = {**counts, leaf.id: count}


# -- the step ---------------------------------------------------------------------------------


def wanting(work: Work, settled: Settled) -> list[str]:
    """The leaves that go on, in leaf order."""
    goes_on = {lane.leaf.id for lane in settled.lanes if lane.goes_on}
    spawned = {id_: lane for lane in settled.lanes for id_ in lane.spawned}
    found = []
    for leaf in active_leaves(work.root):
        id_ = leaf.instance.id
        spawner = spawned.get(id_)
        if (
            id_ in goes_on
            or id_ in settled.delivered
            or (spawner is not None and (spawner.reason == "tool_use" or leaf.is_worker))
        ):
            found.append(id_)
    return found


def report(work: Work, settled: Settled, since: int, wants: Sequence[str], late: bool) -> None:
    """Record the step, and where the turn ends in a wait, that too."""
    primary = next((lane for lane in settled.lanes if lane.primary), None)
    alone = settled.lanes[0] if len(settled.lanes) == 1 else None
    over = not wants and not late
    waits = waiting(work)
    detail = primary.detail if primary is not None else ""
    if alone is not None and alone.ceded:
        halts = over and waits and bool(work.called)
        work.record("cede", over and not halts, since, cede_content=alone.cede)
        if halts:
            work.record("awaiting_resume", True, work.log_length)
    elif primary is not None and primary.reason == "suspend":
        work.record("suspend", False, since)
        if over:
            work.record("awaiting_resume", True, work.log_length)
    elif primary is not None and primary.reason != "call":
        work.record(primary.reason, over, since, detail=detail)
    elif wants:
        work.record("tool_use", False, since)
    else:
        work.record("awaiting_resume" if waits else "end_turn", over, since)


def finish(work: Work) -> Phase | Answer:
    """The turn is over."""
    turn = work.turn
    if turn["open"] and not turn["step"]:  # nobody could even begin
        since = turn["carry"] if turn.get("carry") is not None else work.log_length
        work.record("awaiting_resume" if waiting(work) else "end_turn", True, since)
    reason_ = work.records[-1]["reason"] if work.records else "end_turn"
    work.context["turn"] = {k: turn[k] for k in ("n", "step", "from")} | {
        "open": False,
        "max_steps": work.run.max_steps,
    }
    for key in ("wants", "live"):
        work.context.pop(key, None)
    work.forget(*(id_ for id_ in work.context.get("counts", {}) if not path_to(work.root, id_)))
    work.local = {}
    halted = reason_ == "awaiting_resume" or waiting(work) or bool(work.called)
    if work.run.until == "end_turn" and not halted:
        return work.close("end_turn", work.context.pop("answer", None))
    return "wait"
