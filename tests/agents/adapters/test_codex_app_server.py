"""Codex by its app server, against a fake one that speaks its protocol."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat.agents.codex_app_server import CodexAppServerTransport
from flat.agents.codex_cli import CodexCliAgent
from flat.agents.protocol import AgentRequest
from flat.agents.session_holdback import CodexSessionHoldback
from flat.errors import AgentFailed

pytestmark = pytest.mark.anyio

SERVER = """\
#!{python}
import json, os, sys
home = {home!r}
with open(home + "/pids", "a") as pids: pids.write(str(os.getpid()) + "\\n")
def say(**message): print(json.dumps(message), flush=True)
def log(message):
    with open(home + "/asked.jsonl", "a") as file: file.write(json.dumps(message) + "\\n")
log({{"argv": sys.argv[1:], "cwd": os.getcwd()}})
print("not json", flush=True)
for line in sys.stdin:
    message = json.loads(line)
    log(message)
    method, params, number = message.get("method"), message.get("params", {{}}), message.get("id")
    if method == "initialize":
        say(id=number, result={{}})
    elif method == "thread/start":
        say(id=number, result={{"thread": {{"id": "t1"}}}})
    elif method == "thread/fork":
        if params["threadId"] == "gone":
            say(id=number, error={{"code": -32000, "message": "no such thread"}})
        else:
            say(id=number, result={{"thread": {{"id": params["threadId"] + "-fork"}}}})
    elif method == "thread/resume":
        say(id=number, result={{"thread": {{"id": params["threadId"]}}}})
    elif method == "thread/read":
        say(id=number, result={{"thread": {{"id": params["threadId"], "turns": []}}}})
    elif method == "turn/start":
        thread, task = params["threadId"], params["input"][0]["text"]
        say(id=number, result={{"turn": {{"id": "u1"}}}})
        if task == "hang":
            continue
        if task == "die":
            sys.stderr.write("out of memory")
            sys.exit(3)
        say(id=99, method="item/commandExecution/requestApproval", params={{"threadId": thread}})
        say(method="item/completed", params={{"threadId": "another", "item": {{"type": "agentMessage", "text": "no"}}}})
        usage = {{"last": {{"inputTokens": 10, "outputTokens": 2, "cachedInputTokens": 8}}, "total": {{}}}}
        say(method="thread/tokenUsage/updated", params={{"threadId": thread, "tokenUsage": usage}})
        say(method="thread/tokenUsage/updated", params={{"threadId": thread, "tokenUsage": usage}})
        text = {{"type": "agentMessage", "text": "did " + task}}
        say(method="item/completed", params={{"threadId": thread, "item": text}})
        failed = {{"status": "failed", "error": {{"message": "usage limit reached"}}}}
        turn = failed if task == "fail" else {{"status": "completed"}}
        say(method="turn/completed", params={{"threadId": thread, "turn": {{"id": "u1", **turn}}}})
"""


class Server:
    """The fake program, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "codex"
        path.write_text(SERVER.format(python=sys.executable, home=str(folder)))
        path.chmod(0o755)

    def asked(self, method: str | None = None) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in (self.folder / "asked.jsonl").read_text().splitlines()]
        return [one for one in found if method is None or one.get("method") == method]

    def left(self) -> list[int]:
        pids = [int(pid) for pid in (self.folder / "pids").read_text().split()]
        return [pid for pid in pids if _lives(pid)]


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    return Server(folder)


def agent(home: Path, **config: Any) -> CodexCliAgent:
    return CodexCliAgent({"use_app_server": True, **config}, home)


async def ask(home: Path, task: str, config: dict[str, Any] | None = None, **more: Any) -> Any:
    return await agent(home, **(config or {})).call(AgentRequest(input={"task": task, **more}))


async def test_a_turn_starts_a_thread_and_tells_its_last_words(server: Server, tmp_path: Path) -> None:
    heard: list[str] = []
    request = AgentRequest(input={"task": "tidy"}, on_token=heard.append)
    result = await agent(tmp_path, model="m1", sandbox="read-only").call(request)
    assert (result.content, result.output) == ("did tidy", {"result": "did tidy", "thread_id": "t1"})
    assert heard == ["did tidy"]
    usage = result.usage
    counts = (usage.input_tokens, usage.output_tokens, usage.cache_read_tokens, usage.api_calls)
    assert counts == (20, 4, 16, 2)
    assert server.asked()[0]["argv"] == ["app-server", "--listen", "stdio://", "--session-source", "exec"]
    (started,) = server.asked("thread/start")
    assert (started["params"]["model"], started["params"]["sandbox"]) == ("m1", "read-only")
    assert server.left() == []


