"""The working copy of one instance while an event is handled, and the interpreter of its ops.

Pure work (conditions, assignments, transitions) never makes a snapshot of its own: it is part of the one that the next
effect, or the end, calls for. So ops run one after another until one of them blocks on effects, the instance ends, or a
limit stops it; `close` makes the snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from flat.core.effects import AwaitSignal, Effect, RunHook, StartChild
from flat.core.events import Done, Failed, Spent, Steered
from flat.core.explain import explained
from flat.core.failure import Failure, error_target
from flat.core.hookref import HookRefs
from flat.core.op import UNSET, Answer, Block, End, Goto, Next, Raise, Unset
from flat.core.program import END, Node, Program
from flat.core.snapshot import Instance, Snapshot, Status
from flat.errors import FlatError

ERROR_HOOK = "error"
FUSE = 100_000
"""How many ops may run without an effect before the turn is stopped as an endless loop."""


class Advance(NamedTuple):
    """What one event led to. `path` lists the nodes that were entered and left, for observers."""

    snapshot: Snapshot
    effects: tuple[Effect, ...]
    path: tuple[tuple[str, str, int], ...]
    """`("enter" | "leave", node, step)` in order."""
    launched: tuple[StartChild, ...] = ()
    """Executions that are to be born in the commit of this snapshot."""
    said: tuple[Any, ...] = ()
    """Messages to append to the execution's log in that commit."""


