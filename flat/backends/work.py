"""Work pools and the register of workers: what such backends must do, and what all of them share.

A *pool* is a queue of jobs that any number of processes push to and claim from. A *register* says which workers
there are, and when each was last heard of. Neither knows anything of machines.

**What every implementation must guarantee.** Each method is one atomic operation: it happens wholly or not at all,
and two callers never see it half done.

- `claim` hands a job to one caller. It takes the oldest pending one, counts the attempt, and costs the same however
  many jobs wait (an index or list of pending jobs, never a scan).
- A job that was pushed is never lost: until it is completed it is pending, claimed, or poisoned.
- Who names a worker in `complete`, `fail` or `renew` is refused unless that very worker holds the job, so that one
  who was thought dead cannot overwrite what its successor does.
- A claim with a `lease` ends by itself when the lease is over. That is noticed by whoever looks next (`claim`,
  `size`, `items`, `get`); a job whose attempts are used up is poisoned then, because a job that kills its workers
  would go round for ever.
- Ids are never used twice, and names may be any text: nothing is concatenated into keys, paths or SQL.
- Data, results and metadata are JSON. What is read is a copy; changing it changes nothing in the pool.

In Redis such an operation is one script over a list of pending ids and a hash per job; in PostgreSQL one statement
with `FOR UPDATE SKIP LOCKED`; in DynamoDB one conditional write on the head of a sparse index, tried again when
another was faster. `flat.testing.work` has the checks for an implementation of your own.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import orjson

from flat.backends.checks import check_text
from flat.errors import BackendError, NotStorable, UnknownName, WorkNotHeld

WorkStatus = Literal["pending", "claimed", "done", "poisoned"]
Clock = Callable[[], float]
STATUSES: tuple[WorkStatus, ...] = ("pending", "claimed", "done", "poisoned")
PENDING, CLAIMED, DONE, POISONED = range(4)
"""Where a status is a number: its place among those."""
LONGEST_NUMBER = 18
"""Digits of the numbers that ids are made of."""
MAX_RETRIES = 3
"""How often a job is tried before it is poisoned, unless it was pushed with another number."""

log = logging.getLogger("flat.work")


@dataclass(frozen=True, slots=True)
class WorkItem:
    """A job of a pool, as it was when it was read. Times are seconds since the epoch."""

    id: str
    data: Any
    claimed_by: str | None = None
    attempts: int = 0
    """How often it was claimed."""
    max_retries: int = MAX_RETRIES
    """Attempts after which a failure poisons it."""
    status: WorkStatus = "pending"
    created_at: float = 0.0
    claimed_at: float | None = None
    lease_until: float | None = None
    """When the claim ends by itself, if it does."""
    error: str | None = None
    """What the last failure said."""
    result: Any = None
    """What it was completed with, where results are kept."""


class WorkPool(Protocol):
    """One queue of jobs."""

    @property
    def name(self) -> str: ...

    async def push(
        self, item: Any, options: Mapping[str, Any] | None = None, *, max_retries: int | None = None
    ) -> str:
        """Add a job and return its id. `options` may hold `max_retries` as well."""
        ...

    async def push_many(self, items: Sequence[Any], *, max_retries: int | None = None) -> Sequence[str]:
        """Add jobs in this order, all or none."""
        ...

    async def claim(
        self, worker_id: str, *, lease: float | None = None, key: str | None = None
    ) -> WorkItem | None:
        """Take the oldest pending job, or None. Counts the attempt.

        With a `lease` the claim lasts that many seconds unless it is renewed. A worker that claims with the `key`
        of a job that it holds gets that same job, so that a claim whose answer was lost can be repeated.
        """
        ...

    async def claim_many(
        self, worker_id: str, limit: int, *, lease: float | None = None
    ) -> Sequence[WorkItem]:
        """Take up to `limit` of the oldest pending jobs, oldest first."""
        ...

    async def renew(self, item_id: str, worker_id: str, *, lease: float) -> bool:
        """Make the claim last `lease` seconds from now. False if the worker does not hold the job (any more)."""
        ...

    async def complete(self, item_id: str, result: Any = None, *, worker_id: str | None = None) -> None:
        """The job is done. It is deleted, or kept with its result where the backend was told to.

        Raises `WorkItemNotFound`, and `WorkNotHeld` when `worker_id` is given and does not hold it. Completing
        what is kept as done changes nothing, so that it can be repeated.
        """
        ...

    async def complete_many(self, results: Mapping[str, Any], *, worker_id: str | None = None) -> None:
        """Complete jobs, each with its result: all of them, or none when one is refused."""
        ...

    async def fail(self, item_id: str, error: Any = None, *, worker_id: str | None = None) -> WorkStatus:
        """The attempt failed: back to `pending` in its old place, or `poisoned` when the attempts are used up."""
        ...

    async def release_by_worker(self, worker_id: str) -> int:
        """Put all that a worker has claimed back, in its old place. Attempts stay counted; nothing is poisoned."""
        ...

    async def size(self) -> int:
        """How many jobs are pending."""
        ...

    async def get(self, item_id: str) -> WorkItem | None: ...

    async def items(
        self, *, status: WorkStatus | None = None, limit: int | None = None
    ) -> Sequence[WorkItem]:
        """The jobs, oldest first: to see what is poisoned, and why."""
        ...

    async def retry(self, item_id: str) -> None:
        """Make a poisoned job pending again, with all its attempts. Raises `WorkNotHeld` if it is not poisoned."""
        ...

    async def discard(self, item_id: str) -> bool:
        """Remove a job that nobody holds: pending, done or poisoned. False if there is no such job."""
        ...


class WorkBackend(Protocol):
    """Pools by name. A pool begins to exist when something is pushed to it."""

    def pool(self, name: str) -> WorkPool: ...

    async def pools(self) -> Sequence[str]:
        """The names of the pools that have jobs of any status, in order."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class WorkerRegistration:
    """What a worker says about itself when it begins."""

    worker_id: str
    host: str = ""
    pid: int = 0
    capabilities: Sequence[str] = ()
    started_at: float = field(default_factory=time.time)
    pool_id: str = "default"


