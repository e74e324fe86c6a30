"""What the instances of a tree say and hear: messages, their items, and how both look on the wire.

One history is shared by the whole tree. The role decides what a message does: `user` and `assistant` go to the
model, `instance` carries a change of the tree, `system` and `command` are for the machine alone, and `ephemeral`
messages reach the model during one run only.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NotRequired, TypeAlias, TypedDict, get_args

from flat.errors import TreeError, did_you_mean
from flat.tree.changes import Change, change_data, change_from_data

Role: TypeAlias = Literal["user", "assistant", "system", "command", "instance", "ephemeral"]
ROLES: tuple[str, ...] = get_args(Role)


class TextItem(TypedDict):
    type: Literal["text"]
    text: str


class ImageItem(TypedDict):
    type: Literal["image"]
    mimeType: str
    data: str
    detail: NotRequired[Literal["auto", "low", "high"]]


class FileItem(TypedDict):
    type: Literal["file"]
    url: str
    mediaType: str
    filename: NotRequired[str]
    byteSize: NotRequired[int]
    storageId: NotRequired[str]


class ToolUseItem(TypedDict):
    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]


class ToolResultItem(TypedDict):
    type: Literal["tool_result"]
    tool_use_id: str
    content: str
    is_error: NotRequired[bool]


class ThinkingItem(TypedDict):
    type: Literal["thinking"]
    thinking: str
    signature: NotRequired[str]


class OutputItem(TypedDict):
    type: Literal["output"]
    data: Any


class ProviderItem(TypedDict):
    """Something of the model provider's own, kept as it came and sent back unchanged."""

    type: Literal["provider"]
    data: Any


class CommandItem(TypedDict):
    type: Literal["command"]
    name: str
    input: Any
    instanceId: NotRequired[str]
    clientId: NotRequired[str]


class ResumeItem(TypedDict):
    type: Literal["resume"]
    instanceId: str
    suspendId: str
    payload: NotRequired[Any]


