"""What every store must do, as checks that anybody can run against a store of their own.

A check is an async function that takes a `Place` and raises AssertionError. A place knows how to open the
store: each `place.open()` gives another store object on the same data, and all are closed at the end. With
pytest:

    import pytest
    from flat.testing.stores import CHECKS, Check, Place

    pytestmark = pytest.mark.anyio

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    async def test_my_store(check: Check, tmp_path: Path) -> None:
        async with Place(lambda: MyStore(tmp_path / "data")) as place:
            await check(place)

Each check wants an empty place. A store whose objects share nothing, such as one in memory, runs
`LONE_CHECKS` only. The clock is in the arguments, so nothing sleeps.
"""

from __future__ import annotations

from flat.testing import store_commits, store_leases, store_queries, store_signals, store_values
from flat.testing.store_case import Check, Place

__all__ = ["CHECKS", "LONE_CHECKS", "SHARED_CHECKS", "Check", "Place"]

LONE_CHECKS: tuple[Check, ...] = (
    *store_leases.LONE, *store_commits.LONE, *store_queries.LONE, *store_values.LONE, *store_signals.LONE,
)  # fmt: skip
"""Checks that one store object passes or fails."""

SHARED_CHECKS: tuple[Check, ...] = (
    *store_leases.SHARED, *store_commits.SHARED, *store_queries.SHARED, *store_values.SHARED, *store_signals.SHARED,
)  # fmt: skip
"""Checks that need several store objects on the same data."""

CHECKS: tuple[Check, ...] = LONE_CHECKS + SHARED_CHECKS
