"""Commits and starts on their way into a PostgreSQL store: several share a statement, and nobody waits for it.

One statement with writes is under way at a time for each event loop. What is to be written meanwhile waits, and
goes together in the next one: under load a transaction, with its wait for the disk, is shared by as many executions
as there are. Whoever finds nothing under way, or is woken by the one before, *leads*: it sends the statement for
everybody, and tells each what became of its own.

No task of ours runs in the background. A leader that is cancelled lets its statement finish (`postgres.link`); if
the outcome cannot be known, the next leader sends the same members again, which is safe, because each has a stamp
by which the database knows that it is stored already.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import anyio
import orjson
from anyio.lowlevel import checkpoint

from flat.backends.checks import CANCELLED, is_plain
from flat.backends.postgres.answers import GRACE, Answer, Rows
from flat.backends.postgres.names import Document, escape, key
from flat.backends.postgres.pool import Database
from flat.backends.protocols import Birth, Commit, Head, Owner, Signal
from flat.errors import BackendError, NotStorable, SignalGone, StaleSnapshot

STEPS = """
WITH input AS (
    SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::int[], $4::float8[], $5::boolean[], $6::bigint[], $7::bytea[])
    AS i (key, token, seq, at, base, stamp, body)
), moved AS (
    UPDATE executions e SET seq = i.seq, updated_at = i.at FROM input i
    WHERE e.key = i.key AND e.token = i.token AND e.seq = i.seq - 1
    RETURNING e.num, i.seq, i.base, i.stamp, i.body
)
INSERT INTO bodies SELECT num, seq, base, stamp, body FROM moved RETURNING stamp
"""
STEP = """
WITH moved AS (
    UPDATE executions SET seq = $3, updated_at = $4 WHERE key = $1 AND token = $2 AND seq = $3::int - 1 RETURNING num
)
INSERT INTO bodies SELECT num, $3, $5, $6, $7 FROM moved RETURNING stamp
"""
STORED = """
SELECT b.stamp FROM unnest($1::bytea[], $2::int[], $3::bigint[]) AS i (key, seq, stamp)
JOIN executions e ON e.key = i.key JOIN bodies b ON b.num = e.num AND b.seq = i.seq AND b.stamp = i.stamp
"""
WRITE = "SELECT write($1, $2)"
DISOWN = """
UPDATE executions SET owner = NULL, owner_key = NULL, token = nextval('tokens')
WHERE key = $1 AND stamp = $2 AND owner_key = $3 AND seq = 0 AND $4::bigint IN (0, token)
"""
RELEASE = """
UPDATE executions SET owner = NULL, owner_key = NULL, token = nextval('tokens') WHERE key = $1 AND token = $2
"""

log = logging.getLogger("flat")

TOGETHER = 128
"""Members of one statement at most."""
STALE, GONE = 0, -1


def new_stamp() -> int:
    """A number that nobody else will think of."""
    return secrets.randbits(63)


class Member:
    """Something to be written, and what became of it."""

    __slots__ = ("abandoned", "done", "error", "stamp", "woken")

    def __init__(self) -> None:
        self.stamp = new_stamp()
        self.error: Exception | None = None
        self.done = self.abandoned = False
        self.woken: anyio.Event | None = None


class Step(Member):
    """A commit."""

    __slots__ = ("commit",)

    def __init__(self, commit: Commit) -> None:
        super().__init__()
        self.commit = commit


class Start(Member):
    """A `begin`; with `beat`, the owner's heartbeat is written with it. `token` is 0 if the id was taken."""

    __slots__ = ("beat", "birth", "owner", "token")

    def __init__(self, birth: Birth, owner: Owner, beat: tuple[float, float] | None) -> None:
        super().__init__()
        self.birth, self.owner, self.beat, self.token = birth, owner, beat, 0


class Take(Member):
    """An `acquire`; `gone` is the token of a holder that is dead. `token` is 0 if somebody else holds it."""

    __slots__ = ("beat", "execution_id", "gone", "owner", "token")

    def __init__(self, execution_id: str, owner: Owner, gone: int, beat: tuple[float, float] | None) -> None:
        super().__init__()
        self.execution_id, self.owner, self.gone, self.beat, self.token = execution_id, owner, gone, beat, 0


class Send(Member):
    """A signal; `new` is False if its id was sent before."""

    __slots__ = ("new", "signal")

    def __init__(self, signal: Signal) -> None:
        super().__init__()
        self.signal, self.new = signal, False


