"""`FlatAgent`: one agent by its file, called directly. The seed system's own way of putting it.

agent = FlatAgent(config_file="config/tagger.yml")
response = await agent.call(text="I want my money back")
print(response.output or response.content)
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio

from flat.agents.bundle import build_agent
from flat.agents.external_agent import ExternalAgent
from flat.agents.mcp import MCPToolProvider
from flat.agents.protocol import AgentRequest, AgentResult, Message, Usage
from flat.agents.response import AgentResponse, failed_response, response_of
from flat.errors import AgentFailed, DefinitionError
from flat.runtime.agent_files import AgentFiles, InvalidAgent

OVERRIDES = (
    "temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed", "base_url",
    "stream", "stream_options", "timeout", "api_key", "token", "token_command",
)  # fmt: skip
"""Constructor keywords that beat every configuration; `model` does too, as a full name."""


class FlatAgent:
    """One agent, from a file or a mapping. It keeps no conversation; failures of a call are in its response."""

    def __init__(
        self,
        config_file: str | Path | None = None,
        config_dict: Mapping[str, Any] | None = None,
        tool_provider: MCPToolProvider | None = None,
        backend: str | None = None,
        profiles_file: str | Path | None = None,
        profiles_dict: Mapping[str, Any] | None = None,
        *,
        config_dir: str | Path | None = None,
        compat: bool = False,
        **overrides: Any,
    ) -> None:
        """Load, resolve and compile. Raises `FileNotFoundError`, or `InvalidAgent` (a `ValueError`).

        `profiles_dict` counts when there is neither a `profiles_file` nor a `profiles.yml` beside the agent.
        `compat` lets pass with a warning what the seed system lets pass. Model settings among the keywords
        (`model`, `temperature`, …) beat every profile, and None takes a setting away; other keywords are
        ignored with `compat`, and refused without.
        """
        files = AgentFiles.find(config_file, config_dict, config_dir, compat=compat)
        self.config: Mapping[str, Any] = files.config
        self.config_dir = files.directory
        self.spec_version = str(self.config.get("spec_version") or "")
        self.metadata: dict[str, Any] = dict(self.config.get("metadata") or {})
        for warning in files.warnings:
            warnings.warn(warning, stacklevel=2)
        self._data = files.resolved
        self._catalogue = files.catalogue(profiles_file, profiles_dict)
        self._compat = compat
        settings = _overrides(overrides, backend, compat)
        try:
            self.agent = build_agent(
                {"spec": "flatagent", "data": files.resolved, "metadata": self.metadata},
                catalogue=self._catalogue,
                locate=files.locate,
                overrides=settings,
                directory=files.directory,
                tool_provider=tool_provider,
                compat=compat,
            )
        except DefinitionError as error:
            raise InvalidAgent(str(error)) from error
        self.on_token: Callable[[str], None] | None = None
        """Set it to be told of each piece of text while it arrives."""
        self.total_cost = 0.0
        self.total_api_calls = 0

    async def call(
        self,
        tool_provider: MCPToolProvider | None = None,
        messages: Sequence[Message] | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        context: Mapping[str, Any] | None = None,
        session_id: str | None = None,
        **inputs: Any,
    ) -> AgentResponse:
        """Answer once. Inputs are what prompts see as `input`.

        `messages` is a conversation to go on with, without system prompt; it is not changed. `tools` takes the
        place of the agent's own. Nothing is executed: what the model wants to call is in `tool_calls`.
        """
        if tool_provider is not None:
            self.set_tool_provider(tool_provider)
        request = AgentRequest(
            input=inputs,
            context=context or {},
            messages=messages,
            new_turn=bool(inputs) if messages else None,
            tools=tools,
            session_id=session_id,
            on_token=self.on_token,
        )
        try:
            with self._watched() as metrics:
                result = await self.agent.call(request)
                metrics.update(_figures(result))
        except AgentFailed as failure:
            if isinstance(failure.usage, Usage):
                self.count(failure.usage)
            return failed_response(failure)
        self.count(result.usage)
        return self._response(result, unasked=messages is not None and not inputs)

    def call_sync(self, *args: Any, **kwargs: Any) -> AgentResponse:
        """`call` for code that is not async; outside of a running event loop."""

        async def call() -> AgentResponse:
            return await self.call(*args, **kwargs)

        return anyio.run(call)

    def set_tool_provider(self, provider: MCPToolProvider | None) -> None:
        """Ask this provider for MCP tools from now on; None: the built-in client."""
        if not isinstance(self.agent, ExternalAgent) and self.agent.mcp is not None:
            self.agent.mcp.use(provider)

    def _response(self, result: AgentResult, unasked: bool) -> AgentResponse:
        response = response_of(result, external=isinstance(self.agent, ExternalAgent))
        if unasked and not isinstance(self.agent, ExternalAgent):
            response.rendered_user_prompt = None
        return response

    @contextmanager
    def _watched(self) -> Iterator[dict[str, Any]]:
        """Figures for OpenTelemetry, in a program that has loaded it; nothing is imported for their sake."""
        if "opentelemetry.metrics" not in sys.modules:
            yield {}
            return
        from flat.runtime.compat.monitoring import AgentMonitor

        kind = {"adapter": self.agent.kind} if isinstance(self.agent, ExternalAgent) else {}
        if not kind:
            kind = {"model": self.agent.model, "backend": str(self._setting("backend") or "litellm")}
        with AgentMonitor(self.agent_name, kind) as monitor:
            yield monitor.metrics

    def count(self, usage: Usage) -> None:
        """Add a call to the totals; for those who ask `agent.agent` themselves."""
        self.total_api_calls += usage.api_calls
        self.total_cost += usage.cost or 0.0

    @property
    def agent_name(self) -> str:
        return self.agent.name

    @property
    def model(self) -> str:
        """The full name of the model."""
        return self.agent.model

    @property
    def tools(self) -> list[Mapping[str, Any]]:
        """The function tools of the config."""
        return list(self.agent.tools)

    @property
    def output_schema(self) -> Any:
        return self._prompt_part("output")

    @property
    def mcp_config(self) -> Any:
        return self._prompt_part("mcp")

    def _prompt_part(self, key: str) -> Any:
        prompt = self._data.get("prompt", self._data)
        return prompt.get("data", prompt).get(key)

    def __getattr__(self, name: str) -> Any:
        """The effective model settings: `agent.temperature`, `agent.base_url`, …"""
        agent = self.__dict__.get("agent")
        if agent is None or name not in OVERRIDES[:10]:
            raise AttributeError(f"FlatAgent has no attribute {name!r}")
        value = self._setting(name)
        return bool(value) if name == "stream" else value

    def _setting(self, name: str) -> Any:
        return None if isinstance(self.agent, ExternalAgent) else self.agent.client.settings.get(name)


def _figures(result: AgentResult) -> dict[str, Any]:
    """What a result tells for meters."""
    usage, figures = result.usage, {}
    for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost"):
        figures[name] = getattr(usage, name)
    figures["tokens"] = usage.input_tokens + usage.output_tokens
    for window in (result.rate_limit or {}).get("windows") or ():
        for kind in ("remaining", "limit"):
            if window["name"] in ("requests", "tokens") and kind in window:
                figures[f"ratelimit_{kind}_{window['name']}"] = window[kind]
    return figures


def _overrides(given: Mapping[str, Any], backend: str | None, compat: bool) -> dict[str, Any]:
    settings = {name: given[name] for name in OVERRIDES if name in given}
    if "model" in given:
        settings |= {"name": given["model"], "provider": None}
    if backend is not None:
        if not isinstance(backend, str):
            raise InvalidAgent(
                "FlatAgent(backend=…) takes the name of a backend; to use a client of your own, "
                "write an agent: anything with `async def call(request) -> AgentResult`"
            )
        settings["backend"] = backend
    unknown = [name for name in given if name not in (*OVERRIDES, "model")]
    if unknown and not compat:
        raise TypeError(f"FlatAgent got an unexpected keyword argument {unknown[0]!r}")
    return settings
