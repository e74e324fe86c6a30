"""Agents that another program runs, as bundles: a prompt that becomes the program's task, and its profile.

The programs' own adapters answer requests with an input `task`. Here that input is made from the prompt, unless
the request brings one of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flat.agents.output import extract_json
from flat.agents.prompts import Prompts
from flat.agents.protocol import AgentRequest, AgentResult
from flat.errors import SpecError, did_you_mean

_OWN_SYSTEM_PROMPT = ("claude-code",)
"""Kinds that add our system prompt to their own: `ask(request, system=…)`. The others read it in the task."""


class ExternalAgent:
    """An agent behind an adapter, with prompts in front of it."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        directory: Path,
        *,
        name: str,
        prompts: Prompts,
        has_output: bool = False,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        from flat.agents.adapters import FLATAGENT, AgentAdapterContext, AgentRef, default_registry

        kind, registry = str(settings["type"]), default_registry()
        if kind == FLATAGENT or not registry.makes(kind):
            known = ["llm", *(t for t in registry.types if t != FLATAGENT)]
            raise SpecError(
                f'agent "{name}": Unsupported runtime profile type "{kind}"; {did_you_mean(kind, known)}'
            )
        config = {k: v for k, v in settings.items() if k not in ("type", "ref")}
        context = AgentAdapterContext(config_dir=str(directory))
        self.adapter: Any = registry.make(name, AgentRef(kind, settings.get("ref"), config), context)
        self.name, self.kind = name, kind
        self.model = str(settings.get("model") or settings.get("ref") or kind)
        self.metadata = dict(metadata or {})
        self.tools: tuple[Mapping[str, Any], ...] = ()
        """Such an agent has tools of its own, of which we know nothing."""
        self._prompts, self._has_output = prompts, has_output

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        if request.tools or request.messages:
            return await self._answer(request, None)  # the adapter says why not
        system, user = self._prompts.texts(request)
        own = request.input.get("task")
        if own is not None and self.kind not in _OWN_SYSTEM_PROMPT:
            system = None
        if system and self.kind not in _OWN_SYSTEM_PROMPT:
            user, system = f"{system}\n\n{user}".strip(), None
        given = {"task": user, **{k: v for k, v in request.input.items() if v is not None}}
        result = await self._answer(replace(request, input=given), system)
        return replace(
            result,
            output=self._output(result),
            rendered_user_prompt=user,
            metadata={**self.metadata, **result.metadata},
        )

    async def _answer(self, request: AgentRequest, system: str | None) -> AgentResult:
        if system is not None:
            return await self.adapter.ask(request, system=system)  # type: ignore[no-any-return]
        return await self.adapter.call(request)  # type: ignore[no-any-return]

    def _output(self, result: AgentResult) -> Any:
        if result.output is not None or not self._has_output:
            return result.output
        found = extract_json(result.content or "")
        return found[0] if found else None
