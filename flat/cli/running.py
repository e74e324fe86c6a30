"""`flat run`: from a path to an exit code. What `resume` shares with it is here too."""

from __future__ import annotations

import contextlib
import logging
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import anyio

from flat.cli.ending import UsageError, complain
from flat.cli.inputs import read_inputs
from flat.cli.models import end_models, model_for
from flat.cli.outcomes import Commands, exit_code, explain, interrupted
from flat.cli.project import Project, find_project
from flat.cli.show import Show
from flat.cli.stopping import Stop
from flat.cli.stores import DEFAULT, MEMORY, resume_hint, store_url
from flat.cli.text import short_id
from flat.core.snapshot import FINISHED
from flat.errors import BackendError, BindingError, DefinitionError, ExecutionBusy, NotStorable
from flat.hooks.notices import Observer
from flat.runtime import Machine, Outcome, Runtime, load
from flat.runtime.configured import configured_store
from flat.runtime.roles import configured_roles


def run(
    path: Path, inputs: Sequence[str], *, show: Show, store: str | None, execution_id: str | None,
    max_steps: int | None, max_agent_calls: int | None, compat: bool, live: bool | None, verbose: int,
    profile: str | None = None,
) -> int:  # fmt: skip
    """Run a machine from its beginning."""
    log_to_stderr(verbose)
    given = read_inputs(inputs)
    if execution_id is not None and not execution_id.strip():
        raise UsageError("--id is empty")
    project = find_project(path)
    if project.charter:
        from flat.cli.trees import Limits, refuse_profile, run_tree

        refuse_profile(profile)

        limits = Limits(
            max_steps=project.max_steps if max_steps is None else max_steps,
            max_agent_calls=project.max_agent_calls if max_agent_calls is None else max_agent_calls,
        )
        return run_tree(
            project,
            given,
            limits,
            show=show,
            store=store,
            execution_id=execution_id,
            live=live,
            verbose=verbose,
        )
    machine = load_project(project, show, compat=compat, profile=profile)
    store = store or configured_store(machine.program)
    url, id_ = store_url(store), execution_id or str(uuid.uuid4())
    steps = project.max_steps if max_steps is None else max_steps
    calls = project.max_agent_calls if max_agent_calls is None else max_agent_calls

    async def start(runtime: Runtime) -> Outcome:
        if execution_id is not None and (known := await runtime.opened().get(id_)) is not None:
            more = known.status not in FINISHED
            hint = f"go on with it: {commands['resume']}" if more else f"see {commands['show']}"
            hint = f"it is {known.status}; {hint}"
            raise ExecutionTaken(id_, hint)
        return await runtime.start(
            machine, {**project.input, **given}, execution_id=id_, max_steps=steps, max_agent_calls=calls
        )

    commands = commands_for(id_, store, path)
    surrounded = configured_roles(machine, url).around(start, id_)
    with model_for(machine, project, live, show):
        outcome = drive(surrounded, machine.name, url=url, show=show, commands=commands)
    return report(outcome, show, commands, verbose)


class ExecutionTaken(ExecutionBusy):
    """The id that was asked for belongs to an execution already."""

    def __init__(self, execution_id: str, hint: str) -> None:
        super().__init__(execution_id, hint=hint)
        self.args = (f'there is an execution "{execution_id}" already; {hint}',)


def load_project(project: Project, show: Show, *, compat: bool, profile: str | None = None) -> Machine:
    """The machine of a project, with the hooks that its project file names."""
    if project.charter:
        from flat.cli.trees import load_tree

        with quiet_stdout(show):
            return load_tree(project.machine, hooks=project.registry(), bindings=project.bindings())
    with quiet_stdout(show):
        machine = load(
            project.machine,
            hooks=project.registry(),
            bindings=project.bindings(),
            compat=compat,
            profile=profile,
        )
    for warning in machine.warnings:
        complain(warning)
    return machine


def commands_for(execution_id: str, store: str | None, path: Path | None) -> Commands:
    """The commands that go on with an execution, as the user would type them."""
    where = f" --store {store}" if store and store != DEFAULT else ""
    return {
        "resume": resume_hint(execution_id, store, path),
        "more": resume_hint(execution_id, store, path, "--more-steps 100"),
        "show": f"flat runs show {short_id(execution_id)}{where}",
        "store": where,
        "kept": "" if store_url(store) == MEMORY else "yes",
    }


def drive(
    go: Callable[[Runtime], Awaitable[Outcome]], name: str, *, url: str, show: Show, commands: Commands,
    decided: str = "", tree: bool = False,
) -> Outcome:  # fmt: skip
    """Open the store and do the work, shown; turn Ctrl-C into words."""
    stop = Stop()

    async def work(observer: Observer | None) -> Outcome | None:
        observers: list[Observer] = [stop] if observer is None else [observer, stop]

        async def in_store() -> Outcome | Exception:
            # Errors travel as values: a task group would wrap them, and we are told by their classes.
            try:
                async with Runtime(url, observers=observers) as runtime:
                    return await go(runtime)
            except Exception as error:
                return error
            except (KeyboardInterrupt, BaseExceptionGroup, anyio.get_cancelled_exc_class()):
                raise
            except BaseException as error:  # such as an exit() in the user's code
                said = f"{type(error).__name__}: {error} came out of what was being run"
                return BackendError(stop.placed(said, commands["resume"] if url != MEMORY else None))

        outcome = await stop.guard(in_store)
        if isinstance(outcome, NotStorable):
            raise BackendError(stop.placed(str(outcome), commands["resume"] if url != MEMORY else None))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    try:
        with quiet_stdout(show), show.running(name, decided, tree=tree) as observer, stop.listening():
            outcome = anyio.run(work, observer)
    except BindingError as error:
        raise DefinitionError(f"{error}{_names_hint(error)}") from error
    finally:
        end_models()
    if outcome is None:
        raise interrupted(commands if stop.begun else None, url != MEMORY)
    return outcome


def _names_hint(error: BindingError) -> str:
    line = {
        "hooks object": f'[hooks] {error.name} = "hooks.py:Class"',
        "verifier": f'[verifiers] {error.name} = "file.py:function"',
    }.get(error.kind)
    return "" if line is None else f"\n  help: on the command line, name it in flat.toml: {line}"


def report(outcome: Outcome, show: Show, commands: Commands, verbose: int) -> int:
    """Print what the run came to; gives the exit code."""
    show.result(outcome)
    explain(outcome, commands)
    if verbose and outcome.cause is not None and outcome.status == "failed":
        import traceback

        complain("".join(traceback.format_exception(outcome.cause)).rstrip())
    return exit_code(outcome)


@contextlib.contextmanager
def quiet_stdout(show: Show) -> Iterator[None]:
    """With `--json` or `--get`, what the user's own code prints goes to stderr."""
    if not show.bare:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def log_to_stderr(verbose: int) -> None:
    """The library's log: warnings always, more with -v."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s - %(levelname)s - %(message)s"))
    logger = logging.getLogger("flat")
    logger.handlers[:] = [handler]
    logger.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
