"""The family of an execution: who started it, and what it started, as a tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from flat.backends.protocols import Execution
from flat.cli.runs import shown_status
from flat.cli.tables import cut, width_of
from flat.cli.text import one_line, short_id
from flat.core.effects import child_channel
from flat.runtime import Runtime

MOST = 200
"""So many are shown; a family of thousands is listed by `flat runs list`."""
DEEPEST = 64
_CHANNEL = child_channel("")


@dataclass(slots=True)
class Member:
    """An execution in its family."""

    execution: Execution
    status: str
    children: list[Member] = field(default_factory=list)
    left_out: int = 0
    """Children that are not listed."""

    def all(self) -> Iterator[Member]:
        """It, and all below it."""
        yield self
        for child in self.children:
            yield from child.all()


def child_of(channel: str) -> str | None:
    """The child that a parent waits for on this channel, or None for a channel of anybody's."""
    return channel.removeprefix(_CHANNEL) if channel.startswith(_CHANNEL) else None


async def family_of(runtime: Runtime, execution: Execution) -> Member | None:
    """The tree that an execution belongs to, from its topmost ancestor on; None if it is alone."""
    top = await top_of(runtime, execution)
    family = await descendants(runtime, top)
    return family if family.children or execution.parent is not None else None


async def top_of(runtime: Runtime, execution: Execution) -> Execution:
    """The topmost ancestor of an execution; itself if nobody started it."""
    top, seen = execution, {execution.execution_id}
    while top.parent is not None and top.parent not in seen:
        seen.add(top.parent)
        above = await runtime.opened().get(top.parent)
        if above is None:  # deleted
            break
        top = above
    return top


async def descendants(runtime: Runtime, execution: Execution, most: int = MOST) -> Member:
    """An execution with all that it started, and what they started."""
    top = Member(execution, await shown_status(runtime, execution))
    level, number = [top], 1
    for _ in range(DEEPEST):
        below: list[Member] = []
        for member in level:
            found = await runtime.list(parent=member.execution.execution_id)
            for child in reversed(found):  # in the order of their birth
                if number >= most:
                    member.left_out += 1
                    continue
                number += 1
                member.children.append(Member(child, await shown_status(runtime, child)))
            below += member.children
        level = below
        if not level:
            break
    return top


def family_data(member: Member) -> dict[str, Any]:
    e = member.execution
    return {
        "execution_id": e.execution_id, "machine": e.name, "status": member.status,
        "children": [family_data(child) for child in member.children], "left_out": member.left_out,
    }  # fmt: skip


def family_lines(family: Member, this: str, width: int | None) -> list[str]:
    """The tree, a line for each; the one that is looked at is marked."""
    rows = list(_rows(family, "", "", this))
    wide = max(width_of(name) for name, _ in rows)
    if width is not None:
        wide = min(wide, max(16, width - 32))
    return [
        cut(f"{cut(name, wide)}{' ' * (wide - width_of(cut(name, wide)))}  {rest}".rstrip(), width)
        for name, rest in rows
    ]


def _rows(member: Member, first: str, rest: str, this: str) -> Iterator[tuple[str, str]]:
    e = member.execution
    mark = "  ← this one" if e.execution_id == this else ""
    yield f"{first}{one_line(short_id(e.execution_id))}", f"{one_line(e.name, 40)}  {member.status}{mark}"
    last = len(member.children) - 1
    for number, child in enumerate(member.children):
        end = number == last and not member.left_out
        yield from _rows(child, rest + ("└─ " if end else "├─ "), rest + ("   " if end else "│  "), this)
    if member.left_out:
        yield f"{rest}└─ and {member.left_out:,} more", ""
