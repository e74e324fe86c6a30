"""The crash sweep: does a machine come to the same end whenever its process dies?

    async def test_my_machine_survives() -> None:
        report = await sweep(Scenario(lambda: flat.load("machine.yml", agents=…)), memory_places())
        report.check()

A scenario is first run undisturbed. Then, for each of its *points* (before and after every durable write and
every effect), it is run again from the beginning, dies at that point, and is resumed by a new runtime on a
new store object until it ends. It must come to the same status, output and context, have performed the same
effects, and never have performed one again whose result was stored. The one effect that may have been in
flight must be reported in `Outcome.in_doubt`.

Dying is an exception that nothing of ours catches; from then on the store takes no more writes. What a killed
process leaves behind is another matter, and tested with real processes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from flat.backends import FileStore, MemoryStore, SQLiteStore
from flat.backends.protocols import CheckpointStore
from flat.core.effects import Effect
from flat.core.events import Done, Failed
from flat.core.turn import Identity
from flat.drivers.clock import Clock
from flat.drivers.doubts import SAFE
from flat.drivers.perform import Performer
from flat.hooks import Notice
from flat.runtime.machine import HooksOfRun, Machine
from flat.runtime.outcome import Outcome
from flat.runtime.runtime import Runtime
from flat.testing.clock import VirtualClock

EXECUTION = "swept"
WRITES = frozenset(
    {"create", "begin", "acquire", "release", "commit", "put_config", "send", "request_cancel"}
)
"""Not the heartbeats, which come by the real time: a slow machine would have more points than a fast one."""

Opener: TypeAlias = Callable[[], CheckpointStore]
Places: TypeAlias = Callable[[], Opener]
"""Each call gives an empty place: a function that opens a store on it, on the same data every time."""


class Crash(BaseException):
    """The process dies here. No `Exception`, so that nothing handles it."""


def memory_places() -> Places:
    """Stores in memory; a place is one of them."""

    def place() -> Opener:
        store = MemoryStore()
        return lambda: store

    return place


def folder_places(folder: Path, kind: Callable[[Path], CheckpointStore] = SQLiteStore) -> Places:
    """Stores of a kind (`SQLiteStore`, `FileStore`) in numbered subfolders or files of a folder."""
    numbers = iter(range(1_000_000))
    suffix = "" if kind is FileStore else ".db"

    def place() -> Opener:
        path = folder / f"{next(numbers)}{suffix}"
        return lambda: kind(path)

    return place


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What is run, and what the world does meanwhile."""

    machine: Callable[[Clock], Machine]
    """Makes the machine, as a fresh process would. Its agents should answer by what they are asked."""
    input: Mapping[str, Any] = field(default_factory=dict)
    signals: Mapping[str, Any] = field(default_factory=dict)
    """What to send on a channel when the execution is parked on it."""
    more_steps: int | None = None
    """The `max_steps` to resume with when the execution stops at a limit."""
    max_steps: int | None = None
    unordered: bool = False
    """True when children run side by side, so that two lives may have their points in different orders."""


class _Performed(NamedTuple):
    """An effect that was performed, under a name that is unique in the family of executions."""

    key: str
    effect: Effect


@dataclass(slots=True)
class _Doubts:
    """Hears of every effect in doubt, those of children included."""

    keys: list[str] = field(default_factory=list)

    def notify(self, notice: Notice) -> None:
        if notice.kind == "in_doubt":
            self.keys.append(f"{notice.execution_id}/{notice.facts['effect_id']}")


@dataclass(slots=True)
class _Death:
    """Counts the points of one life, and is the end of it at one of them."""

    at: int | None
    names: list[str] = field(default_factory=list)
    dead: bool = False

    def point(self, name: str) -> None:
        self.check()
        self.names.append(name)
        if len(self.names) - 1 == self.at:
            self.dead = True
            raise Crash(name)

    def check(self) -> None:
        """A dead process does nothing more, whatever cleaning up it would have liked to do."""
        if self.dead:
            raise Crash("dead")


