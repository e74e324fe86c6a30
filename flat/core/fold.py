"""A base and the deltas after it, folded into one snapshot without making those in between.

`Codec.applied` gives a snapshot per delta, which is what a run needs that goes on from the last one. Whoever looks
back at one moment of a long execution needs a single one: here the JSON of the bodies is merged as it is, and
values are made of it once, at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flat.core.codec import UNDAMAGED, Codec, parsed
from flat.core.snapshot import ROOT, Snapshot
from flat.errors import IncompatibleSnapshot

BLOB = b'["blob","'
RUNNING = ("running", "")
_INSTANCE = {"n": "node", "o": "op", "v": "step", "r": "output", "l": "local", "d": "deadline"}
_SHARED = {"s": "steps", "u": "spent", "r!": "output", "f": "failure", "L": "log_length"}


class Fold:
    """What the bodies that were added so far come to."""

    def __init__(self) -> None:
        self._data: dict[str, Any] = {}
        self.may_refer = False
        """Whether some body that was added refers to blobs."""

    def add(self, body: bytes, *, base: bool) -> None:
        """Take the next body of the chain; a base needs nothing that came before it."""
        if not self.may_refer and BLOB in body:
            self.may_refer = True
        data = parsed(body)
        if base:
            self._data = data
            return
        try:
            self._apply(data)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise IncompatibleSnapshot(f"a stored body is damaged: {error!r}") from error

    def snapshot(self, codec: Codec, blobs: Mapping[str, bytes]) -> Snapshot:
        """The snapshot at the newest body."""
        with UNDAMAGED:
            return codec._read_base(self._data, blobs)

    # -- what is known without making a snapshot ------------------------------------------

    @property
    def data(self) -> Mapping[str, Any]:
        """The body that a base would have here. It changes with the next body."""
        return self._data

    def visits(self, step: int) -> bool:
        """Whether some instance is in the visit with this number."""
        return any(instance["step"] == step for instance in self._data["instances"].values())

    def begins(self, step: int) -> bool:
        """Whether the very next thing to happen is this visit: its node is chosen, and not entered."""
        instances = self._data["instances"]
        return self._data["steps"] == step - 1 and ROOT in instances and not instances[ROOT]["op"]

    # -- merging ------------------------------------------------------------------------------

    def _apply(self, delta: dict[str, Any]) -> None:
        data = self._data
        instances = data["instances"]
        data["at"] = data["started_at"] + delta["t"] / 1000
        data["status"], data["reason"] = delta.get("S", RUNNING)
        if "i" in delta:
            for key, change in delta["i"].items():
                if change is None:
                    del instances[key]
                elif "=" in change:
                    instances[key] = change["="]
                else:
                    _change_instance(key, instances[key], change)
        elif len(instances) == 1 and ROOT in instances:
            if "s" in delta:
                instances[ROOT]["step"] = delta["s"]
            _change_instance(ROOT, instances[ROOT], delta)
        if "m" in delta:
            data["max_steps"], data["max_agent_calls"] = delta["m"]
        for short in delta.keys() & _SHARED.keys():
            data[_SHARED[short]] = delta[short]


def _change_instance(key: str, instance: dict[str, Any], change: Mapping[str, Any]) -> None:
    _change_mapping(instance["context"], change)
    for short in change.keys() & _INSTANCE.keys():
        instance[_INSTANCE[short]] = change[short]
    if "l~" in change:
        _change_mapping(instance["local"], change["l~"])
    if "k" in change:
        instance["parent"], instance["children"], instance["suspended"] = change["k"]
    if "p" in change:
        instance["pending"] = change["p"]
    elif "p~" in change:
        answered, asked = frozenset(change["p~"][0]), change["p~"][1]
        instance["pending"] = [e for e in instance["pending"] if e not in answered] + asked
    else:
        instance["pending"] = (f"{key}/{instance['step']}/{instance['op']}",)


def _change_mapping(mapping: dict[str, Any], change: Mapping[str, Any]) -> None:
    if "-" in change:
        for name in change["-"]:
            mapping.pop("$" + name if name.startswith("$") else name, None)
    if "c" in change:
        mapping.update(change["c"])
    if "+" in change:
        for name, items in change["+"].items():
            mapping[name].extend(items)
