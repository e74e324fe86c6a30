"""What the journal of an S3 store amounts to: all columns, signals and leases, in memory, without the values.

It is a store in memory whose bodies are *pointers* into the journal, `entry:offset:length`. Every process that has
applied the same entries has the same replica: nothing in here looks at a clock, at a process, or at anything else than
the entries. Whoever writes an entry has checked before that its operations fit, so that applying them never fails.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import chain, islice
from typing import Any, TypeVar

from flat.backends.memory.signals import Mailbox, _Letter
from flat.backends.memory.store import MemoryStore, _Row
from flat.backends.protocols import Birth, Commit, Execution, Head, Lease, Signal
from flat.backends.s3.pointers import Pointers, pointed, pointer
from flat.backends.sweeping import Kind

T = TypeVar("T")
Op = list[Any]
"""A name and its arguments, as JSON. A value is `[offset, length]` in its entry."""
PAGE = 32
"""Executions that were born one after the other, and are stored as one object in a state."""
CHUNK = 1000
"""Ids of signals, or blobs, likewise."""


class Values:
    """The values of one entry, as they are written."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.size = 0

    def add(self, value: bytes) -> list[int]:
        where = [self.size, len(value)]
        self.parts.append(value)
        self.size += len(value)
        return where


# -- operations, to JSON and back ----------------------------------------------------------------------


def birth_op(birth: Birth, values: Values) -> Op:
    one = birth.execution
    return [
        one.execution_id, one.name, one.kind, one.program, one.status, one.created_at, one.updated_at, one.parent,
        one.wake_at, list(one.channels), values.add(birth.body),
    ]  # fmt: skip


def _birth(op: Op, entry: int) -> Birth:
    *columns, body = op
    return Birth(execution=_columns(columns), body=pointer(entry, body))


def _columns(columns: Sequence[Any]) -> Execution:
    execution_id, name, kind, program, status, created_at, updated_at, parent, wake_at, channels = columns
    return Execution(
        execution_id=execution_id, name=name, kind=kind, program=program, status=status, seq=0,
        created_at=created_at, updated_at=updated_at, parent=parent, wake_at=wake_at, channels=tuple(channels),
    )  # fmt: skip


def signal_op(signal: Signal, values: Values) -> Op:
    return [signal.signal_id, signal.channel, values.add(signal.body), signal.created_at, signal.to]


def _signal(op: Op, entry: int) -> Signal:
    signal_id, channel, body, created_at, to = op
    return Signal(
        signal_id=signal_id, channel=channel, body=pointer(entry, body), created_at=created_at, to=to
    )


def commit_op(commit: Commit, values: Values, known_blobs: Mapping[str, bytes]) -> Op:
    head = commit.head
    return [
        commit.lease.execution_id, commit.lease.token, commit.seq, commit.at, values.add(commit.body), commit.base,
        None if head is None else [head.status, head.wake_at, list(head.channels), head.program],
        [values.add(line) for line in commit.log],
        {digest: values.add(blob) for digest, blob in commit.blobs.items() if digest not in known_blobs},
        list(commit.consume), [signal_op(one, values) for one in commit.send],
        [birth_op(one, values) for one in commit.births], commit.release,
    ]  # fmt: skip


def _commit(op: Op, entry: int) -> Commit:
    execution_id, token, seq, at, body, base, head, log, blobs, consume, send, births, release = op
    return Commit(
        lease=Lease(execution_id=execution_id, owner="", token=token), seq=seq, at=at, body=pointer(entry, body),
        base=base, head=None if head is None else _head(*head), log=[pointer(entry, one) for one in log],
        blobs={digest: pointer(entry, one) for digest, one in blobs.items()}, consume=tuple(consume),
        send=[_signal(one, entry) for one in send], births=[_birth(one, entry) for one in births], release=release,
    )  # fmt: skip


def _head(status: str, wake_at: float | None, channels: list[str], program: str | None) -> Head:
    return Head(status=status, wake_at=wake_at, channels=tuple(channels), program=program)