class Turn:
    """The working copy of one instance while an event is handled; what an op sees as its `View`."""

    # What few turns change has its value here, and is not set for each.
    status: Status = "running"
    reason: str = ""
    failure: Failure | None = None
    effects: tuple[Effect, ...] = ()
    launched: tuple[StartChild, ...] = ()
    said: tuple[Any, ...] = ()
    own: Any = None
    """The local of the op in progress while no snapshot has it yet, so that the op may go on writing to it."""
    _scope: dict[str, Any] | None = None

    def __init__(self, program: Program, snapshot: Snapshot, instance: Instance, at: float) -> None:
        self.program = program
        self.snapshot = snapshot
        self.instance = instance
        self.at = at
        self.node = instance.node
        self.place: Node | None = program.nodes.get(instance.node)
        self._op = instance.op
        self.step = instance.step
        self.output = instance.output
        self.local = instance.local
        self.pending = instance.pending
        self.deadline = instance.deadline
        self.context = instance.context
        self.steps = snapshot.steps
        self.spent = snapshot.spent
        self.result: Any = snapshot.output
        self.path: list[tuple[str, str, int]] = []

    def again(self, event: Done | Failed) -> tuple[Effect, ...]:
        """Handle a further event with the same working copy, and give what it asks for.

        For those who need no snapshot in between: making one costs as much as the rest of a step.
        """
        self.at = event.at
        self.effects = ()
        self._scope = None
        self.path.clear()
        self.answer(event)
        return self.effects

    def go_on(self, event: Done | Failed) -> Advance:
        """Handle a further event with the working copy of the step before, which `close` has frozen."""
        self.status, self.launched, self.said, self.own = "running", (), (), None
        self.again(event)
        return self.close()

    # -- what an op may see ---------------------------------------------------

    @property
    def execution_id(self) -> str:
        return self.snapshot.execution_id

    @property
    def parent(self) -> str | None:
        return self.snapshot.parent

    @property
    def depth(self) -> int:
        return self.snapshot.depth

    @property
    def hooks(self) -> HookRefs:
        return self.place.hooks if self.place is not None else ()

    def effect_id(self, key: str, suffix: str = "") -> str:
        if suffix:
            return f"{self.instance.id}/{self.step}/{key}.{suffix}"
        return f"{self.instance.id}/{self.step}/{key}"

    def spend(self, spent: Spent) -> None:
        self.spent = self.spent.plus(spent)

    def launch(self, child: StartChild) -> None:
        self.launched += (child,)

    def say(self, *messages: Any) -> None:
        self.said += messages

    @property
    def log_length(self) -> int:
        return self.snapshot.log_length + len(self.said)

    @property
    def scope(self) -> Mapping[str, Any]:
        """Made when it is asked for, and again when something in it has changed."""
        if self._scope is None:
            seen = self.context
            if self.program.uses_machine:
                facts = machine_facts(self.program, self.snapshot, self.node, self.step, self.spent)
                seen = {**seen, "machine": facts}
            self._scope = {"context": seen, "input": seen, "output": self.output}
        return self._scope

    # -- the interpreter --------------------------------------------------------

    def take_up(self) -> None:
        """Enter the node, or start the op in progress again: it asks for what is still unanswered."""
        if not self._op:
            self.enter(self.node, self.pending)
            return
        if not has_place(self.program, self.node, self._op):
            self.fail_lost()
        elif self._op == ERROR_HOOK:
            self.apply(self.ask_error_hook(self.local))
        else:
            node = self.program.nodes[self.node]
            self.run(node, node.index(self._op))

    def answer(self, event: Done | Failed) -> None:
        """Give the event to the op that asked, and go on."""
        node = self.place
        at = -1 if node is None else node.index(self._op)
        if node is None or (at < 0 and self._op != ERROR_HOOK):
            self.fail_lost()
            return
        if len(self.pending) == 1:
            self.pending = ()
        else:
            answered = self.pending.index(event.effect_id)
            self.pending = self.pending[:answered] + self.pending[answered + 1 :]
        if type(event) is Failed and event.usage is not None:
            self.spend(event.usage)
        if at < 0:
            self.after_error_hook(event)
            return
        try:
            answer = node.ops[at].resume(self, event)
        except FlatError as error:
            answer = Raise(explained(error, self.program))
        if type(answer) is Next:
            self._scope = None
            if answer.output is not UNSET:
                self.output = answer.output
            if answer.context is not UNSET:
                self.context = answer.context
            self.local = None
            self.run(node, at + 1)
        elif type(answer) is Block and self.pending:
            if answer.context is not UNSET:
                self.context = answer.context
            self.effects = answer.effects
            self.pending += tuple(e.id for e in answer.effects)
            self.local = answer.local
        else:
            self.apply(answer)

    def run(self, node: Node, at: int) -> None:
        """Run ops from `at` on until one of them does not simply go on."""
        fuse = FUSE
        while True:
            try:
                op = node.ops[at]
            except IndexError:
                self.fail(Failure(type="Stuck", message=f'state "{self.node}" has nowhere to go'))
                return
            self._op = op.key
            try:
                answer = op.start(self)
            except FlatError as error:
                answer = Raise(explained(error, self.program))
            if type(answer) is Block:
                self.block(answer)
                return
            if type(answer) is Next:
                self.take_next(answer)
                at += 1
                continue
            if type(answer) is Goto:
                if answer.context is not UNSET:
                    self.context = answer.context
                entered = self.enter_quietly(answer.target, answer.keep)
            elif type(answer) is Raise and (target := self.caught(answer.failure)) is not None:
                self.noted(answer.failure)
                entered = self.enter_quietly(target)
            else:
                self.apply(answer)
                return
            if entered is None:
                return
            node, at = entered, 0
            fuse -= 1
            if not fuse:
                self.fail(
                    Failure(
                        type="LimitExceeded",
                        message=f"{FUSE} states were entered without an effect: an endless loop",
                    )
                )
                return

    def apply(self, answer: Answer) -> bool:
        """Do what an op answered. True: go on with the next op of the same node."""
        if isinstance(answer, Next):
            self.take_next(answer)
            self.local = None
            return True
        if isinstance(answer, Block):
            self.block(answer)
        elif isinstance(answer, Goto):
            if not isinstance(answer.context, Unset):
                self.context = answer.context
            self.enter(answer.target, answer.keep)
        elif isinstance(answer, End):
            self.end(answer.output)
        else:
            self.raise_(answer.failure)
        return False

    def take_next(self, answer: Next) -> None:
        self._scope = None
        if answer.output is not UNSET:
            self.output = answer.output
        if answer.context is not UNSET:
            self.context = answer.context

    def block(self, answer: Block) -> None:
        effects = self.effects = answer.effects
        self.local = answer.local
        if answer.context is not UNSET:
            self.context = answer.context
        first = effects[0]
        self.pending = (first.id,) if len(effects) == 1 else tuple(e.id for e in effects)
        if type(first) is AwaitSignal and first.patient and all(type(e) is AwaitSignal for e in effects):
            self.status = "waiting"

    def enter(self, target: str, keep: tuple[str, ...] = ()) -> None:
        if (node := self.enter_quietly(target, keep)) is not None:
            self.run(node, 0)

    def enter_quietly(self, target: str, keep: tuple[str, ...] = ()) -> Node | None:
        """Move the cursor to the beginning of a node. None when a limit says no."""
        left = self.place
        if self._op and left is not None and not left.virtual:
            self.path.append(("leave", self.node, self.step))
        self._op, self.local, self.pending, self.deadline = "", None, keep, None
        self.node = target
        try:
            node = self.place = self.program.nodes[target]
        except KeyError:
            self.fail(Failure(type="UnknownName", message=f'there is no state "{target}"'))
            return None
        if not node.virtual:
            self.output = None
            snapshot = self.snapshot
            if (snapshot.max_steps is not None and self.steps >= snapshot.max_steps) or (
                snapshot.max_agent_calls is not None and self.spent.calls >= snapshot.max_agent_calls
            ):
                self.reach_limit()
                return None
            self.steps += 1
            self.step = self.steps
            self.path.append(("enter", target, self.step))
        if node.timeout:
            self.deadline = self.at + node.timeout
        self._scope = None
        return node

    def reach_limit(self) -> None:
        """The next node is not entered: the execution stops before it, and can go on with more."""
        snapshot = self.snapshot
        by_steps = snapshot.max_steps is not None and self.steps >= snapshot.max_steps
        name, limit = (
            ("max_steps", snapshot.max_steps) if by_steps else ("max_agent_calls", snapshot.max_agent_calls)
        )
        self.status, self.reason = "limit", f"{name} ({limit}) reached"

    # -- ends and errors ----------------------------------------------------------

    def end(self, output: Any) -> None:
        if self.node != END and END in self.program.nodes:
            self.output = output
            self.enter(END)
            return
        if self.place is not None and not self.place.virtual:
            self.path.append(("leave", self.node, self.step))
        self.status, self.result = "done", output
        self.pending, self.local = (), None

    def caught(self, failure: Failure) -> str | None:
        """Where the node's `on_error` sends this failure."""
        return error_target(failure, self.program.nodes[self.node].on_error)

    def noted(self, failure: Failure) -> None:
        """Tell the nodes to come what failed."""
        self._scope = None
        self.context = {**self.context, "last_error": failure.message, "last_error_type": failure.type}

    def raise_(self, failure: Failure) -> None:
        """An op failed: its node's error target, else the error hook, else the execution fails."""
        node = self.program.nodes[self.node]
        self.noted(failure)
        if (target := self.caught(failure)) is not None:
            self.enter(target)
        elif node.error_steered and node.hooks:
            self._op = ERROR_HOOK
            self.apply(self.ask_error_hook(failure))
        else:
            self.fail(failure)

    def ask_error_hook(self, failure: Failure) -> Block:
        effect = RunHook(
            self.effect_id(ERROR_HOOK), self.node, "error", self.hooks, self.context, {"failure": failure}
        )
        return Block((effect,), failure)

    def after_error_hook(self, event: Done | Failed) -> None:
        failure: Failure = self.local
        if isinstance(event, Failed):
            self.fail(event.failure)
            return
        steered: Steered = event.value
        self.context = steered.context
        if steered.value:
            self.enter(str(steered.value))
        else:
            self.fail(failure)

    def fail_lost(self) -> None:
        self.fail(
            Failure(type="IncompatibleSnapshot", message=f'the program has no op "{self.node}/{self._op}"')
        )

    def fail(self, failure: Failure) -> None:
        self.status, self.failure = "failed", failure
        self.pending, self.effects = (), ()

    # -- freezing -----------------------------------------------------------------

    def close(self) -> Advance:
        """Freeze the working copy, which is that of the new snapshot from now on."""
        old, before = self.instance, self.snapshot
        instance = self.instance = Instance(
            old.id,
            self.node,
            self._op,
            self.step,
            self.context,
            self.output,
            self.local,
            self.pending,
            self.deadline,
            old.parent,
            old.children,
            old.suspended,
        )
        instances = (
            {**before.instances, old.id: instance} if len(before.instances) > 1 else {old.id: instance}
        )
        snapshot = self.snapshot = Snapshot(
            before.execution_id,
            self.status,
            self.steps,
            instances,
            self.spent,
            before.max_steps,
            before.max_agent_calls,
            before.started_at,
            self.at,
            self.result,
            self.failure,
            self.reason,
            before.parent,
            before.depth,
            before.log_length + len(self.said) if self.said else before.log_length,
            before.launched,
        )
        return Advance(snapshot, self.effects, tuple(self.path), self.launched, self.said)


def has_place(program: Program, node: str, op: str) -> bool:
    """Whether the program has what a cursor points at."""
    found = program.nodes.get(node)
    return found is not None and (op in ("", ERROR_HOOK) or found.index(op) >= 0)


class Identity(Protocol):
    """What the facts of an execution are taken from: a snapshot, or a working copy."""

    @property
    def execution_id(self) -> str: ...
    @property
    def parent(self) -> str | None: ...
    @property
    def depth(self) -> int: ...
    @property
    def spent(self) -> Spent: ...


def machine_facts(program: Program, snapshot: Identity, node: str, step: int, spent: Spent) -> dict[str, Any]:
    """The read-only facts that configuration and hooks see as `context.machine`."""
    return {
        "execution_id": snapshot.execution_id,
        "machine_name": program.name,
        "parent_execution_id": snapshot.parent,
        "spec_version": program.spec_version,
        "step": step,
        "current_state": node,
        "total_api_calls": spent.calls,
        "total_cost": spent.cost,
        "depth": snapshot.depth,
    }
