"""What a model needs before a call: keys, base URLs, secrets from the environment; and what is free.

Works on model settings alone, without litellm, so that a pre-flight check costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from flat.agents.profiles import model_name
from flat.errors import AgentFailed

# One tuple per thing needed; its members are alternatives. Providers that are not listed are left to litellm.
_KEYS: dict[str, tuple[tuple[str, ...], ...]] = {
    "openai": (("OPENAI_API_KEY",),),
    "anthropic": (("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),),
    "gemini": (("GEMINI_API_KEY", "GOOGLE_API_KEY"),),
    "azure": (("AZURE_API_KEY", "AZURE_AD_TOKEN"), ("AZURE_API_BASE",)),
    "cerebras": (("CEREBRAS_API_KEY",),),
    "cohere": (("COHERE_API_KEY", "CO_API_KEY"),),
    "deepseek": (("DEEPSEEK_API_KEY",),),
    "fireworks_ai": (
        ("FIREWORKS_API_KEY", "FIREWORKS_AI_API_KEY", "FIREWORKSAI_API_KEY", "FIREWORKS_AI_TOKEN"),
    ),
    "groq": (("GROQ_API_KEY",),),
    "mistral": (("MISTRAL_API_KEY",),),
    "openrouter": (("OPENROUTER_API_KEY", "OR_API_KEY"),),
    "perplexity": (("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),),
    "together_ai": (("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY", "TOGETHER_AI_TOKEN"),),
    "xai": (("XAI_API_KEY",),),
}
_BASE_URLS = {
    "openai": ("OPENAI_BASE_URL", "OPENAI_API_BASE"),
    "anthropic": ("ANTHROPIC_API_BASE", "ANTHROPIC_BASE_URL"),
}
_OWN_MACHINE = ("local", "ollama", "ollama_chat", "lm_studio", "llamafile")
_FAMILIES = {"openai": re.compile(r"(gpt-|o[134](-|$)|chatgpt-)"), "anthropic": re.compile(r"claude-")}
_SECRET = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")
_PLACEHOLDER = "none"
_SUBSCRIPTIONS = ("codex", "copilot")
_KEY_SETTINGS = ("api_key", "token", "token_command")


def provider(config: Mapping[str, Any]) -> str | None:
    """The provider that these settings lead to, as far as the name tells."""
    if config.get("provider"):
        return str(config["provider"])
    name = model_name(config) or ""
    if "/" in name:
        return name.split("/", 1)[0]
    return next((p for p, family in _FAMILIES.items() if family.match(name)), None)


def base_url(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> str | None:
    """Where the model is, if settings or environment say so."""
    told = config.get("base_url") or config.get("api_base")
    if told:
        return str(resolve_secrets(told, environ))
    return next((environ[v] for v in _BASE_URLS.get(provider(config) or "", ()) if environ.get(v)), None)


def is_loopback(url: str | None) -> bool:
    """Whether the URL leads to this machine."""
    host = (urlsplit(url).hostname or "") if url else ""
    return host in ("localhost", "::1", "0.0.0.0") or host.startswith("127.")


def is_embedded(config: Mapping[str, Any]) -> bool:
    """Whether the model is the small one that `local` runs in a process beside this one."""
    return config.get("provider") == "local" and not config.get("base_url")


def is_free(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether calls cost nothing: the model runs on this machine, or its settings give a price of zero."""
    prices = (config.get("input_cost_per_token"), config.get("output_cost_per_token"))
    return prices == (0, 0) or provider(config) in _OWN_MACHINE or is_loopback(base_url(config, environ))


def needed_variables(
    config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> list[tuple[str, ...]]:
    """The environment variables these settings need; of each tuple, one is enough."""
    named = [(match,) for value in config.values() for match in _references(value)]
    told = any(config.get(key) for key in _KEY_SETTINGS)
    # Subscriptions have credentials of their own, of which `subscription` knows.
    key_is_told = told or config.get("backend") in _SUBSCRIPTIONS or is_loopback(base_url(config, environ))
    by_table = () if key_is_told else _KEYS.get(provider(config) or "", ())
    told_base = bool(config.get("base_url") or config.get("api_base"))
    return named + [names for names in by_table if not (told_base and names[0].endswith("_BASE"))]


def missing_variables(
    config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
) -> list[tuple[str, ...]]:
    """Those of the needed variables that are not set."""
    return [names for names in needed_variables(config, environ) if not any(environ.get(n) for n in names)]


def require_credentials(config: Mapping[str, Any], agent: str) -> None:
    """Raise `AgentFailed` that names the variables to set, when some are missing."""
    missing = missing_variables(config)
    if not missing:
        return
    wanted = " and ".join(" or ".join(names) for names in missing)
    raise AgentFailed(
        f'agent "{agent}" cannot call {model_name(config)}: {wanted} is not set',
        code="auth_error",
        hint=f"export {missing[0][0]}=…, or give the profile an `api_key: ${{env:NAME}}`",
    )


def placeholder_key(config: Mapping[str, Any]) -> str | None:
    """A key for a server on this machine that asks for none: clients insist on sending one."""
    names = _KEYS.get(provider(config) or "", ())
    has_key = (
        config.get("api_key")
        or config.get("token_command")
        or config.get("token")
        or any(os.environ.get(n) for alternatives in names for n in alternatives)
    )
    return _PLACEHOLDER if is_loopback(base_url(config)) and not has_key else None


def resolve_secrets(value: Any, environ: Mapping[str, str] = os.environ) -> Any:
    """The value with every `${env:NAME}` in its texts replaced; an unset variable gives nothing."""
    if isinstance(value, str):
        return _SECRET.sub(lambda m: environ.get(m[1], ""), value)
    if isinstance(value, Mapping):
        return {k: resolve_secrets(v, environ) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve_secrets(v, environ) for v in value]
    return value


def secrets_of(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """What must never be shown of a call: its key, wherever it came from, and every other key that is set."""
    known = [n for needed in _KEYS.values() for names in needed for n in names if not n.endswith("_BASE")]
    named = [name for value in config.values() for name in _references(value)]
    told = {
        resolve_secrets(config.get("api_key") or "", environ),
        *(environ.get(n, "") for n in known + named),
    }
    return tuple(sorted((secret for secret in told if len(secret) >= 8), key=len, reverse=True))


def _references(value: Any) -> list[str]:
    if isinstance(value, str):
        return _SECRET.findall(value)
    if isinstance(value, Mapping):
        return [name for inner in value.values() for name in _references(inner)]
    return [name for inner in value for name in _references(inner)] if isinstance(value, list) else []
