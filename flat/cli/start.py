"""`flat start`: queue a run for the workers, and give its id at once."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio

from flat.backends.triggers import TriggerBackend
from flat.cli.ending import DONE, UsageError, complain, say, say_json
from flat.cli.inputs import read_inputs
from flat.cli.project import find_project
from flat.cli.running import ExecutionTaken, load_project, log_to_stderr, quiet_stdout
from flat.cli.show import Show
from flat.cli.signals import trigger_for
from flat.cli.stores import DEFAULT, MEMORY, store_url
from flat.cli.text import short_id
from flat.core.snapshot import FINISHED
from flat.runtime import Machine, Runtime
from flat.runtime.configured import configured_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be run, and how it is to be told."""

    execution_id: str | None = None
    max_steps: int | None = None
    max_agent_calls: int | None = None
    compat: bool = False
    profile: str | None = None
    trigger: str | None = None
    trigger_path: Path | None = None


def start(
    path: Path, inputs: Sequence[str], wanted: Wanted, *, show: Show, store: str | None, verbose: int
) -> int:
    """Queue a run. On stdout is its id, and nothing else."""
    log_to_stderr(verbose)
    given = read_inputs(inputs)
    if wanted.execution_id is not None and not wanted.execution_id.strip():
        raise UsageError("--id is empty")
    project = find_project(path)
    machine: Machine
    if project.charter:
        from flat.cli.trees import checked_input, load_tree, refuse_profile  # machines of states do without

        refuse_profile(wanted.profile)
        given = checked_input({**project.input, **given})
        with quiet_stdout(show):
            machine = load_tree(
                project.machine,
                until=given.pop("until", "session"),
                hooks=project.registry(),
                bindings=project.bindings(),
            )
    else:
        machine = load_project(project, show, compat=wanted.compat, profile=wanted.profile)
        given = {**project.input, **given}
        store = store or configured_store(machine.program)
    url = store_url(store)
    if url == MEMORY:
        raise UsageError("nothing is kept in memory: for a worker to see; name a store with --store")
    steps = project.max_steps if wanted.max_steps is None else wanted.max_steps
    calls = project.max_agent_calls if wanted.max_agent_calls is None else wanted.max_agent_calls
    id_ = wanted.execution_id or str(uuid.uuid4())
    where = f" --store {store}" if store and store != DEFAULT else ""
    anyio.run(_enqueue, url, machine, given, id_, steps, calls, wanted, where)
    if show.json:
        say_json({"execution_id": id_, "machine": machine.name, "status": "ready", "store": url})
    else:
        say(id_)
        if verbose:
            complain(
                f"workers take it: flat worker{where}\nit stands at: flat runs show {short_id(id_)}{where}"
            )
    return DONE


async def _enqueue(
    url: str, machine: Machine, given: Mapping[str, Any], id_: str, steps: int | None, calls: int | None,
    wanted: Wanted, where: str,
) -> None:  # fmt: skip
    async with Runtime(url) as runtime:
        store = runtime.opened()
        if (known := await store.get(id_)) is not None:
            short = short_id(id_)
            more = "see flat runs show" if known.status in FINISHED else "go on with it: flat resume"
            raise ExecutionTaken(id_, f"it is {known.status}; {more} {short}{where}")
        asked = wanted.trigger is not None or wanted.trigger_path is not None
        if asked or not isinstance(store, TriggerBackend):
            runtime.trigger = trigger_for(wanted.trigger, wanted.trigger_path)
        await runtime.enqueue(machine, given, execution_id=id_, max_steps=steps, max_agent_calls=calls)
