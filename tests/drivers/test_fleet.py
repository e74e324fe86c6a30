"""A worker in the register of its store."""

from __future__ import annotations

from typing import Any

import pytest

from flat.backends import this_process
from flat.backends.memory.work import MemoryRegistrationBackend
from flat.drivers.fleet import Fleet
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


async def test_a_worker_that_leaves_while_it_is_heard_of_ends_in_peace_and_stays_terminated() -> None:
    clock = VirtualClock()

    class Register(MemoryRegistrationBackend):
        async def heartbeat(self, *arguments: Any, **more: Any) -> None:
            await super().heartbeat(*arguments, **more)
            await fleet.leave(ran=7)

    register = Register(clock=clock.now)
    fleet = Fleet(this_process(), clock, lease_seconds=30, name="w1")
    await fleet.enter(register)
    await fleet.be_heard_of(lambda: {"runs": []})
    record = await register.get("w1")
    assert record is not None
    assert record.status == "terminated"
