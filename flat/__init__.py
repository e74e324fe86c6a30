"""One durable state-machine engine for LLM agents, with two front ends: YAML machines and Python trees.

Everything public is importable from here. Names are resolved on first use, so that `import flat` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flat.agents.protocol import Agent, AgentRequest, AgentResult, Usage
    from flat.backends import FileStore, MemoryStore, SQLiteStore, open_store
    from flat.bindings import Bindings
    from flat.errors import (
        AgentFailed,
        BackendError,
        BindingError,
        DefinitionError,
        ExecutionBusy,
        ExecutionError,
        ExecutionNotFound,
        FlatError,
        LimitExceeded,
        NotStorable,
        SpecError,
        StaleSnapshot,
    )
    from flat.hooks import (
        CompositeHooks,
        HooksRegistry,
        LoggingHooks,
        MachineHooks,
        MetricsHooks,
        Notice,
        Observer,
        get_logger,
        observer,
        setup_logging,
    )
    from flat.runtime import Machine, Outcome, Runtime, load
    from flat.runtime.flatmachine import FlatMachine

__version__ = "0.1.0"

_HOMES = {
    "flat.agents.protocol": "Agent AgentRequest AgentResult Usage",
    "flat.backends": "FileStore MemoryStore SQLiteStore open_store",
    "flat.bindings": "Bindings",
    "flat.errors": (
        "AgentFailed BackendError BindingError DefinitionError ExecutionBusy ExecutionError ExecutionNotFound "
        "FlatError LimitExceeded NotStorable SpecError StaleSnapshot"
    ),
    "flat.hooks": (
        "CompositeHooks HooksRegistry LoggingHooks MachineHooks MetricsHooks Notice Observer get_logger observer "
        "setup_logging"
    ),
    "flat.runtime": "Machine Outcome Runtime load",
    "flat.runtime.flatmachine": "FlatMachine",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Agent",
    "AgentFailed",
    "AgentRequest",
    "AgentResult",
    "BackendError",
    "BindingError",
    "Bindings",
    "CompositeHooks",
    "DefinitionError",
    "ExecutionBusy",
    "ExecutionError",
    "ExecutionNotFound",
    "FileStore",
    "FlatError",
    "FlatMachine",
    "HooksRegistry",
    "LimitExceeded",
    "LoggingHooks",
    "Machine",
    "MachineHooks",
    "MemoryStore",
    "MetricsHooks",
    "NotStorable",
    "Notice",
    "Observer",
    "Outcome",
    "Runtime",
    "SQLiteStore",
    "SpecError",
    "StaleSnapshot",
    "Usage",
    "get_logger",
    "load",
    "observer",
    "open_store",
    "setup_logging",
]


def __getattr__(name: str) -> Any:
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'flat' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
