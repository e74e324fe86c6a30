"""Agents as they are written in files: prompts, a model profile, an output schema.

Two shapes are understood: `model`/`system`/`user` in one place, and `prompt` + `profile`. Files are found and
read by the loader; what comes here are mappings, with a `prompt:` path replaced by what it names.

    agent = build_agent({"model": "cheap", "user": "Tag: {{ input.text }}"}, catalogue=profiles)
    result = await agent.call(AgentRequest(input={"text": "…"}))
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flat.agents.credentials import is_embedded, missing_variables, needed_variables
from flat.agents.external_agent import ExternalAgent
from flat.agents.litellm import LiteLLMClient
from flat.agents.mcp import MCPToolProvider, McpTools, serves_mcp
from flat.agents.model_agent import REPAIRS, Client, ModelAgent
from flat.agents.output import OutputSchema
from flat.agents.profiles import Catalogue, check_catalogue, read_catalogue, resolve_profile
from flat.agents.prompts import Locate, Prompts
from flat.agents.protocol import add_usage as add_usage
from flat.agents.tools import check_definitions
from flat.errors import DefinitionError, SpecError

_SCOPE_KEYS = (
    "name", "temperature", "max_tokens", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed",
    "base_url",
)  # fmt: skip

_TASK = "{{ input.task if 'task' in input else input.prompt }}"
_MOST_REPAIRS = 10
_HIDDEN = ("api_key", "token", "token_command", "oauth")

Config = Mapping[str, Any]


def build_agent(
    config: Config,
    *,
    catalogue: Config | Catalogue | None = None,
    name: str = "",
    locate: Locate | None = None,
    overrides: Config | None = None,
    directory: Path | str | None = None,
    tool_provider: MCPToolProvider | None = None,
    compat: bool = False,
) -> ModelAgent | ExternalAgent:
    """The agent that a config describes.

    `catalogue` is a parsed profile file. `overrides` are model settings that win over every profile.
    `locate` tells where a key of the prompt is written. Files that settings name are relative to `directory`.
    `tool_provider` is asked in place of the built-in MCP client. With `compat` an unknown profile name falls
    back to the default profile, what is undefined in a prompt renders as nothing, and an answer that does not
    fit its output schema is an output all the same.
    Raises `DefinitionError`; needs no litellm and no keys yet.
    """
    data, metadata = _unwrap(config, name)
    prompt = _prompt(data, name)
    known = name or str(prompt.get("name") or data.get("name") or metadata.get("name") or "unnamed-agent")
    settings = {**_settings(data, catalogue, known, compat), **(overrides or {})}
    if settings.get("type"):
        return ExternalAgent(
            settings,
            Path.cwd() if directory is None else Path(directory),
            name=known,
            prompts=Prompts(prompt, _scope(settings), locate, compat=compat),
            has_output=bool(prompt.get("output")),
            metadata=metadata,
        )
    client = _client(settings, known, directory)
    mcp = None
    if prompt.get("mcp"):
        provider = tool_provider if serves_mcp(tool_provider) else None
        mcp = McpTools(prompt["mcp"], known, locate=locate, compat=compat, provider=provider)
    return ModelAgent(
        name=known,
        prompts=Prompts(prompt, _scope(client.settings, client.model), locate, compat=compat),
        client=client,
        output=_output(prompt, known, client),
        repairs=_repairs(prompt, known, locate),
        tools=check_definitions(prompt.get("tools"), f'agent "{known}"'),
        mcp=mcp,
        metadata=metadata,
        compat=compat,
    )


def _client(settings: Config, name: str, directory: Path | str | None) -> Client:
    backend = settings.get("backend")
    if backend in ("codex", "copilot"):
        from flat.agents.subscription import SubscriptionClient

        return SubscriptionClient(settings, name=name, directory=directory)
    return LiteLLMClient(settings, name=name)


def _output(prompt: Config, name: str, client: Client) -> OutputSchema | None:
    if not prompt.get("output"):
        return None
    return OutputSchema(prompt["output"], name, grammar=is_embedded(client.settings))


def _repairs(prompt: Config, name: str, locate: Locate | None) -> int:
    told = prompt.get("output_repairs")
    if told is None:
        return REPAIRS
    if not isinstance(told, int) or isinstance(told, bool) or not 0 <= told <= _MOST_REPAIRS:
        raise SpecError(
            f'agent "{name}": `output_repairs` is {told!r}; give a whole number from 0 to {_MOST_REPAIRS}',
            _at(locate, "output_repairs"),
        )
    return told


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


def _model_settings(
    config: Config, catalogue: Config | Catalogue | None, name: str, overrides: Config | None
) -> dict[str, Any]:
    data, _metadata = _unwrap(config, name)
    return {**_settings(data, catalogue, name, False), **(overrides or {})}


def _unwrap(config: Config, name: str) -> tuple[Config, Config]:
    """`data` and `metadata` of an agent file, an inline agent, or a typed reference to one."""
    kind = config.get("type", "flatagent")
    if kind != "flatagent":
        return _typed(config), {}
    if "type" in config and isinstance(config.get("config"), Mapping):
        config = config["config"]
    if config.get("spec", "flatagent") != "flatagent":
        raise SpecError(f'agent "{name}": Invalid spec: expected "flatagent", got "{config["spec"]}"')
    metadata = config.get("metadata")
    data = config.get("data", config)
    if "spec" in config and not isinstance(data, Mapping):
        raise SpecError(f'agent "{name}": missing "data", a mapping')
    return data, metadata if isinstance(metadata, Mapping) else {}


def _typed(config: Config) -> Config:
    """A typed reference, as the bundle it stands for: its task is the prompt, itself the profile."""
    inner = config.get("config")
    options = dict(inner) if isinstance(inner, Mapping) else {}
    kept = {k: v for k, v in config.items() if k in ("type", "ref") and v is not None}
    # A catalogue of its own: what the project's profiles say of models does not concern another program.
    only = {"spec": "flatprofile", "data": {"model_profiles": {"typed": {**options, **kept}}}}
    return {"prompt": {"user": _TASK}, "profile": only}


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
    """The settings of a model, or of the program that runs one, resolved."""
    reference: Any = data.get("profile") if _is_bundle(data) else data.get("model")
    if _is_bundle(data) and not (reference and isinstance(reference, str | Mapping)):
        raise SpecError(f'agent "{name}": Invalid profile reference: {reference!r}')
    if isinstance(reference, Mapping) and "spec" in reference:
        settings = _only_profile(read_catalogue(reference), name)
    else:
        settings = resolve_profile(read_catalogue(catalogue), reference, compat=compat)
    return settings


def profile_settings(document: Config, name: str = "") -> dict[str, Any]:
    """What a catalogue means as a profile, all by itself."""
    return _only_profile(read_catalogue(document), name)


def _only_profile(inline: Catalogue, name: str) -> dict[str, Any]:
    """What an inline catalogue means as a profile: its override or default, or else its only entry."""
    if inline.override or inline.default:
        return resolve_profile(inline)
    if len(inline.profiles) != 1:
        raise SpecError(f'agent "{name}": its inline profiles need a "data.default" to say which one counts')
    return resolve_profile(inline, next(iter(inline.profiles)))


def _scope(settings: Config, name: str | None = None) -> dict[str, Any]:
    """What prompts see as `model`: the settings without secrets; the usual ones perhaps None."""
    shown = {k: v for k, v in settings.items() if k not in _HIDDEN}
    full = name or str(settings.get("model") or settings.get("ref") or settings.get("type"))
    return {**dict.fromkeys(_SCOPE_KEYS), **shown, "name": full}


def _at(locate: Locate | None, key: str) -> Any:
    return locate((key,)) if locate else None
