"""The `smolagents` agent on the real library, with a model that answers by script."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.agents.protocol import AgentRequest
from flat.agents.smolagents import SmolagentsAgent
from flat.errors import AgentFailed, SpecError

pytestmark = pytest.mark.anyio

MODULE = """
from smolagents import ChatMessage, MessageRole, Model, ToolCallingAgent
from smolagents.models import (
    ChatMessageToolCall, ChatMessageToolCallFunction, TokenUsage,
)

class Scripted(Model):
    def __init__(self, answer, wait):
        super().__init__(model_id="scripted")
        self.answer, self.wait = answer, wait

    def generate(self, messages, **more):
        if self.wait:
            entered, may_go_on = self.wait
            entered.set()
            may_go_on.wait(20)
        if self.answer == "boom":
            raise ValueError("429 too many requests")
        call = ChatMessageToolCallFunction(name="final_answer", arguments={"answer": self.answer})
        return ChatMessage(
            role=MessageRole.ASSISTANT, content="",
            tool_calls=[ChatMessageToolCall(function=call, id="c", type="function")],
            token_usage=TokenUsage(input_tokens=7, output_tokens=3),
        )


def build_agent(answer="42", wait=None):
    return ToolCallingAgent(tools=[], model=Scripted(answer, wait), verbosity_level=0)


def wrong():
    return "not an agent"
"""


def agent(home: Path, ref: str = "./my_agents.py", **config: Any) -> SmolagentsAgent:
    (home / "my_agents.py").write_text(MODULE)
    return SmolagentsAgent({"ref": ref, **config}, home, name="pal")


def asked(**more: Any) -> AgentRequest:
    return AgentRequest(input={"task": "What is it?"}, **more)


async def fails(agent: SmolagentsAgent, request: AgentRequest | None = None) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await agent.call(request or asked())
    return caught.value


async def test_the_factory_gets_the_config_and_its_agent_the_task(tmp_path: Path) -> None:
    seen: list[str] = []
    found = await agent(tmp_path, answer="forty-two").call(asked(on_token=seen.append))
    assert (found.payload(), found.content) == ({"content": "forty-two"}, "forty-two")
    assert (found.usage.input_tokens, found.usage.output_tokens, found.finish_reason) == (7, 3, None)
    assert (found.metadata["state"], seen) == ("success", ["forty-two"])


async def test_a_mapping_is_kept_as_it_is(tmp_path: Path) -> None:
    found = await agent(tmp_path, "my_agents.py#build_agent", answer={"n": 1, "content": "one"}).call(asked())
    assert (found.payload(), found.content) == ({"n": 1, "content": "one"}, "one")


async def test_a_module_on_the_path_serves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    assert (await agent(tmp_path, "my_agents#build_agent").call(asked())).content == "42"
    sys.modules.pop("my_agents")


@pytest.mark.parametrize(
    ("ref", "kind", "words"),
    [
        ("./my_agents.py#wrong", "TypeError", "gave a str, not a MultiStepAgent"),
        ("./my_agents.py#nobody", "AttributeError", 'has no function "nobody"; it has: '),
        ("./gone.py", "FileNotFoundError", "there is no file"),
        ("no_such_module", "ModuleNotFoundError", "cannot be imported"),
    ],
)
async def test_what_cannot_be_made_is_told(tmp_path: Path, ref: str, kind: str, words: str) -> None:
    error = await fails(agent(tmp_path, ref))
    assert (error.type, error.code) == (kind, "invalid_request")
    assert words in error.message


async def test_a_failing_model_is_judged_by_its_words(tmp_path: Path) -> None:
    error = await fails(agent(tmp_path, answer="boom"))
    assert (error.code, error.retryable) == ("rate_limit", True)


async def test_a_cancelled_agent_is_told_to_stop_and_not_used_again(tmp_path: Path) -> None:
    entered, may_go_on = events = threading.Event(), threading.Event()
    made = agent(tmp_path, wait=events)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(made.call, asked())
        await anyio.to_thread.run_sync(entered.wait, 20)
        inner = made._agent
        tasks.cancel_scope.cancel()
    assert inner.interrupt_switch
    assert made._agent is None
    may_go_on.set()


async def test_the_deadline_of_a_call_ends_it(tmp_path: Path) -> None:
    _, may_go_on = events = threading.Event(), threading.Event()
    error = await fails(agent(tmp_path, wait=events), asked(timeout=0.3))
    assert (error.code, error.retryable) == ("timeout", True)
    may_go_on.set()


async def test_calls_of_one_agent_take_turns(tmp_path: Path) -> None:
    entered, may_go_on = events = threading.Event(), threading.Event()
    made = agent(tmp_path, wait=events)
    found: list[Any] = []

    async def ask() -> None:
        found.append((await made.call(asked())).content)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await anyio.to_thread.run_sync(entered.wait, 20)
        entered.clear()
        tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert not entered.is_set()
        may_go_on.set()
    assert found == ["42", "42"]


def test_a_missing_library_is_told_with_how_to_install_it(tmp_path: Path) -> None:
    code = (
        "import anyio, sys; from pathlib import Path; sys.modules['smolagents'] = None\n"
        "from flat.agents.smolagents import SmolagentsAgent; from flat.agents.protocol import AgentRequest\n"
        "from flat.errors import AgentFailed\n"
        "agent = SmolagentsAgent({'ref': 'x'}, Path('.'), name='pal')\n"
        "try: anyio.run(agent.call, AgentRequest(input={'task': 'x'}))\n"
        "except AgentFailed as error: print(error.code, error.message)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("model_unavailable")
    assert "pip install smolagents" in ran.stdout


def test_a_reference_is_needed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="names the factory"):
        SmolagentsAgent({}, tmp_path)
