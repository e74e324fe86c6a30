"""A proxy on the loopback interface that loses what goes through it, at the call that it is told.

    with Proxy(server.port) as proxy:
        store = MyStore(f"…127.0.0.1:{proxy.port}…")
        proxy.plan("reply lost", 3)     # the fourth call from now on: the server does it, and nobody hears of it
        …
        proxy.heal()

A *call* begins when a client sends something after the server has answered, or first of all. The proxy runs in threads
of its own, so that it goes on while an event loop does not.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, Self

Fault = Literal[
    "request lost",
    "request cut in two",
    "reply lost",
    "reply cut in two",
    "request held",
    "reply held",
    "down",
    "throttled",
]
"""What happens to a call. Whatever is lost or cut in two ends the connection; what is held is held until `heal`.
After *down* everything is refused until then. *throttled*: the server never hears of this call and the next ones, and
the client hears that it is busy."""
Refusal = Callable[[bytes], bytes | None]
"""What a busy server answers to all that a client has said since the last answer; None if it has not said all yet."""
FAULTS: tuple[Fault, ...] = (
    "request lost", "request cut in two", "reply lost", "reply cut in two", "request held", "reply held", "down",
)  # fmt: skip
"""Those that need no `Refusal`."""
CHUNK = 1 << 20


class _Link:
    """One client's connection, and ours to the server for it."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client, self.server = client, server
        self.asked = False
        """True while the client has said something that the server has not answered."""
        self.fault: Fault | None = None
        self.left = False
        """True when the client has closed its end: what it said before may still be on its way."""
        self.held = False
        """True from a *held* fault on, until the client is heard of again: speaking, or leaving."""

    def close(self) -> None:
        for end in (self.client, self.server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class Proxy:
    """Listens at `port`, and forwards to a server on another one.

    `lingers`: the server is one that keeps a connection which its client has left, such as some servers of HTTP; it
    has done what it heard when it answers.
    """

    def __init__(self, server_port: int, refusal: Refusal | None = None, *, lingers: bool = False) -> None:
        self._target, self._refusal, self._lingers = server_port, refusal, lingers
        self._refusals = 0
        self._lock = threading.Condition()
        self._whole = threading.Event()
        self._whole.set()
        self._links: set[_Link] = set()
        self._plan: tuple[Fault, int] | None = None
        self._struck = threading.Event()
        self.calls = 0
        """Calls since the last plan."""
        self.port = 0
        self._ear: socket.socket | None = None
        self._listen()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for tests --------------------------------------------------------------------------------

    def plan(self, fault: Fault, call: int, *, times: int = 3) -> None:
        """Let this happen to the call of that number, counted from 0, on whatever connection it comes. Once.

        A server that is *throttled* refuses that call and those that follow, so many `times` in all.
        """
        assert fault != "throttled" or self._refusal is not None, "this proxy knows no words of refusal"
        with self._lock:
            self._plan, self.calls, self._refusals = (fault, call), 0, times
        self._struck.clear()
        self._whole.clear()

    def count(self) -> None:
        """Begin to count calls, and let nothing happen."""
        with self._lock:
            self._plan, self.calls = None, 0

    @property
    def struck(self) -> bool:
        """Whether what was planned has happened."""
        return self._struck.is_set()

    def wait_struck(self, seconds: float = 10.0) -> None:
        """Block until it has. Call it in a thread, where an event loop is to go on."""
        assert self._struck.wait(seconds), "the planned call never came"

    def wait_settled(self, seconds: float = 10.0) -> None:
        """Block until the server has had all that clients said before they left. Call it after `heal`."""
        with self._lock:
            done = self._lock.wait_for(
                lambda: not any(link.left or link.held for link in self._links), seconds
            )
        assert done, "the server still has connections of clients that have left"

    def cut(self) -> None:
        """End all connections now."""
        with self._lock:
            links, self._links = self._links, set()
            self._lock.notify_all()
        for link in links:
            link.close()

    def refuse(self) -> None:
        """End all connections, and take no new ones."""
        ear, self._ear = self._ear, None
        if ear is not None:
            with contextlib.suppress(OSError):
                ear.shutdown(socket.SHUT_RDWR)
            ear.close()
        self.cut()

    def heal(self) -> None:
        """Let go of what is held, take connections again, and let nothing more happen."""
        with self._lock:
            self._plan, self._refusals = None, 0
        self._whole.set()
        if self._ear is None:
            self._listen()

    def close(self) -> None:
        self.refuse()
        self._whole.set()

    # -- inside -----------------------------------------------------------------------------------

    def _listen(self) -> None:
        ear = socket.socket()
        ear.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ear.bind(("127.0.0.1", self.port))
        ear.listen(64)
        self.port, self._ear = ear.getsockname()[1], ear
        threading.Thread(target=self._accept, args=(ear,), name="fault-proxy", daemon=True).start()

    def _accept(self, ear: socket.socket) -> None:
        while True:
            try:
                client, _ = ear.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target), 5)
            except OSError:
                client.close()
                continue
            server.settimeout(None)
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            link = _Link(client, server)
            with self._lock:
                self._links.add(link)
            for pump in (self._requests, self._replies):
                threading.Thread(target=self._run, args=(pump, link), name="fault-proxy", daemon=True).start()

    def _run(self, pump: Callable[[_Link], bool], link: _Link) -> None:
        with contextlib.suppress(OSError):
            if pump(link):
                return
        with self._lock:
            self._links.discard(link)
            self._lock.notify_all()
        link.close()

    def _requests(self, link: _Link) -> bool:
        """Forward what the client says. True if the link is to live on, until the server has read all of it."""
        said = b""
        while data := link.client.recv(CHUNK):
            link.held = False
            self._begin_call(link)
            if link.fault == "throttled":
                said = self._refuse_call(link, said + data)
                continue
            match link.fault:
                case "request lost":
                    return self._strike()
                case "request cut in two":
                    link.server.sendall(data[: len(data) // 2])
                    return self._strike()
                case "request held":
                    link.held = True
                    self._strike()
                    self._whole.wait()
                    link.fault = None
                case "down":
                    self._strike()
                    self.refuse()
                    return False
            link.server.sendall(data)
        with self._lock:
            link.left, link.held = True, False
            self._lock.notify_all()
        if self._lingers and not link.asked:
            return False
        link.server.shutdown(socket.SHUT_WR)
        return True

    def _replies(self, link: _Link) -> bool:
        while data := link.server.recv(CHUNK):
            link.asked = False
            match link.fault:
                case "reply lost":
                    return self._strike()
                case "reply cut in two":
                    link.client.sendall(data[: len(data) // 2])
                    return self._strike()
                case "reply held":
                    link.held = True
                    self._strike()
                    self._whole.wait()
                    link.fault = None
            with contextlib.suppress(OSError):  # it may have left; the server is to finish all the same
                link.client.sendall(data)
            if self._lingers and link.left:
                return False
        return False

    def _refuse_call(self, link: _Link, said: bytes) -> bytes:
        """Answer in the server's place. Gives what has been said of a call that is not whole yet."""
        assert self._refusal is not None
        if (words := self._refusal(said)) is None:
            return said
        self._strike()
        link.fault, link.asked = None, False
        link.client.sendall(words)
        return b""

    def _begin_call(self, link: _Link) -> None:
        with self._lock:
            if link.asked:
                return
            link.asked = True
            self.calls += 1
            if self._plan is None or self.calls <= self._plan[1]:
                return
            link.fault = self._plan[0]
            if link.fault == "throttled" and self._refusals > 1:
                self._refusals -= 1
            else:
                self._plan = None

    def _strike(self) -> bool:
        self._struck.set()
        return False
