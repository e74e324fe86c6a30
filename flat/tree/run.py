"""A tree as a program: one node, whose one op runs the tree.

Theory of operation. An execution is one tree. Its context holds the instances and the turn (`flat.tree.run_work`),
its log the messages. A visit of the node begins with what has come in, and goes through these phases:

    wait ──signal──> drain ──> begin ──> think ──> act ──> look ──> settle ──> begin …, or finish ──> wait
                       │ nobody runs                                  │ the root has ceded
                       └──────────> wait                              └──> closed

`drain` takes messages, commands and resumes; `begin` says who runs; in `think` every leaf asks its model, and in
`act` each makes its calls; `look` fetches what was sent meanwhile; `settle` writes the step. A leaf whose machine waits
is in no step until that is done (`flat.tree.run_called`). A phase gives the name of the next one, or an answer for the
engine: effects to wait for, or the end. Everything here is pure. The author's code that decides without doing (schemas,
prompts) is called in place; what may do something is an effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from flat.core.events import Done, Failed
from flat.core.hookref import HookRefs
from flat.core.op import Answer, End, View
from flat.core.ops import Finish, Hook
from flat.core.ops.branch import Arm, Branch
from flat.core.program import END, START, Limits, Node, Program
from flat.core.program_codec import with_digest
from flat.core.strategies.retry import DEFAULT_BACKOFFS
from flat.core.template import compile_value
from flat.errors import CharterError
from flat.tree.charter import Charter
from flat.tree.description import digest_of
from flat.tree.executor import StandardExecutor
from flat.tree.lower import TreeBinding
from flat.tree.run_act import act, acted, begin, look, looked, think, thought
from flat.tree.run_called import again, answered
from flat.tree.run_external import hydrate_effect, hydrated, record_effect, recorded
from flat.tree.run_intake import MAX_STEPS, command_effect, commanded, drain, entered, wait, woken
from flat.tree.run_settle import finish, settle
from flat.tree.run_work import CLOSED, KEY, NODE, Phase, Work

Until = Literal["session", "cede", "end_turn"]
UNTIL = ("session", "cede", "end_turn")
STEERED = frozenset({"tool_calls", "tool_result", "transition", "error"})
"""Points of the hooks interface that mean something inside a step. At the others a tree's hooks only watch."""
PHASES: Mapping[str, Callable[[Work], Phase | Answer]] = {
    "entered": entered,
    "drain": drain,
    "begin": begin,
    "think": think,
    "act": act,
    "look": look,
    "settle": settle,
    "finish": finish,
    "wait": wait,
    "command": lambda work: work.block(command_effect(work)),
    "record": lambda work: work.block(record_effect(work)),
    "hydrate": lambda work: work.block(hydrate_effect(work)),
}
RESUMED: Mapping[str, Callable[[Work, Done | Failed], Phase | Answer]] = {
    "wait": woken,
    "command": commanded,
    "record": recorded,
    "hydrate": hydrated,
    "think": thought,
    "act": acted,
    "look": looked,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeRun:
    """Runs a tree. It names its charter; the live one is `binding`, which no program stores."""

    charter: str
    digest: str
    node: str = ""
    """Where the root begins, when the input has no tree of its own."""
    until: Until = "session"
    """When the execution is over: when the root cedes, or already with the first turn; a session goes on after both
    a turn and a failure."""
    max_steps: int = MAX_STEPS
    """Steps of one turn, unless a run says otherwise."""
    backoffs: tuple[float, ...] = ()
    """Pauses before further attempts at a failed model call."""
    jitter: float = 0.1
    only_retryable: bool = True
    """True: try again only what is known to be worth it."""
    binding: TreeBinding | None = field(default=None, compare=False, repr=False, metadata={"stored": False})
    steered: frozenset[str] = field(default=frozenset(), compare=False, metadata={"stored": False})
    """The points at which a hook looks at what a step does."""
    key: str
    kind: str
    """These two have no default, so that they are stored and tell who looks at a stored program."""

    @property
    def bound(self) -> TreeBinding:
        if self.binding is None:
            raise CharterError(
                "no_charter", f'the tree "{self.charter}" runs only with its charter; give that'
            )
        return self.binding

    def steered_at(self, points: frozenset[str]) -> TreeRun:
        """The same with the hooks of a run."""
        return replace(self, steered=points & STEERED)

    def start(self, here: View) -> Answer:
        """Enter the node; or, after a restart, ask again for what is unanswered."""
        work = Work(self, here)
        work.beside += again(work)
        return go(work, work.local["stage"] if here.local is not None else "entered")

    def resume(self, here: View, event: Done | Failed) -> Answer:
        work = Work(self, here)
        if event.effect_id in work.called:
            return go(work, answered(work, event))
        return go(work, RESUMED[work.local["stage"]](work, event))


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeEnd:
    """The end of a tree whose root has ceded, or whose only turn is over: what it came to."""

    binding: TreeBinding | None = field(default=None, compare=False, repr=False, metadata={"stored": False})
    key: str
    kind: str

    def start(self, here: View) -> Answer:
        context = here.context
        closing, tree = context["closing"], context["tree"]
        spent = getattr(here, "spent", None)
        output = {
            "content": closing["content"],
            "reason": closing["reason"],
            "state": tree.get("state"),
            "packs": {pack_name(entry): entry.get("state") for entry in tree.get("packInstances", ())},
            "turns": context["turn"]["n"],
            "cost": getattr(spent, "cost", 0.0),
        }
        return End(output)

    def resume(self, here: View, event: Done | Failed) -> Answer:
        return self.start(here)


def pack_name(entry: Mapping[str, Any]) -> str:
    """The name of a pack in a tree as data."""
    pack = entry["pack"]
    name: str = pack.get("ref") or pack["name"]
    return name


def go(work: Work, phase: Phase | Answer) -> Answer:
    """From phase to phase, up to an answer for the engine."""
    while isinstance(phase, str):
        phase = PHASES[phase](work)
    work.tell()
    return phase


def tree_program(
    charter: Charter,
    *,
    node: str = "",
    until: Until = "session",
    max_steps: int = MAX_STEPS,
    max_agent_calls: int | None = None,
    machines: Mapping[str, Any] | None = None,
    hooks: HookRefs = (),
    lifecycle: HookRefs = (),
) -> Program:
    """The program of a charter. `machines` says what each machine is that its tools and nodes name; `hooks` serve its
    steps, `lifecycle` its beginning and end."""
    if until not in UNTIL:
        raise CharterError("bad_until", f"until is one of {', '.join(UNTIL)}, not {until!r}")
    if node:
        charter.node(node)
    binding = TreeBinding(charter)
    run = TreeRun(
        charter=charter.name,
        digest=digest_of(charter),
        node=node,
        until=until,
        max_steps=max_steps,
        **_retry(charter.executor),
        binding=binding,
        key=KEY,
        kind="tree",
    )
    ops = cast(Any, (run,))
    end = cast(Any, (TreeEnd(binding=binding, key="end", kind="tree_end"),))
    nodes = {
        NODE: Node(name=NODE, ops=ops, hooks=hooks, error_steered=False),
        CLOSED: Node(name=CLOSED, ops=end, final=True, virtual=True),
    }
    program = Program(
        name=charter.name,
        kind="tree",
        spec_version="tree/1",
        initial=NODE,
        context=compile_value({"input": "{{ input }}"}, native=True),
        nodes=nodes | _lifecycle(lifecycle),
        lifecycle=lifecycle,
        hooks=(hooks,) if hooks else (),
        limits=Limits(max_steps=None, max_agent_calls=max_agent_calls),
        machines=dict(machines or {}),
        uses_machine=False,
    )
    return with_digest(program)


def _lifecycle(hooks: HookRefs) -> dict[str, Node]:
    """The nodes in which hooks steer the beginning and the end."""
    if not hooks:
        return {}
    start = (Hook(point="machine_start", key="machine_start"), Branch(arms=(Arm(None, NODE),)))
    end = (Hook(point="machine_end", key="machine_end"), Finish())
    return {
        name: Node(name=name, ops=ops, hooks=hooks, virtual=True, error_steered=False)
        for name, ops in ((START, start), (END, end))
    }


def _retry(executor: Any) -> dict[str, Any]:
    """The policy for failed model calls."""
    if not isinstance(executor, StandardExecutor):
        return {}
    if executor.retry is None:
        return {"backoffs": DEFAULT_BACKOFFS}
    chosen = executor.retry
    backoffs = tuple(float(seconds) for seconds in chosen.get("backoffs", DEFAULT_BACKOFFS))
    return {"backoffs": backoffs, "jitter": float(chosen.get("jitter", 0.1)), "only_retryable": False}
