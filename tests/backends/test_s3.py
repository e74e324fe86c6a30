"""A store in S3 passes the public kit, and what is its own: a journal that is written by one, and emptied."""

from __future__ import annotations

import contextlib
import os
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from typer.testing import CliRunner, Result

from flat.backends import store_opener
from flat.backends.aws import Aws
from flat.backends.s3 import journal, replica
from flat.backends.s3.pointers import Pointers, pointer
from flat.backends.s3.replica import Replica
from flat.backends.s3.store import S3Store
from flat.cli.app import app
from flat.errors import BackendError, BadStoreURL, StaleSnapshot
from flat.testing.servers import AwsServer
from flat.testing.store_case import ALICE, BOB, TTL, birth, signal, step, waiting
from flat.testing.stores import CHECKS, Check, Place

pytestmark = pytest.mark.anyio


def name(check: object) -> str:
    return str(getattr(check, "__name__", check))


@pytest.fixture
def sizes(anyio_backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small ones on one of the loops, so that states are stored, read and cleaned up all the time."""
    if anyio_backend == "trio":
        make_small(monkeypatch)


def make_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, names in (
        ("journal", {"EVERY": 20, "SLACK": 5, "CACHE_BYTES": 500}), ("replica", {"PAGE": 3, "CHUNK": 3}),
        ("states", {"CHUNK": 3}),
    ):  # fmt: skip
        for constant, value in names.items():
            monkeypatch.setattr(f"flat.backends.s3.{module}.{constant}", value)


@pytest.mark.parametrize("check", CHECKS, ids=name)
@pytest.mark.usefixtures("sizes")
async def test_the_kit(check: Check, aws: AwsServer) -> None:
    url = aws.url(scheme="s3")
    async with Place(lambda: S3Store(url)) as place:
        await check(place)


# -- what S3 itself promises -----------------------------------------------------------------------


def test_of_sixteen_that_create_an_object_at_once_one_has(aws: AwsServer) -> None:
    """All depends on this; without it two processes would both believe to have written an entry."""
    bucket, writers, rounds = f"race-{os.getpid()}", 16, 25
    ask(aws, bucket)
    won: list[list[int]] = [[] for _ in range(rounds)]
    start = threading.Barrier(writers)

    def race(writer: int) -> None:
        for number in range(rounds):
            start.wait()
            with contextlib.suppress(urllib.error.HTTPError):
                ask(aws, f"{bucket}/{number}", b"%d" % writer, {"If-None-Match": "*"})
                won[number].append(writer)

    threads = [threading.Thread(target=race, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(one) for one in won] == [1] * rounds
    assert [int(ask(aws, f"{bucket}/{number}", None)) for number in range(rounds)] == [one[0] for one in won]


def ask(aws: AwsServer, path: str, body: bytes | None = b"", headers: dict[str, str] | None = None) -> bytes:
    """Put an object, or get it."""
    method = "GET" if body is None else "PUT"
    request = urllib.request.Request(f"{aws.endpoint}/{path}", body, headers or {}, method=method)
    with urllib.request.urlopen(request) as answer:
        found: bytes = answer.read()
    return found


# -- the journal -----------------------------------------------------------------------------------


async def test_many_that_write_at_once_make_one_journal(aws: AwsServer) -> None:
    url = aws.url(scheme="s3")
    stores = [S3Store(url) for _ in range(8)]

    async def drive(number: int, store: S3Store) -> None:
        name = f"e{number}"
        lease = await store.begin(birth(name), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        if await store.create(birth("everybody's")):
            created.append(number)
        for seq in range(1, 3):
            await store.commit(step(lease, seq, f"{name}/{seq}".encode()))
            assert await store.send(signal(f"{name}/{seq}", "c"))

    created: list[int] = []
    async with anyio.create_task_group() as group:
        for number, store in enumerate(stores):
            group.start_soon(drive, number, store)
    assert len(created) == 1
    async with S3Store(url) as eye:
        replicas = [await store.journal.fresh() for store in (*stores, eye)]
        assert len({replica.applied for replica in replicas}) == 1
        assert len({orjson.dumps(whole(replica)) for replica in replicas}) == 1
        for number in range(8):
            found = [body for _, _, body in await eye.bodies(f"e{number}")]
            assert found == [b"body 0", *(f"e{number}/{seq}".encode() for seq in range(1, 3))]
        assert len(await eye.signals("c")) == 16
    for store in stores:
        await store.close()


def whole(replica: Replica) -> Any:
    """All that a replica knows."""
    rows = [replica.page(number) for number in replica.pages()]
    return [rows, replica.rest(), sorted(replica._counts.items()), sorted(replica.mail.sent)]


async def test_what_is_stored_as_a_state_is_what_the_journal_says(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)
    url = aws.url(scheme="s3")
    async with S3Store(url) as store:
        for number in range(12):
            name = f"e{number}"
            lease = await store.begin(birth(name), ALICE, now=1000.0, ttl=TTL)
            assert lease is not None
            await store.send(signal(f"s{number}", "c"))
            await store.commit(
                step(
                    lease, 1, log=(b"a", b"b"), blobs={f"{number:032x}": b"blob"}, consume=(f"s{number}",),
                    send=(signal(f"t{number}", "d"),), head=waiting("c"), release=True,
                )
            )  # fmt: skip
            if number % 3 == 1:
                await store.delete(name)
                await store.bury(f"t{number}", "why", 1.0)
            if number == 6:
                assert await store.drop("blob", await store.kept("blob"), but=()) == 7
        # Until the next state is stored.
        while store.journal.replica.applied % journal.EVERY:
            await store.send(signal(f"more {store.journal.replica.applied}"))
        async with S3Store(url) as other:
            opened = await other.journal.fresh()
            assert opened.applied == store.journal.replica.applied
            assert whole(opened) == whole(store.journal.replica)
        bucket = store.journal.bucket
        states, pages = await bucket.list("states/"), await bucket.list("pages/")
        assert len(states) == 2
        assert len(pages) < 40, "pages of states that are gone are still there"
        idle = [
            number for number in range(1, opened.applied - 20)
            if number not in opened._counts and await bucket.get(journal.entry_key(number))
        ]  # fmt: skip
        assert idle == [], "entries that nothing points into are not empty"


async def test_whoever_is_far_behind_goes_on_from_a_state(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_small(monkeypatch)
    url = aws.url(scheme="s3")
    async with S3Store(url) as late, S3Store(url) as store:
        zombie = await late.begin(birth("old"), ALICE, now=1000.0, ttl=TTL)
        assert zombie is not None
        await store.acquire("old", BOB, now=1e9, ttl=TTL)
        for number in range(30):
            assert await store.create(birth(f"e{number}"))
            assert await store.delete(f"e{number}")
        assert await store.send(signal("last"))
        with pytest.raises(StaleSnapshot):
            await late.commit(step(zombie, 1))
        assert [one.signal_id for one in await late.signals()] == ["last"]
        assert await late.send(signal("later"))
        assert whole(await late.journal.fresh()) == whole(await store.journal.fresh())


async def test_opening_reads_the_state_and_what_follows_and_storing_one_writes_what_changed(
    aws: AwsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "EVERY", 20)
    asked: list[str] = []

    async def attempt(self: Aws, doing: str, operation: str, arguments: Any) -> Any:
        asked.append(f"{operation} {arguments.get('Key') or arguments.get('Prefix')}".rpartition("/")[0])
        return await real(self, doing, operation, arguments)

    real = Aws.attempt
    monkeypatch.setattr(Aws, "attempt", attempt)
    url = aws.url(scheme="s3")
    async with S3Store(url) as store:
        async with anyio.create_task_group() as group:
            for number in range(10 * replica.PAGE):
                group.start_soon(store.create, birth(f"e{number:04}"))
        lease = await store.begin(birth("one"), ALICE, now=1000.0, ttl=TTL)
        assert lease is not None
        for seq in range(1, 61):
            asked.clear()
            await store.commit(step(lease, seq))
            if store.journal.replica.applied % 20 == 0 and seq > 20:
                assert asked.count("put_object pages/rows") == 1
            else:
                assert asked == ["put_object journal"] or seq <= 20
    asked.clear()
    async with S3Store(url) as store:
        assert await store.get("e0000") is not None
        assert asked.count("get_object pages/rows") in (10, 11, 12)
        assert asked.count("get_object journal") <= 20 + journal.AHEAD


def test_many_pointers_take_little_room_and_only_grow() -> None:
    found = Pointers()
    expected = [(number % 2, pointer(number, (number * 7, 2**33 + number))) for number in range(1000)]
    for one in expected:
        found.append(one)
    assert list(found) == expected
    assert [found[index] for index in (0, 1, 999)] == [expected[index] for index in (0, 1, 999)]
    assert list(Pointers(found.numbers())) == expected
    assert list(found.entries()) == list(range(1000))
    for index in (-1, 1000):
        with pytest.raises(IndexError):
            found[index]
    with pytest.raises(TypeError):
        found.insert(0, (0, b"1:2:3"))
    with pytest.raises(TypeError):
        found[0] = (0, b"1:2:3")
    with pytest.raises(TypeError):
        del found[0]


# -- addresses -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:bucket", "3 to 255"), ("s3://", "3 to 255"), ("s3://bu", "3 to 255"), ("s3://b/../c", "3 to 255"),
        ("s3://bucket?endpoint=nowhere", "an endpoint is a URL"), ("s3://bucket?create=maybe", "true or false"),
        ("s3://bucket?timeout=0", "number of seconds"), ("s3://bucket?acl=public", "no option acl"),
    ],
)  # fmt: skip
def test_a_bad_address_is_refused_before_anything_is_touched(url: str, said: str) -> None:
    with pytest.raises(BadStoreURL, match=said):
        store_opener(url)


async def test_a_bucket_that_is_not_there_is_an_error_that_says_what_to_do(aws: AwsServer) -> None:
    async with S3Store(aws.url(scheme="s3", create="false")) as store:
        with pytest.raises(BackendError, match=r"there is no bucket .*create it, or add \?create=true"):
            await store.get("e1")


async def test_two_stores_in_one_bucket_share_nothing(aws: AwsServer) -> None:
    url = aws.url(scheme="s3")
    one, other = (url.replace("?", f"{folder}?", 1) for folder in ("/a", "/a/b"))
    async with S3Store(one) as first, S3Store(other) as second:
        assert await first.create(birth("e1"))
        assert await second.get("e1") is None
        assert await second.create(birth("e1"))
        assert len(await first.journal.bucket.list("journal/")) == 1


async def test_a_store_of_another_format_is_left_alone(aws: AwsServer) -> None:
    url = aws.url(scheme="s3")
    async with S3Store(url) as store:
        await store.get("e1")
        await store.journal.bucket.put("format", b"9")
    async with S3Store(url) as store:
        with pytest.raises(BackendError, match="has format b'9'"):
            await store.create(birth("e1"))


# -- from a machine file ---------------------------------------------------------------------------

MACHINE = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: small
{said}
  context: {{answer: null}}
  states:
    ask: {{wait_for: answers, output_to_context: {{answer: "{{{{ output.value }}}}"}}, transitions: [{{to: done}}]}}
    done: {{type: final, output: {{answer: "{{{{ context.answer }}}}"}}}}
"""


@pytest.mark.parametrize(
    "said",
    [
        "  persistence: {backend: s3}\n  settings: {backends: {s3_url: 'URL'}}",
        "  settings: {backends: {persistence: s3, s3_url: 'URL'}}",
        "  persistence: {backend: 'URL'}",
        "  persistence: {backend: s3}",
    ],
)
def test_a_file_keeps_its_executions_in_s3(
    said: str, aws: AwsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    url = aws.url(scheme="s3")
    if "URL" not in said:
        monkeypatch.setenv("FLAT_S3_URL", url)
    Path("machine.yml").write_text(MACHINE.format(said=said.replace("URL", url)))

    def flat(*arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments])

    ran = flat("run", "machine.yml", "--id", "x")
    assert ran.exit_code == 4, ran.output
    assert os.listdir(tmp_path) == ["machine.yml"]
    assert flat("signal", "answers", '{"value": 42}', "--store", url).exit_code == 0
    resumed = flat("resume", "x", "machine.yml", "--store", url)
    assert resumed.exit_code == 0, resumed.output
    assert "42" in resumed.stdout
    listed = flat("runs", "list", "--store", url)
    assert "x" in listed.stdout
    assert "done" in listed.stdout
