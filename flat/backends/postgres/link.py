"""A connection of psycopg's that waits on any event loop, and speaks our text.

psycopg's asynchronous connections know asyncio alone, but each of their operations is a generator that says which
side of the socket it waits for, and one method runs them all: `wait`. Here anyio does the waiting, so that asyncio
and trio share one code path, without a thread per statement. Connecting, which looks up host names and talks TLS, is
left to psycopg's blocking half, in a worker thread, once per connection. `psycopg_pool` is asyncio's alone, too.

**Cancelled in the middle**, a statement gets `GRACE` seconds to finish, so that the connection can be used again.
"""

from __future__ import annotations

import select
import time
from collections.abc import Sequence
from contextlib import aclosing, suppress
from typing import Any, NoReturn, TypeVar

import anyio
from psycopg import AsyncConnection, AsyncRawCursor, Connection, Error, OperationalError
from psycopg.abc import PQGen
from psycopg.adapt import Dumper, Loader
from psycopg.pq import Format, TransactionStatus
from psycopg.types.array import ListBinaryDumper
from psycopg.types.numeric import Int8BinaryDumper
from psycopg.waiting import Ready, Wait

from flat.backends.postgres.answers import GRACE, Answer, Lost, Refused, Rows
from flat.backends.postgres.names import Document, escape, unescape, utf8

RV = TypeVar("RV")

TRUSTED = 0.5
"""Seconds of idleness after which a connection is looked at before it is used."""
PREPARED_AFTER = 10
"""Uses of a statement until it is prepared, which is a round trip of its own."""
UNKNOWN, TEXT, JSONB = 0, 25, 3802
"""Numbers of PostgreSQL's types; what is unknown, the server infers."""


class _Text(Dumper):
    oid = UNKNOWN

    def dump(self, obj: str) -> bytes:
        return utf8(escape(obj))


class _BinaryText(_Text):
    """In lists, which say what they are lists of."""

    format = Format.BINARY
    oid = TEXT


class _Document(Dumper):
    format = Format.BINARY
    oid = JSONB

    def dump(self, obj: Document) -> bytes:
        return b"\1" + obj


class _Unescaped(Loader):
    format = Format.BINARY

    def load(self, data: Any) -> str:
        return unescape(bytes(data).decode())


class Link(AsyncConnection[tuple[Any, ...]]):
    """A connection, used by one task at a time, on any event loop."""

    def __init__(self, connection: Connection[Any]) -> None:
        super().__init__(connection.pgconn)
        # What it made is ours now, and it has nothing to close.
        del connection.pgconn
        self._wanted: Wait = Wait.R
        self.cursor_factory = AsyncRawCursor
        # Integers are of one type, so that a statement is prepared once, whatever their size.
        self.prepare_threshold = PREPARED_AFTER
        for kind, dumper in (
            (str, _BinaryText), (str, _Text), (Document, _Document), (int, Int8BinaryDumper), (list, ListBinaryDumper),
        ):  # fmt: skip
            self.adapters.register_dumper(kind, dumper)
        for name in ("text", "name"):
            self.adapters.register_loader(name, _Unescaped)
        # One for all statements: it remembers how each type is written and read.
        self._cursor = self.cursor(binary=True)
        self.used = 0.0
        """When it was last given back."""
        self.deadline = 0.0
        """Until when whoever is cancelled may be kept waiting."""

    def __del__(self, *_: Any) -> None:
        # A store that nobody closed: the machines of the seed system's API have no end at which they could.
        if hasattr(self, "pgconn"):
            self.cut()

    @classmethod
    async def adopt(cls, connection: Connection[Any]) -> Link:
        """A link over a connection that psycopg's blocking half has made."""
        link = cls(connection)
        await link.set_autocommit(True)
        return link

    async def wait(self, gen: PQGen[RV], interval: float = 0.0, timeout: float | None = None) -> RV:
        """Run an operation of psycopg's to its end. For how long is up to the caller's cancel scope."""
        try:
            self._wanted = next(gen)
        except StopIteration as end:
            value: RV = end.value
            return value
        try:
            return await self._go_on(gen)
        except anyio.get_cancelled_exc_class():
            if self.is_busy() and anyio.current_time() < self.deadline:
                with anyio.move_on_after(GRACE, shield=True), suppress(Error, OSError):
                    await self._go_on(gen)
            raise

    async def _go_on(self, gen: PQGen[RV]) -> RV:
        try:
            while True:
                if self._wanted == Wait.R:
                    await anyio.wait_readable(self.pgconn.socket)
                    self._wanted = gen.send(Ready.R)
                else:
                    # To write, or both: a server with one statement to read does not begin to answer before its end.
                    await anyio.wait_writable(self.pgconn.socket)
                    self._wanted = gen.send(Ready.W)
        except StopIteration as end:
            value: RV = end.value
            return value

    def is_busy(self) -> bool:
        """Whether the end of a statement is not known, so that there can be no other one."""
        return self.pgconn.transaction_status != TransactionStatus.IDLE

    def is_alive(self) -> bool:
        """Whether an idle connection may be used: a server that went away has left something to read."""
        if self.closed:
            return False
        if time.monotonic() - self.used < TRUSTED:
            return True
        if not hasattr(select, "poll"):
            return not select.select([self.pgconn.socket], [], [], 0)[0]
        poll = select.poll()
        poll.register(self.pgconn.socket, select.POLLIN)
        return not poll.poll(0)

    def cut(self) -> None:
        """Close it, without waiting for anything."""
        self.pgconn.finish()

    async def ask(self, answer: Answer, statement: str, values: Sequence[Any] = ()) -> None:
        """Execute a statement. Raises `Refused` or `Lost`.

        The rows are in `answer`, also when this was cancelled but the statement could still be finished.
        """
        if self.closed:
            raise Lost("the connection is closed")
        cursor = self._cursor
        try:
            try:
                await cursor.execute(statement.encode(), values)
            finally:
                if (result := cursor.pgresult) is not None:
                    answer.rows = await cursor.fetchall() if result.nfields else []
        except (Error, OSError) as error:
            self._say(error)

    async def rows(self, statement: str, *values: Any) -> Rows:
        """Execute a statement. Raises `Refused` or `Lost`."""
        answer = Answer()
        await self.ask(answer, statement, values)
        return answer.rows or []

    async def run(self, statements: str) -> None:
        """Execute any number of statements that take and give nothing. Raises `Refused` or `Lost`."""
        try:
            await self.cursor().execute(statements.encode(), prepare=False)
        except (Error, OSError) as error:
            self._say(error)

    async def wait_notified(self) -> None:
        """Wait for a notification, unless there was one since the last time. Raises `Lost`."""
        try:
            async with aclosing(self.notifies(stop_after=1)) as notifications:
                async for _ in notifications:
                    pass
        except (Error, OSError) as error:
            self._say(error)

    def _say(self, error: Error | OSError) -> NoReturn:
        """Raise what an error means: `Refused`, `Lost`, or itself."""
        if isinstance(error, Error) and error.sqlstate:
            raise Refused(error.sqlstate, error.diag.message_primary or str(error)) from error
        if isinstance(error, OSError | OperationalError) or self.closed:
            raise Lost(str(error).strip() or type(error).__name__) from error
        raise error