class _Store:
    """A store that dies before or after a write."""

    def __init__(self, store: CheckpointStore, death: _Death) -> None:
        self._store, self._death = store, death

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in WRITES:
            self._death.check()
            return method

        async def write(*args: Any, **kwargs: Any) -> Any:
            label = f"{name} {args[0].seq}" if name == "commit" else name
            self._death.point(f"before {label}")
            result = await method(*args, **kwargs)
            self._death.point(f"after {label}")
            return result

        return write


@dataclass
class _Performer(Performer):
    """A performer that notes what it performs, and dies before or after an effect."""

    death: _Death = field(default_factory=lambda: _Death(None))
    performed: list[_Performed] = field(default_factory=list)

    async def perform(self, effect: Effect, snapshot: Identity) -> Done | Failed:
        self.death.point(f"before effect {effect.id}")
        self.performed.append(_Performed(f"{snapshot.execution_id}/{effect.id}", effect))
        event = await super().perform(effect, snapshot)
        self.death.point(f"after effect {effect.id}")
        return event


class _Runtime(Runtime):
    """A runtime of one life."""

    def live(self, death: _Death) -> _Runtime:
        self.death = death
        self.performed: list[_Performed] = []
        # The runtimes of a sweep share one process; pid 0 is nobody, so the next one may take over at once.
        self.owner = replace(self.owner, pid=0)
        return self

    def _performer(self, machine: Machine, hooks: HooksOfRun) -> Performer:
        return _Performer(
            hooks.program, hooks.get, machine.agent, self.clock, machine.tool_provider,
            death=self.death, performed=self.performed,
        )  # fmt: skip


@dataclass(slots=True)
class _Life:
    """What one life came to: an outcome, or None if it died."""

    outcome: Outcome | None
    doubted: tuple[str, ...]
    performed: list[_Performed]
    points: list[str]
    family: Mapping[str, tuple[str, Any]]
    """Status and output of every execution that is stored, once it is over."""


@dataclass(slots=True)
class Report:
    """What a sweep found. `check` raises when anything was lost, repeated or not reported."""

    points: int = 0
    """At how many points the process died."""
    in_doubt: int = 0
    """How many effects were in flight at a death, and reported."""
    performed_twice: int = 0
    """How many of those were performed again, as their policy says."""
    problems: list[str] = field(default_factory=list)

    def __add__(self, other: Report) -> Report:
        return Report(
            self.points + other.points, self.in_doubt + other.in_doubt,
            self.performed_twice + other.performed_twice, self.problems + other.problems,
        )  # fmt: skip

    def check(self) -> None:
        shown = "\n".join(self.problems[:20])
        assert not self.problems, f"{len(self.problems)} problems at {self.points} points:\n{shown}"
        assert self.points, "the sweep found no point to die at"


async def sweep(scenario: Scenario, places: Places, *, every: int = 1) -> Report:
    """Die once at every point of the scenario, or at every so many, resume, and compare."""
    whole = await _live(scenario, places(), VirtualClock(), None)
    assert whole.outcome is not None
    report = Report()
    for number, name in list(enumerate(whole.points))[::every]:
        opener, clock = places(), VirtualClock()
        first = await _live(scenario, opener, clock, number)
        if first.outcome is not None and scenario.unordered:
            continue
        if first.outcome is not None:
            report.problems.append(
                f"point {number} ({name}) was not reached: the scenario is not deterministic"
            )
            continue
        pending = await _pending(opener)
        second = await _live(scenario, opener, clock, None)
        report.points += 1
        for problem in _compare(whole, first, second, pending, report):
            report.problems.append(f"died {name}: {problem}")
    return report


