"""`FlatMachine`: a machine by its file, run with one call. The seed system's own way of putting it."""

from __future__ import annotations

import logging
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from flat.agents.protocol import Agent
from flat.backends import MemoryStore
from flat.backends.protocols import CheckpointStore
from flat.core.events import Spent
from flat.errors import DefinitionError, ExecutionError, LimitExceeded
from flat.hooks import HooksRegistry
from flat.runtime.compat.results import get_default_result_backend
from flat.runtime.configured import MEMORY, configured_store
from flat.runtime.loading import load
from flat.runtime.machine import litellm_agent
from flat.runtime.outcome import Outcome
from flat.runtime.roles import configured_roles, locked, take_signals
from flat.runtime.runtime import Runtime

if TYPE_CHECKING:
    from flat.agents.adapters import AgentAdapterRegistry

log = logging.getLogger("flat")
CHECKPOINT_EVENTS = (
    *("machine_start", "state_enter", "execute", "tool_call", "waiting", "state_exit", "machine_end"),
)
"""The moments at which the seed system stores a checkpoint."""


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
        self._config_file, self._config_dict, self._overrides = config_file, config_dict, overrides
        self._agent_registry, self._agent_adapters = agent_registry, tuple(agent_adapters or ())
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
            agent_adapters=None if agent_adapters is None else self._agent_adapters,
            directory=private["_config_dir"],
            catalogue=private["_profiles_dict"],
        )
        self.machine.invoker = invoker
        for warning in self.machine.warnings:
            warnings.warn(warning, stacklevel=2)
        self.hooks_registry = self.machine.hooks
        self.compat = compat
        store_of(persistence)  # refused here, not when it is first used
        self.persistence = persistence if persistence is not None else self._configured_store()
        self._take_roles(locking=lock, results=result_backend, signal=signal_backend, trigger=trigger_backend)
        self.invoker, self.config_store = invoker, config_store
        self._runtime: Runtime | None = None
        self._began = False
        self._spent: dict[str, Spent] = {}
        self.total_api_calls = 0
        """Of all executions of this object."""
        self.total_cost = 0.0
        self.outcome: Outcome | None = None

    def _take_roles(self, **given: Any) -> None:
        """The backends beside the store: each as it is given, or else as the file says."""
        known = [role for role, backend in given.items() if backend is not None]
        roles = configured_roles(self.machine, self.persistence, given=known)
        self.lock = given["locking"] or roles.lock
        self.result_backend = given["results"] or roles.results or get_default_result_backend()
        self.signal_backend = given["signal"] or roles.signals
        self.trigger_backend = given["trigger"] or roles.trigger

    @property
    def machine_name(self) -> str:
        return self.machine.name

    @property
    def spec_version(self) -> str:
        return self.machine.program.spec_version

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """The machine file as plain data, with the overrides; the agents' files are not in it."""
        from flat.spec import load_machine  # who has a compiled program needs none of the files

        config: Mapping[str, Any] | None = self._config_dict
        if self._config_file is not None:
            config = load_machine(self._config_file, compat=True, check=False).document.value
        assert config is not None  # loading has seen to it
        return {**config, "data": {**config["data"], **self._overrides}}

    @property
    def data(self) -> Mapping[str, Any]:
        """The machine itself, as its file has it."""
        data: Mapping[str, Any] = self.config["data"]
        return data

    def _part(self, key: str) -> Mapping[str, Any]:
        return self.data.get(key) or {}

    @property
    def metadata(self) -> Mapping[str, Any]:
        return self.config.get("metadata") or {}

    @property
    def states(self) -> Mapping[str, Any]:
        """The states by name, in the order of the file."""
        return self._part("states")

    @property
    def settings(self) -> Mapping[str, Any]:
        return self._part("settings")

    @property
    def initial_context(self) -> Mapping[str, Any]:
        return self._part("context")

    @property
    def agent_refs(self) -> Mapping[str, Any]:
        return self._part("agents")

    @property
    def machine_refs(self) -> Mapping[str, Any]:
        return self._part("machines")

    @property
    def checkpoint_events(self) -> set[str]:
        """What `persistence.checkpoint_on` names; here every effect is kept, whatever it says."""
        return set(self._part("persistence").get("checkpoint_on") or CHECKPOINT_EVENTS)

    @cached_property
    def agent_registry(self) -> AgentAdapterRegistry:
        """What makes the agents, by their type; an adapter registered here makes those not asked so far."""
        from flat.agents.adapters import default_registry

        registry = self._agent_registry or default_registry(self._agent_adapters)
        provider = self.machine.tool_provider
        self.machine.make_agent = partial(litellm_agent, registry=registry, tool_provider=provider)
        return registry

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
        store = store_of(self.persistence)
        try:
            async with (
                locked(self.lock, self.execution_id),
                Runtime(store, results=self.result_backend, trigger=self.trigger_backend) as self._runtime,
            ):
                return self._result(
                    await self._run(self._runtime, input, max_steps, max_agent_calls, resume_from)
                )
        finally:
            self._runtime = None

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
        await take_signals(self.signal_backend, runtime.kept)
        limits: dict[str, Any] = {"max_steps": max_steps, "max_agent_calls": max_agent_calls}
        if resume_from is not None and runtime.kept is not None:
            if await runtime.opened().get(resume_from) is not None:
                return await runtime.resume(resume_from, self.machine, **limits)
            log.warning("no execution %s to resume: starting it", resume_from)
        return await runtime.start(self.machine, input, execution_id=self.execution_id, **limits)

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
        self._spent[outcome.execution_id] = outcome.spent
        self.total_api_calls = sum(spent.calls for spent in self._spent.values())
        self.total_cost = sum(spent.cost for spent in self._spent.values())
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
    if store is None or isinstance(store, str) or callable(getattr(store, "put_config", None)):
        return store
    raise DefinitionError(
        f"persistence is a store, its URL, or one of the backends that come with flat, not {type(store).__name__}; "
        "a backend of your own has the methods of CheckpointStore"
    )


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
