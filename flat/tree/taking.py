"""Takes a transition: runs its code, checks what it decides, and gives the record of the change.

Everything is checked here, before anything is recorded: the name, the arguments, the kind of the result, the target
and its state, that what is not in the charter can be stored, and that the tree stays one. A refusal is a `TreeError`;
whoever made the call turns it into an error result, and the tree is unchanged.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

from flat.errors import CallRefused, StateError, did_you_mean
from flat.tree.apply import applied, target_state
from flat.tree.changes import Ceded, Change, NewChild, Spawned, Suspended, SuspendInfo, Transitioned
from flat.tree.charter import Charter
from flat.tree.instance import Instance, get_path
from flat.tree.messages import Message, message_data
from flat.tree.naming import Ref
from flat.tree.node import Node
from flat.tree.refs import serialize_node
from flat.tree.restore import deserialize_node
from flat.tree.results import Cede, Spawn, SpawnTarget, Suspend, TransitionTo
from flat.tree.schema import as_plain
from flat.tree.transitions import CodeTransition, SerialTransition, parsed_arguments

NewId = Callable[[], str]


async def take_transition(
    charter: Charter,
    root: Instance[Any],
    instance_id: str,
    name: str,
    arguments: Mapping[str, Any],
    reason: str = "",
    *,
    new_id: NewId = lambda: str(uuid4()),
) -> Change | None:
    """The change that a transition of an instance makes; None for a spawn of nobody. Raises `TreeError`."""
    instance = get_path(root, instance_id)[-1]
    entries = instance.node.transitions
    if name not in entries:
        hint = did_you_mean(name, entries) or "this node has none"
        raise CallRefused("unknown_transition", f'unknown transition "{name}"; {hint}')
    entry = charter.resolved_transition(entries[name])
    if isinstance(entry, CodeTransition):
        result = await _run(entry, instance, name, arguments, reason)
    elif isinstance(entry, SerialTransition):
        result = TransitionTo(entry.node)
    else:
        result = TransitionTo(_defined(charter, arguments))
    return change_of(charter, root, instance_id, result, new_id=new_id)


async def _run(
    entry: CodeTransition[..., Any],
    instance: Instance[Any],
    name: str,
    arguments: Mapping[str, Any],
    reason: str,
) -> Any:
    try:
        parsed = parsed_arguments(entry, arguments)
    except StateError as error:
        raise CallRefused("invalid_tool_input", f'invalid arguments for "{name}": {error.message}') from None
    result = entry.invoke(as_plain(instance.state), parsed, reason)
    return await result if inspect.isawaitable(result) else result


def _defined(charter: Charter, arguments: Mapping[str, Any]) -> Node[Any]:
    """The node that a model defined itself."""
    data = arguments.get("node")
    if not isinstance(data, Mapping):
        raise CallRefused("missing_inline_node", "`node` is missing: define the node to become")
    return deserialize_node(charter, data)


def change_of(
    charter: Charter, root: Instance[Any], instance_id: str, result: Any, *, new_id: NewId
) -> Change | None:
    """The change that a result means for an instance, checked against the tree. Raises `TreeError`."""
    change: Change
    if isinstance(result, TransitionTo):
        node, data = _target(charter, result.node)
        state = target_state(node, as_plain(result.state))
        change = Transitioned(instance_id=instance_id, node=data, state=state)
    elif isinstance(result, Spawn):
        if not result.children:
            return None
        children = tuple(_child(charter, child, new_id) for child in result.children)
        change = Spawned(parent_instance_id=instance_id, children=children)
    elif isinstance(result, Cede):
        change = Ceded(instance_id=instance_id, content=cede_content(result.content))
        if instance_id == root.id:
            return change  # the end of the machine; the tree stays as it is
    elif isinstance(result, Suspend):
        change = Suspended(instance_id=instance_id, suspend_info=_info(result))
    else:
        raise CallRefused(
            "bad_transition_result",
            f"a transition returns transition_to(…), spawn(…), cede(…) or suspend(…), got {type(result).__name__}",
        )
    if isinstance(change, Ceded | Suspended):
        get_path(root, instance_id)  # nothing else can be wrong with these
    else:
        applied(charter, root, change)
    return change


def _target(charter: Charter, node: Node[Any] | Ref) -> tuple[Node[Any], Mapping[str, Any]]:
    """The node, and how records refer to it. Refused when it holds code that no record could name."""
    if not isinstance(node, Node | Ref):
        raise CallRefused("bad_transition_result", f"the target is a node, got {type(node).__name__}")
    return charter.resolved_node(node), serialize_node(node, charter) if isinstance(node, Node) else {
        "ref": node.ref
    }


def _child(charter: Charter, target: SpawnTarget, new_id: NewId) -> NewChild:
    node, data = _target(charter, target.node)
    if target.background and not node.worker:
        raise CallRefused("two_primaries", f'"{node.label}" is no worker and cannot run in the background')
    if target.launch and not node.worker:
        raise CallRefused("launched", f'"{node.label}" is no worker and cannot be an execution of its own')
    return NewChild(
        node=data,
        state=target_state(node, as_plain(target.state)),
        id=new_id(),
        brief=target.brief,
        background=target.background,
        launch=target.launch,
    )


def cede_content(content: Any) -> Any:
    """The content as a record has it: nothing, text, or messages as wire data."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, Sequence) and all(isinstance(part, Message) for part in content):
        return [message_data(part) for part in content]
    raise CallRefused(
        "bad_transition_result", f"what is ceded is text or a list of messages, got {type(content).__name__}"
    )


def _info(result: Suspend) -> SuspendInfo:
    return SuspendInfo(
        suspend_id=result.suspend_id,
        reason=result.reason,
        metadata=as_plain(result.metadata),
        channel=result.channel,
        timeout=result.timeout,
        on_timeout=result.on_timeout,
    )


def create_suspend_info(result: Suspend, at: str) -> SuspendInfo:
    """What an instance keeps of a suspension that begins at this time (ISO 8601, UTC)."""
    return replace(_info(result), suspended_at=at)
