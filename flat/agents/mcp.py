"""Tools of MCP servers: which of them an agent may use, and how they reach its prompts and its model.

    mcp:
      servers:
        files: {command: mcp-files, args: ["/data"], env: {TOKEN: "${env:FILES_TOKEN}"}}
        search: {server_url: "https://example.com/mcp", headers: {Authorization: "Bearer ${env:KEY}"}, timeout: 20}
      tool_filter: {allow: ["files:*", "search:web"], deny: ["files:delete"]}
      tool_prompt: "{% for tool in tools %}- {{ tool.name }}: {{ tool.description }}\n{% endfor %}"

What the servers offer is asked for on the first call that needs it, and kept. The connections themselves are
`mcp_client`'s; a provider given by the user (`connect`, `get_tools`, `call_tool`) takes its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import anyio.to_thread

from flat.agents.tools import Definition, ToolResult
from flat.core.record import record
from flat.core.template import Template, compile_text
from flat.errors import AgentFailed, Location, SpecError, did_you_mean

log = logging.getLogger("flat.mcp")

_KEYS = ("servers", "tool_filter", "tool_prompt")
_EMPTY_SCHEMA = {"type": "object", "properties": {}}

Locate = Callable[[tuple[str, ...]], Location | None]


@runtime_checkable
class MCPToolProvider(Protocol):
    """A client of one's own in place of the built-in one. Its methods may block: they run in worker threads."""

    def connect(self, server_name: str, config: Mapping[str, Any]) -> Any: ...

    def get_tools(self, server_name: str) -> Sequence[Mapping[str, Any]]:
        """Each `{name, description, inputSchema}`."""
        ...

    def call_tool(self, server_name: str, tool_name: str, arguments: Mapping[str, Any]) -> Any: ...

    def close(self) -> None: ...


def serves_mcp(provider: Any) -> bool:
    """Whether a provider is one for MCP servers; others carry out tools, and know of no servers."""
    return all(callable(getattr(provider, name, None)) for name in ("connect", "get_tools"))


class Connection(Protocol):
    """What can be asked of one server."""

    async def list_tools(self) -> Sequence[Mapping[str, Any]]: ...

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolResult: ...


@record
class Filter:
    """`allow` and `deny` of a config: `server:tool` or `server:*`. Deny wins; no `allow` allows all."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def passes(self, server: str, tool: str) -> bool:
        """Whether the agent may know of this tool."""
        names = (f"{server}:{tool}", f"{server}:*")
        if any(name in self.deny for name in names):
            return False
        return not self.allow or any(name in self.allow for name in names)


class McpTools:
    """The MCP side of one agent."""

    def __init__(
        self,
        config: Mapping[str, Any],
        agent: str,
        *,
        locate: Locate | None = None,
        compat: bool = False,
        provider: MCPToolProvider | None = None,
    ) -> None:
        where = locate(("mcp",)) if locate else None
        self.agent = agent
        self.servers: dict[str, Mapping[str, Any]] = _servers(config, agent, where)
        self.filter = _filter(config, agent, self.servers, where)
        self._prompt = _prompt(config, agent, where, compat)
        self._compat = compat
        self._provider = provider
        self._connections: dict[str, Connection] = {}
        self._tools: tuple[dict[str, Any], ...] | None = None

    def use(self, provider: MCPToolProvider | None) -> None:
        """Replace the client, and forget what was found with the old one."""
        self._provider, self._connections, self._tools = provider, {}, None

    async def tools(self) -> tuple[dict[str, Any], ...]:
        """What the servers offer and the filter lets pass; each with its `_server` and `_qualified` name."""
        if self._tools is None:
            found: list[dict[str, Any]] = []
            for server in self.servers:
                found += await self._discover(server)
            self._refuse_twins(found)
            self._tools = tuple(found)
        return self._tools

    async def definitions(self) -> tuple[Definition, ...]:
        """The tools as a model is told of them."""
        return tuple(_definition(tool) for tool in await self.tools())

    async def prompt(self) -> str:
        """`tools_prompt` as prompts see it."""
        return str(self._prompt.render({"tools": list(await self.tools())})) if self._prompt.source else ""

    def server_of(self, tool: str) -> str | None:
        """Which server has the tool, as far as is known yet."""
        return next((t["_server"] for t in self._tools or () if t["name"] == tool), None)

    async def execute_tool(self, name: str, tool_call_id: str, arguments: Mapping[str, Any]) -> ToolResult:
        """Call the tool on its server. What the server calls an error is a result that the model gets to read."""
        await self.tools()
        server = self.server_of(name)
        if server is None:
            known = [t["name"] for t in self._tools or ()]
            return ToolResult(f"Unknown tool: {name}; {did_you_mean(name, known)}", is_error=True)
        connection = await self._connection(server)
        return await connection.call_tool(name, arguments)

    async def _discover(self, server: str) -> list[dict[str, Any]]:
        connection = await self._connection(server)
        try:
            listed = await connection.list_tools()
        except AgentFailed:
            raise
        except Exception:  # a provider of the user's that cannot list one server: the others still serve
            log.warning(
                "agent %s: the MCP server %s does not list its tools", self.agent, server, exc_info=True
            )
            return []
        return [
            {**tool, "_server": server, "_qualified": f"{server}:{tool['name']}"}
            for tool in listed
            if self.filter.passes(server, tool["name"])
        ]

    async def _connection(self, server: str) -> Connection:
        if server not in self._connections:
            self._connections[server] = await self._connect(server)
        return self._connections[server]

    async def _connect(self, server: str) -> Connection:
        config = self.servers[server]
        if self._provider is not None:
            await anyio.to_thread.run_sync(self._provider.connect, server, config)
            return _Provided(self._provider, server)
        from flat.agents.mcp_client import McpServer

        return McpServer(server, config, self.agent)

    def _refuse_twins(self, found: Sequence[Mapping[str, Any]]) -> None:
        """Two tools of one name cannot both be offered: models call tools by their plain names."""
        seen: dict[str, str] = {}
        for tool in found:
            name, server = tool["name"], tool["_server"]
            if name in seen and not self._compat:
                raise AgentFailed(
                    f'agent "{self.agent}": the MCP servers "{seen[name]}" and "{server}" both have a tool "{name}"',
                    code="invalid_request",
                    hint=f'deny one of them: tool_filter: {{deny: ["{server}:{name}"]}}',
                )
            seen.setdefault(name, server)


class _Provided:
    """A server behind a provider of the user's."""

    def __init__(self, provider: MCPToolProvider, server: str) -> None:
        self._provider, self._server = provider, server

    async def list_tools(self) -> Sequence[Mapping[str, Any]]:
        return await anyio.to_thread.run_sync(self._provider.get_tools, self._server)

    async def call_tool(self, name: str, arguments: Mapping[str, Any]) -> ToolResult:
        answer = await anyio.to_thread.run_sync(self._provider.call_tool, self._server, name, arguments)
        return answer if isinstance(answer, ToolResult) else ToolResult(str(answer))


