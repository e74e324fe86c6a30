"""Runs one call of a model: of a tool, of the state, or of a transition. What it gives is a record, not a change.

Whoever drives the tree makes the calls of one answer in their order, each on the tree with the records of the ones
before applied (`flat.tree.apply`), and the transition last, whatever its place: it sees the state that the other
calls made, and when it cannot be taken the model reads that as the call's result. `run_tool_pipeline` does just that.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from flat.errors import CallRefused, StateError, TreeError
from flat.tree.apply import apply_changes
from flat.tree.changes import Ceded, Change, PackPatch, Spawned, StatePatch, Suspended
from flat.tree.charter import Charter
from flat.tree.context import PackContext, ToolContext
from flat.tree.instance import Instance, active_instance, get_path, pack_owner, pack_state
from flat.tree.machines import MachineTool
from flat.tree.messages import (
    Item,
    Message,
    Source,
    assistant_message,
    instance_message,
    text_item,
    user_message,
)
from flat.tree.messages import tool_result as result_item
from flat.tree.naming import TRANSITION, TRANSITION_PREFIX, UPDATE_STATE
from flat.tree.schema import is_object_schema, json_schema_or_open
from flat.tree.state import Draft, changed
from flat.tree.taking import take_transition
from flat.tree.tools import Tool, ToolReply, output_text
from flat.tree.toolset import Offered, is_tree_tool, resolve_tool, runnable

Reason: TypeAlias = Literal["tool_use", "end_turn", "cede", "suspend"]


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that a model asks for."""

    id: str
    name: str
    input: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_transition(self) -> bool:
        return self.name == TRANSITION or self.name.startswith(TRANSITION_PREFIX)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOutcome:
    """What a call gave: the text for the model, the changes it asks for, and what the user is shown beside it."""

    content: str = ""
    is_error: bool = False
    code: str = ""
    """Why it was refused, for an error."""
    changes: tuple[Change, ...] = ()
    user_items: tuple[Item, ...] = ()
    terminal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """For whom calls are made."""

    charter: Charter
    leaf_id: str
    history: Sequence[Message] = ()
    """The history as it stood when the step began."""
    idempotency_key: str = ""
    new_id: Callable[[], str] = lambda: str(uuid4())
    """Gives the ids of new instances; derived from the effect's id where a restart must find them again."""


async def run_call(caller: Caller, root: Instance[Any], call: ToolCall) -> CallOutcome | None:
    """Make one call on a tree. Never raises for what the author or the model did wrong: that is the outcome.

    None for a tool that the model provider runs itself.
    """
    try:
        path = get_path(root, caller.leaf_id)
        if call.name == UPDATE_STATE:
            return _update_state(path, call)
        if is_tree_tool(call.name):
            return await _transition(caller, root, path, call)
        ancestors = [instance.node for instance in path[:-1]]
        offered = resolve_tool(caller.charter, path[-1].node, ancestors, call.name)
        tool = runnable(offered.entry)
        return None if tool is None else await _tool(caller, root, path, offered, tool, call)
    except StateError as error:
        return _refusal(error.code, f"state refused: {error.message}")
    except TreeError as error:
        return _refusal(error.code, error.message)
    except Exception as error:
        return _refusal("tool_failed", f"{call.name} failed: {error or type(error).__name__}")


def _refusal(code: str, text: str) -> CallOutcome:
    return CallOutcome(content=text, is_error=True, code=code)


# -- the state --------------------------------------------------------------------


def _update_state(path: tuple[Instance[Any], ...], call: ToolCall) -> CallOutcome:
    leaf = path[-1]
    patch = call.input.get("patch")
    if not is_object_schema(json_schema_or_open(leaf.node.schema)) or not isinstance(leaf.state, Mapping):
        raise CallRefused("state_patch_invalid", "this state is not an object and cannot be patched")
    if not isinstance(patch, Mapping):
        raise CallRefused(
            "state_patch_invalid", '`patch` is missing: give the keys to change as an object, {"patch": {…}}'
        )
    change = changed(leaf.node.schema, leaf.state, patch)
    record = StatePatch(instance_id=leaf.id, patch=change.patch, drop=change.drop)
    return CallOutcome(content="State updated.", changes=(record,))


# -- tools ------------------------------------------------------------------------


