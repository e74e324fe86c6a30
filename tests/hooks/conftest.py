"""What the tests of hooks share: a recorder, and an HTTP endpoint on this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Endpoint:
    """An HTTP server that notes what it gets. `answer` says what comes back: a value for JSON, or (status, bytes)."""

    url: str = ""
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: set[Any] = field(default_factory=set)
    answer: Callable[[dict[str, Any]], Any] = lambda event: {}

    @property
    def events(self) -> list[str]:
        return [event["event"] for event in self.seen]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    here = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            event = json.loads(self.rfile.read(int(self.headers["content-length"])))
            here.seen.append(event)
            here.headers.append({key.lower(): value for key, value in self.headers.items()})
            here.connections.add(self.client_address)
            given = here.answer(event)
            status, body = given if isinstance(given, tuple) else (200, json.dumps(given).encode())
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    here.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield here
    server.shutdown()
    server.server_close()
    thread.join()
