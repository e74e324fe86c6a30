"""Every role that a machine file can give to DynamoDB, from the file to the table and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

import flat
from flat.backends import open_store
from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.dynamodb.register import DynamoLock
from flat.backends.dynamodb.store import create_table
from flat.backends.protocols import Execution, Owner
from flat.cli.app import app
from flat.errors import BadStoreURL, ExecutionBusy
from flat.runtime.compat.results import make_uri
from flat.runtime.compat.signals import create_signal_backend
from flat.testing.servers import AwsServer

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
ROLES = ("persistence", "locking", "results", "registration", "work", "signal")
SOMEBODY = Owner(owner="somebody", host="elsewhere.example", pid=1)


class Account:
    """A table that exists, in a region, as machine files name it."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.table = url.partition("//")[2].partition("?")[0]
        self.short = f"dynamodb://{self.table}?region=us-east-1"
        """The URL as people write it: where the service is, the environment says."""
        self.named = f"dynamodb_table: {self.table}, aws_region: us-east-1"

    async def look(self, execution_id: str) -> Execution:
        store = open_store(self.url)
        found = await store.get(execution_id)
        await store.close()
        assert found is not None
        return found


@pytest.fixture
def account(tmp_path: Path, aws: AwsServer, monkeypatch: pytest.MonkeyPatch) -> Account:
    made = Account(aws.url())
    anyio.run(create_table, made.url)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLAT")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL_DYNAMODB", aws.endpoint)
    return made


def written(backends: str, states: str = ASK, more: str = "") -> Path:
    path = Path("machine.yml")
    path.write_text(
        f'spec: flatmachine\nspec_version: "4.2.1"\ndata:\n  name: m\n  settings: {{backends: {{{backends}}}}}\n{more}'
        f"  states:\n{states}"
    )
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["named", "by URL"])
async def test_one_table_has_every_role(account: Account, how: str) -> None:
    said = ", ".join(
        f"{role}: dynamodb" if how == "named" else f"{role}: '{account.short}'" for role in ROLES
    )
    if how == "named":
        said += f", {account.named}"
    machine = flat.FlatMachine(config_file=written(said))
    assert machine.persistence == account.short
    # The store has the leases and the signals in itself: only results by URI are apart.
    assert (machine.lock, machine.signal_backend) == (None, None)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    parked = await account.look(machine.execution_id)
    assert (parked.status, parked.owner, parked.channels) == ("waiting", None, ("answers",))

    store = open_store(account.url)
    lease = await store.acquire(machine.execution_id, SOMEBODY, now=4e9, ttl=60)
    with pytest.raises(ExecutionBusy):
        await machine.execute(resume_from=machine.execution_id)
    await store.release(lease)
    await store.close()
    signals = create_signal_backend("dynamodb", url=account.short)
    await signals.send("answers", "yes")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "yes"}
    assert await signals.channels() == []
    assert machine.result_backend is not None
    uri = make_uri(machine.execution_id)
    assert await machine.result_backend.read(uri, block=False) == {"said": "yes"}
    assert os.listdir() == ["machine.yml"]


@pytest.mark.anyio
async def test_a_table_is_everything_beside_a_store_in_a_file(account: Account) -> None:
    said = "persistence: sqlite, sqlite_path: runs.db, locking: dynamodb, results: dynamodb, signal: dynamodb"
    machine = flat.FlatMachine(config_file=written(f"{said}, {account.named}"))
    assert isinstance(machine.lock, DynamoLock)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    other = DynamoLock(account.short)
    assert await other.acquire(machine.execution_id), "the lock was given back"
    with pytest.raises(ExecutionBusy):
        await machine.execute(resume_from=machine.execution_id)
    await other.close()
    await create_signal_backend("dynamodb", url=account.short).send("answers", "no")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "no"}
    assert machine.result_backend is not None
    assert await machine.result_backend.read(make_uri(machine.execution_id), block=False) == {"said": "no"}


@pytest.mark.anyio
async def test_jobs_and_workers_are_where_the_file_says(account: Account) -> None:
    work = create_work_backend("dynamodb", url=account.short, keep_done=True)
    job = await work.pool("default").push({"n": 7})
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60, keep_done: true}}\n"
    said = f"registration: dynamodb, work: dynamodb, {account.named}"
    machine = flat.FlatMachine(config_file=written(said, WORK, hooks))
    await machine.execute({"pool_id": "default"})
    done = await work.pool("default").get(job)
    assert done is not None
    (worker,) = await create_registration_backend("dynamodb", url=account.short).list()
    assert (done.status, done.claimed_by, worker.status) == ("done", worker.worker_id, "terminated")
    await work.close()


def flat_command(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def test_the_command_line_runs_parks_signals_and_resumes_in_a_table(account: Account) -> None:
    written(f"persistence: dynamodb, {account.named}")
    parked = flat_command("run", "machine.yml", "--id", "x")
    assert parked.exit_code == 4, parked.stderr
    assert f"--store '{account.short}'" in parked.stderr or f"--store {account.short}" in parked.stderr
    assert anyio.run(account.look, "x").status == "waiting"
    assert flat_command("signal", "answers", "7", "--store", account.short).exit_code == 0
    done = flat_command("resume", "x", "machine.yml", "--store", account.short)
    assert done.exit_code == 0, done.stderr
    assert '"7"' in done.stdout.replace(" ", "")
    assert anyio.run(account.look, "x").status == "done"


def test_a_table_without_a_name_is_an_error_that_says_what_to_write(account: Account) -> None:
    machine = written("persistence: dynamodb")
    with pytest.raises(BadStoreURL, match='persistence is "dynamodb": that does not say where'):
        flat.FlatMachine(config_file=machine)
