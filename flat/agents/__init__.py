"""Agents: what answers a request. `build_agent` makes one from config; the protocol may also be met by hand.

Importing this package imports neither litellm (the first call does, or `prefetch()` ahead of it) nor pydantic
(building an agent does): names are resolved when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flat.agents.protocol import Agent, AgentRequest, AgentResult, Usage

if TYPE_CHECKING:
    from flat.agents.bundle import build_agent, check_agent, missing_environment, required_environment
    from flat.agents.litellm import LiteLLMClient
    from flat.agents.llm_thread import aclose, close, prefetch
    from flat.agents.mcp import MCPToolProvider
    from flat.agents.model_agent import ModelAgent
    from flat.agents.profiles import Catalogue, read_catalogue, resolve_profile
    from flat.agents.tool_loop import (
        AggregateUsage,
        Guardrails,
        SteeringProvider,
        StopReason,
        ToolLoopAgent,
        ToolLoopResult,
    )
    from flat.agents.tools import SimpleToolProvider, Tool, ToolProvider, ToolResult

_HOMES = {
    "bundle": "build_agent check_agent missing_environment required_environment",
    "litellm": "LiteLLMClient",
    "llm_thread": "aclose close prefetch",
    "mcp": "MCPToolProvider",
    "model_agent": "ModelAgent",
    "profiles": "Catalogue read_catalogue resolve_profile",
    "tool_loop": "AggregateUsage Guardrails SteeringProvider StopReason ToolLoopAgent ToolLoopResult",
    "tools": "SimpleToolProvider Tool ToolProvider ToolResult",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}

__all__ = [
    "Agent",
    "AgentRequest",
    "AgentResult",
    "AggregateUsage",
    "Catalogue",
    "Guardrails",
    "LiteLLMClient",
    "MCPToolProvider",
    "ModelAgent",
    "SimpleToolProvider",
    "SteeringProvider",
    "StopReason",
    "Tool",
    "ToolLoopAgent",
    "ToolLoopResult",
    "ToolProvider",
    "ToolResult",
    "Usage",
    "aclose",
    "build_agent",
    "check_agent",
    "close",
    "missing_environment",
    "prefetch",
    "read_catalogue",
    "required_environment",
    "resolve_profile",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'flat.agents' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"flat.agents.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
