"""A sweep finds what it is there to find: each of these machines or stores has a fault on purpose."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

import flat
from flat import HooksRegistry, Machine, MachineHooks, MemoryStore
from flat.drivers.clock import Clock
from flat.testing.crash import Opener, Report, Scenario, memory_places, sweep

pytestmark = pytest.mark.anyio

STATES: dict[str, Any] = {
    "start": {"type": "initial", "transitions": [{"to": "a"}]},
    "a": {"action": "x", "transitions": [{"condition": "context.n >= 3", "to": "end"}, {"to": "a"}]},
    "end": {"type": "final", "output": {"n": "{{ context.n }}"}},
}


def scenario(hooks: Any) -> Scenario:
    data = {"name": "faulty", "hooks": "h", "context": {"n": 0}, "states": STATES}
    config = {"spec": "flatmachine", "spec_version": "2.5.0", "data": data}

    def machine(clock: Clock) -> Machine:
        return flat.load(config=config, hooks=HooksRegistry({"h": hooks}))

    return Scenario(machine=machine)


class Count(MachineHooks):
    def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        return {**context, "n": context["n"] + 1}


async def test_a_sound_machine_passes() -> None:
    report = await sweep(scenario(Count), memory_places())
    report.check()
    assert (report + report).points == 2 * report.points


async def test_memory_that_is_not_in_the_context_is_noticed() -> None:
    class Forgetful(MachineHooks):
        def __init__(self) -> None:
            self.n = 0

        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            self.n += 1
            return {**context, "n": context["n"] + 1, "seen": self.n}

    report = await sweep(scenario(Forgetful), memory_places())
    with pytest.raises(AssertionError, match="context is"):
        report.check()


async def test_a_store_that_lets_an_old_state_come_back_is_noticed() -> None:
    class Rewinding(MemoryStore):
        """Loses its newest commit when somebody takes the execution over."""

        async def acquire(self, execution_id: str, *args: Any, **kwargs: Any) -> Any:
            row = self._rows.get(execution_id)
            if row is not None and len(row.bodies) > 2:
                row.bodies.pop()
                row.columns = replace(row.columns, status="running")
            return await super().acquire(execution_id, *args, **kwargs)

    def places() -> Opener:
        store = Rewinding()
        return lambda: store

    report = await sweep(scenario(Count), places)
    assert any("performed again" in p or "in doubt" in p or "context" in p for p in report.problems)


async def test_a_machine_that_is_not_deterministic_is_noticed() -> None:
    numbers = itertools.count()

    class Random(MachineHooks):
        def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
            return {**context, "n": context["n"] + (1 if next(numbers) < 3 else 3)}

    report = await sweep(scenario(Random), memory_places())
    assert report.problems


def test_a_report_of_nothing_is_no_success() -> None:
    with pytest.raises(AssertionError, match="no point"):
        Report().check()
