"""What an execution waits for, in words for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flat.core.effects import child_channel
from flat.core.events import Waits
from flat.core.snapshot import Snapshot

if TYPE_CHECKING:
    from flat.runtime.runtime import Runtime


def reason_of(name: str, snapshot: Snapshot, channels: Sequence[str]) -> str:
    """Why an execution of a machine waits: in its own words, where it is a tree whose instances say so."""
    tree = snapshot.root.context.get("tree")
    if isinstance(tree, Mapping) and "turn" in snapshot.root.context:
        found = [f'"{label}" waits: {reason}' for label, reason in suspended_data(tree)]
        if found:
            return "; ".join(found)
    if snapshot.status == "in_doubt":
        return f'machine "{name}" is in doubt: {snapshot.reason}'
    return f'machine "{name}" waits on {", ".join(channels)}'


def suspended_data(tree: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Who waits in a tree as data, and why."""
    if (info := tree.get("suspended")) is not None:
        node = tree.get("node") or {}
        yield str(node.get("ref") or node.get("name") or tree.get("id")), str(info.get("reason") or "")
    for child in tree.get("children") or ():
        yield from suspended_data(child)


async def waits_of(runtime: Runtime, execution_id: str) -> Waits | None:
    """What a stored execution waits for now, in the end; None while it waits for nothing."""
    execution = await runtime.opened().get(execution_id)
    if execution is None or execution.status not in ("waiting", "in_doubt"):
        return None
    below = {child_channel(e.execution_id): e.execution_id for e in await runtime.list(parent=execution_id)}
    channels: list[str] = []
    for channel in execution.channels:
        child = await waits_of(runtime, below[channel]) if channel in below else None
        channels += [channel] if child is None else child.channels
    told = tuple(dict.fromkeys(channels))
    snapshot = await runtime.inspect(execution_id)
    return Waits(reason=reason_of(execution.name, snapshot, told), channels=told)
