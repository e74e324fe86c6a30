"""A worker and a checker die at every point of their runs, and are resumed: nothing is done twice or lost."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest

import flat
from flat.backends.memory.work import MemoryRegistrationBackend, MemoryWorkBackend
from flat.hooks.distributed import DistributedWorkerHooks
from flat.testing.crash import Opener, Scenario, memory_places, sweep

pytestmark = pytest.mark.anyio

WORKER = ["register_worker", "claim_job", "work", "complete_job", "deregister_worker"]
CHECKER = ["get_pool_state", "calculate_spawn", "spawn_workers"]


def at_once(step: Coroutine[Any, Any, Any]) -> Any:
    """The result of an async function that awaits nothing."""
    try:
        step.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it awaits something")


@dataclass
class World:
    """What outlives the processes of one trial: the queue, the register, and the workers that were started."""

    work: MemoryWorkBackend = field(default_factory=lambda: MemoryWorkBackend(clock=lambda: 5.0))
    register: MemoryRegistrationBackend = field(
        default_factory=lambda: MemoryRegistrationBackend(clock=lambda: 5.0)
    )
    started: dict[str, int] = field(default_factory=dict)
    worked: list[Any] = field(default_factory=list)

    def hooks(self) -> DistributedWorkerHooks:
        async def start(path: str, given: Any, execution_id: str) -> None:
            self.started[execution_id] = self.started.get(execution_id, 0) + 1

        return DistributedWorkerHooks(self.register, self.work, start_worker=start, clock=lambda: 5.0)


def scenario(actions: list[str], worlds: list[World], **context: Any) -> Scenario:
    """The actions in a row; `work` is a job's own, and `worlds[-1]` is the one of the trial."""
    states: dict[str, Any] = {
        action: {"action": action, "transitions": [{"to": then}]}
        for action, then in zip(actions, [*actions[1:], "end"], strict=True)
    }
    states[actions[0]]["type"] = "initial"
    states["end"] = {"type": "final", "output": {"job": "{{ context.job }}"}}
    data = {"name": "m", "context": {"job": None, **context}, "states": states, "hooks": ["shared", "own"]}

    class Own(flat.MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: Any) -> Any:
            if action_name == "work":
                worlds[-1].worked.append(context["job"])
                context["result"] = context["job"] * 2

    def machine(clock: Any) -> flat.Machine:
        return flat.load(
            config={"spec": "flatmachine", "spec_version": "2.5.0", "data": data},
            hooks={"shared": worlds[-1].hooks, "own": Own},
        )

    return Scenario(machine=machine)


async def trials(actions: list[str], jobs: int, **context: Any) -> list[World]:
    """Sweep, and give the world that each trial left behind."""
    worlds: list[World] = []
    places = memory_places()

    def place() -> Opener:
        worlds.append(World())
        at_once(worlds[-1].work.pool("default").push_many(list(range(1, jobs + 1))))
        return places()

    report = await sweep(scenario(actions, worlds, **context), place)
    report.check()
    assert report.in_doubt > 0
    assert len(worlds) > 10
    return worlds


async def test_a_worker_does_its_job_and_no_other_whenever_it_dies() -> None:
    for world in await trials(WORKER, jobs=3, worker_id="w1"):
        pool = world.work.pool("default")
        assert [item.data for item in await pool.items(status="pending")] == [2, 3]
        assert await pool.items(status="claimed") == []
        assert set(world.worked) == {1}
        (record,) = await world.register.list()
        assert (record.worker_id, record.status) == ("w1", "terminated")


async def test_a_worker_without_a_name_registers_once_whenever_it_dies() -> None:
    for world in await trials(WORKER, jobs=1):
        assert len(await world.register.list()) == 1


async def test_a_checker_starts_each_worker_under_one_id_whenever_it_dies() -> None:
    ids = set()
    for world in await trials(CHECKER, jobs=2, worker_config_path="w.yml"):
        assert len(world.started) == 2
        ids.add(frozenset(world.started))
    assert len(ids) == 1
