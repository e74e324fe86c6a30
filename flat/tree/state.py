"""How a state changes: a patch is merged, the whole is validated, and what changed is recorded as plain data.

Merging is shallow unless asked otherwise, because models rewrite whole lists and predict a shallow merge best.
Nothing here touches a tree; a `Draft` is the working copy that one call of author's code writes to.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flat.errors import StateError
from flat.tree.schema import Schema, as_plain


def shallow_merge(target: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the patch replace keys of the target, whole."""
    return {**_object(target), **patch}


def deep_merge(target: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """Objects are merged all the way down; lists and other values replace. `None` is a value and deletes nothing."""
    merged = _object(target)
    for key, value in patch.items():
        old = merged.get(key)
        merged[key] = (
            deep_merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A validated change: the new state, and the top-level keys that make the difference."""

    state: Any
    patch: Mapping[str, Any]
    drop: tuple[str, ...] = ()


def changed(
    schema: Schema[Any],
    state: Any,
    patch: Mapping[str, Any] | None = None,
    *,
    deep: bool = False,
    drop_keys: Iterable[str] = (),
) -> Difference:
    """The state with a patch merged in and keys dropped. Raises `StateError` if the schema refuses the result."""
    if patch is not None and not isinstance(patch, Mapping):
        raise StateError(f"a patch is an object, got {type(patch).__name__}")
    patch = {} if patch is None else as_plain(patch)
    merged = deep_merge(state, patch) if deep else shallow_merge(state, patch)
    for key in drop_keys:
        merged.pop(key, None)
    return _difference(state, schema.validate(merged), patch)


def replaced(schema: Schema[Any], state: Any, value: Any) -> Difference:
    """The state replaced as a whole, with what that changes."""
    return _difference(state, schema.validate(value), {})


def _difference(old: Any, new: Any, patch: Mapping[str, Any]) -> Difference:
    if not isinstance(new, Mapping):
        return Difference(state=new, patch={})
    before = old if isinstance(old, Mapping) else {}
    keys = [k for k in new if k in patch or k not in before or before[k] != new[k]]
    gone = tuple(k for k in before if k not in new)
    return Difference(state=new, patch={k: new[k] for k in keys}, drop=gone)


def _object(state: Any) -> dict[str, Any]:
    if not isinstance(state, Mapping):
        raise StateError(
            f"the state is {type(state).__name__} and not an object; replace it instead of patching it"
        )
    return dict(state)


@dataclass
class Draft:
    """The state that one call of author's code works on. What it started from stays; what it wrote adds up."""

    schema: Schema[Any]
    state: Any
    read_only: str = ""
    """Why nothing may be written, or empty."""
    patch: dict[str, Any] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    whole: bool = False
    """True when the state is not an object and was replaced."""
    touched: bool = False

    def snapshot(self) -> Any:
        """A copy for the author's code, which may do with it what it likes."""
        return copy.deepcopy(self.state)

    def update(self, patch: Mapping[str, Any] | None, *, deep: bool, drop_keys: Iterable[str]) -> None:
        self._writable()
        self._take(changed(self.schema, self.state, patch, deep=deep, drop_keys=drop_keys))

    def replace(self, value: Any) -> None:
        self._writable()
        self._take(replaced(self.schema, self.state, value))

    def _writable(self) -> None:
        if self.read_only:
            raise StateError(self.read_only, code="ancestor_state_readonly")

    def _take(self, change: Difference) -> None:
        self.state, self.touched = change.state, True
        if not isinstance(change.state, Mapping):
            self.whole = True
            return
        self.patch = {**{k: v for k, v in self.patch.items() if k not in change.drop}, **change.patch}
        self.drop = [k for k in dict.fromkeys((*self.drop, *change.drop)) if k not in self.patch]
