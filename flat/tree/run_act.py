"""A step of the tree: every leaf that runs asks its model, then each makes its calls, one after another.

The leaves are lanes side by side. `local` has one entry per fact, so that a commit stores only what is new: `run` is
the list of leaves, `lane<i>` the answer of the i-th, `try<i>` its failed attempts, `out<i>.<k>` what its k-th call
gave, `left` how many lanes are not done with the stage; `flat.tree.run_hooks` has its own. No call is made before every
answer is in, so that what was paid for is durable before anything happens, and a failing leaf leaves nothing half done.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flat.core.effects import AwaitSignal, CallAgent, Effect, RunTool, Sleep, StartChild
from flat.core.events import Done, Ended, Failed, Reply, Told, Waits
from flat.core.failure import Failure
from flat.core.op import Answer
from flat.core.strategies.retry import spread
from flat.errors import TreeError
from flat.tree.instance import active_leaves, suspended_instances
from flat.tree.naming import UPDATE_STATE
from flat.tree.run_called import back, leave, machine_lane, machine_result, take_back
from flat.tree.run_external import hydration
from flat.tree.run_hooks import (
    CALLS,
    ERROR,
    MOVE,
    SEEN,
    after_call,
    due,
    hooked,
    is_transition,
    recovery,
    refusal,
)
from flat.tree.run_hooks import effect as hook_effect
from flat.tree.run_intake import inbox_channel, resume_channel
from flat.tree.run_work import NODE, Data, Phase, Work

UNKNOWN = "It is not known whether this call took effect: the process died while it ran. Find out before you repeat it."
ONE_TRANSITION = "only one transition per turn: the first one counts"
LAUNCHED = "itself"
"""What a tree's program calls the machine that runs a part of the tree as an execution of its own."""
NOT_JSON = "the arguments of the call are no JSON object: {}"


# -- beginning a step -------------------------------------------------------------------


def begin(work: Work) -> Phase | Answer:
    """Begin a step, if any leaf may run."""
    root, turn = work.root, work.turn
    wants = work.context.get("wants")
    leaves = [leaf.instance for leaf in active_leaves(root)]
    run = [leaf.id for leaf in leaves if wants is None or leaf.id in wants]
    called = back(work) if work.called else []
    if not run and not called:
        return "finish"
    if (meeting := hydration(work)) is not None:
        return work.block(meeting)
    if turn["taken"] >= turn["max_steps"]:
        message = f"no end after {turn['max_steps']} steps; run again to go on, or allow more with max_steps"
        return work.stop(
            Failure(type="StepLimitExceeded", message=message, names=("step_limit", "LimitExceeded"))
        )
    work.set_turn(step=turn["step"] + 1, taken=turn["taken"] + 1)
    work.local = {"stage": "think", "run": run, "at": work.log_length}
    if called:
        take_back(work, called)
    return "think"


def think(work: Work) -> Phase | Answer:
    """Ask for every answer that is not there yet."""
    effects = []
    for lane, _ in enumerate(work.local["run"]):
        if f"lane{lane}" in work.local:
            continue
        try:
            effects.append(ask(work, lane))
        except TreeError as error:  # the author's function makes no input for the machine of a node
            work.local[f"lane{lane}"] = {"cede": f"could not begin: {error.message}"}
    work.local["left"] = len(effects)
    return work.block(*effects) if effects else "act"


