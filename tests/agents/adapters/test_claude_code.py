"""The `claude-code` agent against a program that speaks its format."""

from __future__ import annotations

import itertools
import json
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.agents.adapters import make_agent
from flat.agents.claude_code import CONTINUE, ClaudeCodeAgent
from flat.agents.protocol import AgentRequest
from flat.errors import AgentFailed, ExpressionError, SpecError

PROGRAM = "claude"
pytestmark = pytest.mark.anyio

USAGE = {
    "input_tokens": 10,
    "output_tokens": 4,
    "cache_read_input_tokens": 100,
    "cache_creation_input_tokens": 20,
}


def text(words: str) -> dict[str, Any]:
    return {"type": "assistant", "message": {"content": [{"type": "text", "text": words}]}}


def result(words: str = "Done", **more: Any) -> dict[str, Any]:
    facts = {"type": "result", "subtype": "success", "is_error": False, "result": words, "num_turns": 1}
    spent = {"usage": USAGE, "total_cost_usd": 0.25, "duration_ms": 7, "duration_api_ms": 5}
    return {**facts, **spent, "session_id": "s-1", "stop_reason": "end_turn", **more}


def agent(home: Path, **config: Any) -> ClaudeCodeAgent:
    return ClaudeCodeAgent({"rate_limit_delay": 0, "rate_limit_jitter": 0, **config}, home, name="coder")


def asked(task: str = "Fix it", **more: Any) -> AgentRequest:
    return AgentRequest(input={"task": task, **more})


async def fails(agent: ClaudeCodeAgent, request: AgentRequest | None = None) -> AgentFailed:
    with pytest.raises(AgentFailed) as caught:
        await agent.call(request or asked())
    return caught.value


async def test_the_command_line_of_a_plain_turn(program: Any, tmp_path: Path) -> None:
    program.says([result()])
    await agent(tmp_path).call(asked())
    (call,) = program.calls
    session = call["argv"][6]
    assert str(uuid.UUID(session)) == session
    assert call["argv"] == [
        *("-p", "Fix it", "--output-format", "stream-json", "--verbose", "--session-id", session),
        *("--model", "opus", "--effort", "high"),
    ]
    assert (call["stdin"], call["cwd"]) == ("", str(tmp_path))


async def test_the_command_line_with_every_setting(program: Any, tmp_path: Path) -> None:
    (tmp_path / "mcp.json").write_text("{}")
    program.says([result()])
    config = {
        "model": "sonnet", "permission_mode": "plan", "dangerously_skip_permissions": True,
        "add_dirs": ["/a", "/b"], "append_system_prompt": "Be brief", "tools": ["Read", "Edit"],
        "mcp_config": "mcp.json", "max_budget_usd": 1.5, "effort": "low",
    }  # fmt: skip
    await agent(tmp_path, **config).call(asked(resume_session="s-0"))
    assert program.calls[0]["argv"][5:] == [
        *("--resume", "s-0", "--model", "sonnet", "--permission-mode", "plan"),
        *("--dangerously-skip-permissions", "--add-dir", "/a", "--add-dir", "/b"),
        *("--append-system-prompt", "Be brief", "--tools", "Read", "Edit", "--disallowed-tools", "LSP"),
        *("--mcp-config", str(tmp_path / "mcp.json"), "--max-budget-usd", "1.5", "--effort", "low"),
    ]


async def test_a_system_prompt_of_its_own_beats_what_would_be_appended(program: Any, tmp_path: Path) -> None:
    program.says([result()])
    coder = agent(tmp_path, system_prompt="You are it", append_system_prompt="Be brief")
    await coder.ask(asked(), system="Be kind")
    assert "--append-system-prompt" not in program.calls[0]["argv"]
    assert "You are it" in program.calls[0]["argv"]


@pytest.mark.parametrize("task", ["--dangerously-skip-permissions", "-v", "long " * 40_000])
async def test_a_prompt_that_cannot_be_an_argument_comes_on_stdin(
    program: Any, tmp_path: Path, task: str
) -> None:
    program.says([result()])
    await agent(tmp_path).call(asked(task))
    (call,) = program.calls
    assert call["stdin"] == task
    assert call["argv"][:2] == ["-p", "--output-format"]


