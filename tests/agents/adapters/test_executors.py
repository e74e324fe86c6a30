"""The seed system's executors of external programs."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

import flat

PROGRAM = "claude"
pytestmark = pytest.mark.anyio
QUICK = {"rate_limit_delay": 0, "rate_limit_jitter": 0}


def said(text: str, **more: Any) -> dict[str, Any]:
    facts = {"type": "result", "subtype": "success", "result": text, "num_turns": 1, "session_id": "s1"}
    return {**facts, "total_cost_usd": 0.5, "usage": {"input_tokens": 3, "output_tokens": 2}, **more}


async def test_an_executor_answers_with_a_result(program: Any, tmp_path: Path) -> None:
    program.says([said("done")])
    executor = flat.create_claude_code_executor(config=QUICK, config_dir=tmp_path)
    result = await executor.execute({"task": "tidy"}, context={}, session_id=None)
    assert result.success
    assert result.output_payload() == {"result": "done", "session_id": "s1"}
    assert result.usage is not None
    assert (result.usage["api_calls"], result.usage["total_tokens"], result.cost) == (1, 5, 0.5)
    assert executor.metadata == {}


async def test_a_failure_is_in_the_result(program: Any, tmp_path: Path) -> None:
    program.says([said("rate limit reached", is_error=True)])
    result = await flat.ClaudeCodeExecutor(QUICK, tmp_path, None).execute({"task": "tidy"})
    assert not result.success
    assert result.error is not None
    assert (result.error["type"], result.error["code"]) == ("ClaudeCodeError", "rate_limit")
    assert result.finish_reason == "error"
    missing = await flat.ClaudeCodeExecutor(QUICK, tmp_path, None).execute({})
    assert missing.error is not None
    assert missing.error["type"] == "ValueError"


async def test_what_a_machine_says_for_all_is_what_the_config_leaves_open(
    program: Any, tmp_path: Path
) -> None:
    program.says([said("done")])
    settings = {"agent_runners": {"claude_code": {**QUICK, "model": "haiku", "effort": "low"}}}
    executor = flat.create_claude_code_executor(
        config={"model": "opus"}, config_dir=tmp_path, settings=settings
    )
    await executor.execute({"task": "tidy"})
    argv = program.calls[0]["argv"]
    assert argv[argv.index("--model") + 1] == "opus"
    assert argv[argv.index("--effort") + 1] == "low"


async def test_events_are_told_and_tools_refused(program: Any, tmp_path: Path) -> None:
    program.says([said("done")])
    executor, events = flat.ClaudeCodeExecutor(QUICK, tmp_path, {}), list[Any]()
    executor._stream_event_callback = events.append
    await executor.execute({"task": "tidy"})
    assert [event["type"] for event in events] == ["result"]
    with pytest.raises(NotImplementedError, match="its own tools"):
        await executor.execute_with_tools({"task": "tidy"}, [])


async def test_what_runs_can_be_cancelled_from_elsewhere(program: Any, tmp_path: Path) -> None:
    program.says({"events": [{"type": "system"}], "hang": True, "child": True})
    executor, begun, results = flat.ClaudeCodeExecutor(QUICK, tmp_path, None), anyio.Event(), list[Any]()
    executor._stream_event_callback = lambda event: begun.set()

    async def run() -> None:
        results.append(await executor.execute({"task": "tidy"}))

    assert not await executor.cancel()
    async with anyio.create_task_group() as group:
        group.start_soon(run)
        await begun.wait()
        assert await executor.cancel()
    assert results[0].finish_reason == "aborted"
    assert program.left() == []


async def test_a_session_is_held_back_by_an_executor(program: Any, tmp_path: Path) -> None:
    program.says([said("ok")], [said("forked", session_id="s2")])
    held = flat.ClaudeCodeSessionHoldback(flat.ClaudeCodeExecutor(QUICK, tmp_path, None))
    await held.seed("read")
    assert (await held.fork("write")).session_id == "s2"


async def test_an_agent_of_smolagents_may_be_handed_over() -> None:
    ran: list[Any] = []

    def run(task: str, **given: Any) -> Any:
        ran.append((task, given))
        return SimpleNamespace(output="42", token_usage=None, state="success", steps=[])

    executor = flat.SmolagentsExecutor(SimpleNamespace(run=run), {"max_steps": 3})
    result = await executor.execute({"task": "count"})
    assert result.content == "42"
    assert ran == [("count", {"max_steps": 3, "return_full_result": True})]


async def test_a_bridge_runs_a_script_of_node(tmp_path: Path) -> None:
    runner = tmp_path / "runner.sh"
    runner.write_text('cat > seen.json; echo \'{"content": "hi", "usage": {}}\'\n')
    executor = flat.PiAgentBridgeExecutor(
        "./agent.mjs", {"k": 1}, runner, "/bin/sh", tmp_path, {"A": "b"}, 30
    )
    result = await executor.execute({"task": "greet"}, context={"c": 2})
    assert result.content == "hi"
    assert '"config": {"k": 1}' in (tmp_path / "seen.json").read_text()
    made = flat.create_pi_agent_bridge_executor(
        ref="./agent.mjs", config={"runner": "runner.sh", "node": "/bin/sh"}, config_dir=tmp_path
    )
    assert (await made.execute({"task": "greet"})).content == "hi"


def test_the_results_of_workers_take_their_facts_by_position() -> None:
    assert flat.WorkerRegistration("w", "host", 7, ("a",), 1.0).started_at == 1.0
    item = flat.WorkItem("j", {"x": 1}, "w", 2, 3, "claimed", 1.0, 2.0)
    assert (item.attempts, item.status, item.claimed_at) == (2, "claimed", 2.0)
    assert flat.WorkerFilter("active", "gpu", 60).stale_threshold_seconds == 60
    answer = flat.AgentResult(content="x")
    assert (answer.success, answer.output_payload()) == (True, {"content": "x"})
