"""Every role that a machine file can give to PostgreSQL, from the file to the database and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from typer.testing import CliRunner

import flat
from flat.backends import open_store
from flat.backends.by_name import create_registration_backend, create_work_backend
from flat.backends.postgres.lock import PostgresLock
from flat.backends.postgres.results import PostgresResults
from flat.backends.postgres.trigger import PostgresTrigger
from flat.backends.protocols import Execution, Owner
from flat.cli.app import app
from flat.errors import BadStoreURL, ExecutionBusy
from flat.runtime.compat.results import make_uri
from flat.runtime.compat.signals import create_signal_backend
from flat.testing.servers import PostgresServer

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
ROLES = ("persistence", "locking", "results", "registration", "work", "signal", "trigger")
SOMEBODY = Owner(owner="somebody", host="elsewhere.example", pid=1)


@pytest.fixture
def url(tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A new schema, for processes that know nothing else."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLAT")]:
        monkeypatch.delenv(name)
    return postgres.url()


async def look(url: str, execution_id: str) -> Execution:
    store = open_store(url)
    found = await store.get(execution_id)
    await store.close()
    assert found is not None
    return found


def written(backends: str, states: str = ASK, more: str = "") -> Path:
    path = Path("machine.yml")
    path.write_text(
        f'spec: flatmachine\nspec_version: "4.2.1"\ndata:\n  name: m\n  settings: {{backends: {{{backends}}}}}\n{more}'
        f"  states:\n{states}"
    )
    return path


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["named", "by URL"])
async def test_one_schema_has_every_role(url: str, how: str) -> None:
    place = "postgres" if how == "named" else f"'{url}'"
    said = ", ".join(f"{role}: {place}" for role in ROLES)
    machine = flat.FlatMachine(
        config_file=written(f"{said}, postgres_url: '{url}'" if how == "named" else said)
    )
    assert machine.persistence == url
    # The store has the leases and the signals in itself: only results by URI are apart.
    assert (machine.lock, machine.signal_backend) == (None, None)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    parked = await look(url, machine.execution_id)
    assert (parked.status, parked.owner, parked.channels) == ("waiting", None, ("answers",))

    store = open_store(url)
    lease = await store.acquire(machine.execution_id, SOMEBODY, now=4e9, ttl=60)
    with pytest.raises(ExecutionBusy):
        await machine.execute(resume_from=machine.execution_id)
    await store.release(lease)
    await store.close()
    signals = create_signal_backend("postgres", url=url)
    await signals.send("answers", "yes")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "yes"}
    assert await signals.channels() == []
    assert machine.result_backend is not None
    uri = make_uri(machine.execution_id)
    assert await machine.result_backend.read(uri, block=False) == {"said": "yes"}
    assert os.listdir() == ["machine.yml"]


@pytest.mark.anyio
async def test_a_database_has_results_and_signals_beside_a_store_in_a_file(url: str) -> None:
    said = "persistence: sqlite, sqlite_path: runs.db, results: postgres, signal: postgres"
    machine = flat.FlatMachine(config_file=written(f"{said}, postgres_url: '{url}'"))
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    await create_signal_backend("postgres", url=url).send("answers", "no")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "no"}
    assert machine.result_backend is not None
    assert await machine.result_backend.read(make_uri(machine.execution_id), block=False) == {"said": "no"}


@pytest.mark.anyio
async def test_jobs_and_workers_are_where_the_file_says(url: str) -> None:
    work = create_work_backend("postgres", url=url, keep_done=True)
    job = await work.pool("default").push({"n": 7})
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60, keep_done: true}}\n"
    said = f"registration: postgres, work: postgres, postgres_url: '{url}'"
    machine = flat.FlatMachine(config_file=written(said, WORK, hooks))
    await machine.execute({"pool_id": "default"})
    done = await work.pool("default").get(job)
    assert done is not None
    (worker,) = await create_registration_backend("postgres", url=url).list()
    assert (done.status, done.claimed_by, worker.status) == ("done", worker.worker_id, "terminated")
    await work.close()


@pytest.mark.anyio
async def test_who_listens_is_woken_by_a_signal_that_the_file_sends_there(url: str) -> None:
    """From a process that keeps its executions elsewhere: the trigger of its file is told."""
    written(f"persistence: sqlite, sqlite_path: runs.db, trigger: postgres, postgres_url: '{url}'")
    machine = flat.FlatMachine(config_file="machine.yml")
    async with PostgresTrigger(url).listen() as woken:
        await machine.execute()
        assert machine.trigger_backend is not None
        await machine.trigger_backend.notify("answers")
        with anyio.fail_after(10):
            await woken.wait()


@pytest.mark.anyio
async def test_whoever_waits_for_a_result_is_notified_and_does_not_look_again(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    get = PostgresResults.get

    async def counted(self: PostgresResults, name: str) -> bytes | None:
        looks.append(name)
        return await get(self, name)

    async with PostgresResults(url) as mine, PostgresResults(url) as theirs:
        await mine.put("warm", b"")  # the table is made
        monkeypatch.setattr(PostgresResults, "get", counted)
        with anyio.move_on_after(0.5):
            await mine.wait("r")
        assert looks == ["r", "r"], "before it listened, and after"
        heard: list[bytes] = []

        async def wait() -> None:
            heard.append(await mine.wait("r"))

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await theirs.put("another", b"no")
            while len(looks) < 4:
                await anyio.lowlevel.checkpoint()
            await theirs.put("r", b"yes")
        assert heard == [b"yes"]
        assert len(looks) <= 5


def flat_command(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


@pytest.mark.parametrize("by_url", [False, True])
def test_the_command_line_runs_parks_signals_and_resumes_in_a_schema(url: str, by_url: bool) -> None:
    written(f"persistence: '{url}'" if by_url else f"persistence: postgres, postgres_url: '{url}'")
    parked = flat_command("run", "machine.yml", "--id", "x")
    assert parked.exit_code == 4, parked.stderr
    assert f"--store '{url}'" in parked.stderr or f"--store {url}" in parked.stderr
    assert anyio.run(look, url, "x").status == "waiting"
    assert flat_command("signal", "answers", "7", "--store", url).exit_code == 0
    done = flat_command("resume", "x", "machine.yml", "--store", url)
    assert done.exit_code == 0, done.stderr
    assert '"7"' in done.stdout.replace(" ", "")
    assert anyio.run(look, url, "x").status == "done"


@pytest.mark.anyio
async def test_a_database_locks_executions_that_are_kept_elsewhere(url: str) -> None:
    machine = flat.FlatMachine(
        config_file=written(f"persistence: sqlite, locking: postgres, postgres_url: '{url}'")
    )
    assert isinstance(machine.lock, PostgresLock)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    async with PostgresLock(url) as other:
        assert await other.acquire(machine.execution_id), "the lock was given back"
        with pytest.raises(ExecutionBusy):
            await machine.execute(resume_from=machine.execution_id)


@pytest.mark.parametrize("role", ["persistence", "results", "signal"])
def test_a_database_without_a_place_is_an_error_that_says_what_to_write(url: str, role: str) -> None:
    machine = written(f"{role}: postgres")
    with pytest.raises(BadStoreURL, match=f'{role} is "postgres": that does not say where.*postgres_url'):
        flat.FlatMachine(config_file=machine)