async def test_a_session_that_looks_like_an_option_is_refused(program: Any, tmp_path: Path) -> None:
    error = await fails(agent(tmp_path), asked(resume_session="--dangerously-skip-permissions"))
    assert (error.code, program.calls) == ("invalid_request", [])


async def test_the_result_holds_text_session_usage_and_cost(program: Any, tmp_path: Path) -> None:
    program.says([{"type": "system", "subtype": "init"}, text("Done"), result(modelUsage={"opus": {"n": 1}})])
    found = await agent(tmp_path).call(asked())
    assert (found.output, found.content) == ({"result": "Done", "session_id": "s-1"}, "Done")
    assert (found.finish_reason, found.rendered_user_prompt) == ("stop", "Fix it")
    spent = found.usage
    assert (spent.input_tokens, spent.output_tokens, spent.cache_read_tokens) == (10, 4, 100)
    assert (spent.cache_write_tokens, spent.api_calls, spent.cost) == (20, 1, 0.25)
    assert spent.cost_source == "provider"
    assert found.provider_data == {"opus": {"n": 1}}
    assert found.metadata["duration_ms"] == 7
    assert [event["type"] for event in found.metadata["stream_events"]] == ["system", "assistant", "result"]


async def test_structured_output_is_the_output(program: Any, tmp_path: Path) -> None:
    block = {"type": "tool_use", "id": "t", "name": "StructuredOutput", "input": {"label": "bug"}}
    program.says([{"type": "assistant", "message": {"content": [block]}}, result("{}")])
    found = await agent(tmp_path).call(asked())
    assert found.output == {"label": "bug", "session_id": "s-1", "_raw_result": "{}"}


async def test_tool_calls_and_their_results_are_told(program: Any, tmp_path: Path) -> None:
    use = {"type": "tool_use", "id": "t1", "name": "Read", "input": {"path": "a"}}
    used = {"type": "tool_result", "tool_use_id": "t1", "content": "text"}
    program.says(
        [
            {"type": "assistant", "message": {"content": [use]}},
            {"type": "user", "message": {"content": [used]}},
            result(),
        ]
    )
    found = await agent(tmp_path).call(asked())
    assert found.metadata["tool_calls"] == [{"id": "t1", "name": "Read", "arguments": {"path": "a"}}]
    assert found.metadata["tool_results"] == [
        {"tool_use_id": "t1", "name": "Read", "content": "text", "is_error": False}
    ]


async def test_text_arrives_while_it_is_said(program: Any, tmp_path: Path) -> None:
    program.says([text("One"), text("Two"), result("Two")])
    seen: list[str] = []
    events: list[Any] = []
    request = AgentRequest(input={"task": "Count"}, on_token=seen.append, on_event=events.append)
    await agent(tmp_path).call(request)
    assert seen == ["One", "Two"]
    assert [event["type"] for event in events] == ["assistant", "assistant", "result"]


async def test_unfinished_work_goes_on_in_the_same_session_until_the_sentinel(
    program: Any, tmp_path: Path
) -> None:
    program.says([result("Half", num_turns=5)], [result("More", num_turns=3)], [result("<<AGENT_EXIT>>")])
    found = await agent(tmp_path).call(asked())
    first, second, third = (call["argv"] for call in program.calls)
    assert first[1] == "Fix it"
    for further in (second, third):
        assert (further[1], further[5:7]) == (CONTINUE, ["--resume", "s-1"])
    assert found.content == "<<AGENT_EXIT>>"
    assert (found.usage.api_calls, found.usage.cost, found.usage.input_tokens) == (3, 0.75, 30)
    assert found.metadata["continuation_attempts"] == 2
    assert len(found.metadata["stream_events"]) == 3


@pytest.mark.parametrize(("allowed", "runs"), [(0, 1), (1, 2), (3, 4)])
async def test_continuations_are_counted(program: Any, tmp_path: Path, allowed: int, runs: int) -> None:
    program.says([result("Half", num_turns=5)])
    await agent(tmp_path, max_continuations=allowed).call(asked())
    assert len(program.calls) == runs


