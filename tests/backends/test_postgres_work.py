"""Work pools and the register of workers in PostgreSQL pass the public kit, on every event loop; and their own."""

from __future__ import annotations

import pytest

from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.postgres.register import PostgresRegistrationBackend
from flat.backends.postgres.store import PostgresStore
from flat.backends.postgres.work import CLAIM, PostgresWorkBackend
from flat.backends.work import WorkBackend, expired
from flat.testing.servers import PostgresServer
from flat.testing.store_case import birth
from flat.testing.work import REGISTRATION_CHECKS, WORK_CHECKS, Clock, WorkCheck, WorkPlace

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.mark.parametrize("check", WORK_CHECKS, ids=name)
async def test_pools(check: WorkCheck, postgres_url: str) -> None:
    def work(clock: Clock, keep_done: bool) -> WorkBackend:
        return PostgresWorkBackend(postgres_url, clock=clock, keep_done=keep_done)

    async with WorkPlace(work=work) as place:
        await check(place)


@pytest.mark.parametrize("check", REGISTRATION_CHECKS, ids=name)
async def test_register(check: WorkCheck, postgres_url: str) -> None:
    def registration(clock: Clock) -> PostgresRegistrationBackend:
        return PostgresRegistrationBackend(postgres_url, clock=clock)

    async with WorkPlace(registration=registration) as place:
        await check(place)


@pytest.mark.parametrize("store_first", [True, False])
async def test_work_stands_in_the_schema_of_a_store(postgres: PostgresServer, store_first: bool) -> None:
    url = postgres.url()
    if store_first:
        async with PostgresStore(url) as store:
            await store.create(birth())
    async with PostgresWorkBackend(url) as work, PostgresRegistrationBackend(url) as register:
        await work.pool("jobs").push(1)
        assert list(await register.list()) == []
    async with PostgresStore(url) as store, PostgresWorkBackend(url) as work:
        assert await store.create(birth()) is not store_first
        assert await work.pool("jobs").size() == 1


async def test_backends_are_found_by_name(postgres: PostgresServer) -> None:
    url = postgres.url()
    work = create_work_backend("postgres", url=url)
    assert isinstance(work, PostgresWorkBackend)
    register = create_registration_backend("postgres", url=url)
    assert isinstance(register, PostgresRegistrationBackend)
    await work.pool("jobs").push(1)
    await work.close()
    await register.close()


async def test_a_lease_that_ran_out_says_so_as_everywhere(postgres: PostgresServer) -> None:
    now = 1000.0
    async with PostgresWorkBackend(postgres.url(), clock=lambda: now) as work:
        pool = work.pool("jobs")
        job = await pool.push(1, max_retries=1)
        await pool.claim("w\\1", lease=5)
        now += 6
        item = await pool.get(job)
        assert item is not None
        assert (item.status, item.error) == ("poisoned", expired("w\\1", 1))


async def test_a_claim_does_not_look_at_the_backlog(postgres: PostgresServer) -> None:
    async with PostgresWorkBackend(postgres.url()) as work:
        pool = work.pool("jobs")
        await pool.push_many(list(range(5000)))
        await work.rows("", "ANALYZE work_jobs")
        place = CLAIM.index("SELECT num FROM work_jobs WHERE pool = $1")
        head = CLAIM[place : CLAIM.index("FOR UPDATE")].replace("$1", "1").replace("$7", "1")
        head = "".join(line for line in head.splitlines(True) if "EXISTS" not in line)
        plan = "\n".join(row[0] for row in await work.rows("", f"EXPLAIN {head}"))
        assert "work_pending" in plan, plan
        assert "Sort" not in plan, plan
