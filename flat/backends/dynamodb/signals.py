"""The signals of a store in DynamoDB: open, dead, spent, and who is ready because of them.

A signal is one item, so each change of it is one conditional write: whoever takes, buries or fans out a signal wins it,
and everybody else is told that it is gone. Its place in the order is a number that is taken before it is sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from flat.backends.aws import Refused
from flat.backends.checks import WAITING, check_signal, check_text, copy_id, readable
from flat.backends.dynamodb.outbox import Arrival, Outbox, write_with_arrivals
from flat.backends.dynamodb.rows import (
    channels_of,
    dead_keys,
    dead_line,
    distinct,
    letter_item,
    letter_key,
    line_key,
    number_of,
    open_keys,
    row_key,
    setting,
    signal_of,
    to_of,
    waiter_key,
)
from flat.backends.dynamodb.table import (
    MOST_ACTIONS,
    NEW,
    Action,
    Item,
    Table,
    Values,
    hashed,
    key,
    sortable,
    text,
)
from flat.backends.protocols import DeadSignal, Signal

PLACES = "letters"
OPEN = "sta = :open"
OUT_OF_THE_INDEXES = "g1p, g1s, g2p, g2s, g3p, g3s"


class Letters:
    """The signals in a table."""

    def __init__(self, table: Table, outbox: Outbox) -> None:
        self._table, self._outbox = table, outbox

    # -- sending ------------------------------------------------------------------------------

    async def arrivals(self, signals: Sequence[Signal], values: Values) -> list[Arrival]:
        """New signals, in this order, each of which is entered unless its id was sent before."""
        unique = list({one.signal_id: one for one in reversed(signals)}.values())[::-1]
        if not unique:
            return []
        place = await self._table.count(PLACES, len(unique))
        return [
            Arrival(items=[letter_item(one, place + n, await self._body(one, values))])
            for n, one in enumerate(unique)
        ]

    async def _body(self, signal: Signal, values: Values) -> Item:
        return await values.attribute(letter_key(signal.signal_id)[0], signal.body)

    async def send(self, signal: Signal) -> bool:
        check_signal(signal)
        arrivals = await self.arrivals([signal], Values(self._table))
        return await write_with_arrivals(self._table, "sending a signal", [], arrivals) == 1

    # -- ending -------------------------------------------------------------------------------

    def spending(self, signal_id: str) -> Action:
        """What takes an open signal away, and leaves its id behind."""
        return self._table.update(
            key(*letter_key(signal_id)), f"SET sta = :spent REMOVE bod, {OUT_OF_THE_INDEXES}", OPEN,
            spent=text("spent"), open=text("open"),
        )  # fmt: skip

    async def take(self, signal_id: str) -> bool:
        return await self._table.try_write("taking a signal", [self.spending(signal_id)])

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        doing = "burying a signal"
        item = await self._table.get(doing, *letter_key(signal_id))
        if item is None or item["sta"]["S"] != "open":
            return False
        words, values = setting(
            {
                "sta": text("dead"),
                "rsn": text(readable(reason)),
                "dat": text(repr(float(at))),
                **dead_keys(item),
            }
        )
        change = f"SET {words} REMOVE g1p, g1s"
        where = key(*letter_key(signal_id))
        return await self._table.try_write(
            doing, [self._table.update(where, change, OPEN, **values, open=text("open"))]
        )

    async def revive(self, signal_id: str) -> bool:
        doing = "reviving a signal"
        item = await self._table.get(doing, *letter_key(signal_id))
        if item is None or item["sta"]["S"] != "dead":
            return False
        words, values = setting({"sta": text("open"), **open_keys(item)})
        change, where = f"SET {words} REMOVE rsn, dat", key(*letter_key(signal_id))
        return await self._table.try_write(
            doing, [self._table.update(where, change, "sta = :dead", **values, dead=text("dead"))]
        )

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        doing = "fanning a signal out"
        for execution_id in to:
            check_text("to", execution_id)
        item = await self._table.get(doing, *letter_key(signal_id))
        if item is None or item["sta"]["S"] != "open" or to_of(item) is not None or not to:
            return False
        body = await self._table.value(item["pk"]["S"], item["bod"])
        taken: set[str] = set()
        while True:
            names = [copy_id(signal_id, one, taken.__contains__) for one in distinct(to)]
            copies = await self._copies(item, body, names, distinct(to))
            actions = [self.spending(signal_id)]
            name = ""
            if len(copies) >= MOST_ACTIONS:
                # Too many for one transaction: who is to have one is certain when this one is stored.
                free = await self._free(names)
                if len(free) < len(names):
                    taken.update(set(names) - free)
                    continue
                name, certain = await self._outbox.prepare(copies)
                actions.append(certain)
            else:
                actions += [self._table.put(one.items[0], NEW) for one in copies]
            try:
                await self._table.write(doing, actions)
            except Refused as error:
                if error.reasons[:1] == ("ConditionalCheckFailed",):
                    return False
                refused = [n for n, why in enumerate(error.reasons[1:]) if why == "ConditionalCheckFailed"]
                if not refused or name:
                    raise self._table.refusal(doing, error) from error
                taken.update(names[n] for n in refused)
                continue
            if name:
                await self._outbox.deliver(name)
            return True

    async def _free(self, names: Sequence[str]) -> set[str]:
        found = await self._table.get_all("fanning a signal out", [letter_key(name) for name in names])
        return {name for name, item in zip(names, found, strict=True) if item is None}

    async def _copies(
        self, item: Item, body: bytes, names: Sequence[str], to: Sequence[str]
    ) -> list[Arrival]:
        values = Values(self._table)
        place = int(item["plc"]["N"])
        copies = [
            Signal(
                signal_id=name,
                channel=item["chn"]["S"],
                body=body,
                created_at=float(item["mad"]["S"]),
                to=one,
            )
            for name, one in zip(names, to, strict=True)
        ]
        return [Arrival(items=[letter_item(one, place, await self._body(one, values))]) for one in copies]

    # -- reading ------------------------------------------------------------------------------

    async def open(self, channel: str | None, to: str | None, limit: int | None) -> list[Signal]:
        found: list[Item] = []
        if channel is not None and to is not None:
            for line in (line_key(channel, None), line_key(channel, to)):
                found += await self._listed("g1", line, limit)
        elif channel is not None:
            found = await self._listed("g3", hashed("c", channel, "channel"), limit)
        else:
            check_text("to", to or "")
            found = await self._listed("g2", "l", None if to is not None else limit)
            found = [one for one in found if to is None or to_of(one) in (None, to)]
        found.sort(key=_place)
        items = await self._read(found[:limit], "open")
        return [signal_of(item, await self._value(item)) for item in items]

    async def dead(self, channel: str | None, limit: int | None) -> list[DeadSignal]:
        index, line = ("g2", "d") if channel is None else ("g3", dead_line(channel))
        items = await self._read(await self._listed(index, line, limit), "dead")
        return [
            DeadSignal(
                signal=signal_of(item, await self._value(item)), reason=item["rsn"]["S"], at=float(item["dat"]["S"])
            )
            for item in items
        ]  # fmt: skip

    async def _listed(self, index: str, pk: str, limit: int | None) -> list[Item]:
        """The entries of an index in order, with the keys of their items."""
        found: list[Item] = []
        if limit == 0:
            return found
        async for page in self._table.pages("reading signals", pk, index=index, limit=limit):
            found += [{**item, "where": item[f"{index}s"]} for item in page]
            if limit is not None and len(found) >= limit:
                break
        return found[:limit]

    async def _read(self, entries: Iterable[Item], status: str) -> list[Item]:
        """The signals themselves, without those that have become something else since the index was written."""
        keys = [(item["pk"]["S"], item["sk"]["S"]) for item in entries]
        found = await self._table.get_all("reading signals", keys)
        return [item for item in found if item is not None and item["sta"]["S"] == status]

    async def _value(self, item: Item) -> bytes:
        return await self._table.value(item["pk"]["S"], item["bod"])

    # -- who is ready -------------------------------------------------------------------------

    async def ready(self, now: float, limit: int | None) -> list[Item]:
        """The rows of waiting executions with something to go on with, by the time since when."""
        since: dict[str, float] = {}
        rows: dict[str, Item] = {}
        lines: dict[str, dict[str | None, Item]] = {}
        for entry in await self._listed("g2", "l", None):
            lines.setdefault(entry["chn"]["S"], {}).setdefault(to_of(entry), entry)
        for channel, heads in lines.items():
            await self._look(channel, heads, rows, since)
        due = await self._table.query("looking for timers", "due", index="g4", last=sortable(now))
        for row in await self._rows([item["pk"]["S"] for item in due], rows):
            if "wak" in row and (at := float(row["wak"]["S"])) <= now:
                pk = row["pk"]["S"]
                since[pk] = min(at, since.get(pk, at))
        found = [row for pk, row in rows.items() if pk in since and row["stt"]["S"] == WAITING]
        found.sort(key=lambda row: (since[row["pk"]["S"]], number_of(row)))
        return found[:limit]

    async def _look(
        self, channel: str, heads: dict[str | None, Item], rows: dict[str, Item], since: dict[str, float]
    ) -> None:
        """Who waits on a channel that has signals, and since when there has been one for it."""
        names = [row_key(to)[0] for to in heads if to is not None]
        if None in heads:
            waiters = await self._table.query("looking for waiters", waiter_key(channel, 0)[0])
            names += [item["exe"]["S"] for item in waiters]
        for row in await self._rows(distinct(names), rows):
            if channel not in channels_of(row):
                continue
            heard = [head for to in (None, row["xid"]["S"]) if (head := heads.get(to)) is not None]
            if heard:
                pk, at = row["pk"]["S"], float(min(heard, key=_place)["mad"]["S"])
                since[pk] = min(at, since.get(pk, at))

    async def _rows(self, names: Sequence[str], rows: dict[str, Item]) -> list[Item]:
        missing = [pk for pk in names if pk not in rows]
        for row in await self._table.get_all("looking for who is ready", [(pk, "x") for pk in missing]):
            if row is not None:
                rows[row["pk"]["S"]] = row
        return [rows[pk] for pk in names if pk in rows]


def _place(entry: Item) -> str:
    where: str = entry["where"]["S"]
    return where
