"""Jobs as items of a table: what an item says, and how one is changed with all that stands for it elsewhere.

The attributes: `nr` number, `sta` status, `own` worker, `tri` attempts, `max` most attempts, `crt` created, `clm`
claimed, `til` end of the lease, `cky` key of the claim, `dat` data, `res` result, `err` error, `ver` version.
"""

from __future__ import annotations

import orjson

from flat.backends import work
from flat.backends.dynamodb.outbox import Arrival, sweep
from flat.backends.dynamodb.table import (
    INLINE,
    NEW,
    Action,
    Item,
    Table,
    hashed,
    key,
    numbered,
    sortable,
    text,
    whole,
)
from flat.backends.work import Clock, WorkItem, WorkStatus, expired, log_poisoned

LEASE, LIST, PENDING = "l#", "m#", "p#"
"""What stands in a pool's line, in this order."""


def left(job: Item) -> Item:
    """A job without its lease and key, as it leaves its worker."""
    return {name: value for name, value in job.items() if name not in ("til", "cky")}


def is_over(job: Item, now: float) -> bool:
    return job["sta"]["S"] == "claimed" and "til" in job and float(job["til"]["S"]) <= now


def lease_place(until: float) -> str:
    """Where a claim stands in the line: the later its lease ends, the further in front."""
    return f"{LEASE}{0xFFFFFFFFFFFFFFFF - int(sortable(until), 16):016x}"


def refuse_foreign(job: Item, worker_id: str | None) -> None:
    holder = job.get("own", {}).get("S")
    work.refuse_foreign(str(number_of(job)), job["sta"]["S"], holder, worker_id)


def number_of(job: Item) -> int:
    return int(job["nr"]["N"])


def status_of(job: Item) -> WorkStatus:
    status: WorkStatus = job["sta"]["S"]
    return status


def values_of(number: int) -> str:
    return f"jv#{numbered(number)}"


def claim_sort(worker_id: str, claim_key: str) -> str:
    return f"{hashed('', worker_id, 'worker_id')}{hashed('', claim_key, 'key')}"


class Jobs:
    """The jobs of one pool: each is read as an item, and changed together with all that stands for it elsewhere."""

    def __init__(self, table: Table, pool: str, clock: Clock) -> None:
        self._table, self._pool, self._clock = table, pool, clock
        # Hashes have no "#" in them, so none of these is the beginning of another.
        self.partition, self.line, self.keys = (hashed(kind, pool) for kind in ("j", "q", "h"))

    async def arrival(self, number: int, body: bytes, retries: int) -> Arrival:
        """What enters a new job."""
        job = {
            **key(self.partition, numbered(number)), "nr": whole(number), "sta": text("pending"), "tri": whole(0),
            "max": whole(retries), "crt": text(repr(self._clock())), "ver": whole(0),
            "dat": await self.attribute(number, body),
        }  # fmt: skip
        return Arrival(items=[job, key(self.line, f"{PENDING}{numbered(number)}")])

    async def attribute(self, number: int, body: bytes) -> Item:
        """A value of a job: inside its item, or beside it when it is large."""
        return {"B": body} if len(body) <= INLINE // 2 else await self._table.spill(values_of(number), body)

    # -- reading ------------------------------------------------------------------------------

    async def read(self, number: int) -> Item | None:
        return await self._table.get("reading a job", self.partition, numbered(number))

    async def current(self, number: int) -> Item | None:
        """A job as it is now: if its lease is over, that has been seen to."""
        now = self._clock()
        while (job := await self.read(number)) is not None and is_over(job, now):
            await self.end_claim(job)
        return job

    async def work_item(self, job: Item) -> WorkItem:
        where = values_of(number_of(job))
        result = await self._table.value(where, job["res"]) if "res" in job else b"null"
        return WorkItem(
            id=str(number_of(job)), status=status_of(job),
            data=orjson.loads(await self._table.value(where, job["dat"])),
            claimed_by=job["own"]["S"] if "own" in job else None, attempts=int(job["tri"]["N"]),
            max_retries=int(job["max"]["N"]), created_at=float(job["crt"]["S"]),
            claimed_at=float(job["clm"]["S"]) if "clm" in job else None,
            lease_until=float(job["til"]["S"]) if "til" in job else None,
            error=job["err"]["S"] if "err" in job else None, result=orjson.loads(result),
        )  # fmt: skip

    # -- changing -----------------------------------------------------------------------------

    async def change(self, doing: str, was: Item, job: Item | None) -> bool:
        """Make one job out of another, or remove it. False if somebody has changed it since it was read."""
        return await self._table.try_write(doing, self.actions(was, job))

    def actions(self, was: Item, job: Item | None) -> list[Action]:
        """What makes one job out of another, which gets the next version, or removes it."""
        same, condition = key(self.partition, was["sk"]["S"]), "ver = :ver"
        if job is None:
            change = self._table.remove(same, condition, ver=was["ver"])
        else:
            job["ver"] = whole(int(was["ver"]["N"]) + 1)
            change = self._table.put(job, condition, ver=was["ver"])
        before, after = self._traces(was), {} if job is None else self._traces(job)
        return [
            change,
            *(self._table.remove(key(*where)) for where in before if where not in after),
            *(
                # A claim with a key must be the only one with it.
                self._table.put(item, NEW if where[0] == self.keys else None)
                for where, item in after.items()
                if where not in before
            ),
        ]

    def _traces(self, job: Item) -> dict[tuple[str, str], Item]:
        """The items that stand for a job besides itself."""
        sort, found = job["sk"]["S"], []
        if job["sta"]["S"] == "pending":
            found.append((self.line, f"{PENDING}{sort}"))
        if job["sta"]["S"] == "claimed":
            worker = job["own"]["S"]
            found.append((self.of_worker(worker), sort))
            if "cky" in job:
                found.append((self.keys, claim_sort(worker, job["cky"]["S"])))
            if "til" in job:
                found.append((self.line, f"{lease_place(float(job['til']['S']))}#{sort}"))
        return {where: {**key(*where), "nr": job["nr"]} for where in found}

    def of_worker(self, worker_id: str) -> str:
        """The partition in which the claims of a worker stand."""
        return f"{hashed('k', self._pool)}{hashed('', worker_id, 'worker_id')}"

    async def end_claim(self, job: Item) -> None:
        """End a claim whose lease is over, unless somebody else has just done so."""
        ended = left(job)
        worker = ended.pop("own")["S"]
        if int(job["tri"]["N"]) >= int(job["max"]["N"]):
            ended["err"] = text(expired(worker, int(job["tri"]["N"])))
        await self.change("ending a lease", job, self.tried_again(ended))

    async def forget(self, job: Item) -> None:
        """Delete what a removed job had that did not fit into it."""
        if any("M" in job.get(name, {}) for name in ("dat", "res")):
            await sweep(self._table, values_of(number_of(job)))

    def tried_again(self, job: Item) -> Item:
        """After a failed attempt: pending, or poisoned when none is left."""
        job.pop("clm", None)
        if int(job["tri"]["N"]) < int(job["max"]["N"]):
            job["sta"] = text("pending")
        else:
            job["sta"] = text("poisoned")
            said = job.get("err", {}).get("S")
            log_poisoned(self._pool, str(number_of(job)), int(job["tri"]["N"]), said)
        return job
