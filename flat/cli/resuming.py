"""`flat resume`: take an execution up, with the machine that it was started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from flat.cli.ending import TAKEN, UsageError, complain
from flat.cli.family import top_of
from flat.cli.inputs import read_json
from flat.cli.models import model_for
from flat.cli.project import Project, find_project, is_reference
from flat.cli.running import commands_for, drive, load_project, log_to_stderr, quiet_stdout, report
from flat.cli.show import Show
from flat.cli.stores import full_id, need_store, store_url
from flat.cli.text import short_id
from flat.cli.worker_machines import trusted
from flat.core.program import Program
from flat.core.snapshot import FINISHED, Snapshot
from flat.drivers.doubts import RETRY
from flat.errors import BackendError, FlatError, IncompatibleSnapshot
from flat.runtime import Machine, Outcome, Runtime, load
from flat.runtime.configured import configured_store
from flat.runtime.machine import program_of
from flat.runtime.profiles import chosen_profile
from flat.runtime.roles import configured_roles

WAITS = ("wait", "pause", "children")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What was asked for on the command line."""

    more_steps: int | None = None
    max_agent_calls: int | None = None
    retry_in_doubt: bool = False
    mark_done: str | None = None
    adopt: bool = False
    compat: bool = False
    live: bool | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """An execution as it is stored."""

    snapshot: Snapshot
    program: Program
    origin: Path | None
    """The file or folder of its machine."""
    home: Path | None
    """That of the machine which its family was started with: its own, unless it is a child."""

    @property
    def execution_id(self) -> str:
        return self.snapshot.execution_id


def resume(
    id_: str, path: Path | None, wishes: Wishes, *, show: Show, store: str | None, verbose: int
) -> int:
    """Resume an execution from where it is stored."""
    log_to_stderr(verbose)
    if wishes.retry_in_doubt and wishes.mark_done is not None:
        raise UsageError("--retry-in-doubt and --mark-done exclude each other")
    store = store or _own_store(path, wishes)
    url = store_url(store)
    need_store(url, id_)
    found = anyio.run(_find, url, id_)
    commands = commands_for(found.execution_id, store, path or found.origin)
    if found.snapshot.status in FINISHED:
        name, status = short_id(found.execution_id), found.snapshot.status
        complain(f"execution {name} is {status} already; see {commands['show']}")
        return TAKEN
    decisions, decided = _decisions(found, wishes)
    project, machine = _machine(found, path, wishes, show, commands["store"])

    async def go(runtime: Runtime) -> Outcome:
        if machine.tree is not None:
            from flat.cli.trees import told, try_again

            more = wishes.more_steps
            await try_again(runtime, found.execution_id, {} if more is None else {"max_steps": more})
            resumed = await runtime.resume(
                found.execution_id, machine, adopt=True, decisions=decisions,
                max_agent_calls=wishes.max_agent_calls,
            )  # fmt: skip
            return await told(runtime, resumed)
        steps = None if wishes.more_steps is None else found.snapshot.steps + wishes.more_steps
        return await runtime.resume(
            found.execution_id, machine, max_steps=steps, max_agent_calls=wishes.max_agent_calls,
            adopt=wishes.adopt, decisions=decisions,
        )  # fmt: skip

    surrounded = configured_roles(machine, url).around(go, found.execution_id)
    with model_for(machine, project, wishes.live, show):
        outcome = drive(
            surrounded,
            machine.name,
            url=url,
            show=show,
            commands=commands,
            decided=decided,
            tree=project.charter,
        )
    if project.charter:
        from flat.cli.trees import report_tree

        return report_tree(outcome, show, commands, verbose)
    return report(outcome, show, commands, verbose)


def _own_store(path: Path | None, wishes: Wishes) -> str | None:
    """Where the machine that is named keeps its executions, if its file says so."""
    if path is None or (project := find_project(path)).charter:
        return None
    return configured_store(load(project.machine, compat=wishes.compat).program)


async def _find(url: str, given: str) -> Found:
    async with Runtime(url) as runtime:
        execution_id = await full_id(runtime, given)
        execution = await runtime.opened().get(execution_id)
        text = None if execution is None else await runtime.opened().get_config(execution.program)
        if text is None:
            raise IncompatibleSnapshot(f'the program of execution "{execution_id}" is not in this store')
        program, origin = program_of(text)
        home, top = origin, execution if execution is None else await top_of(runtime, execution)
        if top is not None and top.execution_id != execution_id:
            above = await runtime.opened().get_config(top.program)
            home = None if above is None else program_of(above)[1]
        return Found(await runtime.inspect(execution_id), program, origin, home)


# -- which machine ---------------------------------------------------------------------------------


