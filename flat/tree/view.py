"""What each leaf's model is sent of the history, kept up as the history grows.

A session of a thousand turns asks its model a thousand times, each time with one more turn. What was made of the
earlier ones is kept here, so that a request costs what is new. A `ChatLog` takes messages one by one; `Views` has one
for each leaf. It is the same whatever it was made in: `flat.tree.request.chat_messages` is all at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, overload

from pydantic_core import to_json

from flat.errors import CallRefused
from flat.tree.messages import Message, items_of, message_from_data
from flat.tree.prompt import CONTINUE_NOTE, indented

_log = logging.getLogger("flat.tree")

Chat: TypeAlias = dict[str, Any]


@dataclass(slots=True)
class _Block:
    """What one message comes to. An answer with calls is open until it has all results."""

    chat: Chat
    calls: Sequence[Any] = ()
    results: list[str | None] = field(default_factory=list)
    source: str | None = None
    open: bool = False
    told: bool = False
    """That calls without a result are left out."""

    def slot(self, call_id: str) -> int | None:
        """The first call of this id that has no result yet."""
        for index, call in enumerate(self.calls):
            if call["id"] == call_id and self.results[index] is None:
                return index
        return None

    def chats(self) -> list[Chat]:
        """The messages of the request. A call without a result is left out: providers refuse it."""
        if not self.calls:
            return [self.chat]
        done = [(c, r) for c, r in zip(self.calls, self.results, strict=True) if r is not None]
        if len(done) < len(self.calls) and not self.told:
            self.told = True
            name = next(c["name"] for c, r in zip(self.calls, self.results, strict=True) if r is None)
            _log.warning('a call of "%s" has no result and is left out of the request', name)
        if not done and self.chat.keys() == {"role", "content"} and self.chat["content"] is None:
            return []
        answers = [{"role": "tool", "tool_call_id": c["id"], "content": result} for c, result in done]
        return [{**self.chat, "tool_calls": [_call(c) for c, _ in done]} if done else self.chat, *answers]


class ChatLog:
    """A request's messages, as far as they came."""

    def __init__(self) -> None:
        self._done: list[Chat] = []
        self._blocks: list[_Block] = []
        """From the first one that is open."""
        self._last: tuple[_Block, int] | None = None
        """The last result: whatever the user was shown with it is noted there."""

    def add(self, message: Message) -> None:
        """Take one more message."""
        if message.metadata.tool_reply:
            self._shown(message)
            return
        self._settle()
        source = message.metadata.source
        speaker = source.instance_id if source is not None else None
        if message.role == "assistant":
            self._answer(message, speaker)
        else:
            self._user(message, speaker)

    def chat(self) -> list[Chat]:
        """The messages as they are sent. Raises `CallRefused` when there is nothing to send."""
        chat = list(self._done)
        for block in self._blocks:
            _join(chat, block.chats())
        if not chat:
            raise CallRefused(
                "empty_request", "there is nothing to send to the model: no message has any content"
            )
        if chat[-1]["role"] == "assistant":
            chat.append({"role": "user", "content": CONTINUE_NOTE})
        return chat

    # -- one message --------------------------------------------------------------

    def _shown(self, message: Message) -> None:
        """Requests never end with an answer, so what a tool showed the user is a note in its result."""
        if self._last is not None:
            block, index = self._last
            text = "\n".join(filter(None, (text_of(item) for item in items_of(message))))
            block.results[index] = f"{block.results[index]}\n\n(The user was shown: {text})"

    def _settle(self) -> None:
        """Move what can no longer change out of the way."""
        ready = 0
        for block in self._blocks:
            if block.open:
                break
            _join(self._done, block.chats())
            ready += 1
        if ready:
            del self._blocks[:ready]
            self._last = None

    def _answer(self, message: Message, speaker: str | None) -> None:
        for block in self._blocks:
            if block.open and block.source == speaker:  # it speaks again: its calls get no result any more
                block.open = False
        chat, calls = answer_chat(message)
        if chat is None:
            return
        block = _Block(chat, calls, [None] * len(calls), speaker, open=bool(calls))
        self._blocks.append(block)

    def _user(self, message: Message, speaker: str | None) -> None:
        parts: list[Chat] = []
        items: Sequence[Any] = items_of(message)
        for item in items:
            if item["type"] != "tool_result":
                parts += user_parts(item)
            elif not self._result(item, speaker):
                parts.append(text_part(f"Result of an earlier call: {item.get('content') or ''}"))
        if parts:
            self._blocks.append(_Block({"role": "user", "content": _flat(parts)}))

    def _result(self, item: Any, speaker: str | None) -> bool:
        """Put a result to its call; False when nobody waits for it."""
        waiting = [block for block in self._blocks if block.open]
        for block in sorted(waiting, key=lambda one: one.source != speaker):
            index = block.slot(item["tool_use_id"])
            if index is not None:
                text = item.get("content") or ""
                block.results[index] = f"Error: {text}" if item.get("is_error") else text
                block.open = None in block.results
                self._last = (block, index)
                return True
        return False


