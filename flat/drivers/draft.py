"""Drafts: what user code may change, without changing the snapshot underneath.

A hook gets the context as an ordinary `dict` and changes it as it likes, deep inside too. Lists and mappings
in it are drafts: real lists and dicts that copy themselves a level at a time and note whether they were
touched. `settle` turns the result back into plain data in which everything untouched is the *same object*
as before, and a list that was only appended to is a `Grown` list. So what a delta has to store is found by
identity, and ten thousand old messages cost nothing when one is added.

Other values that could be changed in place (sets, models) are copied, and the copy gives way to the original
when it is equal to it. What user code brings along is copied into plain data, as it would be by a restart:
a `defaultdict` becomes a dict.
"""

from __future__ import annotations

import copy
import datetime
import decimal
import operator
import pathlib
import uuid
from collections.abc import Iterator, Mapping
from itertools import chain, repeat
from typing import Any, SupportsIndex

from flat.core.grown import Grown

_ATOMS = frozenset(
    {
        str,
        int,
        float,
        bool,
        type(None),
        bytes,
        datetime.datetime,
        datetime.date,
        datetime.time,
        datetime.timedelta,
        decimal.Decimal,
        uuid.UUID,
        pathlib.PurePosixPath,
        pathlib.PureWindowsPath,
        type(pathlib.Path()),
    }
)
"""Types whose values never change."""
_NOTHING = object()


def draft_of(context: Mapping[str, Any]) -> dict[str, Any]:
    """The context as a plain dict whose containers are drafts."""
    result = dict(context)
    for key, value in result.items():
        if type(value) not in _ATOMS:
            result[key] = draft(value)
    return result


def draft(value: Any) -> Any:
    """Something that user code may change without changing the value."""
    cls = type(value)
    if cls in _ATOMS:
        return value
    if cls is dict:
        return DraftDict(value)
    if cls is list or cls is Grown:
        return DraftList(value)
    if cls is tuple:
        items = tuple(map(draft, value))
        return value if all(map(operator.is_, items, value)) else items
    return _copied(value)


def settle(value: Any, before: Any = _NOTHING) -> Any:
    """The value as plain data: drafts replaced by their originals where untouched, else by what they became.

    Containers that user code brought along are copied: it may keep them and change them later, and what is
    in a snapshot must not change. `before` is what the snapshot holds in this place.
    """
    cls = type(value)
    if cls in _ATOMS:
        return value
    if cls is DraftDict or cls is DraftList:
        return value.settled()
    if isinstance(value, Mapping):
        return {key: settle(item) for key, item in value.items()}
    if isinstance(value, list):
        return [settle(item) for item in value]
    if cls is tuple:
        old = before if type(before) is tuple and len(before) == len(value) else value
        items = tuple(map(settle, value, old))
        return old if all(map(operator.is_, items, old)) else items
    return before if cls is type(before) and value == before else _copied(value)


