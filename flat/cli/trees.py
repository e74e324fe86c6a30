"""`flat run module:charter`: a session with a tree. One message, or a conversation in the terminal.

The session is one execution. Running it again with its `--id` goes on with it, from any process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from flat.bindings import Bindings
from flat.cli.conversation import Conversation
from flat.cli.ending import UsageError, complain
from flat.cli.models import model_for
from flat.cli.outcomes import Commands
from flat.cli.project import Project
from flat.cli.running import ExecutionTaken, commands_for, drive, quiet_stdout, report
from flat.cli.show import Show
from flat.cli.stores import MEMORY, store_url
from flat.cli.text import one_line, short_id
from flat.cli.tree_show import node_name
from flat.core.failure import Failure
from flat.core.program import Program
from flat.core.snapshot import FINISHED
from flat.errors import IncompatibleSnapshot
from flat.hooks import HooksRegistry
from flat.runtime import Machine, Outcome, Runtime
from flat.runtime.loading import child_of
from flat.runtime.treeload import find_charter, machines_beside, tree_below, tree_machine
from flat.runtime.waiting import suspended_data
from flat.tree.executor import StandardExecutor, effective_config
from flat.tree.run_intake import inbox_channel
from flat.tree.run_work import content_text

INPUT = ("message", "messages", "state", "node", "until")
COMMAND_FAILED = "CommandFailed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may take."""

    max_steps: int | None = None
    max_agent_calls: int | None = None


def run_tree(
    project: Project, given: Mapping[str, Any], limits: Limits, *, show: Show, store: str | None,
    execution_id: str | None, live: bool | None, verbose: int,
) -> int:  # fmt: skip
    """Say something to a tree: what was given, or what is typed, turn by turn."""
    said = checked_input({**project.input, **given})
    with quiet_stdout(show):
        machine = load_tree(
            project.machine, until=said.pop("until", "session"), hooks=project.registry(),
            bindings=project.bindings(),
        )  # fmt: skip
    url, id_ = store_url(store), execution_id or new_id()
    commands = commands_for(id_, store, project.machine)
    talk = None
    if not (said.get("message") or said.get("messages")):
        talk = Conversation(machine, url, id_, show, said)
        if (typed := talk.next()) is not None:
            said |= typed
        elif execution_id is None:
            raise UsageError("say something to the tree: --message TEXT, or type it in a terminal")
        else:
            talk = None  # a turn that stands still is to go on
    note_script(machine, show)
    with model_for(machine, project, live, show):
        while True:
            turn = partial(say_to, machine=machine, execution_id=id_, given=said, limits=limits)
            outcome = drive(turn, machine.name, url=url, show=show, commands=commands, tree=True)
            code = report_tree(outcome, show, commands, verbose)
            if talk is None or not is_open(outcome) or not goes_on(outcome):
                break
            if url == MEMORY:
                complain("nothing is kept of the session (the store is memory:), so that it ends here")
                break
            talk.tree = outcome.context["tree"]
            if (typed := talk.next()) is None:
                break
            said = typed
    if url != MEMORY and is_open(outcome):
        complain(
            "the session is open; go on with: "
            f"flat run {project.machine} --id {one_line(id_)} -m TEXT{commands['store']}"
        )
    return code


def new_id() -> str:
    import uuid

    return str(uuid.uuid4())


def load_tree(
    path: Path, *, node: str = "", until: str = "session", hooks: HooksRegistry | None = None,
    bindings: Bindings | None = None,
) -> Machine:  # fmt: skip
    """The machine of the charter that a reference names. It may name `hooks`, and the verifiers of `bindings`."""
    if until not in ("session", "cede", "end_turn"):
        raise UsageError(f"until is session, cede or end_turn, not {until!r}")
    chosen: Any = until
    folder = path.parent.expanduser()
    charter = find_charter(path.name, folder)
    machines = machines_beside(charter, folder)
    machine = tree_machine(charter, node=node, until=chosen, machines=machines, origin=folder / path.name)
    return replace(machine, hooks=hooks or HooksRegistry(), bindings=bindings or Bindings())


