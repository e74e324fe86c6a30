"""What the checks of a store are made of: the place under test, and records to put there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from flat.backends.protocols import Birth, CheckpointStore, Commit, Execution, Head, Lease, Owner, Signal

ALICE = Owner(owner="alice", host="elsewhere.example", pid=11)
BOB = Owner(owner="bob", host="elsewhere.example", pid=12)
TTL = 30.0


class Place:
    """Where the data of one check lives; `opener` makes a new store object for it each time."""

    def __init__(self, opener: Callable[[], CheckpointStore]) -> None:
        self._opener = opener
        self._open: list[CheckpointStore] = []

    def open(self) -> CheckpointStore:
        store = self._opener()
        self._open.append(store)
        return store

    async def reopen(self, store: CheckpointStore) -> CheckpointStore:
        """Close a store object and open another one on the same data."""
        self._open.remove(store)
        await store.close()
        return self.open()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            await self._open.pop().close()


Check = Callable[[Place], Awaitable[None]]


class Checks(list[Check]):
    """A list that functions join by being decorated with it."""

    def __call__(self, check: Check) -> Check:
        self.append(check)
        return check


def birth(execution_id: str = "e1", body: bytes = b"body 0", **columns: Any) -> Birth:
    """A new execution, born at 1000."""
    facts: dict[str, Any] = {
        "name": "machine", "kind": "yaml", "program": "digest", "status": "running", "seq": 0,
        "created_at": 1000.0, "updated_at": 1000.0, **columns,
    }  # fmt: skip
    return Birth(execution=Execution(execution_id=execution_id, **facts), body=body)


def signal(
    signal_id: str = "s1", channel: str = "c1", body: bytes = b"payload", *, to: str | None = None,
    at: float = 1500.25,
) -> Signal:  # fmt: skip
    return Signal(signal_id=signal_id, channel=channel, body=body, created_at=at, to=to)


def step(lease: Lease, seq: int, body: bytes | None = None, **rest: Any) -> Commit:
    """Commit `seq`, made at 1000 + seq."""
    text = f"body {seq}".encode() if body is None else body
    return Commit(lease=lease, seq=seq, at=1000.0 + seq, body=text, **rest)


def waiting(*channels: str, wake_at: float | None = None) -> Head:
    return Head(status="waiting", channels=channels, wake_at=wake_at)


async def begin(
    store: CheckpointStore, execution_id: str = "e1", owner: Owner = ALICE, *, now: float = 1000.0
) -> Lease:
    """Create an execution and acquire it."""
    assert await store.create(birth(execution_id))
    return await store.acquire(execution_id, owner, now=now, ttl=TTL)


async def execution(store: CheckpointStore, execution_id: str = "e1") -> Execution:
    """The columns of an execution that must be there."""
    found = await store.get(execution_id)
    assert found is not None, f"{execution_id} is gone"
    return found


async def newest(store: CheckpointStore, execution_id: str = "e1") -> int:
    return (await execution(store, execution_id)).seq


async def ids(found: AsyncIterator[Execution]) -> list[str]:
    return [one.execution_id async for one in found]


async def signal_ids(
    store: CheckpointStore, channel: str | None = None, *, to: str | None = None, limit: int | None = None
) -> list[str]:
    return [one.signal_id for one in await store.signals(channel, to=to, limit=limit)]


async def ready_ids(store: CheckpointStore, *, now: float = 0.0, limit: int | None = None) -> list[str]:
    return [one.execution_id for one in await store.ready(now=now, limit=limit)]


async def park(
    store: CheckpointStore, execution_id: str, *channels: str, wake_at: float | None = None
) -> None:
    """Create an execution that waits."""
    new = birth(execution_id, status="waiting", channels=channels, wake_at=wake_at)
    assert await store.create(new)


class refused:  # noqa: N801 - reads as a statement: `async with refused(StaleSnapshot)`
    """Expects the block to raise one of these errors."""

    def __init__(self, *kinds: type[Exception]) -> None:
        self.kinds = kinds

    async def __aenter__(self) -> None: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        names = " or ".join(one.__name__ for one in self.kinds)
        assert error is not None, f"expected {names}, and nothing was raised"
        return isinstance(error, self.kinds)