def ask(work: Work, lane: int) -> Effect:
    """The effect that a lane's answer comes from: a model call, another machine, or a pause before the next attempt."""
    leaf_id = work.local["run"][lane]
    leaf = work.path(leaf_id)[-1]
    node, name = leaf.node, work.binding.charter.label_of(leaf.node)
    if leaf.launch:
        work.context["launches"] = True
        given = launch_input(work.data_of(leaf_id), work.turn)
        return StartChild(work.effect_id(work.suffix(lane)), name, LAUNCHED, given, patient=False)
    if node.machine is not None:
        given = work.binding.node_input(work.tree, leaf_id)
        return StartChild(work.effect_id(work.suffix(lane)), name, node.machine.program, given, patient=False)
    attempt, until = work.local.get(f"try{lane}", (0, None))
    if (failure := work.local.get(f"err{lane}")) is not None:
        return hook_effect(work, lane, "error", (f"{ERROR}{attempt}",), work.tree, failure=failure)
    if until is not None:
        return Sleep(work.effect_id(work.suffix(lane, f"pause{attempt}")), name, until)
    turn = work.turn
    facts = {
        "leaf": leaf_id,
        "step": turn["taken"],
        "max_steps": turn["max_steps"],
        "from": turn["from"],
        "at": work.local["at"],
    }
    suffix = work.suffix(lane, f"try{attempt}") if attempt else work.suffix(lane)
    context = {"tree": work.tree, "live": work.context.get("live", {})}
    return CallAgent(work.effect_id(suffix), name, name, facts, context, work.here.hooks)


def launch_input(leaf: Data, turn: Data) -> Data:
    """The first input of a leaf that is an execution of its own: itself as the root, told to begin."""
    tree = {key: value for key, value in leaf.items() if key not in ("launch", "background")}
    return {"tree": tree, "begin": True, "max_steps": turn["max_steps"]}


def lane_of(effect_id: str) -> list[str]:
    """The lane, and what follows it, in the id of an effect of a step."""
    return effect_id.rpartition("/")[2].split("-")[2:]


def thought(work: Work, event: Done | Failed) -> Phase | Answer:
    """A lane's answer, failure, or end of a pause."""
    number, *rest = lane_of(event.effect_id)
    lane = int(number)
    local, leaf_id = work.local, work.local["run"][lane]
    leaf = work.path(leaf_id)[-1]
    if rest and rest[0].startswith(ERROR):
        answer = recovered(work, lane, event)
        if answer is not None:
            return answer
    elif leaf.launch or leaf.node.machine is not None:
        value = event.value if isinstance(event, Done) else None
        if isinstance(value, Waits) and isinstance(effect := ask(work, lane), StartChild):
            leave(work, lane, effect, value)
        else:
            local[f"lane{lane}"] = machine_lane(work, leaf_id, event)
    elif isinstance(event, Failed):
        return again_or_stop(work, lane, event.failure)
    elif "pause" in event.effect_id:
        local[f"try{lane}"] = [local[f"try{lane}"][0] + 1, None]
        return work.block(ask(work, lane))
    else:
        reply: Reply = event.value
        work.here.spend(reply.spent)
        local[f"lane{lane}"] = lane_data(work, reply)
    local["left"] -= 1
    if local["left"]:
        return work.block()
    for done in [key for key in local if key.startswith("try")]:
        del local[done]
    return "act"


def lane_data(work: Work, reply: Reply) -> dict[str, Any]:
    payload = reply.payload if isinstance(reply.payload, Mapping) else {}
    message = payload.get("message")
    if message is None:  # decided by a person, who knows what was said and not how it looks inside
        text = payload.get("content") or reply.text or ""
        message = {"role": "assistant", "items": text}
    data: dict[str, Any] = {"message": message}
    if reply.tool_calls:
        data["calls"] = [dict(call) for call in reply.tool_calls]
    if reply.finish_reason is not None:
        data["finish"] = reply.finish_reason
    return data


def again_or_stop(work: Work, lane: int, failure: Failure) -> Answer:
    """Try again after a pause, as the executor's policy says; else the turn stands still, and the step is forgotten."""
    backoffs, jitter = work.run.backoffs, work.run.jitter
    attempt = work.local.get(f"try{lane}", (0, None))[0]
    may_help = failure.retryable is True or (failure.retryable is None and not work.run.only_retryable)
    if not may_help or attempt >= len(backoffs):
        if "error" not in work.run.steered:
            return work.stop(failure)
        work.local[f"err{lane}"] = failure
        return work.block(ask(work, lane))
    seed = spread(f"{work.here.execution_id}/{work.effect_id(work.suffix(lane, attempt))}")
    delay = max(backoffs[attempt] * (1.0 + jitter * seed), failure.retry_after or 0.0)
    work.local[f"try{lane}"] = [attempt, work.here.at + delay]
    return work.block(ask(work, lane))