# -- pieces ---------------------------------------------------------------------------------------


def answer_chat(message: Message) -> tuple[Chat | None, list[Any]]:
    """A model's answer without its calls, and those."""
    texts: list[str] = []
    calls: list[Any] = []
    thinking: list[Any] = []
    provider: list[Any] = []
    items: Sequence[Any] = items_of(message)
    for item in items:
        if item["type"] == "tool_use":
            calls.append(item)
        elif item["type"] == "thinking":
            if item.get("signature"):
                thinking.append(dict(item))
        elif item["type"] == "provider":
            provider.append(item["data"])
        elif text := text_of(item):
            texts.append(text)
    if not (texts or calls or provider):
        return None, []
    chat: Chat = {"role": "assistant", "content": "\n\n".join(texts) or None}
    if thinking:
        chat["thinking_blocks"] = thinking
    if provider:
        chat["provider_items"] = provider
    return chat, calls


def _call(item: Any) -> Chat:
    function = {"name": item["name"], "arguments": to_json(item["input"]).decode()}
    return {"id": item["id"], "type": "function", "function": function}


def user_parts(item: Any) -> list[Chat]:
    if item["type"] == "image":
        image = {"url": f"data:{item['mimeType']};base64,{item['data']}"}
        if detail := item.get("detail"):
            image["detail"] = detail
        return [{"type": "image_url", "image_url": image}]
    text = text_of(item)
    return [text_part(text)] if text else []


def text_part(text: str) -> Chat:
    return {"type": "text", "text": text}


def text_of(item: Any) -> str:
    """An item as text; nothing for what has no words."""
    if item["type"] == "text":
        text: str = item["text"]
        return text
    if item["type"] == "output":
        return indented(item["data"])
    if item["type"] == "file":
        return f"File {item.get('filename') or item['mediaType']}: {item['url']}"
    return ""


def _flat(parts: list[Chat]) -> Any:
    return parts[0]["text"] if len(parts) == 1 and parts[0]["type"] == "text" else parts


def _join(done: list[Chat], more: Iterable[Chat]) -> None:
    """Append messages. A run of user messages, and of assistant messages without calls, becomes one."""
    for message in more:
        last = done[-1] if done else None
        if last is None or last["role"] != message["role"] or message["role"] == "tool":
            done.append(message)
        elif message["role"] == "user":
            parts = [*_parts(last["content"]), *_parts(message["content"])]
            done[-1] = {**last, "content": _flat_text(parts)}
        elif last.keys() == message.keys() == {"role", "content"}:
            done[-1] = {**last, "content": f"{last['content']}\n\n{message['content']}"}
        else:
            done.append(message)


def _parts(content: Any) -> list[Chat]:
    return [text_part(content)] if isinstance(content, str) else list(content)


def _flat_text(parts: list[Chat]) -> Any:
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


# -- the log as it stood --------------------------------------------------------------------------


class LogView(Sequence[Message]):
    """The first messages of a log that may have grown since, without a copy of them."""

    def __init__(self, log: Sequence[Message], until: int) -> None:
        self._log, self._until = log, until

    def __len__(self) -> int:
        return self._until

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self._log[i] for i in range(*index.indices(self._until))]
        place = index + self._until if index < 0 else index
        if not 0 <= place < self._until:
            raise IndexError(index)
        return self._log[place]


def live_messages(history: Sequence[Mapping[str, Any] | Message]) -> Sequence[Message]:
    """The history as messages."""
    if isinstance(history, LogView):
        return history
    return [m if isinstance(m, Message) else message_from_data(m) for m in history]
