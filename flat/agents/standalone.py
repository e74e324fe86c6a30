"""Model calls without an agent, and agents of many steps without a machine: small classes to build one's own on.

    class Counter(BaseFlatAgent):
        def create_initial_state(self, target): return {"n": 0, "target": target}
        def generate_step_prompt(self, state): return f"What comes after {state['n']}?"
        def update_state(self, state, result): return {**state, "n": int(result)}
        def is_solved(self, state): return state["n"] >= state["target"]

    states = await Counter(config_dict={"model": {"provider": "openai", "name": "gpt-x"}}).execute(3)

Nothing here is stored; for that there are machines.
"""

from __future__ import annotations

import abc
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import anyio

from flat.agents.extractors import Extractor, FreeExtractor
from flat.agents.litellm import LiteLLMClient
from flat.agents.protocol import Message
from flat.errors import AgentFailed

log = logging.getLogger("flat.agents")

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each further attempt; as many attempts as delays."""


class LLMBackend(Protocol):
    """Sends messages to a model."""

    total_cost: float
    total_api_calls: int

    async def call(self, messages: Sequence[Message], **kwargs: Any) -> str:
        """The text of the answer."""
        ...

    async def call_raw(self, messages: Sequence[Message], **kwargs: Any) -> Any:
        """The whole answer, in OpenAI's form."""
        ...


class LiteLLMBackend:
    """One model through litellm, with retries."""

    def __init__(
        self,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        retry_delays: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        """Further `settings` are those of a profile: `base_url`, `api_key`, `timeout`, …"""
        self.model = model
        self.retry_delays = tuple(RETRY_DELAYS if retry_delays is None else retry_delays)
        self.total_cost = 0.0
        self.total_api_calls = 0
        self.sleep: Callable[[float], Awaitable[None]] = anyio.sleep
        """How it waits."""
        self._settings = {
            "name": model,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "frequency_penalty": frequency_penalty,
            "presence_penalty": presence_penalty,
            **settings,
        }

    async def call(self, messages: Sequence[Message], **kwargs: Any) -> str:
        """The text of the answer. Raises `AgentFailed` when it has none."""
        answer = await self.call_raw(messages, **kwargs)
        content = answer.choices[0].message.content
        if content is None:
            raise AgentFailed(f"{self.model} gave an answer without text", code="server_error")
        return str(content)

    async def call_raw(self, messages: Sequence[Message], **kwargs: Any) -> Any:
        """The whole answer. A failure that may pass is tried again; the last one is raised."""
        tools = kwargs.pop("tools", None)
        client = LiteLLMClient({**self._settings, **kwargs}, name="backend")
        attempts = max(1, len(self.retry_delays))
        for attempt in range(attempts):
            try:
                result = await client.complete(messages, tools=tools)
            except AgentFailed as failure:
                if not failure.retryable or attempt + 1 == attempts:
                    raise
                wait = self.retry_delays[attempt] + random.random()
                await self.sleep(max(wait, failure.retry_after or 0.0))
                continue
            self.total_api_calls += 1
            self.total_cost += result.usage.cost or 0.0
            return result.raw
        raise AssertionError("unreachable")


class AISuiteBackend(LiteLLMBackend):
    """The name of old for another client library; its models are asked through litellm."""

    def __init__(
        self,
        model: str,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        retry_delays: Sequence[float] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(
            model.replace(":", "/", 1) if "/" not in model else model,
            temperature,
            max_tokens,
            top_p,
            retry_delays=retry_delays,
            **settings,
        )


class BaseFlatAgent(abc.ABC):
    """An agent that asks its model again and again until its task is solved."""

    def __init__(
        self,
        config_file: str | Path | None = None,
        config_dict: Mapping[str, Any] | None = None,
        backend: LLMBackend | None = None,
        **kwargs: Any,
    ) -> None:
        """The config has `model` (`provider`, `name`, sampling, `retry_delays`) and `litellm_defaults`; keywords
        beat both."""
        self.config = dict(config_dict or {}) if config_file is None else _read(Path(config_file))
        self.backend: LLMBackend = backend or self._backend(kwargs)

    def _backend(self, kwargs: Mapping[str, Any]) -> LLMBackend:
        from flat.agents.profiles import model_name

        told = {**(self.config.get("litellm_defaults") or {}), **(self.config.get("model") or {})}
        settings = {**told, **{k: v for k, v in kwargs.items() if v is not None}}
        name = kwargs.get("model") or model_name(settings)
        if not name:
            raise ValueError("the agent has no model: give its config a `model` with a `name`")
        rest = {k: v for k, v in settings.items() if k not in ("name", "provider", "model")}
        return LiteLLMBackend(str(name), **rest)

    @abc.abstractmethod
    def create_initial_state(self, *args: Any) -> Any:
        """What to begin with."""

    @abc.abstractmethod
    def generate_step_prompt(self, state: Any) -> str:
        """What to ask in this state."""

    @abc.abstractmethod
    def update_state(self, state: Any, result: Any) -> Any:
        """The state after this result."""

    @abc.abstractmethod
    def is_solved(self, state: Any) -> bool:
        """Whether this state is the last."""

    def get_system_prompt(self) -> str:
        """The system prompt; none by default."""
        return ""

    def get_response_parser(self) -> Extractor:
        """What reads the result out of an answer."""
        return FreeExtractor()

    def validate_step_result(self, result: Any) -> bool:
        """Whether a result makes sense; one that does not is only logged."""
        return True

    async def step(self, state: Any) -> Any:
        """One step: ask, read, update."""
        system = self.get_system_prompt()
        messages: list[Message] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": self.generate_step_prompt(state)})
        result = self.get_response_parser().extract(await self.backend.call_raw(messages))
        if not self.validate_step_result(result):
            log.warning("%s: the result of a step is doubtful: %r", type(self).__name__, result)
        return self.update_state(state, result)

    async def execute(self, *args: Any) -> list[Any]:
        """All states, from the first to the one in which the task is solved."""
        states = [self.create_initial_state(*args)]
        while not self.is_solved(states[-1]):
            states.append(await self.step(states[-1]))
        return states

    @property
    def total_cost(self) -> float:
        return self.backend.total_cost

    @property
    def total_api_calls(self) -> int:
        return self.backend.total_api_calls


def _read(path: Path) -> dict[str, Any]:
    import yaml

    if not path.expanduser().is_file():
        raise FileNotFoundError(f"Configuration file not found: {path}")
    found = yaml.safe_load(path.expanduser().read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path} should hold a mapping")
    return found
