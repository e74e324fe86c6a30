"""The local driver: several effects at once, time, and cancellation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import anyio
import anyio.lowlevel
import pytest

from flat import MachineHooks
from flat.core.advance import begin
from flat.core.effects import RunAction
from flat.core.events import Done, Failed, Started
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.ops import Finish
from flat.core.program import Node, Program
from flat.core.template import compile_value
from flat.drivers.clock import DeadlinePassed, SystemClock
from flat.drivers.local import Drive
from flat.drivers.perform import Performer
from flat.testing.agents import After, ScriptedAgent
from flat.testing.clock import VirtualClock

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True, kw_only=True)
class Gather:
    """Asks for several actions at once; goes on with all answers, or with the first failure."""

    names: tuple[str, ...]
    key: str = "gather"
    kind: Literal["gather"] = "gather"

    def start(self, here: View) -> Answer:
        effects = tuple(
            RunAction(here.effect_id(self.key, name), here.node, name, here.hooks, here.context)
            for name in self.names
        )
        return Block(effects, [])

    def resume(self, here: View, event: Done | Failed) -> Answer:
        if isinstance(event, Failed):
            return Raise(event.failure)
        got = [*here.local, event.value["last"]]
        if len(got) < len(self.names):
            return Block((), got)
        return Next(context={**here.context, "got": got})


class Sleepy(MachineHooks):
    """Sleeps as long as the action's name says; a name with `!` fails after that."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock, self.finished = clock, list[str]()

    async def on_action(self, state_name: str, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        await self.clock.sleep_until(self.clock.now() + float(action_name.strip("!")))
        self.finished.append(action_name)
        if action_name.endswith("!"):
            raise ValueError(action_name)
        return {**context, "last": action_name}


async def driven(*names: str) -> tuple[Any, Sleepy, VirtualClock]:
    clock = VirtualClock()
    hooks = Sleepy(clock)
    nodes = {
        "work": Node(name="work", ops=(Gather(names=names), Finish())),  # type: ignore[arg-type]
    }
    program = Program(
        name="m",
        kind="yaml",
        spec_version="4",
        initial="work",
        context=compile_value({"got": []}),
        nodes=nodes,
    )
    event = Started({}, clock.now())
    snapshot = begin(program, "e", event, max_steps=9, max_agent_calls=None)
    drive = Drive(program, Performer(program, lambda refs: hooks, lambda name: None, clock), clock)  # type: ignore[arg-type, return-value]
    return await drive.start(snapshot, event), hooks, clock


async def test_several_effects_run_at_once_and_are_answered_as_they_come() -> None:
    last, _, clock = await driven("3", "1", "2")
    assert last.root.context["got"] == ["1", "2", "3"]
    assert clock.now() == VirtualClock().now() + 3


async def test_a_failure_that_ends_the_run_cancels_what_is_left() -> None:
    last, hooks, clock = await driven("5", "1!", "9")
    assert (last.status, last.failure.type) == ("failed", "ValueError")
    assert hooks.finished == ["1!"]
    assert clock.now() == VirtualClock().now() + 1


# -- the virtual clock -------------------------------------------------------------------------


async def test_sleepers_wake_in_the_order_of_their_times() -> None:
    clock, woken = VirtualClock(0.0), list[tuple[float, float]]()

    async def sleeper(at: float) -> None:
        await clock.sleep_until(at)
        woken.append((at, clock.now()))
        if at < 100:
            await sleeper(at + 100)

    async with anyio.create_task_group() as group:
        for at in (30.0, 10.0, 20.0, 10.0):
            group.start_soon(sleeper, at)
    assert woken == [(t, t) for t in (10.0, 10.0, 20.0, 30.0, 110.0, 110.0, 120.0, 130.0)]


async def test_time_stands_still_while_somebody_works() -> None:
    clock = VirtualClock(0.0)
    seen = set()

    async def worker() -> None:
        for _ in range(20):
            await anyio.lowlevel.checkpoint()
            seen.add(clock.now())

    async with anyio.create_task_group() as group:
        group.start_soon(clock.sleep_until, 5.0)
        group.start_soon(worker)
    assert seen == {0.0}
    assert clock.now() == 5.0


async def test_a_deadline_passes_only_when_time_does() -> None:
    clock = VirtualClock(0.0)
    with pytest.raises(DeadlinePassed):
        await clock.before(3.0, lambda: clock.sleep_until(9.0))
    assert clock.now() == 3.0

    async def work() -> str:
        await anyio.lowlevel.checkpoint()
        return "done"

    assert await clock.before(4.0, work) == "done"
    with pytest.raises(DeadlinePassed):
        await clock.before(3.0, work)
    with pytest.raises(ZeroDivisionError):
        await clock.before(9.0, lambda: _divide())
    assert clock.now() == 3.0


async def _divide() -> float:
    return 1 / 0


async def test_a_cancelled_sleeper_hands_the_lead_on() -> None:
    clock = VirtualClock(0.0)
    async with anyio.create_task_group() as group:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as inner:
                inner.start_soon(clock.sleep_until, 50.0)
                await anyio.lowlevel.checkpoint()
                group.start_soon(clock.sleep_until, 60.0)
                scope.cancel()
    assert clock.now() == 60.0


async def test_time_can_be_moved_by_hand() -> None:
    clock = VirtualClock(0.0)
    clock.advance(10)
    await clock.sleep_until(10)
    assert clock.now() == 10


async def test_the_real_clock_begins_no_work_after_its_time() -> None:
    clock = SystemClock()
    begun = []

    async def work() -> None:
        begun.append(1)

    with pytest.raises(DeadlinePassed):
        await clock.before(clock.now() - 1, work)
    assert not begun
    await clock.before(clock.now() + 60, work)
    assert begun
    await clock.sleep_until(clock.now() - 1)


# -- scripted agents -----------------------------------------------------------------------------


async def test_a_scripted_agent_needs_a_clock_to_take_its_time() -> None:
    from flat import AgentRequest

    with pytest.raises(ValueError, match="needs a clock"):
        await ScriptedAgent(After(1, "x")).call(AgentRequest())
    with pytest.raises(ValueError, match="at least one"):
        ScriptedAgent()
    told = list[str]()
    result = await ScriptedAgent(lambda request: {"got": request.input}).call(AgentRequest(input={"a": 1}))
    assert result.output == {"got": {"a": 1}}
    await ScriptedAgent("text").call(AgentRequest(on_token=told.append))
    assert told == ["text"]
