"""The runtime: one store, and the executions that this process drives in it."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import orjson
from anyio.abc import TaskGroup

from flat.backends import open_store
from flat.backends.liveness import this_process
from flat.backends.protocols import CheckpointStore, Execution, Owner, Signal
from flat.backends.triggers import TriggerBackend
from flat.core.advance import begin, stopped
from flat.core.codec import Codec
from flat.core.events import Resumed, Started
from flat.core.snapshot import FINISHED, ROOT, Snapshot
from flat.core.turn import Advance, has_place
from flat.drivers.clock import Clock, SystemClock
from flat.drivers.dispatch import Dispatcher
from flat.drivers.doubts import Doubts
from flat.drivers.draft import settle
from flat.drivers.family import Budget
from flat.drivers.keeper import Keeper, create, rebuilt, take_up
from flat.drivers.local import Drive
from flat.drivers.perform import Performer
from flat.errors import (
    BackendError,
    DefinitionError,
    ExecutionBusy,
    ExecutionError,
    ExecutionNotFound,
    IncompatibleSnapshot,
)
from flat.hooks import Observer, Observers
from flat.runtime.compat.results import make_uri
from flat.runtime.driving import Claimed, Driven, Found
from flat.runtime.family import Family, cancel_children, max_depth_of
from flat.runtime.given import check_channel, check_id, check_limits, check_machine, taken
from flat.runtime.history import LOOKING
from flat.runtime.loading import as_child
from flat.runtime.machine import HooksOfRun, Machine, program_of
from flat.runtime.outcome import Outcome, outcome_of, result_of
from flat.runtime.reading import Reader

if TYPE_CHECKING:
    from flat.drivers.pool import Worker

LEASE_SECONDS = 30.0
CANCEL_SECONDS = 1.0
"""How often to look whether another process wants an execution of ours to stop."""
KNOWN_SECONDS = 60.0
"""How long to count on a program that was stored to be there still."""
log = logging.getLogger("flat")


@dataclass
class Runtime(Reader):
    """Starts, resumes, signals, cancels and inspects executions of one store.

        async with Runtime("sqlite:///flat.db") as runtime:
            outcome = await runtime.start(flat.load("machine.yml"), {"target": "Hi!"})

    `store` is a URL or an open store; `None` keeps nothing. Use it as a context manager: it holds the process's
    claim on its executions while it is open.
    """

    store: CheckpointStore | str | None = "sqlite:///flat.db"
    observers: Sequence[Observer] = ()
    clock: Clock = field(default_factory=SystemClock)
    lease_seconds: float = LEASE_SECONDS
    machines: Mapping[str, Machine] = field(default_factory=dict)
    """Machines by name, for resuming executions without naming their files."""
    on_token: Any = None
    results: Any = None
    """Where results are written by URI as well; the store has them in any case."""
    trigger: TriggerBackend | None = None
    """Told of every signal that is sent here, so that a dispatcher in another process wakes up."""
    pausing: Callable[[], bool] | None = None
    """Asked after every step of a run whether to stop there: the execution is given back, unfinished."""

    def __post_init__(self) -> None:
        self._owns_store = isinstance(self.store, str)
        self._store: CheckpointStore | None = None
        self.owner: Owner = this_process()
        self._driving: dict[str, Drive] = {}
        self._claims: set[str] = set()
        self._configs: dict[str, float] = {}
        self._beside: dict[str, list[anyio.Event]] = {}
        self._watched = Observers(self.observers)
        self._heart: TaskGroup | None = None

    async def __aenter__(self) -> Runtime:
        self._store = open_store(self.store) if isinstance(self.store, str) else self.store
        self._heart = anyio.create_task_group()
        await self._heart.__aenter__()
        if self._store is not None:
            self._heart.start_soon(self._beat)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._heart is not None:
            heart, self._heart = self._heart, None
            heart.cancel_scope.cancel()
            # The group is told of cancellation only: any other error would come out wrapped in a group.
            told = isinstance(error, anyio.get_cancelled_exc_class())
            await heart.__aexit__(kind if told else None, error if told else None, trace if told else None)
        if self._store is not None and self._owns_store:
            with anyio.CancelScope(shield=True):
                await self._store.close()
        self._store = None

    async def _beat(self) -> None:
        """Keep the leases, and hear of requests to cancel, while the runtime is open."""
        assert self._store is not None
        pause = min(self.lease_seconds / 3, CANCEL_SECONDS)
        beaten = 0.0
        while True:
            await anyio.sleep(pause)
            if not self._driving:
                continue
            try:
                if (now := self.clock.now()) - beaten >= self.lease_seconds / 3:
                    await self._store.heartbeat(self.owner, now=now, ttl=self.lease_seconds)
                    beaten = now
                requested = await self._store.cancel_requested(self.owner.owner)
            except (BackendError, OSError) as error:
                # The next beat may succeed; if none does, the lease ends and the next commit is refused.
                log.warning("the store could not be reached to keep the leases: %s", error)
                continue
            for execution_id in requested:
                if (drive := self._driving.get(execution_id)) is not None:
                    drive.cancel("requested")

    def lent(self) -> Runtime:
        """The runtime on a store that is open already, for use without `async with`: no lease outlives its time then,
        and nothing can be launched."""
        if isinstance(self.store, str):
            raise DefinitionError("a store given by its URL is opened with `async with`")
        self._store = self.store
        return self

    @property
    def kept(self) -> CheckpointStore | None:
        """The store, or None when nothing is kept."""
        return self._store

    def opened(self) -> CheckpointStore:
        """The store. Raises when the runtime keeps nothing, or is not open."""
        if self._store is None:
            raise ExecutionError(
                "this runtime is not open, or keeps nothing: use `async with Runtime(store)`"
            )
        return self._store

    # -- running ----------------------------------------------------------------------

    async def start(
        self,
        machine: Machine,
        input: Mapping[str, Any] | None = None,
        *,
        execution_id: str | None = None,
        max_steps: int | None = None,
        max_agent_calls: int | None = None,
    ) -> Outcome:
        """Run a machine until it stops or parks. Raises `ExecutionBusy` if the id is taken."""
        check_machine(machine)
        check_limits(max_steps, max_agent_calls)
        if self.store is not None:
            self.opened()  # what is not open would keep nothing, without a word
        execution_id = str(uuid.uuid4()) if execution_id is None else execution_id
        check_id(execution_id)
        hooks = HooksOfRun(machine)
        limits = hooks.program.limits
        if input is not None and not isinstance(input, Mapping):
            raise DefinitionError(f"the input of a machine is a mapping, not {type(input).__name__}")
        event = Started(settle(input or {}), self.clock.now())
        snapshot = begin(
            hooks.program,
            execution_id,
            event,
            max_steps=limits.max_steps if max_steps is None else max_steps,
            max_agent_calls=limits.max_agent_calls if max_agent_calls is None else max_agent_calls,
        )
        codec = Codec(machine.bindings.types)
        with self.claimed(execution_id):
            keeper: Keeper | None = None
            if self._store is not None:
                await self.keep_config(machine)
                keeper = await create(
                    self._store, codec, hooks.program, snapshot, self.owner, ttl=self.lease_seconds
                )
                if keeper is None:
                    raise taken(execution_id, "resume it, or choose another id")
            family = await self.family(machine, snapshot)
            async with self.driven(machine, hooks, keeper, family) as drive:
                await hooks.tell_lifecycle("machine_start", snapshot)
                last = await drive.start(snapshot, event)
            return await self._ended(drive, hooks, last)

    async def resume(
        self,
        execution_id: str,
        machine: Machine | None = None,
        *,
        max_steps: int | None = None,
        max_agent_calls: int | None = None,
        adopt: bool = False,
        decisions: Mapping[str, Any] | None = None,
    ) -> Outcome:
        """Take an execution up where it is stored.

        A finished one is returned as it is. `machine` defaults to the program stored with the execution, with
        the hooks of the machine registered under its name. A machine whose program has changed is refused,
        unless `adopt` is set and it still has the place where the execution stands.
        """
        if machine is not None:
            check_machine(machine)
        check_limits(max_steps, max_agent_calls)
        check_id(execution_id)
        store = self.opened()
        with self.claimed(execution_id):
            read = await store.load(execution_id)
            if read is None:
                raise ExecutionNotFound(execution_id)
            execution = read.execution
            machine = await self.machine_for(execution, machine, adopt)
            codec = Codec(machine.bindings.types)
            if execution.status in FINISHED:
                snapshot = await rebuilt(store, codec, read)
                if (family := await self.family(machine, snapshot)) is not None:
                    await family.take_up(snapshot)
                    await self.settled_beside(execution_id)
                return outcome_of(snapshot)
            hooks = HooksOfRun(machine)
            now = self.clock.now()
            keeper = await take_up(
                store, codec, execution_id, self.owner, now=now, ttl=self.lease_seconds, read=read
            )
            limit = keeper.stored.max_agent_calls if max_agent_calls is None else max_agent_calls
            family = await self.family(machine, keeper.stored, limit)
            async with self.driven(machine, hooks, keeper, family) as drive:
                if keeper.stored.status in FINISHED:  # by the owner before us, since we looked
                    return outcome_of(keeper.stored)
                snapshot = _at_entry(hooks, keeper.stored)
                _refuse_lost_cursor(hooks, snapshot)
                if machine.program.digest != execution.program:
                    await self.keep_config(machine)
                    keeper.adopted = machine.program.digest
                drive.doubts.decisions = dict(decisions or {})
                if family is not None:
                    await family.take_up(snapshot)
                if keeper.seq == 0:
                    await hooks.tell_lifecycle("machine_start", snapshot)
                last = await drive.resume(snapshot, Resumed(now, max_steps, max_agent_calls))
            return await self._ended(drive, hooks, last)

    def claimed(self, execution_id: str) -> Claimed:
        """Keep everybody else in this process from driving an execution. Raises `ExecutionBusy` on entry."""
        return Claimed(self._claims, execution_id)

    async def keep_config(self, machine: Machine) -> None:
        """Have the program of a machine in the store, once."""
        digest, now = machine.program.digest, self.clock.now()
        if now < self._configs.get(digest, now):
            return
        if digest in self._configs:
            # Another process may have pruned it meanwhile; a store that looks knows that again.
            await self.opened().get_config(digest)
        await self.opened().put_config(digest, machine.config_text())
        self._configs[digest] = now + KNOWN_SECONDS

    async def family(self, machine: Machine, snapshot: Snapshot, limit: int | None = None) -> Family | None:
        """What runs the children of an execution, if it may have any."""
        limit = snapshot.max_agent_calls if limit is None else limit
        if not machine.program.machines and machine.tree is None:
            return None
        budget = None if limit is None else Budget(limit, snapshot.spent.calls)
        return Family(self, machine, budget, await max_depth_of(self, machine, snapshot.parent))

    def drive_of(
        self, machine: Machine, hooks: HooksOfRun, keeper: Keeper | None, family: Family | None
    ) -> Drive:
        """A drive for one execution of a machine."""
        codec = Codec(machine.bindings.types)
        performer = self._performer(machine, hooks)
        if keeper is not None:
            performer.log = list(keeper.log)
        tell: Callable[[Advance], Awaitable[None]] | None = hooks.tell if hooks.watching else None
        if machine.tree is not None:
            from flat.drivers.trees import TreeCalls  # YAML machines run without it

            performer.tree = calls = TreeCalls(machine.tree, model=machine.model)
            tell = calls.telling(tell, None if keeper is None else keeper.stored)
        return Drive(
            hooks.program,
            performer,
            self.clock,
            keeper,
            self._watched,
            Doubts(machine.bindings.verifiers, found=[] if family is None else family.doubts),
            tell_hooks=tell,
            decode=lambda body: codec.value(orjson.loads(body), {}),
            children=family,
            budget=None if family is None else family.budget,
            pause=self.pausing,
        )

    def driven(
        self, machine: Machine, hooks: HooksOfRun, keeper: Keeper | None, family: Family | None
    ) -> Driven:
        """A drive that can be found and cancelled; at the end the lease is given back."""
        drive = self.drive_of(machine, hooks, keeper, family)
        beside = hooks.in_background(self._heart, None if keeper is None else keeper.stored)
        return Driven(self._driving, drive, keeper, beside)

    def driving(self, execution_id: str, drive: Drive) -> Found:
        """Have a drive found and cancelled by its execution's id."""
        return Found(self._driving, execution_id, drive)

    def _performer(self, machine: Machine, hooks: HooksOfRun) -> Performer:
        provider = machine.tool_provider
        return Performer(hooks.program, hooks.get, machine.agent, self.clock, provider, self.on_token)

    # -- in the background -----------------------------------------------------------------

    def in_background(self, parent: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do something beside an execution, which is not over before that is done."""
        done = anyio.Event()
        self._beside.setdefault(parent, []).append(done)

        async def run() -> None:
            try:
                await work()
            finally:
                done.set()

        if self._heart is None:
            raise ExecutionError(
                "a machine that launches others needs an open runtime: use `async with Runtime(…)`"
            )
        self._heart.start_soon(run)

    async def settled_beside(self, execution_id: str) -> None:
        """Wait for what was begun beside an execution."""
        while begun := self._beside.get(execution_id):
            await begun[0].wait()
            begun.pop(0)
        self._beside.pop(execution_id, None)

    def hand_up(self, child: str, parent: str) -> None:
        """What a child has left in the background is its parent's from now on."""
        if begun := self._beside.pop(child, None):
            self._beside.setdefault(parent, []).extend(begun)

    async def _ended(self, drive: Drive, hooks: HooksOfRun, snapshot: Snapshot) -> Outcome:
        if snapshot.status in FINISHED:
            await hooks.tell_lifecycle("machine_end", snapshot)
            await self.tell_result(snapshot)
        await self.settled_beside(snapshot.execution_id)
        return outcome_of(snapshot, drive)

    async def tell_result(self, snapshot: Snapshot) -> None:
        """Write what an execution came to, if somebody wants it by URI."""
        if self.results is not None:
            await self.results.write(make_uri(snapshot.execution_id), result_of(snapshot))

    async def machine_for(
        self, execution: Execution, machine: Machine | None, adopt: bool, parent: Machine | None = None
    ) -> Machine:
        """The machine to resume with: the given one if its program is the stored one, else the stored program.

        The stored program of a child answers names as its parent does.
        """
        registered = self.machines.get(execution.name)
        fits = registered is not None and (adopt or registered.program.digest == execution.program)
        if machine is None and registered is not None and fits:
            return registered
        if machine is not None and (adopt or machine.program.digest == execution.program):
            return machine
        if machine is not None:
            raise IncompatibleSnapshot(
                f'execution "{execution.execution_id}" was started with another version of machine "{execution.name}"; '
                "resume it with the files as they were, or adopt the new ones if they still fit"
            )
        text = await self.opened().get_config(execution.program)
        if text is None:
            raise IncompatibleSnapshot(
                f'the program of execution "{execution.execution_id}" is not in this store'
            )
        program, origin = program_of(text)
        if execution.parent is not None and (registered is None or program.kind == "tree"):
            above = await self.opened().get(execution.parent) if parent is None else None
            parent = parent if above is None else await self.machine_for(above, None, False)
        if program.kind == "tree":
            from flat.runtime.treeload import tree_below  # machines of states run without it

            found = None if parent is None else tree_below(parent, execution.name)
            if found is None:
                raise IncompatibleSnapshot(
                    f'execution "{execution.execution_id}" is a tree of charter "{execution.name}", which is code and '
                    "not stored: resume it with the machine of its charter"
                )
            return found
        if registered is None and parent is not None:
            return as_child(parent, program, origin or parent.origin)
        if registered is None:
            return Machine(program, origin=origin)
        return replace(
            registered, program=program, origin=origin or registered.origin, children={}, _config_text=None
        )

    # -- from outside --------------------------------------------------------------------

    async def cancel(self, execution_id: str, reason: str = "") -> bool:
        """Stop an execution for good, wherever it runs. False if it was finished already."""
        if (drive := self._driving.get(execution_id)) is not None:
            drive.cancel(reason)
            return True
        store = self.opened()
        execution = await store.get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        if execution.status in FINISHED:
            return False
        now = self.clock.now()
        try:
            with self.claimed(execution_id):
                keeper = await take_up(
                    store, LOOKING, execution_id, self.owner, now=now, ttl=self.lease_seconds
                )
                try:
                    if keeper.stored.status in FINISHED:
                        return False
                    await keeper.keep(stopped(keeper.stored, "cancelled", reason, now))
                finally:
                    with anyio.CancelScope(shield=True):
                        await keeper.release()
        except ExecutionBusy:
            return await store.request_cancel(execution_id)
        await cancel_children(self, execution_id, reason)
        return True

    async def signal(
        self, channel: str, data: Any = None, *, signal_id: str | None = None, to: str | None = None
    ) -> str:
        """Put a signal on a channel, durably, and wake whoever listens. The same `signal_id` is delivered once.

        `to` is the id of the one execution that may take it; else it is for anybody who waits on the channel.
        """
        check_channel(channel)
        signal_id = signal_id or str(uuid.uuid4())
        body = orjson.dumps(Codec().plain(data, "data", None))
        await self.opened().send(
            Signal(signal_id=signal_id, channel=channel, body=body, created_at=self.clock.now(), to=to)
        )
        if self.trigger is not None:
            await self.trigger.notify(channel)
        return signal_id

    async def enqueue(
        self,
        machine: Machine,
        input: Mapping[str, Any] | None = None,
        *,
        execution_id: str | None = None,
        max_steps: int | None = None,
        max_agent_calls: int | None = None,
    ) -> str:
        """Store an execution for a worker to run, and give its id at once. Raises `ExecutionBusy` if it is taken."""
        from flat.runtime import queue  # whoever only runs needs none

        return await queue.enqueue(
            self, machine, input, execution_id=execution_id, max_steps=max_steps, max_agent_calls=max_agent_calls
        )  # fmt: skip

    def worker(
        self, *, concurrency: int = 16, attempts: int = 3, poll: float = 5.0, grace: float | None = None,
        name: str = "",
    ) -> Worker:  # fmt: skip
        """What runs whoever is queued, woken or stranded: `await runtime.worker().run()`. One for each runtime."""
        from flat.runtime import queue

        return queue.worker(
            self, concurrency=concurrency, attempts=attempts, poll=poll, grace=grace, name=name
        )

    async def revive(self, execution_id: str) -> bool:
        """Queue an execution that is buried, or that nobody drives. False if it is over."""
        from flat.runtime import queue

        return await queue.revive(self, execution_id)

    def dispatcher(self, *, concurrency: int = 16, attempts: int = 3) -> Dispatcher:
        """What resumes whoever has a signal or a due timer: `await runtime.dispatcher().dispatch_once()`."""
        return Dispatcher(self.opened(), self.resume, self.clock, concurrency, attempts)


def _at_entry(hooks: HooksOfRun, snapshot: Snapshot) -> Snapshot:
    """What has not begun begins where the program does with the hooks given now; whoever queued it had none."""
    root = snapshot.root
    if snapshot.steps or root.pending or root.node != hooks.machine.program.entry:
        return snapshot
    return replace(snapshot, instances={**snapshot.instances, ROOT: replace(root, node=hooks.program.entry)})


def _refuse_lost_cursor(hooks: HooksOfRun, snapshot: Snapshot) -> None:
    for instance in snapshot.instances.values():
        if not has_place(hooks.program, instance.node, instance.op):
            known = instance.node in hooks.program.nodes
            missing = f'no "{instance.node}/{instance.op}"' if known else f'no state "{instance.node}"'
            raise IncompatibleSnapshot(
                f"the program, with the hooks given now, has {missing}, where execution "
                f'"{snapshot.execution_id}" stands'
            )
