"""`FlatMachine`: a machine by its file, run with one call. The seed system's own way of putting it."""

from __future__ import annotations

import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anyio

from flat.agents.protocol import Agent
from flat.backends import MemoryStore
from flat.backends.protocols import CheckpointStore
from flat.errors import DefinitionError, ExecutionError, LimitExceeded
from flat.hooks import HooksRegistry
from flat.runtime.loading import load
from flat.runtime.runtime import Outcome, Runtime

log = logging.getLogger("flat")
LATER = (
    "lock",
    "invoker",
    "result_backend",
    "signal_backend",
    "trigger_backend",
    "agent_registry",
    "agent_adapters",
    "tool_provider",
    "config_store",
)


class FlatMachine:
    """One machine and one execution of it.

        machine = FlatMachine(config_file="config/machine.yml", hooks_registry=registry)
        result = await machine.execute(input={"target": "Hi!"}, max_agent_calls=20)

    Where executions are kept is the file's `persistence`, or the argument: a store, or its URL. Further keyword
    arguments replace keys of the file's `data`.
    """

    def __init__(
        self,
        config_file: str | Path | None = None,
        config_dict: Mapping[str, Any] | None = None,
        lifecycle_hooks: Any = None,
        hooks_registry: HooksRegistry | Mapping[str, Callable[..., Any]] | None = None,
        persistence: CheckpointStore | str | None = None,
        profiles_file: str | Path | None = None,
        *,
        hooks: Any = None,
        agents: Mapping[str, Agent] | None = None,
        compat: bool = False,
        **overrides: Any,
    ) -> None:
        if unavailable := [name for name in LATER if overrides.pop(name, None) is not None]:
            raise DefinitionError(f"FlatMachine({unavailable[0]}=…) is not available in this version")
        if lifecycle_hooks is not None:
            raise DefinitionError(
                "FlatMachine(lifecycle_hooks=…) is not available in this version; use hooks=…"
            )
        self.execution_id: str = overrides.pop("_execution_id", None) or str(uuid.uuid4())
        self.machine = load(
            config_file,
            config=config_dict,
            hooks=hooks_registry,
            agents=agents,
            shared_hooks=hooks,
            profiles_file=profiles_file,
            compat=compat,
            overrides=overrides,
        )
        for warning in self.machine.warnings:
            warnings.warn(warning, stacklevel=2)
        self.hooks_registry = self.machine.hooks
        self.compat = compat
        self.persistence = persistence if persistence is not None else self._configured_store()
        self._began = False
        self.total_api_calls = 0
        self.total_cost = 0.0
        self.outcome: Outcome | None = None

    @property
    def machine_name(self) -> str:
        return self.machine.name

    @property
    def spec_version(self) -> str:
        return self.machine.program.spec_version

    @property
    def states(self) -> Mapping[str, Any]:
        return self.machine.program.nodes

    def _configured_store(self) -> CheckpointStore | str | None:
        """Memory unless the file says otherwise; paths are relative to the working directory."""
        wanted = self.machine.program.settings.get("persistence") or {}
        if wanted.get("enabled") is False:
            return None
        backend = wanted.get("backend", "memory")
        if backend == "sqlite":
            return f"sqlite:///{wanted.get('db_path') or 'flatmachines.sqlite'}"
        return "file:.checkpoints" if backend == "local" else MemoryStore()

    async def execute(
        self,
        input: Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        max_agent_calls: int | None = None,
        resume_from: str | None = None,
    ) -> Any:
        """Run to the end and return the output.

        A machine that waits for a signal returns `{"_waiting": True, "_channel": channel}`. `resume_from` takes an
        execution up, or starts one under that id when there is none. Raises `ExecutionError` when the execution
        fails, `LimitExceeded` when a limit stops it. Each further call is an execution of its own.
        """
        if self._began and resume_from is None:
            self.execution_id = str(uuid.uuid4())
        self._began = True
        async with Runtime(self.persistence) as runtime:
            if resume_from is not None and self.persistence is not None:
                self.execution_id = resume_from
                if await runtime.opened().get(resume_from) is not None:
                    outcome = await runtime.resume(
                        resume_from, self.machine, max_steps=max_steps, max_agent_calls=max_agent_calls
                    )
                    return self._result(outcome)
                log.warning("no execution %s to resume: starting it", resume_from)
            outcome = await runtime.start(
                self.machine,
                input,
                execution_id=self.execution_id,
                max_steps=max_steps,
                max_agent_calls=max_agent_calls,
            )
            return self._result(outcome)

    def execute_sync(self, *args: Any, **kwargs: Any) -> Any:
        """`execute` for code that is not async. Works where an event loop is running already, as in a notebook."""
        return run_blocking(self.execute, *args, **kwargs)

    def _result(self, outcome: Outcome) -> Any:
        self.outcome = outcome
        self.total_api_calls = outcome.spent.calls
        self.total_cost = outcome.spent.cost
        outcome.raise_for_failure()
        if outcome.status == "waiting":
            return {"_waiting": True, "_channel": outcome.waiting_on[0]}
        if outcome.status == "limit" and not self.compat:
            raise LimitExceeded(
                f"{outcome.reason}; what was done is kept",
                execution_id=outcome.execution_id,
                node=outcome.node,
            )
        if outcome.status in ("cancelled", "in_doubt"):
            raise ExecutionError(
                outcome.reason or outcome.status,
                type=outcome.status,
                execution_id=outcome.execution_id,
                node=outcome.node,
            )
        return {} if outcome.output is None else outcome.output


def run_blocking(function: Any, *args: Any, **kwargs: Any) -> Any:
    """Run an async function to its end from code that is not async, whether or not a loop is running here."""

    async def call() -> Any:
        return await function(*args, **kwargs)

    if not _inside_a_loop():
        return anyio.run(call)
    result: list[Any] = []

    def thread() -> None:
        try:
            result.append((True, anyio.run(call)))
        except BaseException as error:
            result.append((False, error))

    worker = threading.Thread(target=thread, name="flat-blocking")
    worker.start()
    worker.join()
    succeeded, value = result[0]
    if not succeeded:
        raise value
    return value


def _inside_a_loop() -> bool:
    try:
        anyio.get_cancelled_exc_class()
    except Exception:  # its class depends on the version of anyio
        return False
    return True
