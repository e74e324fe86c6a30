"""Bundles whose profile is another program: how prompts become its task, and what comes back."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from flat import FlatAgent
from flat.agents import AgentRequest, build_agent
from flat.agents.external_agent import ExternalAgent
from flat.agents.protocol import AgentResult, Usage
from flat.errors import AgentFailed

pytestmark = pytest.mark.anyio

CLAUDE = """#!{python} -IS
import json, sys
arguments = sys.argv[1:]
print(json.dumps({{"type": "result", "subtype": "success", "is_error": False, "session_id": "s1",
    "result": json.dumps(arguments), "total_cost_usd": 0.5, "stop_reason": "end_turn", "num_turns": 1,
    "usage": {{"input_tokens": 3, "output_tokens": 2}}}}))
"""


@pytest.fixture
def claude(tmp_path: Path) -> str:
    program = tmp_path / "claude"
    program.write_text(CLAUDE.format(python=sys.executable))
    program.chmod(0o755)
    return str(program)


def bundle(profile: dict[str, Any], **prompt: Any) -> dict[str, Any]:
    catalogue = {"spec": "flatprofile", "data": {"model_profiles": {"it": profile}}}
    return {
        "spec": "flatagent",
        "data": {"prompt": {"user": "Do {{ input.x }}", **prompt}, "profile": catalogue},
    }


async def test_a_bundle_on_claude_code(claude: str, tmp_path: Path) -> None:
    profile = {"type": "claude-code", "claude_bin": claude, "model": "opus"}
    config = bundle(profile, system="On {{ model.name }}", instruction_suffix="Soon.")
    agent = FlatAgent(config_dict=config, config_dir=tmp_path)
    response = await agent.call(x="it")
    assert response.error is None
    arguments = json.loads(response.content or "")
    assert "Do it\n\nSoon." in arguments
    assert arguments[arguments.index("--append-system-prompt") + 1] == "On opus"
    assert (response.rendered_user_prompt, agent.model) == ("Do it\n\nSoon.", "opus")
    assert response.output["session_id"] == "s1"
    assert (agent.total_api_calls, agent.total_cost) == (1, 0.5)
    assert (agent.tools, agent.temperature, agent.stream) == ([], None, False)


async def test_an_input_named_task_takes_the_place_of_the_prompt(claude: str, tmp_path: Path) -> None:
    agent = build_agent(bundle({"type": "claude-code", "claude_bin": claude}), directory=tmp_path)
    result = await agent.call(AgentRequest(input={"task": "Else", "x": "it"}))
    assert "Else" in json.loads(result.content or "")


async def test_a_typed_reference_takes_its_task_from_the_input(claude: str, tmp_path: Path) -> None:
    typed = {"type": "claude-code", "config": {"claude_bin": claude}}
    agent = build_agent(
        typed, directory=tmp_path, catalogue={"profiles": {"m": {"name": "m"}}, "override": "m"}
    )
    assert isinstance(agent, ExternalAgent)
    for given in ({"task": "T"}, {"prompt": "T"}):
        result = await agent.call(AgentRequest(input=given))
        assert "T" in json.loads(result.content or "")


async def test_such_an_agent_refuses_conversations_and_tools(claude: str, tmp_path: Path) -> None:
    agent = build_agent(bundle({"type": "claude-code", "claude_bin": claude}), directory=tmp_path)
    for request in (
        AgentRequest(messages=[{"role": "user", "content": "x"}]),
        AgentRequest(tools=[{"type": "function", "function": {"name": "f"}}]),
    ):
        with pytest.raises(AgentFailed, match="it runs its own tools"):
            await agent.call(request)


class Program:
    """An adapter that keeps what it was asked."""

    def __init__(self, result: AgentResult) -> None:
        self.result = result
        self.requests: list[AgentRequest] = []

    async def call(self, request: AgentRequest) -> AgentResult:
        self.requests.append(request)
        return self.result


async def test_other_programs_read_the_system_prompt_in_their_task() -> None:
    told = {"system": "S", "output": {"n": {"type": "int"}}}
    agent = build_agent({**bundle({"type": "codex-cli"}, **told), "metadata": {"team": "a"}})
    assert isinstance(agent, ExternalAgent)
    agent.adapter = program = Program(
        AgentResult(content='so {"n": 5}', usage=Usage(api_calls=1), metadata={"m": 1})
    )
    result = await agent.call(AgentRequest(input={"x": "it"}))
    assert program.requests[0].input == {"x": "it", "task": "S\n\nDo it"}
    assert (result.output, result.metadata) == ({"n": 5}, {"team": "a", "m": 1})
    assert result.rendered_user_prompt == "S\n\nDo it"
    await agent.call(AgentRequest(input={"x": "it", "task": "own"}))
    assert program.requests[1].input["task"] == "own"