class Registering(Protocol):
    """Anything of the shape of a `WorkerRegistration`."""

    @property
    def worker_id(self) -> str: ...
    @property
    def host(self) -> str: ...
    @property
    def pid(self) -> int: ...
    @property
    def capabilities(self) -> Sequence[str]: ...
    @property
    def pool_id(self) -> str: ...
    @property
    def started_at(self) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord(WorkerRegistration):
    """A worker as the register knows it."""

    status: str = "active"
    """Any text; by convention active, terminating, terminated, lost."""
    last_heartbeat: float = 0.0
    current_task_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "capabilities": list(self.capabilities), "metadata": dict(self.metadata)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> WorkerRecord:
        return cls(**{**data, "capabilities": tuple(data.get("capabilities", ()))})


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Which workers to list; every condition that is given must hold."""

    status: str | Sequence[str] | None = None
    """One status, or several of which one will do."""
    capability: str | None = None
    stale_threshold_seconds: float | None = None
    """Only those that have not been heard of for longer than this. 0 and None: whether heard of or not."""
    pool_id: str | None = None


class Filtering(Protocol):
    """Anything of the shape of a `WorkerFilter`."""

    @property
    def status(self) -> str | Sequence[str] | None: ...
    @property
    def capability(self) -> str | None: ...
    @property
    def stale_threshold_seconds(self) -> float | None: ...
    @property
    def pool_id(self) -> str | None: ...


class RegistrationBackend(Protocol):
    """The register of workers. Unknown ids raise `WorkerNotFound`."""

    async def register(self, worker: Registering) -> WorkerRecord:
        """Enter a worker as active and heard of now, in place of any record under its id."""
        ...

    async def heartbeat(
        self, worker_id: str, metadata: Mapping[str, Any] | None = None, *, current_task_id: str | None = None
    ) -> None:
        """The worker was heard of now. Metadata are merged; a task id replaces the one before, "" takes it away.

        The status stays: who was declared lost does not become active by being heard of again.
        """
        ...

    async def update_status(self, worker_id: str, status: str) -> None: ...

    async def get(self, worker_id: str) -> WorkerRecord | None: ...

    async def list(self, filter: Filtering | None = None) -> Sequence[WorkerRecord]:
        """The workers that pass the filter, by their ids."""
        ...

    async def close(self) -> None: ...


# -- what implementations share -----------------------------------------------------------------


def encode(value: Any, path: str) -> bytes:
    """A value as JSON. Raises `NotStorable`, with the path, at anything that would come back as something else."""
    try:
        _check(value, path)
        return orjson.dumps(value)
    except RecursionError:
        raise NotStorable(path, "value that is nested too deeply", "make it flatter") from None
    except orjson.JSONEncodeError as error:
        raise NotStorable(path, f"value that is not JSON ({error})") from error


def _check(value: Any, path: str) -> None:
    cls = type(value)
    if cls is str or cls is bool or value is None:
        return
    if isinstance(value, bool | str):
        raise NotStorable(path, cls.__name__, "store its plain value")
    if isinstance(value, int):
        if not -(2**63) <= value < 2**64:
            raise NotStorable(path, "number of more than 64 bits", "store it as text")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise NotStorable(path, f"{value} as a number", "it is no JSON value")
    elif isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                raise NotStorable(path, f"mapping with the key {key!r}", "use text for keys")
            _check(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for i, item in enumerate(value):
            _check(item, f"{path}[{i}]")
    else:
        raise NotStorable(path, cls.__name__, "jobs hold JSON: text, numbers, lists and mappings")


def checked_name(path: str, value: Any) -> str:
    """A name that may be any text that can be stored."""
    if not isinstance(value, str):
        raise NotStorable(path, type(value).__name__, "give text")
    check_text(path, value)
    return value


def checked_worker(worker_id: Any) -> str:
    if worker_id == "":
        raise BackendError("a worker_id is empty; give each worker a name of its own")
    return checked_name("worker_id", worker_id)


def checked_lease(lease: float | None) -> float | None:
    if lease is None:
        return None
    if isinstance(lease, bool) or not isinstance(lease, int | float) or not 0 < lease < math.inf:
        raise BackendError(f"a lease is a number of seconds above 0, not {lease!r}")
    return float(lease)


def checked_retries(options: Mapping[str, Any] | None, max_retries: int | None) -> int:
    """The number of attempts that a push asks for, by its option or its keyword."""
    if options and (unknown := set(options) - {"max_retries"}):
        raise UnknownName("option of push", min(map(str, unknown)), ["max_retries"])
    wanted = max_retries if max_retries is not None else (options or {}).get("max_retries", MAX_RETRIES)
    if isinstance(wanted, bool) or not isinstance(wanted, int) or not 0 <= wanted < 2**31:
        raise BackendError(f"max_retries is a whole number from 0 on, not {wanted!r}")
    return wanted


def checked_limit(limit: Any) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
        raise BackendError(f"the number of jobs to claim is a whole number above 0, not {limit!r}")
    return limit


def error_text(error: Any) -> str | None:
    """What is kept of an error: its words, whatever they hold."""
    if error is None:
        return None
    text = f"{type(error).__name__}: {error}" if isinstance(error, BaseException) else str(error)
    return text.encode(errors="backslashreplace").decode()


def expired(worker_id: str | None, attempts: int) -> str:
    """The error of a job that was poisoned because its claim ran out too often."""
    return f"the lease of worker {worker_id} ran out in attempt {attempts}, and no attempt is left"


def statuses(wanted: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """The statuses that a filter lets pass, or None for all."""
    if wanted is None:
        return None
    return (wanted,) if isinstance(wanted, str) else tuple(wanted)


def passes(record: WorkerRecord, filter: Filtering | None, now: float) -> bool:
    """Whether a worker is one of those that a filter asks for."""
    if filter is None:
        return True
    allowed, stale = statuses(filter.status), filter.stale_threshold_seconds
    return (
        (allowed is None or record.status in allowed)
        and (filter.capability is None or filter.capability in record.capabilities)
        and (not stale or record.last_heartbeat < now - stale)
        and (filter.pool_id is None or record.pool_id == filter.pool_id)
    )


def check_status(status: str | None) -> None:
    """Raise `UnknownName` unless a listing of jobs can ask for this; None is all."""
    if status is not None and status not in STATUSES:
        raise UnknownName("status of jobs", status, STATUSES)


def log_poisoned(pool: str, item_id: str, attempts: int, error: str | None) -> None:
    """Tell the log of a job that nobody will try again by itself."""
    log.warning("job %s of pool %s is poisoned after %d attempts: %s", item_id, pool, attempts, error)


def item_of(row: Sequence[Any]) -> WorkItem:
    """A job as a row of SQL, where its status is a number."""
    return WorkItem(
        id=str(row[0]), data=orjson.loads(row[1]), status=STATUSES[row[2]], claimed_by=row[3], attempts=row[4],
        max_retries=row[5], created_at=row[6], claimed_at=row[7], lease_until=row[8], error=row[9],
        result=None if row[10] is None else orjson.loads(row[10]),
    )  # fmt: skip


def number_in(item_id: Any, longest: int = LONGEST_NUMBER) -> int:
    """The number in an id of a job; 0, which no job has, for what cannot be one."""
    if (
        not isinstance(item_id, str)
        or not item_id.isascii()
        or not item_id.isdigit()
        or len(item_id) > longest
    ):
        return 0
    num = int(item_id)
    return num if str(num) == item_id else 0


def not_held(item_id: str, status: str, holder: str | None, worker_id: str | None) -> WorkNotHeld:
    """Why a worker may not end a job that is there."""
    if status in ("done", "poisoned"):
        return WorkNotHeld(item_id, f"it is {status}")
    why = f"worker {holder} holds it" if holder else "it has been put back"
    return WorkNotHeld(item_id, why, worker_id or "")


def refuse_foreign(item_id: str, status: str, holder: str | None, worker_id: str | None) -> None:
    """Raise `WorkNotHeld` unless the job can be ended, by anybody or by this very worker."""
    if status not in ("pending", "claimed") or worker_id not in (None, holder):
        raise not_held(item_id, status, holder, worker_id)


def registration_of(worker: Registering) -> WorkerRegistration:
    """A checked copy of what a worker says about itself."""
    capabilities = (worker.capabilities,) if isinstance(worker.capabilities, str) else worker.capabilities
    return WorkerRegistration(
        worker_id=checked_worker(worker.worker_id),
        host=checked_name("host", worker.host),
        pid=int(worker.pid),
        capabilities=tuple(checked_name("capability", one) for one in capabilities),
        pool_id=checked_name("pool_id", getattr(worker, "pool_id", "default")),
        started_at=float(worker.started_at),
    )