async def _live(scenario: Scenario, opener: Opener, clock: VirtualClock, at: int | None) -> _Life:
    death, store = _Death(at), opener()
    doubts, family = _Doubts(), dict[str, tuple[str, Any]]()
    runtime = _Runtime(_Store(store, death), clock=clock, observers=[doubts]).live(death)
    outcome: Outcome | None = None
    try:
        async with runtime:
            outcome = await _run(scenario, runtime)
            for execution in await runtime.list():
                family[execution.execution_id] = (
                    execution.status,
                    (await runtime.inspect(execution.execution_id)).output,
                )
    except Crash:
        pass
    except BaseExceptionGroup as group:
        if group.split(Crash)[1] is not None:
            raise
    finally:
        if not isinstance(store, MemoryStore):
            await store.close()
    return _Life(outcome, tuple(doubts.keys), runtime.performed, death.names, family)


async def _run(scenario: Scenario, runtime: Runtime) -> Outcome:
    """Start, or resume what is there, and go on until nothing more is to come."""
    machine = scenario.machine(runtime.clock)
    if await runtime.opened().get(EXECUTION) is None:
        outcome = await runtime.start(
            machine, scenario.input, execution_id=EXECUTION, max_steps=scenario.max_steps
        )
    else:
        outcome = await runtime.resume(EXECUTION, machine)
    while True:
        channel = next((c for c in outcome.waiting_on if c in scenario.signals), None)
        if outcome.status == "waiting" and channel is not None:
            await runtime.signal(channel, scenario.signals[channel], signal_id=f"{EXECUTION}/{channel}")
            outcome = await runtime.resume(EXECUTION, machine)
        elif outcome.status == "limit" and scenario.more_steps is not None:
            outcome = await runtime.resume(EXECUTION, machine, max_steps=scenario.more_steps)
        else:
            return outcome


async def _pending(opener: Opener) -> frozenset[str]:
    """The effects that the store names as unanswered, of all executions."""
    async with Runtime(opener()) as runtime:
        store = runtime.opened()
        known = [execution.execution_id for execution in await runtime.list()]
        found = frozenset(
            [f"{id_}/{effect}" for id_ in known for effect in (await runtime.inspect(id_)).pending]
        )
    if not isinstance(store, MemoryStore):
        await store.close()
    return found


def _compare(
    whole: _Life, first: _Life, second: _Life, pending: frozenset[str], report: Report
) -> Sequence[str]:
    expected, got = whole.outcome, second.outcome
    assert expected is not None
    assert got is not None
    problems = [
        f"{what} is {after!r}, undisturbed {before!r}"
        for what, before, after in (
            ("status", expected.status, got.status),
            ("output", expected.output, got.output),
            ("context", expected.context, got.context),
            ("steps", expected.steps, got.steps),
            ("spent", expected.spent, got.spent),
            ("family", whole.family, second.family),
        )
        if before != after
    ]
    began = {one.key for one in first.performed}
    again = {one.key for one in second.performed}
    once = {one.key for one in whole.performed}
    if repeated := (began & again) - pending:
        problems.append(f"performed again although recorded: {sorted(repeated)}")
    if lost := once - began - again:
        problems.append(f"lost: {sorted(lost)}")
    if extra := (began | again) - once:
        problems.append(f"performed and never asked for undisturbed: {sorted(extra)}")
    if len(second.performed) != len(again):
        problems.append("performed twice within one life")
    risky = pending & {one.key for one in whole.performed if not isinstance(one.effect, SAFE)}
    # Of what is cancelled before it is performed again nobody has to ask whether it happened.
    over = {key for key in risky if second.family.get(key.partition("/")[0], ("", None))[0] == "cancelled"}
    reported = sorted({*second.doubted} - over)
    if reported != sorted(risky - over) or len(second.doubted) != len({*second.doubted}):
        problems.append(f"in doubt were {sorted(risky)}, reported were {sorted(second.doubted)}")
    report.in_doubt += len(risky)
    report.performed_twice += len(began & again)
    return problems