def _machine(
    found: Found, path: Path | None, wishes: Wishes, show: Show, where: str
) -> tuple[Project, Machine]:
    """The machine to resume with, and the project it belongs to.

    Named by the user, it is what its files say now, and refused if that is another program. Not named, it is
    the stored program; only its project file is read, and only below the working directory: a store must not
    choose which code is imported.
    """
    if found.program.kind == "tree":
        return _tree(found, path or _trusted(found, where), wishes, show)
    if path is None and wishes.adopt and found.origin is not None:
        path = _trusted(found, where)
    if path is not None:
        project = find_project(path)
        profile = chosen_profile(found.program)
        machine = load_project(project, show, compat=wishes.compat, profile=profile)
        if machine.program.digest != found.program.digest and not wishes.adopt:
            raise IncompatibleSnapshot(
                f'{project.machine} is not what execution "{found.execution_id}" was started with; '
                "leave it out to go on with the machine as it was, or go on with the new one by --adopt"
            )
        return project, machine
    home = _trusted(found, where)
    if not home.exists() and not is_reference(home):
        raise BackendError(
            f"{home}, which the execution was started from, is gone; name its machine: flat resume ID FILE"
        )
    project = find_project(home)
    # A child's program has in it what its parent handed down, so its file alone does not tell.
    if found.snapshot.parent is None and _changed(home, found.program, wishes.compat):
        show.note(
            f"{_shown(home)} has changed; going on with the machine as it was (--adopt takes the new one)"
        )
    names = project.registry(), project.bindings()
    return project, Machine(found.program, *names, origin=found.origin)


def _tree(found: Found, path: Path, wishes: Wishes, show: Show) -> tuple[Project, Machine]:
    """The charter that a session is with, as it is now: it is code, and not stored."""
    from flat.cli.trees import checked_digest, note_script, tree_of

    project = find_project(path)
    above = None if project.charter else load_project(project, show, compat=wishes.compat)
    with quiet_stdout(show):
        machine = tree_of(project, found.program, above)
    note_script(machine, show)
    checked_digest(found.execution_id, found.program, machine, show)
    return project, machine


def _trusted(found: Found, where: str) -> Path:
    """Where the execution came from, if that is below the working directory."""
    then = f"name its machine: flat resume {short_id(found.execution_id)} FILE{where}"
    if found.home is None:
        raise UsageError(f"the execution does not say which file it came from; {then}")
    origin = found.home.resolve()
    try:
        trusted((), hint="").check(origin)
    except BackendError:
        raise UsageError(
            f"the execution came from {found.home}, which is not below this folder; {then}"
        ) from None
    return origin


def _changed(origin: Path, program: Program, compat: bool) -> bool:
    try:
        now = load(origin, compat=compat, profile=chosen_profile(program)).program
        return now.digest != program.digest
    except FlatError:
        return True


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


# -- what was in doubt -------------------------------------------------------------------------------


def _decisions(found: Found, wishes: Wishes) -> tuple[Mapping[str, Any], str]:
    """What the user decided about effects in doubt, and that decision in words."""
    open_ = [e for e in found.snapshot.pending if not _is_wait(found, e)]
    if wishes.retry_in_doubt:
        return dict.fromkeys(open_, RETRY), "done again, as you decided"
    if wishes.mark_done is None:
        return {}, ""
    value = read_json(wishes.mark_done, "--mark-done")
    if len(open_) != 1:
        raise UsageError(f"--mark-done needs exactly one effect in doubt; there are {len(open_)}")
    return {open_[0]: _as_answer(found, open_[0], value)}, "taken as done, as you decided"


def _is_wait(found: Found, effect_id: str) -> bool:
    last = effect_id.rsplit(".", 1)[-1]
    if found.program.kind == "tree":
        return last.startswith(("inbox", "resume")) or "-look" in last or "-pause" in last
    return last == "pause" or _op_kind(found, effect_id) in WAITS


def _op_kind(found: Found, effect_id: str) -> str:
    """The kind of the op that asked for the effect."""
    instance_id, _, key = effect_id.split("/", 2)
    node = found.program.nodes[found.snapshot.instances[instance_id].node]
    at = node.index(key.split(".", 1)[0])
    return "hook" if at < 0 else node.ops[at].kind


def _as_answer(found: Found, effect_id: str, value: Any) -> Any:
    """The user's JSON as what the effect gave. For an action it is what it set in the context."""
    if _op_kind(found, effect_id) != "action":
        return value
    if not isinstance(value, dict):
        raise UsageError(
            "--mark-done: an action's result is a JSON object, with the context keys that it set"
        )
    context = found.snapshot.instances[effect_id.split("/", 1)[0]].context
    return {**context, **value}
