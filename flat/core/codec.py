"""Snapshots, and changes of snapshots, to bytes and back. Versioned JSON; values are `core.storable`'s.

A *base* is a whole snapshot. A *delta* holds only what differs from the snapshot before, found by
identity: what `advance` did not touch is the same object and costs nothing. A list that only grew is stored
as what was added (`+`), so history is written once and never again.

Keys are short because a delta is written per step. `s` steps, `t` milliseconds since the start, `S` status,
`i` other instances; of an instance: `n` node, `o` op, `v` visit, `c` context entries, `-` removed keys,
`+` appended items, `r` output, `l` local (`l~`: the changes of one that is a mapping, as of a context), `p`
pending (left out for the usual single effect; `p~`: what was answered and what was asked for), `d` deadline.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import orjson

from flat.core.grown import Grown
from flat.core.snapshot import ROOT, Instance, Snapshot
from flat.core.storable import SCALARS, Blobs, ValueCodec, is_utf8, unescaped
from flat.errors import IncompatibleSnapshot, NotStorable

FORMAT = 1


class Codec(ValueCodec):
    """Writes and reads snapshots with a set of allowed types."""

    def base(self, snapshot: Snapshot) -> tuple[bytes, dict[str, bytes]]:
        """A whole snapshot, and the blobs it refers to."""
        blobs: dict[str, bytes] = {}
        return self._base(snapshot, blobs), blobs

    def first(self, snapshot: Snapshot) -> bytes:
        """A whole snapshot that refers to nothing outside: what an execution is born with."""
        return self._base(snapshot, None)

    def _base(self, snapshot: Snapshot, blobs: Blobs) -> bytes:
        data = {
            "format": FORMAT,
            "id": snapshot.execution_id,
            "status": snapshot.status,
            "steps": snapshot.steps,
            "instances": {k: self._instance(i, blobs) for k, i in snapshot.instances.items()},
            "spent": self.plain(snapshot.spent, "spent", blobs),
            "max_steps": snapshot.max_steps,
            "max_agent_calls": snapshot.max_agent_calls,
            "started_at": snapshot.started_at,
            "at": snapshot.at,
            "output": self.plain(snapshot.output, "output", blobs),
            "failure": self.plain(snapshot.failure, "failure", blobs),
            "reason": self.plain(snapshot.reason, "reason", None),
            "parent": snapshot.parent,
            "depth": snapshot.depth,
            "log_length": snapshot.log_length,
            "launched": snapshot.launched,
        }
        return orjson.dumps(data)

    def _instance(self, i: Instance, blobs: Blobs) -> dict[str, Any]:
        return {
            "node": i.node,
            "op": i.op,
            "step": i.step,
            "context": self.plain(i.context, "context", blobs),
            "output": self.plain(i.output, "output", blobs),
            "local": self.plain(i.local, "local", blobs),
            "pending": list(i.pending),
            "deadline": i.deadline,
            "parent": i.parent,
            "children": list(i.children),
            "suspended": i.suspended,
        }

    def snapshot(self, body: bytes, blobs: Mapping[str, bytes]) -> Snapshot:
        """Read a base."""
        with UNDAMAGED:
            return self._read_base(parsed(body), blobs)

    def _read_base(self, data: dict[str, Any], blobs: Mapping[str, bytes]) -> Snapshot:
        if data.get("format") != FORMAT:
            raise IncompatibleSnapshot(
                f"checkpoint format {data.get('format')!r}, this release reads {FORMAT}"
            )
        instances = {
            k: Instance(
                k,
                i["node"],
                i["op"],
                i["step"],
                self.value(i["context"], blobs),
                self.value(i["output"], blobs),
                self.value(i["local"], blobs),
                tuple(i["pending"]),
                i["deadline"],
                i["parent"],
                tuple(i["children"]),
                i["suspended"],
            )
            for k, i in data["instances"].items()
        }
        return Snapshot(
            data["id"],
            data["status"],
            data["steps"],
            instances,
            self.value(data["spent"], blobs),
            data["max_steps"],
            data["max_agent_calls"],
            data["started_at"],
            data["at"],
            self.value(data["output"], blobs),
            self.value(data["failure"], blobs),
            self.value(data["reason"], blobs),
            data["parent"],
            data["depth"],
            data["log_length"],
            data.get("launched", False),
        )

    # -- the log ------------------------------------------------------------------

    def rows(self, messages: Sequence[Any]) -> tuple[list[bytes], dict[str, bytes]]:
        """Messages as rows of a log, and the blobs they refer to."""
        blobs: dict[str, bytes] = {}
        return [orjson.dumps(self.plain(message, "message", blobs)) for message in messages], blobs

    def message(self, row: bytes, blobs: Mapping[str, bytes]) -> Any:
        """Read a row of a log."""
        with UNDAMAGED:
            return self.value(orjson.loads(row), blobs)

    # -- deltas -------------------------------------------------------------------

    def delta(self, old: Snapshot, new: Snapshot) -> tuple[bytes, dict[str, bytes]]:
        """What is different in `new`, and the blobs it refers to."""
        blobs: dict[str, bytes] = {}
        data: dict[str, Any] = {}
        if new.steps != old.steps:
            data["s"] = new.steps
        data["t"] = round((new.at - new.started_at) * 1000)
        olds, news = old.instances, new.instances
        if len(news) == 1 and len(olds) == 1 and ROOT in olds:
            self._instance_delta(olds[ROOT], news[ROOT], data, blobs)
        else:
            self._instances_delta(old, new, data, blobs)
        if new.spent is not old.spent:
            data["u"] = self.plain(new.spent, "spent", blobs)
        if new.status != old.status or new.status != "running":
            data["S"] = [new.status, self.plain(new.reason, "reason", None)]
            data["r!"] = self.plain(new.output, "output", blobs)
            data["f"] = self.plain(new.failure, "failure", blobs)
        if new.max_steps != old.max_steps or new.max_agent_calls != old.max_agent_calls:
            data["m"] = [new.max_steps, new.max_agent_calls]
        if new.log_length != old.log_length:
            data["L"] = new.log_length
        return orjson.dumps(data), blobs

    def _instances_delta(
        self, old: Snapshot, new: Snapshot, data: dict[str, Any], blobs: dict[str, bytes]
    ) -> None:
        changes: dict[str, Any] = {}
        for key, instance in new.instances.items():
            before = old.instances.get(key)
            if before is None:
                changes[key] = {"=": self._instance(instance, blobs)}
            elif before is not instance:
                self._instance_delta(before, instance, changes.setdefault(key, {}), blobs)
        changes.update((key, None) for key in old.instances.keys() - new.instances.keys())
        if changes:
            data["i"] = changes

    def _instance_delta(
        self, old: Instance, new: Instance, data: dict[str, Any], blobs: dict[str, bytes]
    ) -> None:
        if new.context is not old.context:
            self._mapping_delta("context", old.context, new.context, data, blobs)
        if new.node != old.node:
            data["n"] = new.node
        if new.op != old.op:
            data["o"] = new.op
        if new.step != data.get("s", old.step):
            data["v"] = new.step
        if new.output is not old.output:
            data["r"] = self.plain(new.output, "output", blobs)
        if new.local is not old.local:
            if type(new.local) is dict and type(old.local) is dict:
                changes = data["l~"] = {}
                self._mapping_delta("local", old.local, new.local, changes, blobs)
            else:
                data["l"] = self.plain(new.local, "local", blobs)
        pending = new.pending
        if len(pending) != 1 or pending[0] != usual_effect(new):
            self._pending_delta(old.pending, pending, data)
        if new.deadline != old.deadline:
            data["d"] = new.deadline
        if new.children != old.children or new.suspended != old.suspended or new.parent != old.parent:
            data["k"] = [new.parent, list(new.children), new.suspended]

    @staticmethod
    def _pending_delta(old: Sequence[str], new: Sequence[str], data: dict[str, Any]) -> None:
        if len(new) > 2:
            known, still = frozenset(old), frozenset(new)
            answered = [e for e in old if e not in still]
            asked = [e for e in new if e not in known]
            if len(answered) + len(asked) < len(new) and [e for e in old if e in still] + asked == list(new):
                data["p~"] = [answered, asked]
                return
        data["p"] = list(new)

    def _mapping_delta(
        self,
        what: str,
        old: Mapping[str, Any],
        new: Mapping[str, Any],
        data: dict[str, Any],
        blobs: dict[str, bytes],
    ) -> None:
        changed: dict[str, Any] = {}
        appended: dict[str, Any] = {}
        added = 0
        for key, value in new.items():
            before = old.get(key, _MISSING)
            if before is value:
                continue
            added += before is _MISSING
            if (
                type(value) not in SCALARS
                and isinstance(value, list)
                and isinstance(before, list)
                and (kept := kept_prefix(before, value)) is not None
            ):
                if kept < len(value):
                    appended[key] = self.member(value[kept:], what, key, blobs)
            else:
                changed[key] = self.member(value, what, key, blobs)
        if changed:
            data["c"] = self._keys(changed)
        if appended:
            data["+"] = self._keys(appended)
        if len(new) < len(old) + added:
            data["-"] = [k for k in old if k not in new]

    @staticmethod
    def _keys(changes: dict[str, Any]) -> dict[str, Any]:
        escaped = False
        for key in changes:
            if type(key) is not str or not (key.isascii() or is_utf8(key)):
                raise NotStorable(
                    f"context key {key!r}", type(key).__name__, "keys of stored mappings are text"
                )
            escaped = escaped or key.startswith("$")
        return {("$" + k if k.startswith("$") else k): v for k, v in changes.items()} if escaped else changes

    def applied(self, snapshot: Snapshot, body: bytes, blobs: Mapping[str, bytes]) -> Snapshot:
        """The snapshot with a delta applied."""
        with UNDAMAGED:
            return self._applied(snapshot, parsed(body), blobs)

    def _applied(self, snapshot: Snapshot, data: dict[str, Any], blobs: Mapping[str, bytes]) -> Snapshot:
        steps = data.get("s", snapshot.steps)
        instances = dict(snapshot.instances)
        if "i" in data:
            for key, change in data["i"].items():
                if change is None:
                    del instances[key]
                elif "=" in change:
                    whole = {"instances": {key: change["="]}}
                    instances[key] = _only(self.snapshot(orjson.dumps({**_EMPTY, **whole}), blobs))
                else:
                    instances[key] = self._instance_applied(instances[key], change, steps, blobs)
        elif ROOT in instances and len(instances) == 1:
            instances[ROOT] = self._instance_applied(instances[ROOT], data, data.get("s"), blobs)
        status, reason = self.value(data.get("S", ["running", ""]), blobs)
        max_steps, max_agent_calls = data.get("m", (snapshot.max_steps, snapshot.max_agent_calls))
        return Snapshot(
            snapshot.execution_id,
            status,
            steps,
            instances,
            self.value(data["u"], blobs) if "u" in data else snapshot.spent,
            max_steps,
            max_agent_calls,
            snapshot.started_at,
            snapshot.started_at + data["t"] / 1000,
            self.value(data["r!"], blobs) if "r!" in data else snapshot.output,
            self.value(data["f"], blobs) if "f" in data else snapshot.failure,
            reason,
            snapshot.parent,
            snapshot.depth,
            data.get("L", snapshot.log_length),
            snapshot.launched,
        )

    def _instance_applied(
        self, old: Instance, data: Mapping[str, Any], steps: int | None, blobs: Mapping[str, bytes]
    ) -> Instance:
        context = self._mapping_applied(old.context, data, blobs)
        local = old.local
        if "l" in data:
            local = self.value(data["l"], blobs)
        elif "l~" in data:
            local = self._mapping_applied(old.local, data["l~"], blobs)
        step = data.get("v", steps if steps is not None and "s" in data else old.step)
        parent, children, suspended = data.get("k", (old.parent, old.children, old.suspended))
        node, op = data.get("n", old.node), data.get("o", old.op)
        instance = Instance(
            old.id,
            node,
            op,
            step,
            context,
            self.value(data["r"], blobs) if "r" in data else old.output,
            local,
            (),
            data.get("d", old.deadline),
            parent,
            tuple(children),
            suspended,
        )
        pending: tuple[str, ...] = (usual_effect(instance),)
        if "p" in data:
            pending = tuple(data["p"])
        elif "p~" in data:
            answered, asked = frozenset(data["p~"][0]), data["p~"][1]
            pending = (*(e for e in old.pending if e not in answered), *asked)
        return _copy_pending(instance, pending)

    def _mapping_applied(
        self, old: Mapping[str, Any], data: Mapping[str, Any], blobs: Mapping[str, bytes]
    ) -> Mapping[str, Any]:
        if not ("c" in data or "+" in data or "-" in data):
            return old
        new = {k: v for k, v in old.items() if k not in data.get("-", ())}
        new.update((unescaped(k), self.value(v, blobs)) for k, v in data.get("c", {}).items())
        for name, items in data.get("+", {}).items():
            key = unescaped(name)
            new[key] = [*new[key], *self.value(items, blobs)]
        return new


def _copy_pending(i: Instance, pending: tuple[str, ...]) -> Instance:
    return Instance(
        i.id,
        i.node,
        i.op,
        i.step,
        i.context,
        i.output,
        i.local,
        pending,
        i.deadline,
        i.parent,
        i.children,
        i.suspended,
    )


def usual_effect(i: Instance) -> str:
    """The id of the one effect that most ops ask for."""
    return f"{i.id}/{i.step}/{i.op}"


def kept_prefix(old: Sequence[Any], new: list[Any]) -> int | None:
    """How many items of `new` are the items of `old`, all of them and in place; None if it is another list.

    A list that a draft grew says so itself; for others the items are compared by identity.
    """
    if type(new) is Grown and new.grew_from(old):
        return len(old)
    kept = len(old)
    if kept <= len(new) and all(map(operator.is_, old, new)):
        return kept
    return None


class _Undamaged:
    """What a stored body lacks, or holds in a form that we never write, is damage."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyError | TypeError | ValueError | AttributeError | IndexError):
            raise IncompatibleSnapshot(f"a stored body is damaged: {error!r}") from error


UNDAMAGED = _Undamaged()


def parsed(body: bytes) -> dict[str, Any]:
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise IncompatibleSnapshot(f"a stored body is damaged: {error}") from error
    if not isinstance(data, dict):
        raise IncompatibleSnapshot("a stored body is damaged: it is not a mapping")
    return data


def _only(snapshot: Snapshot) -> Instance:
    return next(iter(snapshot.instances.values()))


_MISSING = object()
_EMPTY: dict[str, Any] = {
    "format": FORMAT,
    "id": "",
    "status": "running",
    "steps": 0,
    "spent": {"$": ["Spent", {}]},
    "max_steps": None,
    "max_agent_calls": None,
    "started_at": 0,
    "at": 0,
    "output": None,
    "failure": None,
    "reason": "",
    "parent": None,
    "depth": 0,
    "log_length": 0,
    "launched": False,
}
