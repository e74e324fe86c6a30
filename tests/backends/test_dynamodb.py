"""A store in DynamoDB passes the public kit, and what is its own: large things, many things, other people's tables."""

from __future__ import annotations

import anyio
import pytest

from flat.backends import open_store
from flat.backends.dynamodb.outbox import Arrival, Outbox
from flat.backends.dynamodb.rows import birth_row, body_sort, story
from flat.backends.dynamodb.store import DynamoStore, create_table
from flat.backends.dynamodb.table import description, key
from flat.backends.protocols import Birth, Head
from flat.errors import BackendError, BadStoreURL, SignalGone, StaleSnapshot
from flat.testing.servers import AwsServer
from flat.testing.store_case import ALICE, BOB, TTL, birth, signal, step, waiting
from flat.testing.stores import CHECKS, Check, Place

pytestmark = pytest.mark.anyio
ONE_LOOP = {
    "many_executions_are_all_found": "asyncio",
    "many_are_ready_at_once": "trio",
    "many_begin_at_once_and_each_id_once": "asyncio",
    "hostile_channels_and_addressees_reach_nobody_else": "trio",
    "hostile_ids_are_ids_like_any_other": "asyncio",
    "hostile_signals_are_fanned_out_to_hostile_executions": "trio",
}
"""Checks that take long on a server which is written in Python: each is made on one of the event loops."""
CASES = [
    pytest.param(check, loop, id=f"{loop}-{check.__name__}")
    for check in CHECKS
    for loop in ("asyncio", "trio")
    if ONE_LOOP.get(check.__name__, loop) == loop
]


@pytest.mark.parametrize(("check", "anyio_backend"), CASES)
async def test_the_kit(check: Check, aws: AwsServer) -> None:
    url = aws.url()
    async with Place(lambda: DynamoStore(url)) as place:
        await check(place)


# -- large things, and many -------------------------------------------------------------------------


async def test_values_larger_than_an_item_or_a_transaction_come_back_whole_and_leave_nothing(
    aws: AwsServer,
) -> None:
    body, line, blob = b"b" * 1_500_000, b"l" * 500_000, bytes(range(256)) * 8_000
    async with DynamoStore(aws.url()) as store:
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        await store.send(signal("s", body=body))
        commit = step(
            lease, 1, body, log=(line, b"", line), blobs={"d": blob}, consume=("s",),
            send=(signal("t", body=blob),), births=(Birth(execution=birth("child").execution, body=blob),),
        )  # fmt: skip
        await store.commit(commit)
        stored, child = await store.load("e1"), await store.load("child")
        assert stored is not None
        assert child is not None
        assert stored.bodies == [(0, b"body 0"), (1, body)]
        assert stored.log == [line, b"", line]
        assert (child.bodies, await store.get_blob("d")) == ([(0, blob)], blob)
        assert [one.body for one in await store.signals()] == [blob]
        numbers = [found.token >> 32 for found in [stored.execution, child.execution]]
        assert await store.delete("e1")
        assert await store.delete("child")
        for number in numbers:
            assert await store.table.query("looking", story(number)) == []


async def test_births_signals_and_values_by_the_hundred_are_one_commit(aws: AwsServer) -> None:
    async with DynamoStore(aws.url()) as store:
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        names = [f"c{number}" for number in range(130)]
        blobs = {f"d{number}": b"%d" % number for number in range(60)}
        commit = step(
            lease, 1, births=tuple(birth(name, parent="e1") for name in names), blobs=blobs,
            send=tuple(signal(f"s{number}") for number in range(40)),
        )  # fmt: skip
        await store.commit(commit)
        assert [one.execution_id async for one in store.find(parent="e1")] == names[::-1]
        assert [one.signal_id for one in await store.signals()] == [f"s{number}" for number in range(40)]
        assert [await store.get_blob(digest) for digest in ("d0", "d59")] == [b"0", b"59"]
        with pytest.raises(StaleSnapshot):
            await store.commit(commit._replace(births=(*commit.births, birth("late"))))
        assert await store.get("late") is None


