"""Which blobs a stored body refers to. The marker is searched as bytes, because most bodies have none.

Text that a user or a model wrote cannot pass for a reference: within JSON its quotes are escaped.
"""

from __future__ import annotations

from collections.abc import Iterator

from flat.drivers.keeper import FLAG


def blob_names(body: bytes) -> Iterator[str]:
    """The digests of the blobs that a body, or a row of a log, refers to; one may come several times."""
    at = body.find(FLAG)
    while at >= 0:
        end = body.find(b'"', at + len(FLAG))
        if end < 0:
            return
        yield body[at + len(FLAG) : end].decode(errors="backslashreplace")
        at = body.find(FLAG, end)
