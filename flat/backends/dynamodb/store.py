"""A store in one table of Amazon DynamoDB: for hosts that share executions and no disk.

    store = DynamoStore("dynamodb://flat?region=eu-central-1")
    store = open_store("dynamodb://flat?endpoint=http://127.0.0.1:4566&region=us-east-1&create=true")

**What is guaranteed.** A commit is one transaction: body, columns, log rows, consumed and sent signals, births and
release are stored whole or not at all, if `seq` and the lease's token fit. It is sent with an idempotency token, so
that a call whose answer was lost is repeated and still done once. What returned is in three places of the region. When
AWS does not answer within `timeout` seconds (10), a method raises without knowing whether it was done, and says so; who
resumes reads what is stored.

**What is not.** Reads of one execution (`get`, `load`, `bodies`) see every commit that returned. `find`, `ready` and
lists of signals go through secondary indexes, which DynamoDB brings up to date a moment later, as a rule within
milliseconds: what has just been written may not be found *yet*. What is found has been read again from the table, so
nothing is found that is not so, and whoever waits on a channel is found at once. A commit with more births and signals
than fit into a transaction (100 items) makes them certain in its transaction, and visible right after it, in parts; if
the process dies in between, the next `ready` or `find` of anybody goes on (`outbox.py`). Births and signals
take their place in the order from a counter, which DynamoDB moves about a thousand times a second per table.

Leases end by comparing times, the callers' times; DynamoDB's expiry of items is used nowhere. Throttled calls are
repeated with growing pauses. `table.py` says how things lie in the table; `description` there is what to put
into a template, and `create_table` makes one. Without `?create=true` a table that does not exist is an error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from types import TracebackType
from typing import Self

import anyio

from flat.backends.aws import Address, Refused, parse_address, parse_url
from flat.backends.checks import check_birth, check_text
from flat.backends.dynamodb.commit import Commits
from flat.backends.dynamodb.outbox import Arrival, Outbox, sweep, write_with_arrivals
from flat.backends.dynamodb.reading import Reader
from flat.backends.dynamodb.rows import (
    TOKENS,
    channels_of,
    distinct,
    execution_of,
    number_of,
    owner_item,
    owner_key,
    owner_of,
    row_key,
    story,
    token_of,
    waiter_key,
)
from flat.backends.dynamodb.signals import Letters
from flat.backends.dynamodb.table import (
    NEW,
    OLD,
    Action,
    Table,
    Values,
    hashed,
    key,
    numbered,
    text,
    whole,
)
from flat.backends.liveness import describe, may_take_over
from flat.backends.protocols import Birth, Commit, DeadSignal, Execution, Lease, Owner, Signal, Stored
from flat.errors import BadStoreURL, ExecutionBusy, ExecutionNotFound

EXAMPLE = "dynamodb://flat?region=eu-central-1"
HEARD_LATELY = 0.1
"""Part of its ttl for which an owner that was heard of need not be written again when it acquires something."""


def parse(path: str, options: dict[str, str]) -> Callable[[], DynamoStore]:
    address = _without_folder(parse_address("dynamodb", path, options, EXAMPLE))
    return lambda: DynamoStore(address)


def _without_folder(address: Address) -> Address:
    if address.prefix:
        raise BadStoreURL(f"a table has no folders; write dynamodb://{address.name} and options after it")
    return address


class DynamoStore:
    """Executions in a table of DynamoDB: `DynamoStore("dynamodb://flat?region=eu-central-1")`."""

    def __init__(self, address: str | Address) -> None:
        if isinstance(address, str):
            address = _without_folder(parse_url("dynamodb", address, EXAMPLE))
        self.table = Table(address)
        self._outbox = Outbox(self.table)
        self._letters = Letters(self.table, self._outbox)
        self._commits = Commits(self.table, self._outbox, self._letters)
        self._reader = Reader(self.table, self._outbox)
        self._configs: set[str] = set()
        self._heard: dict[str, tuple[float, float]] = {}

    def __repr__(self) -> str:
        return f"DynamoStore({self.table!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self.table.close()

    # -- commits --------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> None:
        await self._commits.commit(commit)

    # -- births and leases ------------------------------------------------------------------------

    async def create(self, birth: Birth) -> bool:
        check_birth(birth)
        arrival = await self._commits.arrival(birth, await self._commits.number(), None, Values(self.table))
        return await self._enter("creating an execution", arrival)

    async def _enter(self, doing: str, arrival: Arrival) -> bool:
        try:
            return await write_with_arrivals(self.table, doing, [], [arrival]) == 1
        except Refused as error:
            raise self.table.refusal(doing, error) from error

    async def begin(self, birth: Birth, owner: Owner, *, now: float, ttl: float) -> Lease | None:
        check_birth(birth)
        check_text("owner", owner.owner)
        await self._hear(owner, now, ttl)
        number = await self._commits.number()
        arrival = await self._commits.arrival(birth, number, owner.owner, Values(self.table))
        execution_id = birth.execution.execution_id
        lease = Lease(execution_id=execution_id, owner=owner.owner, token=number * TOKENS + 1)
        with anyio.CancelScope(shield=True):
            # Whether it was stored must be known before it can be undone.
            begun = await self._enter("starting an execution", arrival)
        if not begun:
            return None
        await self._unless_cancelled(lease)
        self._commits.know(execution_id, lease.token, 0, tuple(birth.execution.channels))
        return lease

    async def _unless_cancelled(self, lease: Lease) -> None:
        """Give a lease back that we were given after we had been interrupted."""
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.release(lease)
            raise

    async def acquire(self, execution_id: str, owner: Owner, *, now: float, ttl: float) -> Lease:
        doing = "acquiring an execution"
        check_text("owner", owner.owner)
        await self._hear(owner, now, ttl)
        while True:
            row = await self._reader.row(doing, execution_id)
            if row is None:
                raise ExecutionNotFound(execution_id)
            held_by = row["own"]["S"] if "own" in row else None
            actions: list[Action] = []
            if held_by not in (None, owner.owner):
                actions = await self._contest(execution_id, str(held_by), now)
            lease = Lease(execution_id=execution_id, owner=owner.owner, token=token_of(row) + 1)
            change = self.table.update(
                key(*row_key(execution_id)), "SET own = :own, tok = :tok", "tok = :was",
                own=text(owner.owner), tok=whole(lease.token), was=row["tok"],
            )  # fmt: skip
            with anyio.CancelScope(shield=True):
                won = await self.table.try_write(doing, [change, *actions])
            if won:
                await self._unless_cancelled(lease)
                self._commits.know(execution_id, lease.token, int(row["chq"]["N"]), channels_of(row))
                return lease
            await anyio.lowlevel.checkpoint()

    async def _contest(self, execution_id: str, held_by: str, now: float) -> list[Action]:
        """The condition under which an execution may be taken from its holder. Raises if it may not."""
        item = await self.table.get("looking for an owner", *owner_key(held_by))
        if item is None:
            return [self.table.check(key(*owner_key(held_by)), NEW)]
        holder, seen, ttl = owner_of(item)
        if not may_take_over(holder, seen=seen, ttl=ttl, now=now):
            left = f"its lease ends in {seen + ttl - now:.0f} s unless it is kept up"
            raise ExecutionBusy(execution_id, describe(holder), left)
        return [self.table.check(key(*owner_key(held_by)), "see = :see", see=item["see"])]

    async def heartbeat(self, owner: Owner, *, now: float, ttl: float) -> None:
        await self.table.put_now("sending a heartbeat", owner_item(owner, now, ttl))
        self._heard[owner.owner] = (now, ttl)

    async def _hear(self, owner: Owner, now: float, ttl: float) -> None:
        """Write that an owner is alive, unless that was written a moment ago."""
        known = self._heard.get(owner.owner)
        if known is None or known[1] != ttl or not known[0] <= now <= known[0] + HEARD_LATELY * ttl:
            await self.heartbeat(owner, now=now, ttl=ttl)

    async def abandoned(self, execution_id: str, *, now: float) -> bool:
        row = await self.table.get("looking for an owner", *row_key(execution_id))
        if row is None or "own" not in row:
            return False
        item = await self.table.get("looking for an owner", *owner_key(row["own"]["S"]))
        if item is None:
            return True
        holder, seen, ttl = owner_of(item)
        return may_take_over(holder, seen=seen, ttl=ttl, now=now)

    async def release(self, lease: Lease) -> None:
        self._commits.forget(lease.execution_id)
        change = self.table.update(
            key(*row_key(lease.execution_id)), "SET tok = :next REMOVE own", "tok = :was",
            next=whole(lease.token + 1), was=whole(lease.token),
        )  # fmt: skip
        await self.table.try_write("releasing an execution", [change])

    async def request_cancel(self, execution_id: str) -> bool:
        change = "SET cxl = :yes, g5p = :line, g5s = g1s"
        where = key(*row_key(execution_id))
        return await self.table.try_write(
            "requesting a cancellation",
            [self.table.update(where, change, OLD, yes={"BOOL": True}, line=text("cancel"))],
        )

    async def cancel_requested(self, owner: str) -> Sequence[str]:
        check_text("owner", owner)
        doing = "looking for cancellations"
        found = await self.table.query(doing, "cancel", index="g5")
        rows = await self.table.get_all(doing, [(one["pk"]["S"], one["sk"]["S"]) for one in found])
        return [
            row["xid"]["S"] for row in rows if row and "cxl" in row and row.get("own", {}).get("S") == owner
        ]

    async def delete(self, execution_id: str) -> bool:
        doing = "deleting an execution"
        await self._empty_trash()
        while True:
            row = await self._reader.row(doing, execution_id)
            if row is None:
                return False
            number, pk = number_of(row), row["pk"]["S"]
            where = [waiter_key(channel, number) for channel in distinct(channels_of(row))]
            actions = [
                self.table.remove(key(pk, "x"), "nr = :nr AND chq = :chq", nr=row["nr"], chq=row["chq"]),
                self.table.put(key("trash", numbered(number))),
                *(self.table.remove(key(*one)) for one in where),
            ]
            if await self.table.try_write(doing, actions):
                break
        self._commits.forget(execution_id)
        await self._empty_trash()
        return True

    async def _empty_trash(self) -> None:
        """Delete the bodies of what is deleted, also of what somebody else did not finish deleting."""
        for item in await self.table.query("deleting an execution", "trash"):
            await sweep(self.table, story(int(item["sk"]["S"])))
            await self.table.batch(
                "deleting an execution", [{"DeleteRequest": {"Key": key("trash", item["sk"]["S"])}}]
            )

    # -- reading ------------------------------------------------------------------------------------

    async def get(self, execution_id: str) -> Execution | None:
        return await self._reader.get(execution_id)

    async def load(self, execution_id: str, *, at: int | None = None) -> Stored | None:
        return await self._reader.load(execution_id, at=at)

    async def bodies(self, execution_id: str) -> Sequence[tuple[int, bool, bytes]]:
        return await self._reader.bodies(execution_id)

    def find(
        self, *, status: str | None = None, channel: str | None = None, due: float | None = None,
        parent: str | None = None, limit: int | None = None,
    ) -> AsyncIterator[Execution]:  # fmt: skip
        return self._reader.find(status=status, channel=channel, due=due, parent=parent, limit=limit)

    async def ready(self, *, now: float, limit: int | None = None) -> Sequence[Execution]:
        await self._outbox.deliver_all()
        return [execution_of(row) for row in await self._letters.ready(now, limit)]

    # -- signals --------------------------------------------------------------------------------------

    async def send(self, signal: Signal) -> bool:
        return await self._letters.send(signal)

    async def signals(
        self, channel: str | None = None, *, to: str | None = None, limit: int | None = None
    ) -> Sequence[Signal]:
        return await self._letters.open(channel, to, limit)

    async def fan_out(self, signal_id: str, to: Sequence[str]) -> bool:
        return await self._letters.fan_out(signal_id, to)

    async def take(self, signal_id: str) -> bool:
        return await self._letters.take(signal_id)

    async def bury(self, signal_id: str, reason: str, at: float) -> bool:
        return await self._letters.bury(signal_id, reason, at)

    async def dead(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[DeadSignal]:
        return await self._letters.dead(channel, limit)

    async def revive(self, signal_id: str) -> bool:
        return await self._letters.revive(signal_id)

    # -- configs and blobs ------------------------------------------------------------------------------

    async def put_config(self, digest: str, text: bytes) -> None:
        # Configs are never taken out again, and every start of a machine puts the same one.
        if digest not in self._configs:
            pk = hashed("f", digest, "digest")
            value = await Values(self.table).attribute(pk, text)
            item = {**key(pk, "v"), "val": value}
            await self.table.try_write("storing a config", [self.table.put(item, NEW)])
            self._configs.add(digest)

    async def get_config(self, digest: str) -> bytes | None:
        return await self._kept("f", digest)

    async def get_blob(self, digest: str) -> bytes | None:
        return await self._kept("v", digest)

    async def _kept(self, kind: str, digest: str) -> bytes | None:
        pk = hashed(kind, digest, "digest")
        item = await self.table.get("reading a value", pk, "v")
        return None if item is None else await self.table.value(pk, item["val"])


async def create_table(url: str) -> None:
    """Create the table that a URL names, unless it exists: `await create_table("dynamodb://flat?region=…")`."""
    async with DynamoStore(url) as store:
        await store.table.create()