async def test_what_a_dead_process_made_certain_is_entered_by_whoever_looks_next(aws: AwsServer) -> None:
    url = aws.url()
    async with DynamoStore(url) as dead, DynamoStore(url) as other:
        arrivals = []
        for number in range(1, 120):
            born = birth(f"c{number}", status="waiting", wake_at=1.0)
            body = {**key(story(number), body_sort(0)), "val": {"B": b"body 0"}, "whl": {"BOOL": True}}
            arrivals.append(Arrival(items=[birth_row(born, number, None), body]))
        _, certain = await Outbox(dead.table).prepare(arrivals)
        await dead.table.write("committing", [certain])
        found: list[list[str]] = []

        async def look() -> None:
            found.append([one.execution_id for one in await other.ready(now=2.0)])

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(look)
        longest: list[str] = max(found, key=len)
        assert sorted(longest) == sorted(f"c{number}" for number in range(1, 120))
        assert await other.delete("c7")
        assert len(await other.ready(now=2.0)) == 118
        stored = await other.load("c119")
        assert stored is not None
        assert stored.bodies == [(0, b"body 0")]


async def test_a_commit_that_no_transaction_can_hold_is_refused_whole(aws: AwsServer) -> None:
    async with DynamoStore(aws.url()) as store:
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        names = tuple(f"s{number}" for number in range(101))
        with pytest.raises(BackendError, match=r"changes 10\d things at once, and DynamoDB takes 100"):
            await store.commit(step(lease, 1, consume=names, births=(birth("child"),)))
        channels = tuple(f"c{number}" for number in range(100))
        with pytest.raises(BackendError, match=r"do it in several steps"):
            await store.commit(step(lease, 1, head=Head(status="waiting", channels=channels)))
        assert await store.get("child") is None
        for name in names[:90]:
            await store.send(signal(name))
        for name in names[:90]:
            await store.send(signal(name))
        await store.commit(step(lease, 1, head=waiting(*channels[:45])))
        await store.commit(step(lease, 2, consume=names[:90]))
        await store.commit(step(lease, 3, head=waiting(*channels[45:90])))
        assert [one.execution_id async for one in store.find(channel="c0")] == []
        assert [one.execution_id async for one in store.find(channel="c89")] == ["e1"]


async def test_a_refused_commit_with_many_births_leaves_nothing_behind(aws: AwsServer) -> None:
    async with DynamoStore(aws.url()) as store:
        lease = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        births = tuple(birth(f"c{number}") for number in range(120))
        before = await everything(store)
        with pytest.raises(StaleSnapshot):
            await store.commit(step(lease, 2, births=births))
        with pytest.raises(SignalGone):
            await store.commit(step(lease, 1, births=births, consume=("none",)))
        assert await everything(store) == before
        await store.commit(step(lease, 1, births=births))
        assert len([one async for one in store.find()]) == 121


async def everything(store: DynamoStore) -> list[tuple[str, str]]:
    """The keys of all items but the counters, which never go back."""
    found = await store.table.call("looking", "scan", TableName=store.table.address.name, ConsistentRead=True)
    return sorted((item["pk"]["S"], item["sk"]["S"]) for item in found["Items"] if item["pk"]["S"] != "count")


# -- whose table it is ------------------------------------------------------------------------------


async def test_a_table_that_does_not_exist_is_one_clear_error(aws: AwsServer) -> None:
    url = aws.url(create="false")
    async with DynamoStore(url) as store:
        with pytest.raises(BackendError, match=r"there is no table '.*' at .*; create it with \?create=true"):
            await store.get("e1")
        await create_table(url)
        assert await store.create(birth())


