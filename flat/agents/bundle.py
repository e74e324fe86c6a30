"""Agents as they are written in files: prompts, a model profile, an output schema.

Two shapes are understood: `model`/`system`/`user` in one place, and `prompt` + `profile`. Files are found and
read by the loader; what comes here are mappings, with a `prompt:` path replaced by what it names.

    agent = build_agent({"model": "cheap", "user": "Tag: {{ input.text }}"}, catalogue=profiles)
    result = await agent.call(AgentRequest(input={"text": "…"}))
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flat.agents.credentials import missing_variables, needed_variables
from flat.agents.litellm import LiteLLMClient
from flat.agents.output import OutputSchema
from flat.agents.profiles import Catalogue, check_catalogue, read_catalogue, resolve_profile
from flat.agents.prompts import Locate, Prompts
from flat.agents.protocol import AgentRequest, AgentResult, Message, Usage
from flat.errors import AgentFailed, DefinitionError, SpecError

_REPAIRS = 2
_SHOWN = 400
_REPAIR = (
    "Your answer cannot be used: {problems}.\n"
    "Answer again, with nothing but one JSON object that fits this schema:\n{schema}"
)
_SCOPE_KEYS = (
    "name", "temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed",
    "base_url",
)  # fmt: skip

Config = Mapping[str, Any]


class ModelAgent:
    """An agent that renders its prompts, asks its model, and checks the answer. It keeps no conversation."""

    def __init__(
        self,
        *,
        name: str,
        prompts: Prompts,
        client: LiteLLMClient,
        output: OutputSchema | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.metadata = dict(metadata or {})
        self._prompts, self._client, self._output, self._tools = prompts, client, output, tuple(tools)

    @property
    def model(self) -> str:
        """The full name of the model it asks."""
        return self._client.model

    async def call(self, request: AgentRequest) -> AgentResult:
        """Answer the request; see `flat.agents.protocol.Agent`."""
        messages, rendered = self._prompts.messages(request)
        tools = self._tools if request.tools is None else request.tools
        if self._output is None or tools:
            result = await self._ask(request, messages, tools, request.timeout)
        else:
            result = await self._structured(request, messages, self._output)
        return replace(result, rendered_user_prompt=rendered, metadata=self.metadata)

    async def _ask(
        self,
        request: AgentRequest,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]],
        timeout: float | None,
        turn: int = 0,
    ) -> AgentResult:
        key = request.idempotency_key
        return await self._client.complete(
            messages,
            tools=tools,
            response_format=self._output.response_format() if self._output and not tools else None,
            timeout=timeout,
            on_token=request.on_token,
            idempotency_key=f"{key}/repair/{turn}" if key and turn else key,
        )

    async def _structured(
        self, request: AgentRequest, messages: Sequence[Message], schema: OutputSchema
    ) -> AgentResult:
        """Ask, and let the model put its answer right a few times; what all turns spent is summed."""
        seconds = min(self._client.timeout, math.inf if request.timeout is None else request.timeout)
        deadline, spent = time.monotonic() + seconds, Usage()
        for turn in range(1 + _REPAIRS):
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


def build_agent(
    config: Config,
    *,
    catalogue: Config | Catalogue | None = None,
    name: str = "",
    locate: Locate | None = None,
    overrides: Config | None = None,
    compat: bool = False,
) -> ModelAgent:
    """The agent that a config describes.

    `catalogue` is a parsed profile file. `overrides` are model settings that win over every profile.
    `locate` tells where a key of the prompt is written. With `compat` an unknown profile name falls back
    to the default profile, and what is undefined in a prompt renders as nothing.
    Raises `DefinitionError`; needs no litellm and no keys yet.
    """
    data, metadata = _unwrap(config, name)
    prompt = _prompt(data, name)
    known = name or str(prompt.get("name") or data.get("name") or metadata.get("name") or "unnamed-agent")
    settings = {**_settings(data, catalogue, known, compat), **(overrides or {})}
    if prompt.get("mcp"):
        raise SpecError(f'agent "{known}": `mcp` is not available in this version', _at(locate, "mcp"))
    client = LiteLLMClient(settings, name=known)
    return ModelAgent(
        name=known,
        prompts=Prompts(prompt, _model_scope(client), locate, compat=compat),
        client=client,
        output=OutputSchema(prompt["output"], known) if prompt.get("output") else None,
        tools=prompt.get("tools") or (),
        metadata=metadata,
    )


def check_agent(
    config: Config, catalogue: Config | Catalogue | None = None, *, name: str = "", compat: bool = False
) -> list[str]:
    """What is wrong with a config, as sentences; nothing when it can be built. Looks at no environment."""
    found: list[str] = []
    try:
        found += check_catalogue(read_catalogue(catalogue))
        build_agent(config, catalogue=catalogue, name=name, compat=compat)
    except DefinitionError as error:
        found.append(str(error))
    return found


def required_environment(
    config: Config,
    catalogue: Config | Catalogue | None = None,
    *,
    name: str = "",
    overrides: Config | None = None,
) -> list[tuple[str, ...]]:
    """The environment variables an agent's model needs; one of each tuple is enough."""
    return needed_variables(_model_settings(config, catalogue, name, overrides))


