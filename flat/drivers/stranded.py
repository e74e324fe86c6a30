"""Executions whose worker died: which they are, what is known of such deaths, and how one is queued or set aside.

Theory of operation. *Queued* is an execution that waits for nothing but a moment that has come: `waiting`, on no
channel, with a due `wake_at`. So whoever asks the store for what is `ready` finds it, oldest first, and nothing else is
needed for a queue.

Each death is a dead letter on a channel of that execution alone, its id made of the token of the lease that died: it is
counted once, however many notice. The letter holds the *place* where the execution stood. Whoever dies again and again
at the same place, with nothing achieved in between, takes its next worker with it, too; so it is *buried*: it waits on
that channel, where nobody sends, until a person takes it out. Reviving the letter does that, since it is then ready; or
`put_back` does.
"""

from __future__ import annotations

import hashlib
from typing import Any

import anyio
import orjson

from flat.backends.protocols import CheckpointStore, Commit, Execution, Head, Owner, Signal
from flat.bindings import standard_types
from flat.core.advance import stopped
from flat.core.codec import Codec
from flat.core.snapshot import FINISHED
from flat.drivers.dispatch import PAGE
from flat.drivers.keeper import rebuilt, take_up

CHANNEL = "flat/deaths/"
ORPHAN_AFTER = 60.0
"""Seconds after which a launched execution that nobody has begun with is stranded."""
DEEPEST = 16
"""Generations of children that are looked at to tell whether anything was achieved."""
_PLAIN = Codec(standard_types(), opaque=True)


def deaths_channel(execution_id: str) -> str:
    return f"{CHANNEL}{execution_id}"


def is_queued(execution: Execution) -> bool:
    """Whether it waits for a worker, and for nothing else."""
    return execution.status == "waiting" and not execution.channels and execution.wake_at is not None


def is_buried(execution: Execution) -> bool:
    """Whether it was set aside, because it took its workers with it."""
    return execution.status == "waiting" and execution.channels == (deaths_channel(execution.execution_id),)


async def stranded_in(store: CheckpointStore, owner: Owner, now: float) -> list[Execution]:
    """Those whose driver's lease has ended, save `owner`'s own, and those launched with whom nobody has begun."""
    rows = [e async for e in store.find(status="running")]
    rows += [e for e in await store.ready(now=now, limit=PAGE) if e.owner is not None]
    held: dict[str, list[Execution]] = {}
    found: list[Execution] = []
    for execution in rows:
        if execution.owner is None:
            if execution.seq == 0 and execution.updated_at < now - ORPHAN_AFTER:
                found.append(execution)
        elif execution.owner != owner.owner:
            held.setdefault(execution.owner, []).append(execution)
    for theirs in held.values():  # a lease ends for all that its owner has
        if await store.abandoned(theirs[0].execution_id, now=now):
            found += theirs
    return found


async def count_death(store: CheckpointStore, execution: Execution, now: float) -> int:
    """Note that whoever owned an execution has died; how often that has happened in a row without any progress."""
    place, channel = await _place(store, execution), deaths_channel(execution.execution_id)
    letter = Signal(
        signal_id=f"{channel}#{execution.token}", channel=channel, created_at=now, to=execution.execution_id,
        body=orjson.dumps({"place": place, "owner": execution.owner}),
    )  # fmt: skip
    await store.send(letter)
    # Buried also when somebody else sent it, who may have died over it.
    await store.bury(letter.signal_id, f"worker {execution.owner} died while it drove this execution", now)
    times = 0
    for dead in reversed(await store.dead(channel)):
        if orjson.loads(dead.signal.body).get("place") != place:
            break
        times += 1
    return times


async def forget_deaths(store: CheckpointStore, execution_id: str) -> None:
    """Remove the letters: what they tell is of no use any more."""
    channel = deaths_channel(execution_id)
    for dead in await store.dead(channel):
        if await store.revive(dead.signal.signal_id):
            await store.take(dead.signal.signal_id)
    for signal in await store.signals(channel):
        await store.take(signal.signal_id)


async def put_back(
    store: CheckpointStore, execution_id: str, owner: Owner, *, now: float, ttl: float
) -> bool:
    """Queue an execution that nobody drives. False if it is over. Raises `ExecutionBusy`, `ExecutionNotFound`."""
    return await _park(store, execution_id, owner, Head(status="waiting", wake_at=now), "", None, now, ttl)


async def bury(
    store: CheckpointStore, execution: Execution, owner: Owner, reason: str, *, now: float, ttl: float
) -> bool:
    """Set an execution aside as it stands. False, and nothing written, if somebody has gone on with it."""
    head = Head(status="waiting", channels=(deaths_channel(execution.execution_id),))
    id_, seq = execution.execution_id, execution.seq
    return await _park(store, id_, owner, head, reason, seq, now, ttl)


async def _park(
    store: CheckpointStore, execution_id: str, owner: Owner, head: Head, reason: str, seq: int | None,
    now: float, ttl: float,
) -> bool:  # fmt: skip
    keeper = await take_up(store, _PLAIN, execution_id, owner, now=now, ttl=ttl)
    try:
        if keeper.stored.status in FINISHED or seq not in (None, keeper.seq):
            return False
        body, blobs = _PLAIN.delta(keeper.stored, stopped(keeper.stored, "waiting", reason, now))
        await store.commit(
            Commit(
                keeper.lease, keeper.seq + 1, now, body, head=head, blobs=blobs, release=True
            )
        )  # fmt: skip
        keeper.released = True
        return True
    finally:
        with anyio.CancelScope(shield=True):
            await keeper.release()


async def _place(store: CheckpointStore, execution: Execution) -> str:
    """Where an execution and its unfinished children stand: the same text as long as nothing is achieved."""
    facts = await _facts(store, execution, DEEPEST)
    return hashlib.sha256(orjson.dumps(facts)).hexdigest()[:32]


async def _facts(store: CheckpointStore, execution: Execution, deeper: int) -> Any:
    stored = await store.load(execution.execution_id)
    if stored is None:
        return None
    snapshot = await rebuilt(store, _PLAIN, stored)
    below: list[Any] = []
    if deeper:
        async for child in store.find(parent=execution.execution_id):
            over = child.status in FINISHED
            below.append([child.execution_id, None if over else await _facts(store, child, deeper - 1)])
    return [
        snapshot.steps,
        sorted(snapshot.pending),
        snapshot.log_length,
        sorted(below, key=lambda c: str(c[0])),
    ]
