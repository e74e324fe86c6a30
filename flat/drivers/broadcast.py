"""One signal for everybody: what happens to a signal without addressee on a channel that several wait on."""

from __future__ import annotations

from flat.backends.checks import WAITING
from flat.backends.protocols import CheckpointStore

NOBODY = "\0"
"""No execution has this id: what it may take is what anybody may."""


async def share(store: CheckpointStore, channel: str) -> str | None:
    """Give the oldest signal that anybody may take to everybody who waits on its channel, if that is two or more.

    Returns its id if it was fanned out. Only the oldest: the next one is for those who wait when its turn comes.
    """
    waiting = [e.execution_id async for e in store.find(status=WAITING, channel=channel, limit=2)]
    if len(waiting) < 2:
        return None
    oldest = await store.signals(channel, to=NOBODY, limit=1)
    if not oldest:
        return None
    waiting = [e.execution_id async for e in store.find(status=WAITING, channel=channel)]
    if not await store.fan_out(oldest[0].signal_id, sorted(waiting)):
        return None
    return oldest[0].signal_id