def checked_input(given: Mapping[str, Any]) -> dict[str, Any]:
    """The input of a tree, from the command line."""
    unknown = sorted(given.keys() - set(INPUT))
    if unknown:
        raise UsageError(f"a tree has no input {', '.join(unknown)}; it takes {', '.join(INPUT)}")
    return dict(given)


def refuse_profile(profile: str | None) -> None:
    """Raise if a profile was asked for: a tree's models are in its code."""
    if profile is not None:
        raise UsageError(
            f"--profile {profile}: a charter has no catalogue of profiles; its executor says which model it asks"
        )


# -- turns -----------------------------------------------------------------------------------------


async def say_to(
    runtime: Runtime, machine: Machine, execution_id: str, given: Mapping[str, Any], limits: Limits
) -> Outcome:
    """One turn of a session: its first, or one more."""
    options = {} if limits.max_steps is None else {"max_steps": limits.max_steps}
    known = await runtime.opened().get(execution_id)
    if known is None:
        outcome = await runtime.start(
            machine, {**given, **options}, execution_id=execution_id, max_agent_calls=limits.max_agent_calls
        )
        return await told(runtime, outcome)
    if known.status in FINISHED:
        raise ExecutionTaken(execution_id, f"it is {known.status}, and nothing more can be said to it")
    if known.name != machine.name:
        raise ExecutionTaken(execution_id, f'it is one of "{known.name}", not of "{machine.name}"')
    said = [given["message"]] if given.get("message") else list(given.get("messages") or ())
    if said:
        payload = {"messages": said, "options": options}
        await runtime.signal(inbox_channel(execution_id), payload, to=execution_id)
    else:
        await try_again(runtime, execution_id, options)
    outcome = await runtime.resume(execution_id, machine, adopt=True, max_agent_calls=limits.max_agent_calls)
    return await told(runtime, outcome)


async def try_again(runtime: Runtime, execution_id: str, options: Mapping[str, Any] | None = None) -> None:
    """Have a turn that stands still go on, because it is asked to and not because something came."""
    snapshot = await runtime.inspect(execution_id)
    waits = (snapshot.root.local or {}).get("stage") == "wait"
    if waits and (snapshot.root.context.get("turn") or {}).get("open"):
        payload = {"messages": [], "options": dict(options or {})}
        await runtime.signal(inbox_channel(execution_id), payload, to=execution_id)


async def told(runtime: Runtime, outcome: Outcome) -> Outcome:
    """What a session came to, in the words of a run: a turn that is over is done, and one that stands still failed."""
    context = outcome.context
    if outcome.status != "waiting" or "turn" not in context:
        return outcome
    problem = context.get("problem")
    if problem is not None:
        failure = Failure(type=problem["type"], message=problem["message"], names=tuple(problem["names"]))
        return replace(outcome, status="failed", failure=failure)
    last = (context.get("steps") or [{}])[-1]
    if last.get("reason") in ("awaiting_resume", "suspend") or context["turn"].get("open"):
        inbox = inbox_channel(outcome.execution_id)
        return replace(outcome, waiting_on=tuple(c for c in outcome.waiting_on if c != inbox))
    if last.get("reason") == "command" and (result := last.get("command_result")) is not None:
        return commanded(outcome, result)
    text = await response(runtime, outcome.execution_id)
    return replace(outcome, status="done", output={"content": text, "reason": last.get("reason")})


def commanded(outcome: Outcome, result: Mapping[str, Any]) -> Outcome:
    """What a person's command came to; the model had no part in it."""
    if not result["success"]:
        failure = Failure(type=COMMAND_FAILED, message=str(result.get("error", "")))
        return replace(outcome, status="failed", failure=failure)
    return replace(outcome, status="done", output={"content": result.get("value"), "reason": "command"})


