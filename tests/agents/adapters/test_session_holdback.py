"""Forks of a Claude Code session that is held back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flat.agents.claude_code import ClaudeCodeAgent
from flat.agents.session_holdback import ClaudeCodeSessionHoldback

PROGRAM = "claude"
pytestmark = pytest.mark.anyio


def result(session: str, **more: Any) -> dict[str, Any]:
    usage = {"cache_read_input_tokens": 90, "cache_creation_input_tokens": 5}
    facts = {"type": "result", "subtype": "success", "result": "ok", "num_turns": 1, "usage": usage}
    return {**facts, "session_id": session, **more}


def holdback(home: Path) -> ClaudeCodeSessionHoldback:
    return ClaudeCodeSessionHoldback(ClaudeCodeAgent({"rate_limit_delay": 0, "rate_limit_jitter": 0}, home))


async def test_a_task_runs_on_a_fork_and_the_session_stays(program: Any, tmp_path: Path) -> None:
    program.says([result("parent")], [result("fork-1")], [result("fork-2")])
    held = holdback(tmp_path)
    await held.seed("Read it all")
    forked = await held.fork("Write")
    await held.warm()
    assert (forked.session_id, forked.task, forked.cache_read_tokens) == ("fork-1", "Write", 90)
    assert held.session_id == "parent"
    for call in program.calls[1:]:
        assert call["argv"][5:8] == ["--resume", "parent", "--fork-session"]
    assert held.stats == {"forks": 2, "cache_read_tokens": 180, "cache_write_tokens": 10}


async def test_forks_keep_the_order_of_their_tasks_and_a_failure_stays_alone(
    program: Any, tmp_path: Path
) -> None:
    program.says([result("f1")], [result("f2", is_error=True, result="broken")], [result("f3")])
    held = holdback(tmp_path)
    held.adopt("parent")
    found = await held.fork_n(["a", "b", "c"], max_concurrent=1)
    assert [one.task for one in found] == ["a", "b", "c"]
    assert sorted(one.session_id or "" for one in found) == ["", "f1", "f3"]
    (failed,) = [one for one in found if one.error is not None]
    assert "broken" in str(failed.error)


async def test_unfinished_work_of_a_fork_goes_on_in_the_fork(program: Any, tmp_path: Path) -> None:
    program.says([result("f1", num_turns=4)], [result("f1")])
    held = holdback(tmp_path)
    held.adopt("parent")
    await held.fork("a")
    assert program.calls[1]["argv"][5:8] == ["--resume", "f1", "--model"]


async def test_without_a_session_there_is_nothing_to_fork(tmp_path: Path) -> None:
    held = holdback(tmp_path)
    with pytest.raises(RuntimeError, match="seed"):
        await held.fork("a")
    with pytest.raises(RuntimeError, match="seed"):
        await held.fork_n(["a"])