async def _tool(
    caller: Caller,
    root: Instance[Any],
    path: tuple[Instance[Any], ...],
    offered: Offered,
    tool: Tool[..., Any],
    call: ToolCall,
) -> CallOutcome:
    try:
        value = tool.schema.parse(dict(call.input) if isinstance(call.input, Mapping) else call.input)
    except StateError as error:
        return _refusal("invalid_tool_input", f"invalid input for {tool.name}: {error.message}")
    draft, record = draft_for(root, path, offered, tool)
    if offered.owner == "pack":
        context: Any = PackContext(draft, root_instance_id=root.id, idempotency_key=caller.idempotency_key)
    else:
        context = ToolContext(
            draft,
            instance_id=path[-1].id,
            root_instance_id=root.id,
            messages=caller.history,
            idempotency_key=caller.idempotency_key,
        )
    answer = await awaited(tool.invoke(value, context))
    changes = (record(draft),) if draft.touched else ()
    if isinstance(answer, ToolReply):
        shown = answer.user_message
        items: tuple[Item, ...] = (
            (text_item(shown),) if isinstance(shown, str) else ({"type": "output", "data": shown},)
        )
        return CallOutcome(
            content=output_text(answer.llm_message), changes=changes, user_items=items, terminal=tool.terminal
        )
    return CallOutcome(content=output_text(answer), changes=changes, terminal=tool.terminal)


def draft_for(
    root: Instance[Any], path: tuple[Instance[Any], ...], offered: Offered, tool: Tool[..., Any]
) -> tuple[Draft, Callable[[Draft], Change]]:
    """The state that a tool works on, and how what it wrote is recorded."""
    if offered.pack is not None:
        return pack_draft(path, offered.pack)
    leaf = path[-1]
    owner = path[-2 - offered.ancestor] if offered.owner == "ancestor" else leaf
    read_only = ""
    if owner is not leaf:
        read_only = _read_only(root, leaf, owner, tool)
    draft = Draft(owner.node.schema, owner.state, read_only)
    return draft, lambda d: StatePatch(instance_id=owner.id, **written(d))


def _read_only(root: Instance[Any], leaf: Instance[Any], owner: Instance[Any], tool: Tool[..., Any]) -> str:
    if tool.owner_state != "write":
        return f'the tool "{tool.name}" belongs to "{owner.node.label}", whose state it may read here and not change'
    if leaf.node.worker or active_instance(root).id != leaf.id:
        return f'only the primary may change the state of "{owner.node.label}"'
    return ""


def pack_draft(path: tuple[Instance[Any], ...], pack: Any) -> tuple[Draft, Callable[[Draft], Change]]:
    """A pack's state as the last instance of a path sees it, and how what is written is recorded."""
    owner = pack_owner(path, pack.name)
    owner_id = None if owner.id == path[0].id else owner.id
    draft = Draft(pack.schema, pack_state(path, pack))
    return draft, lambda d: PackPatch(pack_name=pack.name, owner_id=owner_id, **written(d))


def written(draft: Draft) -> dict[str, Any]:
    """What was written to a draft, as the fields of a record."""
    if draft.whole:
        return {"patch": {}, "value": draft.state}
    return {"patch": draft.patch, "drop": tuple(draft.drop)}


async def awaited(value: Any) -> Any:
    """The value of a function that may be async."""
    return await value if inspect.isawaitable(value) else value


# -- machines as tools ------------------------------------------------------------


def machine_input(caller: Caller, root: Instance[Any], call: ToolCall) -> Mapping[str, Any] | CallOutcome:
    """The input for the machine behind a call, or the outcome of a call that is wrong."""
    try:
        machine = _machine(caller, root, call)
        return machine.use.given(machine.schema.validate(dict(call.input)))
    except StateError as error:
        return _refusal("invalid_tool_input", f"invalid input for {call.name}: {error.message}")
    except TreeError as error:
        return _refusal(error.code, error.message)
    except Exception as error:
        return _refusal("tool_failed", f"{call.name} failed: {error or type(error).__name__}")


def machine_outcome(caller: Caller, root: Instance[Any], call: ToolCall, output: Any) -> CallOutcome:
    """What a call gives whose machine is done."""
    try:
        return CallOutcome(content=output_text(_machine(caller, root, call).use.result(output)))
    except TreeError as error:
        return _refusal(error.code, error.message)
    except Exception as error:
        return _refusal("tool_failed", f"{call.name} failed: {error or type(error).__name__}")


def _machine(caller: Caller, root: Instance[Any], call: ToolCall) -> MachineTool:
    path = get_path(root, caller.leaf_id)
    ancestors = [instance.node for instance in path[:-1]]
    entry = resolve_tool(caller.charter, path[-1].node, ancestors, call.name).entry
    if not isinstance(entry, MachineTool):
        raise CallRefused("unknown_tool", f'"{call.name}" is no machine')
    return entry


# -- transitions ------------------------------------------------------------------


async def _transition(
    caller: Caller, root: Instance[Any], path: tuple[Instance[Any], ...], call: ToolCall
) -> CallOutcome:
    if call.name == TRANSITION:
        name, arguments = call.input.get("to"), {}
        if not isinstance(name, str):
            raise CallRefused("unknown_transition", "`to` is missing: name the transition to take")
    else:
        name = call.name.removeprefix(TRANSITION_PREFIX)
        arguments = {key: value for key, value in call.input.items() if key != "reason"}
    change = await take_transition(
        caller.charter,
        root,
        path[-1].id,
        name,
        arguments,
        str(call.input.get("reason", "")),
        new_id=caller.new_id,
    )
    if change is None:
        return CallOutcome(content=f'"{name}" had nothing to add.')
    return CallOutcome(content=taken_text(name, change, path[-1].node.worker), changes=(change,))


