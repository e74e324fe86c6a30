"""What every work backend and every register of workers must do, as checks that anybody can run.

A check is an async function that takes a `WorkPlace` and raises AssertionError. A place knows how to open the
backends: each `place.work()` and `place.registration()` gives another object on the same data, with the clock of
the place, and all are closed at the end. With pytest:

    import pytest
    from flat.testing.work import WORK_CHECKS, WorkCheck, WorkPlace

    pytestmark = pytest.mark.anyio

    @pytest.mark.parametrize("check", WORK_CHECKS, ids=lambda check: check.__name__)
    async def test_my_pools(check: WorkCheck, tmp_path: Path) -> None:
        def work(clock: Clock, keep_done: bool) -> WorkBackend:
            return MyWork(tmp_path / "data", clock=clock, keep_done=keep_done)

        async with WorkPlace(work=work) as place:
            await check(place)

Each check wants an empty place. Backends whose objects share nothing, such as those in memory, run the
`LONE_…_CHECKS` only. Nothing sleeps: the clock stands still until a check moves it.
"""

from __future__ import annotations

from flat.testing import work_claims, work_pools, work_register
from flat.testing.work_case import Clock, WorkCheck, WorkPlace

__all__ = [
    "LONE_REGISTRATION_CHECKS",
    "LONE_WORK_CHECKS",
    "REGISTRATION_CHECKS",
    "WORK_CHECKS",
    "Clock",
    "WorkCheck",
    "WorkPlace",
]

LONE_WORK_CHECKS: tuple[WorkCheck, ...] = (*work_pools.LONE, *work_claims.LONE)
"""Checks that one work backend object passes or fails."""

WORK_CHECKS: tuple[WorkCheck, ...] = LONE_WORK_CHECKS + tuple(work_pools.SHARED)
"""All checks of a work backend."""

LONE_REGISTRATION_CHECKS: tuple[WorkCheck, ...] = tuple(work_register.LONE)
"""Checks that one register object passes or fails."""

REGISTRATION_CHECKS: tuple[WorkCheck, ...] = (*work_register.LONE, *work_register.SHARED)
"""All checks of a register of workers."""
