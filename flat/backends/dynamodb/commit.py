"""One commit as one transaction: what it writes, on what condition, and what its refusal means.

A transaction has at most 100 parts, 4 MB and items of 400 KB. Values that do not fit are written before it, in pieces
(`table.py`); births and signals that do not fit are made certain by it, and entered after it
(`outbox.py`). What is left has no way around: a commit that consumes more signals or changes more channels
than there are parts left (more than 90) is refused whole, before anything is sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from flat.backends.aws import Refused
from flat.backends.checks import CANCELLED, check_commit, is_plain
from flat.backends.dynamodb.outbox import Arrival, Outbox, weight, write_with_arrivals
from flat.backends.dynamodb.rows import (
    TOKENS,
    birth_row,
    body_sort,
    channels_of,
    distinct,
    log_sort,
    row_key,
    setting,
    status_key,
    story,
    token_of,
    waiter_key,
)
from flat.backends.dynamodb.signals import Letters
from flat.backends.dynamodb.table import (
    MOST_ACTIONS,
    Action,
    Item,
    Table,
    Values,
    hashed,
    joined,
    key,
    sortable,
    text,
    whole,
)
from flat.backends.protocols import Birth, Commit, Head, Lease
from flat.errors import BackendError, SignalGone, StaleSnapshot

log = logging.getLogger("flat.backends")
NUMBERS = "births"
FITS = 3_000_000
"""Bytes of a commit that goes into one transaction; DynamoDB takes 4 MB."""
MOST_BLOBS = 20
"""Blobs that go into a commit's transaction."""
MOST_KNOWN = 10_000
"""Executions whose channels, and values whose digests, are remembered."""