async def test_negative_continuations_are_unlimited_and_words_of_ones_own_are_used(
    program: Any, tmp_path: Path
) -> None:
    program.says(*([result("Half", num_turns=5)] for _ in range(3)), [result("All DONE", num_turns=9)])
    config = {"max_continuations": -1, "exit_sentinel": "DONE", "continuation_prompt": "Go on"}
    await agent(tmp_path, **config).call(asked())
    assert [call["argv"][1] for call in program.calls] == ["Fix it", "Go on", "Go on", "Go on"]


@pytest.mark.parametrize(
    ("words", "code", "retryable"),
    [
        ("API Error: 529 Overloaded", "server_error", True),
        ("API Error: 429 too fast", "rate_limit", True),
        ("Invalid API key · Please run /login", "auth_error", False),
        ("It broke", "server_error", False),
    ],
)
async def test_an_error_result_fails_with_a_code(
    program: Any, tmp_path: Path, words: str, code: str, retryable: bool
) -> None:
    program.says({"events": [result(words, is_error=True)], "stderr": "trace", "exit": 1})
    error = await fails(agent(tmp_path))
    assert (error.type, error.code, error.retryable) == ("ClaudeCodeError", code, retryable)
    assert error.message == f'agent "coder" (claude-code): {words}; stderr: trace'
    assert error.usage.cost == 0.25


async def test_a_spent_allowance_says_when_to_come_back(program: Any, tmp_path: Path) -> None:
    info = {"status": "rejected", "resetsAt": 4102444800, "rateLimitType": "five_hour"}
    event = {"type": "rate_limit_event", "rate_limit_info": info}
    program.says([event, result("You've hit your limit", is_error=True)])
    error = await fails(agent(tmp_path))
    assert (error.code, error.retryable, error.rate_limit["limited"]) == ("rate_limit", True, True)
    assert error.retry_after is not None
    assert error.retry_after > 1e6


@pytest.mark.parametrize(
    ("turn", "kind", "words"),
    [
        (
            {"exit": 2, "stderr": "unknown option"},
            "ClaudeCodeProcessError",
            "exit code 2; stderr: unknown option",
        ),
        ({"exit": 0}, "ClaudeCodeError", "it gave no result"),
        ({"lines": ["Welcome!"], "exit": 0}, "ClaudeCodeError", "it gave no result; it printed: Welcome!"),
    ],
)
async def test_a_turn_without_result_fails(
    program: Any, tmp_path: Path, turn: Mapping[str, Any], kind: str, words: str
) -> None:
    program.says(turn)
    error = await fails(agent(tmp_path))
    assert (error.type, error.retryable) == (kind, False)
    assert error.message.endswith(words)


async def test_garbage_among_the_events_does_no_harm(program: Any, tmp_path: Path) -> None:
    odd = ["npm notice", '{"type": "assistant", "message": 5}', '{"type": "user"}', '{"type": "new kind"}']
    program.says({"lines": [*odd, json.dumps(result(usage="none", total_cost_usd=None))]})
    found = await agent(tmp_path).call(asked())
    assert (found.content, found.usage.cost, found.usage.cost_source) == ("Done", None, "unknown")


async def test_a_turn_that_takes_too_long_fails_and_may_be_tried_again(program: Any, tmp_path: Path) -> None:
    program.says({"child": True, "hang": True})
    error = await fails(agent(tmp_path, timeout=0.4))
    assert (error.type, error.code, error.retryable) == ("TimeoutError", "timeout", True)
    assert program.left() == []


async def test_the_callers_deadline_counts_too(program: Any, tmp_path: Path) -> None:
    program.says({"hang": True})
    error = await fails(agent(tmp_path, timeout=60), AgentRequest(input={"task": "x"}, timeout=0.3))
    assert error.code == "timeout"


async def test_cancelling_ends_the_program_and_its_children(program: Any, tmp_path: Path) -> None:
    program.says({"child": True, "events": [text("On it")], "hang": True})
    with anyio.CancelScope() as scope:
        request = AgentRequest(input={"task": "x"}, on_token=lambda words: scope.cancel())
        await agent(tmp_path).call(request)
    assert scope.cancelled_caught
    assert program.left() == []