async def test_many_stores_make_the_same_table_at_once(aws: AwsServer) -> None:
    url, made = aws.url(), []
    stores = [DynamoStore(url) for _ in range(6)]

    async def begin(number: int, store: DynamoStore) -> None:
        made.append(await store.create(birth(f"e{number % 3}")))

    async with anyio.create_task_group() as group:
        for number, store in enumerate(stores):
            group.start_soon(begin, number, store)
    assert sorted(made) == [False, False, False, True, True, True]
    for store in stores:
        await store.close()


async def test_somebody_elses_table_is_left_alone(aws: AwsServer) -> None:
    foreign, later = aws.url(), aws.url(create="false")
    async with DynamoStore(foreign) as store:
        name = store.table.address.name
        keys = [("id", "HASH")]
        await store.table.aws.call(
            "making", "create_table", TableName=name, BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": one, "KeyType": kind} for one, kind in keys],
            AttributeDefinitions=[{"AttributeName": one, "AttributeType": "S"} for one, _ in keys],
        )  # fmt: skip
        with pytest.raises(BackendError, match="has other keys than a table of flat; name another one"):
            await store.get("e1")
    async with DynamoStore(later) as store:
        await store.table.aws.call("making", "create_table", **description(store.table.address.name))
        with pytest.raises(BackendError, match="was not made by flat"):
            await store.get("e1")
        newer = {**key("format", "format"), "fmt": {"S": "99"}}
        await store.table.aws.call("making", "put_item", TableName=store.table.address.name, Item=newer)
        with pytest.raises(BackendError, match="has format 99, and this version of flat reads 1"):
            await store.get("e1")


async def test_missing_credentials_are_told(aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    async with DynamoStore(aws.url()) as store:
        with pytest.raises(BackendError, match=r"needs credentials of AWS .*set AWS_ACCESS_KEY_ID"):
            await store.get("e1")


async def test_a_closed_store_says_so(aws: AwsServer) -> None:
    store = DynamoStore(aws.url())
    await store.create(birth())
    await store.close()
    with pytest.raises(BackendError, match="is closed"):
        await store.get("e1")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("dynamodb:flat", "write dynamodb://flat"),
        ("dynamodb://a", "3 to 255 letters"),
        ("dynamodb://flat/folder", "a table has no folders"),
        ("dynamodb://flat?regoin=x", "has no option regoin; it has region, endpoint, create and timeout"),
        ("dynamodb://flat?create=yes", 'true or false, not "yes"'),
        ("dynamodb://flat?timeout=soon", 'a number of seconds above 0, and not above 300, not "soon"'),
        ("dynamodb://flat?timeout=3600", "not above 300"),
        ("dynamodb://flat?endpoint=localhost", 'not "localhost"'),
    ],
)
async def test_a_wrong_url_is_told_before_anything_is_touched(url: str, told: str) -> None:
    with pytest.raises(BadStoreURL) as caught:
        open_store(url)
    assert told in str(caught.value)


# -- two owners -------------------------------------------------------------------------------------


async def test_of_many_that_take_an_execution_over_at_once_one_can_commit(aws: AwsServer) -> None:
    url = aws.url()
    async with DynamoStore(url) as store:
        zombie = await store.begin(birth(), ALICE, now=1000.0, ttl=TTL)
        assert zombie is not None
        wrote: list[int] = []

        async def heir(number: int) -> None:
            async with DynamoStore(url) as other:
                lease = await other.acquire("e1", BOB, now=1001.0 + TTL, ttl=TTL)
                try:
                    await other.commit(step(lease, 1, b"%d" % number))
                except StaleSnapshot:
                    return
                wrote.append(number)

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(heir, number)
        assert [body for _, _, body in await store.bodies("e1")] == [
            b"body 0",
            *(b"%d" % one for one in wrote),
        ]
        with pytest.raises(StaleSnapshot):
            await store.commit(step(zombie, len(wrote) + 1, births=(birth("child"),)))
        assert await store.get("child") is None
