"""`ModelAgent`: renders its prompts, asks its model, and checks the answer. It keeps no conversation."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from flat.agents.mcp import McpTools
from flat.agents.output import OutputSchema, extract_json
from flat.agents.prompts import Prompts
from flat.agents.protocol import AgentRequest, AgentResult, Message, Usage, add_usage
from flat.agents.tools import Definition, ToolResult, merged, tool_name
from flat.errors import AgentFailed

log = logging.getLogger("flat.agents")

REPAIRS = 2
"""How often a model may put an answer right that does not fit its schema, unless the agent says otherwise."""

_SHOWN = 400
_REPAIR = (
    "Your answer cannot be used: {problems}.\n"
    "Answer again, with nothing but one JSON object that fits this schema:\n{schema}"
)


class Client(Protocol):
    """What sends messages to one model. `litellm.LiteLLMClient` is the usual one."""

    @property
    def model(self) -> str: ...

    @property
    def timeout(self) -> float: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    async def complete(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Definition] | None = None,
        response_format: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        on_token: Any = None,
        idempotency_key: str = "",
        session_id: str | None = None,
    ) -> AgentResult: ...


class ModelAgent:
    """An agent on a language model. `build_agent` makes one from its config."""

    def __init__(
        self,
        *,
        name: str,
        prompts: Prompts,
        client: Client,
        output: OutputSchema | None = None,
        repairs: int = REPAIRS,
        tools: Sequence[Definition] = (),
        mcp: McpTools | None = None,
        metadata: Mapping[str, Any] | None = None,
        compat: bool = False,
    ) -> None:
        """With `compat`, an answer that fits no schema is an output all the same: what JSON there is in it, or
        `{"_raw": text}`."""
        self.name = name
        self.metadata = dict(metadata or {})
        self.tools: tuple[Definition, ...] = tuple(tools)
        """The function tools of its config. Those of MCP servers are known by asking: `tool_definitions`."""
        self.mcp = mcp
        self.client = client
        self._prompts, self._output, self._repairs, self._compat = prompts, output, repairs, compat

    @property
    def model(self) -> str:
        """The full name of the model it asks."""
        return self.client.model

    async def tool_definitions(self) -> tuple[Definition, ...]:
        """All tools it may use by itself: those of its config, then those of its MCP servers."""
        return merged(self.tools, await self.mcp.definitions()) if self.mcp else self.tools

    async def execute_tool(self, name: str, tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Carry out a tool of its MCP servers; the functions of its config are for the caller to carry out."""
        if self.mcp is None:
            return ToolResult(f"Unknown tool: {name}", is_error=True)
        return await self.mcp.execute_tool(name, tool_call_id, arguments)

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        seen, told, tools = await self._tools_of(request)
        messages, rendered = self._prompts.messages(request, seen, told)
        if self._output is None or tools:
            result = await self._ask(request, messages, tools, request.timeout)
        else:
            result = await self._structured(request, messages, self._output)
        return replace(
            result,
            rendered_user_prompt=rendered,
            metadata=self.metadata,
            tool_calls=tuple(self._with_server(call) for call in result.tool_calls),
        )

    async def _tools_of(self, request: AgentRequest) -> tuple[Sequence[Any], str, Sequence[Definition]]:
        """What prompts see as `tools` and `tools_prompt`, and what is offered to the model.

        Tools that the caller offers are all there are, and prompts are told of none then.
        """
        if request.tools is not None:
            return (), "", request.tools
        if self.mcp is None:
            return (), "", self.tools
        return await self.mcp.tools(), await self.mcp.prompt(), await self.tool_definitions()

    def _with_server(self, call: Mapping[str, Any]) -> Mapping[str, Any]:
        server = self.mcp.server_of(call["name"]) if self.mcp else None
        own = server is None or any(tool_name(tool) == call["name"] for tool in self.tools)
        return call if own else {**call, "server": server}

    async def _ask(
        self,
        request: AgentRequest,
        messages: Sequence[Message],
        tools: Sequence[Definition],
        timeout: float | None,
        turn: int = 0,
    ) -> AgentResult:
        key = request.idempotency_key
        return await self.client.complete(
            messages,
            tools=tools,
            response_format=self._output.response_format() if self._output and not tools else None,
            timeout=timeout,
            on_token=request.on_token,
            idempotency_key=f"{key}/repair/{turn}" if key and turn else key,
            session_id=request.session_id,
        )

    async def _structured(
        self, request: AgentRequest, messages: Sequence[Message], schema: OutputSchema
    ) -> AgentResult:
        """Ask, and let the model put its answer right a few times; what all turns spent is summed."""
        seconds = min(self.client.timeout, math.inf if request.timeout is None else request.timeout)
        deadline, spent = time.monotonic() + seconds, Usage()
        for turn in range(1 + self._repairs):
            try:
                left = seconds if turn == 0 else deadline - time.monotonic()
                result = await self._ask(request, messages, (), left, turn)
            except AgentFailed as failure:
                failure.usage = spent if turn else failure.usage
                raise
            spent = add_usage(spent, result.usage) if turn else result.usage
            value, problems = schema.read(result.content)
            if not problems:
                return replace(result, output=value, usage=spent)
            if result.finish_reason in ("length", "content_filter"):
                break
            messages = [*messages, *_repair_turn(result.content, problems, schema)]
        if self._compat:
            log.warning("agent %s: %s", self.name, "; ".join(problems))
            return replace(result, output=_as_it_is(result.content), usage=spent)
        raise self._invalid(result, problems, spent)

    def _invalid(self, result: AgentResult, problems: Sequence[str], spent: Usage) -> AgentFailed:
        answer = result.content or ""
        shown = answer if len(answer) <= _SHOWN else f"{answer[:_SHOWN]}…"
        filtered, cut = result.finish_reason == "content_filter", result.finish_reason == "length"
        return AgentFailed(
            f'agent "{self.name}" ({self.model}): the answer does not fit its output schema: '
            f"{'; '.join(problems)}. The answer was: {shown!r}",
            code="content_filter" if filtered else "invalid_output",
            retryable=not filtered,
            hint="the answer was cut off at its token limit: raise `max_tokens`" if cut else "",
            rate_limit=result.rate_limit,
            usage=spent,
        )


def _repair_turn(content: str | None, problems: Sequence[str], schema: OutputSchema) -> list[Message]:
    wanted = json.dumps(schema.json_schema, ensure_ascii=False)
    asked = {"role": "user", "content": _REPAIR.format(problems="; ".join(problems), schema=wanted)}
    # Some providers refuse an empty assistant message.
    return [{"role": "assistant", "content": content}, asked] if content else [asked]


def _as_it_is(content: str | None) -> Any:
    """What an answer comes to when nobody checks it against its schema."""
    if not content:
        return None
    found = extract_json(content)
    return found[0] if found else {"_raw": content}