def _definition(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": tool["name"], "parameters": tool.get("inputSchema") or _EMPTY_SCHEMA}
    if tool.get("description"):
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


def _servers(config: Any, agent: str, where: Location | None) -> dict[str, Mapping[str, Any]]:
    if not isinstance(config, Mapping):
        raise SpecError(f'agent "{agent}": `mcp` is a mapping with `servers`, not {config!r}', where)
    for key in config:
        if key not in _KEYS:
            raise SpecError(
                f'agent "{agent}": unknown key "mcp.{key}"; {did_you_mean(str(key), _KEYS)}', where
            )
    servers = {} if config.get("servers") is None else config["servers"]
    if not isinstance(servers, Mapping):
        raise SpecError(f'agent "{agent}": `mcp.servers` is a mapping of names to servers', where)
    return {
        str(name): _server(server, f'agent "{agent}": mcp.servers.{name}', where)
        for name, server in servers.items()
    }


def _server(config: Any, name: str, where: Location | None) -> Mapping[str, Any]:
    if not isinstance(config, Mapping):
        raise SpecError(f"{name} is not a mapping", where)
    return config


def _filter(
    config: Mapping[str, Any], agent: str, servers: Mapping[str, Any], where: Location | None
) -> Filter:
    given = config.get("tool_filter") or {}
    if not isinstance(given, Mapping):
        raise SpecError(f'agent "{agent}": `mcp.tool_filter` is a mapping with `allow` and `deny`', where)
    for key in given:
        if key not in ("allow", "deny"):
            raise SpecError(
                f'agent "{agent}": unknown key "mcp.tool_filter.{key}"; known: allow, deny', where
            )
    for pattern in (*(given.get("allow") or ()), *(given.get("deny") or ())):
        server, colon, tool = str(pattern).partition(":")
        if not colon or not tool or ("*" in tool and tool != "*"):
            raise SpecError(
                f'agent "{agent}": mcp.tool_filter: "{pattern}" is neither `server:tool` nor `server:*`',
                where,
            )
        if server not in servers:
            raise SpecError(
                f'agent "{agent}": mcp.tool_filter: no server "{server}"; {did_you_mean(server, servers)}',
                where,
            )
    return Filter(tuple(given.get("allow") or ()), tuple(given.get("deny") or ()))


def _prompt(config: Mapping[str, Any], agent: str, where: Location | None, compat: bool) -> Template:
    source = config.get("tool_prompt") or ""
    if not isinstance(source, str):
        raise SpecError(f'agent "{agent}": `mcp.tool_prompt` is not text but {source!r}', where)
    template = compile_text(source, where, lenient=compat)
    template.check(None if compat else ("tools",))
    return template