# -- the replica ----------------------------------------------------------------------------------------


class _Sent(set[str]):
    """The ids of all signals that were ever sent, and the order in which they were."""

    def __init__(self) -> None:
        super().__init__()
        self.order: list[str] = []

    def add(self, name: str, /) -> None:
        if name not in self:
            super().add(name)
            self.order.append(name)


class _Letters(Mailbox):
    """Signals whose bodies are pointers, which are counted."""

    def __init__(self, hold: Callable[[bytes, int], None]) -> None:
        super().__init__()
        self._hold = hold
        self._sent = self.sent = _Sent()

    def _put(self, letter: _Letter) -> None:
        super()._put(letter)
        self._hold(letter.signal.body, 1)

    def _take(self, signal_id: str) -> _Letter:
        letter = super()._take(signal_id)
        self._hold(letter.signal.body, -1)
        return letter

    def put_dead(self, letter: _Letter, reason: str, at: float) -> None:
        self.sent.add(letter.signal_id)
        self._dead[letter.signal_id] = (letter, reason, at)
        self._hold(letter.signal.body, 1)

    def bury(self, signal_id: str, reason: str, at: float) -> bool:
        if signal_id not in self._open:
            return False
        self.put_dead(self._take(signal_id), reason, at)
        return True

    def revive(self, signal_id: str) -> bool:
        if (found := self._dead.get(signal_id)) is not None:
            self._hold(found[0].signal.body, -1)
        return super().revive(signal_id)


