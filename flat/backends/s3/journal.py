"""The journal of an S3 store: numbered objects, each of which is written once, by whoever is the first to.

`journal/00000000000000000042` exists or does not: S3 creates an object with `If-None-Match: *` for one of several that
try. So entry 42 is one atomic write after entry 41, whoever makes it, and the order of the entries is the order of
everything. To write: check that what is wanted fits what is known, and create the next entry. If that exists already,
apply all entries there are, and check again. So what was written had been checked against everything before it; and
that something does not fit is said only after all entries were applied. To read: apply all entries there are; the
first one missing is the end.

All that a process wants to write at the same time goes into one entry, as long as no two wishes touch the same thing.
An entry lists its wishes by ids, so that whoever applies it knows its own: so is a write whose answer was lost found.

Every `EVERY` entries the state is stored (`states.py`), so that a process that opens the store reads that and what
follows. Entries that nothing points into any more are then emptied, not deleted: a gap would look like the end.
"""

from __future__ import annotations

import logging
import math
import random
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import anyio
import orjson
from anyio.lowlevel import RunVar

from flat.backends.aws import Address
from flat.backends.s3.bucket import Bucket, together
from flat.backends.s3.pointers import pointed
from flat.backends.s3.replica import Op, Replica, Values
from flat.backends.s3.states import States
from flat.errors import BackendError

log = logging.getLogger("flat")
EVERY = 200
"""Entries after which the state is stored."""
SLACK = 400
"""Entries that are kept though nothing points into them, for processes that are behind."""
ENTRY_BYTES, ENTRY_WISHES = 8_000_000, 500
AHEAD = 16
"""Entries that are fetched at once by a process that is behind."""
RECENT = 5.0
"""Seconds after which others are taken to have written much, so that entries are looked for before a write too."""
LONGEST_PAUSE = 1.0
"""Seconds before a lost race for the next entry is run again, at most."""
CACHE_BYTES = 16_000_000
"""Entries that are kept in memory, the newest: what is read is most often new."""
FORMAT = b"1"


class Wish:
    """Something to write: `check` gives its operation for the replica as it is, or raises why it does not fit.

    It returns None when nothing is to be written; `answer` is then the result. `touches` names what the operation reads
    and changes; None is everything, and such a wish has an entry of its own.
    """

    def __init__(
        self,
        touches: Collection[str] | None,
        check: Callable[[Replica, Values], Op | None],
        answer: Any = None,
    ) -> None:
        self.id = uuid.uuid4().hex
        self.alone, touches = touches is None, touches or ()
        self.touches, self.check, self.result = frozenset(touches), check, answer
        self.error: Exception | None = None
        self.done = False

    def fulfil(self, result: Any = None, error: Exception | None = None) -> None:
        self.done, self.error = True, error
        if error is None:
            self.result = result


