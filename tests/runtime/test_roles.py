"""The roles of `settings.backends`, each from a machine file to the place that it names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import flat
from flat.backends import open_store
from flat.backends.dynamodb.work import DynamoWorkBackend
from flat.backends.memory.work import MemoryWorkBackend
from flat.backends.postgres.results import PostgresResults
from flat.backends.redis.lock import RedisLock
from flat.backends.redis.results import RedisResults
from flat.backends.redis.trigger import RedisTrigger
from flat.backends.results import PoolResults, ResultStore
from flat.backends.sqlite.lock import SQLiteLock
from flat.backends.sqlite.work import SQLiteWorkBackend
from flat.errors import ExecutionBusy, UnknownName
from flat.runtime.compat.results import make_uri
from flat.runtime.compat.signals import StoreSignals, create_signal_backend, move_signals
from flat.runtime.roles import StoredResults, configured_roles
from flat.testing.servers import RedisServer
from flat.testing.store_servers import StoreServers
from flat.testing.store_values import HOSTILE

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def in_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLAT")]:
        monkeypatch.delenv(name)


STATES = """\
    ask: {wait_for: answers, output_to_context: {said: "{{ output.value }}"}, transitions: [{to: done}]}
    done: {type: final, output: {said: "{{ context.said }}"}}
"""
WORK = """\
    register: {action: register_worker, transitions: [{to: claim}]}
    claim: {action: claim_job, transitions: [{to: done}]}
    done: {type: final, output: {job: "{{ context.job }}"}}