def recovered(work: Work, lane: int, event: Done | Failed) -> Answer | None:
    """Do what a hook says about a model that failed; None when that is the lane's answer."""
    failure: Failure = work.local.pop(f"err{lane}")
    if isinstance(event, Failed):
        return work.stop(event.failure)
    wanted, failure = recovery(event, failure)
    if wanted is None:
        return work.stop(failure)
    if wanted == "retry":
        work.local[f"try{lane}"] = [work.local.get(f"try{lane}", (0, None))[0] + 1, None]
        return work.block(ask(work, lane))
    label = work.path(work.local["run"][lane])[-1].node.label
    text = f'"{label}" failed: {failure.message}' if wanted == "cede" else failure.message
    work.local[f"lane{lane}"] = {wanted: text}
    return None


# -- acting -----------------------------------------------------------------------------


def act(work: Work) -> Phase | Answer:
    """Ask for the next call of every lane that has one."""
    work.local["stage"] = "act"
    effects = [e for lane, _ in enumerate(work.local["run"]) if (e := next_call(work, lane)) is not None]
    work.local["left"] = len(effects)
    return work.block(*effects) if effects else "look"


def acted(work: Work, event: Done | Failed) -> Phase | Answer:
    """What a call gave, and the next one of its lane."""
    number, *rest = lane_of(event.effect_id)
    lane = int(number)
    if rest[-1] in (CALLS, MOVE, SEEN):
        hooked(work, lane, rest, event, calls_of(work, lane))
    else:
        k = int(rest[0])
        call = work.local[f"lane{lane}"]["calls"][k]
        value = event.value if isinstance(event, Done) else None
        if isinstance(value, Waits) and isinstance(effect := next_call(work, lane), StartChild):
            leave(work, lane, effect, value, k)
        else:
            work.local[f"out{lane}.{k}"] = outcome(work, lane, call, event)
            after_call(work, lane, k, call)
    following = next_call(work, lane)
    if following is not None:
        return work.block(following)
    work.local["left"] -= 1
    return work.block() if work.local["left"] else "look"


def calls_of(work: Work, lane: int) -> list[dict[str, Any]]:
    """The calls of a lane's answer that are made. Of an answer that was cut off none is."""
    data = work.local[f"lane{lane}"]
    calls: list[dict[str, Any]] = [] if cut_off(data) else data.get("calls", [])
    return calls


def cut_off(data: Data) -> bool:
    return data.get("finish") in ("length", "max_tokens")


def next_call(work: Work, lane: int) -> Effect | None:
    """The next call of a lane, as an effect. What needs none is answered on the way; the transition comes last."""
    calls = calls_of(work, lane)
    if work.run.steered and (hook := due(work, lane, calls, lane_tree(work, lane))) is not None:
        return hook
    moves = [k for k, call in enumerate(calls) if is_transition(call["name"])]
    order = [*(k for k in range(len(calls)) if k not in moves), *moves[:1]]
    for k in moves[1:]:
        work.local.setdefault(f"out{lane}.{k}", refusal("one_transition_per_turn", ONE_TRANSITION))
    settings: Mapping[str, Mapping[str, Any]] | None = None
    for k in order:
        if f"out{lane}.{k}" in work.local:
            continue
        if settings is None:
            path = work.path(work.local["run"][lane])
            settings = work.binding.tool_settings(path[-1].node, [i.node for i in path[:-1]])
        effect = call_effect(work, lane, k, calls[k], settings.get(calls[k]["name"], {}))
        if not isinstance(effect, Mapping):
            return effect
        work.local[f"out{lane}.{k}"] = effect
    return None


