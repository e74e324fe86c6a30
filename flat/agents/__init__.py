"""Agents: what answers a request. `build_agent` makes one from config; the protocol may also be met by hand.

Importing this package does not import litellm: the first call does, or `prefetch()` ahead of it.
"""

from flat.agents.bundle import (
    ModelAgent,
    build_agent,
    check_agent,
    missing_environment,
    required_environment,
)
from flat.agents.litellm import LiteLLMClient
from flat.agents.llm_thread import aclose, close, prefetch
from flat.agents.profiles import Catalogue, read_catalogue, resolve_profile
from flat.agents.protocol import Agent, AgentRequest, AgentResult, Usage

__all__ = [
    "Agent",
    "AgentRequest",
    "AgentResult",
    "Catalogue",
    "LiteLLMClient",
    "ModelAgent",
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
