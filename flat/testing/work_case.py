"""What the checks of work backends are made of: the place under test, and its clock."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from flat.backends.work import RegistrationBackend, WorkBackend, WorkPool

Clock = Callable[[], float]
START = 1_000_000.0


class WorkPlace:
    """Where the data of one check lives."""

    def __init__(
        self, *,
        work: Callable[[Clock, bool], WorkBackend] | None = None,
        registration: Callable[[Clock], RegistrationBackend] | None = None,
    ) -> None:  # fmt: skip
        self._work, self._registration = work, registration
        self._open: list[Any] = []
        self.now = START

    def clock(self) -> float:
        return self.now

    def work(self, *, keep_done: bool = False) -> WorkBackend:
        assert self._work is not None, "this place has no work backend"
        backend = self._work(self.clock, keep_done)
        self._open.append(backend)
        return backend

    def pool(self, name: str = "jobs", *, keep_done: bool = False) -> WorkPool:
        return self.work(keep_done=keep_done).pool(name)

    def registration(self) -> RegistrationBackend:
        assert self._registration is not None, "this place has no registration backend"
        backend = self._registration(self.clock)
        self._open.append(backend)
        return backend

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._open:
            await self._open.pop().close()


WorkCheck = Callable[[WorkPlace], Awaitable[None]]


class WorkChecks(list[WorkCheck]):
    """A list that functions join by being decorated with it."""

    def __call__(self, check: WorkCheck) -> WorkCheck:
        self.append(check)
        return check


async def drained(pool: WorkPool, worker: str = "drain") -> list[Any]:
    """The data of all pending jobs, in the order in which they are claimed."""
    found = []
    while (item := await pool.claim(worker)) is not None:
        found.append(item.data)
    return found


async def claimed(pool: WorkPool, worker: str = "w1", **options: Any) -> str:
    item = await pool.claim(worker, **options)
    assert item is not None, "there was a pending job, and none was given"
    return item.id
