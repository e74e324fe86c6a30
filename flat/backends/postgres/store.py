"""A store in a PostgreSQL database, for any number of machines and processes.

What is guaranteed: a commit is one statement, and so one transaction: all of it is stored or nothing, as durably as
the server stores what it confirms (`synchronous_commit`, an option of the URL, is the server's own default unless
given). Compare-and-swap on `seq` and the fencing token is the `WHERE` of the update that locks the execution's row,
so that of two owners one commits, on whatever hosts they are. A commit that returned is stored. One that raised is
not, with one exception: `Unreachable`, when the connection broke and the server stayed away for longer than we
wait, says that nobody can tell. While it can be reached, a statement whose answer was lost is sent again, and finds
out by its stamp whether it is stored.

What is not: whoever takes over a lease trusts the owners' clocks as far as heartbeats go (an owner whose clock is
ahead seems to live longer); fencing does not depend on any clock. Signals are ordered by a sequence of the
database, in the order in which their sends began to be stored.

Commits of the executions of one process share statements (`postgres.commit`), and statements are sent by psycopg
without threads, on any event loop (`postgres.link`). It needs sessions: behind a pooler that hands a connection on
after each transaction, its settings and prepared statements would be somebody else's.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Self

from anyio.lowlevel import RunVar, checkpoint

from flat.backends.checks import check_birth, check_commit, check_signal, check_text, readable
from flat.backends.liveness import describe, may_take_over
from flat.backends.postgres.answers import Answer, Rows
from flat.backends.postgres.commit import RELEASE, Lane, Send, Start, Step, Take, birth_facts, new_stamp
from flat.backends.postgres.names import key, maybe_key
from flat.backends.postgres.schema import STORE, open_database
from flat.backends.postgres.signals import (
    BURY,
    FAN_OUT,
    KNOWN,
    READY,
    REVIVE,
    SPEND,
    dead_letters,
    dead_of,
    listing,
    signal_of,
)
from flat.backends.postgres.trigger import listening, wake
from flat.backends.postgres.url import Address
from flat.backends.protocols import Birth, Commit, DeadSignal, Execution, Lease, Owner, Signal, Stored
from flat.backends.rows import execution_of
from flat.backends.sweeping import Kind
from flat.backends.triggers import Woken
from flat.errors import ExecutionBusy, ExecutionNotFound

SELECT = """
SELECT e.id, e.name, e.kind, e.program, e.status, e.seq, e.created_at, e.updated_at, e.parent, e.wake_at, e.channels,
       e.owner, e.token, e.num
"""
ONE = SELECT + "FROM executions e WHERE e.key = $1"
READY_ROWS = READY + SELECT + "FROM due r JOIN executions e ON e.num = r.num ORDER BY r.since, r.num"
# One statement sees one moment: the columns, the bodies from the last base on, and the log up to there.
LOAD = f"""
WITH e AS ({ONE}), wanted (seq) AS (SELECT coalesce($2::int, seq) FROM e),
base (seq) AS (SELECT b.seq FROM bodies b WHERE b.num = (SELECT num FROM e) AND b.seq <= (SELECT seq FROM wanted)
               AND b.base ORDER BY b.seq DESC LIMIT 1)
