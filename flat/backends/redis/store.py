"""A store in a Redis or Valkey server: for any number of hosts that share executions.

    store = RedisStore("redis://localhost:6379/0?prefix=flat")
    store = RedisStore("rediss://:${env:REDIS_PASSWORD}@redis.example:6380/0?fsync=true")

**What is guaranteed.** Every method is one Lua script, which Redis runs from beginning to end with nothing in between:
a commit with its body, columns, log rows, blobs, consumed and sent signals, births and release is stored whole or not
at all, if `seq` and the lease's token fit, in one round trip. When a connection breaks, the call is made again on a new
one, and the server recognises what it has done already, so that it is done once. Only when no server answers within
`timeout` seconds (5) does a method raise without knowing; its error says so, and whoever resumes reads what is stored.

**How long it is kept** is for the server to say. With `appendonly yes` and `appendfsync everysec`, Redis's usual
setting, the death of our process or of the server's loses nothing, and a power failure up to a second of commits, the
newest ones, never half of one; `appendfsync always` loses none. Without an append-only file a restart loses whatever
came after the last dump, and a failover to a replica whatever had not reached it. `?fsync=true` makes each commit
wait until the append-only file is on disk (WAITAOF: Valkey, Redis from 7.2), `?replicas=N` until N replicas have it;
executions that commit at the same time wait together. A server that evicts any key when its memory is full is refused.

Not supported: a cluster, whose scripts may touch keys of one slot only. All executions live in the server's memory,
with their whole history, until they are deleted. Times are those of the callers; the server's clock is not asked.

Commits that are ready together share a round trip; `connection.py` says how, and `lua.py` how things lie.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from types import TracebackType
from typing import Any, Self

import anyio
import orjson

from flat.backends.checks import (
    CANCELLED,
    check_birth,
    check_commit,
    check_signal,
    check_text,
    is_plain,
    readable,
)
from flat.backends.liveness import describe, is_gone
from flat.backends.protocols import Birth, Commit, DeadSignal, Execution, Lease, Owner, Signal, Stored
from flat.backends.redis import reading_lua as reading
from flat.backends.redis import signals_lua as letters
from flat.backends.redis import writing_lua as writing
from flat.backends.redis.address import Address
from flat.backends.redis.connection import Client, Script, Word
from flat.backends.redis.trigger import RedisTrigger
from flat.backends.sweeping import DIGEST_LENGTH, Kind
from flat.backends.triggers import Woken
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, SignalGone, StaleSnapshot

PAGE = 256
"""Executions that `find` reads at a time."""


class RedisStore:
    """Executions in a Redis server: `RedisStore("redis://localhost:6379/0")`."""

    def __init__(self, address: str | Address) -> None:
        self._client = Client(address)
        self._configs: set[str] = set()

    @property
    def address(self) -> Address:
        return self._client.address

    def __repr__(self) -> str:
        return f"RedisStore({str(self.address)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._client.close()

    def listen(self) -> AbstractAsyncContextManager[Woken]:
        """Hear of every signal that is sent from now on, whoever sends it: see `backends.triggers`."""
        return RedisTrigger(self.address).listen()

    async def notify(self, channel: str) -> None:
        """Wake who listens, though no signal was stored: what stores one here does so by itself."""
        text = channel.encode(errors="backslashreplace")
        with suppress(BackendError):  # a lost one costs a delay at most
            await self._client.command("notifying", "PUBLISH", f"{self.address.prefix}:wake", text)

    # Commits

    async def commit(self, commit: Commit) -> None:
        lease, seq = commit.lease, commit.seq
        body = (
            _text("execution_id", lease.execution_id), seq, lease.token, commit.at,
            "+" if commit.base else "-", commit.body,
        )  # fmt: skip
        if is_plain(commit):
            found = await self._client.run("storing a commit", writing.APPEND, *body)
        else:
            check_commit(commit)
            found = await self._client.run("storing a commit", writing.COMMIT, *body, *_rest(commit))
        if found == b"gone":
            raise SignalGone(lease.execution_id)
        if found != b"stored":
            raise StaleSnapshot(lease.execution_id, seq)

    # Births and leases

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        return await self._tell("creating an execution", writing.CREATE, *_birth(birth))

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        execution_id = birth.execution.execution_id
        token = await self._own(
            "starting an execution", execution_id, writing.BEGIN, *_heard_of(owner, now, ttl), *_birth(birth)
        )
        if token == b"":
            return None
        return Lease(execution_id=execution_id, owner=owner.owner, token=int(token))

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        key, me, gone = _text("execution_id", execution_id), _heard_of(owner, now, ttl), b""
        while True:
            found = await self._own("acquiring an execution", execution_id, writing.ACQUIRE, key, *me, gone)
            if found[0] == b"missing":
                raise ExecutionNotFound(execution_id)
            if found[0] == b"yours":
                return Lease(execution_id=execution_id, owner=owner.owner, token=int(found[1]))
            holder, ends = _holder(found[1])
            if found[2] == gone or not is_gone(holder):
                left = f"its lease ends in {ends - now:.0f} s unless it is kept up"
                raise ExecutionBusy(execution_id, describe(holder), left)
            # A process of this host that is no more: its lease is ours, if it is still that one.
            gone = found[2]

    async def _own(self, doing: str, execution_id: str, script: Script, *values: Word) -> Any:
        """Run a script that acquires a lease. If we are interrupted, nobody is left owning it."""
        number = self._client.number()
        try:
            return await self._client.run(doing, script, *values, number=number)
        except BaseException as error:
            if not isinstance(error, BackendError):
                with anyio.move_on_after(self.address.timeout, shield=True), suppress(BackendError):
                    await self._client.run("undoing it", writing.UNDO, execution_id, b".".join(number))
            raise

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        await self._client.run("sending a heartbeat", writing.BEAT, *_heard_of(owner, now, ttl))

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        key = _text("execution_id", execution_id)
        found = await self._client.run("looking for an owner", reading.HOLDER, key)
        if not found:
            return False
        if found[1] is None:
            return True
        holder, ends = _holder(found[1])
        return now > ends or is_gone(holder)

    async def release(self, lease: Lease) -> None:
        key = _text("execution_id", lease.execution_id)
        await self._client.run("releasing an execution", writing.RELEASE, key, lease.token)

    async def request_cancel(self, execution_id: str) -> bool:
        key = _text("execution_id", execution_id)
        return await self._tell("requesting a cancellation", writing.REQUEST_CANCEL, key)

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        found = await self._client.run(
            "looking for cancellations", reading.CANCEL_REQUESTED, _text("owner", owner)
        )
        return [name.decode() for name in found if name is not None]

    async def delete(self, execution_id: str) -> bool:
        return await self._tell("deleting an execution", writing.DELETE, _text("execution_id", execution_id))

    # Reading

    async def get(self, execution_id: str) -> Execution | None:
        row = await self._client.run("reading an execution", reading.GET, _text("execution_id", execution_id))
        return _execution(row) if row else None

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        key = _text("execution_id", execution_id)
        found = await self._client.run("loading an execution", reading.LOAD, key, at)
        if not found:
            return None
        row, start, wanted, entries, log = found
        rows = [line.partition(b":") for line in log]
        return Stored(
            execution=_execution(row),
            bodies=[(start + n, entry.partition(b":")[2]) for n, entry in enumerate(entries)],
            log=[body for seq, _, body in rows if int(seq) <= wanted],
        )

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        key = _text("execution_id", execution_id)
        entries = await self._client.run("reading an execution", reading.BODIES, key)
        return [(seq, entry.startswith(b"+"), entry.partition(b":")[2]) for seq, entry in enumerate(entries)]

    async def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        conditions = (_given("status", status), _given("channel", channel), _given("parent", parent), due)
        below, left = b"+inf", limit
        while left is None or left > 0:
            page = PAGE if left is None else min(PAGE, left)
            below, rows = await self._client.run("finding executions", reading.FIND, *conditions, below, page)
            for row in rows:
                yield _execution(row)
            if below == b"":
                return
            left = None if left is None else left - len(rows)

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        most = -1 if limit is None else limit
        rows = await self._client.run("looking for who is ready", reading.READY, now, most)
        return [_execution(row) for row in rows]

    # Signals

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        return await self._tell("sending a signal", letters.SEND, *_signal(signal))

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        return [_signal_of(row) for row in await self._letters("open", channel, to, limit)]

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        return [
            DeadSignal(signal=_signal_of(row), reason=row[5].decode(), at=float(row[6]))
            for row in await self._letters("dead", channel, None, limit)
        ]

    async def _letters(
        self, which: str, channel: str | None, to: str | None, limit: int | None
    ) -> list[list[Any]]:
        conditions = (_given("channel", channel), _given("to", to), -1 if limit is None else limit)
        found: list[list[Any]] = await self._client.run(
            "reading signals", letters.LISTING, which, *conditions
        )
        return found

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        names = [_text("to", name) for name in dict.fromkeys(to)]
        key = _text("signal_id", signal_id)
        return await self._tell("fanning a signal out", letters.FAN_OUT, key, len(names), *names)

    async def take(self, signal_id: str) -> bool:
        return await self._tell("taking a signal", letters.TAKE, _text("signal_id", signal_id))

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        key = _text("signal_id", signal_id)
        return await self._tell("burying a signal", letters.BURY, key, readable(reason), at)

    async def revive(self, signal_id: str) -> bool:
        return await self._tell("reviving a signal", letters.REVIVE, _text("signal_id", signal_id))

    # Configs, blobs

    async def put_config(self, digest: str, text: bytes) -> None:
        # Configs are hardly ever taken out again, and every start of a machine puts the same one.
        if digest not in self._configs:
            await self._hash("storing a config", "HSETNX", "configs", digest, text)
            self._configs.add(digest)

    async def get_config(self, digest: str) -> bytes | None:
        found: bytes | None = await self._hash("reading a config", "HGET", "configs", digest)
        if found is None:
            self._configs.discard(digest)
        return found

    async def get_blob(self, digest: str) -> bytes | None:
        found: bytes | None = await self._hash("reading a blob", "HGET", "blobs", digest)
        return found

    async def kept(self, kind: Kind) -> Sequence[str]:
        key = self._client.prefix + f"{kind}s".encode()
        found = await self._client.command(f"listing {kind}s", "HKEYS", key)
        return [name.decode() for name in found if len(name) == DIGEST_LENGTH]

    async def drop(self, kind: Kind, names: Collection[str], *, but: Collection[str]) -> int:
        removed = [name for name in names if name not in but]
        for name in removed:
            await self._hash(f"removing {kind}s", "HDEL", f"{kind}s", name)
        self._configs.difference_update(removed)
        return len(removed)

    async def _hash(self, doing: str, command: str, name: str, digest: str, *rest: bytes) -> Any:
        key = self._client.prefix + name.encode()
        return await self._client.command(doing, command, key, _text("digest", digest), *rest)

    async def _tell(self, doing: str, script: Script, *values: Word) -> bool:
        return bool(await self._client.run(doing, script, *values) == b"1")


# -- to and from words ------------------------------------------------------------------------------


def _text(path: str, value: str) -> str:
    check_text(path, value)
    return value


def _given(path: str, value: str | None) -> str:
    """A text that may be missing, so that missing and empty differ."""
    return "" if value is None else "=" + _text(path, value)


def _channels(channels: Iterable[str]) -> bytes:
    return orjson.dumps(list(channels))


def _birth(birth: Birth) -> tuple[Word, ...]:
    new = birth.execution
    return (
        new.execution_id, new.name, new.kind, new.program, new.status, new.created_at, new.updated_at,
        _channels(new.channels), _given("parent", new.parent), new.wake_at, birth.body,
    )  # fmt: skip


def _signal(signal: Signal) -> tuple[Word, ...]:
    return signal.signal_id, signal.channel, signal.body, signal.created_at, _given("to", signal.to)


def _rest(commit: Commit) -> list[Word]:
    """What a commit brings besides its body, each list after its length."""
    out: list[Word] = [len(commit.consume), *commit.consume, len(commit.log), *commit.log, len(commit.blobs)]
    for digest, blob in commit.blobs.items():
        out += (_text("digest", digest), blob)
    out.append(len(commit.send))
    for signal in commit.send:
        out += _signal(signal)
    out.append(len(commit.births))
    for birth in commit.births:
        out += _birth(birth)
    if (head := commit.head) is None:
        out.append(0)
    else:
        answers = int(head.status == CANCELLED)
        out += (1, head.status, head.wake_at, _channels(head.channels), head.program, answers)
    out.append(int(commit.release))
    return out


def _heard_of(owner: Owner, now: float, ttl: float) -> tuple[Word, ...]:
    facts = {
        "host": owner.host, "pid": owner.pid, "boot": owner.boot, "started": owner.started,
        "ends": now + ttl, "owner": _text("owner", owner.owner),
    }  # fmt: skip
    return owner.owner, orjson.dumps(facts), now, now + ttl


def _holder(facts: bytes) -> tuple[Owner, float]:
    found = orjson.loads(facts)
    ends = float(found.pop("ends"))
    return Owner(**found), ends


def _execution(row: Sequence[Any]) -> Execution:
    return Execution(
        execution_id=row[0].decode(),
        name=row[1].decode(),
        kind=row[2].decode(),
        program=row[3].decode(),
        status=row[4].decode(),
        seq=int(row[5]),
        created_at=float(row[6]),
        updated_at=float(row[7]),
        parent=None if row[8] is None else row[8].decode(),
        wake_at=None if row[9] is None else float(row[9]),
        channels=tuple(orjson.loads(row[10])),
        owner=None if row[11] is None else row[11].decode(),
        token=int(row[12]),
    )


def _signal_of(row: Sequence[Any]) -> Signal:
    return Signal(
        signal_id=row[0].decode(),
        channel=row[1].decode(),
        body=row[2],
        created_at=float(row[3]),
        to=None if row[4] is None else row[4].decode(),
    )
