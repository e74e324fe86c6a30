"""Every value of every role of `settings.backends`, by name and by URL, from a file to the place and back."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest

import flat
from flat.backends import open_store
from flat.backends.postgres.trigger import PostgresTrigger
from flat.backends.redis.trigger import RedisTrigger
from flat.backends.triggers import FileTrigger, SocketTrigger, TriggerBackend
from flat.errors import ExecutionBusy
from flat.runtime.compat.results import make_uri
from flat.runtime.compat.signals import create_signal_backend
from flat.spec.check import _BACKENDS

TABLE = {
    "persistence": ("memory", "local", "sqlite", "redis", "postgres", "s3", "dynamodb"),
    "locking": ("none", "local", "sqlite", "redis", "consul", "dynamodb", "postgres"),
    "results": ("memory", "redis", "dynamodb", "sqlite", "postgres"),
    "registration": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "work": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "signal": ("memory", "sqlite", "redis", "dynamodb", "postgres"),
    "trigger": ("none", "file", "socket", "redis", "postgres"),
}
ASK = """\
    ask: {wait_for: answers, output_to_context: {said: "{{ output.value }}"}, transitions: [{to: done}]}
    done: {type: final, output: {said: "{{ context.said }}"}}
"""
WORK = """\
    register: {action: register_worker, transitions: [{to: claim}]}
    claim: {action: claim_job, transitions: [{to: done}]}
    done: {type: final, output: {job: "{{ context.job_id }}", worker: "{{ context.worker_id }}"}}
"""
NUMBERS = itertools.count()


class Where:
    """A place of each kind that nobody has used yet, as a file names it: `said` names a value of a role."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        self._request, self._folder = request, folder
        self._short = tempfile.mkdtemp(prefix="flat-")  # addresses of sockets have room for 100 characters

    def _server(self, name: str) -> Any:
        return self._request.getfixturevalue(name)

    def url(self, role: str, kind: str) -> str:
        match kind:
            case "memory" | "none":
                return f"{kind}:"
            case "local":
                return "file:runs"
            case "sqlite":
                return f"sqlite:///{role}.db"
            case "file":
                return f"file:{self._folder / 'woken'}"
            case "socket":
                return f"socket:{self._short}/s"
            case "s3":
                return str(self._server("aws").url(scheme="s3"))
            case "dynamodb":
                return str(self._server("aws").url())
        return str(self._server(kind).url())

    def said(self, role: str, kind: str, how: str) -> tuple[str, str]:
        """What the file says, and the URL that it means."""
        url = self.url(role, kind)
        if how == "by URL":
            return f"{role}: '{url}'", url
        match kind:
            case "sqlite":
                beside = f", sqlite_path: {role}.db"
            case "file" | "socket":
                beside = f", trigger_path: '{url.partition(':')[2]}'"
            case "redis" | "postgres" | "consul" | "s3":
                beside = f", {kind}_url: '{url}'"
            case "dynamodb":
                os.environ["FLAT_DYNAMODB_URL"] = url
                beside = ""
            case _:
                beside = ""
        return f"{role}: {kind}{beside}", "file:.checkpoints" if kind == "local" else url


def text_of(said: str, states: str, more: str) -> str:
    return (
        f'spec: flatmachine\nspec_version: "4.2.1"\ndata:\n  name: m\n  settings: {{backends: {{{said}}}}}\n{more}'
        f"  states:\n{states}"
    )


def machine_of(said: str, states: str = ASK, more: str = "") -> flat.FlatMachine:
    path = Path(f"machine{next(NUMBERS)}.yml")
    path.write_text(text_of(said, states, more))
    return flat.FlatMachine(config_file=path)


async def persistence(said: str, kind: str, url: str) -> None:
    machine = machine_of(said)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    if kind == "memory":
        assert isinstance(machine.persistence, flat.MemoryStore)
        return
    store = open_store(url)
    (found,) = [one async for one in store.find()]
    assert (found.execution_id, found.status) == (machine.execution_id, "waiting")
    await store.close()
    await create_signal_backend(url=url).send("answers", "yes")
    assert await machine_of(said).execute(resume_from=machine.execution_id) == {"said": "yes"}


async def locking(said: str, kind: str, url: str) -> None:
    said = f"persistence: local, {said}"
    machine, other = machine_of(said), machine_of(said)
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    if kind == "none":
        assert machine.lock is None
        return
    assert await other.lock.acquire(machine.execution_id), "it was given back"
    with pytest.raises(ExecutionBusy, match="its lock is held"):
        await machine.execute(resume_from=machine.execution_id)
    await other.lock.release(machine.execution_id)
    assert await machine.execute(resume_from=machine.execution_id) == {
        "_waiting": True,
        "_channel": "answers",
    }


async def results(said: str, kind: str, url: str) -> None:
    machine, other = machine_of(said, DONE), machine_of(said, DONE)
    assert await machine.execute() == {"said": "this"}
    assert await other.result_backend.read(make_uri(machine.execution_id), block=False) == {"said": "this"}


DONE = "    done: {type: final, output: {said: this}}\n"


