"""Every role that a machine file can give to a server, from the file to the server and back."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from typer.testing import CliRunner

import flat
from flat.backends import open_store
from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.dynamodb.lock import DynamoLock
from flat.backends.dynamodb.store import create_table
from flat.backends.locks import LeaseLock
from flat.backends.postgres.lock import PostgresLock
from flat.backends.postgres.results import PostgresResults
from flat.backends.postgres.trigger import PostgresTrigger
from flat.backends.protocols import Execution, Owner
from flat.backends.redis.lock import RedisLock
from flat.backends.redis.trigger import RedisTrigger
from flat.cli.app import app
from flat.errors import BadStoreURL, ExecutionBusy
from flat.runtime.compat.results import make_uri
from flat.runtime.compat.signals import create_signal_backend
from flat.testing.store_servers import StoreServers

ASK = """\
    ask: {wait_for: answers, output_to_context: {said: "{{ output.value }}"}, transitions: [{to: done}]}
    done: {type: final, output: {said: "{{ context.said }}"}}
"""
WORK = """\
    register: {action: register_worker, transitions: [{to: claim}]}
    claim: {action: claim_job, transitions: [{to: complete}]}
    complete: {action: complete_job, transitions: [{to: leave}]}
    leave: {action: deregister_worker, transitions: [{to: done}]}
    done: {type: final, output: {job: "{{ context.job }}"}}
"""
SOMEBODY = Owner(owner="somebody", host="elsewhere.example", pid=1)
LOCKS: dict[str, Callable[[str], LeaseLock]] = {
    "redis": RedisLock, "postgres": PostgresLock, "dynamodb": DynamoLock
}  # fmt: skip
LISTENERS = {"redis": RedisTrigger, "postgres": PostgresTrigger}
STORED = ("persistence", "locking", "results", "registration", "work", "signal")
ROLES = {kind: (*STORED, "trigger") if kind in LISTENERS else STORED for kind in LOCKS}
WAYS = ("named", "by URL")


@dataclass(frozen=True)
class Account:
    """A place in a server that nobody else uses, as machine files say it."""

    kind: str
    url: str
    beside: str
    """What a file says beside the name of the kind."""

    def said(self, *roles: str, how: str = "named") -> str:
        """These roles, played there."""
        if how == "by URL":
            return ", ".join(f"{role}: '{self.url}'" for role in roles)
        return ", ".join([*(f"{role}: {self.kind}" for role in roles), self.beside])

    async def look(self, execution_id: str) -> Execution:
        store = open_store(self.url)
        found = await store.get(execution_id)
        await store.close()
        assert found is not None
        return found


@pytest.fixture(params=LOCKS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def account(kind: str, tmp_path: Path, servers: StoreServers, monkeypatch: pytest.MonkeyPatch) -> Account:
    """A new one, for processes that know nothing else."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLAT")]:
        monkeypatch.delenv(name)
    url = servers.url(kind)
    if kind != "dynamodb":
        return Account(kind, url, f"{kind}_url: '{url}'")
    # A table exists, and where the service is, the environment says: the URL is as people write it.
    anyio.run(create_table, url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", servers.aws.endpoint)
    table = url.partition("//")[2].partition("?")[0]
    beside = f"dynamodb_table: {table}, aws_region: us-east-1"
    return Account(kind, f"dynamodb://{table}?region=us-east-1", beside)


def written(backends: str, states: str = ASK, more: str = "") -> Path:
    path = Path("machine.yml")
    path.write_text(
        f'spec: flatmachine\nspec_version: "4.2.1"\ndata:\n  name: m\n  settings: {{backends: {{{backends}}}}}\n{more}'
        f"  states:\n{states}"
    )
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("how", WAYS)
async def test_one_place_has_every_role(account: Account, how: str) -> None:
    machine = flat.FlatMachine(config_file=written(account.said(*ROLES[account.kind], how=how)))
    assert machine.persistence == account.url
    # The store has the leases, the signals and the wakes in itself: only results by URI are apart.
    assert (machine.lock, machine.signal_backend, machine.trigger_backend) == (None, None, None)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    parked = await account.look(machine.execution_id)
    assert (parked.status, parked.owner, parked.channels) == ("waiting", None, ("answers",))

    store = open_store(account.url)
    lease = await store.acquire(machine.execution_id, SOMEBODY, now=4e9, ttl=60)
    with pytest.raises(ExecutionBusy):
        await machine.execute(resume_from=machine.execution_id)
    await store.release(lease)
    await store.close()
    assert machine.result_backend is not None
    uri = make_uri(machine.execution_id)
    assert not await machine.result_backend.exists(uri)
    signals = create_signal_backend(account.kind, url=account.url)
    await signals.send("answers", "yes")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "yes"}
    assert await signals.channels() == []
    assert await machine.result_backend.read(uri, block=False) == {"said": "yes"}
    assert os.listdir() == ["machine.yml"]


