"""One durable state-machine engine for LLM agents, with two front ends: YAML machines and Python trees.

Everything public is importable from here. Names are resolved on first use, so that `import flat` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flat.agents.adapters import (
        AgentAdapter,
        AgentAdapterContext,
        AgentAdapterRegistry,
        AgentExecutor,
        AgentRef,
        StreamEventCallback,
        normalize_agent_ref,
    )
    from flat.agents.codex import (
        CodexAuthError,
        CodexClient,
        CodexClientError,
        CodexHTTPError,
        CodexOAuthCredential,
        CodexResult,
        CodexToolCall,
        CodexUsage,
    )
    from flat.agents.copilot import (
        CopilotAuthError,
        CopilotClient,
        CopilotClientError,
        CopilotHTTPError,
        CopilotOAuthCredential,
        CopilotResult,
        CopilotToolCall,
        CopilotUsage,
    )
    from flat.agents.executor_result import coerce_agent_result
    from flat.agents.extractors import (
        Extractor,
        FreeExtractor,
        FreeThinkingExtractor,
        RegexExtractor,
        StructuredExtractor,
        ToolsExtractor,
    )
    from flat.agents.headers import (
        AnthropicRateLimits,
        CerebrasRateLimits,
        OpenAIRateLimits,
        RateLimitInfo,
        extract_anthropic_rate_limits,
        extract_cerebras_rate_limits,
        extract_headers_from_error,
        extract_headers_from_response,
        extract_openai_rate_limits,
        extract_rate_limit_info,
        extract_status_code,
        is_retryable_error,
    )
    from flat.agents.mcp import MCPToolProvider
    from flat.agents.protocol import Agent, AgentRequest, AgentResult, Usage
    from flat.agents.ratelimits import (
        build_rate_limit_state,
        build_rate_limit_windows,
    )
    from flat.agents.response import AgentResponse, CostInfo, ErrorInfo, FinishReason, ToolCall, UsageInfo
    from flat.agents.standalone import (
        AISuiteBackend,
        BaseFlatAgent,
        LiteLLMBackend,
        LLMBackend,
    )
    from flat.agents.tool_loop import (
        AggregateUsage,
        Guardrails,
        SteeringProvider,
        StopReason,
        ToolLoopAgent,
        ToolLoopResult,
    )
    from flat.agents.tools import SimpleToolProvider, Tool, ToolProvider, ToolResult
    from flat.backends import FileStore, MemoryStore, SQLiteStore, open_store
    from flat.backends.memory_work import MemoryRegistrationBackend, MemoryWorkBackend
    from flat.backends.sqlite_work import SQLiteRegistrationBackend, SQLiteWorkBackend
    from flat.backends.triggers import (
        FileTrigger,
        NoOpTrigger,
        SocketTrigger,
        TriggerBackend,
        create_trigger_backend,
    )
    from flat.backends.work import (
        RegistrationBackend,
        WorkBackend,
        WorkerFilter,
        WorkerRecord,
        WorkerRegistration,
        WorkItem,
        WorkPool,
        create_registration_backend,
        create_work_backend,
    )
    from flat.bindings import Bindings
    from flat.drivers.dispatch import Dispatcher
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
        WorkerNotFound,
        WorkItemNotFound,
        WorkNotHeld,
    )
    from flat.hooks import (
        CompositeHooks,
        DistributedWorkerHooks,
        HooksRegistry,
        LoggingHooks,
        MachineHooks,
        MetricsHooks,
        Notice,
        Observer,
        WebhookHooks,
        get_logger,
        observer,
        setup_logging,
    )
    from flat.runtime import Machine, Outcome, Runtime, load
    from flat.runtime.compat.agents import (
        ProfileManager,
        get_flatagent_schema,
        load_profile_from_file,
        resolve_model_config,
        resolve_profile_config,
        validate_flatagent_config,
    )
    from flat.runtime.compat.execution import (
        DefaultExecution,
        ExecutionType,
        ExpressionEngine,
        MDAPVotingExecution,
        ParallelExecution,
        RetryableError,
        RetryExecution,
        get_execution_type,
        get_expression_engine,
    )
    from flat.runtime.compat.monitoring import (
        AgentMonitor,
        get_meter,
        track_operation,
    )
    from flat.runtime.compat.persistence import (
        CheckpointManager,
        ConfigStore,
        ExecutionLock,
        LocalFileBackend,
        LocalFileConfigStore,
        LocalFileLock,
        MachineSnapshot,
        MemoryBackend,
        MemoryConfigStore,
        NoOpLock,
        PersistenceBackend,
        SQLiteCheckpointBackend,
        SQLiteConfigStore,
        SQLiteLeaseLock,
        clone_snapshot,
        config_hash,
    )
    from flat.runtime.compat.results import (
        InMemoryResultBackend,
        LaunchIntent,
        ResultBackend,
        SubprocessInvoker,
        get_default_result_backend,
        launch_machine,
        make_uri,
        parse_uri,
        reset_default_result_backend,
    )
    from flat.runtime.compat.signals import (
        ConfigFileResumer,
        ConfigStoreResumer,
        MachineResumer,
        MemorySignalBackend,
        ReferenceResolver,
        Signal,
        SignalBackend,
        SignalDispatcher,
        SQLiteSignalBackend,
        create_signal_backend,
        send_and_notify,
    )
    from flat.runtime.compat.validation import (
        ValidationWarning,
        get_asset,
        get_flatmachine_schema,
        validate_flatmachine_config,
    )
    from flat.runtime.flatagent import FlatAgent
    from flat.runtime.flatmachine import FlatMachine, WaitingForSignal

__version__ = "0.1.0"

_HOMES = {
    "flat.agents.executor_result": "coerce_agent_result",
    "flat.agents.adapters": (
        "AgentAdapter AgentAdapterContext AgentAdapterRegistry AgentExecutor AgentRef "
        "StreamEventCallback normalize_agent_ref"
    ),
    "flat.agents.ratelimits": ("build_rate_limit_state build_rate_limit_windows"),
    "flat.agents.protocol": "Agent AgentRequest AgentResult Usage",
    "flat.backends": "FileStore MemoryStore SQLiteStore open_store",
    "flat.backends.memory_work": "MemoryRegistrationBackend MemoryWorkBackend",
    "flat.backends.sqlite_work": "SQLiteRegistrationBackend SQLiteWorkBackend",
    "flat.backends.work": (
        "RegistrationBackend WorkBackend WorkItem WorkPool WorkerFilter WorkerRecord WorkerRegistration "
        "create_registration_backend create_work_backend"
    ),
    "flat.bindings": "Bindings",
    "flat.errors": (
        "AgentFailed BackendError BindingError DefinitionError ExecutionBusy ExecutionError ExecutionNotFound "
        "FlatError LimitExceeded NotStorable SpecError StaleSnapshot WorkItemNotFound WorkNotHeld WorkerNotFound"
    ),
    "flat.hooks": (
        "CompositeHooks DistributedWorkerHooks HooksRegistry LoggingHooks MachineHooks MetricsHooks Notice "
        "Observer WebhookHooks get_logger observer setup_logging"
    ),
    "flat.runtime": "Machine Outcome Runtime load",
    "flat.runtime.compat.results": (
        "InMemoryResultBackend LaunchIntent ResultBackend SubprocessInvoker "
        "get_default_result_backend launch_machine make_uri parse_uri reset_default_result_backend"
    ),
    "flat.runtime.compat.persistence": (
        "CheckpointManager ConfigStore ExecutionLock LocalFileBackend LocalFileConfigStore "
        "LocalFileLock MachineSnapshot MemoryBackend MemoryConfigStore NoOpLock PersistenceBackend "
        "SQLiteCheckpointBackend SQLiteConfigStore SQLiteLeaseLock clone_snapshot config_hash"
    ),
    "flat.runtime.compat.execution": (
        "DefaultExecution ExecutionType ExpressionEngine MDAPVotingExecution ParallelExecution "
        "RetryExecution RetryableError get_execution_type get_expression_engine"
    ),
    "flat.runtime.compat.validation": (
        "ValidationWarning get_asset get_flatmachine_schema validate_flatmachine_config"
    ),
    "flat.runtime.compat.monitoring": ("AgentMonitor get_meter track_operation"),
    "flat.runtime.flatmachine": "FlatMachine WaitingForSignal",
    "flat.runtime.flatagent": "FlatAgent",
    "flat.agents.response": "AgentResponse CostInfo ErrorInfo FinishReason ToolCall UsageInfo",
    "flat.agents.tools": "SimpleToolProvider Tool ToolProvider ToolResult",
    "flat.agents.mcp": "MCPToolProvider",
    "flat.agents.tool_loop": (
        "AggregateUsage Guardrails SteeringProvider StopReason ToolLoopAgent ToolLoopResult"
    ),
    "flat.agents.headers": (
        "AnthropicRateLimits CerebrasRateLimits OpenAIRateLimits RateLimitInfo "
        "extract_anthropic_rate_limits extract_cerebras_rate_limits extract_headers_from_error "
        "extract_headers_from_response extract_openai_rate_limits extract_rate_limit_info "
        "extract_status_code is_retryable_error"
    ),
    "flat.agents.extractors": (
        "Extractor FreeExtractor FreeThinkingExtractor RegexExtractor StructuredExtractor ToolsExtractor"
    ),
    "flat.agents.standalone": ("AISuiteBackend BaseFlatAgent LLMBackend LiteLLMBackend"),
    "flat.agents.codex": (
        "CodexAuthError CodexClient CodexClientError CodexHTTPError CodexOAuthCredential CodexResult "
        "CodexToolCall CodexUsage"
    ),
    "flat.agents.copilot": (
        "CopilotAuthError CopilotClient CopilotClientError CopilotHTTPError CopilotOAuthCredential CopilotResult "
        "CopilotToolCall CopilotUsage"
    ),
    "flat.backends.triggers": ("FileTrigger NoOpTrigger SocketTrigger TriggerBackend create_trigger_backend"),
    "flat.drivers.dispatch": "Dispatcher",
    "flat.runtime.compat.signals": (
        "ConfigFileResumer ConfigStoreResumer MachineResumer MemorySignalBackend ReferenceResolver "
        "SQLiteSignalBackend Signal SignalBackend SignalDispatcher create_signal_backend send_and_notify"
    ),
    "flat.runtime.compat.agents": (
        "ProfileManager get_flatagent_schema load_profile_from_file resolve_model_config "
        "resolve_profile_config validate_flatagent_config"
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "AISuiteBackend",
    "Agent",
    "AgentAdapter",
    "AgentAdapterContext",
    "AgentAdapterRegistry",
    "AgentExecutor",
    "AgentFailed",
    "AgentMonitor",
    "AgentRef",
    "AgentRequest",
    "AgentResponse",
    "AgentResult",
    "AggregateUsage",
    "AnthropicRateLimits",
    "BackendError",
    "BaseFlatAgent",
    "BindingError",
    "Bindings",
    "CerebrasRateLimits",
    "CheckpointManager",
    "CodexAuthError",
    "CodexClient",
    "CodexClientError",
    "CodexHTTPError",
    "CodexOAuthCredential",
    "CodexResult",
    "CodexToolCall",
    "CodexUsage",
    "CompositeHooks",
    "ConfigFileResumer",
    "ConfigStore",
    "ConfigStoreResumer",
    "CopilotAuthError",
    "CopilotClient",
    "CopilotClientError",
    "CopilotHTTPError",
    "CopilotOAuthCredential",
    "CopilotResult",
    "CopilotToolCall",
    "CopilotUsage",
    "CostInfo",
    "DefaultExecution",
    "DefinitionError",
    "Dispatcher",
    "DistributedWorkerHooks",
    "ErrorInfo",
    "ExecutionBusy",
    "ExecutionError",
    "ExecutionLock",
    "ExecutionNotFound",
    "ExecutionType",
    "ExpressionEngine",
    "Extractor",
    "FileStore",
    "FileTrigger",
    "FinishReason",
    "FlatAgent",
    "FlatError",
    "FlatMachine",
    "FreeExtractor",
    "FreeThinkingExtractor",
    "Guardrails",
    "HooksRegistry",
    "InMemoryResultBackend",
    "LLMBackend",
    "LaunchIntent",
    "LimitExceeded",
    "LiteLLMBackend",
    "LocalFileBackend",
    "LocalFileConfigStore",
    "LocalFileLock",
    "LoggingHooks",
    "MCPToolProvider",
    "MDAPVotingExecution",
    "Machine",
    "MachineHooks",
    "MachineResumer",
    "MachineSnapshot",
    "MemoryBackend",
    "MemoryConfigStore",
    "MemoryRegistrationBackend",
    "MemorySignalBackend",
    "MemoryStore",
    "MemoryWorkBackend",
    "MetricsHooks",
    "NoOpLock",
    "NoOpTrigger",
    "NotStorable",
    "Notice",
    "Observer",
    "OpenAIRateLimits",
    "Outcome",
    "ParallelExecution",
    "PersistenceBackend",
    "ProfileManager",
    "RateLimitInfo",
    "ReferenceResolver",
    "RegexExtractor",
    "RegistrationBackend",
    "ResultBackend",
    "RetryExecution",
    "RetryableError",
    "Runtime",
    "SQLiteCheckpointBackend",
    "SQLiteConfigStore",
    "SQLiteLeaseLock",
    "SQLiteRegistrationBackend",
    "SQLiteSignalBackend",
    "SQLiteStore",
    "SQLiteWorkBackend",
    "Signal",
    "SignalBackend",
    "SignalDispatcher",
    "SimpleToolProvider",
    "SocketTrigger",
    "SpecError",
    "StaleSnapshot",
    "SteeringProvider",
    "StopReason",
    "StreamEventCallback",
    "StructuredExtractor",
    "SubprocessInvoker",
    "Tool",
    "ToolCall",
    "ToolLoopAgent",
    "ToolLoopResult",
    "ToolProvider",
    "ToolResult",
    "ToolsExtractor",
    "TriggerBackend",
    "Usage",
    "UsageInfo",
    "ValidationWarning",
    "WaitingForSignal",
    "WebhookHooks",
    "WorkBackend",
    "WorkItem",
    "WorkItemNotFound",
    "WorkNotHeld",
    "WorkPool",
    "WorkerFilter",
    "WorkerNotFound",
    "WorkerRecord",
    "WorkerRegistration",
    "build_rate_limit_state",
    "build_rate_limit_windows",
    "clone_snapshot",
    "coerce_agent_result",
    "config_hash",
    "create_registration_backend",
    "create_signal_backend",
    "create_trigger_backend",
    "create_work_backend",
    "extract_anthropic_rate_limits",
    "extract_cerebras_rate_limits",
    "extract_headers_from_error",
    "extract_headers_from_response",
    "extract_openai_rate_limits",
    "extract_rate_limit_info",
    "extract_status_code",
    "get_asset",
    "get_default_result_backend",
    "get_execution_type",
    "get_expression_engine",
    "get_flatagent_schema",
    "get_flatmachine_schema",
    "get_logger",
    "get_meter",
    "is_retryable_error",
    "launch_machine",
    "load",
    "load_profile_from_file",
    "make_uri",
    "normalize_agent_ref",
    "observer",
    "open_store",
    "parse_uri",
    "reset_default_result_backend",
    "resolve_model_config",
    "resolve_profile_config",
    "send_and_notify",
    "setup_logging",
    "track_operation",
    "validate_flatagent_config",
    "validate_flatmachine_config",
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