class Journal:
    """One journal, as one store object sees it."""

    def __init__(self, address: Address) -> None:
        self.bucket = Bucket(address)
        self.replica = Replica()
        self._states = States(self.bucket)
        self._opened = False
        self._line: list[Wish] = []
        self._written: dict[str, Wish] = {}
        """Wishes that may have been written, by id."""
        self._emptied: list[int] = []
        self._turns: RunVar[anyio.Lock] = RunVar(f"flat-journal-{id(self)}")
        self._asked = self._answered = 0
        self._heard = -math.inf
        self._lost = 0
        """How often in a row somebody else was faster."""
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._cached = 0

    def __repr__(self) -> str:
        return repr(self.bucket)

    async def close(self) -> None:
        await self.bucket.close()

    # -- one after the other ------------------------------------------------------------------

    def _turn(self) -> anyio.Lock:
        lock = self._turns.get(None)
        if lock is None:
            lock = anyio.Lock()
            self._turns.set(lock)
        return lock

    async def known(self) -> Replica:
        """The replica as it was when this object last had to do with S3."""
        if not self._opened:
            await self.fresh()
        return self.replica

    async def fresh(self) -> Replica:
        """The replica with all that was written before this call."""
        self._asked += 1
        mine = self._asked
        async with self._turn():
            # Who was asking when somebody else looked for new entries need not look again.
            if self._answered < mine:
                await self._catch_up()
        return self.replica

    async def write(self, wish: Wish) -> Any:
        """Have a wish written, together with those of others. Raises what its check raised."""
        self._line.append(wish)
        try:
            while not wish.done:
                # Whoever has the turn writes for all that stand in line.
                async with self._turn():
                    if not wish.done:
                        await self._write_some()
        finally:
            if wish in self._line:
                self._line.remove(wish)
            self._written.pop(wish.id, None)
        if wish.error is not None:
            raise wish.error
        return wish.result

    async def settle(self, wish: Wish) -> bool:
        """Find out whether a wish whose writing was interrupted has been written. It never will be after that."""
        self._written[wish.id] = wish
        try:
            await self.write(Wish((), lambda replica, values: ["nothing"]))
        finally:
            self._written.pop(wish.id, None)
        return wish.done and wish.error is None

    async def _write_some(self) -> None:
        try:
            if not self._opened or time.monotonic() > self._heard + RECENT:
                await self._catch_up()
            asked, found = self._asked, self._choose(sure=False)
            if found is None:
                await self._catch_up()
                found = self._choose(sure=True)
        except BackendError as error:
            # Whoever stands in line would wait for as long to hear the same.
            for wish in list(self._line):
                self._end(wish, error=error)
            return
        if not found:
            return
        values, chosen = found
        number = self.replica.applied + 1
        data = packed(values, [[wish.id, op] for wish, op in chosen] + self._notes())
        new = {wish.id: wish for wish, _ in chosen if wish.id not in self._written}
        self._written.update(new)
        began = time.monotonic()
        try:
            if (outcome := await self.bucket.put_new(entry_key(number), data)) != "created":
                if outcome == "there before":
                    for name in new:
                        self._written.pop(name, None)
                await self._give_way(time.monotonic() - began)
                await self._catch_up()
                return
        except BackendError as error:
            for wish, _ in chosen:
                if not wish.done:
                    self._end(wish, error=error)
            return
        self._lost = 0
        self._apply(number, data)
        self._answered, self._heard = max(self._answered, asked), time.monotonic()
        if number % EVERY == 0:
            await self._store_state()

    async def _give_way(self, seconds: float) -> None:
        """Pause when others were faster, the longer the more often: of many that try at once, one gets on."""
        self._lost += 1
        if self._lost > 1:
            most = min(LONGEST_PAUSE, seconds * 2**self._lost)
            await anyio.sleep(random.uniform(0, most))

    def _choose(self, *, sure: bool) -> tuple[Values, list[tuple[Wish, Op]]] | tuple[()] | None:
        """What of the wishes in line goes into one entry.

        A wish that does not fit ends here, if it is `sure` that all entries have been applied; else the result is None.
        """
        values, touched = Values(), set[str]()
        chosen: list[tuple[Wish, Op]] = []
        for wish in list(self._line):
            if touched & wish.touches or (chosen and wish.alone):
                continue
            if chosen and (chosen[0][0].alone or values.size > ENTRY_BYTES or len(chosen) >= ENTRY_WISHES):
                break
            op, refusal = None, None
            try:
                op = wish.check(self.replica, values)
            except Exception as error:
                refusal = error
            if op is not None:
                touched |= wish.touches
                chosen.append((wish, op))
            elif sure:
                self._end(wish, wish.result, refusal)
            else:
                return None
        return (values, chosen) if chosen else ()

    def _notes(self) -> list[Any]:
        """What is written along with wishes."""
        return [["", ["emptied", self._emptied]]] if self._emptied else []

    def _end(self, wish: Wish, result: Any = None, error: Exception | None = None) -> None:
        wish.fulfil(result, error)
        if wish in self._line:
            self._line.remove(wish)

    # -- applying -----------------------------------------------------------------------------

    async def _catch_up(self) -> None:
        """Apply all entries there are."""
        asked = self._asked
        if not self._opened:
            await self._open()
        first, ahead = self.replica.applied, 1
        while await self._read(ahead):
            # Those who are a little behind most often are behind by one or two.
            ahead = min(AHEAD, max(1, self.replica.applied - first))
            if self.replica.applied - first >= EVERY:
                await self._leap(EVERY)
                first = self.replica.applied
        self._answered, self._heard = asked, time.monotonic()

    async def _read(self, count: int) -> bool:
        """Apply so many entries. False if there are not as many."""
        first = self.replica.applied + 1
        numbers = range(first, first + count)
        found = await together([partial(self.bucket.get, entry_key(number)) for number in numbers])
        for number, data in zip(numbers, found, strict=True):
            if data is None:
                return False
            if not data:
                if not await self._leap(0):
                    raise BackendError(f"entry {number} of the store {self!r} is empty, and no state is")
                return True
            self._apply(number, data)
        return True

    async def _leap(self, least: int) -> bool:
        """Go on from the newest state, if it is so much further. Not while it is open what became of a wish of ours."""
        if least and self._written:
            return False
        kept = await self._states.load(self.replica.applied + least)
        if kept is None:
            return False
        self.replica = kept
        for wish in list(self._written.values()):
            self._end(
                wish,
                error=BackendError(f"whether it was stored in {self!r} is not known: we were too far behind"),
            )
        return True

    def _apply(self, number: int, data: bytes) -> None:
        header = unpacked(data)
        for (name, op), result in zip(
            header, self.replica.apply(number, [op for _, op in header]), strict=True
        ):
            if op[0] == "emptied":
                self._emptied = [one for one in self._emptied if one not in set(op[1])]
            if (wish := self._written.pop(name, None)) is not None:
                self._end(wish, result)
        self._cache[number] = data
        self._cached += len(data)
        while self._cached > CACHE_BYTES:
            self._cached -= len(self._cache.popitem(last=False)[1])

    # -- the whole ----------------------------------------------------------------------------

    async def _open(self) -> None:
        if self.bucket.address.create:
            await self.bucket.create()
        kept = await self.bucket.get("format")
        if kept is None and await self.bucket.put_new("format", FORMAT) != "created":
            kept = await self.bucket.get("format")
        if kept not in (None, FORMAT):
            raise BackendError(
                f"the store {self!r} has format {kept!r}, and this version of flat reads {FORMAT!r}"
            )
        await self._leap(0)
        self._opened = True

    async def _store_state(self) -> None:
        """Store the state, and empty what nobody needs any more. The commit that led here is stored either way."""
        last = self.replica.applied - SLACK
        try:
            await self._states.store(self.replica)
            idle = [number for number in self.replica.idle if number <= last]
            await together([partial(self.bucket.put, entry_key(number), b"") for number in idle])
        except BackendError as error:
            # The next one will do it; if none can, opening the store takes longer and longer.
            log.warning("the state of the store %r was not stored, or not cleaned up: %s", self, error)
            return
        self._emptied = idle

    # -- values -------------------------------------------------------------------------------

    async def values(self, pointers: Sequence[bytes]) -> list[bytes]:
        """What pointers point to."""
        found: dict[bytes, bytes] = {}
        missing = []
        for one in dict.fromkeys(pointers):
            entry, offset, length = pointed(one)
            if entry in self._cache:
                found[one] = self._cache[entry][offset : offset + length]
            elif length == 0:
                found[one] = b""
            else:
                missing.append(one)
        fetched = await together([partial(self._fetch, *pointed(one)) for one in missing])
        found.update(zip(missing, fetched, strict=True))
        return [found[one] for one in pointers]

    async def _fetch(self, entry: int, offset: int, length: int) -> bytes:
        data = await self.bucket.get(entry_key(entry), (offset, length))
        if data is None or len(data) != length:
            raise BackendError(f"entry {entry} of the store {self!r} is not what it was")
        return data


def entry_key(number: int) -> str:
    return f"journal/{number:020d}"


def packed(values: Values, ops: list[Any]) -> bytes:
    """An entry: its values, then its operations as JSON, then the length of those."""
    header = orjson.dumps(ops)
    return b"".join((*values.parts, header, len(header).to_bytes(8, "big")))


def unpacked(data: bytes) -> list[tuple[str, Op]]:
    length = int.from_bytes(data[-8:], "big")
    found: list[tuple[str, Op]] = orjson.loads(data[-8 - length : -8])
    return found
