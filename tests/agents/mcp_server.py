"""A small real MCP server: on stdin and stdout when run as a script, over HTTP when a test says so."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ImageContent, TextContent

SCRIPT = Path(__file__)


def make_server() -> MCPServer:
    server = MCPServer("numbers")

    @server.tool(description="Adds two numbers.")
    def add(a: int, b: int) -> str:
        return str(a + b)

    @server.tool(description="Fails.")
    def fail(why: str) -> str:
        raise ToolError(why)

    @server.tool(description="Ends the server.")
    def die() -> str:
        os._exit(3)

    @server.tool(description="Never answers.")
    async def hang() -> str:
        await anyio.sleep_forever()
        return ""

    @server.tool(description="Tells its process and its TOKEN.")
    def who() -> str:
        return f"{os.getpid()} {os.environ.get('TOKEN')}"

    @server.tool(description="Draws.")
    def draw() -> list[TextContent | ImageContent]:
        return [
            TextContent(type="text", text="a dot"),
            ImageContent(type="image", data="AAAA", mime_type="image/png"),
        ]

    return server


class HttpServer:
    """The server on a free loopback port; `headers` are those of the last request."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._server: Any = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/mcp"

    def _run(self) -> None:
        # All of it is made here: made in a trio test, its locks would be trio's.
        import uvicorn

        app: Any = make_server().streamable_http_app()

        async def spy(scope: Any, receive: Any, send: Any) -> None:
            for name, value in scope.get("headers") or ():
                self.headers[name.decode()] = value.decode()
            await app(scope, receive, send)

        self._server = uvicorn.Server(uvicorn.Config(spy, log_level="error", lifespan="on"))
        self._server.run(sockets=[self._socket])

    def __enter__(self) -> HttpServer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)
        self._socket.close()


STDIO = {"command": sys.executable, "args": [str(SCRIPT)]}

if __name__ == "__main__":
    make_server().run()
