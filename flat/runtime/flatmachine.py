"""`FlatMachine`: a machine by its file, run with one call. The seed system's own way of putting it."""

from __future__ import annotations

import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio

from flat.agents.protocol import Agent
from flat.backends import MemoryStore
from flat.backends.protocols import CheckpointStore
from flat.errors import ExecutionBusy, ExecutionError, LimitExceeded
from flat.hooks import HooksRegistry
from flat.runtime.compat.results import get_default_result_backend
from flat.runtime.configured import MEMORY, configured_store
from flat.runtime.loading import load
from flat.runtime.runtime import Outcome, Runtime

log = logging.getLogger("flat")


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
        persistence: Any = None,
        lock: Any = None,
        invoker: Any = None,
        result_backend: Any = None,
        signal_backend: Any = None,
        trigger_backend: Any = None,
        agent_registry: Any = None,
        agent_adapters: Iterable[Any] | None = None,
        profiles_file: str | Path | None = None,
        tool_provider: Any = None,
        config_store: Any = None,
        *,
        hooks: Any = None,
        agents: Mapping[str, Agent] | None = None,
        compat: bool = False,
        **overrides: Any,
    ) -> None:
        self.execution_id: str = overrides.pop("_execution_id", None) or str(uuid.uuid4())
        self.parent_execution_id: str | None = overrides.pop("_parent_execution_id", None)
        private = {
            name: overrides.pop(name, None) for name in ("_config_dir", "_profiles_dict", "_profiles_file")
        }
        self.machine = load(
            config_file,
            config=config_dict,
            hooks=hooks_registry,
            agents=agents,
            shared_hooks=hooks,
            lifecycle_hooks=lifecycle_hooks,
            profiles_file=profiles_file or private["_profiles_file"],
            compat=compat,
            overrides=overrides,
            tool_provider=tool_provider,
            agent_registry=agent_registry,
            agent_adapters=agent_adapters,
            directory=private["_config_dir"],
            catalogue=private["_profiles_dict"],
        )
        self.machine.invoker = invoker
        for warning in self.machine.warnings:
            warnings.warn(warning, stacklevel=2)
        self.hooks_registry = self.machine.hooks
        self.compat = compat
        self.persistence = persistence if persistence is not None else self._configured_store()
        self.lock, self.invoker, self.config_store = lock, invoker, config_store
        self.result_backend = result_backend or get_default_result_backend()
        self.signal_backend, self.trigger_backend = signal_backend, trigger_backend
        self._runtime: Runtime | None = None
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

    @property
    def settings(self) -> Mapping[str, Any]:
        return self.machine.program.settings

    @property
    def initial_context(self) -> Mapping[str, Any]:
        return dict(self.machine.program.context.value)

    @property
    def agent_refs(self) -> Mapping[str, Any]:
        return self.machine.program.agents

    @property
    def machine_refs(self) -> Mapping[str, Any]:
        return self.machine.program.machines

    def _configured_store(self) -> CheckpointStore | str | None:
        """Memory unless the file says otherwise; paths are relative to the working directory."""
        persistence = self.machine.program.settings.get("persistence") or {}
        if persistence.get("enabled") is False:
            return None
        url = configured_store(self.machine.program)
        return MemoryStore() if url in (None, MEMORY) else url

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
        self.execution_id = resume_from or self.execution_id
        if self.lock is not None and not await self.lock.acquire(self.execution_id):
            raise ExecutionBusy(self.execution_id, hint="its lock is held")
        try:
            store = store_of(self.persistence)
            async with Runtime(
                store, results=self.result_backend, trigger=self.trigger_backend
            ) as self._runtime:
                return self._result(
                    await self._run(self._runtime, input, max_steps, max_agent_calls, resume_from)
                )
        finally:
            self._runtime = None
            if self.lock is not None:
                with anyio.CancelScope(shield=True):
                    await self.lock.release(self.execution_id)

    async def _run(
        self,
        runtime: Runtime,
        input: Mapping[str, Any] | None,
        max_steps: int | None,
        max_agent_calls: int | None,
        resume_from: str | None,
    ) -> Outcome:
        if self.config_store is not None:
            await self.config_store.put(self.machine.config_text().decode())
        await self._take_signals(runtime)
        limits: dict[str, Any] = {"max_steps": max_steps, "max_agent_calls": max_agent_calls}
        if resume_from is not None and runtime.kept is not None:
            if await runtime.opened().get(resume_from) is not None:
                return await runtime.resume(resume_from, self.machine, **limits)
            log.warning("no execution %s to resume: starting it", resume_from)
        return await runtime.start(self.machine, input, execution_id=self.execution_id, **limits)

    async def _take_signals(self, runtime: Runtime) -> None:
        """Signals of a backend of their own move into the store, where a commit can consume them.

        They are sent before they are taken out, under the same id: whatever happens between, none is lost or doubled.
        """
        backend, store = self.signal_backend, runtime.kept
        if backend is not None and store is not None:
            from flat.runtime.compat.signals import move_signals

            await move_signals(backend, store)

    async def cancel(self) -> None:
        """Stop the execution that runs, for good."""
        if self._runtime is not None:
            await self._runtime.cancel(self.execution_id, "cancelled")

    def execute_sync(
        self,
        input: Mapping[str, Any] | None = None,
        max_steps: int | None = None,
        max_agent_calls: int | None = None,
        handle_signals: bool = True,
    ) -> Any:
        """`execute` for code that is not async. Works where an event loop is running already, as in a notebook.

        Ctrl-C ends it with `KeyboardInterrupt` in any case, and leaves an execution that can be resumed.
        """
        del handle_signals
        return run_blocking(self.execute, input, max_steps, max_agent_calls)

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


class WaitingForSignal(Exception):
    """The seed system's own mark of a pause. Here waiting is a status: this is never raised."""

    def __init__(self, channel: str) -> None:
        self.channel = channel
        super().__init__(f"waiting for a signal on {channel}")


def store_of(persistence: Any) -> CheckpointStore | str | None:
    """The store that an argument `persistence` means: a store, its URL, or one of the seed system's backends."""
    store: CheckpointStore | str | None = getattr(persistence, "store", persistence)
    return store


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
