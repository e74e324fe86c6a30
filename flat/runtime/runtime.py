"""The runtime: one store, and the executions that this process drives in it."""

from __future__ import annotations

import logging
import uuid
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import orjson
from anyio.abc import TaskGroup

from flat.backends import open_store
from flat.backends.liveness import this_process
from flat.backends.protocols import CheckpointStore, Execution, Owner, Signal
from flat.backends.triggers import TriggerBackend
from flat.core.advance import begin, has_place, stopped
from flat.core.codec import Codec
from flat.core.events import Resumed, Spent, Started
from flat.core.failure import Failure, failure_of
from flat.core.snapshot import FINISHED, Snapshot
from flat.drivers.clock import Clock, SystemClock
from flat.drivers.dispatch import Dispatcher
from flat.drivers.draft import settle
from flat.drivers.family import Budget
from flat.drivers.keeper import Keeper, collect_blobs, create, take_up
from flat.drivers.local import Drive, InDoubt
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
from flat.runtime import history
from flat.runtime.compat.results import make_uri
from flat.runtime.family import Family, cancel_children, max_depth_of
from flat.runtime.history import LOOKING, Diff, Place
from flat.runtime.loading import as_child
from flat.runtime.machine import HooksOfRun, Machine, program_of

LEASE_SECONDS = 30.0
CANCEL_SECONDS = 1.0
"""How often to look whether another process wants an execution of ours to stop."""
log = logging.getLogger("flat")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run came to."""

    execution_id: str
    status: str
    output: Any
    failure: Failure | None
    reason: str
    steps: int
    spent: Spent
    context: Mapping[str, Any]
    node: str
    waiting_on: tuple[str, ...] = ()
    in_doubt: tuple[InDoubt, ...] = ()
    """Effects that were in flight when an earlier run ended, and how they were treated."""
    cause: BaseException | None = field(default=None, compare=False, repr=False)
    """The exception behind a failure of this very run."""

    def raise_for_failure(self) -> Outcome:
        """Raise `ExecutionError` if the execution failed, else return self."""
        if self.failure is not None:
            raise ExecutionError(
                self.failure.detail or self.failure.message,
                type=self.failure.type,
                node=self.node,
                execution_id=self.execution_id,
            ) from self.cause
        return self


@dataclass
class Runtime:
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

    def __post_init__(self) -> None:
        self._owns_store = isinstance(self.store, str)
        self._store: CheckpointStore | None = None
        self.owner: Owner = this_process()
        self._driving: dict[str, Drive] = {}
        self._claims: set[str] = set()
        self._configs: set[str] = set()
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
        execution_id = execution_id or str(uuid.uuid4())
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
                    raise ExecutionBusy(
                        execution_id, hint="an execution with this id exists already; resume it"
                    )
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
        store = self.opened()
        with self.claimed(execution_id):
            execution = await store.get(execution_id)
            if execution is None:
                raise ExecutionNotFound(execution_id)
            machine = await self.machine_for(execution, machine, adopt)
            codec = Codec(machine.bindings.types)
            if execution.status in FINISHED:
                snapshot = await self.stored(execution_id, codec)
                if (family := await self.family(machine, snapshot)) is not None:
                    await family.take_up(snapshot)
                    await self.settled_beside(execution_id)
                return _outcome(snapshot)
            hooks = HooksOfRun(machine)
            now = self.clock.now()
            keeper = await take_up(store, codec, execution_id, self.owner, now=now, ttl=self.lease_seconds)
            limit = keeper.stored.max_agent_calls if max_agent_calls is None else max_agent_calls
            family = await self.family(machine, keeper.stored, limit)
            async with self.driven(machine, hooks, keeper, family) as drive:
                snapshot = keeper.stored
                if snapshot.status in FINISHED:  # by the owner before us, since we looked
                    return _outcome(snapshot)
                _refuse_lost_cursor(hooks, snapshot)
                if machine.program.digest != execution.program:
                    await self.keep_config(machine)
                    keeper.adopted = machine.program.digest
                drive.decisions = dict(decisions or {})
                if family is not None:
                    await family.take_up(snapshot)
                last = await drive.resume(snapshot, Resumed(now, max_steps, max_agent_calls))
            return await self._ended(drive, hooks, last)

    @contextmanager
    def claimed(self, execution_id: str) -> Iterator[None]:
        """Within one process the lease does not tell one driver from another: this does."""
        if execution_id in self._claims:
            raise ExecutionBusy(execution_id, "this very process")
        self._claims.add(execution_id)
        try:
            yield
        finally:
            self._claims.remove(execution_id)

    async def keep_config(self, machine: Machine) -> None:
        """Have the program of a machine in the store, once."""
        digest = machine.program.digest
        if digest not in self._configs:
            await self.opened().put_config(digest, machine.config_text())
            self._configs.add(digest)

    async def family(self, machine: Machine, snapshot: Snapshot, limit: int | None = None) -> Family | None:
        """What runs the children of an execution, if it may have any."""
        limit = snapshot.max_agent_calls if limit is None else limit
        if not machine.program.machines and (machine.tree is None or limit is None):
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
        if machine.tree is not None:
            from flat.drivers.trees import TreeCalls  # YAML machines run without it

            performer.tree = TreeCalls(machine.tree)
        return Drive(
            hooks.program,
            performer,
            self.clock,
            keeper,
            self._watched,
            machine.bindings.verifiers,
            tell_hooks=hooks.tell if hooks.watching else None,
            decode=lambda body: codec.value(orjson.loads(body), {}),
            in_doubt=[] if family is None else family.doubts,
            children=family,
            budget=None if family is None else family.budget,
        )

    @asynccontextmanager
    async def driven(
        self, machine: Machine, hooks: HooksOfRun, keeper: Keeper | None, family: Family | None
    ) -> AsyncIterator[Drive]:
        """A drive that can be found and cancelled; at the end the lease is given back."""
        drive = self.drive_of(machine, hooks, keeper, family)
        key = keeper.lease.execution_id if keeper is not None else str(id(drive))
        self._driving[key] = drive
        beside = hooks.in_background(self._heart, None if keeper is None else keeper.stored)
        try:
            yield drive
        finally:
            beside.cancel()
            del self._driving[key]
            if keeper is not None:
                with anyio.CancelScope(shield=True):
                    await keeper.release()

    @contextmanager
    def driving(self, execution_id: str, drive: Drive) -> Iterator[None]:
        """Have a drive found and cancelled by its execution's id."""
        self._driving[execution_id] = drive
        try:
            yield
        finally:
            del self._driving[execution_id]

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
        return _outcome(snapshot, drive)

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
        if registered is None and execution.parent is not None:
            above = await self.opened().get(execution.parent) if parent is None else None
            parent = parent if above is None else await self.machine_for(above, None, False)
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
        signal_id = signal_id or str(uuid.uuid4())
        body = orjson.dumps(Codec().plain(data, "data", None))
        await self.opened().send(
            Signal(signal_id=signal_id, channel=channel, body=body, created_at=self.clock.now(), to=to)
        )
        if self.trigger is not None:
            await self.trigger.notify(channel)
        return signal_id

    async def signals(self, channel: str | None = None, *, limit: int | None = None) -> Sequence[Signal]:
        """The signals that nobody has taken yet, oldest first. `signal_data` reads one."""
        return await self.opened().signals(channel, limit=limit)

    def dispatcher(self, *, concurrency: int = 16, attempts: int = 3) -> Dispatcher:
        """What resumes whoever has a signal or a due timer: `await runtime.dispatcher().dispatch_once()`."""
        return Dispatcher(self.opened(), self.resume, self.clock, concurrency, attempts)

    async def inspect(self, execution_id: str, *, at: Place | None = None) -> Snapshot:
        """The snapshot of an execution: the newest, or the one at a commit number, `"seq:N"` or `"step:N"`.

        Runs none of its code.
        """
        return await self.stored(execution_id, LOOKING, at)

    async def stored(self, execution_id: str, codec: Codec, at: Place | None = None) -> Snapshot:
        return (await history.moment(self.opened(), execution_id, at, codec)).snapshot

    async def context(self, execution_id: str, *, at: Place | None = None) -> Mapping[str, Any]:
        """The context as it was at a moment, named as for `inspect`."""
        return (await self.inspect(execution_id, at=at)).root.context

    async def diff(self, execution_id: str, a: Place, b: Place | None = None) -> Diff:
        """What is different at moment `b` (the newest one, if left out) from moment `a`."""
        store = self.opened()
        before = await history.moment(store, execution_id, a)
        return history.diff(before, await history.moment(store, execution_id, b))

    async def fork(
        self,
        execution_id: str,
        *,
        at: Place | None = None,
        set: Mapping[str, Any] | None = None,
        new_id: str | None = None,
    ) -> str:
        """Make a new execution of what another one held at a moment, and give its id. Nothing runs: resume it.

        `set` changes entries of its context. The original goes on as if nothing had happened.
        """
        store = self.opened()
        execution = await store.get(execution_id)
        text = None if execution is None else await store.get_config(execution.program)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        if text is None:
            raise IncompatibleSnapshot(f'the program of execution "{execution_id}" is not in this store')
        machine = self.machines.get(execution.name)
        codec = LOOKING if machine is None else Codec(machine.bindings.types, opaque=True)
        source = await history.moment(store, execution_id, at, codec)
        forked = await history.fork(
            store, execution, program_of(text)[0], source, new_id=new_id or str(uuid.uuid4()), set=set or {},
            codec=codec, owner=self.owner, now=self.clock.now(), ttl=self.lease_seconds,
        )  # fmt: skip
        return forked.execution_id

    async def snapshots(self, execution_id: str) -> Sequence[tuple[int, Snapshot]]:
        """Every snapshot that was stored, with its commit number, oldest first."""
        store, codec = self.opened(), LOOKING
        found: deque[tuple[int, Snapshot]] = deque()
        blobs: dict[str, bytes] = {}
        for seq, base, body in await store.bodies(execution_id):
            await collect_blobs(store, body, blobs)
            snapshot = codec.snapshot(body, blobs) if base else codec.applied(found[-1][1], body, blobs)
            found.append((seq, snapshot))
        if not found:
            raise ExecutionNotFound(execution_id)
        return tuple(found)

    async def origin(self, execution_id: str) -> Path | None:
        """Where the machine of an execution was loaded from, as far as its store knows."""
        execution = await self.opened().get(execution_id)
        if execution is None:
            raise ExecutionNotFound(execution_id)
        text = await self.opened().get_config(execution.program)
        return None if text is None else program_of(text)[1]

    async def list(
        self, *, status: str | None = None, parent: str | None = None, limit: int | None = None
    ) -> Sequence[Execution]:
        """The executions of the store, newest first; with `parent`, those that it started."""
        return [e async for e in self.opened().find(status=status, parent=parent, limit=limit)]


