"""Workers, checkers and reapers: each action by itself, and the whole with real processes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

import flat
from flat import Outcome, Runtime, SQLiteRegistrationBackend, SQLiteWorkBackend, WorkerRegistration
from flat.backends.memory.work import MemoryRegistrationBackend, MemoryWorkBackend
from flat.errors import ActionFailed, DefinitionError, WorkerNotFound, WorkNotHeld
from flat.hooks import distributed
from flat.hooks.distributed import DistributedWorkerHooks

pytestmark = pytest.mark.anyio
FILES = Path(__file__).with_name("workers")


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Place:
    """Hooks on backends in memory, a clock, and the starts of workers that were asked for."""

    def __init__(self, **options: Any) -> None:
        self.clock = Clock()
        self.register = MemoryRegistrationBackend(clock=self.clock)
        self.work = MemoryWorkBackend(clock=self.clock, keep_done=True)
        self.pool = self.work.pool("default")
        self.started: list[tuple[str, Mapping[str, Any], str]] = []

        async def start(path: str, given: Mapping[str, Any], execution_id: str) -> None:
            self.started.append((path, given, execution_id))

        self.hooks = DistributedWorkerHooks(self.register, self.work, start_worker=start, **options)

    async def do(self, action: str, context: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        given = {**(context or {}), **more}
        returned = await self.hooks.on_action("state", action, given)
        assert returned is given
        return returned

    async def worker(self, worker_id: str, **facts: Any) -> None:
        await self.register.register(WorkerRegistration(worker_id=worker_id, **facts))


AT = {"execution_id": "e1", "step": 3}
"""The facts of a machine, as an action sees them."""


async def test_other_actions_pass_unchanged() -> None:
    assert await Place().do("something_else", a=1) == {"a": 1}
    assert await Place().do("on_background", a=1) == {"a": 1}


async def test_a_worker_registers_claims_completes_and_leaves() -> None:
    place = Place()
    await place.pool.push({"url": "x"})
    context = await place.do("register_worker", worker_id="w1", capabilities=["gpu"])
    assert (context["worker_id"], context["status"]) == ("w1", "active")
    assert context["registered_at"].endswith("+00:00")
    record = await place.register.get("w1")
    assert record is not None
    assert (record.capabilities, record.pool_id, bool(record.host), record.pid > 0) == (
        ("gpu",),
        "default",
        True,
        True,
    )
    context = await place.do("claim_job", context)
    assert context["job"] == {"url": "x"}
    context = await place.do("complete_job", context, result={"ok": True})
    item = await place.pool.get(context["job_id"])
    assert item is not None
    assert (item.status, item.result, item.claimed_by) == ("done", {"ok": True}, "w1")
    context = await place.do("claim_job", context)
    assert (context["job"], context["job_id"]) == (None, None)
    await place.do("deregister_worker", context)
    record = await place.register.get("w1")
    assert record is not None
    assert record.status == "terminated"


async def test_a_worker_without_a_name_gets_one() -> None:
    place = Place()
    context = await place.do("register_worker", machine=AT)
    assert context["worker_id"].startswith("worker-")
    assert len(context["worker_id"]) == len("worker-") + 8
    again = await place.do("register_worker", machine=AT)
    assert again["worker_id"] == context["worker_id"]
    assert len(await place.register.list()) == 1


async def test_a_failed_job_keeps_the_error_of_the_state_that_failed() -> None:
    place = Place()
    await place.pool.push(1, max_retries=2)
    for error in ({"last_error": "from the state"}, {"error": "given", "last_error": "from the state"}):
        context = await place.do("claim_job", worker_id="w1")
        await place.do("fail_job", context, **error)
    (item,) = await place.pool.items(status="poisoned")
    assert item.error == "given"


@pytest.mark.parametrize(
    ("action", "context", "words"),
    [
        ("claim_job", {}, "worker_id"), ("complete_job", {}, "job_id"), ("fail_job", {}, "job_id"),
        ("heartbeat", {}, "worker_id"), ("deregister_worker", {"worker_id": ""}, "worker_id"),
        ("reap_worker", {}, "worker"), ("reap_worker", {"worker": {"host": "h"}}, "worker_id"),
        ("spawn_workers", {"workers_to_spawn": 1}, "worker_config_path"),
        ("calculate_spawn", {"queue_depth": "many"}, "not a number"),
    ],
)  # fmt: skip
async def test_what_an_action_misses_is_said(action: str, context: dict[str, Any], words: str) -> None:
    with pytest.raises(ActionFailed, match=words) as caught:
        await Place().do(action, context)
    assert caught.value.type == "ValueError"


async def test_unknown_workers_are_not_found() -> None:
    with pytest.raises(WorkerNotFound):
        await Place().do("heartbeat", worker_id="nobody")


async def test_a_worker_that_was_replaced_cannot_complete_but_may_give_up(caplog: Any) -> None:
    place = Place()
    await place.pool.push(1)
    dead = await place.do("claim_job", worker_id="dead")
    await place.pool.release_by_worker("dead")
    heir = await place.do("claim_job", worker_id="heir")
    with pytest.raises(WorkNotHeld, match="worker heir holds it"):
        await place.do("complete_job", dead)
    await place.do("fail_job", dead, error="x")
    assert "not ours to fail" in caplog.text
    await place.do("complete_job", heir, result=1)


async def test_actions_that_are_done_again_after_a_crash_do_nothing_twice(caplog: Any) -> None:
    place = Place()
    await place.pool.push_many([1, 2])
    first = await place.do("claim_job", worker_id="w1", machine=AT)
    again = await place.do("claim_job", worker_id="w1", machine=AT)
    assert (again["job_id"], again["job"]) == (first["job_id"], first["job"])
    other = await place.do("claim_job", worker_id="w1", machine={**AT, "step": 4})
    assert other["job_id"] != first["job_id"]
    place.work.keep_done = False
    await place.do("complete_job", first)
    await place.do("complete_job", first)
    assert "it was completed before" in caplog.text
    spawned = await place.do("spawn_workers", workers_to_spawn=2, worker_config_path="w.yml", machine=AT)
    repeated = await place.do("spawn_workers", workers_to_spawn="2", worker_config_path="w.yml", machine=AT)
    assert spawned["spawned_ids"] == repeated["spawned_ids"]
    assert place.started[:2] == place.started[2:]
    assert len({execution_id for _, _, execution_id in place.started}) == 2


async def test_a_checker_counts_its_own_pool_and_starts_what_is_missing() -> None:
    place = Place()
    await place.work.pool("images").push_many(range(5))
    await place.worker("here", pool_id="images")
    await place.worker("elsewhere", pool_id="texts")
    await place.worker("gone", pool_id="images")
    await place.register.update_status("gone", "lost")
    context = await place.do("get_pool_state", pool_id="images")
    assert (context["queue_depth"], context["active_workers"]) == (5, 1)
    context = await place.do("calculate_spawn", context)
    assert (context["workers_needed"], context["workers_to_spawn"], context["spawn_list"]) == (3, 2, [0, 1])
    context = await place.do("spawn_workers", context, worker_config_path="w.yml")
    assert context["spawned_count"] == 2
    assert [given for _, given, _ in place.started] == [
        {"pool_id": "images", "worker_id": worker_id} for worker_id in context["spawned_ids"]
    ]
    assert all(len(worker_id) == len("worker-") + 8 for worker_id in context["spawned_ids"])


@pytest.mark.parametrize(
    ("context", "spawn"),
    [
        ({}, 0), ({"queue_depth": 9}, 3), ({"queue_depth": "2", "active_workers": "1"}, 1),
        ({"queue_depth": 9, "max_workers": 5, "active_workers": 7}, 0), ({"queue_depth": 1, "max_workers": 9}, 1),
    ],
)  # fmt: skip
async def test_as_many_workers_as_jobs_up_to_the_most(context: dict[str, Any], spawn: int) -> None:
    counted = await Place().do("calculate_spawn", context)
    assert (counted["workers_to_spawn"], counted["spawn_list"]) == (spawn, list(range(spawn)))


async def test_the_rule_for_starting_can_be_overridden() -> None:
    class Mine(DistributedWorkerHooks):
        async def calculate_spawn(self, context: Any) -> None:
            context["workers_to_spawn"] = 7

    place = Place()
    mine = Mine(place.register, place.work)
    assert (await mine.on_action("s", "calculate_spawn", {}))["workers_to_spawn"] == 7


async def test_nothing_to_start_needs_no_path() -> None:
    place = Place(worker_config_path="default.yml")
    assert (await Place().do("spawn_workers"))["spawned_count"] == 0
    await place.do("spawn_workers", workers_to_spawn=1)
    assert place.started[0][0] == "default.yml"


async def test_a_reaper_returns_the_jobs_of_those_not_heard_of() -> None:
    place = Place()
    for worker in ("dead", "alive"):
        await place.worker(worker)
        await place.pool.push(worker)
        await place.pool.claim(worker)
    place.clock.now += 50
    await place.register.heartbeat("alive")
    place.clock.now += 20
    context = await place.do("list_stale_workers")
    assert context["stale_count"] == 1
    assert context["workers"] == context["stale_workers"]
    assert set(context["workers"][0]) == {"worker_id", "last_heartbeat", "host", "pool_id"}
    context = await place.do("reap_stale_workers", context)
    assert (context["reaped_workers"], context["reaped_count"], context["total_jobs_released"]) == (
        ["dead"],
        1,
        1,
    )
    record = await place.register.get("dead")
    assert record is not None
    assert record.status == "lost"
    assert await place.pool.size() == 1
    assert (await place.do("list_stale_workers"))["stale_count"] == 0


async def test_one_worker_is_reaped_in_its_own_pool() -> None:
    place = Place()
    await place.worker("dead", pool_id="images")
    await place.work.pool("images").push(1)
    await place.work.pool("images").claim("dead")
    context = await place.do("reap_worker", worker={"worker_id": "dead"}, pool_id="texts")
    assert (context["reaped_worker_id"], context["jobs_released"]) == ("dead", 1)
    context = await place.do("reap_worker", worker={"worker_id": "never registered"})
    assert (context["reaped_worker_id"], context["jobs_released"]) == ("never registered", 0)


async def test_a_worker_that_was_heard_of_after_it_was_listed_is_left_alone() -> None:
    place = Place()
    await place.worker("slow")
    await place.pool.push(1)
    await place.pool.claim("slow")
    place.clock.now += 100
    context = await place.do("list_stale_workers")
    await place.register.heartbeat("slow")
    context = await place.do("reap_stale_workers", context)
    assert (context["reaped_workers"], context["total_jobs_released"]) == ([], 0)
    record = await place.register.get("slow")
    assert record is not None
    assert record.status == "active"


async def test_a_beat_keeps_worker_and_lease_alive() -> None:
    place = Place(lease_seconds=30)
    await place.pool.push(1)
    context = await place.do("claim_job", await place.do("register_worker", worker_id="w1"))
    for _ in range(5):
        place.clock.now += 20
        await place.hooks.beat()
        assert await place.pool.size() == 0
    record = await place.register.get("w1")
    assert record is not None
    assert (record.last_heartbeat, record.current_task_id) == (place.clock.now, context["job_id"])
    place.clock.now += 31
    assert await place.pool.size() == 1


async def test_a_lost_lease_is_said_once_and_renewed_no_more(caplog: Any) -> None:
    place = Place(lease_seconds=30)
    await place.pool.push(1)
    await place.do("claim_job", await place.do("register_worker", worker_id="w1"))
    place.clock.now += 31
    await place.hooks.beat()
    await place.hooks.beat()
    assert caplog.text.count("does not hold job") == 1


async def test_heartbeats_go_on_while_a_long_job_runs() -> None:
    place = Place(heartbeat_seconds=0.001)
    beats = anyio.Event()
    heartbeat = place.register.heartbeat

    async def counted(worker_id: str, *args: Any, **more: Any) -> None:
        await heartbeat(worker_id, *args, **more)
        if more.get("current_task_id"):
            beats.set()

    place.register.heartbeat = counted  # type: ignore[method-assign]

    class Job(flat.MachineHooks):
        async def on_action(self, state_name: str, action_name: str, context: Any) -> Any:
            if action_name == "long_job":
                await beats.wait()

    actions = ["register_worker", "claim_job", "long_job", "complete_job", "deregister_worker"]
    states: dict[str, Any] = {
        action: {"action": action, "transitions": [{"to": then}]}
        for action, then in zip(actions, [*actions[1:], "end"], strict=True)
    }
    states["register_worker"]["type"] = "initial"
    states["end"] = {"type": "final", "output": {}}
    data = {"name": "w", "context": {"worker_id": "w1"}, "states": states, "hooks": ["work", "job"]}
    machine = flat.load(
        config={"spec": "flatmachine", "spec_version": "2.5.0", "data": data},
        hooks={"work": lambda: place.hooks, "job": Job},
    )
    await place.pool.push(1)
    async with Runtime(flat.MemoryStore()) as runtime:
        outcome = await runtime.start(machine)
    assert outcome.status == "done", outcome
    assert [item.status for item in await place.pool.items()] == ["done"]
    assert place.hooks._workers == {}


async def test_a_resumed_worker_is_heard_of_though_it_registers_no_more() -> None:
    place = Place(heartbeat_seconds=0.001, lease_seconds=30)
    await place.pool.push(1)
    item = await place.pool.claim("w1", lease=30)
    assert item is not None
    await place.worker("w1")
    place.clock.now += 20
    context = {"worker_id": "w1", "job_id": item.id, "machine": {"execution_id": "e1"}}
    async with anyio.create_task_group() as group:
        group.start_soon(place.hooks.on_background, context)
        while (await place.pool.items())[0].lease_until == item.lease_until:
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    record = await place.register.get("w1")
    assert record is not None
    assert (record.last_heartbeat, record.current_task_id) == (place.clock.now, item.id)


@pytest.mark.parametrize("options", [{"heartbeat_seconds": 0}, {"lease_seconds": -1}])
def test_seconds_that_cannot_be_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="seconds"):
        Place(**options)


async def test_a_machine_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ActionFailed, match=r"nowhere\.yml"):
        await distributed.start_process(str(tmp_path / "nowhere.yml"), {}, "e1")


# -- with real processes ---------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FILES, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(distributed, "_started", [])
    return tmp_path


def command(*arguments: str) -> dict[str, Any]:
    """Run the command line, and read what it prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "flat.cli", *arguments, "--json"], capture_output=True, text=True, timeout=60
    )
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def logs(folder: Path) -> str:
    """What the workers said."""
    return "\n".join(file.read_text() for file in folder.glob("flat-worker-*.log"))


