"""Tools of MCP servers: real ones, on stdin and stdout and over HTTP; filters, prompts, failures."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import anyio
import anyio.to_thread
import pytest

from flat.agents import AgentRequest, SimpleToolProvider, ToolLoopAgent, aclose, build_agent
from flat.agents.mcp import Filter, McpTools
from flat.errors import AgentFailed, DefinitionError, SpecError
from flat.testing.model_server import Reply

from .conftest import MakeAgent, ServeModel
from .mcp_server import STDIO, HttpServer

pytestmark = pytest.mark.anyio

NAMES = ["add", "fail", "die", "hang", "who", "draw"]
PROMPT = "{% for tool in tools %}{{ tool._qualified }}: {{ tool.description }}\n{% endfor %}"


def of(*servers: Any, **more: Any) -> dict[str, Any]:
    return {"servers": {f"s{n}": server for n, server in enumerate(servers, 1)}, **more}


@pytest.fixture(params=["stdio", "http"])
def server(request: pytest.FixtureRequest) -> Iterator[dict[str, Any]]:
    if request.param == "stdio":
        yield STDIO
    else:
        with HttpServer() as running:
            yield {"server_url": running.url}


async def test_tools_are_listed_and_called(server: dict[str, Any]) -> None:
    tools = McpTools(of(server), "a")
    assert [t["name"] for t in await tools.tools()] == NAMES
    added = next(d for d in await tools.definitions() if d["function"]["name"] == "add")
    assert added["function"]["description"] == "Adds two numbers."
    assert added["function"]["parameters"]["required"] == ["a", "b"]
    assert (await tools.execute_tool("add", "c1", {"a": 2, "b": 3})).content == "5"
    failed = await tools.execute_tool("fail", "c2", {"why": "because"})
    assert (failed.is_error, "because" in failed.content) == (True, True)
    assert (await tools.execute_tool("add", "c3", {"a": "x"})).is_error
    assert (await tools.execute_tool("ad", "c4", {})).content == 'Unknown tool: ad; did you mean "add"?'
    assert (
        await tools.execute_tool("draw", "c5", {})
    ).content == "a dot\n[image image/png, 4 characters of base64]"


async def test_a_model_uses_them_in_a_loop(
    serve: ServeModel, agent_on: MakeAgent, server: dict[str, Any]
) -> None:
    model = serve([Reply(None, tool_calls=[{"name": "add", "arguments": {"a": 2, "b": 3}}]), "5"])
    agent = agent_on(model, mcp=of(server))
    assert agent.mcp is not None
    await agent.mcp.tools()

    class Own:
        def get_tool_definitions(self) -> Any:
            return None

        async def execute_tool(self, *call: Any) -> Any:
            return await agent.execute_tool(*call)

    result = await ToolLoopAgent(agent, tool_provider=Own()).run(word="x")
    assert (result.content, result.tool_calls_count) == ("5", 1)
    assert model.requests[1].body["messages"][-1] == {
        "role": "tool",
        "tool_call_id": "call_1",
        "content": "5",
    }


async def test_the_author_places_the_tools_prompt_and_the_filter_decides_what_is_in_it(
    serve: ServeModel, agent_on: MakeAgent
) -> None:
    model = serve([Reply(None, tool_calls=[{"name": "add"}, {"name": "own"}])] * 2)
    own = {"type": "function", "function": {"name": "own"}}
    mcp = of(STDIO, tool_filter={"allow": ["s1:add", "s1:who"], "deny": ["s1:who"]}, tool_prompt=PROMPT)
    system, output = "Tools:\n{{ tools_prompt }}{{ tools | length }}", {"n": {"type": "int"}}
    agent = agent_on(model, mcp=mcp, tools=[own], system=system, output=output)
    result = await agent.call(AgentRequest(input={"word": "x"}))
    body = model.requests[0].body
    assert body["messages"][0]["content"] == "Tools:\ns1:add: Adds two numbers.\n1"
    assert [t["function"]["name"] for t in body["tools"]] == ["own", "add"]
    assert "response_format" not in body
    assert [c.get("server") for c in result.tool_calls] == ["s1", None]
    await agent.call(AgentRequest(input={"word": "x"}, tools=[own]))
    body = model.requests[1].body
    assert body["messages"][0]["content"] == "Tools:\n0"
    assert body["tools"] == [own]


@pytest.mark.parametrize(
    ("allow", "deny", "passes"),
    [
        ((), (), True),
        (("s:t",), (), True),
        (("s:*",), (), True),
        (("s:u", "r:t"), (), False),
        (("s:t",), ("s:*",), False),
        (("s:*",), ("s:t",), False),
        ((), ("s:t",), False),
        ((), ("s:u",), True),
    ],
)
def test_deny_beats_allow_and_no_allow_allows_all(
    allow: tuple[str, ...], deny: tuple[str, ...], passes: bool
) -> None:
    assert Filter(allow, deny).passes("s", "t") is passes


async def test_agents_share_a_server_that_ends_with_the_last_of_them() -> None:
    one, two = (McpTools(of(STDIO), "a") for _ in range(2))
    first = (await one.execute_tool("who", "1", {})).content
    assert (await two.execute_tool("who", "2", {})).content == first
    pid = int(first.split()[0])
    del one
    gc.collect()
    assert (await two.execute_tool("who", "3", {})).content == first
    del two
    gc.collect()
    await until_gone(pid)


async def test_a_server_ends_with_its_thread_and_begins_anew() -> None:
    tools = McpTools(of(STDIO), "a")
    pid = int((await tools.execute_tool("who", "1", {})).content.split()[0])
    await aclose()
    await until_gone(pid)
    assert (await tools.execute_tool("add", "2", {"a": 1, "b": 1})).content == "2"


async def until_gone(pid: int) -> None:
    with anyio.fail_after(10):
        while await anyio.to_thread.run_sync(_exists, pid):
            gc.collect()  # the thread of the calls may have held on to the last of them a moment ago
            await anyio.sleep(0.01)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_server_that_died_is_started_again() -> None:
    tools = McpTools(of(STDIO), "a")
    with pytest.raises(AgentFailed) as caught:
        await tools.execute_tool("die", "1", {})
    assert (caught.value.code, caught.value.retryable) == ("server_error", True)
    assert 'the MCP server "s1" failed at the tool "die"' in caught.value.message
    assert (await tools.execute_tool("add", "2", {"a": 1, "b": 1})).content == "2"


async def test_a_cancelled_call_leaves_the_connection_usable(server: dict[str, Any]) -> None:
    tools = McpTools(of(server), "a")
    await tools.tools()
    with anyio.move_on_after(0.3) as scope:
        await tools.execute_tool("hang", "1", {})
    assert scope.cancelled_caught
    assert (await tools.execute_tool("add", "2", {"a": 1, "b": 1})).content == "2"


async def test_calls_run_side_by_side(server: dict[str, Any]) -> None:
    tools, found = McpTools(of(server), "a"), {}

    async def one(number: int) -> None:
        found[number] = (await tools.execute_tool("add", str(number), {"a": number, "b": 1})).content

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(one, number)
    assert found == {n: str(n + 1) for n in range(20)}


async def test_without_the_package_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(AgentFailed, match="need the package `mcp`") as caught:
        await McpTools(of({**STDIO, "env": {"TOKEN": "apart"}}), "a").tools()
    assert "flat[mcp]" in caught.value.hint


async def test_secrets_reach_a_program_and_a_url_by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAT_TEST_TOKEN", "t0ken")
    tools = McpTools(of({**STDIO, "env": {"TOKEN": "${env:FLAT_TEST_TOKEN}"}}), "a")
    assert (await tools.execute_tool("who", "1", {})).content.endswith(" t0ken")
    with HttpServer() as running:
        over_http = {
            "server_url": running.url,
            "headers": {"X-Token": "${env:FLAT_TEST_TOKEN}"},
            "timeout": 20,
        }
        assert len(await McpTools(of(over_http), "a").tools()) == len(NAMES)
        assert running.headers["x-token"] == "t0ken"
    monkeypatch.delenv("FLAT_TEST_TOKEN")
    with pytest.raises(AgentFailed, match="FLAT_TEST_TOKEN, which is not set"):
        await tools.execute_tool("who", "2", {})


@pytest.mark.parametrize(
    ("server", "code", "part"),
    [
        ({"command": "no-such-program"}, "invalid_request", "cannot be started: no-such-program"),
        ({"command": sys.executable, "args": ["-c", "pass"]}, "server_error", "closed"),
        (
            {"command": sys.executable, "args": ["-c", "input(); input()"], "timeout": 0.5},
            "server_error",
            "time",
        ),
        ({"server_url": "http://127.0.0.1:9/mcp"}, "server_error", "did not list its tools"),
    ],
)
async def test_a_server_that_cannot_be_reached_is_named(server: dict[str, Any], code: str, part: str) -> None:
    with pytest.raises(AgentFailed) as caught:
        await McpTools(of(server), "a").tools()
    assert caught.value.code == code
    assert 'agent "a": the MCP server "s1"' in caught.value.message
    assert part in caught.value.message


async def test_two_servers_with_a_tool_of_one_name_are_told_apart_by_the_filter() -> None:
    other = {**STDIO, "env": {"TOKEN": "2"}}
    with pytest.raises(AgentFailed) as caught:
        await McpTools(of(STDIO, other), "a").tools()
    assert '"s1" and "s2" both have a tool "add"' in caught.value.message
    assert 'deny: ["s2:add"]' in caught.value.hint
    told_apart = McpTools(of(STDIO, other, tool_filter={"allow": ["s1:add", "s2:who"]}), "a")
    assert (await told_apart.execute_tool("who", "1", {})).content.endswith(" 2")
    both = McpTools(of(STDIO, other), "a", compat=True)
    assert len(await both.tools()) == 2 * len(NAMES)
    assert both.server_of("add") == "s1"


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ({"server": {}}, 'unknown key "mcp.server"; did you mean "servers"?'),
        ([], "`mcp` is a mapping"),
        ({"servers": []}, "`mcp.servers` is a mapping"),
        ({"servers": {"a": "x"}}, "mcp.servers.a is not a mapping"),
        ({"servers": {}, "tool_filter": {"alow": []}}, "mcp.tool_filter.alow"),
        ({"servers": {"s": {}}, "tool_filter": {"allow": ["t"]}}, '"t" is neither `server:tool`'),
        ({"servers": {"s": {}}, "tool_filter": {"allow": ["s:t*"]}}, "neither"),
        ({"servers": {"server": {}}, "tool_filter": {"deny": ["sever:*"]}}, 'did you mean "server"?'),
        ({"servers": {}, "tool_prompt": "{{ tool }}"}, "tool"),
        ({"servers": {}, "tool_prompt": 5}, "`mcp.tool_prompt` is not text"),
    ],
)
def test_what_is_wrong_with_a_config_is_told_at_once(config: Any, part: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        McpTools(config, "a")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("server", "part"),
    [
        ({"comand": "x"}, 'unknown key "comand"; did you mean "command"?'),
        ({"command": "x", "server_url": "y"}, "either `command`"),
        ({}, "either `command`"),
    ],
)
async def test_the_built_in_client_is_strict_about_servers(server: dict[str, Any], part: str) -> None:
    with pytest.raises(SpecError, match=part.replace("?", r"\?")):
        await McpTools(of(server), "a").tools()


class Provider:
    """A client of the user's."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def connect(self, server_name: str, config: Mapping[str, Any]) -> None:
        self.calls.append(("connect", server_name, dict(config)))

    def get_tools(self, server_name: str) -> list[dict[str, Any]]:
        if server_name == "s2":
            raise RuntimeError("not today")
        return [{"name": "look", "description": "Looks."}]

    def call_tool(self, server_name: str, tool_name: str, arguments: Mapping[str, Any]) -> str:
        return f"{server_name}/{tool_name}/{arguments['x']}"

    def close(self) -> None:
        raise AssertionError("nobody but its owner closes it")


