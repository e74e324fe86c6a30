"""Signals, waits and crashes in every order: nothing is lost, doubled or overtaken.

Senders, runs that park, and dispatchers are *actors*. Each has a store object of its own kind of view on the same data,
and stops before every call and after every write; a scheduler says who goes on, or dies there. The schedule
without any interference is run first. Then every schedule that differs from it in one decision, and many that differ
in two: another actor goes on, or this one dies. In the end the dead are buried, a new dispatcher does what is left,
and what everybody got is compared with what was sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import pytest

from flat import FileStore, MemoryStore, Runtime, SQLiteStore
from flat.backends.protocols import CheckpointStore
from flat.drivers.dispatch import Dispatcher
from flat.errors import ExecutionBusy, StaleSnapshot
from flat.runtime import Machine, load
from flat.testing.crash import WRITES, Crash

pytestmark = pytest.mark.anyio

CHANNEL = "c"
TIMEOUT = 60.0
WRITING = WRITES | {"fan_out", "bury", "revive", "delete"}
T = TypeVar("T")
Choice = tuple[Literal["go", "die"], int]


def waiter(times: int, timeout: float | None) -> Machine:
    """Waits so many times, and keeps what it got; a wait that ends without a signal gives "late"."""
    wait: dict[str, Any] = {
        "type": "initial", "wait_for": CHANNEL,
        "output_to_context": {"got": "{{ context.got + [output.value] }}", "n": "{{ context.n + 1 }}"},
        "transitions": [{"condition": f"context.n == {times}", "to": "done"}, {"to": "wait"}],
    }  # fmt: skip
    states: dict[str, Any] = {"wait": wait, "done": {"type": "final", "output": {"got": "{{ context.got }}"}}}
    if timeout is not None:
        wait |= {"timeout": timeout, "on_error": "late"}
        states["late"] = {"type": "final", "output": {"got": "{{ context.got + ['late'] }}"}}
    data = {
        "name": "waiter", "settings": {"native_types": True}, "context": {"got": [], "n": 0}, "states": states,
    }  # fmt: skip
    return load(config={"spec": "flatmachine", "spec_version": "4.0.0", "data": data})


# -- the scheduler -----------------------------------------------------------------------------


class Actor:
    """A process in small: it goes on when it is told to, and dies when it is told to."""

    def __init__(self, name: str, body: Callable[[Runtime], Awaitable[object]], world: World) -> None:
        self.name, self.body, self.world = name, body, world
        self.at = "start"
        self.arrived, self.go = anyio.Event(), anyio.Event()
        self.done = self.dying = self.dead = False

    async def point(self, label: str) -> None:
        if self.dead:
            raise Crash(label)
        self.at = label
        self.go = anyio.Event()
        self.arrived.set()
        await self.go.wait()
        if self.dying:
            self.dead = True
            raise Crash(label)

    def told(self, what: str) -> None:
        self.arrived = anyio.Event()
        self.dying = what == "die"
        self.go.set()

    async def live(self) -> None:
        try:
            await self.point("start")
            async with self.world.runtime(self) as runtime:
                await self.body(runtime)
        except Crash:
            pass
        except BaseExceptionGroup as group:
            if group.split(Crash)[1] is not None:
                raise
        finally:
            self.done = True
            self.arrived.set()


class Gated:
    """A store before each of whose calls, and after each of whose writes, its actor stops."""

    def __init__(self, store: CheckpointStore, actor: Actor) -> None:
        self._store, self._actor = store, actor

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name == "find":
            return method

        async def call(*args: Any, **kwargs: Any) -> Any:
            await self._actor.point(f"before {name}")
            result = await method(*args, **kwargs)
            if name in WRITING:
                await self._actor.point(f"after {name}")
            return result

        return call


class Time:
    """The time of a world: it passes for all when one of them has slept."""

    def __init__(self) -> None:
        self.at = 1_700_000_000.0

    def now(self) -> float:
        return self.at

    async def sleep_until(self, at: float) -> None:
        self.at = max(self.at, at)

    async def before(self, at: float, work: Callable[[], Awaitable[T]]) -> T:
        return await work()


class Watch(Time):
    """The time as an actor sees it: while it sleeps, others may go on."""

    def __init__(self, time: Time, actor: Actor) -> None:
        self.time, self.actor = time, actor

    def now(self) -> float:
        return self.time.now()

    async def sleep_until(self, at: float) -> None:
        await self.actor.point("asleep")
        await self.time.sleep_until(at)


@dataclass
class World:
    """One store and one time, in which actors live."""

    store: CheckpointStore
    machine: Machine
    clock: Time = field(default_factory=Time)
    owners: int = 0

    def runtime(self, actor: Actor | None = None) -> Runtime:
        store: Any = self.store if actor is None else Gated(self.store, actor)
        clock = self.clock if actor is None else Watch(self.clock, actor)
        runtime = Runtime(store, clock=clock, machines={"waiter": self.machine})
        # Each is a process elsewhere: nobody can tell that it is dead, and its lease has to run out.
        self.owners += 1
        runtime.owner = replace(runtime.owner, owner=f"owner {self.owners}", host="elsewhere.example")
        return runtime


async def play(
    actors: Sequence[Actor], plan: Sequence[Choice]
) -> tuple[list[Choice], list[list[Choice]], list[str]]:
    """Run the actors by a plan, and without interference where it ends. Gives what was chosen, what could have been
    chosen at each step, and the story in words."""
    chosen: list[Choice] = []
    options: list[list[Choice]] = []
    story: list[str] = []
    last = 0
    async with anyio.create_task_group() as group:
        for actor in actors:
            group.start_soon(actor.live)
        while True:
            for actor in actors:
                await actor.arrived.wait()
            able = [index for index, actor in enumerate(actors) if not actor.done]
            if not able:
                return chosen, options, story
            first = last if last in able else able[0]
            now: list[Choice] = [("go", first), *(("go", index) for index in able if index != first)]
            if not any(actor.dead for actor in actors):
                now.append(("die", first))
            choice = plan[len(chosen)] if len(chosen) < len(plan) else now[0]
            chosen.append(choice)
            options.append(now)
            last = choice[1]
            story.append(f"{choice[0]} {actors[last].name} {actors[last].at}")
            actors[last].told(choice[0])


# -- scenarios ---------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """Who does what, and how often each execution waits."""

    executions: tuple[str, ...] = ("e1",)
    waits: int = 2
    sends: int = 2
    parked: bool = False
    """Whether the executions are parked before anything else happens."""
    dispatchers: int = 1
    timeout: float | None = None
    to: str | None = None
    plain_resume: bool = False
    """Whether somebody resumes the first execution by hand, too."""

    def actors(self, world: World) -> list[Actor]:
        made = [] if self.parked else [self._starter(world, name) for name in self.executions]
        made.append(Actor("sender", self._send, world))
        if self.timeout is not None:
            made.append(Actor("time", self._pass_time, world))
        if self.plain_resume:
            made.append(Actor("hand", self._resume, world))
        made += [Actor(f"dispatcher {n}", self._dispatch, world) for n in range(self.dispatchers)]
        return made

    def _starter(self, world: World, name: str) -> Actor:
        async def start(runtime: Runtime) -> None:
            with contextlib.suppress(ExecutionBusy, StaleSnapshot):
                await runtime.start(world.machine, execution_id=name)

        return Actor(f"run {name}", start, world)

    async def _send(self, runtime: Runtime) -> None:
        for number in range(self.sends):
            await runtime.signal(CHANNEL, number, signal_id=f"s{number}", to=self.to)

    async def _pass_time(self, runtime: Runtime) -> None:
        await runtime.clock.sleep_until(runtime.clock.now() + TIMEOUT + 1)

    async def _resume(self, runtime: Runtime) -> None:
        with contextlib.suppress(ExecutionBusy, StaleSnapshot):
            await runtime.resume(self.executions[0])

    async def _dispatch(self, runtime: Runtime) -> None:
        await Dispatcher(runtime.opened(), runtime.resume, runtime.clock, concurrency=1).dispatch_once()


async def afterwards(scenario: Scenario, world: World) -> dict[str, list[Any]]:
    """Do what is left after the dead are known to be dead; gives what each execution got."""
    if scenario.timeout is None:
        world.clock.at += 3600
    async with world.runtime() as runtime:
        await scenario._send(runtime)  # whoever died while sending sends again, under the same ids
        store = world.store
        for name in scenario.executions:
            found = await store.get(name)
            if found is None:
                await runtime.start(world.machine, execution_id=name)
            elif found.status == "running":
                if scenario.timeout is not None:
                    world.clock.at += 31
                await runtime.resume(name)
        report = await Dispatcher(store, runtime.resume, world.clock).dispatch_once()
        if report.left:  # leases of the dead
            world.clock.at += 31
            report = await Dispatcher(store, runtime.resume, world.clock).dispatch_once()
        assert not report.left, report
        assert not report.buried, report
        got = {}
        for name in scenario.executions:
            snapshot = await runtime.inspect(name)
            got[name] = list(
                snapshot.output["got"] if snapshot.status == "done" else snapshot.root.context["got"]
            )
        return got


async def problems(scenario: Scenario, world: World) -> list[str]:
    """What became of the signals that should not have."""
    got = await afterwards(scenario, world)
    left = await world.store.signals()
    sent = list(range(scenario.sends))
    bodies = {int(one.body) for one in left}
    found: list[str] = []
    for name, values in got.items():
        numbers = [value for value in values if value != "late"]
        if numbers != sorted(set(numbers)):
            found.append(f"{name} got {values}: doubled, or out of order")
        if len(values) > scenario.waits:
            found.append(f"{name} got {values}: more than it waited for")
    taken = {value for values in got.values() for value in values if value != "late"}
    if lost := set(sent) - taken - bodies:
        found.append(f"lost: {sorted(lost)} (got {got}, left {[one.signal_id for one in left]})")
    if len(scenario.executions) == 1:
        (values,) = got.values()
        numbers = [value for value in values if value != "late"]
        if numbers != sent[: len(numbers)]:
            found.append(f"got {values}: one was overtaken")
        if both := taken & bodies:
            found.append(f"taken, and still there: {sorted(both)}")
        if "late" not in values and len(values) != min(scenario.sends, scenario.waits):
            found.append(f"got {values}, though {[one.signal_id for one in left]} was there")
        if scenario.timeout is None and (dead := await world.store.dead()):
            found.append(f"buried without a reason: {dead}")
    for one in left:
        if one.to is not None and int(one.body) in got.get(one.to, ()):
            found.append(f"{one.to} got {one.signal_id}, which is still there")
    return found


def plans(base: Sequence[list[Choice]], chosen: Sequence[Choice]) -> Iterator[list[Choice]]:
    """Every plan that differs from what was chosen in one step."""
    for step, options in enumerate(base):
        for choice in options:
            if choice != chosen[step]:
                yield [*chosen[:step], choice]


Opener = Callable[[], CheckpointStore]


async def enumerate_schedules(scenario: Scenario, place: Opener, most: int) -> int:
    """Play the scenario in at most so many orders; gives how many distinct ones there were."""
    stories: set[tuple[str, ...]] = set()

    async def run(plan: Sequence[Choice]) -> tuple[list[Choice], list[list[Choice]]]:
        world = World(place(), waiter(scenario.waits, scenario.timeout))
        if scenario.parked:
            async with world.runtime() as runtime:
                for name in scenario.executions:
                    await runtime.start(world.machine, execution_id=name)
        chosen, options, story = await play(scenario.actors(world), plan)
        wrong = await problems(scenario, world)
        assert not wrong, "\n".join([*wrong, *story])
        stories.add(tuple(story))
        await world.store.close()
        return chosen, options

    chosen, options = await run(())
    singles = list(plans(options, chosen))
    doubles: list[list[Choice]] = []
    for plan in singles:
        if len(stories) >= most:
            return len(stories)
        then, could = await run(plan)
        doubles += [p for p in plans(could, then) if len(p) > len(plan)]
    # As many of the rest as there is room for, spread evenly.
    room = max(0, most - len(stories))
    for plan in doubles[:: max(1, len(doubles) // room)] if room else ():
        await run(plan)
    return len(stories)


SCENARIOS = {
    "a run parks while signals come": Scenario(),
    "one who waits, two dispatchers": Scenario(parked=True, dispatchers=2),
    "a broadcast": Scenario(executions=("e1", "e2"), parked=True),
    "a broadcast, two dispatchers": Scenario(
        executions=("e1", "e2"), waits=1, sends=1, parked=True, dispatchers=2
    ),
    "a run parks while others wait": Scenario(executions=("e1", "e2"), waits=1),
    "the time runs out": Scenario(parked=True, timeout=TIMEOUT, waits=1, sends=1),
    "the time runs out while it parks": Scenario(timeout=TIMEOUT, waits=1, sends=1),
    "by hand and by dispatcher": Scenario(parked=True, plain_resume=True),
    "addressed": Scenario(executions=("e1",), parked=True, to="e1", dispatchers=2),
}


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("name", SCENARIOS)
async def test_every_order_of_things_delivers_each_signal_once(name: str) -> None:
    count = await enumerate_schedules(SCENARIOS[name], MemoryStore, 150)
    assert count >= 140, f"only {count} distinct orders"


@pytest.mark.parametrize("kind", ["sqlite", "files"])
@pytest.mark.parametrize("name", ["a run parks while signals come", "a broadcast, two dispatchers"])
async def test_so_it_is_on_disk(kind: str, name: str, tmp_path: Path) -> None:
    numbers = iter(range(10_000))

    def place() -> CheckpointStore:
        path = tmp_path / f"{next(numbers)}"
        return SQLiteStore(path) if kind == "sqlite" else FileStore(path)

    assert await enumerate_schedules(SCENARIOS[name], place, 40) >= 40