class Commits:
    """Writes commits and births, and remembers of both what saves reading it."""

    def __init__(self, table: Table, outbox: Outbox, letters: Letters) -> None:
        self._table, self._outbox, self._letters = table, outbox, letters
        self._parked: dict[str, tuple[int, int, tuple[str, ...]]] = {}
        self._blobs: dict[str, None] = {}

    def forget(self, execution_id: str) -> None:
        """It is no longer ours: what we knew about it may be wrong."""
        self._parked.pop(execution_id, None)

    async def number(self) -> int:
        """The place of a new execution in the order."""
        return await self._table.count(NUMBERS)

    async def commit(self, commit: Commit) -> None:
        doing = "storing a commit"
        if not is_plain(commit):
            check_commit(commit)
        lease = commit.lease
        if len(set(commit.consume)) != len(commit.consume):
            raise SignalGone(lease.execution_id)
        values = Values(self._table)
        written = await self._written(commit, values)
        arrivals = await self._arrivals(commit, values)
        name = ""
        if len(written) + _many(commit, arrivals) > MOST_ACTIONS or (
            arrivals and weight(item for one in arrivals for item in one.items) > FITS
        ):
            name, certain = await self._outbox.prepare(arrivals)
            written.append(certain)
            arrivals = []
        while True:
            channels = await self._channels(lease, fresh=False) if commit.head else (0, ())
            actions = [*self._heading(commit, channels), *written]
            spending = [self._letters.spending(one) for one in commit.consume]
            try:
                await write_with_arrivals(self._table, doing, [*actions, *spending], arrivals)
            except Refused as error:
                try:
                    await self._explain(doing, commit, channels, error, len(actions))
                except BackendError:
                    if name:
                        await self._outbox.withdraw(name)
                    raise
                continue
            break
        self._remember(commit)
        if name:
            await self._deliver(name)

    async def _explain(
        self, doing: str, commit: Commit, channels: tuple[int, tuple[str, ...]], error: Refused, own: int
    ) -> None:
        """Raise what a refusal means; return if the commit fits, and only its channels were others than we knew."""
        lease, reasons = commit.lease, error.reasons
        if "ConditionalCheckFailed" not in reasons:
            raise self._table.refusal(doing, error) from error
        if reasons[0] != "ConditionalCheckFailed":
            if any(why == "ConditionalCheckFailed" for why in reasons[own : own + len(commit.consume)]):
                raise SignalGone(lease.execution_id) from None
            raise self._table.refusal(doing, error) from error
        if commit.head is not None and await self._channels(lease, fresh=True) != channels:
            return
        self._parked.pop(lease.execution_id, None)
        raise StaleSnapshot(lease.execution_id, commit.seq) from None

    def _heading(self, commit: Commit, channels: tuple[int, tuple[str, ...]]) -> list[Action]:
        """The change of the columns, which has the condition that counts, and that of who waits where."""
        lease, head = commit.lease, commit.head
        pk, sk = row_key(lease.execution_id)
        sets: Item = {"sq": whole(commit.seq), "upd": text(repr(commit.at))}
        removed: list[str] = []
        condition, values = "tok = :was AND sq = :before", {"was": whole(lease.token)}
        values["before"] = whole(commit.seq - 1)
        if commit.base:
            sets["bas"] = whole(commit.seq)
        if commit.release:
            sets["tok"] = whole(lease.token + 1)
            removed.append("own")
        actions: list[Action] = []
        if head is not None:
            since, old = channels
            condition += " AND chq = :since"
            values["since"] = whole(since)
            self._set_head(head, commit.seq, sets, removed)
            number = lease.token // TOKENS
            for channel in distinct(old):
                if channel not in head.channels:
                    actions.append(self._table.remove(key(*waiter_key(channel, number))))
            actions += [self._table.put(one) for one in waiters(head.channels, number, pk)]
        words, changed = setting(sets)
        change = f"SET {words}" + (f" REMOVE {', '.join(removed)}" if removed else "")
        return [self._table.update(key(pk, sk), change, condition, **changed, **values), *actions]

    def _set_head(self, head: Head, seq: int, sets: Item, removed: list[str]) -> None:
        sets |= {
            "stt": text(head.status), "g2p": text(status_key(head.status)), "chq": whole(seq),
            "chs": {"L": [text(one) for one in head.channels]},
        }  # fmt: skip
        if head.program is not None:
            sets["pg"] = text(head.program)
        if head.wake_at is None:
            removed += ["wak", "g4p", "g4s"]
        else:
            sets |= {
                "wak": text(repr(head.wake_at)), "g4p": text("due"), "g4s": text(sortable(head.wake_at)),
            }  # fmt: skip
        if head.status == CANCELLED:
            removed += ["cxl", "g5p", "g5s"]

    async def _written(self, commit: Commit, values: Values) -> list[Action]:
        """The body, the log rows and the blobs."""
        pk = story(commit.lease.token // TOKENS)
        item = {**key(pk, body_sort(commit.seq)), "val": await values.attribute(pk, commit.body)}
        if commit.base:
            item["whl"] = {"BOOL": True}
        actions = [self._table.put(item)]
        if commit.log:
            rows = await values.attribute(pk, joined(commit.log))
            actions.append(self._table.put({**key(pk, log_sort(commit.seq)), "val": rows}))
        return actions + await self._kept(commit, values)

    async def _kept(self, commit: Commit, values: Values) -> list[Action]:
        """The new blobs. Many are written beforehand: named for their content, they do no harm if the commit fails."""
        items = []
        for digest, blob in commit.blobs.items():
            if digest not in self._blobs:
                where = hashed("v", digest, "digest")
                items.append({**key(where, "v"), "val": await values.attribute(where, blob)})
        if len(items) <= MOST_BLOBS:
            return [self._table.put(item) for item in items]
        await self._table.batch("storing values", ({"PutRequest": {"Item": item}} for item in items))
        return []

    async def _arrivals(self, commit: Commit, values: Values) -> list[Arrival]:
        unique = list({one.execution.execution_id: one for one in reversed(commit.births)}.values())[::-1]
        arrivals = []
        if unique:
            number = await self._table.count(NUMBERS, len(unique))
            for n, birth in enumerate(unique):
                arrivals.append(await self.arrival(birth, number + n, None, values))
        return arrivals + await self._letters.arrivals(commit.send, values)

    async def arrival(self, birth: Birth, number: int, owner: str | None, values: Values) -> Arrival:
        row, pk = birth_row(birth, number, owner), story(number)
        body = {
            **key(pk, body_sort(0)),
            "val": await values.attribute(pk, birth.body),
            "whl": {"BOOL": True},
        }
        waiting = waiters(birth.execution.channels, number, row["pk"]["S"])
        return Arrival(items=[row, body, *waiting])

    async def _deliver(self, name: str) -> None:
        """Enter what the commit made certain. It is stored, so that a failure here is no failure of the commit."""
        try:
            await self._outbox.deliver(name)
        except BackendError as error:
            log.warning("new executions and signals are entered later: %s", error)

    async def _channels(self, lease: Lease, *, fresh: bool) -> tuple[int, tuple[str, ...]]:
        """Which channels an execution waits on, and since which commit, as far as its owner knows."""
        known = self._parked.get(lease.execution_id)
        if known is None or known[0] != lease.token or fresh:
            row = await self._table.get("storing a commit", *row_key(lease.execution_id))
            if row is None or token_of(row) != lease.token:
                raise StaleSnapshot(lease.execution_id, -1)
            known = self.know(lease.execution_id, lease.token, int(row["chq"]["N"]), channels_of(row))
        return known[1:]

    def know(
        self, execution_id: str, token: int, since: int, channels: tuple[str, ...]
    ) -> tuple[int, int, tuple[str, ...]]:
        while len(self._parked) >= MOST_KNOWN:
            self._parked.pop(next(iter(self._parked)))
        self._parked[execution_id] = known = (token, since, channels)
        return known

    def _remember(self, commit: Commit) -> None:
        for digest in commit.blobs:
            while len(self._blobs) >= MOST_KNOWN:
                self._blobs.pop(next(iter(self._blobs)))
            self._blobs[digest] = None
        if commit.release:
            self._parked.pop(commit.lease.execution_id, None)
        elif (head := commit.head) is not None:
            self.know(commit.lease.execution_id, commit.lease.token, commit.seq, tuple(head.channels))


def waiters(channels: Sequence[str], number: int, pk: str) -> list[Item]:
    return [{**key(*waiter_key(one, number)), "exe": text(pk)} for one in distinct(channels)]


def _many(commit: Commit, arrivals: Sequence[Arrival]) -> int:
    """Actions of a commit besides its body, log and blobs."""
    channels = len(commit.head.channels) if commit.head else 0
    return 1 + len(commit.consume) + 2 * channels + sum(len(one.items) for one in arrivals)