"""


def written(backends: str, states: str = STATES, more: str = "") -> Path:
    path = Path("machine.yml")
    path.write_text(
        f'spec: flatmachine\nspec_version: "4.2.1"\ndata:\n  name: m\n  settings: {{backends: {{{backends}}}}}\n{more}'
        f"  states:\n{states}"
    )
    return path


def machine_of(backends: str, **more: Any) -> flat.FlatMachine:
    return flat.FlatMachine(config_file=written(backends), **more)


# -- several roles at once --------------------------------------------------------------------------
# Each server in each role is in `backends/test_server_roles`.


ALL = (
    "persistence: redis, locking: redis, results: redis, registration: redis, work: redis, signal: redis, "
    "trigger: redis, redis_url: '{}'"
)


async def test_the_queue_and_the_register_are_where_the_file_says(redis: RedisServer) -> None:
    work, register = redis.url(), redis.url()
    await flat.create_work_backend("redis", url=work).pool("default").push({"n": 7})
    said = f"work: '{work}', registration: '{register}'"
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60}}\n"
    machine = flat.FlatMachine(config_file=written(said, WORK, hooks))
    await machine.execute({"pool_id": "default"})
    items = await flat.create_work_backend("redis", url=work).pool("default").items()
    assert [(item.status, item.data) for item in items] == [("claimed", {"n": 7})]
    (worker,) = await flat.create_registration_backend("redis", url=register).list()
    assert worker.worker_id == items[0].claimed_by
    assert await flat.create_registration_backend("redis", url=work).list() == []


async def test_hooks_that_say_where_their_queue_is_are_left_alone(redis: RedisServer) -> None:
    work = redis.url()
    hooks = "  hooks: {name: distributed-worker, args: {backend: sqlite, db_path: mine.db}}\n"
    flat_machine = flat.FlatMachine(config_file=written(f"work: '{work}'", WORK, hooks))
    await flat_machine.execute({"pool_id": "default"})
    assert "mine.db" in os.listdir()
    assert list(await flat.create_registration_backend("redis", url=work).list()) == []


# -- where a bare name is ---------------------------------------------------------------------------


async def test_a_bare_name_is_at_its_field_or_at_the_store_or_where_the_environment_says(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = redis.url(), redis.url()

    def results(backends: str, **more: Any) -> str:
        found = machine_of(backends, **more).result_backend
        assert isinstance(found, StoredResults)
        assert isinstance(found.store, RedisResults)
        return found.store._client.address.prefix

    def prefix(url: str) -> str:
        return url.rpartition("prefix=")[2]

    assert results(f"results: '{here}'") == prefix(here)
    assert results(f"results: redis, redis_url: '{here}'", persistence=there) == prefix(here)
    assert results("results: redis", persistence=there) == prefix(there)
    monkeypatch.setenv("FLAT_REDIS_URL", here)
    assert results("results: redis") == prefix(here)
    assert machine_of("persistence: redis").persistence == here


async def test_what_is_given_in_python_wins_over_the_file(redis: RedisServer) -> None:
    lock, trigger = RedisLock(redis.url()), RedisTrigger(redis.url())
    results, signals = StoredResults(RedisResults(redis.url())), create_signal_backend()
    machine = machine_of(
        "locking: redis, results: redis, signal: redis, trigger: redis",
        lock=lock, result_backend=results, signal_backend=signals, trigger_backend=trigger,
    )  # fmt: skip
    assert (machine.lock, machine.result_backend) == (lock, results)
    assert (machine.signal_backend, machine.trigger_backend) == (signals, trigger)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}


async def test_a_lock_where_executions_are_is_their_lease_and_elsewhere_one_of_its_own(
    redis: RedisServer,
) -> None:
    assert machine_of("locking: sqlite, persistence: sqlite").lock is None
    assert machine_of("locking: sqlite", persistence="own.db").lock is None
    assert machine_of("locking: none").lock is None
    machine = machine_of(f"locking: sqlite, sqlite_path: locks.db, persistence: '{redis.url()}'")
    assert isinstance(machine.lock, SQLiteLock)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    async with SQLiteLock("locks.db") as other:
        assert await other.acquire(machine.execution_id), "the lock was given back"
        with pytest.raises(ExecutionBusy):
            await machine.execute(resume_from=machine.execution_id)
    with pytest.raises(flat.SpecError, match='no backend "radis" for locking'):
        machine_of("locking: radis")
    with pytest.raises(UnknownName, match="kind of lock"):
        machine_of("locking: 'nosuch://x'")


async def test_a_local_lock_is_a_file(redis: RedisServer) -> None:
    machine = machine_of("locking: local, persistence: sqlite")
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    assert os.listdir(".locks") == [f"{machine.execution_id}.lock"]


async def test_a_trigger_file_is_touched_where_the_file_says() -> None:
    machine = machine_of("trigger: file, trigger_path: woken")
    assert machine.trigger_backend is not None
    await machine.trigger_backend.notify("c")
    assert os.listdir("woken") == ["trigger"]


# -- results ----------------------------------------------------------------------------------------


@pytest.fixture(params=["redis", "memory", "sqlite", "postgres", "dynamodb"])
def store(request: pytest.FixtureRequest, tmp_path: Path, servers: StoreServers) -> ResultStore:
    """Results of every kind, with nothing in them."""
    match request.param:
        case "redis":
            return RedisResults(servers.url("redis"))
        case "postgres":
            return PostgresResults(servers.url("postgres"))
        case "dynamodb":
            return PoolResults(DynamoWorkBackend(servers.url("dynamodb")))
        case "sqlite":
            return PoolResults(SQLiteWorkBackend(tmp_path / "r.db"))
    return PoolResults(MemoryWorkBackend())


async def test_results_are_found_by_whatever_name(store: ResultStore) -> None:
    assert await store.get("nobody's") is None
    assert not await store.discard("nobody's")
    for number, name in enumerate(HOSTILE):
        await store.put(name, b"old")
        await store.put(name, orjson.dumps([number, name]))
    for number, name in enumerate(HOSTILE):
        assert orjson.loads(await store.wait(name)) == [number, name]
    for name in HOSTILE[::2]:
        assert await store.discard(name)
        assert not await store.discard(name)
        assert await store.get(name) is None
    assert await store.get(HOSTILE[1]) is not None
    await store.close()


async def test_whoever_waits_for_a_result_gets_it(store: ResultStore) -> None:
    results, heard = StoredResults(store), []
    uri = make_uri("e1")

    async def read() -> None:
        heard.append(await results.read(uri, timeout=10))

    with pytest.raises(TimeoutError, match=uri):
        await results.read(uri, timeout=0.01)
    assert await results.read(uri, block=False) is None
    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(read)
        await results.write(make_uri("e2"), "another")
        await results.write(uri, {"at": 1.5, "name": "e1"})
    assert heard == [{"at": 1.5, "name": "e1"}] * 3
    assert await results.exists(uri)
    await results.delete(uri)
    assert not await results.exists(uri)
    await results.close()


async def test_results_end_with_their_time(redis: RedisServer) -> None:
    async with RedisResults(redis.url(), ttl=0.001) as store:
        await store.put("a", b"1")
        with anyio.fail_after(10):
            while await store.get("a") is not None:
                pass


# -- signals ----------------------------------------------------------------------------------------


async def test_signals_of_the_very_same_place_are_not_moved_into_nothing(redis: RedisServer) -> None:
    """Two addresses may mean one place; what is moved from it to itself must still be there."""
    url = redis.url()
    one, two = open_store(url), open_store(url.replace("127.0.0.1", "localhost"))
    signals = StoreSignals(one)
    for number in range(3):
        await signals.send("c", number)
    await move_signals(signals, two)
    assert [one.data for one in await signals.peek("c")] == [0, 1, 2]
    assert await signals.channels() == ["c"], "the probe was left behind"
    await one.close()
    await two.close()


async def test_a_move_that_was_interrupted_is_finished(redis: RedisServer) -> None:
    there, here = open_store(redis.url()), open_store(redis.url())
    signals = StoreSignals(there)
    await signals.send("c", 1)
    (sent,) = await there.signals("c")
    await here.send(sent)  # and then the mover died
    await move_signals(signals, here)
    assert [one.signal_id for one in await here.signals("c")] == [sent.signal_id]
    assert await there.signals() == []
    await here.close()
    await there.close()


async def test_roles_without_a_word_in_the_file_are_none() -> None:
    roles = configured_roles(flat.load(written("persistence: memory")), "memory:")
    assert (roles.lock, roles.results, roles.signals, roles.trigger) == (None, None, None, None)


# -- on the command line ----------------------------------------------------------------------------


def flat_command(*args: str) -> int:
    from typer.testing import CliRunner

    from flat.cli.app import app

    return CliRunner().invoke(app, list(args)).exit_code


def test_the_commands_do_what_the_file_says(redis: RedisServer) -> None:
    url = redis.url()
    written(ALL.format(url).replace("persistence: redis", "persistence: sqlite, sqlite_path: runs.db"))
    assert flat_command("run", "machine.yml", "--id", "x") == 4
    resume = ("resume", "x", "machine.yml", "--store", "sqlite:///runs.db")

    other = RedisLock(url)

    async def send() -> None:
        await create_signal_backend("redis", url=url).send("answers", "yes")

    async def result() -> Any:
        return await StoredResults(RedisResults(url)).read(make_uri("x"), block=False)

    assert anyio.run(other.acquire, "x")
    assert flat_command(*resume) == 8, "somebody has its lock"
    anyio.run(other.close)
    anyio.run(send)
    assert anyio.run(result) is None
    assert flat_command(*resume) == 0
    assert anyio.run(result) == {"said": "yes"}
