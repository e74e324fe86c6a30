"""Work pools in a table of DynamoDB, for workers on any number of hosts.

    work = DynamoWorkBackend("dynamodb://flat?region=eu-central-1")

A job is an item of its pool's partition, under a number that a counter gave it, so jobs stand in the order of their
pushes. Whatever is looked for is a small item of its own, in the same table and written in the same transaction: one
for each claim by its worker (`k#`) and by its key (`h#`), and three kinds that stand in one line (`q#`) in the order in
which whoever wants a job has to look at them: claims by the end of their lease, the latest first; lists of jobs that
are to be entered; pending jobs. So the query from the claims that end now on finds all that is to be done before, and
the head of the pending ones: a claim costs that, a read and a transaction, however many wait. Nothing here depends on
an index that lags. Of several workers that want the same job the transaction gives it to one, and the others take the
next.

A job carries a version that each change raises and asks for, so two never change it both.

`push_many` of more than fit into a transaction (50) is made certain by one, and enters in parts right after it; whoever
finds no other job goes on with what somebody else left. `complete_many` ends at most 25 jobs at once, and refuses more.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from flat.backends.aws import Address, parse_url
from flat.backends.dynamodb.jobs import (
    LIST,
    PENDING,
    Jobs,
    claim_sort,
    is_over,
    lease_place,
    left,
    number_of,
    refuse_foreign,
    status_of,
)
from flat.backends.dynamodb.outbox import Outbox, write_with_arrivals
from flat.backends.dynamodb.table import (
    MOST_ACTIONS,
    Action,
    Item,
    Table,
    hashed,
    key,
    text,
    whole,
)
from flat.backends.work import (
    Clock,
    WorkItem,
    WorkStatus,
    check_status,
    checked_lease,
    checked_limit,
    checked_name,
    checked_retries,
    checked_worker,
    encode,
    error_text,
    number_in,
)
from flat.errors import WorkItemNotFound, WorkNotHeld

EXAMPLE = "dynamodb://flat?region=eu-central-1"
LOOK = 10
"""Pending jobs that a claim reads, so that it has others when the first are taken meanwhile."""
MOST_KNOWN = 10_000
"""Claimed jobs that are remembered as we left them."""


class DynamoWorkBackend:
    """Pools in a table. With `keep_done`, completed jobs stay with their results."""

    def __init__(self, address: str | Address, *, keep_done: bool = False, clock: Clock = time.time) -> None:
        self.table = Table(parse_url("dynamodb", address, EXAMPLE) if isinstance(address, str) else address)
        self.keep_done, self.clock = keep_done, clock
        self.known: set[str] = set()
        self.trying: set[tuple[str, int]] = set()
        """Jobs that tasks of ours are about to claim."""
        self.claimed: dict[tuple[str, str], Item] = {}
        """Jobs that they have claimed, as they left them."""

    def __repr__(self) -> str:
        return f"DynamoWorkBackend({self.table!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def remember(self, pool: str, job: Item) -> None:
        while len(self.claimed) >= MOST_KNOWN:
            self.claimed.pop(next(iter(self.claimed)))
        self.claimed[pool, str(number_of(job))] = dict(job)

    def pool(self, name: str) -> DynamoWorkPool:
        return DynamoWorkPool(self, checked_name("pool", name))

    async def pools(self) -> Sequence[str]:
        found = []
        for item in await self.table.query("listing pools", "pools"):
            name = item["nm"]["S"]
            await self.pool(name).enter_all()
            pages = self.table.pages(
                "listing pools", hashed("j", name), first="0", last="9" * 21, limit=1, keys_only=True
            )
            if await anext(pages):
                found.append(name)
        return sorted(found)

    async def close(self) -> None:
        await self.table.close()


class DynamoWorkPool:
    """One queue."""

    def __init__(self, backend: DynamoWorkBackend, name: str) -> None:
        self.name = name
        self._backend, self._table = backend, backend.table
        self._jobs = Jobs(backend.table, name, backend.clock)
        self._outbox = Outbox(backend.table, self._jobs.line, LIST)

    # -- in -----------------------------------------------------------------------------------

    async def push(
        self, item: Any, options: Mapping[str, Any] | None = None, *, max_retries: int | None = None
    ) -> str:
        return (await self.push_many((item,), max_retries=checked_retries(options, max_retries)))[0]

    async def push_many(self, items: Sequence[Any], *, max_retries: int | None = None) -> Sequence[str]:
        retries = checked_retries(None, max_retries)
        bodies = [encode(item, "item") for item in items]
        if not bodies:
            return []
        if self.name not in self._backend.known:
            await self._table.put_now(
                "pushing a job", {**key("pools", hashed("", self.name)), "nm": text(self.name)}
            )
            self._backend.known.add(self.name)
        first = await self._table.count("jobs", len(bodies))
        arrivals = [await self._jobs.arrival(first + n, body, retries) for n, body in enumerate(bodies)]
        if 2 * len(arrivals) <= MOST_ACTIONS and sum(map(len, bodies)) <= 2_000_000:
            await write_with_arrivals(self._table, "pushing a job", [], arrivals)
        else:
            name, certain = await self._outbox.prepare(arrivals)
            await self._table.write("pushing jobs", [certain])
            await self._outbox.deliver(name)
        return [str(first + n) for n in range(len(bodies))]

    # -- out ----------------------------------------------------------------------------------

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> WorkItem | None:
        worker_id, lease = checked_worker(worker_id), checked_lease(lease)
        if key is not None:
            checked_name("key", key)
        now = self._backend.clock()
        if key is not None and (held := await self._held_with(worker_id, key)) is not None:
            return held
        given = await self._give(worker_id, 1, now, lease, key)
        return given[0] if given else None

    async def claim_many(
        self, worker_id: str, limit: int, *, lease: float | None = None
    ) -> Sequence[WorkItem]:
        worker_id, lease = checked_worker(worker_id), checked_lease(lease)
        wanted, now = checked_limit(limit), self._backend.clock()
        return await self._give(worker_id, wanted, now, lease, None)

    async def _held_with(self, worker_id: str, claim_key: str) -> WorkItem | None:
        found = await self._table.get("claiming a job", self._jobs.keys, claim_sort(worker_id, claim_key))
        job = None if found is None else await self._jobs.current(int(found["nr"]["N"]))
        if job is None or job["sta"]["S"] != "claimed" or job.get("own", {}).get("S") != worker_id:
            return None
        return await self._jobs.work_item(job)

    async def _give(
        self, worker_id: str, wanted: int, now: float, lease: float | None, claim_key: str | None
    ) -> list[WorkItem]:
        """Give the oldest pending jobs away, save those that another task of ours is about to claim."""
        given: list[WorkItem] = []
        trying = self._backend.trying
        while len(given) < wanted:
            heads = await self._heads("claiming a job", now, max(LOOK, wanted - len(given)))
            if not heads:
                break
            for head in heads:
                if len(given) == wanted:
                    break
                if (self.name, head) in trying:
                    continue
                trying.add((self.name, head))
                try:
                    job = await self._jobs.read(head)
                    won = (
                        job is not None
                        and job["sta"]["S"] == "pending"
                        and await self._claim(job, worker_id, now, lease, claim_key)
                    )
                finally:
                    trying.discard((self.name, head))
                if job is not None and won:
                    self._backend.remember(self.name, job)
                    given.append(await self._jobs.work_item(job))
                elif claim_key is not None and (held := await self._held_with(worker_id, claim_key)):
                    return [held]
        return given

    async def _claim(
        self, job: Item, worker_id: str, now: float, lease: float | None, claim_key: str | None
    ) -> bool:
        """Claim a job as it was read, and change what was read accordingly. False if somebody was faster."""
        was = dict(job)
        job |= {
            "sta": text("claimed"), "own": text(worker_id), "tri": whole(int(job["tri"]["N"]) + 1),
            "clm": text(repr(now)),
        }  # fmt: skip
        for name, value in (("til", None if lease is None else repr(now + lease)), ("cky", claim_key)):
            job.pop(name, None)
            if value is not None:
                job[name] = text(value)
        return await self._jobs.change("claiming a job", was, job)

    # -- held ---------------------------------------------------------------------------------

    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool:
        seconds, now = checked_lease(lease), self._backend.clock()
        while True:
            job = await self._by_id(item_id)
            if job is None or job["sta"]["S"] != "claimed" or job["own"]["S"] != worker_id or seconds is None:
                return False
            if await self._jobs.change("renewing a claim", job, {**job, "til": text(repr(now + seconds))}):
                return True

    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None:
        await self.complete_many({item_id: result}, worker_id=worker_id)

    async def complete_many(self, results: Mapping[str, Any], *, worker_id: str | None = None) -> None:
        doing = "completing jobs"
        bodies = {item_id: encode(result, "result") for item_id, result in results.items()}
        while True:
            actions: list[Action] = []
            gone: list[Item] = []
            for item_id, body in bodies.items():
                job = self._held(item_id) or await self._found(item_id)
                if job["sta"]["S"] == "done" and worker_id in (None, job.get("own", {}).get("S")):
                    continue
                refuse_foreign(job, worker_id)
                if self._backend.keep_done:
                    done = {
                        **left(job),
                        "sta": text("done"),
                        "res": await self._jobs.attribute(number_of(job), body),
                    }
                    if (worker := worker_id or job.get("own", {}).get("S")) is not None:
                        done["own"] = text(worker)
                    actions += self._jobs.actions(job, done)
                else:
                    actions += self._jobs.actions(job, None)
                    gone.append(job)
            if not actions or await self._table.try_write(doing, actions):
                break
        for job in gone:
            await self._jobs.forget(job)

    def _held(self, item_id: str) -> Item | None:
        """A claimed job as we left it, once: if somebody has changed it since, it has to be read."""
        job = self._backend.claimed.pop((self.name, item_id), None)
        return None if job is None or is_over(job, self._backend.clock()) else job

    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> WorkStatus:
        while True:
            job = await self._found(item_id)
            refuse_foreign(job, worker_id)
            failed = left(job)
            failed.pop("own", None)
            failed.pop("err", None)
            if (said := error_text(error)) is not None:
                failed["err"] = text(said)
            if await self._jobs.change("failing a job", job, self._jobs.tried_again(failed)):
                return status_of(failed)

    async def release_by_worker(self, worker_id: str) -> int:
        doing, released = "releasing jobs", 0
        for claim in await self._table.query(doing, self._jobs.of_worker(worker_id)):
            while True:
                job = await self._jobs.read(int(claim["sk"]["S"]))
                if job is None or job["sta"]["S"] != "claimed" or job["own"]["S"] != worker_id:
                    break
                free = {**left(job), "sta": text("pending")}
                free.pop("own", None)
                free.pop("clm", None)
                if await self._jobs.change(doing, job, free):
                    released += 1
                    break
        return released

    # -- looking ------------------------------------------------------------------------------

    async def size(self) -> int:
        return len(await self._heads("counting jobs", self._backend.clock()))

    async def get(self, item_id: str) -> WorkItem | None:
        job = await self._by_id(item_id)
        return None if job is None else await self._jobs.work_item(job)

    async def items(
        self, *, status: WorkStatus | None = None, limit: int | None = None
    ) -> Sequence[WorkItem]:
        check_status(status)
        await self._heads("listing jobs", self._backend.clock())
        found: list[WorkItem] = []
        async for page in self._table.pages("listing jobs", self._jobs.partition, first="0", last="9" * 21):
            for job in page:
                if limit is not None and len(found) >= limit:
                    return found
                if status in (None, job["sta"]["S"]):
                    found.append(await self._jobs.work_item(job))
        return found

    async def retry(self, item_id: str) -> None:
        while True:
            job = await self._found(item_id)
            if job["sta"]["S"] != "poisoned":
                raise WorkNotHeld(item_id, f"it is {job['sta']['S']}, not poisoned")
            if await self._jobs.change(
                "trying a job again", job, {**job, "sta": text("pending"), "tri": whole(0)}
            ):
                return

    async def discard(self, item_id: str) -> bool:
        while True:
            job = await self._by_id(item_id)
            if job is None:
                return False
            if job["sta"]["S"] == "claimed":
                raise WorkNotHeld(item_id, f"worker {job['own']['S']} holds it")
            if await self._jobs.change("discarding a job", job, None):
                await self._jobs.forget(job)
                return True

    # -- inside -------------------------------------------------------------------------------

    async def enter_all(self) -> None:
        """Enter the jobs that somebody pushed and did not live to enter."""
        await self._outbox.deliver_all()

    async def _heads(self, doing: str, now: float, limit: int | None = None) -> list[int]:
        """The pending jobs in order, after all that has to be seen to before: `limit` or more, if there are."""
        while True:
            heads: list[int] = []
            lists: list[str] = []
            ended = False
            pages = self._table.pages(
                doing,
                self._jobs.line,
                first=lease_place(now),
                last=f"{PENDING}~",
                limit=limit,
                keys_only=True,
            )
            async for page in pages:
                for place in (item["sk"]["S"] for item in page):
                    if place.startswith(PENDING):
                        heads.append(int(place.removeprefix(PENDING)))
                    elif place.startswith(LIST):
                        lists.append(place.removeprefix(LIST))
                    else:
                        ended = True
                        job = await self._jobs.read(int(place.rpartition("#")[2]))
                        if job is not None and is_over(job, now):
                            await self._jobs.end_claim(job)
                if limit is not None and len(heads) >= limit:
                    break
            # Somebody is about to enter a list: help only if there is nothing else to do.
            if lists and (limit is None or not heads):
                ended = True
                await self.enter_all()
            if not ended:
                return heads

    async def _by_id(self, item_id: str) -> Item | None:
        if not (number := number_in(item_id)):
            return None
        job = await self._jobs.current(number)
        if job is None:
            await self.enter_all()
            job = await self._jobs.current(number)
        return job

    async def _found(self, item_id: str) -> Item:
        job = await self._by_id(item_id)
        if job is None:
            raise WorkItemNotFound(item_id, self.name)
        return job