async def signal(said: str, kind: str, url: str) -> None:
    machine = machine_of(f"persistence: local, {said}")
    assert await machine.execute() == {"_waiting": True, "_channel": "answers"}
    sender = machine.signal_backend if kind == "memory" else create_signal_backend(url=url)
    if sender is None:  # in memory there is nobody else: the store has them
        sender = create_signal_backend(url="file:.checkpoints")
    await sender.send("answers", "yes")
    assert await machine.execute(resume_from=machine.execution_id) == {"said": "yes"}


async def work(said: str, kind: str, url: str) -> None:
    queue = f"work: {said.partition(': ')[2]}"
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60}}\n"
    options: dict[str, Any] = {"db_path": "work.db"} if kind == "sqlite" else {"url": url}
    if kind == "memory":  # one for each machine: nothing is in it
        assert (await machine_of(queue, WORK, hooks).execute({"pool_id": "default"}))["job"] == "None"
        return
    backend = flat.create_work_backend(kind, **options)
    job = await backend.pool("default").push({"n": 7})
    done = await machine_of(queue, WORK, hooks).execute({"pool_id": "default"})
    (item,) = await backend.pool("default").items()
    assert (str(done["job"]), item.claimed_by) == (job, done["worker"])
    await backend.close()


async def registration(said: str, kind: str, url: str) -> None:
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60}}\n"
    done = await machine_of(f"work: memory, {said}", WORK, hooks).execute({"pool_id": "default"})
    if kind == "memory":
        assert done["worker"]
        return
    options: dict[str, Any] = {"db_path": "registration.db"} if kind == "sqlite" else {"url": url}
    register = flat.create_registration_backend(kind, **options)
    assert [one.worker_id for one in await register.list()] == [done["worker"]]
    await register.close()


async def trigger(said: str, kind: str, url: str) -> None:
    machine = machine_of(f"persistence: local, {said}")
    if kind == "none":
        assert machine.trigger_backend is None
        return
    where = url.partition(":")[2]
    listeners: dict[str, Callable[[], TriggerBackend]] = {
        "file": lambda: FileTrigger(where), "socket": lambda: SocketTrigger(where),
        "redis": lambda: RedisTrigger(url), "postgres": lambda: PostgresTrigger(url),
    }  # fmt: skip
    assert machine.trigger_backend is not None
    async with listeners[kind]().listen() as woken:
        await machine.trigger_backend.notify("answers")
        with anyio.fail_after(30):
            await woken.wait()


ROLES = {
    "persistence": persistence, "locking": locking, "results": results, "signal": signal, "work": work,
    "registration": registration, "trigger": trigger,
}  # fmt: skip
CELLS = [
    pytest.param(role, kind, how, id=f"{role}-{kind}-{how}")
    for role, kinds in TABLE.items()
    for kind in kinds
    for how in ("by name", "by URL")
    if not (
        how == "by URL" and (role, kind) == ("locking", "local")
    )  # a folder of this host, without an address
]


def test_the_table_is_what_a_file_may_say() -> None:
    assert {role: set(kinds) for role, kinds in TABLE.items()} == {
        role: set(kinds) for role, kinds in _BACKENDS.items()
    }


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(("role", "kind", "how"), CELLS)
async def test_a_role_is_played_where_the_file_says(
    role: str, kind: str, how: str, request: pytest.FixtureRequest, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FLAT") and "TEST" not in name]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FLAT_DYNAMODB_URL", "dynamodb://nothing")
    said, url = Where(request, tmp_path).said(role, kind, how)
    await ROLES[role](said, kind, url)


WITHOUT = """
import json, pathlib, sys
for name in ("hiredis", "psycopg", "aiobotocore", "botocore", "httpx"):
    sys.modules[name] = None
import anyio, flat

async def go(text):
    path = pathlib.Path("machine.yml")
    path.write_text(text)
    try:
        await flat.FlatMachine(config_file=path).execute({"pool_id": "default"})
    except flat.FlatError as error:
        return str(error)
    return "it ran"

print(json.dumps([anyio.run(go, text) for text in json.load(sys.stdin)]))
"""
EXTRAS = {
    "redis": ("redis://h/0", "redis"), "postgres": ("postgresql://h/d", "postgres"),
    "dynamodb": ("dynamodb://t?region=r", "aws"), "s3": ("s3://bucket?region=r", "aws"),
    "consul": ("consul://h/f", "consul"),
}  # fmt: skip


def test_every_role_says_how_to_install_the_client_that_it_lacks(tmp_path: Path) -> None:
    cells = [(role, kind) for role, kinds in TABLE.items() for kind in kinds if kind in EXTRAS]
    hooks = "  hooks: {name: distributed-worker, args: {lease_seconds: 60}}\n"
    texts = [text_of(f"{role}: '{EXTRAS[kind][0]}'", WORK, hooks) for role, kind in cells]
    made = subprocess.run(
        [sys.executable, "-c", WITHOUT], input=orjson.dumps(texts), capture_output=True, cwd=tmp_path,
        check=True, timeout=60,
    )  # fmt: skip
    said = dict(zip(cells, orjson.loads(made.stdout), strict=True))
    wrong = {
        cell: text
        for cell, text in said.items()
        if not text.endswith(f"pip install 'flat[{EXTRAS[cell[1]][1]}]'")
    }
    assert not wrong