Item: TypeAlias = (
    TextItem | ImageItem | FileItem | ToolUseItem | ToolResultItem | ThinkingItem | OutputItem | ProviderItem
    | CommandItem | ResumeItem
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Who produced a message: an instance of the tree, or someone outside."""

    instance_id: str | None = None
    is_primary: bool | None = None
    external: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is known about a message besides what it says."""

    source: Source | None = None
    silent: bool = False
    """Keep it in the history, and start no inference."""
    to: str | None = None
    """The instance it is addressed to; None for the primary."""
    message_id: str | None = None
    """A queued message with the same id is replaced."""
    stream: Mapping[str, Any] | None = None
    singleton: str | None = None
    """Of ephemeral messages with the same key only the last is kept."""
    singleton_frame_count: int | None = None
    tool_reply: bool = False
    """True for what tools showed to the user beside their results."""


@dataclass(frozen=True, slots=True)
class Message:
    """One entry of the queue or the history. `items` is text, a list of items, or a change for role `instance`."""

    role: Role
    items: str | Sequence[Item] | Change
    metadata: Metadata = field(default_factory=Metadata)

    @property
    def text(self) -> str:
        """What it says: its text items, joined without a separator."""
        return get_message_text(self)


_NONE = Metadata()
_META = {
    "message_id": "messageId",
    "singleton_frame_count": "singletonFrameCount",
    "tool_reply": "toolReply",
    "instance_id": "instanceId",
    "is_primary": "isPrimary",
}


def _metadata(metadata: Metadata | Mapping[str, Any] | None, source: Source | None, **more: Any) -> Metadata:
    known = metadata_from_data(metadata) if isinstance(metadata, Mapping) else metadata or _NONE
    given = {key: value for key, value in {"source": source, **more}.items() if value not in (None, False)}
    return replace(known, **given) if given else known


def user_message(
    items: str | Sequence[Item],
    *,
    source: Source | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
    silent: bool = False,
    to: str | None = None,
) -> Message:
    """Something the user says; `to` addresses another instance than the primary."""
    return Message("user", items, _metadata(metadata, source, silent=silent, to=to))


def assistant_message(
    items: str | Sequence[Item],
    *,
    source: Source | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
) -> Message:
    """Something the model says."""
    return Message("assistant", items, _metadata(metadata, source))


def system_message(
    items: str | Sequence[Item],
    *,
    source: Source | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
) -> Message:
    """Something for the machine alone; a resume travels in one."""
    return Message("system", items, _metadata(metadata, source))


def command_message(
    items: str | Sequence[Item],
    *,
    source: Source | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
) -> Message:
    """The invocation of a command."""
    return Message("command", items, _metadata(metadata, source))


def instance_message(
    payload: Change,
    *,
    source: Source | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
) -> Message:
    """A change of the tree."""
    return Message("instance", payload, _metadata(metadata, source))


def ephemeral_message(
    items: str | Sequence[Item],
    *,
    source: Source | None = None,
    metadata: Metadata | Mapping[str, Any] | None = None,
    singleton: str | None = None,
) -> Message:
    """Something that the model sees during one run only, such as a camera frame."""
    return Message("ephemeral", items, _metadata(metadata, source, singleton=singleton))


def tool_result(tool_use_id: str, content: str, *, is_error: bool = False) -> ToolResultItem:
    """The answer to a tool call."""
    item: ToolResultItem = {"type": "tool_result", "tool_use_id": tool_use_id, "content": content}
    if is_error:
        item["is_error"] = True
    return item


def text_item(text: str) -> TextItem:
    return {"type": "text", "text": text}


def resume_item(instance_id: str, suspend_id: str, *payload: Any) -> ResumeItem:
    """A resume of a suspended instance; what follows the ids, if anything, is told to the instance."""
    item: ResumeItem = {"type": "resume", "instanceId": instance_id, "suspendId": suspend_id}
    if payload:
        item["payload"] = payload[0]
    return item


def command_item(
    name: str, input: Any = None, *, instance_id: str | None = None, client_id: str | None = None
) -> CommandItem:
    """The invocation of a command, as data."""
    item: CommandItem = {"type": "command", "name": name, "input": {} if input is None else input}
    if instance_id is not None:
        item["instanceId"] = instance_id
    if client_id is not None:
        item["clientId"] = client_id
    return item


# -- questions --------------------------------------------------------------------


def get_message_text(message: Message) -> str:
    """The text of a message; empty for a change of the tree."""
    if isinstance(message.items, str):
        return message.items
    return "".join(item["text"] for item in items_of(message) if item["type"] == "text")


def items_of(message: Message) -> Sequence[Item]:
    """The items; plain text counts as one text item, and a change has none."""
    items = message.items
    if isinstance(items, str):
        return (text_item(items),)
    return items if isinstance(items, list | tuple) else ()


def is_conversation_message(message: Message) -> bool:
    """Whether it is said by somebody, to the model or to the machine; a change of the tree is not."""
    return message.role in ("user", "assistant", "system", "command")


def is_instance_message(message: Message) -> bool:
    """Whether it carries a change of the tree."""
    return message.role == "instance"


def is_model_message(message: Message) -> bool:
    """Whether it is one that goes to the model."""
    return message.role in ("user", "assistant")


def is_ephemeral_message(message: Message) -> bool:
    """Whether it is seen during one run only."""
    return message.role == "ephemeral"


def is_command(data: Any) -> bool:
    """Whether plain data is the invocation of a command."""
    return isinstance(data, Mapping) and data.get("type") == "command" and isinstance(data.get("name"), str)


def is_resume(data: Any) -> bool:
    """Whether plain data is a resume."""
    if not isinstance(data, Mapping) or data.get("type") != "resume":
        return False
    return isinstance(data.get("instanceId"), str) and isinstance(data.get("suspendId"), str)


def is_ref(data: Any) -> bool:
    """Whether plain data points into the charter."""
    return isinstance(data, Mapping) and isinstance(data.get("ref"), str)


# -- the wire ---------------------------------------------------------------------


def message_data(message: Message) -> dict[str, Any]:
    """The message as wire data. An ephemeral message is kept without what it says."""
    items: Any = message.items
    if message.role == "ephemeral":
        items = []
    elif not isinstance(items, str):
        items = [dict(i) for i in items] if isinstance(items, Sequence) else change_data(items)
    data: dict[str, Any] = {"role": message.role, "items": copy.deepcopy(items)}
    if metadata := _camel(message.metadata, _NONE):
        data["metadata"] = metadata
    return data


def message_from_data(data: Mapping[str, Any]) -> Message:
    """Undo `message_data`. Raises `TreeError` when the data is no message."""
    role, items = data.get("role"), data.get("items")
    if role not in ROLES:
        raise TreeError("bad_message", f"no message role {role!r}; {did_you_mean(str(role), ROLES)}")
    if role == "instance":
        if not isinstance(items, Mapping):
            raise TreeError("bad_message", "an instance message carries one effect")
        items = change_from_data(items)
    elif not isinstance(items, str | list | tuple):
        raise TreeError(
            "bad_message", f"the items of a message are text or a list, got {type(items).__name__}"
        )
    return Message(role, copy.deepcopy(items), metadata_from_data(data.get("metadata") or {}))


def messages_from(value: str | Message | Mapping[str, Any] | Iterable[Any]) -> list[Message]:
    """Whatever may be handed to a run, as messages: text, messages, invocations of commands, resumes."""
    if isinstance(value, Message):
        return [value]
    if isinstance(value, str):
        return [user_message(value)]
    if isinstance(value, Mapping):
        if is_command(value):
            return [command_message([dict(value)])]  # type: ignore[list-item]
        if is_resume(value):
            return [system_message([dict(value)])]  # type: ignore[list-item]
        return [message_from_data(value)]
    return [message for part in value for message in messages_from(part)]


def metadata_from_data(data: Mapping[str, Any]) -> Metadata:
    """Metadata from the wire. What this release does not know is left out."""
    fields = _snake(data, Metadata)
    if isinstance(fields.get("source"), Mapping):
        fields["source"] = Source(**_snake(fields["source"], Source))
    return Metadata(**fields)


def _snake(data: Mapping[str, Any], cls: type[Any]) -> dict[str, Any]:
    names = {_META.get(name, name): name for name in cls.__dataclass_fields__}
    return {names[key]: value for key, value in data.items() if key in names}


def _camel(record: Any, default: Any) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name in record.__dataclass_fields__:
        value = getattr(record, name)
        if value != getattr(default, name):
            data[_META.get(name, name)] = _camel(value, Source()) if isinstance(value, Source) else value
    return data