async def checked(folder: Path) -> Outcome:
    """Run the checker in this process, so that the workers it starts are ours to wait for."""
    machine = flat.load(folder / "checker.yml")
    async with Runtime("sqlite:///flat.db") as runtime:
        outcome = await runtime.start(machine, {"pool_id": "jobs"})
    for process in distributed._started:
        process.wait()
    return outcome


async def test_checker_workers_and_reaper_bring_all_jobs_to_their_ends(folder: Path) -> None:
    async with (
        SQLiteWorkBackend(folder / "workers.sqlite") as work,
        SQLiteRegistrationBackend(folder / "workers.sqlite") as register,
    ):
        pool = work.pool("jobs")
        double = await pool.push({"do": "double", "n": 21})
        fail = await pool.push({"do": "fail"}, {"max_retries": 1})
        die = await pool.push({"do": "die once"})

        outcome = await checked(folder)
        said = logs(folder)
        assert outcome.status == "done", outcome.failure
        assert len(distributed._started) == 3
        found = {item.id: item for item in await pool.items()}
        assert (found[double].status, found[double].result) == ("done", {"answer": 42}), said
        assert found[fail].status == "poisoned"
        assert "this job cannot be done" in (found[fail].error or "")
        assert found[die].status == "claimed"
        records = {record.worker_id: record.status for record in await register.list()}
        assert sorted(records.values()) == ["active", "terminated", "terminated"]
        dead = str(found[die].claimed_by)
        assert records[dead] == "active"

        reaper = ("run", "reaper.yml", "-i", "pool_id=jobs", "-i", "stale_threshold_seconds:=0.001")
        assert command(*reaper)["output"] == {"reaped": 1, "released": 1}
        assert command(*reaper)["output"] == {"reaped": 0, "released": 0}

        worker = ("run", "worker.yml", "-i", "pool_id=jobs", "-i")
        assert command(*worker, "worker_id=heir")["output"] == {"result": {"answer": "survived"}}
        assert command(*worker, "worker_id=idle")["output"] == {"result": "no work"}
        item = await pool.get(die)
        assert item is not None
        assert (item.status, item.claimed_by, item.attempts) == ("done", "heir", 2)

        # The execution of the dead worker can be resumed, but what it does counts no more.
        async with Runtime("sqlite:///flat.db") as runtime:
            (left,) = [e for e in await runtime.list() if e.status == "running" and e.name == "worker"]
        resumed = command("resume", left.execution_id)
        assert resumed["status"] == "failed"
        assert "WorkNotHeld" in json.dumps(resumed)
        assert (await pool.get(die)) == item