async def response(runtime: Runtime, execution_id: str) -> str:
    """The text of the last thing that the model said."""
    for row in reversed(await runtime.messages(execution_id)):
        if row.get("role") == "assistant" and not (row.get("metadata") or {}).get("toolReply"):
            return content_text(row.get("items"))
    return ""


def is_open(outcome: Outcome) -> bool:
    """Whether somebody may say more to the session of this run."""
    context = outcome.context
    return outcome.status in ("done", "failed") and "turn" in context and "closing" not in context


def goes_on(outcome: Outcome) -> bool:
    """Whether a conversation does: a command that failed has changed nothing, and says what to do."""
    failure = outcome.failure
    return outcome.status == "done" or (failure is not None and failure.type == COMMAND_FAILED)


# -- what it came to -----------------------------------------------------------------------------------


def report_tree(outcome: Outcome, show: Show, commands: Commands, verbose: int) -> int:
    """Print what a turn came to: for people its answer alone. Gives the exit code."""
    if outcome.status == "done" and is_open(outcome) and not show.bare:
        content = outcome.output["content"]
        outcome = replace(outcome, output="done" if content is None else content)
    if outcome.status == "failed" and "turn" in outcome.context:
        outcome = replace(outcome, node=_place(outcome))
    for label, reason in suspended_data(outcome.context.get("tree") or {}):
        complain(f"{one_line(label, 40)} waits: {one_line(reason)}")
    return report(outcome, show, commands, verbose)


def _place(outcome: Outcome) -> str:
    """Where a turn stands still: the node that a user talks to."""
    return node_name(outcome.context["tree"])


# -- models ----------------------------------------------------------------------------------------------


def note_script(machine: Machine, show: Show) -> None:
    """That a charter's answers are written down must always be seen."""
    if machine.tree is not None and type(machine.tree.charter.executor).__name__ == "ScriptedExecutor":
        show.note("model: scripted by the charter, not a real model")


def node_settings(machine: Machine) -> dict[str, Mapping[str, Any]]:
    """The model settings of the nodes of a tree, and of the trees that a machine of states runs, by node."""
    from flat.drivers.trees import model_settings

    found: dict[str, Mapping[str, Any]] = {}
    if machine.tree is not None:
        charter = machine.tree.charter
        executor = charter.executor
        if isinstance(executor, StandardExecutor):
            for name, node in charter.nodes.items():
                if node.machine is None:
                    config = effective_config(executor, node.executor_config)
                    wanted = {"model": config.model, "max_tokens": config.max_tokens}
                    found[name] = model_settings(executor, wanted)
    for name, ref in machine.program.machines.items():
        if "tree" in ref:
            found.update(node_settings(child_of(machine, name)))
    return found


# -- resuming ------------------------------------------------------------------------------------------------


def tree_of(project: Project, stored: Program, above: Machine | None) -> Machine:
    """The machine of a stored tree: of the charter that the project names, or of one that a machine above it runs."""
    if project.charter:
        settings = settings_of(stored)
        return load_tree(
            project.machine,
            node=settings.get("node", ""),
            until=settings.get("until", "session"),
            hooks=project.registry(),
            bindings=project.bindings(),
        )
    machine = None if above is None else tree_below(above, stored.name)
    if machine is None:
        raise IncompatibleSnapshot(
            f'{project.machine} runs no charter "{stored.name}"; name it: flat resume ID module:charter'
        )
    return machine


def settings_of(program: Program) -> Mapping[str, Any]:
    """What the stored program of a tree says of how it runs."""
    op: Any = program.nodes[program.initial].ops[0]
    fields: Mapping[str, Any] = op.fields
    return fields


def checked_digest(execution_id: str, stored: Program, machine: Machine, show: Show) -> None:
    """A charter is code, so that a session goes on with the one of now; it is said when that has changed."""
    if stored.name != machine.program.name:
        raise IncompatibleSnapshot(
            f'execution {short_id(execution_id)} is a session with charter "{stored.name}", '
            f'not with "{machine.program.name}"'
        )
    if stored.digest != machine.program.digest:
        show.note("the charter has changed since; the session goes on with it as it is now")