SELECT e.*, b.at, b.row_kind, b.body FROM e CROSS JOIN LATERAL (
    SELECT b.seq AS at, 0 AS row_kind, 0 AS place, b.body FROM bodies b
    WHERE b.num = e.num AND b.seq BETWEEN (SELECT seq FROM base) AND (SELECT seq FROM wanted)
    UNION ALL
    SELECT l.seq, 1, l.place, l.body FROM log l WHERE l.num = e.num AND l.seq <= (SELECT seq FROM wanted)
) AS b WHERE (SELECT seq FROM wanted) BETWEEN 0 AND e.seq ORDER BY b.row_kind, b.at, b.place
"""
BODIES = """
SELECT b.seq, b.base, b.body FROM executions e JOIN bodies b ON b.num = e.num WHERE e.key = $1 ORDER BY b.seq
"""
CREATE = "SELECT bear($1, $2, $3, NULL, NULL)"
BEAT = "SELECT beat($1, $2, $3, $4, $5, $6, $7, $8)"
FORGET_OWNERS = "DELETE FROM owners WHERE seen + ttl < $1"
HOLDER = """
SELECT e.token, e.owner, o.host, o.pid, o.boot, o.started, o.seen, o.ttl
FROM executions e LEFT JOIN owners o ON o.key = e.owner_key WHERE e.key = $1
"""
CANCEL = "UPDATE executions SET cancel = true WHERE key = $1 RETURNING 1"
CANCEL_REQUESTED = "SELECT id FROM executions WHERE cancel AND owner_key = $1 ORDER BY num"
DELETE = """
WITH gone AS (DELETE FROM executions WHERE num = $1 RETURNING num),
bodies_gone AS (DELETE FROM bodies WHERE num IN (SELECT num FROM gone)),
log_gone AS (DELETE FROM log WHERE num IN (SELECT num FROM gone)),
waits_gone AS (DELETE FROM waits WHERE num IN (SELECT num FROM gone))
SELECT num FROM gone
"""
KEPT = """
SELECT encode(key, 'hex') FROM kept
WHERE kind = $1 AND octet_length(key) = 32 AND (kind = 'b' OR substring(body from 1 for 10) = '{"origin":'::bytea)
"""
DROP = """
DELETE FROM kept WHERE kind = $1 AND key IN (SELECT decode(k, 'hex') FROM unnest(string_to_array($2, ',')) AS k)
"""
DROPPED_AT_ONCE = 1000
"""Blobs or configs that one statement removes."""
KEEP = "INSERT INTO kept VALUES ('c', $1, $2) ON CONFLICT DO NOTHING"
FETCH = "SELECT body FROM kept WHERE kind = $1 AND key = $2"

PAGE = 256
"""Executions that `find` reads at a time."""
FORGET_OWNERS_AFTER = 86_400.0
"""Seconds since the last lease of an owner ended."""


class PostgresStore:
    """A durable store in a PostgreSQL database: `PostgresStore("postgresql://user@host/db?schema=flat")`."""

    def __init__(self, address: str | Address) -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        self._database = open_database(self.address, STORE)
        self._lanes = RunVar[Lane](f"writes of {self.address.place}")
        self._heartbeats: dict[str, tuple[float, float]] = {}
        self._configs: set[str] = set()

    def __repr__(self) -> str:
        return f"PostgresStore({str(self.address)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._database.close()

    # A trigger of its own: whoever sends a signal has woken the listeners, on whatever host.

    async def notify(self, channel: str) -> None:
        await wake(self._database, channel)

    def listen(self) -> AbstractAsyncContextManager[Woken]:
        return listening(self._database)

    async def _rows(self, doing: str, statement: str, *values: Any) -> Rows:
        return await self._database.rows(doing, statement, *values)

    # Commits

    def _lane(self) -> Lane:
        try:
            return self._lanes.get()
        except LookupError:
            lane = Lane(self._database)
            self._lanes.set(lane)
            return lane

    async def commit(self, commit: Commit) -> None:
        check_commit(commit)
        await self._lane().write(Step(commit))

    # Births and leases

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        rows = await self._rows("creating an execution", CREATE, *birth_facts(birth), new_stamp())
        return bool(rows[0][0])

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        start = Start(birth, owner, None if self._is_fresh(owner, now, ttl) else (now, ttl))
        await self._lane().write(start)
        if start.beat is not None:
            self._heartbeats[owner.owner] = start.beat
        if not start.token:
            return None
        return Lease(execution_id=birth.execution.execution_id, owner=owner.owner, token=start.token)

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        gone = -1
        while True:
            token = await self._acquire(execution_id, owner, gone, now, ttl)
            if token is not None:
                return Lease(execution_id=execution_id, owner=owner.owner, token=token)
            rows = await self._rows("looking at an owner", HOLDER, key(execution_id))
            if not rows:
                raise ExecutionNotFound(execution_id)
            gone, name, *facts, seen, lasting = rows[0]
            if name is None or seen is None:
                # Given back just now.
                continue
            host, pid, boot, started = facts
            holder = Owner(owner=name, host=host, pid=pid, boot=boot, started=started)
            if not may_take_over(holder, seen=seen, ttl=lasting, now=now):
                left = f"its lease ends in {seen + lasting - now:.0f} s unless it is kept up"
                raise ExecutionBusy(execution_id, describe(holder), left)

    async def _acquire(
        self, execution_id: str, owner: Owner, gone: int, now: float, ttl: float
    ) -> int | None:
        """The new token, or None when somebody else holds it. `gone`: the token of a holder that is dead."""
        beat = None if self._is_fresh(owner, now, ttl) else (now, ttl)
        take = Take(execution_id, owner, gone, beat)
        await self._lane().write(take)
        if beat is not None:
            self._heartbeats[owner.owner] = beat
        return take.token or None

    def _is_fresh(self, owner: Owner, now: float, ttl: float) -> bool:
        """True when the owner's row needs no write: it was written a moment ago for another execution."""
        seen, kept_for = self._heartbeats.get(owner.owner, (0.0, -1.0))
        return kept_for == ttl and seen <= now < seen + ttl / 4

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        if owner.owner not in self._heartbeats:
            await self._rows("forgetting owners", FORGET_OWNERS, now - FORGET_OWNERS_AFTER)
        who = (key(owner.owner), owner.owner, owner.host, owner.pid, owner.boot, owner.started)
        await self._rows("sending a heartbeat", BEAT, *who, now, ttl)
        self._heartbeats[owner.owner] = (now, ttl)
        await self._lane().disown()

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        rows = await self._rows("looking at an owner", HOLDER, key(execution_id))
        if not rows or rows[0][1] is None:
            return False
        _, name, host, pid, boot, started, seen, ttl = rows[0]
        if seen is None:
            return True
        holder = Owner(owner=name, host=host, pid=pid, boot=boot, started=started)
        return may_take_over(holder, seen=seen, ttl=ttl, now=now)

    async def release(self, lease: Lease) -> None:
        await self._rows("releasing an execution", RELEASE, key(lease.execution_id), lease.token)

    async def request_cancel(self, execution_id: str) -> bool:
        return bool(await self._rows("requesting a cancellation", CANCEL, key(execution_id)))

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        return [row[0] for row in await self._rows("looking for requests", CANCEL_REQUESTED, key(owner))]

    async def delete(self, execution_id: str) -> bool:
        # By its number, so that a repetition does not delete one that was born under the same id meanwhile.
        rows = await self._rows("deleting an execution", ONE, key(execution_id))
        if not rows:
            return False
        answer = Answer()
        await self._database.ask(answer, "deleting an execution", DELETE, (rows[0][-1],))
        return bool(answer.rows) or answer.repeated

    # Reading

    async def get(self, execution_id: str) -> Execution | None:
        rows = await self._rows("reading an execution", ONE, key(execution_id))
        return _execution(rows[0]) if rows else None

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        rows = await self._rows("loading an execution", LOAD, key(execution_id), at)
        if not rows:
            return None
        bodies = [(row[-3], row[-1]) for row in rows if row[-2] == 0]
        log = [row[-1] for row in rows if row[-2] == 1]
        return Stored(execution=_execution(rows[0]), bodies=bodies, log=log)

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        return [
            (seq, base, body) for seq, base, body in await self._rows("reading", BODIES, key(execution_id))
        ]

    async def find(
        self,
        *,
        status: str | None = None,
        channel: str | None = None,
        due: float | None = None,
        parent: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Execution]:
        conditions = {
            "e.status": ("=", status), "e.parent_key": ("=", maybe_key(parent)), "e.wake_at": ("<=", due),
            "w.channel_key": ("=", maybe_key(channel)),
        }  # fmt: skip
        given = {name: pair for name, pair in conditions.items() if pair[1] is not None}
        tests = [f"{name} {sign} ${place}" for place, (name, (sign, _)) in enumerate(given.items(), 3)]
        source = "executions e" if channel is None else "waits w JOIN executions e ON e.num = w.num"
        query = f"{SELECT} FROM {source} WHERE {' AND '.join((*tests, 'e.num < $1'))} ORDER BY e.num DESC LIMIT $2"
        below, left = 1 << 62, limit
        while left is None or left > 0:
            wanted = PAGE if left is None else min(PAGE, left)
            values = [value for _, value in given.values()]
            rows = await self._rows("searching", query, below, wanted, *values)
            for row in rows:
                yield _execution(row)
            if len(rows) < wanted:
                return
            below = rows[-1][-1]
            left = None if left is None else left - wanted
            await checkpoint()

    # Signals, configs, blobs

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        return [
            _execution(row) for row in await self._rows("looking for who is ready", READY_ROWS, now, limit)
        ]

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        send = Send(signal)
        await self._lane().write(send)
        return send.new

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        query, values = listing(channel, to, limit)
        return [signal_of(row) for row in await self._rows("reading signals", query, *values)]

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        for execution_id in to:
            check_text("to", execution_id)
        addressees = list(dict.fromkeys(to))
        if not addressees:
            return False
        ids, stamp = [f"{signal_id}@{execution_id}" for execution_id in addressees], new_stamp()
        keys = [key(execution_id) for execution_id in addressees]
        while True:
            values = (key(signal_id), stamp, addressees, keys, ids, [key(name) for name in ids])
            ((result,),) = await self._rows("fanning a signal out", FAN_OUT, *values)
            if result != 2:
                return bool(result)
            # Somebody sent one of that very name before, or gave two copies the same.
            known = await self._rows("reading signals", KNOWN, [key(name) for name in ids])
            taken = {name for (name,) in known}
            ids = [f"{name}@" if name in taken else name for name in ids]

    async def take(self, signal_id: str) -> bool:
        rows = await self._rows("taking a signal", SPEND, key(signal_id), new_stamp())
        return bool(rows[0][0])

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        values = (key(signal_id), new_stamp(), readable(reason), at)
        return bool(await self._rows("burying a signal", BURY, *values))

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        query, values = dead_letters(channel, limit)
        return [dead_of(row) for row in await self._rows("reading dead letters", query, *values)]

    async def revive(self, signal_id: str) -> bool:
        return bool(await self._rows("reviving a signal", REVIVE, key(signal_id), new_stamp()))

    async def put_config(self, digest: str, text: bytes) -> None:
        # Configs are hardly ever taken out again, and every start of a machine puts the same one.
        if digest not in self._configs:
            await self._rows("storing a config", KEEP, key(digest), text)
            self._configs.add(digest)

    async def get_config(self, digest: str) -> bytes | None:
        text = await self._fetch("c", digest)
        if text is not None:
            self._configs.add(digest)
        else:
            self._configs.discard(digest)
        return text

    async def get_blob(self, digest: str) -> bytes | None:
        return await self._fetch("b", digest)

    async def kept(self, kind: Kind) -> Sequence[str]:
        # Digests are too long to be keys themselves: the store knows their hashes.
        return [row[0] for row in await self._rows(f"listing {kind}s", KEPT, kind[0])]

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        spared = {key(digest).hex() for digest in but}
        removed = [name for name in names if name not in spared]
        for first in range(0, len(removed), DROPPED_AT_ONCE):
            some = ",".join(removed[first : first + DROPPED_AT_ONCE])
            await self._rows(f"removing {kind}s", DROP, kind[0], some)
        self._configs.clear()
        return len(removed)

    async def _fetch(self, kind: str, digest: str) -> bytes | None:
        rows = await self._rows("reading", FETCH, kind, key(digest))
        return rows[0][0] if rows else None


def _execution(row: Sequence[Any]) -> Execution:
    return execution_of(row, tuple(row[10]))