async def test_a_provider_of_ones_own_takes_the_place_of_the_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    provider = Provider()
    tools = McpTools(of({"anything": 1}, {}), "a", provider=provider)
    assert [d["function"] for d in await tools.definitions()] == [
        {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    ]
    assert "s2 does not list its tools" in caplog.text
    assert await tools.tools() is await tools.tools()
    assert provider.calls == [("connect", "s1", {"anything": 1}), ("connect", "s2", {})]
    assert (await tools.execute_tool("look", "1", {"x": 5})).content == "s1/look/5"
    tools.use(None)
    with pytest.raises(SpecError):
        await tools.tools()


async def test_a_provider_that_knows_no_servers_is_no_client(serve: ServeModel) -> None:
    model = serve(["ok"])
    settings = {"name": "openai/m", "base_url": model.base_url}
    agent = build_agent(
        {"model": settings, "user": "u", "mcp": of(STDIO)},
        tool_provider=SimpleToolProvider([]),  # type: ignore[arg-type]
    )
    await agent.call(AgentRequest())
    assert len(model.requests[0].body["tools"]) == len(NAMES)


FORK = """
import anyio, os, sys
from flat.agents.mcp import McpTools
tools = McpTools({servers!r}, "a")
async def ask():
    return (await tools.execute_tool("add", "1", {{"a": 1, "b": 2}})).content
print(anyio.run(ask), flush=True)
child = os.fork()
if not child:
    print(anyio.run(ask), flush=True)
    sys.exit()
print(os.waitpid(child, 0)[1])
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_a_server_of_its_own() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", FORK.format(servers=of(STDIO))],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (ended.stdout, ended.returncode) == ("3\n3\n0\n", 0), ended.stderr


PROGRAM = """
import anyio, sys
from flat.agents.mcp import McpTools
async def main():
    tools = McpTools({servers!r}, "a")
    print((await tools.execute_tool("add", "1", {{"a": 1, "b": 2}})).content)
    keep.append(tools)
keep = []
anyio.run(main, backend={backend!r})
"""


def test_a_program_that_used_a_server_ends_without_a_word(anyio_backend: str) -> None:
    code = PROGRAM.format(servers=of(STDIO), backend=anyio_backend)
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("3\n", "", 0)
