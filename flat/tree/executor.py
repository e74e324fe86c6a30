"""What a charter says about the model behind its nodes. The call itself is made by an agent adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from flat.tree.node import ExecutorConfig

DEFAULT_MODEL = "claude-sonnet-4-5"
DEFAULT_MAX_TOKENS = 4096


@runtime_checkable
class Executor(Protocol):
    """Anything that answers a request: the agent protocol of the engine, so that any agent can serve a tree."""

    async def call(self, request: Any) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class StandardExecutor:
    """Settings of the standard model call. A node's own settings go before these, one by one.

    `api_key` is never stored or shown; without one the provider's usual environment variable is read.
    """

    model: str = DEFAULT_MODEL
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float | None = None
    api_key: str | None = field(default=None, repr=False)
    provider: str | None = None
    base_url: str | None = None
    """Where the provider's interface is, when it is not where the provider has it."""
    timeout: float | None = None
    """Seconds for one model call."""
    retry: Mapping[str, Any] | None = None
    """Waits between attempts at a failed call: `backoffs` and `jitter`, as in a YAML machine."""
    debug: bool = False

    @property
    def config(self) -> ExecutorConfig:
        return ExecutorConfig(model=self.model, max_tokens=self.max_tokens, temperature=self.temperature)


def create_standard_executor(api_key: str | None = None, **settings: Any) -> StandardExecutor:
    """The settings of the standard model call."""
    return StandardExecutor(api_key=api_key, **settings)


def effective_config(executor: Any, node_config: ExecutorConfig | None) -> ExecutorConfig:
    """The model settings of one call: the node's where given, else the executor's."""
    default = executor.config if isinstance(executor, StandardExecutor) else ExecutorConfig()
    return node_config.over(default) if node_config is not None else default
