"""Fixtures for tests that call models: a clean environment, one LLM thread for all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flat.agents import ModelAgent, build_agent, close
from flat.testing.model_server import ScriptedModel

ServeModel = Callable[[Any], ScriptedModel]
MakeAgent = Callable[..., ModelAgent]


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "OPENAI_API_BASE",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_AUTH_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session", autouse=True)
def llm_thread_is_closed_in_the_end() -> Iterator[None]:
    yield
    close()


@pytest.fixture
def serve() -> Iterator[ServeModel]:
    """Start a scripted model; it is stopped after the test."""
    running: list[ScriptedModel] = []

    def start(script: Any) -> ScriptedModel:
        running.append(ScriptedModel(script).start())
        return running[-1]

    yield start
    for model in running:
        model.stop()


@pytest.fixture
def agent_on() -> MakeAgent:
    """An agent in the inline shape that asks the given scripted model."""

    def make(model: ScriptedModel, *, settings: Any = None, **data: Any) -> ModelAgent:
        profile = {"provider": "openai", "name": "tiny", "base_url": model.base_url, **(settings or {})}
        return build_agent({"model": profile, "user": "Say {{ input.word }}", **data}, name="tester")

    return make
