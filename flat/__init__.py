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
    from flat.agents.codex_app_server import (
        CodexAppServerTransport,
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
    from flat.agents.session_holdback import (
        ClaudeCodeForkResult,
        ClaudeCodeSessionHoldback,
        CodexForkResult,
        CodexSessionHoldback,
    )
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
    from flat.backends.by_name import create_registration_backend, create_trigger_backend, create_work_backend
    from flat.backends.memory.work import MemoryRegistrationBackend, MemoryWorkBackend
    from flat.backends.sqlite.work import SQLiteRegistrationBackend, SQLiteWorkBackend
    from flat.backends.triggers import (
        FileTrigger,
        NoOpTrigger,
        SocketTrigger,
        TriggerBackend,
    )
    from flat.backends.work import (
        RegistrationBackend,
        WorkBackend,
        WorkerFilter,
        WorkerRecord,
        WorkerRegistration,
        WorkItem,
        WorkPool,
    )
    from flat.bindings import Bindings
    from flat.drivers.dispatch import Dispatcher
    from flat.errors import (
        AgentFailed,
        BackendError,
        BindingError,
        CallRefused,
        CharterError,
        CharterMismatch,
        DefinitionError,
        ExecutionBusy,
        ExecutionError,
        ExecutionNotFound,
        FlatError,
        LimitExceeded,
        MachineBusy,
        NotStorable,
        SpecError,
        StaleSnapshot,
        StateError,
        TreeError,
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
    from flat.runtime.compat.executors import (
        ClaudeCodeExecutor,
        CodexCliExecutor,
        PiAgentBridgeExecutor,
        SmolagentsExecutor,
        create_claude_code_executor,
        create_codex_cli_executor,
        create_pi_agent_bridge_executor,
        create_smolagents_executor,
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
    from flat.runtime.function_tools import (
        FunctionTools,
    )
    from flat.runtime.treeload import find_charter
    from flat.runtime.trees import TreeMachine
    from flat.tree import (
        BuiltinTool,
        Cede,
        Charter,
        CodeTransition,
        Command,
        CommandContext,
        CommandCtx,
        CommandResult,
        CommandRun,
        Ctx,
        ExecutorConfig,
        GeneralTransition,
        Instance,
        MachineStep,
        MachineTool,
        Message,
        Node,
        Output,
        Pack,
        PackCommandContext,
        PackContext,
        PackCtx,
        PromptContext,
        Ref,
        RunOptions,
        SerialTransition,
        Spawn,
        SpawnTarget,
        StandardExecutor,
        Suspend,
        SuspendInfo,
        ToolContext,
        ToolReply,
        Transition,
        TransitionContext,
        TransitionTo,
        assistant_message,
        cede,
        command,
        command_result,
        command_resume,
        create_charter,
        create_command,
        create_helpers,
        create_instance,
        create_machine,
        create_node,
        create_pack,
        create_standard_executor,
        create_transition,
        create_worker_node,
        deserialize_machine,
        ephemeral_message,
        machine_node,
        machine_tool,
        open_machine,
        resume_item,
        run_command,
        run_machine,
        run_machine_sync,
        run_machine_to_completion,
        serialize_machine,
        spawn,
        suspend,
        system_message,
        tool,
        tool_reply,
        tool_result,
        transition,
        transition_to,
        tree_machine,
        user_message,
    )

__version__ = "0.1.0"

_HOMES = {
    "flat.tree": (
        "BuiltinTool Cede Charter CodeTransition Command CommandContext CommandCtx CommandResult "
        "CommandRun Ctx ExecutorConfig GeneralTransition Instance MachineStep MachineTool Message "
        "Node Output Pack PackCommandContext PackContext PackCtx PromptContext Ref RunOptions "
        "SerialTransition Spawn SpawnTarget StandardExecutor Suspend SuspendInfo ToolContext "
        "ToolReply Transition TransitionContext TransitionTo assistant_message cede command "
        "command_result command_resume create_charter create_command create_helpers create_instance "
        "create_machine create_node create_pack create_standard_executor create_transition "
        "create_worker_node deserialize_machine ephemeral_message machine_node machine_tool "
        "open_machine resume_item run_command run_machine run_machine_sync run_machine_to_completion "
        "serialize_machine spawn suspend system_message tool tool_reply tool_result transition "
        "transition_to tree_machine user_message"
    ),
    "flat.runtime.treeload": "find_charter",
    "flat.runtime.trees": "TreeMachine",
    "flat.runtime.function_tools": ("FunctionTools"),
    "flat.agents.executor_result": "coerce_agent_result",
    "flat.agents.adapters": (
        "AgentAdapter AgentAdapterContext AgentAdapterRegistry AgentExecutor AgentRef "
        "StreamEventCallback normalize_agent_ref"
    ),
    "flat.agents.ratelimits": ("build_rate_limit_state build_rate_limit_windows"),
    "flat.agents.protocol": "Agent AgentRequest AgentResult Usage",
    "flat.backends": "FileStore MemoryStore SQLiteStore open_store",
    "flat.backends.memory.work": "MemoryRegistrationBackend MemoryWorkBackend",
    "flat.backends.sqlite.work": "SQLiteRegistrationBackend SQLiteWorkBackend",
    "flat.backends.work": (
        "RegistrationBackend WorkBackend WorkItem WorkPool WorkerFilter WorkerRecord WorkerRegistration"
    ),
    "flat.backends.by_name": "create_registration_backend create_trigger_backend create_work_backend",
    "flat.bindings": "Bindings",
    "flat.errors": (
        "AgentFailed BackendError BindingError CallRefused CharterError CharterMismatch DefinitionError ExecutionBusy "
        "ExecutionError ExecutionNotFound FlatError LimitExceeded MachineBusy StateError TreeError NotStorable "
        "SpecError StaleSnapshot WorkItemNotFound WorkNotHeld WorkerNotFound"
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
    "flat.backends.triggers": ("FileTrigger NoOpTrigger SocketTrigger TriggerBackend"),
    "flat.runtime.compat.executors": (
        "ClaudeCodeExecutor CodexCliExecutor PiAgentBridgeExecutor SmolagentsExecutor create_claude_code_executor "
        "create_codex_cli_executor create_pi_agent_bridge_executor create_smolagents_executor"
    ),
    "flat.agents.codex_app_server": ("CodexAppServerTransport"),
    "flat.agents.session_holdback": (
        "ClaudeCodeForkResult ClaudeCodeSessionHoldback CodexForkResult CodexSessionHoldback"
    ),
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
    "BuiltinTool",
    "CallRefused",
    "Cede",
    "CerebrasRateLimits",
    "Charter",
    "CharterError",
    "CharterMismatch",
    "CheckpointManager",
    "ClaudeCodeExecutor",
    "ClaudeCodeForkResult",
    "ClaudeCodeSessionHoldback",
    "CodeTransition",
    "CodexAppServerTransport",
    "CodexAuthError",
    "CodexCliExecutor",
    "CodexClient",
    "CodexClientError",
    "CodexForkResult",
    "CodexHTTPError",
    "CodexOAuthCredential",
    "CodexResult",
    "CodexSessionHoldback",
    "CodexToolCall",
    "CodexUsage",
    "Command",
    "CommandContext",
    "CommandCtx",
    "CommandResult",
    "CommandRun",
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
    "Ctx",
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
    "ExecutorConfig",
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
    "FunctionTools",
    "GeneralTransition",
    "Guardrails",
    "HooksRegistry",
    "InMemoryResultBackend",
    "Instance",
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
    "MachineBusy",
    "MachineHooks",
    "MachineResumer",
    "MachineSnapshot",
    "MachineStep",
    "MachineTool",
    "MemoryBackend",
    "MemoryConfigStore",
    "MemoryRegistrationBackend",
    "MemorySignalBackend",
    "MemoryStore",
    "MemoryWorkBackend",
    "Message",
    "MetricsHooks",
    "NoOpLock",
    "NoOpTrigger",
    "Node",
    "NotStorable",
    "Notice",
    "Observer",
    "OpenAIRateLimits",
    "Outcome",
    "Output",
    "Pack",
    "PackCommandContext",
    "PackContext",
    "PackCtx",
    "ParallelExecution",
    "PersistenceBackend",
    "PiAgentBridgeExecutor",
    "ProfileManager",
    "PromptContext",
    "RateLimitInfo",
    "Ref",
    "ReferenceResolver",
    "RegexExtractor",
    "RegistrationBackend",
    "ResultBackend",
    "RetryExecution",
    "RetryableError",
    "RunOptions",
    "Runtime",
    "SQLiteCheckpointBackend",
    "SQLiteConfigStore",
    "SQLiteLeaseLock",
    "SQLiteRegistrationBackend",
    "SQLiteSignalBackend",
    "SQLiteStore",
    "SQLiteWorkBackend",
    "SerialTransition",
    "Signal",
    "SignalBackend",
    "SignalDispatcher",
    "SimpleToolProvider",
    "SmolagentsExecutor",
    "SocketTrigger",
    "Spawn",
    "SpawnTarget",
    "SpecError",
    "StaleSnapshot",
    "StandardExecutor",
    "StateError",
    "SteeringProvider",
    "StopReason",
    "StreamEventCallback",
    "StructuredExtractor",
    "SubprocessInvoker",
    "Suspend",
    "SuspendInfo",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolLoopAgent",
    "ToolLoopResult",
    "ToolProvider",
    "ToolReply",
    "ToolResult",
    "ToolsExtractor",
    "Transition",
    "TransitionContext",
    "TransitionTo",
    "TreeError",
    "TreeMachine",
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
    "assistant_message",
    "build_rate_limit_state",
    "build_rate_limit_windows",
    "cede",
    "clone_snapshot",
    "coerce_agent_result",
    "command",
    "command_result",
    "command_resume",
    "config_hash",
    "create_charter",
    "create_claude_code_executor",
    "create_codex_cli_executor",
    "create_command",
    "create_helpers",
    "create_instance",
    "create_machine",
    "create_node",
    "create_pack",
    "create_pi_agent_bridge_executor",
    "create_registration_backend",
    "create_signal_backend",
    "create_smolagents_executor",
    "create_standard_executor",
    "create_transition",
    "create_trigger_backend",
    "create_work_backend",
    "create_worker_node",
    "deserialize_machine",
    "ephemeral_message",
    "extract_anthropic_rate_limits",
    "extract_cerebras_rate_limits",
    "extract_headers_from_error",
    "extract_headers_from_response",
    "extract_openai_rate_limits",
    "extract_rate_limit_info",
    "extract_status_code",
    "find_charter",
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
    "machine_node",
    "machine_tool",
    "make_uri",
    "normalize_agent_ref",
    "observer",
    "open_machine",
    "open_store",
    "parse_uri",
    "reset_default_result_backend",
    "resolve_model_config",
    "resolve_profile_config",
    "resume_item",
    "run_command",
    "run_machine",
    "run_machine_sync",
    "run_machine_to_completion",
    "send_and_notify",
    "serialize_machine",
    "setup_logging",
    "spawn",
    "suspend",
    "system_message",
    "tool",
    "tool_reply",
    "tool_result",
    "track_operation",
    "transition",
    "transition_to",
    "tree_machine",
    "user_message",
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
