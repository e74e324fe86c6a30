"""Python trees of nodes: charters, nodes, packs, transitions and commands, as an author writes them.

    from flat.tree import Charter, Ctx, Instance, Node, spawn, tool, transition

Everything public is importable from here. Names are resolved on first use, so that a client can import
`flat.tree.client` alone. How a tree runs is the engine's: see `flat.tree.lower`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flat.errors import CallRefused, CharterError, CharterMismatch, StateError, TreeError
    from flat.runtime.tree_steps import (
        MachineStep,
        RunOptions,
    )
    from flat.runtime.treeload import (
        tree_machine,
    )
    from flat.runtime.trees import (
        CommandRun,
        create_machine,
        deserialize_machine,
        open_machine,
        run_command,
        run_machine,
        run_machine_sync,
        run_machine_to_completion,
        serialize_machine,
    )
    from flat.runtime.trees import TreeMachine as Machine
    from flat.tree.apply import Applied, applied, apply_changes, replayed, start_tree
    from flat.tree.calls import Caller, CallOutcome, PipelineResult, ToolCall, run_call, run_tool_pipeline
    from flat.tree.changes import (
        Ceded,
        Change,
        NewChild,
        PackPatch,
        Resumed,
        Spawned,
        StatePatch,
        Suspended,
        SuspendInfo,
        Transitioned,
        change_data,
        change_from_data,
    )
    from flat.tree.charter import Charter
    from flat.tree.client import (
        CommandHandle,
        MachineContract,
        create_dry_client_instance,
        create_dry_client_node,
        create_dry_client_pack,
        create_machine_contract,
        find_command,
        hydrate_client_instance,
        hydrate_client_node,
        hydrate_client_pack,
    )
    from flat.tree.commanding import CommandOutcome, get_available_commands, perform_command
    from flat.tree.commands import (
        Command,
        CommandInfo,
        CommandResult,
        ResumeResult,
        command,
        command_result,
        command_resume,
    )
    from flat.tree.context import (
        CommandContext,
        CommandCtx,
        Ctx,
        PackCommandContext,
        PackContext,
        PackCtx,
        ToolContext,
        TransitionContext,
    )
    from flat.tree.create import (
        create_charter,
        create_command,
        create_helpers,
        create_instance,
        create_node,
        create_pack,
    )
    from flat.tree.description import describe, digest_of
    from flat.tree.display import (
        assert_machine_contract,
        serialize_instance_for_display,
        serialize_node_for_display,
        serialize_pack_for_display,
    )
    from flat.tree.executor import Executor, StandardExecutor, create_standard_executor
    from flat.tree.external import ExternalContext, ExternalScope, MutationEvent
    from flat.tree.instance import (
        ActiveLeaf,
        Instance,
        active_instance,
        active_leaves,
        all_instances,
        clear_suspension,
        find_instance,
        instance_path,
        suspended_instances,
    )
    from flat.tree.machines import MachineTool, MachineUse, machine_tool
    from flat.tree.messages import (
        Message,
        Metadata,
        Source,
        assistant_message,
        command_item,
        command_message,
        ephemeral_message,
        get_message_text,
        instance_message,
        is_command,
        is_conversation_message,
        is_ephemeral_message,
        is_instance_message,
        is_model_message,
        is_ref,
        is_resume,
        message_data,
        message_from_data,
        resume_item,
        system_message,
        tool_result,
        user_message,
    )
    from flat.tree.naming import Ref
    from flat.tree.node import ExecutorConfig, Node, NodeConfig, Output, create_worker_node, machine_node
    from flat.tree.pack import Pack
    from flat.tree.prompt import PromptContext, SystemPrompt, build_system_prompt, system_prompt
    from flat.tree.refs import serialize_instance, serialize_node, serialize_pack
    from flat.tree.restore import deserialize_instance, deserialize_node, resolve_node_ref
    from flat.tree.results import (
        Cede,
        Spawn,
        SpawnTarget,
        Suspend,
        TransitionResult,
        TransitionTo,
        cede,
        spawn,
        suspend,
        transition_to,
    )
    from flat.tree.schema import (
        Schema,
        escape_schema_keys,
        from_safe_json_schema,
        restore_schema_keys,
        to_safe_json_schema,
    )
    from flat.tree.state import deep_merge, shallow_merge
    from flat.tree.stubs import client_stubs
    from flat.tree.taking import create_suspend_info
    from flat.tree.tools import BuiltinTool, Tool, ToolReply, tool, tool_reply
    from flat.tree.toolset import generate_tool_definitions
    from flat.tree.transitions import (
        CodeTransition,
        GeneralTransition,
        SerialTransition,
        Transition,
        create_transition,
        transition,
        transition_has_arguments,
    )

_HOMES = {
    "flat.errors": "CallRefused CharterError CharterMismatch StateError TreeError",
    "flat.tree.apply": "Applied applied apply_changes replayed start_tree",
    "flat.tree.calls": "CallOutcome Caller PipelineResult ToolCall run_call run_tool_pipeline",
    "flat.tree.changes": (
        "Ceded Change NewChild PackPatch Resumed Spawned StatePatch SuspendInfo Suspended "
        "Transitioned change_data change_from_data"
    ),
    "flat.tree.charter": "Charter",
    "flat.tree.client": (
        "CommandHandle MachineContract create_dry_client_instance create_dry_client_node "
        "create_dry_client_pack create_machine_contract find_command hydrate_client_instance "
        "hydrate_client_node hydrate_client_pack"
    ),
    "flat.tree.commanding": "CommandOutcome get_available_commands perform_command",
    "flat.tree.commands": "Command CommandInfo CommandResult ResumeResult command command_result command_resume",
    "flat.tree.context": (
        "CommandContext CommandCtx Ctx PackCommandContext PackContext PackCtx ToolContext TransitionContext"
    ),
    "flat.tree.create": "create_charter create_command create_helpers create_instance create_node create_pack",
    "flat.tree.description": "describe digest_of",
    "flat.tree.display": (
        "assert_machine_contract serialize_instance_for_display serialize_node_for_display "
        "serialize_pack_for_display"
    ),
    "flat.tree.executor": "Executor StandardExecutor create_standard_executor",
    "flat.tree.external": "ExternalContext ExternalScope MutationEvent",
    "flat.tree.instance": (
        "ActiveLeaf Instance active_instance active_leaves all_instances clear_suspension "
        "find_instance instance_path suspended_instances"
    ),
    "flat.tree.machines": "MachineTool MachineUse machine_tool",
    "flat.tree.messages": (
        "Message Metadata Source assistant_message command_item command_message "
        "ephemeral_message get_message_text instance_message is_command "
        "is_conversation_message is_ephemeral_message is_instance_message is_model_message "
        "is_ref is_resume message_data message_from_data resume_item system_message "
        "tool_result user_message"
    ),
    "flat.tree.naming": "Ref",
    "flat.tree.node": "ExecutorConfig Node NodeConfig Output create_worker_node machine_node",
    "flat.tree.pack": "Pack",
    "flat.tree.prompt": "PromptContext SystemPrompt build_system_prompt system_prompt",
    "flat.tree.refs": "serialize_instance serialize_node serialize_pack",
    "flat.tree.restore": "deserialize_instance deserialize_node resolve_node_ref",
    "flat.tree.results": (
        "Cede Spawn SpawnTarget Suspend TransitionResult TransitionTo cede spawn suspend transition_to"
    ),
    "flat.tree.schema": (
        "Schema escape_schema_keys from_safe_json_schema restore_schema_keys to_safe_json_schema"
    ),
    "flat.tree.state": "deep_merge shallow_merge",
    "flat.tree.stubs": "client_stubs",
    "flat.tree.taking": "create_suspend_info",
    "flat.tree.tools": "BuiltinTool Tool ToolReply tool tool_reply",
    "flat.tree.toolset": "generate_tool_definitions",
    "flat.tree.transitions": (
        "CodeTransition GeneralTransition SerialTransition Transition create_transition "
        "transition transition_has_arguments"
    ),
    "flat.runtime.tree_steps": "MachineStep RunOptions",
    "flat.runtime.treeload": "tree_machine",
    "flat.runtime.trees": (
        "CommandRun create_machine deserialize_machine open_machine run_command run_machine "
        "run_machine_sync run_machine_to_completion serialize_machine"
    ),
}
"""What runs a tree (`flat.runtime`) is above this package, which knows nothing of it; for those who write trees it is
one thing."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "ActiveLeaf",
    "Applied",
    "BuiltinTool",
    "CallOutcome",
    "CallRefused",
    "Caller",
    "Cede",
    "Ceded",
    "Change",
    "Charter",
    "CharterError",
    "CharterMismatch",
    "CodeTransition",
    "Command",
    "CommandContext",
    "CommandCtx",
    "CommandHandle",
    "CommandInfo",
    "CommandOutcome",
    "CommandResult",
    "CommandRun",
    "Ctx",
    "Executor",
    "ExecutorConfig",
    "ExternalContext",
    "ExternalScope",
    "GeneralTransition",
    "Instance",
    "Machine",
    "MachineContract",
    "MachineStep",
    "MachineTool",
    "MachineUse",
    "Message",
    "Metadata",
    "MutationEvent",
    "NewChild",
    "Node",
    "NodeConfig",
    "Output",
    "Pack",
    "PackCommandContext",
    "PackContext",
    "PackCtx",
    "PackPatch",
    "PipelineResult",
    "PromptContext",
    "Ref",
    "ResumeResult",
    "Resumed",
    "RunOptions",
    "Schema",
    "SerialTransition",
    "Source",
    "Spawn",
    "SpawnTarget",
    "Spawned",
    "StandardExecutor",
    "StateError",
    "StatePatch",
    "Suspend",
    "SuspendInfo",
    "Suspended",
    "SystemPrompt",
    "Tool",
    "ToolCall",
    "ToolContext",
    "ToolReply",
    "Transition",
    "TransitionContext",
    "TransitionResult",
    "TransitionTo",
    "Transitioned",
    "TreeError",
    "active_instance",
    "active_leaves",
    "all_instances",
    "applied",
    "apply_changes",
    "assert_machine_contract",
    "assistant_message",
    "build_system_prompt",
    "cede",
    "change_data",
    "change_from_data",
    "clear_suspension",
    "client_stubs",
    "command",
    "command_item",
    "command_message",
    "command_result",
    "command_resume",
    "create_charter",
    "create_command",
    "create_dry_client_instance",
    "create_dry_client_node",
    "create_dry_client_pack",
    "create_helpers",
    "create_instance",
    "create_machine",
    "create_machine_contract",
    "create_node",
    "create_pack",
    "create_standard_executor",
    "create_suspend_info",
    "create_transition",
    "create_worker_node",
    "deep_merge",
    "describe",
    "deserialize_instance",
    "deserialize_machine",
    "deserialize_node",
    "digest_of",
    "ephemeral_message",
    "escape_schema_keys",
    "find_command",
    "find_instance",
    "from_safe_json_schema",
    "generate_tool_definitions",
    "get_available_commands",
    "get_message_text",
    "hydrate_client_instance",
    "hydrate_client_node",
    "hydrate_client_pack",
    "instance_message",
    "instance_path",
    "is_command",
    "is_conversation_message",
    "is_ephemeral_message",
    "is_instance_message",
    "is_model_message",
    "is_ref",
    "is_resume",
    "machine_node",
    "machine_tool",
    "message_data",
    "message_from_data",
    "open_machine",
    "perform_command",
    "replayed",
    "resolve_node_ref",
    "restore_schema_keys",
    "resume_item",
    "run_call",
    "run_command",
    "run_machine",
    "run_machine_sync",
    "run_machine_to_completion",
    "run_tool_pipeline",
    "serialize_instance",
    "serialize_instance_for_display",
    "serialize_machine",
    "serialize_node",
    "serialize_node_for_display",
    "serialize_pack",
    "serialize_pack_for_display",
    "shallow_merge",
    "spawn",
    "start_tree",
    "suspend",
    "suspended_instances",
    "system_message",
    "system_prompt",
    "to_safe_json_schema",
    "tool",
    "tool_reply",
    "tool_result",
    "transition",
    "transition_has_arguments",
    "transition_to",
    "tree_machine",
    "user_message",
]


def __getattr__(name: str) -> Any:
    if name == "Machine":  # `flat.Machine` is a machine of either kind, ready to run; here it is a session
        return importlib.import_module("flat.runtime.trees").TreeMachine
    try:
        home = _HOME_OF[name]
    except KeyError:
        raise AttributeError(f"module 'flat.tree' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
