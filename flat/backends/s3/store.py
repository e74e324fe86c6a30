"""A store in a bucket of Amazon S3, or of whatever has conditional writes as S3 does: no server of ours to run.

    store = S3Store("s3://bucket/folder?region=eu-central-1")
    store = open_store("s3://bucket?endpoint=http://127.0.0.1:4566&region=us-east-1&create=true")

**What is guaranteed.** S3 writes one object at a time, so a commit is one object: the next entry of the journal,
which holds the bodies, columns, log rows, blobs, signals, births and releases of one commit or of several, and which S3
creates for one of those that try (`If-None-Match: *`). Creating it is the commit: before, nothing of it is there, and
from then on all of it, for everybody. An entry is written by a process that knows all entries before it, so that `seq`,
tokens and signals are checked against everything that was ever committed; every read applies the newest entries first.
What returned has reached the service's storage, in several places. A write whose answer was lost is repeated, and is
recognised if it had arrived. When S3 does not answer within `timeout` seconds (10), a method raises without knowing.

**What is not.** It is slow: a write takes one request of S3 (some tens of milliseconds), the whole store takes one
entry at a time, and processes that write at the same moment make each other repeat. Executions of one process that
commit together share an entry. Heartbeats are objects of their own, and are overwritten; leases end by comparing
times, the callers' times. A service without `If-None-Match` must not be used: two processes would both believe that
they had written the same entry.

**What it costs.** Every process holds the columns, the signals and a pointer to each body and log row in memory, not
the values, and reads them when it opens the store: from the newest state (`states.py`), which is stored every 200
entries at the cost of what has changed, and from the entries after it. For 10,000 executions of 20 steps these are
420 requests, 16 at a time, and 50 MB; what was put into S3 for them is 1.5 times their bodies and log. An entry is
emptied when nothing in it is needed any more, so the values of a deleted execution go with the last of those that
were committed beside it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from types import TracebackType
from typing import Any, Self

import anyio
import orjson

from flat.backends.aws import Address, parse_address, parse_url
from flat.backends.checks import (
    check_birth,
    check_commit,
    check_signal,
    check_text,
    is_plain,
    readable,
)
from flat.backends.liveness import describe, may_take_over
from flat.backends.protocols import Birth, Commit, DeadSignal, Execution, Lease, Owner, Signal, Stored
from flat.backends.s3.bucket import hashed
from flat.backends.s3.journal import Journal, Wish
from flat.backends.s3.replica import Op, Replica, Values, birth_op, commit_op, signal_op
from flat.backends.sweeping import Kind
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, SignalGone, StaleSnapshot

EXAMPLE = "s3://bucket/folder?region=eu-central-1"
HEARD_LATELY = 0.1
"""Part of its ttl for which an owner that was heard of need not be written again when it acquires something."""


def parse(path: str, options: dict[str, str]) -> Callable[[], S3Store]:
    address = parse_address("s3", path, options, EXAMPLE)
    return lambda: S3Store(address)


class S3Store:
    """Executions in a bucket: `S3Store("s3://bucket/folder?region=eu-central-1")`."""

    def __init__(self, address: str | Address) -> None:
        self.journal = Journal(parse_url("s3", address, EXAMPLE) if isinstance(address, str) else address)
        self._heard: dict[str, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"S3Store({self.journal!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.journal.close()

    async def _change(
        self, touches: Collection[str] | None, fits: Callable[[Replica], bool], op: Callable[[Values], Op]
    ) -> Any:
        """Write an operation if it fits; False if it does not."""
        wish = Wish(touches, lambda replica, values: op(values) if fits(replica) else None, False)
        return await self.journal.write(wish)

    # -- commits --------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> None:
        if not is_plain(commit):
            check_commit(commit)
        lease = commit.lease
        check_text("execution_id", lease.execution_id)
        for digest in commit.blobs:
            check_text("digest", digest)

        def check(replica: Replica, values: Values) -> Op:
            row = replica.row(lease.execution_id)
            if row is None or row.token != lease.token or commit.seq != len(row.bodies):
                raise StaleSnapshot(lease.execution_id, commit.seq)
            unique = len(set(commit.consume)) == len(commit.consume)
            if not unique or not all(replica.open_signal(one) for one in commit.consume):
                raise SignalGone(lease.execution_id)
            return ["commit", *commit_op(commit, values, replica.blobs)]

        touches = [
            _execution(lease.execution_id), *map(_letter, commit.consume),
            *(_letter(one.signal_id) for one in commit.send),
            *(_execution(one.execution.execution_id) for one in commit.births),
        ]  # fmt: skip
        await self.journal.write(Wish(touches, check))

    # -- births and leases ------------------------------------------------------------------------

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        execution_id = birth.execution.execution_id
        return bool(
            await self._change(
                [_execution(execution_id)],
                lambda replica: replica.row(execution_id) is None,
                lambda values: ["create", birth_op(birth, values)],
            )
        )

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        check_text("owner", owner.owner)
        execution_id = birth.execution.execution_id
        await self._hear(owner, now, ttl)
        token = await self._own(
            execution_id, owner,
            lambda replica: replica.row(execution_id) is None,
            lambda values: ["begin", birth_op(birth, values), owner.owner],
        )  # fmt: skip
        return None if token is None else Lease(execution_id=execution_id, owner=owner.owner, token=token)

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        check_text("execution_id", execution_id)
        check_text("owner", owner.owner)
        await self._hear(owner, now, ttl)
        # If what is known is not the newest, that is noticed in writing.
        row = (await self.journal.known()).row(execution_id)
        while True:
            if row is None or row.owner not in (None, owner.owner):
                row = (await self.journal.fresh()).row(execution_id)
            if row is None:
                raise ExecutionNotFound(execution_id)
            was, held_by = row.token, row.owner
            if held_by not in (None, owner.owner):
                await self._contest(execution_id, str(held_by), now)

            def still(replica: Replica, was: int = was) -> bool:
                found = replica.row(execution_id)
                return found is not None and found.token == was

            token = await self._own(
                execution_id, owner, still, lambda values: ["own", execution_id, owner.owner]
            )
            if token is not None:
                return Lease(execution_id=execution_id, owner=owner.owner, token=token)
            row = self.journal.replica.row(execution_id)

    async def _own(
        self, execution_id: str, owner: Owner, fits: Callable[[Replica], bool], op: Callable[[Values], Op]
    ) -> int | None:
        """Write an operation that makes us the owner. If we are interrupted, nobody is left owning it."""
        wish = Wish([_execution(execution_id)], lambda replica, values: op(values) if fits(replica) else None)
        try:
            token: int | None = await self.journal.write(wish)
        except BaseException as error:
            if not isinstance(error, Exception):
                with anyio.CancelScope(shield=True), suppress(BackendError):
                    if await self.journal.settle(wish) and wish.result is not None:
                        await self.release(
                            Lease(execution_id=execution_id, owner=owner.owner, token=wish.result)
                        )
            raise
        return token

    async def _contest(self, execution_id: str, held_by: str, now: float) -> None:
        """Raise unless an execution may be taken from its holder."""
        found = await self._owner(held_by)
        if found is None:
            return
        holder, seen, ttl = found
        if not may_take_over(holder, seen=seen, ttl=ttl, now=now):
            left = f"its lease ends in {seen + ttl - now:.0f} s unless it is kept up"
            raise ExecutionBusy(execution_id, describe(holder), left)

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        check_text("owner", owner.owner)
        data = orjson.dumps({"owner": asdict(owner), "seen": now, "ttl": ttl})
        # What this object has to do before its first write, it does here too.
        await self.journal.known()
        await self.journal.bucket.put(_owner_key(owner.owner), data)
        self._heard[owner.owner] = (now, ttl)

    async def _hear(self, owner: Owner, now: float, ttl: float) -> None:
        """Write that an owner is alive, unless that was written a moment ago."""
        known = self._heard.get(owner.owner)
        if known is None or known[1] != ttl or not known[0] <= now <= known[0] + HEARD_LATELY * ttl:
            await self.heartbeat(owner, now=now, ttl=ttl)

    async def _owner(self, name: str) -> tuple[Owner, float, float] | None:
        data = await self.journal.bucket.get(_owner_key(name))
        if data is None:
            return None
        found = orjson.loads(data)
        return Owner(**found["owner"]), found["seen"], found["ttl"]

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        row = (await self.journal.fresh()).row(execution_id)
        if row is None or row.owner is None:
            return False
        found = await self._owner(row.owner)
        return found is None or may_take_over(found[0], seen=found[1], ttl=found[2], now=now)

    async def release(self, lease: Lease) -> None:
        def fits(replica: Replica) -> bool:
            row = replica.row(lease.execution_id)
            return row is not None and row.token == lease.token

        await self._change(
            [_execution(lease.execution_id)],
            fits,
            lambda values: ["release", lease.execution_id, lease.token],
        )

    async def request_cancel(self, execution_id: str) -> bool:
        return await self._on_row(execution_id, ["cancel", execution_id])

    async def delete(self, execution_id: str) -> bool:
        return await self._on_row(execution_id, ["delete", execution_id])

    async def _on_row(self, execution_id: str, op: Op) -> bool:
        check_text("execution_id", execution_id)
        return bool(
            await self._change(
                [_execution(execution_id)], lambda replica: replica.row(execution_id) is not None, lambda values: op
            )
        )  # fmt: skip

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        return await (await self.journal.fresh()).cancel_requested(owner)

    # -- reading ------------------------------------------------------------------------------------

    async def get(self, execution_id: str) -> Execution | None:
        return await (await self.journal.fresh()).get(execution_id)

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        found = await (await self.journal.fresh()).load(execution_id, at=at)
        if found is None:
            return None
        values = await self.journal.values([*(body for _, body in found.bodies), *found.log])
        bodies = [(seq, value) for (seq, _), value in zip(found.bodies, values, strict=False)]
        return replace(found, bodies=bodies, log=values[len(bodies) :])

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        found = await (await self.journal.fresh()).bodies(execution_id)
        values = await self.journal.values([body for _, _, body in found])
        return [(seq, bool(base), value) for (seq, base, _), value in zip(found, values, strict=True)]

    async def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        replica = await self.journal.fresh()
        # As it is now: what is written meanwhile may come from a whole that replaces this one.
        found = [
            one
            async for one in replica.find(status=status, channel=channel, due=due, parent=parent, limit=limit)
        ]
        for one in found:
            yield one

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        return await (await self.journal.fresh()).ready(now=now, limit=limit)

    # -- signals --------------------------------------------------------------------------------------

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        return bool(
            await self._change(
                [_letter(signal.signal_id)],
                lambda replica: not replica.was_sent(signal.signal_id),
                lambda values: ["send", signal_op(signal, values)],
            )
        )

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        found = await (await self.journal.fresh()).signals(channel, to=to, limit=limit)
        values = await self.journal.values([one.body for one in found])
        return [replace(one, body=value) for one, value in zip(found, values, strict=True)]

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        for execution_id in to:
            check_text("to", execution_id)
        # The names of the copies depend on what else was sent, so nothing is written beside it.
        return bool(
            await self._change(
                [_letter(signal_id), *(_letter(f"{signal_id}@{one}") for one in to)],
                lambda replica: bool(to) and replica.open_signal(signal_id) and not replica.addressed(signal_id),
                lambda values: ["fan_out", signal_id, list(to)],
            )
        )  # fmt: skip

    async def take(self, signal_id: str) -> bool:
        return await self._on_signal(signal_id, ["take", signal_id])

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        return await self._on_signal(signal_id, ["bury", signal_id, readable(reason), at])

    async def _on_signal(self, signal_id: str, op: Op) -> bool:
        check_text("signal_id", signal_id)
        return bool(
            await self._change(
                [_letter(signal_id)], lambda replica: replica.open_signal(signal_id), lambda values: op
            )
        )

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        found = await (await self.journal.fresh()).dead(channel, limit=limit)
        values = await self.journal.values([one.signal.body for one in found])
        return [
            replace(one, signal=replace(one.signal, body=value))
            for one, value in zip(found, values, strict=True)
        ]

    async def revive(self, signal_id: str) -> bool:
        check_text("signal_id", signal_id)
        return bool(
            await self._change(
                [_letter(signal_id)],
                lambda replica: replica.is_dead(signal_id),
                lambda values: ["revive", signal_id],
            )
        )

    # -- configs and blobs ------------------------------------------------------------------------------

    async def put_config(self, digest: str, text: bytes) -> None:
        check_text("digest", digest)
        await self._change(
            [f"config {digest}"],
            lambda replica: digest not in replica.configs,
            lambda values: ["config", digest, values.add(text)],
        )

    async def get_config(self, digest: str) -> bytes | None:
        return await self._kept(digest, lambda replica: replica.configs)

    async def get_blob(self, digest: str) -> bytes | None:
        return await self._kept(digest, lambda replica: replica.blobs)

    async def _kept(self, digest: str, where: Callable[[Replica], Mapping[str, bytes]]) -> bytes | None:
        # What is kept under a digest stays as it is.
        pointer = where(await self.journal.known()).get(digest)
        pointer = pointer or where(await self.journal.fresh()).get(digest)
        return None if pointer is None else (await self.journal.values([pointer]))[0]

    async def kept(self, kind: Kind) -> Sequence[str]:
        return await (await self.journal.fresh()).kept(kind)

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        found: list[str] = []

        def fits(replica: Replica) -> bool:
            kept = replica.blobs if kind == "blob" else replica.configs
            found[:] = [digest for digest in names if digest in kept and digest not in but]
            return bool(found)

        # A commit brings no blob that is there already: so nothing is written beside it.
        return int(await self._change(None, fits, lambda values: ["drop", kind, list(found)]))


def _owner_key(name: str) -> str:
    return f"owners/{hashed(name)}"


def _execution(execution_id: str) -> str:
    return f"execution {execution_id}"


def _letter(signal_id: str) -> str:
    return f"signal {signal_id}"
