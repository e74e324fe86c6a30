"""The `codex-cli` agent against a program that speaks its format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.agents.codex_cli import CodexCliAgent
from flat.agents.protocol import AgentRequest
from flat.errors import AgentFailed

PROGRAM = "codex"
pytestmark = pytest.mark.anyio

START = {"type": "thread.started", "thread_id": "t-1"}
USAGE = {"input_tokens": 50, "output_tokens": 7, "cached_input_tokens": 30}
END = {"type": "turn.completed", "usage": USAGE}


def said(words: str) -> dict[str, Any]:
    return {"type": "item.completed", "item": {"id": "i", "type": "agent_message", "text": words}}


def agent(home: Path, **config: Any) -> CodexCliAgent:
    return CodexCliAgent(config, home, name="coder")


def asked(task: str = "Fix it", **more: Any) -> AgentRequest:
    return AgentRequest(input={"task": task, **more})


async def fails(agent: CodexCliAgent, request: AgentRequest | None = None) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await agent.call(request or asked())
    return caught.value


async def test_the_command_line_of_a_plain_turn(program: Any, tmp_path: Path) -> None:
    program.says([START, said("Done"), END])
    await agent(tmp_path).call(asked())
    (call,) = program.calls
    assert call["argv"] == [
        *("exec", "--json", "--model", "gpt-5.3-codex", "--sandbox", "workspace-write", "--full-auto"),
        *("-c", 'reasoning_effort="high"', "Fix it"),
    ]
    assert (call["stdin"], call["cwd"]) == ("", str(tmp_path))


async def test_the_command_line_with_every_setting(program: Any, tmp_path: Path) -> None:
    (tmp_path / "out.json").write_text("{}")
    program.says([START, END])
    config = {
        "model": "m", "sandbox": "read-only", "approval_policy": "on-failure", "reasoning_effort": "",
        "output_schema": "out.json", "add_dirs": ["/a", "/b"], "skip_git_repo_check": True, "ephemeral": True,
        "search": True, "config_overrides": {"a.b": "text", "n": 3, "flag": True},
        "feature_enable": ["x"], "feature_disable": ["y"],
    }  # fmt: skip
    await agent(tmp_path, **config).call(asked())
    assert program.calls[0]["argv"] == [
        *("exec", "--json", "--model", "m", "--sandbox", "read-only"),
        *("--output-schema", str(tmp_path / "out.json"), "--add-dir", "/a", "--add-dir", "/b"),
        *("--skip-git-repo-check", "--ephemeral", "-c", "search=true"),
        *("-c", "a.b=text", "-c", "n=3", "-c", "flag=true", "--enable", "x", "--disable", "y", "Fix it"),
    ]


async def test_a_resumed_thread_takes_no_sandbox(program: Any, tmp_path: Path) -> None:
    program.says([said("Done"), END])
    found = await agent(tmp_path, reasoning_effort="").call(asked(resume_session="t-0"))
    expected = ["exec", "resume", "--json", "--model", "gpt-5.3-codex", "--full-auto", "t-0", "Fix it"]
    assert program.calls[0]["argv"] == expected
    assert found.output == {"result": "Done", "thread_id": "t-0"}


@pytest.mark.parametrize("resumed", [{}, {"resume_session": "t-0"}])
async def test_bypassing_replaces_sandbox_and_approvals(
    program: Any, tmp_path: Path, resumed: dict[str, str]
) -> None:
    program.says([START, END])
    await agent(tmp_path, dangerously_bypass_approvals_and_sandbox=True).call(asked(**resumed))
    argv = program.calls[0]["argv"]
    assert "--dangerously-bypass-approvals-and-sandbox" in argv
    assert not {"--sandbox", "--full-auto"} & set(argv)


@pytest.mark.parametrize("task", ["--dangerously-bypass-approvals-and-sandbox", "é" * 80_000])
async def test_a_prompt_that_cannot_be_an_argument_comes_on_stdin(
    program: Any, tmp_path: Path, task: str
) -> None:
    program.says([START, said("ok"), END])
    await agent(tmp_path).call(asked(task))
    (call,) = program.calls
    assert (call["argv"][-1], call["stdin"]) == ("-", task)


async def test_a_thread_that_looks_like_an_option_is_refused(program: Any, tmp_path: Path) -> None:
    error = await fails(agent(tmp_path), asked(resume_session="--last"))
    assert (error.code, program.calls) == ("invalid_request", [])


async def test_the_result_holds_the_last_message_and_the_usage(program: Any, tmp_path: Path) -> None:
    command = {"type": "item.completed", "item": {"type": "command_execution", "command": "ls"}}
    program.says([START, said("Looking"), command, said("Done"), END])
    seen: list[str] = []
    found = await agent(tmp_path).call(AgentRequest(input={"task": "x"}, on_token=seen.append))
    assert (found.output, found.content) == ({"result": "Done", "thread_id": "t-1"}, "Done")
    assert (found.finish_reason, seen) == ("stop", ["Looking", "Done"])
    spent = found.usage
    assert (spent.input_tokens, spent.output_tokens, spent.cache_read_tokens) == (50, 7, 30)
    assert (spent.api_calls, spent.cost, spent.cost_source) == (1, None, "unknown")
    assert (len(found.metadata["items"]), len(found.metadata["stream_events"])) == (3, 5)


@pytest.mark.parametrize(
    ("event", "words", "code", "retryable"),
    [
        ({"type": "turn.failed", "error": {"message": "status 503"}}, "status 503", "server_error", True),
        ({"type": "error", "message": "Rate limit reached"}, "Rate limit reached", "rate_limit", True),
        ({"type": "error", "message": "401 Unauthorized"}, "401 Unauthorized", "auth_error", False),
        ({"type": "turn.failed"}, "the turn failed without a message", "server_error", False),
    ],
)
async def test_a_failed_turn_fails_with_a_code(
    program: Any, tmp_path: Path, event: Any, words: str, code: str, retryable: bool
) -> None:
    program.says({"events": [START, said("Looking"), event], "exit": 1})
    error = await fails(agent(tmp_path))
    assert (error.type, error.code, error.retryable) == ("CodexCliError", code, retryable)
    assert error.message == f'agent "coder" (codex-cli): {words}'


async def test_an_error_that_was_overcome_is_none(program: Any, tmp_path: Path) -> None:
    program.says([START, {"type": "error", "message": "Reconnecting… 1/5"}, said("Done"), END])
    assert (await agent(tmp_path).call(asked())).content == "Done"


async def test_a_bad_exit_counts_only_without_a_message(program: Any, tmp_path: Path) -> None:
    program.says({"events": [START, said("Done")], "exit": 1}, {"stderr": "no such model", "exit": 1})
    assert (await agent(tmp_path).call(asked())).content == "Done"
    error = await fails(agent(tmp_path))
    assert error.type == "CodexCliProcessError"
    assert error.message.endswith("exit code 1; stderr: no such model")


async def test_a_turn_without_a_message_is_a_success_without_text(program: Any, tmp_path: Path) -> None:
    program.says([START, END])
    found = await agent(tmp_path).call(asked())
    assert (found.content, found.payload()) == (None, {"result": None, "thread_id": "t-1"})


async def test_a_turn_that_takes_too_long_fails_and_may_be_tried_again(program: Any, tmp_path: Path) -> None:
    program.says({"events": [START], "child": True, "hang": True})
    error = await fails(agent(tmp_path, timeout=0.4))
    assert (error.type, error.code, error.retryable) == ("TimeoutError", "timeout", True)
    assert program.left() == []


async def test_cancelling_ends_the_program_and_its_children(program: Any, tmp_path: Path) -> None:
    program.says({"child": True, "events": [said("On it")], "hang": True})
    with anyio.CancelScope() as scope:
        await agent(tmp_path).call(AgentRequest(input={"task": "x"}, on_token=lambda words: scope.cancel()))
    assert scope.cancelled_caught
    assert program.left() == []


async def test_a_missing_program_is_told_with_how_to_install_it(tmp_path: Path) -> None:
    error = await fails(agent(tmp_path, codex_bin="no-such-codex"))
    assert "npm install -g @openai/codex" in error.message