async def test_it_is_denied_what_nobody_is_there_to_allow(server: Server, tmp_path: Path) -> None:
    async with CodexAppServerTransport(cwd=tmp_path) as transport:
        await transport.run_turn(await transport.thread_start(), "a")
        await transport.thread_read("t1")
    (answer,) = [one for one in server.asked() if one.get("id") == 99]
    assert answer["result"] == {"decision": "decline"}


async def test_a_session_is_resumed_by_the_input(server: Server, tmp_path: Path) -> None:
    result = await ask(tmp_path, "go on", resume_session="t7")
    assert result.metadata["thread_id"] == "t7"
    assert server.asked("thread/resume")[0]["params"]["threadId"] == "t7"
    assert server.asked("thread/start") == []


@pytest.mark.parametrize(
    ("task", "kind", "code", "words"),
    [
        ("fail", "CodexCliTurnError", "rate_limit", "usage limit reached"),
        ("die", "CodexCliProcessError", "server_error", "out of memory"),
    ],
)
async def test_failures_have_their_kind(
    server: Server, tmp_path: Path, task: str, kind: str, code: str, words: str
) -> None:
    with pytest.raises(AgentFailed, match=words) as caught:
        await ask(tmp_path, task)
    assert (caught.value.type, caught.value.code) == (kind, code)
    assert server.left() == []


async def test_a_turn_that_takes_too_long_is_ended(server: Server, tmp_path: Path) -> None:
    with pytest.raises(AgentFailed) as caught:
        await ask(tmp_path, "hang", {"timeout": 1})
    assert (caught.value.code, caught.value.retryable) == ("timeout", True)
    assert server.left() == []


async def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(AgentFailed, match="npm install -g @openai/codex"):
        await ask(tmp_path, "a", {"codex_bin": "no-such-codex"})


async def test_turns_of_several_tasks_share_one_server(server: Server, tmp_path: Path) -> None:
    texts: dict[str, str | None] = {}

    def one(transport: CodexAppServerTransport, thread: str) -> Callable[[], Any]:
        async def run() -> None:
            texts[thread] = (await transport.run_turn(thread, thread)).text

        return run

    async with CodexAppServerTransport(cwd=tmp_path) as transport:
        assert transport.is_running
        async with anyio.create_task_group() as group:
            for thread in ("a", "b", "c"):
                group.start_soon(one(transport, thread))
    assert texts == {"a": "did a", "b": "did b", "c": "did c"}
    assert not transport.is_running
    assert len((server.folder / "pids").read_text().split()) == 1


async def test_a_listener_hears_every_thread(server: Server, tmp_path: Path) -> None:
    heard: list[str] = []

    def listen(method: str, params: Any) -> None:
        heard.append(f"{method} {params['threadId']}")

    async with CodexAppServerTransport(cwd=tmp_path) as transport:
        transport.add_listener(listen)
        await transport.run_turn("x", "1")
        transport.remove_listener(listen)
        await transport.run_turn("x", "2")
    assert "item/completed another" in heard
    assert heard.count("turn/completed x") == 1


async def test_tasks_run_on_forks_of_a_thread_that_is_held_back(server: Server, tmp_path: Path) -> None:
    held = CodexSessionHoldback(agent(tmp_path), model="pinned")
    with pytest.raises(RuntimeError, match="nothing to fork"):
        await held.fork("a")
    await held.seed("read")
    found = await held.fork_n(["a", "fail", "b"])
    assert [(one.task, one.thread_id, one.cached_input_tokens) for one in found] == [
        ("a", "t1-fork", 16), ("fail", None, 0), ("b", "t1-fork", 16),
    ]  # fmt: skip
    assert "usage limit" in str(found[1].error)
    await held.warm()
    assert held.thread_id == "t1"
    assert held.stats == {"forks": 3, "cached_input_tokens": 48}
    assert {one["params"]["model"] for one in server.asked("thread/fork")} == {"pinned"}


async def test_a_thread_that_is_gone_cannot_be_forked(server: Server, tmp_path: Path) -> None:
    held = CodexSessionHoldback(agent(tmp_path), thread_id="gone")
    with pytest.raises(AgentFailed, match="thread/fork: no such thread"):
        await held.fork("a")
