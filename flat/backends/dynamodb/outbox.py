"""What a commit brings into the world beyond what one transaction can hold: births and signals by the thousand.

A transaction of DynamoDB changes at most 100 items. When a commit starts more executions and sends more signals than
fit, they are written beforehand as one list, and the commit's transaction adds a marker that names it. From then on
they are certain: whoever wrote the commit enters them at once, and if it dies, whoever next looks for work or for an
execution does. The marker counts how far that has come, in the same transaction as each part, so that nothing is
entered twice, even if two do it at the same time and what was entered first has ended and been deleted since.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from flat.backends.aws import Refused
from flat.backends.dynamodb.table import MOST_ACTIONS, NEW, Action, Item, Table, key, whole
from flat.errors import BackendError

MARKERS = "out"
REQUEST = 3_000_000
"""Bytes of one transaction; DynamoDB takes 4 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A new execution or signal: it is entered if its first item is new, and passed over otherwise."""

    items: Sequence[Item]

    @property
    def where(self) -> tuple[str, str]:
        return self.items[0]["pk"]["S"], self.items[0]["sk"]["S"]

    def actions(self, table: Table) -> list[Action]:
        first, *rest = self.items
        return [table.put(first, NEW), *(table.put(one) for one in rest)]


async def write_with_arrivals(
    table: Table, doing: str, actions: Sequence[Action], arrivals: Iterable[Arrival]
) -> int:
    """The actions, with those arrivals that are new. Returns how many were; raises `Refused` for the actions."""
    coming = list(arrivals)
    while True:
        parts = [one.actions(table) for one in coming]
        try:
            await table.write(doing, [*actions, *(action for part in parts for action in part)])
        except Refused as error:
            # Whether an arrival is new is told by its first action; the conditions of the others come first.
            firsts, at = [], len(actions)
            for part in parts:
                firsts.append(at)
                at += len(part)
            known = {n for n, at in enumerate(firsts) if _failed(error, at)}
            if not known or any(_failed(error, at) for at in range(len(actions))):
                raise
            coming = [one for n, one in enumerate(coming) if n not in known]
            if not coming and not actions:
                return 0
        else:
            return len(coming)


def _failed(error: Refused, at: int) -> bool:
    return at < len(error.reasons) and error.reasons[at] == "ConditionalCheckFailed"


def weight(items: Iterable[Item]) -> int:
    """About how many bytes items have in transit."""
    return len(encode(list(items)))


class Outbox:
    """The lists that have not been entered to the end. Their markers stand in one partition, behind a prefix."""

    def __init__(self, table: Table, where: str = MARKERS, prefix: str = "") -> None:
        self._table, self._where, self._prefix = table, where, prefix

    def _marker(self, name: str) -> tuple[str, str]:
        return self._where, f"{self._prefix}{name}"

    async def prepare(self, arrivals: Sequence[Arrival]) -> tuple[str, Action]:
        """Write a list, and return its name and what makes it certain."""
        name = uuid.uuid4().hex
        value = await self._table.spill(f"out#{name}", encode([list(one.items) for one in arrivals]))
        return name, self._table.put({**key(*self._marker(name)), "nxt": whole(0), "val": value}, NEW)

    async def withdraw(self, name: str) -> None:
        """Delete a list that was not made certain."""
        await sweep(self._table, f"out#{name}")

    async def deliver_all(self) -> None:
        """Enter whatever somebody left behind."""
        found = await self._table.query(
            "looking for what is to be entered", self._where, first=self._prefix, last=f"{self._prefix}~"
        )
        for marker in found:
            await self.deliver(marker["sk"]["S"].removeprefix(self._prefix))

    async def deliver(self, name: str) -> None:
        """Enter a list to its end, wherever somebody else has come to."""
        doing = "entering new executions and signals"
        marker = await self._table.get(doing, *self._marker(name))
        if marker is None:
            return
        try:
            arrivals = [
                Arrival(items=items)
                for items in decode(await self._table.value(f"out#{name}", marker["val"]))
            ]
        except BackendError:
            if await self._table.get(doing, *self._marker(name)) is None:  # another one has just ended it
                return
            raise
        at = int(marker["nxt"]["N"])
        while at < len(arrivals):
            some = _first_that_fit(arrivals, at)
            step = self._table.update(
                key(*self._marker(name)), "SET nxt = :to", "nxt = :at", at=whole(at), to=whole(at + len(some))
            )
            try:
                await write_with_arrivals(self._table, doing, [step], some)
            except Refused as error:
                if not _failed(error, 0):
                    raise self._table.refusal(doing, error) from error
                found = await self._table.get(doing, *self._marker(name))
                if found is None:
                    return
                at = int(found["nxt"]["N"])
            else:
                at += len(some)
        await self._table.try_write(
            doing, [self._table.remove(key(*self._marker(name)), "nxt = :end", end=whole(len(arrivals)))]
        )
        await sweep(self._table, f"out#{name}")


def _first_that_fit(arrivals: Sequence[Arrival], at: int) -> list[Arrival]:
    some: list[Arrival] = []
    actions, size = 1, 0
    for one in arrivals[at:]:
        actions, size = actions + len(one.items), size + weight(one.items)
        if some and (actions > MOST_ACTIONS or size > REQUEST):
            break
        some.append(one)
    return some


async def sweep(table: Table, pk: str) -> None:
    """Delete a partition that nothing refers to any more."""
    async for page in table.pages("deleting", pk, keys_only=True):
        await table.batch(
            "deleting",
            ({"DeleteRequest": {"Key": key(item["pk"]["S"], item["sk"]["S"])}} for item in page),
        )


# -- items as text -----------------------------------------------------------------------------------


def encode(items: Any) -> bytes:
    return orjson.dumps(items, default=_packed)


def _packed(value: Any) -> Any:
    return {"b64": base64.b64encode(bytes(value)).decode()}


def decode(data: bytes) -> Any:
    return _unpacked(orjson.loads(data))


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unpacked(one) for one in value]
    if isinstance(value, dict):
        binary = value.get("B")
        if len(value) == 1 and isinstance(binary, dict):
            return {"B": base64.b64decode(binary["b64"])}
        return {name: _unpacked(one) for name, one in value.items()}
    return value
