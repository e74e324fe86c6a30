"""How the Redis backends talk to their server: a connection, and calls that share round trips.

**No task and no event loop owns a connection.** A store is opened without awaiting anything, is used by any task, and
may see several event loops in its life. So the socket is a plain one, read when the event loop says that it is
readable, and whoever has to wait for a reply anyway reads for everybody: the *leader* sends all calls that stand in
line in one write, and hands the replies out. Calls made meanwhile stand in line for the next write. So a lone caller
pays one round trip, and many at once share one, with nothing to start or to stop.

A leader that is cancelled hands over to the next caller; replies that nobody waits for any more are read and dropped
by whoever reads next. A connection that breaks fails the calls that were under way with `Lost`; `Client` opens another
one and makes them again, which is safe because every script recognises a call that it has answered already.

That is also why the client library is hiredis, which knows the protocol and nothing else. redis-py's asynchronous
client does not run on trio. coredis runs on both, but its connections live in a task group of its own, which has to be
entered by a task that outlives all users of the store, and there is none. Nor could a store on top of either be as fast
as this one is with all that it checks (`python -m benchmarks stores`; microseconds of processor time per durable step):

                               this store    redis.asyncio    coredis
    a step, alone                  50             130            250
    a step, 32 ready at once       18              32             41

where the two clients were given the best case: nothing checked, and all that is ready in one transaction of one task.
What is ours therefore is a few hundred lines of sockets and queues; every check of the conformance and fault kits runs
through them, on asyncio and on trio.
"""

from __future__ import annotations

import hashlib
import os
import random
import select
import socket
import ssl
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import anyio
from anyio.lowlevel import RunVar, checkpoint

from flat.backends.redis.address import Address, explain, is_busy, parse_url, resolved
from flat.errors import BackendError

try:
    import hiredis
except ModuleNotFoundError as error:
    raise BackendError("stores in Redis need a client library: pip install 'flat[redis]'") from error

FORMAT = b"1"
"""What is written under `<prefix>:format`; another number is another version of flat."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Seconds before a call is made again: at first, and at most."""
CHUNK = 262_144
"""Bytes that are read from the socket at a time."""
AT_ONCE = 0.001
"""Seconds for which the event loop is kept waiting for a reply. A server nearby answers within them, and a turn of the
event loop would cost as much again; after one that does not, the event loop turns for the next `FAR` messages."""
FAR = 32
BROKEN = (OSError, anyio.ClosedResourceError, hiredis.ProtocolError)
"""How a connection ends."""

# -- one connection -------------------------------------------------------------------------------


class Lost(Exception):
    """The connection is gone. `sent`: the server may have seen the call, so that its outcome is not known."""

    def __init__(self, why: str, *, sent: bool) -> None:
        super().__init__(why)
        self.sent = sent


