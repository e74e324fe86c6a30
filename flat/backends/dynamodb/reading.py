"""Reading executions: one with its bodies and log, and many through the indexes.

An entry of an index leads to the row, which is read from the table itself, so that nothing is reported that is not so.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing

from flat.backends.dynamodb.outbox import Outbox
from flat.backends.dynamodb.rows import (
    body_sort,
    channels_of,
    execution_of,
    log_sort,
    number_of,
    parent_key,
    row_key,
    status_key,
    story,
    waiter_key,
)
from flat.backends.dynamodb.table import Item, Table, sortable, split
from flat.backends.protocols import Execution, Stored

PAGE = 100


class Reader:
    """Executions as they are stored."""

    def __init__(self, table: Table, outbox: Outbox) -> None:
        self._table, self._outbox = table, outbox

    async def row(self, doing: str, execution_id: str) -> Item | None:
        where = row_key(execution_id)
        row = await self._table.get(doing, *where)
        if row is None:
            await self._outbox.deliver_all()
            row = await self._table.get(doing, *where)
        return row

    async def get(self, execution_id: str) -> Execution | None:
        row = await self.row("reading an execution", execution_id)
        return None if row is None else execution_of(row)

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        doing = "loading an execution"
        while True:
            row = await self.row(doing, execution_id)
            if row is None:
                return None
            newest, number = int(row["sq"]["N"]), number_of(row)
            wanted = newest if at is None else at
            if not 0 <= wanted <= newest:
                return None
            items = await self._since_base(number, wanted, int(row["bas"]["N"]))
            if items is None:
                continue  # it has just been deleted
            pk = story(number)
            rows = await self._table.query(doing, pk, first="l#", last=log_sort(wanted))
            log = [line for one in rows for line in split(await self._table.value(pk, one["val"]))]
            bodies = [(_seq(one), await self._table.value(pk, one["val"])) for one in items]
            return Stored(execution=execution_of(row), bodies=bodies, log=log)

    async def _since_base(self, number: int, wanted: int, base: int) -> list[Item] | None:
        """The items of the bodies from the base before `wanted` on; None if there is none."""
        found: list[Item] = []
        first = base if wanted >= base else 0
        pages = self._table.pages(
            "loading an execution", story(number), first=body_sort(first), last=body_sort(wanted),
            newest=True, limit=None if wanted >= base else PAGE,
        )  # fmt: skip
        async for page in pages:
            for item in page:
                found.append(item)
                if "whl" in item:
                    return found[::-1]
        return None

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        doing = "reading an execution"
        row = await self.row(doing, execution_id)
        if row is None:
            return []
        pk = story(number_of(row))
        items = await self._table.query(doing, pk, first="b#", last=body_sort(int(row["sq"]["N"])))
        return [(_seq(one), "whl" in one, await self._table.value(pk, one["val"])) for one in items]

    async def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        left = -1 if limit is None else limit
        if left == 0:
            return
        await self._outbox.deliver_all()
        async with aclosing(self._candidates(status, channel, due, parent)) as rows:
            async for row in rows:
                if (
                    (status is None or row["stt"]["S"] == status)
                    and (channel is None or channel in channels_of(row))
                    and (due is None or ("wak" in row and float(row["wak"]["S"]) <= due))
                    and (parent is None or row.get("par", {}).get("S") == parent)
                ):
                    yield execution_of(row)
                    left -= 1
                    if left == 0:
                        return

    async def _candidates(
        self, status: str | None, channel: str | None, due: float | None, parent: str | None
    ) -> AsyncGenerator[Item, None]:
        """Rows that may match, newest first, through the narrowest index."""
        doing = "finding executions"
        if channel is not None:
            pages = self._table.pages(doing, waiter_key(channel, 0)[0], newest=True, limit=PAGE)
        elif parent is not None:
            pages = self._table.pages(doing, parent_key(parent), index="g3", newest=True, limit=PAGE)
        elif due is not None:
            found = await self._table.query(doing, "due", index="g4", last=sortable(due))
            rows = await self._rows(found)
            for row in sorted(rows, key=number_of, reverse=True):
                yield row
            return
        else:
            line, index = ("x", "g1") if status is None else (status_key(status), "g2")
            pages = self._table.pages(doing, line, index=index, newest=True, limit=PAGE)
        async for page in pages:
            for row in await self._rows(page):
                yield row

    async def _rows(self, entries: Sequence[Item]) -> list[Item]:
        """The rows that entries of an index, or waiters, stand for."""
        keys = [
            (one["exe"]["S"], "x") if "exe" in one else (one["pk"]["S"], one["sk"]["S"]) for one in entries
        ]
        rows = await self._table.get_all("finding executions", keys)
        return [row for row in rows if row is not None]


def _seq(item: Item) -> int:
    return int(item["sk"]["S"].partition("#")[2])
