"""What comes in: the first input, messages, commands, resumes and records from outside, and the end of waits.

Resumes are taken first, then everything in its order. Whatever changes the tree is a record of the log. A command
is an effect of its own, because it runs its author's code; the rest waits for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flat.core.effects import AwaitSignal, RunTool
from flat.core.events import Done, Failed
from flat.core.failure import Failure, failure_of
from flat.core.op import UNSET, Answer, Raise
from flat.errors import TreeError
from flat.tree.apply import check_resumable
from flat.tree.commanding import doubt_of_command
from flat.tree.instance import Instance, active_instance, path_to, suspended_instances
from flat.tree.messages import is_command, is_resume, message_from_data, messages_from
from flat.tree.prompt import resumed_note
from flat.tree.run_called import back, waiting
from flat.tree.run_external import owned_outside, record_effect
from flat.tree.run_work import NODE, Data, Phase, Work, as_text, full_data, told_to

OPTIONS = ("max_steps", "until")
INPUT = frozenset({"tree", "node", "state", "message", "messages", "history", "turn", "begin", *OPTIONS})
MAX_STEPS = 50


def inbox_channel(execution_id: str) -> str:
    """The channel of everything that is said to a tree."""
    return f"tree/{execution_id}/inbox"


def resume_channel(execution_id: str, suspend_id: str) -> str:
    """The channel that resumes one suspended instance."""
    return f"tree/{execution_id}/resume/{suspend_id}"


# -- beginnings -------------------------------------------------------------------


def entered(work: Work) -> Phase | Answer:
    """The node is entered: for the first time, with what came in, or because a turn cannot go on."""
    context = work.context
    if "tree" not in context:
        return born(work)
    queue = context.pop("inbox", None)
    if queue is None:
        return "wait"
    context.pop("problem", None)
    work.local = {"drain": fresh_drain(work, unpacked(work, queue))}
    return "drain"


def born(work: Work) -> Phase | Answer:
    """The first tree, of the input."""
    given = work.context.pop("input", None) or {}
    try:
        unknown = sorted(given.keys() - INPUT)
        if unknown:
            raise TreeError(
                "bad_input",
                f"the input of a tree has no {', '.join(unknown)}; it takes {', '.join(sorted(INPUT))}",
            )
        tree = given.get("tree") or first_tree(work, given)
        queue = messages_from([given["message"]] if given.get("message") not in (None, "") else [])
        queue += messages_from(given.get("messages") or [])
        history = [full_data(message_from_data(m)) for m in given.get("history") or ()]
    except TreeError as error:
        return Raise(failure_of(error))
    options = {key: given[key] for key in OPTIONS if given.get(key) is not None}
    work.context = {
        "tree": tree,
        "turn": {
            "n": 0,
            "step": 0,
            "open": False,
            "from": 0,
            "taken": 0,
            "again": [],
            **(given.get("turn") or {}),
            "max_steps": work.run.max_steps,
            **options,
        },
    }
    work.say(*history)
    begins = bool(given.get("begin"))  # without being told anything
    if not queue and not begins and work.run.until != "session":
        return "wait"
    state = fresh_drain(work, [full_data(message) for message in queue])
    work.local = {"drain": {**state, "infer": begins}}
    return "drain"


def first_tree(work: Work, given: Data) -> Data:
    charter = work.binding.charter
    name = given.get("node") or work.run.node or next(iter(charter.nodes), "")
    state = given.get("state")
    root = Instance(charter.node(name), UNSET if state is None else state, id="root")
    return work.binding.started(root)


def unpacked(work: Work, payload: Any) -> list[dict[str, Any]]:
    """The messages of a payload, as data. Options among them apply from now on; what is none of these is told."""
    if isinstance(payload, Mapping) and "messages" in payload and "role" not in payload:
        options = {k: v for k, v in (payload.get("options") or {}).items() if k in OPTIONS and v is not None}
        if options:
            work.set_turn(**options)
        payload = payload["messages"]
    found: list[dict[str, Any]] = []
    parts = payload if isinstance(payload, list | tuple) else () if payload is None else (payload,)
    for part in parts:
        if isinstance(part, Mapping) and part.get("role") in ("wait", "timeout"):
            found.append(dict(part))
            continue
        try:
            found += [full_data(message) for message in messages_from(part)]
        except TreeError as error:
            found.append({"role": "refused", "items": error.message})
    return found


def fresh_drain(work: Work, queue: Sequence[Data], *, mid: bool = False) -> dict[str, Any]:
    """What is known while the queue is taken: where its history begins, and what came of it so far."""
    first = [item for item in queue if _resumes(item)]
    rest = [item for item in queue if not _resumes(item)]
    return {
        "queue": [*first, *upserted(rest)],
        "from": work.log_length,
        "mid": mid,
        "infer": False,
        "resumed": False,
        "to": [],
        "results": [],
        "settled": [],
        "refused": [],
    }


def _resumes(item: Data) -> bool:
    items = item.get("items")
    if item["role"] == "wait":
        return True
    return item["role"] == "system" and isinstance(items, list) and any(is_resume(part) for part in items)


def upserted(queue: Sequence[Data]) -> list[Data]:
    """The queue with messages of the same id replaced in place, and of ephemeral ones with a key only the last."""
    found: list[Data] = []
    places: dict[str, int] = {}
    frames: dict[str, int] = {}
    for item in queue:
        known = (item.get("metadata") or {}).get("messageId")
        singleton = (item.get("metadata") or {}).get("singleton") if item["role"] == "ephemeral" else None
        if singleton is not None:
            frames[singleton] = frames.get(singleton, 0) + 1
            found = [f for f in found if (f.get("metadata") or {}).get("singleton") != singleton]
            places.clear()
            item = {**item, "metadata": {**item["metadata"], "singletonFrameCount": frames[singleton]}}
        if known is not None and known in places:
            found[places[known]] = item
            continue
        if known is not None:
            places[known] = len(found)
        found.append(item)
    return found


# -- the queue ----------------------------------------------------------------------


def drain(work: Work) -> Phase | Answer:
    """Take what is in the queue, one after the other, up to a command, which has to run first."""
    state = work.local["drain"]
    while state["queue"]:
        item, *rest = state["queue"]
        state = work.local["drain"] = {**state, "queue": rest}
        effect = take(work, state, item)
        if effect is not None:
            return work.block(effect)
    return drained(work, state)


def take(work: Work, state: dict[str, Any], item: Data) -> RunTool | None:
    """Take one entry; a command that has to run is given back as its effect."""
    role, items = item["role"], item.get("items")
    if role == "refused":
        state["refused"] = [*state["refused"], {"code": "bad_message", "message": items}]
    elif role in ("wait", "timeout"):
        waited(work, state, item)
    elif _resumes(item):
        for part in items or ():
            if is_resume(part):
                resume(work, state, part["instanceId"], part["suspendId"], part.get("payload", UNSET))
    elif role == "command" and isinstance(items, list) and any(is_command(part) for part in items):
        return command(work, state, item)
    elif role == "instance":
        record = work.dated(items or {})
        if owned_outside(work, record):
            work.local |= {"stage": "record", "record": record, "asked": f"record-{work.log_length}"}
            work.local["asked"] += f"-{len(state['queue'])}"
            return record_effect(work)
        if not outside(work, state, record):
            work.say({**item, "items": record})
    else:
        said(work, state, item)
    return None


def said(work: Work, state: dict[str, Any], item: Data) -> None:
    """A message of the conversation."""
    metadata = item.get("metadata") or {}
    known = metadata.get("messageId")
    if known is not None:
        if known in work.context.get("ids", ()):
            return
        work.grow("ids", known)
    if item["role"] == "ephemeral":
        place = str(work.log_length)
        work.context["live"] = {**work.context.get("live", {}), place: item["items"]}
        item = {**item, "items": []}
    work.say(item)
    if item["role"] == "user" and not metadata.get("silent"):
        state["infer"] = True
        if metadata.get("to"):
            state["to"] = [*state["to"], metadata["to"]]


def outside(work: Work, state: dict[str, Any], record: Data) -> bool:
    """Apply a record from outside; True when it was refused, which is told."""
    above = _parent(work, record)
    try:
        if record.get("kind") == "resume" and (path := work.path(str(record.get("instanceId")))):
            check_resumable(path[-1])
        for _, refused in work.change(record):
            raise refused
    except TreeError as error:
        state["refused"] = [*state["refused"], {"code": error.code, "message": error.message}]
        return True
    if above is not None:
        work.deliver(record.get("content"), record["instanceId"], above)
    return False


def _parent(work: Work, record: Data) -> str | None:
    """Who gets what a cede hands over."""
    if record.get("kind") != "cede":
        return None
    path = work.path(str(record.get("instanceId")))
    return path[-2].id if len(path) > 1 else None


def resume(work: Work, state: dict[str, Any], instance_id: str, suspend_id: str, payload: Any) -> None:
    """An instance goes on; a payload is told to it, and starts inference."""
    record: dict[str, Any] = {"kind": "resume", "instanceId": instance_id, "suspendId": suspend_id}
    if payload is not UNSET:
        record["payload"] = payload
    path = work.path(instance_id)
    if outside(work, state, record):
        return
    waiting = path[-1].suspended
    note = resumed_note(path[-1].node.label, waiting.reason if waiting is not None else "")
    work.say({"role": "instance", "items": record}, told_to(instance_id, note, silent=True))
    state["resumed"] = True
    if payload is not UNSET:
        work.say(told_to(instance_id, as_text(payload)))
        state["infer"] = True
        state["to"] = [*state["to"], instance_id]


def waited(work: Work, state: dict[str, Any], item: Data) -> None:
    """A wait is over: a signal came on a channel of its own, or its time is up."""
    id_, suspend_id = item["instanceId"], item["suspendId"]
    if item["role"] == "wait":
        payload = item.get("payload")
        resume(work, state, id_, suspend_id, UNSET if payload is None else payload)
        return
    path = work.path(id_)
    waiting = path[-1].suspended if path else None
    if waiting is None or waiting.suspend_id != suspend_id:
        return
    text = f"Nobody answered within {waiting.timeout:g} seconds."
    if waiting.on_timeout == "resume":
        resume(work, state, id_, suspend_id, text)
    elif waiting.on_timeout == "cede" and len(path) > 1:
        content = f'"{path[-1].node.label}" gave up waiting ({waiting.reason}). {text}'
        record = {"kind": "cede", "instanceId": id_, "content": content}
        work.say({"role": "instance", "items": record})
        outside(work, state, record)
        state["infer"] = True
        state["to"] = [*state["to"], path[-2].id]
    else:
        work.context["kept"] = [*work.context.get("kept", ()), suspend_id]


# -- commands -----------------------------------------------------------------------


def command(work: Work, state: dict[str, Any], item: Data) -> RunTool | None:
    """Run the command of a message, unless one with its client id was run before."""
    found = [part for part in item["items"] if is_command(part)]
    if len(found) > 1:
        singles = [{**item, "items": [part]} for part in found]
        state["queue"] = [*singles[1:], *state["queue"]]
        item = singles[0]
    invocation = found[0]
    client = invocation.get("clientId")
    if client is not None:
        for known, result in work.context.get("clients", ()):
            if known == client:
                state["results"], state["settled"] = [*state["results"], result], [*state["settled"], client]
                return None
    work.say(item)
    work.local |= {"stage": "command", "invocation": invocation, "asked": f"command-{work.log_length}"}
    return command_effect(work)


def command_effect(work: Work) -> RunTool:
    invocation = work.local["invocation"]
    return RunTool(
        work.effect_id(work.local["asked"]),
        NODE,
        invocation["name"],
        invocation.get("input") or {},
        "",
        {"tree": work.tree, "invocation": invocation, "step": work.turn["step"]},
        work.here.hooks,
        in_doubt=doubt_of_command(work.root, invocation["name"], invocation.get("instanceId")),
    )


def commanded(work: Work, event: Done | Failed) -> Phase:
    """A command is done: apply what it asks for, all or nothing, and go on with the queue."""
    state = dict(work.local["drain"])
    invocation = work.local["invocation"]
    outcome = _outcome(event)
    before, parents = work.tree, {}
    changes = [work.dated(change) for change in outcome.pop("changes", ())]
    for change in changes:
        parents[change.get("instanceId")] = _parent(work, change)
    refused = work.change(*changes)
    messages = outcome.pop("messages", ())
    if refused:
        work.tree = before
        error = refused[0][1]
        outcome = {"success": False, "error": error.message, "code": error.code}
        changes, messages = [], ()
    for change in changes:
        work.say({"role": "instance", "items": change})
        if change.get("kind") == "cede" and (above := parents.get(change["instanceId"])) is not None:
            work.deliver(change.get("content"), change["instanceId"], above)
        if change.get("kind") == "resume" and "payload" in change:
            work.say(told_to(change["instanceId"], as_text(change["payload"])))
            state["infer"], state["to"] = True, [*state["to"], change["instanceId"]]
    if (client := invocation.get("clientId")) is not None:
        work.grow("clients", [client, outcome])
        state["settled"] = [*state["settled"], client]
    state["results"] = [*state["results"], outcome]
    state["queue"] = [*messages, *state["queue"]]
    work.local = {"drain": state}
    return "drain"


def _outcome(event: Done | Failed) -> dict[str, Any]:
    if isinstance(event, Failed):
        failure: Failure = event.failure
        unknown = "InDoubt" in (failure.type, *failure.names)
        text = (
            "it is not known whether the command ran: the process died meanwhile"
            if unknown
            else failure.message
        )
        return {"success": False, "error": text, "code": "outcome_unknown" if unknown else "command_failed"}
    value = event.value
    return dict(value) if isinstance(value, Mapping) else {"success": True, "value": value}


# -- what comes of it -----------------------------------------------------------------


def drained(work: Work, state: dict[str, Any]) -> Phase | Answer:
    """The queue is empty: report, and go on with a turn, begin one, or wait."""
    mid, turn = state["mid"], work.turn
    infer = state["infer"] or (turn["open"] and not mid)
    wants = [*work.context.get("wants", ())] if mid else []
    if mid and infer:
        wants = list(dict.fromkeys([*wants, *(state["to"] or [active_instance(work.root).id])]))
    called = bool(work.called and back(work))
    goes_on = infer or bool(wants) or called
    since = state["from"]
    acted = bool(state["results"] or state["resumed"] or state["refused"])
    if acted:
        work.record(
            "command",
            not goes_on and (mid or bool(state["results"])),
            since,
            command_result=state["results"][-1] if state["results"] else None,
            command_results=state["results"][:-1],
            settled=state["settled"],
            refused=state["refused"],
        )
        since = work.log_length
    work.local = {}
    if mid:
        work.context["wants"] = wants
        work.set_turn(carry=since)
        if goes_on:
            return "begin"
        if work.records and not acted:  # the step that was settled just now is the last one
            work.records[-1] |= {"to": work.log_length, "done": True}
        return "finish"
    if not infer and not called:
        if not acted:
            work.record("awaiting_resume" if waiting(work) else "end_turn", True, since)
        return "wait"
    if turn["open"]:
        carry = turn.get("carry")
        work.set_turn(carry=since if carry is None else min(since, carry), taken=0)
        return "begin"
    if infer:
        work.context.pop("wants", None)
    else:  # only those run whose machines are done
        work.context["wants"] = []
    work.set_turn(
        n=turn["n"] + 1,
        step=0,
        taken=0,
        open=True,
        again=[],
        **{"from": state["from"], "carry": since},
    )
    return "begin"


# -- waiting ----------------------------------------------------------------------------


def wait(work: Work) -> Answer:
    """Nothing runs: wait for the inbox, and for whatever resumes a suspended instance."""
    if not all(work.is_called(effect_id) for effect_id in work.called):
        return work.reenter(inbox=None)  # without the machines that nobody waits for any more
    id_, kept = work.here.execution_id, work.context.get("kept", ())
    waits: list[list[str]] = []
    effects: list[AwaitSignal] = []
    for instance in suspended_instances(work.root):
        info = instance.suspended
        assert info is not None
        if info.execution_id is not None:  # what it waits for is pending
            continue
        deadline = None
        if info.timeout is not None and info.suspend_id not in kept:
            deadline = _seconds(info.suspended_at) + info.timeout
        usual = resume_channel(id_, info.suspend_id)
        for channel in (usual, *([info.channel] if info.channel else [])):
            effect_id = work.effect_id(f"resume{len(waits)}")
            effects.append(AwaitSignal(effect_id, NODE, channel, deadline if channel == usual else None))
            waits.append([instance.id, info.suspend_id])
    effects.append(AwaitSignal(work.effect_id("inbox"), NODE, inbox_channel(id_)))  # resumes come first
    work.local = {"stage": "wait", "waits": waits} if waits else {"stage": "wait"}
    return work.block(*effects)


def _seconds(at: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(at).timestamp()


def woken(work: Work, event: Done | Failed) -> Answer:
    """Something came: begin anew with it."""
    what = event.effect_id.rpartition(".")[2]
    if what == "inbox":
        assert isinstance(event, Done)
        return work.reenter(inbox=_listed(event.value))
    instance_id, suspend_id = work.local["waits"][int(what.removeprefix("resume"))]
    item = {"role": "timeout", "instanceId": instance_id, "suspendId": suspend_id}
    if isinstance(event, Done):
        item |= {"role": "wait", "payload": event.value}
    return work.reenter(inbox=[item])


def _listed(payload: Any) -> Any:
    """A payload, with an empty one told from none at all."""
    return [] if payload is None else payload


def late_queue(work: Work, late: Sequence[Data]) -> list[Data]:
    """What was found between two steps, as messages."""
    queue: list[Data] = []
    for found in late:
        if found["waits"] is None:
            queue += unpacked(work, found["payload"])
        else:
            instance_id, suspend_id = found["waits"]
            if path_to(work.root, instance_id):
                queue.append(
                    {
                        "role": "wait",
                        "instanceId": instance_id,
                        "suspendId": suspend_id,
                        "payload": found["payload"],
                    }
                )
    return queue