class Lane:
    """The writes of one event loop, in the order in which they came."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: list[Member] = []
        self._leader: Member | None = None
        self._crowd = 0
        self._orphans: list[Start | Take] = []

    async def write(self, member: Member) -> None:
        """Store a member, or raise what it was refused with."""
        self._waiting.append(member)
        if self._leader is not None:
            member.woken = anyio.Event()
            try:
                await member.woken.wait()
            except BaseException:
                self._withdraw(member)
                await self.disown()
                raise
        else:
            self._leader = member
        if not member.done:
            await self._lead(member)
        if member.error is not None:
            raise member.error

    def _withdraw(self, member: Member) -> None:
        """A task was cancelled while it waited: nothing of it is sent if that can still be helped."""
        if member in self._waiting:
            self._waiting.remove(member)
        elif member.done:
            self._orphan(member)
        member.abandoned = True
        if self._leader is member:
            self._hand_on()

    async def _lead(self, member: Member) -> None:
        try:
            if self._crowd > 1:
                # Whoever was resumed in the same turn of the event loop comes along.
                await checkpoint()
            members = self._waiting[:TOGETHER]
            del self._waiting[:TOGETHER]
            self._crowd = len(members) + len(self._waiting)
            await self._store(members, member)
        except BaseException:
            if member in self._waiting:
                self._waiting.remove(member)
            raise
        finally:
            self._hand_on()
            await self.disown()

    def _hand_on(self) -> None:
        self._leader = self._waiting[0] if self._waiting else None
        if self._leader is not None and self._leader.woken is not None:
            self._leader.woken.set()

    async def _store(self, members: list[Member], leader: Member) -> None:
        plain = all(isinstance(member, Step) and is_plain(member.commit) for member in members)
        try:
            if plain:
                await self._steps([member for member in members if isinstance(member, Step)])
            else:
                await self._write(members)
        except BackendError as error:
            for member in members:
                # One exception object raised in many tasks would collect all their tracebacks.
                member.error = error if member is leader else type(error)(*error.args)
        except BaseException:
            # What nobody can tell is sent again by the next leader.
            leader.abandoned = True
            self._waiting[:0] = [one for one in members if not (one.done or one.abandoned)]
            raise
        finally:
            for member in members:
                member.done = member.done or member.error is not None
                if member.abandoned:
                    self._orphan(member)
                elif member.done and member.woken is not None:
                    member.woken.set()

    def _orphan(self, member: Member) -> None:
        """Nobody will ever hear of the lease that came of this, and our heartbeats would keep it."""
        if (isinstance(member, Start) and (member.token or not member.done)) or (
            isinstance(member, Take) and member.token
        ):
            self._orphans.append(member)

    async def disown(self) -> None:
        """Give the leases back that came of what had been cancelled."""
        while self._orphans:
            orphan = self._orphans.pop()
            values: tuple[Any, ...] = ()
            if isinstance(orphan, Start):
                name, statement = orphan.birth.execution.execution_id, DISOWN
                values = (key(name), orphan.stamp, key(orphan.owner.owner), orphan.token)
            else:
                statement, values = RELEASE, (key(orphan.execution_id), orphan.token)
            answer = Answer()
            try:
                with anyio.move_on_after(GRACE, shield=True):
                    await self._database.ask(answer, "giving a lease back", statement, values)
            except BackendError as error:
                log.warning("a lease that nobody holds could not be given back yet: %s", error)
            if answer.rows is None:
                # Later, then: with the next heartbeat.
                self._orphans.append(orphan)
                return

    async def _steps(self, members: Sequence[Step]) -> None:
        """Bodies and nothing else."""
        rows = [_columns(member) for member in members]
        statement, values = STEP, rows[0]
        if len(rows) > 1:
            statement, values = STEPS, tuple(map(list, zip(*rows, strict=True)))
        doing, answer = f"storing {len(members)} commits", Answer()
        try:
            await self._database.ask(answer, doing, statement, values, in_line=False)
        finally:
            self._settle_steps(members, answer.rows)
        if missing := [member for member in members if not member.done]:
            keys, _, seqs, _, _, stamps, _ = map(list, zip(*rows, strict=True))
            stored = await self._database.rows(doing, STORED, keys, seqs, stamps)
            self._settle_steps(missing, stored)
            for member in missing:
                if not member.done:
                    member.error = StaleSnapshot(member.commit.lease.execution_id, member.commit.seq)

    @staticmethod
    def _settle_steps(members: Iterable[Step], rows: Rows | None) -> None:
        stored = {stamp for (stamp,) in rows or ()}
        for member in members:
            member.done = member.stamp in stored

    async def _write(self, members: Sequence[Member]) -> None:
        """Anything."""
        document, items = _Writes(), list[Member]()
        for member in members:
            try:
                document.add(member)
                items.append(member)
            except NotStorable as error:
                member.error = error
        if not items:
            return
        doing, answer = f"storing {len(items)} writes", Answer()
        values = (document.json(), document.items)
        try:
            await self._database.ask(answer, doing, WRITE, values, in_line=False)
        finally:
            if answer.rows:
                self._settle(items, answer.rows[0][0])

    @staticmethod
    def _settle(members: Iterable[Member], results: Iterable[int]) -> None:
        for member, result in zip(members, results, strict=True):
            member.done = True
            if isinstance(member, Start | Take):
                member.token = result
            elif isinstance(member, Send):
                member.new = bool(result)
            elif isinstance(member, Step):
                execution_id = member.commit.lease.execution_id
                if result == GONE:
                    member.error = SignalGone(execution_id)
                elif result == STALE:
                    member.error = StaleSnapshot(execution_id, member.commit.seq)


def _columns(member: Step) -> tuple[Any, ...]:
    """What STEP takes for a commit."""
    lease, seq, at, body, base, *_ = member.commit
    return key(lease.execution_id), lease.token, seq, float(at), bool(base), member.stamp, body


class _Writes:
    """Members as `write` takes them: facts that point into an array of bytes."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self._facts: list[bytes] = []

    def json(self) -> Document:
        return Document(b"[%b]" % b",".join(self._facts))

    def add(self, member: Member) -> None:
        """Take a member in. Raises `NotStorable`, and is as before."""
        size = len(self.items)
        try:
            facts: dict[str, Any] = {}
            if isinstance(member, Step):
                facts = self._step(member.commit)
            elif isinstance(member, Start):
                facts = {"birth": self.birth(member.birth), **self._owner(member.owner, member.beat)}
            elif isinstance(member, Take):
                facts = {"acquire": self._put(key(member.execution_id)), "gone": member.gone}
                facts |= self._owner(member.owner, member.beat)
            elif isinstance(member, Send):
                facts = {"signal": self._signal(member.signal)}
            self._facts.append(orjson.dumps({**facts, "stamp": member.stamp}))
        except orjson.JSONEncodeError as error:
            del self.items[size:]
            raise NotStorable("name", "text with half a character") from error
        except NotStorable:
            del self.items[size:]
            raise

    def _put(self, item: bytes) -> int:
        self.items.append(item)
        return len(self.items)

    def _name(self, path: str, text: str | None) -> dict[str, Any]:
        """A name and what it is looked up by."""
        return {} if text is None else {path: escape(text), f"{path}_key": self._put(key(text))}

    def _channels(self, channels: Sequence[str]) -> dict[str, Any]:
        facts: dict[str, Any] = {"channels": [escape(channel) for channel in channels]}
        if channels:
            facts["waits"] = [self._put(key(channel)) for channel in channels]
        return facts

    def _step(self, commit: Commit) -> dict[str, Any]:
        lease = commit.lease
        facts: dict[str, Any] = {
            "key": self._put(key(lease.execution_id)), "token": lease.token, "seq": commit.seq, "at": commit.at,
            "base": bool(commit.base), "body": self._put(commit.body),
        }  # fmt: skip
        if commit.head is not None:
            facts["head"] = self._head(commit.head)
        if commit.log:
            facts["log"] = [self._put(row) for row in commit.log]
        if commit.blobs:
            facts["blobs"] = self._blobs(commit.blobs)
        if commit.consume:
            facts["consume"] = [self._put(key(signal_id)) for signal_id in commit.consume]
        if commit.send:
            facts["send"] = [self._signal(signal) for signal in commit.send]
        if commit.births:
            facts["births"] = [self.birth(birth) for birth in commit.births]
        if commit.release:
            facts["release"] = True
        return facts

    def _head(self, head: Head) -> dict[str, Any]:
        program = None if head.program is None else escape(head.program)
        return {
            "status": escape(head.status), "wake_at": head.wake_at, "program": program,
            "answered": head.status == CANCELLED, **self._channels(head.channels),
        }  # fmt: skip

    def _blobs(self, blobs: Mapping[str, bytes]) -> list[tuple[int, int]]:
        return [(self._put(key(digest)), self._put(body)) for digest, body in blobs.items()]

    def _signal(self, signal: Signal) -> dict[str, Any]:
        return {
            "id": escape(signal.signal_id), "key": self._put(key(signal.signal_id)),
            "body": self._put(signal.body), "at": signal.created_at,
            **self._name("channel", signal.channel), **self._name("to", signal.to),
        }  # fmt: skip

    def _owner(self, owner: Owner, beat: tuple[float, float] | None) -> dict[str, Any]:
        facts = self._name("owner", owner.owner)
        if beat is not None:
            seen, ttl = beat
            facts["beat"] = {
                "host": escape(owner.host), "pid": owner.pid, "boot": escape(owner.boot),
                "started": escape(owner.started), "seen": seen, "ttl": ttl,
            }  # fmt: skip
        return facts

    def birth(self, birth: Birth) -> dict[str, Any]:
        new = birth.execution
        return {
            "id": escape(new.execution_id), "key": self._put(key(new.execution_id)), "name": escape(new.name),
            "kind": escape(new.kind), "program": escape(new.program), "status": escape(new.status),
            "created_at": new.created_at, "updated_at": new.updated_at, "wake_at": new.wake_at,
            "body": self._put(birth.body), **self._name("parent", new.parent), **self._channels(new.channels),
        }  # fmt: skip


def birth_facts(birth: Birth) -> tuple[Document, list[bytes]]:
    """A birth as the function `bear` takes it."""
    document = _Writes()
    try:
        return Document(orjson.dumps(document.birth(birth))), document.items
    except orjson.JSONEncodeError as error:
        raise NotStorable("name", "text with half a character") from error
