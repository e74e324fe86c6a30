"""The objects of an S3 store: reading, writing and listing them under one prefix of a bucket."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, TypeVar

import anyio

from flat.backends.aws import Address, Aws, Refused, host_of
from flat.errors import BackendError

T = TypeVar("T")
AT_ONCE = 16
"""Calls that one task makes at the same time."""
MISSING = frozenset(("NoSuchKey", "404", "NotFound", "InvalidRange", "416"))
TAKEN = frozenset(("PreconditionFailed", "412"))
Creation = Literal["created", "there before", "there"]
"""What came of creating an object. `there`: an earlier attempt of ours may have done it, whose answer was lost."""


class Bucket:
    """A folder of a bucket, as one store object sees it. Keys are relative to it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._aws = Aws("s3", address)
        self._prefix = f"{address.prefix}/" if address.prefix else ""

    def __repr__(self) -> str:
        return f"{self.address.name}/{self.address.prefix} at {host_of(self.address)}"

    async def close(self) -> None:
        await self._aws.close()

    async def create(self) -> None:
        """Create the bucket, if it does not exist."""
        region = self.address.region
        more: dict[str, Any] = {}
        if region not in (None, "us-east-1"):
            more["CreateBucketConfiguration"] = {"LocationConstraint": region}
        try:
            await self._aws.call("creating the bucket", "create_bucket", Bucket=self.address.name, **more)
        except Refused as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise BackendError(f"creating the bucket was refused by S3: {error.__cause__}") from error

    async def put(self, key: str, data: bytes) -> None:
        await self._call("storing in S3", "put_object", Key=self._prefix + key, Body=data)

    async def put_new(self, key: str, data: bytes) -> Creation:
        """Store an object that does not exist: of several that try, one has created it."""
        attempts = 0

        async def attempt() -> None:
            nonlocal attempts
            attempts += 1
            await self._aws.attempt(
                "storing in S3",
                "put_object",
                {"Bucket": self.address.name, "Key": self._prefix + key, "Body": data, "IfNoneMatch": "*"},
            )

        try:
            await self._aws.patiently("storing in S3", attempt)
        except Refused as error:
            if error.code not in TAKEN:
                raise self._explained("storing in S3", error) from error
            return "there before" if attempts == 1 else "there"
        return "created"

    async def get(self, key: str, span: tuple[int, int] | None = None) -> bytes | None:
        """An object, or so many bytes of it from an offset on. None if it does not exist."""
        more = {} if span is None else {"Range": f"bytes={span[0]}-{span[0] + span[1] - 1}"}
        try:
            found = await self._call("reading from S3", "get_object", Key=self._prefix + key, **more)
        except BackendError as error:
            if isinstance(error.__cause__, Refused) and error.__cause__.code in MISSING:
                return None
            raise
        data: bytes = found["Body"]
        return data

    async def delete(self, key: str) -> None:
        await self._call("cleaning up in S3", "delete_object", Key=self._prefix + key)

    async def list(self, folder: str) -> list[str]:
        """The keys that begin with this, in order."""
        keys: list[str] = []
        more: dict[str, Any] = {}
        while True:
            found = await self._call("listing S3", "list_objects_v2", Prefix=self._prefix + folder, **more)
            keys += [one["Key"].removeprefix(self._prefix) for one in found.get("Contents", ())]
            if not found.get("IsTruncated"):
                return keys
            more = {"ContinuationToken": found["NextContinuationToken"]}

    async def _call(self, doing: str, operation: str, **arguments: Any) -> dict[str, Any]:
        try:
            return await self._aws.call(doing, operation, Bucket=self.address.name, **arguments)
        except Refused as error:
            raise self._explained(doing, error) from error

    def _explained(self, doing: str, error: Refused) -> BackendError:
        if error.code == "NoSuchBucket":
            return BackendError(
                f"there is no bucket {self.address.name}; create it, or add ?create=true to the URL, once"
            )
        return BackendError(f"{doing} was refused for {self!r}: {error.__cause__}")


def hashed(name: str) -> str:
    """What stands in a key for a name that may be any text."""
    return hashlib.sha256(name.encode()).hexdigest()[:40]


async def together(steps: Sequence[Callable[[], Awaitable[T]]]) -> list[T]:
    """The results of several calls, some of which are made at the same time. Raises the first error."""
    if len(steps) == 1:
        return [await steps[0]()]
    results: dict[int, T] = {}
    errors: list[Exception] = []
    limit = anyio.CapacityLimiter(AT_ONCE)

    async def take(number: int) -> None:
        async with limit:
            if errors:
                return
            try:
                results[number] = await steps[number]()
            except Exception as error:
                errors.append(error)

    async with anyio.create_task_group() as group:
        for number in range(len(steps)):
            group.start_soon(take, number)
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(steps))]
