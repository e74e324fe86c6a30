"""The replica of an S3 store at rest, so that whoever opens the store need not read all of its journal.

`states/<entry>` says how far it goes, and lists the *pages* that belong to it: `pages/<kind>/<number>-<entry>`, each of
which holds some executions that were born one after the other, or some ids of signals, or some blobs. A page is never
changed. A state that follows another one names its pages again, and new ones for what has changed: so storing it costs
what has happened since, not what there is. The last two states are kept, so that nobody is disturbed in reading one.

Several processes may store states. Each builds on the newest that it finds, and deletes only pages that are older than
that one and belong neither to it nor to its own; pages that somebody else has just written are newer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson

from flat.backends.s3.bucket import Bucket, together
from flat.backends.s3.replica import CHUNK, Replica
from flat.errors import BackendError

TRIES = 5
"""States that are begun to be read: each may be deleted meanwhile, once there are two newer ones."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a state consists of: for each page, the entry of the journal after which it was written."""

    applied: int = 0
    rows: dict[int, int] = field(default_factory=dict)
    """By the number of the page. Pages of executions that are all deleted are missing."""
    sent: list[int] = field(default_factory=list)
    blobs: list[int] = field(default_factory=list)
    rest: Any = None
    """What is in no page."""

    def pages(self) -> list[str]:
        return [
            *(_page("rows", number, written) for number, written in sorted(self.rows.items())),
            *(_page("sent", number, written) for number, written in enumerate(self.sent)),
            *(_page("blobs", number, written) for number, written in enumerate(self.blobs)),
        ]

    def dump(self) -> bytes:
        return orjson.dumps(
            [self.applied, sorted(self.rows.items()), self.sent, self.blobs, self.rest]
        )  # fmt: skip


def _read(data: bytes) -> Contents:
    applied, rows, sent, blobs, rest = orjson.loads(data)
    return Contents(applied, dict(rows), sent, blobs, rest)


def _state(entry: int) -> str:
    return f"states/{entry:020d}"


def _page(kind: str, number: int, written: int) -> str:
    return f"pages/{kind}/{number:010d}-{written:020d}"


class States:
    """The states of one store."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._newest = Contents()

    async def load(self, after: int) -> Replica | None:
        """The newest one, if it goes further than this entry."""
        for _ in range(TRIES):
            contents = await self._find()
            if contents is None or contents.applied <= after:
                return None
            pages = await together([partial(self._bucket.get, key) for key in contents.pages()])
            if None not in pages:
                read = [orjson.loads(page) for page in pages if page is not None]
                rows, sent = len(contents.rows), len(contents.sent)
                return Replica.restored(
                    contents.applied,
                    contents.rest,
                    read[:rows],
                    read[rows : rows + sent],
                    read[rows + sent :],
                )
        raise BackendError(f"the state of the store {self._bucket!r} cannot be read: parts of it are missing")

    async def _find(self) -> Contents | None:
        """What the newest one consists of."""
        for _ in range(TRIES):
            keys = await self._bucket.list("states/")
            if not keys:
                return None
            if keys[-1] == _state(self._newest.applied):
                return self._newest
            if (data := await self._bucket.get(keys[-1])) is not None:
                self._newest = _read(data)
                return self._newest
        raise BackendError(f"the state of the store {self._bucket!r} cannot be read")

    async def store(self, replica: Replica) -> None:
        """Store a state, unless there is a newer one."""
        before = await self._find() or Contents()
        if before.applied >= replica.applied:
            return
        contents, pages = _changed(replica, before)
        await together([partial(self._bucket.put, key, data) for key, data in pages.items()])
        await self._bucket.put(_state(contents.applied), contents.dump())
        self._newest = contents
        replica.forget_changes(contents.applied)
        await self._clean(before, contents)

    async def _clean(self, before: Contents, contents: Contents) -> None:
        old = [key for key in await self._bucket.list("states/") if key < _state(before.applied)]
        needed = {*before.pages(), *contents.pages()}
        for key in await self._bucket.list("pages/"):
            if key not in needed and int(key.rpartition("-")[2]) < before.applied:
                old.append(key)
        await together([partial(self._bucket.delete, key) for key in old])


def _changed(replica: Replica, before: Contents) -> tuple[Contents, dict[str, bytes]]:
    """What a new state consists of, and the pages that an earlier one does not have."""
    entry, pages = replica.applied, dict[str, bytes]()
    changes = replica.changes(before.applied)
    if changes is None:
        before, changes = Contents(), replica.pages()
    rows = dict(before.rows)
    for number in changes:
        rows.pop(number, None)
        if (page := replica.page(number)) is not None:
            rows[number] = entry
            pages[_page("rows", number, entry)] = orjson.dumps(page)
    kinds: list[list[int]] = []
    for kind, known, chunks in (
        ("sent", before.sent, replica.sent_chunk), ("blobs", before.blobs, replica.blobs_chunk),
    ):  # fmt: skip
        count = replica.sizes()[kind] // CHUNK
        if kind == "blobs" and before.applied < replica.dropped:
            known = []
        for number in range(len(known), count):
            pages[_page(kind, number, entry)] = orjson.dumps(chunks(number))
        kinds.append([*known, *([entry] * (count - len(known)))])
    return Contents(entry, rows, kinds[0], kinds[1], replica.rest()), pages