async def test_a_started_worker_keeps_its_execution_where_it_is_told_and_is_started_once(
    folder: Path,
) -> None:
    for _ in range(2):
        given = {"pool_id": "jobs", "worker_id": "w1"}
        await distributed.start_process("worker.yml", given, "worker-1/x", store="sqlite:///elsewhere.db")
        distributed._started[-1].wait()
    assert [process.returncode for process in distributed._started] == [8]
    assert '"worker-1/x" already' in logs(folder).replace("\\", "")
    async with Runtime("sqlite:///elsewhere.db") as runtime:
        (execution,) = await runtime.list()
    assert (execution.execution_id, execution.status, execution.name) == ("worker-1/x", "done", "worker")


async def test_the_registered_hooks_start_workers_in_the_store_that_is_named(folder: Path) -> None:
    args = {
        "db_path": "other.sqlite",
        "store": "sqlite:///elsewhere.db",
        "lease_seconds": 9,
        "heartbeat_seconds": 60,
    }
    hooks = flat.HooksRegistry().resolve({"name": "distributed-worker", "args": args})
    assert (hooks.lease_seconds, hooks.heartbeat_seconds) == (9, 3)
    started = await hooks.on_action(
        "s", "spawn_workers", {"workers_to_spawn": 1, "worker_config_path": "worker.yml", "pool_id": "jobs"}
    )
    distributed._started[-1].wait()
    assert started["spawned_count"] == 1
    async with Runtime("sqlite:///elsewhere.db") as runtime:
        (execution,) = await runtime.list()
    assert execution.execution_id.startswith(started["spawned_ids"][0])
    with pytest.raises(DefinitionError, match=r'"distributed-worker" cannot be made with the args db_pth'):
        flat.HooksRegistry().resolve({"name": "distributed-worker", "args": {"db_pth": "x"}})