def settled_context(result: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """What a hook returned, as the context after `before`. The read-only `machine` facts are not part of it."""
    context = dict(result)
    context.pop("machine", None)
    for key, value in context.items():
        if type(value) not in _ATOMS:
            context[key] = settle(value, before.get(key, _NOTHING))
    return context


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # what cannot be copied cannot be stored either, and the write says so with its path
        return value


class DraftDict(dict[str, Any]):
    """A dict over an original. Values are wrapped when they are read."""

    __slots__ = ("_base", "_opened", "_touched")

    def __init__(self, base: dict[str, Any]) -> None:
        super().__init__(base)
        self._base, self._touched, self._opened = base, False, False

    def _open(self) -> None:
        """Wrap all containers inside, once, before anybody can get at one of them."""
        if not self._opened:
            self._opened = True
            for key, value in dict.items(self):
                if type(value) not in _ATOMS:
                    dict.__setitem__(self, key, draft(value))

    def __getitem__(self, key: str) -> Any:
        self._open()
        return dict.__getitem__(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        self._open()
        return dict.get(self, key, default)

    def items(self) -> Any:
        self._open()
        return dict.items(self)

    def values(self) -> Any:
        self._open()
        return dict.values(self)

    def __iter__(self) -> Iterator[str]:  # not inherited, so that dict(draft) and {**draft} come through here
        return dict.__iter__(self)

    def copy(self) -> dict[str, Any]:
        return dict(self.items())

    __copy__ = copy

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    def __setitem__(self, key: str, value: Any) -> None:
        self._open()
        self._touched = True
        dict.__setitem__(self, key, value)

    def __delitem__(self, key: str) -> None:
        self._open()
        self._touched = True
        dict.__delitem__(self, key)

    def __ior__(self, other: Any) -> DraftDict:  # type: ignore[override]
        self.update(other)
        return self

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._open()
        self._touched = True
        dict.update(self, *args, **kwargs)

    def setdefault(self, key: str, default: Any = None) -> Any:
        self._open()
        self._touched = self._touched or key not in self
        return dict.setdefault(self, key, default)

    def pop(self, *args: Any) -> Any:
        self._open()
        self._touched = True
        return dict.pop(self, *args)

    def popitem(self) -> tuple[str, Any]:
        self._open()
        self._touched = True
        return dict.popitem(self)

    def clear(self) -> None:
        self._touched = True
        dict.clear(self)

    def settled(self) -> dict[str, Any]:
        base = self._base
        if not self._opened and not self._touched:
            return base
        result = {key: settle(value, base.get(key, _NOTHING)) for key, value in dict.items(self)}
        if not self._touched and all(result[key] is value for key, value in base.items()):
            return base
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> dict[str, Any]:
        return copy.deepcopy(self.settled(), memo)

    def __reduce__(self) -> Any:
        return (dict, (self.settled(),))


class DraftList(list[Any]):
    """A list over an original. Items are wrapped when they are read; appending is told from other changes."""

    __slots__ = ("_base", "_opened", "_rewritten")

    def __init__(self, base: list[Any]) -> None:
        super().__init__(base)
        self._base, self._rewritten, self._opened = base, False, False

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            # What was appended belongs to the user's code, which may hold on to it.
            for i in range(len(self._base)):
                value = list.__getitem__(self, i)
                if type(value) not in _ATOMS:
                    list.__setitem__(self, i, draft(value))

    def _rewrite(self) -> None:
        self._open()
        self._rewritten = True

    def __getitem__(self, index: Any) -> Any:
        if not self._opened and type(index) is int:
            value = list.__getitem__(self, index)
            if type(value) in _ATOMS:
                return value
        self._open()
        return list.__getitem__(self, index)

    def __iter__(self) -> Iterator[Any]:
        self._open()
        return list.__iter__(self)

    def __reversed__(self) -> Iterator[Any]:
        self._open()
        return list.__reversed__(self)

    def copy(self) -> list[Any]:
        return list(iter(self))

    __copy__ = copy

    def __add__(self, other: Any) -> Any:
        return self.copy() + other

    def __radd__(self, other: Any) -> Any:
        return other + self.copy()

    def __mul__(self, n: SupportsIndex) -> list[Any]:
        return self.copy() * n

    __rmul__ = __mul__

    def __setitem__(self, index: Any, value: Any) -> None:
        self._rewrite()
        list.__setitem__(self, index, value)

    def __delitem__(self, index: Any) -> None:
        self._rewrite()
        list.__delitem__(self, index)

    def __imul__(self, n: SupportsIndex) -> DraftList:
        self._rewrite()
        return list.__imul__(self, n)

    def insert(self, index: SupportsIndex, value: Any) -> None:
        self._rewrite()
        list.insert(self, index, value)

    def pop(self, index: SupportsIndex = -1) -> Any:
        self._rewrite()
        return list.pop(self, index)

    def remove(self, value: Any) -> None:
        self._rewrite()
        list.remove(self, value)

    def clear(self) -> None:
        self._rewrite()
        list.clear(self)

    def reverse(self) -> None:
        self._rewrite()
        list.reverse(self)

    def sort(self, **kwargs: Any) -> None:
        self._rewrite()
        list.sort(self, **kwargs)

    def settled(self) -> list[Any]:
        base = self._base
        kept = len(base)
        # Comparing finds what was moved without our methods, as `heapq` does; equal lists are equal by identity here.
        if not self._opened and list.__getitem__(self, slice(kept)) == base:
            more = [settle(value) for value in list.__getitem__(self, slice(kept, None))]
            return Grown(base, more) if more else base
        if self._rewritten:
            return [settle(value) for value in list.__iter__(self)]
        befores = chain(base, repeat(_NOTHING))
        items = [settle(value, old) for value, old in zip(list.__iter__(self), befores, strict=False)]
        if len(items) < kept or not all(map(operator.is_, base, items)):
            return items
        return base if len(items) == kept else Grown(base, items[kept:])

    def __deepcopy__(self, memo: dict[int, Any]) -> list[Any]:
        return copy.deepcopy(self.settled(), memo)

    def __reduce__(self) -> Any:
        return (list, (self.settled(),))