class Replica(MemoryStore):
    """A store of pointers, and how many entries of the journal it has applied.

    It counts what points into each entry, and remembers which pages of executions (`PAGE` that were born one after the
    other) have changed: so that emptying entries and storing a state need not look at all there is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.applied = self._since = 0
        self.dropped = 0
        """The last entry that took blobs out, so that pages of blobs are no longer what they were."""
        self._mail = self.mail = _Letters(self._hold)
        self._counts: Counter[int] = Counter()
        self.idle: set[int] = set()
        """Entries that nothing points into, and that are not emptied yet."""
        self._pages: dict[int, dict[str, None]] = {}
        self._changed: dict[int, int] = {}

    def row(self, execution_id: str) -> _Row | None:
        return self._rows.get(execution_id)

    @property
    def configs(self) -> Mapping[str, bytes]:
        return self._configs

    @property
    def blobs(self) -> Mapping[str, bytes]:
        return self._blobs

    def open_signal(self, signal_id: str) -> bool:
        return self.mail.has((signal_id,))

    def was_sent(self, signal_id: str) -> bool:
        return signal_id in self.mail.sent

    def is_dead(self, signal_id: str) -> bool:
        return signal_id in self.mail._dead

    def addressed(self, signal_id: str) -> bool:
        letter = self.mail._open.get(signal_id)
        return letter is not None and letter.signal.to is not None

    # -- entries ------------------------------------------------------------------------------

    def apply(self, entry: int, ops: Sequence[Op]) -> list[Any]:
        """Carry out the operations of the next entry, and return what came of each."""
        self.applied = entry
        found = [getattr(self, f"_apply_{kind}")(entry, *rest) for kind, *rest in ops]
        if entry not in self._counts:
            self.idle.add(entry)
        return found

    def _hold(self, value: bytes, count: int) -> None:
        """Something more points to a value, or something less."""
        entry = pointed(value)[0]
        held = self._counts.get(entry, 0) + count
        if held:
            self._counts[entry] = held
            self.idle.discard(entry)
        else:
            del self._counts[entry]
            self.idle.add(entry)

    def _touch(self, execution_id: str) -> _Row:
        row = self._rows[execution_id]
        self._changed[row.number // PAGE] = self.applied
        return row

    def _insert(self, birth: Birth) -> bool:
        if not super()._insert(birth):
            return False
        row = self._rows[birth.execution.execution_id]
        row.bodies, row.log = Pointers(), Pointers()
        row.bodies.append((True, birth.body))
        self._hold(birth.body, 1)
        self._pages.setdefault(row.number // PAGE, {})[row.columns.execution_id] = None
        self._touch(row.columns.execution_id)
        return True

    def _apply_commit(self, entry: int, *op: Any) -> None:
        commit = _commit(list(op), entry)
        new = [value for digest, value in commit.blobs.items() if digest not in self._blobs]
        now(self.commit(commit))
        self._touch(commit.lease.execution_id)
        for value in (commit.body, *commit.log, *new):
            self._hold(value, 1)

    def _apply_create(self, entry: int, birth: Op) -> bool:
        return self._insert(_birth(birth, entry))

    def _apply_begin(self, entry: int, birth: Op, owner: str) -> int:
        self._insert(_birth(birth, entry))
        return self._apply_own(entry, birth[0], owner)

    def _apply_own(self, entry: int, execution_id: str, owner: str) -> int:
        row = self._touch(execution_id)
        row.owner, row.token = owner, row.token + 1
        return row.token

    def _apply_release(self, entry: int, execution_id: str, token: int) -> None:
        self._touch(execution_id)
        now(self.release(Lease(execution_id=execution_id, owner="", token=token)))

    def _apply_cancel(self, entry: int, execution_id: str) -> bool:
        self._touch(execution_id)
        return now(self.request_cancel(execution_id))

    def _apply_delete(self, entry: int, execution_id: str) -> bool:
        row = self._touch(execution_id)
        for _, value in chain(row.bodies, row.log):
            self._hold(value, -1)
        page = self._pages[row.number // PAGE]
        del page[execution_id]
        if not page:
            del self._pages[row.number // PAGE]
        return now(self.delete(execution_id))

    def _apply_send(self, entry: int, signal: Op) -> bool:
        return self.mail.send(_signal(signal, entry))

    def _apply_take(self, entry: int, signal_id: str) -> bool:
        return now(self.take(signal_id))

    def _apply_fan_out(self, entry: int, signal_id: str, to: list[str]) -> bool:
        return self.mail.fan_out(signal_id, to)

    def _apply_bury(self, entry: int, signal_id: str, reason: str, at: float) -> bool:
        return self.mail.bury(signal_id, reason, at)

    def _apply_revive(self, entry: int, signal_id: str) -> bool:
        return self.mail.revive(signal_id)

    def _apply_config(self, entry: int, digest: str, value: list[int]) -> None:
        if digest not in self._configs:
            self._configs[digest] = pointer(entry, value)
            self._hold(self._configs[digest], 1)

    def _apply_drop(self, entry: int, kind: Kind, digests: list[str]) -> int:
        kept = self._blobs if kind == "blob" else self._configs
        for digest in digests:
            self._hold(kept.pop(digest), -1)
        if kind == "blob":
            self.dropped = entry
        return len(digests)

    def _apply_emptied(self, entry: int, entries: list[int]) -> None:
        """These have been emptied, and nobody else need do so."""
        self.idle.difference_update(entries)

    def _apply_nothing(self, entry: int) -> None:
        """An entry that only takes a number, so that nobody's delayed write can."""

    # -- at rest ------------------------------------------------------------------------------

    def changes(self, since: int) -> list[int] | None:
        """The pages of executions that have changed since an entry. None when that is not known: all, perhaps."""
        if since < self._since:
            return None
        return sorted(number for number, entry in self._changed.items() if entry > since)

    def pages(self) -> list[int]:
        return sorted(self._pages)

    def forget_changes(self, until: int) -> None:
        """A state is stored that has all that was changed until this entry."""
        self._changed = {number: entry for number, entry in self._changed.items() if entry > until}
        self._since = until

    def page(self, number: int) -> list[Any] | None:
        """A page of executions, as JSON. None when there are none any more."""
        names = self._pages.get(number)
        return None if names is None else [_dump_row(self._rows[name]) for name in names]

    def sizes(self) -> dict[str, int]:
        return {"sent": len(self.mail.sent), "blobs": len(self._blobs)}

    def sent_chunk(self, number: int) -> list[Any]:
        return self.mail.sent.order[number * CHUNK : (number + 1) * CHUNK]

    def blobs_chunk(self, number: int) -> list[Any]:
        found = islice(self._blobs.items(), number * CHUNK, (number + 1) * CHUNK)
        return [[digest, value.decode()] for digest, value in found]

    def rest(self) -> dict[str, Any]:
        """What is in no page, as JSON."""
        mail = self.mail
        return {
            "numbers": self._numbers, "floor": self._floor, "places": mail._places, "idle": sorted(self.idle),
            "open": [_dump_letter(one) for one in mail._open.values()],
            "dead": [[*_dump_letter(one), reason, at] for one, reason, at in mail._dead.values()],
            "sent": self.sent_chunk(len(mail.sent) // CHUNK),
            "blobs": self.blobs_chunk(len(self._blobs) // CHUNK),
            "configs": [[digest, value.decode()] for digest, value in self._configs.items()],
        }  # fmt: skip

    @classmethod
    def restored(
        cls, applied: int, rest: Any, rows: Sequence[Any], sent: Sequence[Any], blobs: Sequence[Any]
    ) -> Replica:
        self = cls()
        self.applied = self._since = applied
        for one in chain.from_iterable(rows):
            row = _restore_row(one)
            name = row.columns.execution_id
            self._rows[name] = row
            self._pages.setdefault(row.number // PAGE, {})[name] = None
            self._set_channels(name, (), row.columns.channels)
            self._counts.update(chain(_packed(row.bodies).entries(), _packed(row.log).entries()))
        mail = self.mail
        for name in chain(chain.from_iterable(sent), rest["sent"]):
            mail.sent.add(name)
        for one in rest["open"]:
            mail._put(_restore_letter(one))
        for *one, reason, at in rest["dead"]:
            mail.put_dead(_restore_letter(one), reason, at)
        for kept, found in (
            (self._blobs, chain(chain.from_iterable(blobs), rest["blobs"])), (self._configs, rest["configs"]),
        ):  # fmt: skip
            for digest, value in found:
                kept[digest] = value.encode()
                self._hold(kept[digest], 1)
        self._numbers, self._floor, mail._places = rest["numbers"], rest["floor"], rest["places"]
        self.idle = set(rest["idle"])
        return self


def _packed(found: Sequence[tuple[Any, bytes]]) -> Pointers:
    assert isinstance(found, Pointers), "a row of a replica"
    return found


def _dump_row(row: _Row) -> list[Any]:
    one = row.columns
    return [
        [
            one.execution_id, one.name, one.kind, one.program, one.status, one.created_at, one.updated_at, one.parent,
            one.wake_at, list(one.channels),
        ],
        row.number, row.token, row.updated_at, row.owner, row.cancel, _packed(row.bodies).numbers(),
        _packed(row.log).numbers(),
    ]  # fmt: skip


def _restore_row(found: list[Any]) -> _Row:
    columns, number, token, updated_at, owner, cancel, bodies, log = found
    return _Row(
        columns=_columns(columns), number=number, token=token, updated_at=updated_at, owner=owner, cancel=cancel,
        bodies=Pointers(bodies), log=Pointers(log),
    )  # fmt: skip


def _dump_letter(letter: _Letter) -> list[Any]:
    one = letter.signal
    return [letter.place, one.signal_id, one.channel, one.body.decode(), one.created_at, one.to]


def _restore_letter(found: Sequence[Any]) -> _Letter:
    place, signal_id, channel, body, created_at, to = found
    signal = Signal(signal_id=signal_id, channel=channel, body=body.encode(), created_at=created_at, to=to)
    return _Letter(place, signal_id, signal)


def now(step: Coroutine[Any, Any, T]) -> T:
    """What a method of a store in memory returns, none of which ever waits."""
    try:
        step.send(None)
    except StopIteration as end:
        result: T = end.value
        return result
    raise AssertionError("a store in memory waited for something")
