"""The working copy of a tree while one event is handled: its data, what it says, and what it records of its steps.

The context of a tree execution holds

    tree      the instances, as data                 turn     {n, step, open, from, max_steps, until, again}
    wants     who runs next; absent: all who may     counts   {leaf: {steps, nudges}} of workers
    steps     what the last commit reports           problem  why an open turn stands still
    clients   results of commands by client id       ids      ids of messages that were taken
    live      what ephemeral messages show, by their place in the log, during one turn
    kept      suspensions whose time is over and that were to be kept

and the messages are the execution's log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic_core import to_json

from flat.core.effects import Effect
from flat.core.failure import Failure
from flat.core.grown import Grown
from flat.core.op import Answer, Block, Goto, Raise, View
from flat.errors import TreeError
from flat.tree.instance import Instance, path_to
from flat.tree.lower import TreeBinding
from flat.tree.messages import Message, message_data, user_message

if TYPE_CHECKING:
    from flat.tree.run import TreeRun

NODE = "tree"
CLOSED = "closed"
KEY = "tree"
Data: TypeAlias = Mapping[str, Any]
Phase: TypeAlias = str
"""What comes next, of the phases in `flat.tree.run`."""


class Work:
    """One event's working copy."""

    def __init__(self, run: TreeRun, here: View) -> None:
        self.run, self.here = run, here
        self.binding: TreeBinding = run.bound
        self.context: dict[str, Any] = dict(here.context)
        self.local: dict[str, Any] = dict(here.local or {})
        self.records: list[dict[str, Any]] = []
        self._live: tuple[Any, Instance[Any]] | None = None

    # -- the tree -----------------------------------------------------------------

    @property
    def tree(self) -> Data:
        tree: Data = self.context["tree"]
        return tree

    @property
    def root(self) -> Instance[Any]:
        """The tree, live."""
        if self._live is None or self._live[0] is not self.tree:
            self._live = (self.tree, self.binding.tree(self.tree))
        return self._live[1]

    def path(self, leaf_id: str) -> tuple[Instance[Any], ...]:
        return path_to(self.root, leaf_id)

    def change(self, *changes: Data) -> list[tuple[int, TreeError]]:
        """Apply changes; gives those that were refused, with their places."""
        if not changes:
            return []
        self.context["tree"], refused = self.binding.after(self.tree, changes)
        return refused

    def dated(self, change: Data) -> Data:
        """The change, with the time where a suspension begins and an id for every child that has none."""
        info = change.get("suspendInfo")
        if change.get("kind") == "suspend" and isinstance(info, Mapping) and not info.get("suspendedAt"):
            at = datetime.fromtimestamp(self.here.at, UTC).isoformat().replace("+00:00", "Z")
            return {**change, "suspendInfo": {**info, "suspendedAt": at}}
        if change.get("kind") == "spawn":
            children = [
                child if child.get("id") else {**child, "id": f"{self.here.log_length}.{i}"}
                for i, child in enumerate(change.get("children") or ())
            ]
            return {**change, "children": children}
        return change

    # -- the turn -----------------------------------------------------------------

    @property
    def turn(self) -> dict[str, Any]:
        turn: dict[str, Any] = self.context["turn"]
        return turn

    def set_turn(self, **changes: Any) -> None:
        self.context["turn"] = {**self.turn, **changes}

    def record(self, reason: str, done: bool, since: int, **more: Any) -> None:
        """Report a step: why it ended, whether the run did, and which part of the log is its history."""
        told = {key: value for key, value in more.items() if value not in (None, [], ())}
        self.records.append(
            {
                "id": f"{self.turn['n']}.{self.turn['step']}.{len(self.records)}",
                "reason": reason,
                "done": done,
                "from": since,
                "to": self.here.log_length,
                **told,
            }
        )

    # -- saying -------------------------------------------------------------------

    def say(self, *messages: Message | Data) -> None:
        self.here.say(*(message_data(m) if isinstance(m, Message) else m for m in messages))

    def deliver(self, content: Any, source: str, to: str) -> bool:
        """Tell an instance what another one hands over: text, or messages as data. False when it is nothing."""
        if content is None or content in ("", [], ()):
            return False
        origin = {"source": {"instanceId": source}, "to": to}
        if isinstance(content, str):
            self.say({"role": "user", "items": content, "metadata": origin})
            return True
        for message in content:
            metadata = {**origin, **(message.get("metadata") or {})}
            self.say({**message, "metadata": metadata})
        return True

    # -- answers ------------------------------------------------------------------

    def suffix(self, *parts: Any) -> str:
        return "-".join(str(part) for part in (self.turn["n"], self.turn["step"], *parts))

    def effect_id(self, suffix: str) -> str:
        return self.here.effect_id(KEY, suffix)

    def block(self, *effects: Effect) -> Answer:
        """Wait for effects; with none, for those that are out already."""
        return Block(effects, self.local, self.kept())

    def reenter(self, **context: Any) -> Answer:
        """Begin anew with what is there: whatever is still out is called off."""
        self.context.update(context)
        return Goto(NODE, self.kept())

    def close(self, reason: str, content: Any) -> Answer:
        """The end of the execution."""
        self.context["closing"] = {"reason": reason, "content": content}
        self.context["turn"] = {**self.turn, "open": False}
        for key in ("wants", "counts", "live", "inbox", "problem"):
            self.context.pop(key, None)
        return Goto(CLOSED, self.kept())

    def stop(self, failure: Failure) -> Answer:
        """The turn cannot go on. A session keeps it open for another try; others are told of a failure."""
        if self.run.until != "session":
            return Raise(failure)
        problem = {"type": failure.type, "message": failure.message, "names": list(failure.names)}
        return self.reenter(problem=problem, inbox=None)

    def kept(self) -> Data:
        if self.records:
            self.context["steps"] = self.records
        return self.context

    def grow(self, key: str, *items: Any) -> None:
        """Append to a list of the context, which is stored as what was added."""
        old = self.context.get(key)
        self.context[key] = Grown(old if isinstance(old, list) else [], items)


def told_to(to: str, text: str, *, silent: bool = False) -> Message:
    """A user message to one instance."""
    return user_message(text, to=to, silent=silent)


def as_text(payload: Any) -> str:
    """A payload as a model reads it."""
    return payload if isinstance(payload, str) else to_json(payload).decode()


def full_data(message: Message) -> dict[str, Any]:
    """A message as data, an ephemeral one with what it shows."""
    data = message_data(message)
    if message.role == "ephemeral":
        items: Any = message.items
        data["items"] = items if isinstance(items, str) else [dict(item) for item in items]
    return data


def content_text(items: Any) -> str:
    """The text in the items of a message as data."""
    if isinstance(items, str):
        return items
    parts: Sequence[Any] = items if isinstance(items, list | tuple) else ()
    return "".join(part.get("text", "") for part in parts if part.get("type") == "text")