def call_effect(work: Work, lane: int, k: int, call: Data, settings: Data) -> Effect | Data:
    """One call as an effect, or its outcome when it cannot be made."""
    leaf_id = work.local["run"][lane]
    node = work.path(leaf_id)[-1].node
    label = work.binding.charter.label_of(node)
    if call.get("invalid_arguments") is not None:
        return refusal("invalid_tool_input", NOT_JSON.format(call["invalid_arguments"]))
    tree = lane_tree(work, lane)
    effect_id = work.effect_id(work.suffix(lane, k))
    if machine := settings.get("machine"):
        given = work.binding.machine_input(tree, leaf_id, call)
        if "outcome" in given:
            outcome_: Data = given["outcome"]
            return outcome_
        return StartChild(effect_id, label, machine, given["input"], patient=False)
    own = (call["name"] == UPDATE_STATE and node.externalize is None) or is_transition(call["name"])
    return RunTool(
        effect_id,
        label,
        call["name"],
        call.get("arguments") or {},
        call["id"],
        {"tree": tree, "leaf": leaf_id, "at": work.local["at"], "step": work.turn["step"]},
        timeout=settings.get("timeout"),
        in_doubt=settings.get("in_doubt") or ("retry" if own else "fail"),
    )


def lane_tree(work: Work, lane: int) -> Data:
    """The tree as the next call of a lane sees it: with what its earlier calls changed."""
    changes = [
        change
        for k, call in enumerate(calls_of(work, lane))
        if not is_transition(call["name"])  # it comes last, and hooks look at the tree before it
        for change in (work.local.get(f"out{lane}.{k}") or {}).get("changes", ())
    ]
    return work.binding.after(work.tree, changes)[0] if changes else work.tree


def outcome(work: Work, lane: int, call: Data, event: Done | Failed) -> Data | None:
    """What a call gave, as data: also when it failed, for the model to read. None when the provider makes it."""
    if isinstance(event, Failed):
        failure = event.failure
        if "InDoubt" in (failure.type, *failure.names):
            return refusal("outcome_unknown", UNKNOWN)
        return refusal("tool_failed", f"{call['name']} failed: {failure.message}")
    value = event.value
    if isinstance(value, Ended):
        return machine_result(work, lane_tree(work, lane), work.local["run"][lane], call, value)
    if value is None or (isinstance(value, Mapping) and "content" in value):
        return value
    if isinstance(value, Told):
        return {"content": value.content, **({"is_error": True} if value.is_error else {})}
    return {"content": value if isinstance(value, str) else str(value)}


# -- what came meanwhile ----------------------------------------------------------------


def look(work: Work) -> Answer | Phase:
    """Look, before the step is settled, for what was sent while it ran."""
    work.local["stage"] = "look"
    waits: list[tuple[str, str, str] | None] = [None, *suspensions(work)]
    channel = work.local.get("channel", 0)
    late = len(work.local.get("late", ()))
    if channel >= len(waits):
        return "settle"
    waiting = waits[channel]
    name = inbox_channel(work.here.execution_id) if waiting is None else waiting[2]
    return work.block(
        AwaitSignal(work.effect_id(work.suffix(f"look{channel}.{late}")), NODE, name, patient=False)
    )


def suspensions(work: Work) -> list[tuple[str, str, str]]:
    """The suspended instances: their ids, what they wait for, and on which channel."""
    found = []
    for instance in suspended_instances(work.root):
        info = instance.suspended
        assert info is not None
        if info.execution_id is not None:
            continue
        usual = resume_channel(work.here.execution_id, info.suspend_id)
        for channel in (usual, *([info.channel] if info.channel else [])):
            found.append((instance.id, info.suspend_id, channel))
    return found


def looked(work: Work, event: Done | Failed) -> Phase | Answer:
    """What a look found, if anything."""
    channel = work.local.get("channel", 0)
    value = event.value if isinstance(event, Done) else None
    if value is None:
        work.local["channel"] = channel + 1
        return "look"
    waits = None if channel == 0 else list(suspensions(work)[channel - 1][:2])
    work.local["late"] = [*work.local.get("late", ()), {"waits": waits, "payload": value}]
    if waits is not None:
        work.local["channel"] = channel + 1
    return "look"