def taken_text(name: str, change: Change, worker: bool) -> str:
    """What the model reads when a transition is taken."""
    if isinstance(change, Spawned):
        return f'"{name}": started {len(change.children)} below you; you go on when they are done.'
    if isinstance(change, Ceded):
        return f'"{name}": handed over.'
    if isinstance(change, Suspended):
        return f'"{name}": waiting: {change.suspend_info.reason}'
    return f'"{name}": done.' if worker else f'"{name}": done. Tell the user what happens now.'


# -- all calls of one answer ------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineResult:
    """What the calls of one answer gave: messages in the order of the history, the tree after them, and the reason."""

    messages: tuple[Message, ...]
    root: Instance[Any]
    reason: Reason
    outcomes: Mapping[str, CallOutcome]


async def run_tool_pipeline(caller: Caller, root: Instance[Any], calls: Sequence[ToolCall]) -> PipelineResult:
    """Make all calls of one answer, one after another, the transition last.

    The messages are, in this order: one change of the state, one for each pack, one user message with all results
    in the order of the calls, one assistant message of what the user is shown, and the transition.
    """
    outcomes: dict[str, CallOutcome] = {}
    patches: list[Change] = []
    first = next((call for call in calls if call.is_transition), None)
    for call in calls:
        if call.is_transition:
            if call is not first:
                outcomes[call.id] = _refusal(
                    "one_transition_per_turn", "only one transition per turn: the first one counts"
                )
            continue
        outcome = await run_call(caller, root, call)
        if outcome is not None:
            outcomes[call.id] = outcome
            patches += outcome.changes
            root = apply_changes(caller.charter, root, outcome.changes).root
    moves: tuple[Change, ...] = ()
    if first is not None:
        outcome = await run_call(caller, root, first)
        if outcome is not None:
            outcomes[first.id], moves = outcome, outcome.changes
    source = Source(instance_id=caller.leaf_id, is_primary=active_instance(root).id == caller.leaf_id)
    after = apply_changes(caller.charter, root, moves).root
    messages = step_messages(calls, outcomes, patches, moves, source)
    return PipelineResult(
        messages=tuple(messages), root=after, reason=reason_of(outcomes.values(), moves), outcomes=outcomes
    )


def step_messages(
    calls: Sequence[ToolCall],
    outcomes: Mapping[str, CallOutcome],
    patches: Sequence[Change],
    moves: Sequence[Change],
    source: Source,
) -> list[Message]:
    """The messages of one leaf's calls, in the order in which the history has them."""
    messages = [instance_message(change, source=source) for change in merged_patches(patches)]
    results = [
        result_item(call.id, outcome.content, is_error=outcome.is_error)
        for call in calls
        if (outcome := outcomes.get(call.id)) is not None
    ]
    if results:
        messages.append(user_message(results, source=source))
    shown = [item for call in calls if call.id in outcomes for item in outcomes[call.id].user_items]
    if shown:
        reply = assistant_message(shown, source=source)
        messages.append(replace(reply, metadata=replace(reply.metadata, tool_reply=True)))
    return [*messages, *(instance_message(move, source=source) for move in moves)]


def merged_patches(changes: Sequence[Change]) -> list[Change]:
    """One record for each state that was written, states of instances before those of packs."""
    states: dict[Any, Change] = {}
    packs: dict[Any, Change] = {}
    for change in changes:
        if isinstance(change, StatePatch):
            states[change.instance_id] = _merged(states.get(change.instance_id), change)
        elif isinstance(change, PackPatch):
            key = (change.owner_id, change.pack_name)
            packs[key] = _merged(packs.get(key), change)
    return [*states.values(), *packs.values()]


def _merged(old: Any, new: Any) -> Any:
    if old is None:
        return new
    kept = {key: value for key, value in old.patch.items() if key not in new.drop}
    patch = {**kept, **new.patch}
    drop = tuple(key for key in dict.fromkeys((*old.drop, *new.drop)) if key not in patch)
    return replace(new, patch=patch, drop=drop)


def reason_of(outcomes: Any, moves: Sequence[Change]) -> Reason:
    """Why a leaf stops after its calls: a cede or a suspension goes before a terminal tool."""
    for move in moves:
        if isinstance(move, Ceded):
            return "cede"
        if isinstance(move, Suspended):
            return "suspend"
    return "end_turn" if any(outcome.terminal for outcome in outcomes) else "tool_use"