class Wire:
    """A connected, authenticated socket that does not block, and the replies that come out of it."""

    def __init__(self, address: Address) -> None:
        """Connect. Blocks, so it is done in a thread."""
        self.reader = hiredis.Reader()
        sock = socket.create_connection((address.host, address.port), timeout=address.timeout)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if address.tls:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=address.host)
            self._socket = sock
            self._greet(address)
            sock.setblocking(False)
        except BaseException:
            sock.close()
            raise

    def _greet(self, address: Address) -> None:
        hello: list[str] = ["HELLO", "3"]
        if address.password or address.username:
            hello += ["AUTH", resolved(address.username) or "default", resolved(address.password)]
        key = f"{address.prefix}:format".encode()
        said = self._ask_blocking(
            pack(*hello), pack("SELECT", str(address.db)), pack("GET", key), pack("INFO", "memory")
        )
        if said[2] is None:  # a server whose memory is full can still be read
            said += self._ask_blocking(pack("SET", key, FORMAT, "NX"), pack("GET", key))
            said[2] = said[-1]
        for reply in (*said[:3], *said[4:]):
            if isinstance(reply, Exception):
                if is_busy(reply):
                    raise ConnectionRefusedError(str(reply)) from reply
                raise explain(reply, address, "connecting")
        if said[2] != FORMAT:
            raise BackendError(
                f"{address} has store format {said[2]!r}, this version of flat writes format {FORMAT!r}; "
                "use the version of flat that wrote it, or another prefix"
            )
        _refuse_eviction(said[3], address)

    def _ask_blocking(self, *commands: bytes) -> list[Any]:
        self._socket.sendall(b"".join(commands))
        replies: list[Any] = []
        while len(replies) < len(commands):
            data = self._socket.recv(CHUNK)
            if not data:
                raise ConnectionError("the server closed the connection")
            self.reader.feed(data)
            while (reply := self.reader.gets()) is not False:
                replies.append(reply)
        return replies

    async def send(self, data: bytes, patience: float) -> None:
        """Send all of it, whoever cancels us: what came after a message cut short would be taken for its rest."""
        with suppress(BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            # Most messages fit, and a scope costs as much as sending one.
            if (sent := self._socket.send(data)) == len(data):
                return
            data = data[sent:]
        with anyio.fail_after(patience, shield=True):
            await self._send_rest(memoryview(data))

    async def _send_rest(self, left: memoryview) -> None:
        while left:
            try:
                left = left[self._socket.send(left) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                await anyio.wait_writable(self._socket)
            except ssl.SSLWantReadError:
                await anyio.wait_readable(self._socket)

    def wait_shortly(self) -> bool:
        """Block for a reply that may be here at once; False if it is not."""
        try:
            return bool(select.select((self._socket,), (), (), AT_ONCE)[0])
        except ValueError:  # a number too high for select
            return False

    async def receive(self) -> list[Any]:
        """The next replies, at least one. Raises `OSError` at the end of the connection."""
        while True:
            replies = []
            while (reply := self.reader.gets()) is not False:
                replies.append(reply)
            if replies:
                return replies
            try:
                data = self._socket.recv(CHUNK)
            except (BlockingIOError, ssl.SSLWantReadError):
                await anyio.wait_readable(self._socket)
            except ssl.SSLWantWriteError:
                await anyio.wait_writable(self._socket)
            else:
                if not data:
                    raise ConnectionError("the server closed the connection")
                self.reader.feed(data)

    def close(self) -> None:
        with suppress(
            Exception
        ):  # whoever waits for it in this event loop is to wake up; there may be no loop
            anyio.notify_closing(self._socket)
        self._socket.close()

    def __del__(self) -> None:
        if (sock := getattr(self, "_socket", None)) is not None:
            sock.close()


def pack(*words: str | bytes) -> bytes:
    """A command in the protocol of Redis."""
    return bytes(hiredis.pack_command(words))  # type: ignore[arg-type] # its stub says a tuple of one


def _refuse_eviction(info: Any, address: Address) -> None:
    """A server that throws keys away when its memory is full would throw checkpoints away."""
    if not isinstance(info, bytes | str):
        return
    text = info.decode(errors="replace") if isinstance(info, bytes) else info
    facts = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    policy = facts.get("maxmemory_policy", "")
    if facts.get("maxmemory", "0") != "0" and policy.startswith("allkeys"):
        raise BackendError(
            f"the server at {address} deletes any key when its memory is full (maxmemory-policy {policy}), and so "
            "would lose executions; set it to noeviction, or use another server"
        )


# -- calls that share round trips ------------------------------------------------------------------


class _Call:
    """A command and what becomes of it. `held`: answered when the copies of what it wrote are confirmed."""

    __slots__ = ("done", "event", "gone", "held", "leads", "lost", "payload", "reply", "writes")

    def __init__(self, payload: bytes, writes: bool = False) -> None:
        self.payload, self.writes = payload, writes
        self.reply: Any = None
        self.lost: Lost | None = None
        self.done = self.leads = self.gone = self.held = False
        self.event: anyio.Event | None = None

    def take(self, reply: Any) -> None:
        self.reply = reply
        if not self.held:
            self.end()

    def fail(self, lost: Lost) -> None:
        if not self.done:
            self.lost = lost
            self.end()

    def end(self) -> None:
        self.done = True
        if self.event is not None:
            self.event.set()


class _Confirmation(_Call):
    """Ends the calls of a batch when the server says that what they wrote is kept."""

    __slots__ = ("address", "batch", "begun")

    def __init__(self, address: Address, batch: Sequence[_Call]) -> None:
        patience, key = str(int(address.timeout * 1000)), f"{address.prefix}:confirmed"
        if address.fsync:
            wait = pack("WAITAOF", "1", str(address.replicas), patience)
        else:
            wait = pack("WAIT", str(address.replicas), patience)
        # The server waits for what this connection wrote. A repeated call may have written on one that broke.
        super().__init__(pack("SET", key, "1") + wait)
        self.address, self.batch, self.begun = address, batch, False
        for call in batch:
            call.held = True

    def take(self, reply: Any) -> None:
        refusal = self._refusal(reply)
        for call in self.batch:
            if refusal is not None and not isinstance(call.reply, Exception):
                call.reply = refusal
            call.end()
        self.end()

    def _refusal(self, reply: Any) -> Exception | None:
        if isinstance(reply, Exception):
            return explain(reply, self.address, "waiting until it is kept")
        local, copies = reply if isinstance(reply, list) else (1, reply)
        if local >= 1 and copies >= self.address.replicas:
            return None
        missing = (
            "it is not on disk yet" if local < 1 else f"{copies} of {self.address.replicas} replicas have it"
        )
        return BackendError(
            f"{self.address} did it, but did not confirm within {self.address.timeout:g} s that it is kept: {missing}"
        )

    def fail(self, lost: Lost) -> None:
        for call in self.batch:
            call.fail(lost)
        super().fail(lost)


class Pipe:
    """The connection of one event loop, and who waits for what."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._confirms = address.fsync or address.replicas > 0
        self._wire: Wire | None = None
        self._queue: deque[_Call] = deque()
        self._under_way: deque[_Call] = deque()
        self._led = False
        self._patient = 0
        """Messages for whose replies the event loop is not kept waiting."""
        self._process = os.getpid()
        self._deadline = 0.0
        self.name = uuid.uuid4().hex[:16].encode()
        """Tells our calls from everybody else's in the server."""
        self.calls = 0

    async def ask(self, payload: bytes, *, writes: bool = False) -> Any:
        """The reply to a command, which may be an exception. Raises `Lost`."""
        if self._process != os.getpid():
            raise BackendError("a store was used on both sides of a fork; open one in each process")
        call = _Call(payload, writes and self._confirms)
        self._queue.append(call)
        try:
            if self._led:
                call.event = anyio.Event()
                await call.event.wait()
            else:
                self._led = call.leads = True
            if not call.done:
                await self._lead(call)
        except BaseException:
            call.gone = True
            if call in self._queue:
                self._queue.remove(call)
            raise
        finally:
            if call.leads:
                self._hand_over()
        if call.lost is not None:
            raise call.lost
        return call.reply

    def _hand_over(self) -> None:
        for line in (self._under_way, self._queue):
            for call in line:
                if not call.gone and not call.done and call.event is not None:
                    call.leads = True
                    call.event.set()
                    return
        self._led = False

    async def _lead(self, mine: _Call) -> None:
        """Send and read until our own call is answered, and nothing is under way."""
        # Whoever else is ready joins in during this turn of the event loop.
        await checkpoint()
        try:
            if self._wire is None:
                connect = partial(Wire, self._address)
                self._wire = await anyio.to_thread.run_sync(connect, abandon_on_cancel=True)
            while self._under_way or not mine.done:
                if not self._under_way:
                    await self._send(self._wire)
                for reply in await self._receive(self._wire):
                    if not isinstance(reply, hiredis.PushNotification):
                        self._answer(reply)
        except BROKEN as error:
            # A deadline of ours ends in TimeoutError; one of the caller's arrives as a cancellation.
            self._fail(str(error) or f"no answer within {self._address.timeout:g} s")

    async def _receive(self, wire: Wire) -> list[Any]:
        if self._patient > 0:
            self._patient -= 1
        elif wire.wait_shortly():
            return await wire.receive()
        else:
            self._patient = FAR
        with anyio.fail_after(max(0.0, self._deadline - anyio.current_time())):
            return await wire.receive()

    def _answer(self, reply: Any) -> None:
        call = self._under_way[0]
        if isinstance(call, _Confirmation) and not call.begun:
            call.begun = True  # that was the reply to its write; the one to its wait is next
        else:
            self._under_way.popleft().take(reply)

    async def _send(self, wire: Wire) -> None:
        batch = list(self._queue)
        self._queue.clear()
        if written := [call for call in batch if call.writes]:
            batch.append(_Confirmation(self._address, written))
        self._under_way.extend(batch)
        # The server itself may take as long as we gave it to wait for copies.
        self._deadline = anyio.current_time() + self._address.timeout * (2 if written else 1)
        await wire.send(b"".join([call.payload for call in batch]), self._address.timeout)

    def _fail(self, why: str) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        for line, sent in ((self._under_way, True), (self._queue, False)):
            while line:
                line.popleft().fail(Lost(why, sent=sent))

    def close(self) -> None:
        self._fail("the store was closed")


class Script:
    """A Lua script, which the server runs from beginning to end with nothing in between."""

    def __init__(self, text: str, *, writes: bool = True) -> None:
        self.text = text.encode()
        self.digest = hashlib.sha1(self.text, usedforsecurity=False).hexdigest().encode()
        self.writes = writes


Word = str | bytes | int | float | None


def words(values: Sequence[Word]) -> list[bytes | str]:
    """Arguments of a script. Numbers are written so that they come back as they were; None is the empty text."""
    return [
        "" if value is None else value if isinstance(value, bytes | str) else repr(value) for value in values
    ]


class Client:
    """Runs scripts: as often as it takes, and each with one effect."""

    def __init__(self, address: Address | str) -> None:
        self.address = parse_url(address) if isinstance(address, str) else address
        self.prefix = f"{self.address.prefix}:".encode()
        self._pipes: RunVar[Pipe | None] = RunVar(f"flat.redis.{uuid.uuid4().hex}", default=None)
        self._closed = False

    def number(self) -> tuple[bytes, bytes]:
        """Who calls, and the number of the next call: the server knows by them what it has answered already."""
        pipe = self._pipe()
        pipe.calls += 1
        return pipe.name, b"%d" % pipe.calls

    async def run(
        self, doing: str, script: Script, *values: Word, number: tuple[bytes, bytes] | None = None
    ) -> Any:
        """The result of a script. It is told our prefix, whether it may have run before, and the call's number."""
        pipe = self._pipe()
        if number is None:
            pipe.calls += 1
            number = (pipe.name, b"%d" % pipe.calls)
        rest = [*number, *words(values)]

        async def attempt(again: bool) -> Any:
            tail = (b"0", self.prefix, b"1" if again else b"0", *rest)
            reply = await pipe.ask(pack(b"EVALSHA", script.digest, *tail), writes=script.writes)
            if isinstance(reply, Exception) and str(reply).startswith("NOSCRIPT"):
                reply = await pipe.ask(pack(b"EVAL", script.text, *tail), writes=script.writes)
            return reply

        return await self._insist(doing, attempt)

    async def command(self, doing: str, *command: str | bytes) -> Any:
        """The reply to a command that may be repeated without harm."""
        pipe = self._pipe()
        return await self._insist(doing, lambda again: pipe.ask(pack(*command)))

    async def _insist(self, doing: str, attempt: Callable[[bool], Awaitable[Any]]) -> Any:
        deadline, pause, again = time.monotonic() + self.address.timeout, FIRST_PAUSE, False
        while True:
            try:
                reply = await attempt(again)
            except Lost as lost:
                again = again or lost.sent
                why: Exception = lost
            else:
                if not isinstance(reply, Exception):
                    return reply
                if isinstance(reply, BackendError):
                    raise reply
                if not is_busy(reply):
                    raise explain(reply, self.address, doing) from reply
                why = reply
            if self._closed:
                raise BackendError(f"the store at {self.address} is closed; open it again") from why
            if time.monotonic() + pause > deadline:
                raise self._given_up(doing, why, again) from why
            await anyio.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _given_up(self, doing: str, why: Exception, unknown: bool) -> BackendError:
        outcome = "; whether it was done is not known, so look before you repeat it" if unknown else ""
        return BackendError(
            f"the Redis server at {self.address} could not be reached for {self.address.timeout:g} s: {why}; "
            f"see that it runs, and try again{outcome} [while {doing}]"
        )

    def _pipe(self) -> Pipe:
        if self._closed:
            raise BackendError(f"the store at {self.address} is closed; open it again")
        pipe = self._pipes.get()
        if pipe is None:
            pipe = Pipe(self.address)
            self._pipes.set(pipe)
        return pipe

    async def close(self) -> None:
        self._closed = True
        if (pipe := self._pipes.get()) is not None:
            pipe.close()
            self._pipes.set(None)
