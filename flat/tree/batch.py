"""Many changes to one tree, each at the cost of what it touches; the tree is rebuilt once, when somebody looks at it.

A step of a thousand leaves makes a thousand changes. Applied one by one to an immutable tree (`flat.tree.apply`, which
says what each change means), each of them would walk the whole tree.
"""

from __future__ import annotations

from collections.abc import Sequence

from flat.errors import TreeError
from flat.tree.apply import applied, check_resume, patched
from flat.tree.changes import Ceded, Change, Resumed, StatePatch, Suspended
from flat.tree.charter import Charter
from flat.tree.instance import AnyInstance, get_path, walk


class Batch:
    """A tree that is being changed."""

    def __init__(self, charter: Charter, root: AnyInstance) -> None:
        self._charter = charter
        self._load(root)

    def _load(self, root: AnyInstance) -> None:
        self._root = root
        self._now: dict[str, AnyInstance] = {}
        """Every instance as it is now, except that its children may be as they were."""
        self._up: dict[str, str] = {}
        self._below: dict[str, dict[str, None]] = {}
        """The children of those that have lost one."""
        self._touched: set[str] = set()
        for instance, _ in walk(root):
            self._now[instance.id] = instance
            for child in instance.children:
                self._up[child.id] = instance.id

    @property
    def root(self) -> AnyInstance:
        """The tree with all changes so far."""
        if self._touched:
            self._root = self._rebuilt()
        return self._root

    def path(self, id: str) -> tuple[AnyInstance, ...]:
        """The way from the root to an instance, itself included; empty when it is not there. Read no children of it."""
        if id not in self._now:
            return ()
        way = [id]
        while way[-1] in self._up:
            way.append(self._up[way[-1]])
        return tuple(self._now[one] for one in reversed(way))

    def has_children(self, id: str) -> bool:
        known = self._below.get(id)
        return bool(self._now[id].children if known is None else known)

    def apply(self, changes: Sequence[Change]) -> list[tuple[int, TreeError]]:
        """Apply what can be applied, in order; gives the places of what was refused, and why."""
        refused = []
        for index, change in enumerate(changes):
            try:
                self._apply(change)
            except TreeError as error:
                refused.append((index, error))
        return refused

    def _apply(self, change: Change) -> None:
        if isinstance(change, StatePatch):
            old = self._found(change.instance_id)
            self._put(old.having(state=patched(old.node.schema, old.state, change)))
        elif isinstance(change, Suspended):
            self._put(self._found(change.instance_id).having(suspended=change.suspend_info))
        elif isinstance(change, Resumed):
            old = self._found(change.instance_id)
            check_resume(old, change)
            self._put(old.having(suspended=None))
        elif isinstance(change, Ceded) and change.instance_id != self._root.id:
            self._remove(self._found(change.instance_id).id)
        else:  # what moves whole parts of the tree
            self._load(applied(self._charter, self.root, change))

    def _found(self, id: str) -> AnyInstance:
        return self._now[id] if id in self._now else get_path(self.root, id)[-1]

    def _put(self, instance: AnyInstance) -> None:
        self._now[instance.id] = instance
        self._touched.add(instance.id)

    def _children(self, id: str) -> dict[str, None]:
        known = self._below.get(id)
        if known is None:
            known = self._below[id] = dict.fromkeys(child.id for child in self._now[id].children)
        return known

    def _remove(self, id: str) -> None:
        above = self._up[id]
        del self._children(above)[id]
        self._touched.add(above)
        gone = [id]
        while gone:
            one = gone.pop()
            gone += self._children(one)
            for known in (self._now, self._up, self._below):
                known.pop(one, None)
            self._touched.discard(one)

    def _rebuilt(self) -> AnyInstance:
        """The tree, made anew from the deepest change upwards."""
        depths = {one: self._depth(one) for one in self._touched}
        for one in self._touched:
            at, depth = one, depths[one]
            while (above := self._up.get(at)) is not None and above not in depths:
                at, depth = above, depth - 1
                depths[at] = depth
        for one in sorted(depths, key=lambda touched: -depths[touched]):
            old = self._now[one]
            below = self._below.pop(one, None)
            order = [child.id for child in old.children] if below is None else below
            if order or old.children:
                self._now[one] = old.having(children=tuple([self._now[child] for child in order]))
        self._touched.clear()
        return self._now[self._root.id]

    def _depth(self, one: str) -> int:
        depth, above = 0, self._up.get(one)
        while above is not None:
            depth, above = depth + 1, self._up.get(above)
        return depth