@pytest.mark.anyio
@pytest.mark.parametrize("how", WAYS)
async def test_a_place_is_everything_beside_a_store_in_a_file(account: Account, how: str) -> None:
    roles = [role for role in ROLES[account.kind] if role != "persistence"]
    machine = flat.FlatMachine(
        config_file=written(f"persistence: sqlite, sqlite_path: runs.db, {account.said(*roles, how=how)}")
    )
    lock = LOCKS[account.kind]
    assert isinstance(machine.lock, lock)  # type: ignore[arg-type]
    assert machine.signal_backend is not None
    assert (machine.trigger_backend is not None) == ("trigger" in roles)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    async with lock(account.url) as other:
        assert await other.acquire(machine.execution_id), "the lock was given back"
        with pytest.raises(ExecutionBusy):
            await machine.execute(resume_from=machine.execution_id)
    await create_signal_backend(account.kind, url=account.url).send("answers", "no")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "no"}
    assert await machine.signal_backend.channels() == []
    assert machine.result_backend is not None
    assert await machine.result_backend.read(make_uri(machine.execution_id), block=False) == {"said": "no"}
    assert "runs.db" in os.listdir()


@pytest.mark.anyio
async def test_jobs_and_workers_are_where_the_file_says(account: Account) -> None:
    work = create_work_backend(account.kind, url=account.url, keep_done=True)
    job = await work.pool("default").push({"n": 7})
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60, keep_done: true}}\n"
    machine = flat.FlatMachine(config_file=written(account.said("registration", "work"), WORK, hooks))
    await machine.execute({"pool_id": "default"})
    done = await work.pool("default").get(job)
    assert done is not None
    (worker,) = await create_registration_backend(account.kind, url=account.url).list()
    assert (done.status, done.claimed_by, worker.status) == ("done", worker.worker_id, "terminated")
    await work.close()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", LISTENERS)
async def test_who_listens_is_woken_by_a_signal_that_the_file_sends_there(account: Account) -> None:
    """From a process that keeps its executions elsewhere: the trigger of its file is told."""
    said = f"persistence: sqlite, sqlite_path: runs.db, {account.said('trigger')}"
    machine = flat.FlatMachine(config_file=written(said))
    async with LISTENERS[account.kind](account.url).listen() as woken:
        await machine.execute()
        assert machine.trigger_backend is not None
        await machine.trigger_backend.notify("answers")
        with anyio.fail_after(30):
            await woken.wait()


def flat_command(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize("how", WAYS)
def test_the_command_line_runs_parks_signals_and_resumes_there(account: Account, how: str) -> None:
    written(account.said("persistence", how=how))
    parked = flat_command("run", "machine.yml", "--id", "x")
    assert parked.exit_code == 4, parked.stderr
    assert f"--store '{account.url}'" in parked.stderr or f"--store {account.url}" in parked.stderr
    assert anyio.run(account.look, "x").status == "waiting"
    assert flat_command("signal", "answers", "7", "--store", account.url).exit_code == 0
    done = flat_command("resume", "x", "machine.yml", "--store", account.url)
    assert done.exit_code == 0, done.stderr
    assert '"7"' in done.stdout.replace(" ", "")
    assert anyio.run(account.look, "x").status == "done"
    assert flat_command("runs", "show", "x", "--store", account.url).exit_code == 0
    assert os.listdir() == ["machine.yml"]


@pytest.mark.parametrize(
    ("kind", "role"),
    [(kind, role) for kind, roles in ROLES.items() for role in roles if role not in ("work", "registration")],
)
def test_a_server_without_a_place_is_an_error_that_says_what_to_write(account: Account, role: str) -> None:
    field = account.beside.partition(":")[0]
    machine = written(f"{role}: {account.kind}")
    said = f'settings.backends.{role} is "{account.kind}": that does not say where.*{field}'
    with pytest.raises(BadStoreURL, match=said):
        flat.FlatMachine(config_file=machine)


@pytest.mark.anyio
@pytest.mark.parametrize("kind", ["postgres"])
async def test_whoever_waits_for_a_result_is_notified_and_does_not_look_again(
    account: Account, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    get = PostgresResults.get

    async def counted(self: PostgresResults, name: str) -> bytes | None:
        looks.append(name)
        return await get(self, name)

    async def wait_looks(count: int) -> None:
        with anyio.fail_after(30):
            while len(looks) < count:
                await anyio.lowlevel.checkpoint()

    async with PostgresResults(account.url) as mine, PostgresResults(account.url) as theirs:
        await mine.put("warm", b"")  # the table is made
        monkeypatch.setattr(PostgresResults, "get", counted)
        heard: list[bytes] = []

        async def wait() -> None:
            heard.append(await mine.wait("r"))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await wait_looks(2)  # before it listened, and after
            await theirs.put("another", b"no")
            with anyio.move_on_after(0.3):
                await wait_looks(3)
            assert looks == ["r", "r"]
            await theirs.put("r", b"yes")
        assert heard == [b"yes"]
        assert len(looks) == 3