async def test_a_missing_program_is_told_with_how_to_install_it(tmp_path: Path) -> None:
    error = await fails(agent(tmp_path, claude_bin="no-such-claude"))
    assert error.message.startswith('agent "coder" (claude-code): the program "no-such-claude" was not found')
    assert "npm install -g @anthropic-ai/claude-code" in error.message


async def test_without_a_task_nothing_runs(program: Any, tmp_path: Path) -> None:
    error = await fails(agent(tmp_path), AgentRequest(input={"other": 1}))
    assert (error.type, program.calls) == ("ValueError", [])


async def test_the_prompt_serves_as_task(program: Any, tmp_path: Path) -> None:
    program.says([result()])
    await agent(tmp_path).call(AgentRequest(input={"prompt": "Fix"}))
    assert program.calls[0]["argv"][1] == "Fix"


@pytest.mark.parametrize("given", [{"tools": [{"name": "x"}]}, {"messages": [{"role": "user"}]}])
async def test_tools_and_messages_are_refused(program: Any, tmp_path: Path, given: Any) -> None:
    error = await fails(agent(tmp_path), AgentRequest(input={"task": "x"}, **given))
    assert (error.type, program.calls) == ("NotImplementedError", [])


async def test_a_missing_mcp_file_is_told(program: Any, tmp_path: Path) -> None:
    error = await fails(agent(tmp_path, mcp_config="gone.json"))
    assert error.type == "FileNotFoundError"
    assert "gone.json" in error.message


async def test_the_working_directory_is_rendered(program: Any, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    program.says([result()])
    request = AgentRequest(input={"task": "x"}, context={"repo": str(tmp_path / "repo")})
    await agent(tmp_path, working_dir="{{ context.repo }}").call(request)
    assert program.calls[0]["cwd"] == str(tmp_path / "repo")


async def test_secrets_are_put_in_at_the_call_and_never_shown(
    program: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOUSE_TOKEN", "hush-hush-hush")
    program.says({"exit": 1, "stderr": "bad token hush-hush-hush"})
    coder = agent(tmp_path, append_system_prompt="token ${env:HOUSE_TOKEN}")
    error = await fails(coder)
    assert "token hush-hush-hush" in program.calls[0]["argv"]
    assert error.message.endswith("bad token ***")
    assert coder.config["append_system_prompt"] == "token ${env:HOUSE_TOKEN}"


def test_a_working_directory_that_is_no_template_is_told_when_the_agent_is_made() -> None:
    for text in ("{{ context.x", "{{ output.x }}"):
        with pytest.raises(ExpressionError):
            agent(Path(), working_dir=text)


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(SpecError, match=r'agent "coder" \(claude-code\): `timeout`: .*; `tools`: '):
        agent(Path(), timeout="soon", tools="Read", model=None)


async def test_calls_keep_their_distance_by_default(program: Any, tmp_path: Path) -> None:
    program.says([result()])
    coder = ClaudeCodeAgent({}, tmp_path)
    assert (coder.throttle.delay, coder.throttle.jitter) == (3.0, 4.0)
    slept: list[float] = []
    times = itertools.count()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    coder.throttle._now, coder.throttle._sleep = lambda: float(next(times)), sleep
    coder.throttle._uniform = lambda low, high: high
    await coder.call(asked())
    await coder.call(asked())
    assert slept == [10.0]


async def test_a_profile_of_this_type_is_told_what_the_prompts_say(program: Any, tmp_path: Path) -> None:
    program.says([result()])
    profiles = {"coder": {"type": "claude-code", "model": "haiku", "rate_limit_delay": 0}}
    config = {
        "name": "fixer",
        "type": "flatagent",
        "directory": str(tmp_path),
        "catalogue": {"model_profiles": profiles, "default": None, "override": None},
        "config": {
            "profile": "coder",
            "prompt": {"system": "Be {{ input.how }}", "user": "Do {{ input.what }}"},
        },
    }
    found = await make_agent("fixer", config).call(AgentRequest(input={"how": "kind", "what": "it"}))
    (call,) = program.calls
    assert call["argv"][1] == "Do it"
    at = call["argv"].index("--append-system-prompt")
    assert (call["argv"][at + 1], call["cwd"]) == ("Be kind", str(tmp_path))
    assert found.rendered_user_prompt == "Do it"
    assert found.payload() == {"result": "Done", "session_id": "s-1"}
