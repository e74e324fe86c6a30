"""Tree machines: a charter, a tree of its nodes and their history, and how a program talks to them.

    machine = create_machine(charter, Instance(desk, {"legs": []}))
    step = await run_machine_to_completion(machine, "Plan Oslo to Turin")
    print(step.response)

A machine is one execution of a store: in memory, unless it is given a runtime. Whoever opens a machine of the same id
in another process goes on where this one stopped. `run_machine` gives the steps of one run as they are stored, and
nothing goes on before the next one is asked for.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeAlias

import anyio
from typing_extensions import TypeVar

from flat.backends.memory.store import MemoryStore
from flat.backends.protocols import Execution
from flat.core.advance import begin
from flat.core.codec import Codec
from flat.core.events import Resumed, Started
from flat.core.snapshot import FINISHED, Snapshot
from flat.drivers.draft import settle
from flat.drivers.keeper import create, take_up
from flat.errors import MachineBusy, TreeError, did_you_mean
from flat.runtime.machine import HooksOfRun
from flat.runtime.runtime import Runtime
from flat.runtime.tree_steps import MachineStep, RunOptions, Steps, Taken
from flat.runtime.treeload import tree_machine
from flat.tree.apply import check_resumable
from flat.tree.charter import Charter
from flat.tree.description import digest_of
from flat.tree.editing import edited
from flat.tree.instance import Instance, active_instance, find_instance
from flat.tree.lower import TreeBinding
from flat.tree.messages import Message, command_item, message_data, message_from_data, messages_from
from flat.tree.refs import machine_data
from flat.tree.restore import machine_from_data
from flat.tree.run_intake import inbox_channel
from flat.tree.run_work import full_data

S = TypeVar("S", default=Any)
Said: TypeAlias = "str | Message | Mapping[str, Any] | Iterable[Any] | RunOptions | None"
"""Whatever may begin a run: text, a message, the invocation of a command, a resume, several of these, or options."""
POLL_SECONDS = 0.5
log = logging.getLogger("flat.tree")


@dataclass(frozen=True, kw_only=True)
class CommandRun(Generic[S]):
    """What a command came to."""

    machine: TreeMachine[S]
    result: Mapping[str, Any]
    """`{success, value?, error?, code?}`."""
    messages: Sequence[Message] = ()
    applied: bool = True
    """False when a run is under way, which takes the command up between two of its steps."""


class TreeMachine(Generic[S]):
    """A charter and a tree, ready to run. Make it with `create_machine`."""

    def __init__(
        self,
        charter: Charter,
        instance: Instance[S] | Mapping[str, Any] | None = None,
        *,
        history: Iterable[Message | Mapping[str, Any]] = (),
        on_message_enqueue: Callable[[Message], Any] | None = None,
        runtime: Runtime | None = None,
        execution_id: str | None = None,
        machines: Mapping[str, Any] | None = None,
        max_agent_calls: int | None = None,
    ) -> None:
        if isinstance(instance, Mapping):
            config = dict(instance)
            instance = config.pop("instance", None)
            history = config.pop("history", history)
            on_message_enqueue = config.pop("on_message_enqueue", on_message_enqueue)
            if config:
                raise TreeError("bad_options", f"a machine has no {', '.join(sorted(config))}")
        if instance is not None and not isinstance(instance, Instance):
            raise TreeError(
                "bad_options", f"a machine begins with an Instance, not with a {type(instance).__name__}"
            )
        self.charter, self._machines = charter, machines
        self.execution_id = execution_id or str(uuid.uuid4())
        self.on_message_enqueue = on_message_enqueue
        self.machine = tree_machine(charter, machines=machines, max_agent_calls=max_agent_calls)
        self.binding: TreeBinding = self.machine.tree
        self.runtime = Runtime(MemoryStore()).lent() if runtime is None else runtime
        self.queue: list[Message] = []
        self.streaming: dict[str, Message] = {}
        """Answers that are on their way, as far as they came, by message id: where a run listens to them."""
        self._first = None if instance is None else self.binding.started(instance)
        self._history = [message_data(m) if isinstance(m, Message) else dict(m) for m in history]
        self._turn: Mapping[str, Any] | None = None
        self._live: tuple[Any, Instance[Any]] | None = None
        self._open: Taken | None = None
        self.snapshot: Snapshot | None = None
        """What is stored, as far as this process knows."""
        self.running = False
        self._came = anyio.Event()

    def __repr__(self) -> str:
        return f"TreeMachine({self.charter.name!r}, {self.execution_id!r})"

    # -- looking ------------------------------------------------------------------

    @property
    def tree(self) -> Mapping[str, Any]:
        """The tree as data, as this process knows it."""
        if self.snapshot is not None and "tree" in self.snapshot.root.context:
            stored: Mapping[str, Any] = self.snapshot.root.context["tree"]
            return stored
        if self._first is None:
            raise TreeError(
                "no_instance",
                f"nothing is known yet of execution {self.execution_id}; `await machine.load()`",
            )
        first: Mapping[str, Any] = self._first
        return first

    @property
    def instance(self) -> Instance[S]:
        """The tree, live."""
        tree = self.tree
        if self._live is None or self._live[0] is not tree:
            self._live = (tree, self.binding.fresh(tree))
        return self._live[1]

    @property
    def history(self) -> list[Message]:
        """All messages so far."""
        return [message_from_data(data) for data in self._log()]

    def _log(self) -> Sequence[Mapping[str, Any]]:
        return self._open.drive.performer.log if self._open is not None else self._history

    @property
    def turn(self) -> Mapping[str, Any]:
        """Where the current turn is; empty before the first."""
        if self.snapshot is None:
            return self._turn or {}
        turn: Mapping[str, Any] | None = self.snapshot.root.context.get("turn")
        return turn or {}

    @property
    def status(self) -> str:
        """`idle`, `ready` (there is something to do), `running`, `awaiting_resume` or `finished`."""
        if self.running:
            return "running"
        if self.snapshot is not None and self.snapshot.status in FINISHED:
            return "finished"
        if self.queue or self.turn.get("open"):
            return "ready"
        return "awaiting_resume" if active_instance(self.instance).suspended is not None else "idle"

    @property
    def result(self) -> Any:
        """What the root has ceded, once it has."""
        output = None if self.snapshot is None else self.snapshot.output
        return output.get("content") if isinstance(output, Mapping) else output

    async def load(self) -> TreeMachine[S]:
        """Read what is stored of the execution, if anything is that this process does not know."""
        execution = await self.runtime.opened().get(self.execution_id)
        if execution is not None and not self._knows(execution):
            with self.runtime.claimed(self.execution_id):
                self._open = None
                taken = await self.take(None)
                self._forget()
                await taken.keeper.release()
        return self

    def _knows(self, execution: Execution) -> bool:
        """Whether what is in memory is what is stored, with no machine that waits: a run looks after those anew."""
        known = self._open
        if known is None or known.drive.rest is None or known.drive.held:
            return False
        return execution.seq == known.keeper.seq

    # -- the queue ------------------------------------------------------------------

    def enqueue(self, messages: Any) -> None:
        """Put messages into the queue of the next run; one under way takes them between two steps."""
        for message in messages_from(messages):
            known = message.metadata.message_id
            place = next(
                (i for i, m in enumerate(self.queue) if known and m.metadata.message_id == known), None
            )
            if place is None:
                self.queue.append(message)
            else:
                self.queue[place] = message
            if message.role == "ephemeral":
                continue
            self.notify_queue()
            self.announce(message)

    def announce(self, message: Message) -> None:
        """Call `on_message_enqueue`."""
        if self.on_message_enqueue is not None:
            try:
                self.on_message_enqueue(message)
            except Exception:
                log.exception("on_message_enqueue raised")

    async def send(self, messages: Any, *, signal_id: str | None = None) -> None:
        """Put messages into the durable inbox: they are there for whoever runs the machine next, in any process."""
        payload = {"messages": [full_data(message) for message in messages_from(messages)]}
        await self.runtime.signal(
            inbox_channel(self.execution_id), payload, signal_id=signal_id, to=self.execution_id
        )
        self.notify_queue()

    async def wait_for_queue(self) -> None:
        """Return as soon as there is something other than ephemeral messages in the queue or the inbox."""
        while not await self._is_there():
            with anyio.move_on_after(POLL_SECONDS):
                await self._came.wait()
                self._came = anyio.Event()
                return

    async def _is_there(self) -> bool:
        if any(message.role != "ephemeral" for message in self.queue):
            return True
        store = self.runtime.opened()
        return bool(await store.signals(inbox_channel(self.execution_id), to=self.execution_id, limit=1))

    def notify_queue(self) -> None:
        """Release everybody who waits for the queue."""
        self._came.set()
        self._came = anyio.Event()

    async def flush(self) -> None:
        """Make what was put into the queue durable."""
        kept = [message for message in self.queue if message.role == "ephemeral"]
        sent = [message for message in self.queue if message.role != "ephemeral"]
        self.queue[:] = kept
        if sent:
            await self.send(sent)

    async def fork(
        self, at: str | None = None, *, edit: Mapping[str, str] | None = None, new_id: str | None = None
    ) -> TreeMachine[S]:
        """Another machine that begins where this one stood after a step, or stands now. This one stays as it is.

        `at` is the step's id; `edit` has other instructions for instances, by their ids.
        """
        place = None if at is None else f"seq:{await self._commit_of(at)}"
        changed: dict[str, Any] = {}
        if edit:
            stored = await self.runtime.inspect(self.execution_id, at=place)
            changed["tree"] = edited(self.charter, stored.root.context["tree"], edit)
        forked = await self.runtime.fork(self.execution_id, at=place, set=changed, new_id=new_id)
        return await TreeMachine[S](
            self.charter, runtime=self.runtime, execution_id=forked, machines=self._machines
        ).load()

    async def _commit_of(self, step_id: str) -> int:
        known: dict[str, int] = {}
        for seq, snapshot in await self.runtime.snapshots(self.execution_id):
            for record in snapshot.root.context.get("steps") or ():
                known.setdefault(record["id"], seq)
        if step_id not in known:
            raise TreeError("unknown_step", f'no step "{step_id}"; {did_you_mean(step_id, known)}')
        return known[step_id]

    # -- running --------------------------------------------------------------------

    def run(self, said: Said = None, options: RunOptions | None = None) -> Steps[S]:
        """Run until nobody goes on. The steps come as they are stored; what is not asked for is not done."""
        if isinstance(said, RunOptions):
            said, options = None, said
        return Steps(self, said, options or RunOptions())

    def hand_in(self, said: Any) -> None:
        """Put what begins a run into the queue."""
        if said is not None:
            self._check(messages_from(said))
            self.enqueue(said)

    def _check(self, messages: Sequence[Message]) -> None:
        """Refuse at once what the run would only report."""
        for message in messages:
            items = message.items if isinstance(message.items, list | tuple) else ()
            for item in items:
                if item.get("type") != "resume":
                    continue
                target = find_instance(self.instance, str(item["instanceId"]))
                if target is None:
                    raise TreeError(
                        "unknown_instance", f'there is no instance "{item["instanceId"]}" to resume'
                    )
                check_resumable(target)
                if target.suspended is None:
                    raise TreeError("not_suspended", f'"{target.node.label}" ({target.id}) is not suspended')
                if item["suspendId"] and item["suspendId"] != target.suspended.suspend_id:
                    raise TreeError(
                        "suspend_id_mismatch",
                        f'"{target.node.label}" waits for "{target.suspended.suspend_id}", not "{item["suspendId"]}"',
                    )

    # -- the execution -----------------------------------------------------------------

    async def take(self, options: RunOptions | None) -> Taken:
        """Own the execution: born now, or taken up where it stands. Without options it is only looked at."""
        if await self.runtime.opened().get(self.execution_id) is None:
            taken = await self._born(options or RunOptions())
        else:
            taken = await self._found(options)
        self._open = taken
        return taken

    async def let_go(self, taken: Taken, *, whole: bool) -> None:
        """Give the execution back. Unless the run came to a whole step, what is stored is read again next time."""
        self.running = False
        self.streaming.clear()
        if not whole or taken.drive.rest is None:
            self._forget()
        with anyio.CancelScope(shield=True):
            if taken.drive.performer.tree is not None:
                await taken.drive.performer.tree.close()
            await taken.keeper.release()

    def _forget(self) -> None:
        if self._open is not None:
            self._history = list(self._open.drive.performer.log)
            self._open = None

    async def _born(self, options: RunOptions) -> Taken:
        runtime, machine = self.runtime, self.machine
        queue, self.queue[:] = list(self.queue), []
        given = {
            "tree": self.tree,
            "history": self._history,
            "messages": [full_data(message) for message in queue],
            "max_steps": options.max_steps,
            "until": options.until,
            **({"turn": dict(self._turn)} if self._turn else {}),
        }
        hooks = HooksOfRun(machine)
        event = Started(settle(given), runtime.clock.now())
        limits = hooks.program.limits
        snapshot = begin(
            hooks.program,
            self.execution_id,
            event,
            max_steps=None,
            max_agent_calls=limits.max_agent_calls,
        )
        await runtime.keep_config(machine)
        keeper = await create(
            runtime.opened(), Codec(machine.bindings.types), hooks.program, snapshot, runtime.owner,
            ttl=runtime.lease_seconds,
        )  # fmt: skip
        if keeper is None:
            raise MachineBusy(self.execution_id, "another process, which began it just now")
        drive = runtime.drive_of(machine, hooks, keeper, await runtime.family(machine, snapshot))

        async def start() -> Snapshot:
            await hooks.tell_lifecycle("machine_start", snapshot)
            return await drive.start(snapshot, event)

        return Taken(keeper, drive, start, None, hooks)

    async def _found(self, options: RunOptions | None) -> Taken:
        runtime, machine, store = self.runtime, self.machine, self.runtime.opened()
        now = runtime.clock.now()
        execution = await store.get(self.execution_id)
        assert execution is not None
        known = self._open
        if known is not None and self._knows(execution):
            lease = await store.acquire(self.execution_id, runtime.owner, now=now, ttl=runtime.lease_seconds)
            keeper, drive = known.keeper, known.drive
            keeper.lease, keeper.released = lease, False
            taken = Taken(keeper, drive, drive.go_on, keeper.stored.root.context.get("steps"), known.hooks)
        else:
            machine = await runtime.machine_for(execution, machine, adopt=True)
            hooks = HooksOfRun(machine)
            codec = Codec(machine.bindings.types)
            keeper = await take_up(
                store, codec, self.execution_id, runtime.owner, now=now, ttl=runtime.lease_seconds
            )
            family = await runtime.family(machine, keeper.stored)
            drive = runtime.drive_of(machine, hooks, keeper, family)
            snapshot = keeper.stored
            if machine.program.digest != execution.program:
                await runtime.keep_config(machine)
                keeper.adopted = machine.program.digest
            go = lambda: drive.resume(snapshot, Resumed(now))  # noqa: E731
            taken = Taken(keeper, drive, go, snapshot.root.context.get("steps"), hooks)
        self.snapshot = keeper.stored
        if options is not None:
            await self._hand_in(keeper.stored, options)
        return taken

    async def _hand_in(self, stored: Snapshot, options: RunOptions) -> None:
        """Put the queue into the inbox; with nothing in it, what tells a waiting machine to go on or report."""
        if stored.status in FINISHED:
            raise TreeError(
                "finished", f"the machine is {stored.status}: its root has ceded; begin another one to go on"
            )
        queue, self.queue[:] = list(self.queue), []
        waiting = (stored.root.local or {}).get("stage") == "wait"
        if not queue and (not waiting or await self._is_there()):
            return
        payload = {
            "messages": [full_data(message) for message in queue],
            "options": {"max_steps": options.max_steps, "until": options.until},
        }
        await self.runtime.signal(inbox_channel(self.execution_id), payload, to=self.execution_id)


# -- the same as functions ------------------------------------------------------------------------


def create_machine(
    charter: Charter, instance: Instance[S] | Mapping[str, Any] | None = None, **options: Any
) -> TreeMachine[S]:
    """A machine of a charter: `create_machine(charter, instance)`, or with one mapping of options."""
    return TreeMachine(charter, instance, **options)


def run_machine(
    machine: TreeMachine[S], said: Said = None, options: RunOptions | None = None, **more: Any
) -> Steps[S]:
    """Run a machine with what is said to it, and what is queued; gives each step when it is stored."""
    return machine.run(said, RunOptions(**more) if more else options)


async def run_machine_to_completion(
    machine: TreeMachine[S], said: Said = None, options: RunOptions | None = None, **more: Any
) -> MachineStep[S]:
    """Run a machine to the end of its turn; gives the last step."""
    last: MachineStep[S] | None = None
    async for step in run_machine(machine, said, options, **more):
        last = step
    if last is None:
        raise TreeError("no_step", "the run came to no step")
    return last


def run_machine_sync(
    machine: TreeMachine[S], said: Said = None, options: RunOptions | None = None, **more: Any
) -> MachineStep[S]:
    """`run_machine_to_completion` for scripts without an event loop."""
    return anyio.run(lambda: run_machine_to_completion(machine, said, options, **more))


async def run_command(
    machine: TreeMachine[S],
    name: str,
    input: Any = None,
    *,
    instance_id: str | None = None,
    client_id: str | None = None,
) -> CommandRun[S]:
    """Run a command, with no model involved. Whatever is wrong with it is told in the result."""
    invocation = command_item(name, input, instance_id=instance_id, client_id=client_id)
    if machine.running:
        machine.enqueue(dict(invocation))
        return CommandRun(machine=machine, result={"success": True}, applied=False)
    async with machine.run(dict(invocation)) as steps:
        async for step in steps:
            if step.command_result is not None:
                return CommandRun(machine=machine, result=step.command_result, messages=step.history)
    raise TreeError("no_step", "the command was not reported")


def serialize_machine(machine: TreeMachine[Any]) -> dict[str, Any]:
    """The machine as JSON data: its tree and its history, its queue, and a turn that is open."""
    turn = {k: v for k, v in machine.turn.items() if k in ("n", "step", "open", "from", "taken", "again")}
    return machine_data(
        machine.charter,
        machine.instance,
        machine.history,
        queue=machine.queue,
        digest=digest_of(machine.charter),
        turn=turn if turn.get("open") else None,
    )


def deserialize_machine(charter: Charter, data: Mapping[str, Any], **options: Any) -> TreeMachine[Any]:
    """Undo `serialize_machine`: a new execution that begins with that tree and history."""
    stored = machine_from_data(charter, data, on_missing=options.pop("on_missing", None))
    machine: TreeMachine[Any] = TreeMachine(charter, stored.instance, history=stored.history, **options)
    machine.queue[:] = stored.queue
    machine._turn = stored.turn
    return machine


async def open_machine(
    charter: Charter, runtime: Runtime, execution_id: str, **options: Any
) -> TreeMachine[Any]:
    """The machine of a stored execution, with its tree and history read."""
    return await TreeMachine(charter, runtime=runtime, execution_id=execution_id, **options).load()
