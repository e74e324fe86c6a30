"""From history to request: which messages an instance sees, and how they look to a model.

Requests are chat messages in OpenAI form, the form that agents take. The normaliser puts every tool result right
after its call, joins runs of one role, and never ends with an assistant message, because providers refuse what is
out of place or read a trailing answer as one to be continued.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flat.tree.changes import Spawned
from flat.tree.instance import Instance
from flat.tree.messages import Message, assistant_message, items_of, text_item, user_message
from flat.tree.node import Node
from flat.tree.prompt import BEGIN_NOTE
from flat.tree.view import Chat, ChatLog

MANY = 4096
"""Views that are kept in any case."""


# -- what an instance sees --------------------------------------------------------


def visible_messages(
    history: Sequence[Message], leaf: Instance[Any], *, ephemeral_from: int = 0
) -> list[Message]:
    """The part of the history that a leaf's model reads, by the policy of its node.

    `ephemeral_from` is where the current run begins in the history: older ephemeral messages are not seen again.
    """
    policy = leaf.node.sees
    alive = [m for i, m in enumerate(history) if m.role != "ephemeral" or i >= ephemeral_from]
    if callable(policy):
        alive = list(policy(alive, leaf))
    elif policy == "own":
        alive = [user_message(leaf.brief or BEGIN_NOTE), *(m for m in alive if _own(m, leaf.id))]
    elif policy == "since_spawn":
        alive = _since_spawn(alive, leaf.id)
    return [seen for message in alive for seen in _for_model(message)]


def _own(message: Message, id: str) -> bool:
    source = message.metadata.source
    return message.metadata.to == id or (source is not None and source.instance_id == id)


def _since_spawn(history: Sequence[Message], id: str) -> list[Message]:
    for index, message in enumerate(history):
        spawned = message.items
        if isinstance(spawned, Spawned) and any(child.id == id for child in spawned.children):
            return list(history[index + 1 :])
    return list(history)


def _for_model(message: Message) -> Iterable[Message]:
    if message.role in ("user", "assistant"):
        return (message,)
    if message.role != "ephemeral":
        return ()
    items = items_of(message)
    images = [item for item in items if item["type"] == "image"]
    if not images:
        return (user_message(items),) if items else ()
    count = message.metadata.singleton_frame_count
    note = f"Camera frame, the latest of {count}:" if count else "Camera frame:"
    return [user_message([text_item(note), image]) for image in images]


# -- how it looks to a model ------------------------------------------------------


def chat_messages(messages: Iterable[Message]) -> list[Chat]:
    """The request's messages, without the system prompt. Raises `CallRefused` when there is nothing to send."""
    log = ChatLog()
    for message in messages:
        log.add(message)
    return log.chat()


@dataclass(slots=True)
class _View:
    """What one leaf's model has seen."""

    key: tuple[Any, ...]
    log: ChatLog = field(default_factory=ChatLog)
    until: int = 0
    """How much of the history is in it."""
    ephemeral: int = -1
    """Where the last ephemeral message is."""


class Views:
    """The requests of one tree's leaves, kept up as its history grows."""

    def __init__(self) -> None:
        self._known: dict[str, _View] = {}
        self._most = MANY

    def chat(self, history: Sequence[Message], leaf: Instance[Any], *, ephemeral_from: int = 0) -> list[Chat]:
        """What `chat_messages` makes of what the leaf sees, at the cost of what is new."""
        policy = leaf.node.sees
        if not callable(policy):
            view = self._view(history, leaf, policy)
            if view.ephemeral < ephemeral_from:  # those are seen in one turn only
                return view.log.chat()
        return chat_messages(visible_messages(history, leaf, ephemeral_from=ephemeral_from))

    def _view(self, history: Sequence[Message], leaf: Instance[Any], policy: str) -> _View:
        key = (policy, leaf.brief)
        view = self._known.get(leaf.id)
        if view is None or view.key != key or view.until > len(history):
            self._forget(len(history))
            view = self._known[leaf.id] = _View(key)
            if policy == "own":
                view.log.add(user_message(leaf.brief or BEGIN_NOTE))
            elif policy == "since_spawn":
                view.until = len(history) - len(_since_spawn(history, leaf.id))
        for index in range(view.until, len(history)):
            message = history[index]
            if message.role == "ephemeral":
                view.ephemeral = index
            elif message.role in ("user", "assistant") and (policy != "own" or _own(message, leaf.id)):
                view.log.add(message)
        view.until = len(history)
        return view

    def _forget(self, until: int) -> None:
        """Drop the views of leaves that have not asked for long, when there are many."""
        if len(self._known) >= self._most:
            self._known = {id_: view for id_, view in self._known.items() if view.until * 2 >= until}
            self._most = max(MANY, 2 * len(self._known))


# -- the answer -------------------------------------------------------------------


def answer_message(
    node: Node[Any],
    content: str | None,
    tool_calls: Sequence[Mapping[str, Any]] = (),
    *,
    thinking: Sequence[Mapping[str, Any]] = (),
    provider_items: Sequence[Any] = (),
    source: Any = None,
) -> Message:
    """A model's answer as a message. Text becomes the application's value where the node has structured output.

    Raises what the node's mapper raises. `tool_calls` are `{id, name, arguments}`.
    """
    items: list[Any] = [
        {key: block[key] for key in ("type", "thinking", "signature") if key in block} for block in thinking
    ]
    if content and node.output is not None:
        items.append({"type": "output", "data": node.output.map(content)})
    elif content:
        items.append(text_item(content))
    items += [
        {"type": "tool_use", "id": call["id"], "name": call["name"], "input": call["arguments"]}
        for call in tool_calls
    ]
    items += [{"type": "provider", "data": data} for data in provider_items]
    return assistant_message(items, source=source)
