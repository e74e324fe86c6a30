"""The working copy of a tree while one event is handled: its data, what it says, and what it records of its steps.

The context of a tree execution holds

    tree      the instances, as data                 turn     {n, step, open, from, max_steps, until, again}
    wants     who runs next; absent: all who may     counts   {leaf: {steps, nudges}} of workers
    steps     what the last commit reports           problem  why an open turn stands still
    clients   results of commands by client id       ids      ids of messages that were taken
    live      what ephemeral messages show, by their place in the log, during one turn
    kept      suspensions whose time is over and that were to be kept
    launches  true once a part of the tree was started as an execution of its own
    called    calls of machines that wait, by the id of their effect (`flat.tree.run_called`)

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
from flat.tree.batch import Batch
from flat.tree.changes import change_from_data
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
        own = (
            here.own is not None and here.own is here.local
        )  # among many answers of one commit: no copy for each
        self.local: dict[str, Any] = here.local if own else dict(here.local or {})
        self.records: list[dict[str, Any]] = []
        self._said: list[Data] = []
        self.beside: list[Effect] = []
        """What is asked for with whatever is asked for next."""
        self._batch: Batch | None = None
        """The tree, once it is being changed."""

    # -- the tree -----------------------------------------------------------------

    @property
    def tree(self) -> Data:
        """The tree as data; whoever changes it gets another one."""
        if self._batch is not None:
            self.context["tree"] = self.binding.data(self._batch.root)
        tree: Data = self.context["tree"]
        return tree

    @tree.setter
    def tree(self, data: Data) -> None:
        self.context["tree"], self._batch = data, None

    @property
    def root(self) -> Instance[Any]:
        """The tree, live."""
        return self.binding.tree(self.context["tree"]) if self._batch is None else self._batch.root

    def path(self, leaf_id: str) -> tuple[Instance[Any], ...]:
        """The way to an instance, empty when it is not there; of the last one, the children are `has_children`."""
        return path_to(self.root, leaf_id) if self._batch is None else self._batch.path(leaf_id)

    @property
    def root_id(self) -> str:
        id_: str = self.context["tree"]["id"]
        return id_

    def has_children(self, leaf_id: str) -> bool:
        if self._batch is not None:
            return self._batch.has_children(leaf_id)
        return bool(self.path(leaf_id)[-1].children)

    def data_of(self, leaf_id: str) -> Data:
        """An instance of the tree, as data."""
        found = self.tree
        for instance in self.path(leaf_id)[1:]:
            found = next(child for child in found["children"] if child["id"] == instance.id)
        return found

    def change(self, *changes: Data) -> list[tuple[int, TreeError]]:
        """Apply changes; gives those that were refused, with their places."""
        if not changes:
            return []
        if self._batch is None:
            self._batch = self.binding.batch(self.tree)
        return self._batch.apply([change_from_data(change) for change in changes])

    def dated(self, change: Data) -> Data:
        """The change, with the time where a suspension begins and an id for every child that has none."""
        info = change.get("suspendInfo")
        if change.get("kind") == "suspend" and isinstance(info, Mapping) and not info.get("suspendedAt"):
            at = datetime.fromtimestamp(self.here.at, UTC).isoformat().replace("+00:00", "Z")
            return {**change, "suspendInfo": {**info, "suspendedAt": at}}
        if change.get("kind") == "spawn":
            children = [
                child if child.get("id") else {**child, "id": f"{self.log_length}.{i}"}
                for i, child in enumerate(change.get("children") or ())
            ]
            return {**change, "children": children}
        return change

    # -- machines that are waited for ---------------------------------------------

    @property
    def called(self) -> Mapping[str, Data]:
        """The calls of machines that wait, by the id of their effect."""
        found: Mapping[str, Data] = self.context.get("called", {})
        return found

    def is_called(self, effect_id: str) -> bool:
        """Whether the leaf of a call is still there, and waits for what comes of it."""
        path = self.path(self.called[effect_id]["leaf"])
        return bool(path) and path[-1].waits_for(effect_id)

    # -- the turn -----------------------------------------------------------------

    @property
    def turn(self) -> dict[str, Any]:
        turn: dict[str, Any] = self.context["turn"]
        return turn

    def set_turn(self, **changes: Any) -> None:
        self.context["turn"] = {**self.turn, **changes}

    def record(self, reason: str, done: bool, since: int, **more: Any) -> None:
        """Report a step: why it ended, whether the run did, and which part of the log is its history."""
        told = {key: value for key, value in more.items() if value not in (None, "", [], ())}
        self.records.append(
            {
                "id": f"{self.turn['n']}.{self.turn['step']}.{len(self.records)}",
                "reason": reason,
                "done": done,
                "from": since,
                "to": self.log_length,
                **told,
            }
        )

    # -- saying -------------------------------------------------------------------

    def say(self, *messages: Message | Data) -> None:
        self._said += (message_data(m) if isinstance(m, Message) else m for m in messages)

    @property
    def log_length(self) -> int:
        """How many messages the log has, with those that are said now."""
        return self.here.log_length + len(self._said)

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

    def tell(self) -> None:
        """Hand what was said to the engine, all at once."""
        self.here.say(*self._said)
        self._said.clear()

    # -- answers ------------------------------------------------------------------

    def suffix(self, *parts: Any) -> str:
        return "-".join(str(part) for part in (self.turn["n"], self.turn["step"], *parts))

    def effect_id(self, suffix: str) -> str:
        return self.here.effect_id(KEY, suffix)

    def block(self, *effects: Effect) -> Answer:
        """Wait for effects; with none, for those that are out already."""
        if self.beside:
            effects = (*effects, *self.beside)
            self.beside = []
        return Block(effects, self.local, self.kept())

    def reenter(self, **context: Any) -> Answer:
        """Begin anew with what is there: whatever is still out is called off, but for machines that are waited for."""
        self.context.update(context)
        called = {id_: entry for id_, entry in self.called.items() if self.is_called(id_)}
        if called:
            self.context["called"] = called
        else:
            self.context.pop("called", None)
        keep = tuple(id_ for id_, entry in called.items() if "came" not in entry)
        return Goto(NODE, self.kept(), keep)

    def close(self, reason: str, content: Any) -> Answer:
        """The end of the execution."""
        self.context["closing"] = {"reason": reason, "content": content}
        self.context["turn"] = {**self.turn, "open": False}
        for key in ("wants", "counts", "live", "inbox", "problem", "called"):
            self.context.pop(key, None)
        return Goto(CLOSED, self.kept())

    def stop(self, failure: Failure) -> Answer:
        """The turn cannot go on. A session keeps it open for another try; others are told of a failure."""
        if self.run.until != "session":
            return Raise(failure)
        problem = {"type": failure.type, "message": failure.message, "names": list(failure.names)}
        return self.reenter(problem=problem, inbox=None)

    def kept(self) -> Data:
        self.tree = self.tree
        if self.records:
            self.context["steps"] = self.records
        return self.context

    def forget(self, *leaf_ids: str) -> None:
        """Drop what was counted of workers that are gone."""
        counts: Data = self.context.get("counts", {})
        if not any(leaf_id in counts for leaf_id in leaf_ids):
            return
        left = {leaf_id: count for leaf_id, count in counts.items() if leaf_id not in leaf_ids}
        if left:
            self.context["counts"] = left
        else:
            del self.context["counts"]

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