def signal_data(signal: Signal) -> Any:
    """What a stored signal says."""
    return LOOKING.value(orjson.loads(signal.body), {})


def result_of(snapshot: Snapshot) -> Any:
    """What an execution that is over came to, for those who asked for it by URI."""
    if snapshot.failure is not None:
        return {"_error": snapshot.failure.message, "_error_type": snapshot.failure.type}
    return snapshot.output


def _refuse_lost_cursor(hooks: HooksOfRun, snapshot: Snapshot) -> None:
    for instance in snapshot.instances.values():
        if not has_place(hooks.program, instance.node, instance.op):
            raise IncompatibleSnapshot(
                f'the program, with the hooks given now, has no "{instance.node}/{instance.op}", where execution '
                f'"{snapshot.execution_id}" stands'
            )


def _outcome(snapshot: Snapshot, drive: Drive | None = None) -> Outcome:
    root = snapshot.root
    error = drive.performer.last_error if drive else None
    return Outcome(
        execution_id=snapshot.execution_id,
        status=snapshot.status,
        output=snapshot.output,
        failure=snapshot.failure,
        reason=snapshot.reason,
        steps=snapshot.steps,
        spent=snapshot.spent,
        context=root.context,
        node=root.node,
        waiting_on=drive.waiting_on if drive else (),
        in_doubt=tuple(drive.in_doubt) if drive else (),
        cause=error if error is not None and failure_of(error) == snapshot.failure else None,
    )
