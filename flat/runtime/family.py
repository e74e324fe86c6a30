"""Children of an execution: run, launched, cancelled. Each is an execution of its own, with a derived id."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio
import orjson

from flat.backends.protocols import Birth
from flat.core.advance import begin
from flat.core.codec import Codec
from flat.core.effects import StartChild, child_channel, child_id
from flat.core.events import Done, Ended, Failed, Resumed, Started
from flat.core.failure import Failure, failure_of
from flat.core.snapshot import FINISHED, Snapshot
from flat.drivers.clock import DeadlinePassed
from flat.drivers.doubts import InDoubt
from flat.drivers.draft import settle
from flat.drivers.family import Budget, Came, Held
from flat.drivers.keeper import birth_of, create, rebuilt, take_up
from flat.drivers.local import Drive
from flat.drivers.together import UNWANTED
from flat.errors import BackendError, ExecutionBusy, ExecutionNotFound, FlatError, LimitExceeded
from flat.hooks.base import settled
from flat.runtime.loading import child_of
from flat.runtime.machine import HooksOfRun, Machine, program_of
from flat.runtime.waiting import reason_of

if TYPE_CHECKING:
    from flat.runtime.runtime import Runtime

DEFAULT_MAX_DEPTH = 10
LAUNCHES = "launches"
"""In the context of a tree: that parts of it were started as executions of their own."""
UNFINISHED = ("running", "waiting", "limit", "in_doubt")
log = logging.getLogger("flat")


@dataclass
class Family:
    """Runs the children of one execution. What a driver knows as `Children`."""

    runtime: Runtime
    machine: Machine
    budget: Budget | None = None
    max_depth: int = DEFAULT_MAX_DEPTH
    """How deep machines may start machines: what this machine says, else what the nearest above it says."""
    doubts: list[InDoubt] = field(default_factory=list)
    """What was in doubt in any execution of the family: it is told with the outcome of the one that was resumed."""
    _counts: dict[str, int] = field(default_factory=dict)
    """Calls of children that wait, as far as they are in the budget already."""
    _hooks: dict[str, HooksOfRun] = field(default_factory=dict)

    # -- awaited children -----------------------------------------------------------------

    async def run(self, effect: StartChild, parent: Snapshot) -> Came | Held:
        """Drive a child until it stops. Whatever goes wrong before it begins is the effect's failure."""
        clock = self.runtime.clock
        try:
            if effect.deadline is None:
                return await self._run(effect, parent)
            return await clock.before(effect.deadline, lambda: self._run(effect, parent))
        except DeadlinePassed:
            with anyio.CancelScope(shield=True):
                await self.end(effect, parent, "its parent's time was over")
            limit = self.machine.program.nodes[effect.node].timeout
            message = f'machine "{effect.machine}" was not done within {limit:g} s'
            return Came(event=Failed(effect.id, Failure(type="TimeoutError", message=message), clock.now()))
        except BackendError:
            raise  # the store has failed, not the child
        except Exception as error:
            return Came(event=Failed(effect.id, failure_of(error), clock.now()))

    async def _run(self, effect: StartChild, parent: Snapshot) -> Came | Held:
        machine = child_of(self.machine, effect.machine)
        self._check_depth(machine, parent)
        hooks = self._hooks_of(effect.machine, machine)
        store = self.runtime.kept
        if store is None:
            snapshot, event = self._newborn(machine, hooks, effect, parent)
            drive = self.runtime.drive_of(machine, hooks, None, self._grown(machine))
            return self._came(effect, await self._through(drive, hooks, snapshot, event), drive)
        return await self._run_stored(effect, parent, machine, hooks)

    async def _run_stored(
        self, effect: StartChild, parent: Snapshot, machine: Machine, hooks: HooksOfRun
    ) -> Came | Held:
        runtime, store = self.runtime, self.runtime.opened()
        snapshot, event = self._newborn(machine, hooks, effect, parent)
        id_ = snapshot.execution_id
        codec = Codec(machine.bindings.types)
        try:
            with runtime.claimed(id_):
                await runtime.keep_config(machine)
                keeper = await create(
                    store, codec, machine.program, snapshot, runtime.owner, ttl=runtime.lease_seconds
                )
                if keeper is not None:
                    async with runtime.driven(machine, hooks, keeper, self._grown(machine)) as drive:
                        keeper.attached = True
                        return self._came(effect, await self._through(drive, hooks, snapshot, event), drive)
                return await self._found(effect, id_, machine, hooks, codec)
        except ExecutionBusy:
            return Held(
                effect_id=effect.id,
                channel=child_channel(id_),
                deadline=effect.deadline,
                reason=f'machine "{machine.name}" is run by another process',
            )

    async def _found(
        self, effect: StartChild, id_: str, machine: Machine, hooks: HooksOfRun, codec: Codec
    ) -> Came | Held:
        """A child of this id is stored already: what came of it, or drive it on."""
        runtime, store = self.runtime, self.runtime.opened()
        read = await store.load(id_)
        if read is None:
            raise ExecutionNotFound(id_)
        execution = read.execution
        if execution.status in FINISHED:
            stored = self._counted(await rebuilt(store, codec, read))
            if machine.program.machines or machine.tree is not None:
                await self._grown(machine).take_up(stored)
                await self._beside(stored)
            return self._came(effect, stored, None, found=True)
        changed = execution.program != machine.program.digest
        if changed and machine.tree is None:
            machine = await runtime.machine_for(execution, None, False, self.machine)
            hooks = HooksOfRun(machine)
        now = runtime.clock.now()
        keeper = await take_up(
            store, codec, id_, runtime.owner, now=now, ttl=runtime.lease_seconds, read=read
        )
        async with runtime.driven(machine, hooks, keeper, self._grown(machine)) as drive:
            keeper.attached = True
            if changed and machine.tree is not None:  # a charter is code: there is only the one of now
                await runtime.keep_config(machine)
                keeper.adopted = machine.program.digest
            stored = self._counted(keeper.stored)
            if stored.status in FINISHED:
                return self._came(effect, stored, None, found=True)
            most = self._calls_left(machine)
            if drive.children is not None and (machine.program.machines or machine.tree is not None):
                await drive.children.take_up(stored)
            last = await drive.resume(
                stored, Resumed(now, max_agent_calls=None if most is None else most + stored.spent.calls)
            )
            await self._over(hooks, last)
            return self._came(effect, last, drive, found=True)

    async def _through(self, drive: Drive, hooks: HooksOfRun, snapshot: Snapshot, event: Started) -> Snapshot:
        await hooks.tell_lifecycle("machine_start", snapshot)
        start = drive.start if drive.keeper is not None else drive.start_unstored
        last = await start(snapshot, event)
        await self._over(hooks, last)
        return last

    def _counted(self, stored: Snapshot) -> Snapshot:
        """The snapshot of a child, whose calls in earlier runs have now been counted in the budget."""
        if self.budget is not None:
            self.budget.used += stored.spent.calls - self._counts.get(stored.execution_id, 0)
            self._counts[stored.execution_id] = stored.spent.calls
        return stored

    def _calls_left(self, machine: Machine) -> int | None:
        """How many more model calls a child may make: what its family has left, or its own limit if that is less."""
        own = machine.program.limits.max_agent_calls
        left = None if self.budget is None else max(0, self.budget.limit - self.budget.used)
        return own if left is None else left if own is None else min(own, left)

    async def _over(self, hooks: HooksOfRun, last: Snapshot) -> None:
        if last.status in FINISHED:
            await hooks.tell_lifecycle("machine_end", last)
            await self.runtime.tell_result(last)
        await self._beside(last)

    async def _beside(self, last: Snapshot) -> None:
        """Like any execution, a child is not over before what it has launched is."""
        try:
            await self.runtime.settled_beside(last.execution_id)
        finally:
            if last.parent is not None:
                self.runtime.hand_up(last.execution_id, last.parent)

    def _came(
        self, effect: StartChild, last: Snapshot, drive: Drive | None, *, found: bool = False
    ) -> Came | Held:
        """What a child's last snapshot is to its parent."""
        now = self.runtime.clock.now()
        failure = last.failure
        if last.status == "done":
            return Came(event=Done(effect.id, Ended(output=last.output, spent=last.spent), now), found=found)
        if last.status == "limit":
            if self.budget is not None and self.budget.used >= self.budget.limit:
                return Held(effect_id=effect.id, limited=self.budget.reason)
            failure = Failure(type="LimitExceeded", message=f'machine "{effect.machine}": {last.reason}')
        elif last.status == "cancelled":
            why = f": {last.reason}" if last.reason else ""
            failure = Failure(type="Cancelled", message=f'machine "{effect.machine}" was cancelled{why}')
        elif last.status != "failed":
            self._counts[last.execution_id] = last.spent.calls
            assert drive is not None, "what is stored as unfinished has been driven"
            return Held(
                effect_id=effect.id,
                channel=child_channel(last.execution_id),
                deadline=effect.deadline,
                waiting_on=drive.waiting_on,
                reason=reason_of(drive.program.name, last, drive.waiting_on),
            )
        assert failure is not None
        return Came(event=Failed(effect.id, failure, now, last.spent), found=found)

    # -- launched children -------------------------------------------------------------------

    async def births(self, launched: Sequence[StartChild], parent: Snapshot) -> Sequence[Birth]:
        """The first snapshots of launched executions, to be stored with their parent's.

        One that cannot begin is not born; like whatever happens to it later, that is told to the log alone.
        """
        births: list[Birth] = []
        for effect in launched if self.machine.invoker is None else ():
            try:
                machine = child_of(self.machine, effect.machine)
                self._check_depth(machine, parent)
                snapshot, _ = self._newborn(machine, self._hooks_of(effect.machine, machine), effect, parent)
                birth = birth_of(machine.program, snapshot, Codec(machine.bindings.types))
            except (FlatError, OSError) as error:
                log.error('launched machine "%s" could not begin: %s', effect.machine, error)
                continue
            await self.runtime.keep_config(machine)
            births.append(birth)
        return births

    def launch(self, launched: Sequence[StartChild], parent: Snapshot) -> None:
        for effect in launched:
            self.runtime.in_background(parent.execution_id, partial(self._launched, effect, parent))

    async def _launched(self, effect: StartChild, parent: Snapshot) -> None:
        """Drive a launched execution. Nobody waits for it, so that its end is told to the log alone."""
        id_ = child_id(parent.execution_id, effect.id)
        try:
            if self.machine.invoker is not None:
                await self._handed_over(effect, id_)
                return
            if self.runtime.kept is None:
                came = await self._run(effect, parent)
                failed = came.event if isinstance(came, Came) and isinstance(came.event, Failed) else None
                if failed is not None:
                    log.error(
                        'launched machine "%s" (%s) failed: %s', effect.machine, id_, failed.failure.message
                    )
                return
            machine = child_of(self.machine, effect.machine)
            outcome = await self.runtime.resume(id_, machine)
            if outcome.failure is not None:
                log.error(
                    'launched machine "%s" (%s) failed: %s', effect.machine, id_, outcome.failure.message
                )
        except (ExecutionBusy, ExecutionNotFound):
            return  # somebody else drives it; or it was not born, which was told then
        except FlatError as error:
            log.error('launched machine "%s" (%s) was not run: %s', effect.machine, id_, error)

    async def _handed_over(self, effect: StartChild, id_: str) -> None:
        """Leave the start to the invoker that the machine was given."""
        machine = child_of(self.machine, effect.machine)
        config = machine.origin or orjson.loads(machine.config_text())
        await settled(self.machine.invoker.launch(self.machine, config, dict(effect.input), id_))

    async def take_up(self, parent: Snapshot) -> None:
        """See to the children that an earlier run of this execution has left: go on with the launched ones, and
        end those that nobody waits for any more."""
        if not self.machine.program.machines and not parent.root.context.get(LAUNCHES):
            return  # a tree, which has started nothing
        store = self.runtime.opened()
        awaited = {child_id(parent.execution_id, e) for e in parent.pending}
        left = [
            execution.execution_id
            for status in UNFINISHED
            async for execution in store.find(parent=parent.execution_id, status=status)
            if execution.execution_id not in awaited
        ]
        for id_ in [*left, *await self._left_below(parent.execution_id)]:
            child = await self.runtime.inspect(id_)
            if not child.launched:
                await self._cancelled(id_, UNWANTED)
            elif child.status == "running":
                self.runtime.in_background(parent.execution_id, partial(self._go_on, id_))

    async def _left_below(self, execution_id: str) -> list[str]:
        """Running executions further down, all of whose parents below this one are over."""
        store = self.runtime.opened()
        found = []
        for running in [e async for e in store.find(status="running")]:
            above, over = running.parent, False
            while above is not None and above != execution_id:
                parent = await store.get(above)
                over = parent is not None and parent.status in FINISHED
                above = parent.parent if parent is not None and over else None
            if over and above is not None:
                found.append(running.execution_id)
        return found

    async def _go_on(self, execution_id: str) -> None:
        try:
            execution = await self.runtime.opened().get(execution_id)
            assert execution is not None
            machine = await self.runtime.machine_for(execution, None, False, self.machine)
            await self.runtime.resume(execution_id, machine)
        except ExecutionBusy:
            return  # somebody drives it
        except FlatError as error:
            log.error("launched execution %s was not resumed: %s", execution_id, error)

    # -- ends ------------------------------------------------------------------------------------

    async def end(self, effect: StartChild, parent: Snapshot, reason: str) -> None:
        if self.runtime.kept is not None:
            await self._cancelled(child_id(parent.execution_id, effect.id), reason)

    async def end_all(self, parent: Snapshot, reason: str) -> None:
        await cancel_children(self.runtime, parent.execution_id, reason)

    async def _cancelled(self, execution_id: str, reason: str) -> None:
        await cancel(self.runtime, execution_id, reason)

    # -- beginnings ------------------------------------------------------------------------------

    def _newborn(
        self, machine: Machine, hooks: HooksOfRun, effect: StartChild, parent: Snapshot
    ) -> tuple[Snapshot, Started]:
        event = Started(settle(effect.input), self.runtime.clock.now())
        snapshot = begin(
            hooks.program,
            child_id(parent.execution_id, effect.id),
            event,
            max_steps=hooks.program.limits.max_steps,
            max_agent_calls=self._calls_left(machine),
            parent=parent.execution_id,
            depth=parent.depth + 1,
            launched=not effect.awaited,
        )
        return snapshot, event

    def _check_depth(self, machine: Machine, parent: Snapshot) -> None:
        if parent.depth + 1 > self.max_depth:
            raise LimitExceeded(
                f'machine "{machine.name}" would be at depth {parent.depth + 1}, and max_depth is {self.max_depth}'
            )

    def _hooks_of(self, name: str, machine: Machine) -> HooksOfRun:
        """The hooks of a child: new objects for each, except where it has none at all."""
        known = self._hooks.get(name)
        if known is None or known.objects.keys() != {()}:
            known = self._hooks[name] = HooksOfRun(machine)
        return known

    def _grown(self, machine: Machine) -> Family:
        own = machine.program.limits.max_depth
        return Family(self.runtime, machine, self.budget, self.max_depth if own is None else own, self.doubts)


async def max_depth_of(runtime: Runtime, machine: Machine, parent: str | None) -> int:
    """What a machine says of the depth of its family, else what the nearest execution above says of it."""
    most = machine.program.limits.max_depth
    while most is None and parent is not None and runtime.kept is not None:
        execution = await runtime.opened().get(parent)
        text = None if execution is None else await runtime.opened().get_config(execution.program)
        most = None if text is None else program_of(text)[0].limits.max_depth
        parent = None if execution is None else execution.parent
    return DEFAULT_MAX_DEPTH if most is None else most


async def cancel_children(runtime: Runtime, execution_id: str, reason: str) -> None:
    """Cancel all that an execution has started and that is not over."""
    store = runtime.opened()
    for status in UNFINISHED:
        for child in [e.execution_id async for e in store.find(parent=execution_id, status=status)]:
            await cancel(runtime, child, reason)


async def cancel(runtime: Runtime, execution_id: str, reason: str) -> None:
    """Cancel an execution, if it has begun."""
    try:
        await runtime.cancel(execution_id, reason)
    except ExecutionNotFound:
        return
    except BackendError as error:
        log.warning("execution %s could not be cancelled: %s", execution_id, error)
