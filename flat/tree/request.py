"""From history to request: which messages an instance sees, and how they look to a model.

Requests are chat messages in OpenAI form, the form that agents take. The normaliser puts every tool result right
after its call, joins runs of one role, and never ends with an assistant message, because providers refuse what is
out of place or read a trailing answer as one to be continued.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import to_json

from flat.errors import CallRefused
from flat.tree.changes import Spawned
from flat.tree.instance import Instance
from flat.tree.messages import Item, Message, assistant_message, items_of, text_item, user_message
from flat.tree.node import Node
from flat.tree.prompt import BEGIN_NOTE, CONTINUE_NOTE, indented

_log = logging.getLogger("flat.tree")

Chat = dict[str, Any]


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


def chat_messages(messages: Sequence[Message]) -> list[Chat]:
    """The request's messages, without the system prompt. Raises `CallRefused` when there is nothing to send."""
    results = _results(messages)
    calls = {
        item["id"]
        for message in messages
        if message.role == "assistant"
        for item in items_of(message)
        if item["type"] == "tool_use"
    }
    chat: list[Chat] = []
    for message in messages:
        if message.role == "assistant":
            if not message.metadata.tool_reply:
                chat += _assistant(message, results)
        else:
            chat += _user(message, calls)
    chat = _joined(chat)
    if not chat:
        raise CallRefused(
            "empty_request", "there is nothing to send to the model: no message has any content"
        )
    if chat[-1]["role"] == "assistant":
        chat.append({"role": "user", "content": CONTINUE_NOTE})
    return chat


def _results(messages: Sequence[Message]) -> dict[str, str]:
    """What each call gave, by its id, with a note of what the user was shown beside it."""
    found: dict[str, str] = {}
    last: str | None = None
    for message in messages:
        if message.role == "assistant" and message.metadata.tool_reply and last is not None:
            found[last] += f"\n\n(The user was shown: {_plain_text(message)})"
        for item in items_of(message):
            if item["type"] == "tool_result":
                last = item["tool_use_id"]
                text = item.get("content") or ""
                found[last] = f"Error: {text}" if item.get("is_error") else text
    return found


def _plain_text(message: Message) -> str:
    return "\n".join(filter(None, (_text_of(item) for item in items_of(message))))


def _assistant(message: Message, results: Mapping[str, str]) -> Iterable[Chat]:
    texts, calls, thinking, provider = [], [], [], []
    for item in items_of(message):
        if item["type"] == "tool_use":
            if item["id"] in results:
                calls.append(item)
            else:
                _log.warning('a call of "%s" has no result and is left out of the request', item["name"])
        elif item["type"] == "thinking":
            if item.get("signature"):
                thinking.append(dict(item))
        elif item["type"] == "provider":
            provider.append(item["data"])
        elif text := _text_of(item):
            texts.append(text)
    if not (texts or calls or provider):
        return []
    chat: Chat = {"role": "assistant", "content": "\n\n".join(texts) or None}
    if calls:
        chat["tool_calls"] = [_call(item) for item in calls]
    if thinking:
        chat["thinking_blocks"] = thinking
    if provider:
        chat["provider_items"] = provider
    answers = [{"role": "tool", "tool_call_id": item["id"], "content": results[item["id"]]} for item in calls]
    return [chat, *answers]


def _call(item: Any) -> Chat:
    function = {"name": item["name"], "arguments": to_json(item["input"]).decode()}
    return {"id": item["id"], "type": "function", "function": function}


def _user(message: Message, calls: set[str]) -> Iterable[Chat]:
    parts: list[Chat] = []
    for item in items_of(message):
        if item["type"] == "tool_result":
            if item["tool_use_id"] not in calls:
                parts.append(
                    {"type": "text", "text": f"Result of an earlier call: {item.get('content') or ''}"}
                )
        elif item["type"] == "image":
            image = {"url": f"data:{item['mimeType']};base64,{item['data']}"}
            if detail := item.get("detail"):
                image["detail"] = detail
            parts.append({"type": "image_url", "image_url": image})
        elif text := _text_of(item):
            parts.append({"type": "text", "text": text})
    if not parts:
        return []
    return [{"role": "user", "content": _flat(parts)}]


def _text_of(item: Item) -> str:
    """An item as text; nothing for what has no words."""
    if item["type"] == "text":
        return item["text"]
    if item["type"] == "output":
        return indented(item["data"])
    if item["type"] == "file":
        return f"File {item.get('filename') or item['mediaType']}: {item['url']}"
    return ""


def _flat(parts: list[Chat]) -> Any:
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _joined(chat: Sequence[Chat]) -> list[Chat]:
    """Runs of user messages, and of assistant messages without calls, made one."""
    done: list[Chat] = []
    for message in chat:
        last = done[-1] if done else None
        if last is None or last["role"] != message["role"] or message["role"] == "tool":
            done.append(message)
        elif message["role"] == "user":
            last["content"] = _flat_text([*_parts(last["content"]), *_parts(message["content"])])
        elif last.keys() == message.keys() == {"role", "content"}:
            last["content"] = f"{last['content']}\n\n{message['content']}"
        else:
            done.append(message)
    return done


def _parts(content: Any) -> list[Chat]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _flat_text(parts: list[Chat]) -> Any:
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


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
