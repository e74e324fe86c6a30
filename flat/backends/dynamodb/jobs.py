"""What a job's item says, and where in a table things of jobs stand: for `work.py`.

The attributes: `nr` number, `sta` status, `own` worker, `tri` attempts, `max` most attempts, `crt` created, `clm`
claimed, `til` end of the lease, `cky` key of the claim, `dat` data, `res` result, `err` error, `ver` version.
"""

from __future__ import annotations

from flat.backends import work
from flat.backends.dynamodb.table import Item, hashed, numbered, sortable
from flat.backends.work import WorkStatus

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
