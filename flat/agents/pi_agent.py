"""Agents written in JavaScript for pi: a Node process per turn, one JSON document in and one out.

    coder: {type: pi-agent, ref: "./agent.mjs#buildAgent", config: {agent_config: {model: …}}}

The bundled `pi_runner.mjs` imports the module and prompts the agent it builds; `runner` names another script.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import AliasChoices, Field

from flat.agents.process import Command, CommandTimeout, Ended, run
from flat.agents.protocol import AgentRequest, AgentResult, Usage
from flat.agents.turns import (
    Failing,
    Settings,
    existing_file,
    read_settings,
    refuse_tools,
    shorter,
    verdict,
    without_secrets,
)
from flat.errors import AgentFailed, SpecError

INSTALL = "install Node.js (https://nodejs.org), or set `node`"
RUNNER = Path(__file__).with_name("pi_runner.mjs")

_COUNTS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


class PiAgentSettings(Settings):
    """The keys of a `pi-agent` agent."""

    runner: str = ""
    node: str = "node"
    cwd: str = ""
    env: dict[str, str] = Field(default_factory=dict)
    timeout: float = 0
    agent_config: dict[str, Any] = Field(
        default_factory=dict, validation_alias=AliasChoices("agent_config", "config")
    )


class PiAgent:
    """One agent of a JavaScript module."""

    def __init__(self, config: Mapping[str, Any], directory: Path, *, name: str = "pi-agent") -> None:
        ref = config.get("ref")
        if not ref or not isinstance(ref, str):
            raise SpecError(
                f'agent "{name}" (pi-agent): `ref` is missing; it names a module, as in "./agent.mjs#buildAgent"'
            )
        self.name, self.ref, self.config, self.directory = name, ref, dict(config), directory
        read_settings(PiAgentSettings, config, name, "pi-agent")
        self.fail = Failing(name, "pi-agent", self.config)

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        refuse_tools(request, self.fail)
        settings = read_settings(PiAgentSettings, without_secrets(self.config), self.name, "pi-agent")
        lines: list[bytes] = []
        try:
            ended = await run(self._command(settings, request), lines.append)
        except CommandTimeout as error:
            raise self.fail.timeout(error, usage=Usage(api_calls=1)) from None
        except AgentFailed as error:
            raise self.fail.named(error) from None
        result = _result(self._answer(b"\n".join(lines), ended))
        if request.on_token is not None and result.content:
            request.on_token(result.content)
        return result

    def _command(self, settings: PiAgentSettings, request: AgentRequest) -> Command:
        runner = (
            existing_file(settings.runner, self.directory, "runner", self.fail) if settings.runner else RUNNER
        )
        context = {key: value for key, value in request.context.items() if key != "machine"}
        document = {
            "ref": self.ref,
            "config": settings.agent_config,
            "input": dict(request.input),
            "context": context,
        }
        return Command(
            arguments=[settings.node, str(runner)],
            directory=self.directory / Path(settings.cwd).expanduser() if settings.cwd else self.directory,
            environment=settings.env,
            stdin=json.dumps(document, default=str).encode(),
            timeout=shorter(settings.timeout, request.timeout),
            install=INSTALL,
        )

    def _answer(self, printed: bytes, ended: Ended) -> Mapping[str, Any]:
        if ended.status:
            raise self.fail(
                ended.words, type="RuntimeError", usage=Usage(api_calls=1), **verdict(ended.stderr)
            )
        if not printed.strip():
            return {}
        try:
            answer = json.loads(printed)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            shown = printed[:400].decode(errors="replace")
            raise self.fail(
                f"it printed no JSON object but: {shown}", type="ValueError", usage=Usage(api_calls=1)
            )
        return answer


def _result(answer: Mapping[str, Any]) -> AgentResult:
    content, output, metadata = answer.get("content"), answer.get("output"), answer.get("metadata")
    text = content if content is None or isinstance(content, str) else json.dumps(content)
    if output is None and text is not None:
        output = {"content": text}
    return AgentResult(
        output=output,
        content=text,
        usage=_usage(answer.get("usage"), answer.get("cost")),
        metadata=dict(metadata) if isinstance(metadata, Mapping) else {},
        raw=answer.get("raw"),
    )


def _usage(told: Any, cost: Any) -> Usage:
    facts = told if isinstance(told, Mapping) else {}
    total = cost.get("total") if isinstance(cost, Mapping) else cost
    known = isinstance(total, int | float) and not isinstance(total, bool)
    counts = {k: int(facts[k]) for k in _COUNTS if isinstance(facts.get(k), int | float)}
    calls = facts.get("api_calls")
    return Usage(
        **counts,
        api_calls=int(calls) if isinstance(calls, int) else 1,
        cost=float(total) if known and total is not None else None,
        cost_source="provider" if known else "unknown",
    )