def missing_environment(
    config: Config,
    catalogue: Config | Catalogue | None = None,
    *,
    name: str = "",
    overrides: Config | None = None,
) -> list[tuple[str, ...]]:
    """Those of the required variables that are not set."""
    return missing_variables(_model_settings(config, catalogue, name, overrides))


def model_settings(
    config: Config, catalogue: Config | Catalogue | None = None, *, name: str = ""
) -> dict[str, Any]:
    """The settings of an agent's model, with every profile resolved. Needs no keys."""
    return _model_settings(config, catalogue, name, None)


def add_usage(first: Usage, second: Usage) -> Usage:
    """The sum of two calls; its cost is known only if both are, and its source is the less certain one."""
    certainty = ("unknown", "estimate", "provider", "free")
    costs = (first.cost, second.cost)
    return Usage(
        input_tokens=first.input_tokens + second.input_tokens,
        output_tokens=first.output_tokens + second.output_tokens,
        cache_read_tokens=first.cache_read_tokens + second.cache_read_tokens,
        cache_write_tokens=first.cache_write_tokens + second.cache_write_tokens,
        api_calls=first.api_calls + second.api_calls,
        cost=None if None in costs else sum(c for c in costs if c is not None),
        cost_source=min(first.cost_source, second.cost_source, key=certainty.index),
    )


def _repair_turn(content: str | None, problems: Sequence[str], schema: OutputSchema) -> list[Message]:
    wanted = json.dumps(schema.json_schema, ensure_ascii=False)
    asked = {"role": "user", "content": _REPAIR.format(problems="; ".join(problems), schema=wanted)}
    # Some providers refuse an empty assistant message.
    return [{"role": "assistant", "content": content}, asked] if content else [asked]


def _model_settings(
    config: Config, catalogue: Config | Catalogue | None, name: str, overrides: Config | None
) -> dict[str, Any]:
    data, _metadata = _unwrap(config, name)
    return {**_settings(data, catalogue, name, False), **(overrides or {})}


def _unwrap(config: Config, name: str) -> tuple[Config, Config]:
    """`data` and `metadata` of an agent file, an inline agent, or a typed reference to one."""
    kind = config.get("type", "flatagent")
    if kind != "flatagent":
        raise SpecError(f'agent "{name}": agents of type "{kind}" are not available in this version')
    if "type" in config and isinstance(config.get("config"), Mapping):
        config = config["config"]
    if config.get("spec", "flatagent") != "flatagent":
        raise SpecError(f'agent "{name}": Invalid spec: expected "flatagent", got "{config["spec"]}"')
    metadata = config.get("metadata")
    data = config.get("data", config)
    if "spec" in config and not isinstance(data, Mapping):
        raise SpecError(f'agent "{name}": missing "data", a mapping')
    return data, metadata if isinstance(metadata, Mapping) else {}


def _is_bundle(data: Config) -> bool:
    return "prompt" in data or "profile" in data


def _prompt(data: Config, name: str) -> Config:
    """Where the prompt texts are: the agent's own data, or its prompt document with or without envelope."""
    if not _is_bundle(data):
        return data
    prompt = data.get("prompt")
    if not isinstance(prompt, Mapping):
        raise SpecError(f'agent "{name}": Invalid prompt reference: {prompt!r}')
    inner = prompt.get("data", prompt)
    if not isinstance(inner or {}, Mapping):
        raise SpecError(f'agent "{name}": Invalid prompt reference: its data is not a mapping')
    return inner or {}


def _settings(data: Config, catalogue: Config | Catalogue | None, name: str, compat: bool) -> dict[str, Any]:
    """The model settings, resolved; only settings of language models are understood."""
    reference: Any = data.get("profile") if _is_bundle(data) else data.get("model")
    if _is_bundle(data) and not (reference and isinstance(reference, str | Mapping)):
        raise SpecError(f'agent "{name}": Invalid profile reference: {reference!r}')
    if isinstance(reference, Mapping) and "spec" in reference:
        settings = _only_profile(read_catalogue(reference), name)
    else:
        settings = resolve_profile(read_catalogue(catalogue), reference, compat=compat)
    if settings.get("type"):
        kind = settings["type"]
        raise SpecError(f'agent "{name}": profiles of type "{kind}" are not available in this version')
    return settings


def _only_profile(inline: Catalogue, name: str) -> dict[str, Any]:
    """What an inline catalogue means as a profile: its override or default, or else its only entry."""
    if inline.override or inline.default:
        return resolve_profile(inline)
    if len(inline.profiles) != 1:
        raise SpecError(f'agent "{name}": its inline profiles need a "data.default" to say which one counts')
    return resolve_profile(inline, next(iter(inline.profiles)))


def _model_scope(client: LiteLLMClient) -> dict[str, Any]:
    """What prompts see as `model`: the settings without secrets; the usual ones perhaps None."""
    settings = {k: v for k, v in client.settings.items() if k != "api_key"}
    return {**dict.fromkeys(_SCOPE_KEYS), **settings, "name": client.model}


def _at(locate: Locate | None, key: str) -> Any:
    return locate((key,)) if locate else None
