"""What a worker takes of a page, beside others that want the same."""

from __future__ import annotations

from random import Random

import pytest

from flat.backends.protocols import Execution, Owner
from flat.drivers.clock import SystemClock
from flat.drivers.fleet import Fleet
from flat.drivers.page import STALE_AFTER, Page
from flat.testing.store_case import birth

ME = Owner(owner="me", host="here", pid=1)


def page(workers: int = 1, rank: int = 0, concurrency: int = 4) -> Page:
    fleet = Fleet(ME, SystemClock(), 30.0)
    fleet.workers, fleet.rank = workers, rank
    return Page(fleet, concurrency, Random(7))


def found(number: int) -> list[Execution]:
    return [birth(f"e{n}").execution for n in range(number)]


def taken(page: Page) -> list[str]:
    names = []
    while page:
        names.append(page.take().execution_id)
    return names


def test_one_worker_alone_keeps_the_order_of_the_queue() -> None:
    mine = page()
    mine.fill(found(10), 4, now=0.0)
    assert taken(mine) == ["e0", "e1", "e2", "e3"]


def test_each_of_several_prefers_a_share_of_its_own() -> None:
    shares: list[str] = []
    for rank in range(3):
        mine = page(workers=3, rank=rank, concurrency=100)
        mine.fill(found(100), 1, now=0.0)
        shares += taken(mine)
    assert sorted(shares) == sorted(e.execution_id for e in found(100))


def test_of_the_others_it_takes_only_what_its_own_does_not_fill() -> None:
    mine = page(workers=50, rank=0)
    mine.fill(found(10), 4, now=0.0)
    assert len(taken(mine)) == 4


def test_what_others_drive_is_counted_and_not_taken() -> None:
    theirs = birth("e1", owner="somebody").execution
    mine = page()
    assert mine.open_of([*found(1), theirs, birth("e2").execution], running={"e2"}) == found(1)
    assert mine.foreign == 1


def test_what_was_looked_up_too_long_ago_is_forgotten() -> None:
    mine = page()
    mine.fill(found(2), 2, now=10.0)
    mine.forget_stale(10.0 + STALE_AFTER)
    assert mine
    mine.forget_stale(10.1 + STALE_AFTER)
    assert not mine


@pytest.mark.anyio
async def test_pages_grow_while_attempts_are_lost_and_shrink_when_they_are_not() -> None:
    mine = page(concurrency=4)
    assert mine.length(1) == 4
    for expected in (8, 16):
        for _ in range(4):
            mine.tried()
            mine.lost()
        await mine.adapt()
        assert mine.length(1) == expected
    mine.tried()
    await mine.adapt()
    assert mine.length(1) == 16, "too few attempts to tell"
    for expected in (8, 4, 4):
        for _ in range(4):
            mine.tried()
        await mine.adapt()
        assert mine.length(1) == expected


def test_a_longer_page_is_taken_from_at_random_so_that_two_do_not_meet() -> None:
    mine = page(concurrency=4)
    mine._reach = 4.0
    mine.fill(found(16), 4, now=0.0)
    names = taken(mine)
    assert len(names) == 4
    assert names != ["e0", "e1", "e2", "e3"]
    assert names == sorted(names, key=lambda name: int(name[1:])), "still the oldest of them first"
