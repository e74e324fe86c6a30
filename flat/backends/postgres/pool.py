"""A pool of connections to PostgreSQL, and statements that are sent until they are answered.

**A statement is a transaction.** Nothing here says BEGIN: whatever must happen together is one statement, or one
function in the database. So a connection is never left inside a transaction, whoever dies at whatever moment.

**Every statement may be repeated.** When a connection breaks, nobody can tell whether the statement that was under
way was executed. All of ours are written so that executing one twice is the same as executing it once (they carry
a random stamp where that is needed), and so they are simply sent again, for as long as the store's `timeout` lasts.
A restart of the server, a deadlock and a serialization failure are waited out in the same way.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import RunVar

from flat.backends.postgres.answers import Answer, Lost, Refused, Rows, Unreachable
from flat.errors import BackendError

if TYPE_CHECKING:
    from psycopg import Connection

    from flat.backends.postgres.link import Link

CONNECTIONS = 8
"""Statements under way at once, for each event loop."""

AGAIN = frozenset(("40001", "40P01", "57P01", "57P02", "57P03", "25006"))
"""SQLSTATEs after which the same statement may well succeed: conflicts, and a server that goes down or comes up."""

Setup = Callable[["Link"], Awaitable[None]]


class Database:
    """A pool of connections that executes statements: `await database.rows("counting", "SELECT $1::int", 1)`.

    `connect` makes a connection and blocks meanwhile, `setup` makes it fit for use, `place` names the database to
    people, and `timeout` is how many seconds a call may take, with all new connections and repetitions.
    """

    def __init__(
        self, connect: Callable[[], Connection[Any]], setup: Setup, place: str, timeout: float
    ) -> None:
        self._connect, self._setup = connect, setup
        self.place, self.timeout = place, timeout
        # Connections belong to no event loop while they are idle; who waits for one belongs to its own.
        self._idle: list[Link] = []
        self._slots = RunVar[anyio.Semaphore](f"connections of {place}")
        self._closed = False
        self._lock = threading.Lock()

    async def rows(self, doing: str, statement: str, *values: Any) -> Rows:
        """Execute a statement, again if need be. Raises `BackendError`."""
        answer = Answer()
        await self.ask(answer, doing, statement, values)
        return answer.rows or []

    async def ask(
        self, answer: Answer, doing: str, statement: str, values: Sequence[Any], *, again: bool = True,
        in_line: bool = True,
    ) -> None:  # fmt: skip
        """The same, with the rows in `answer`, where they are also when this was cancelled a moment too late.

        Without `again` it is not repeated once it may have been executed. Without `in_line` it does not wait until
        fewer statements are under way: whoever asks for one thing at a time need not.
        """
        deadline, pause = anyio.current_time() + self.timeout, 0.01
        heard: Exception = TimeoutError()  # the last that was said, which is more than that time is up
        while True:
            failure: Exception = TimeoutError()
            answer.sent = False
            try:
                with anyio.CancelScope(deadline=deadline):
                    if not in_line:
                        await self._once(answer, statement, values, deadline)
                        return
                    async with self._slot():
                        await self._once(answer, statement, values, deadline)
                        return
            except (Refused, Lost) as error:
                failure = heard = error
            is_late = anyio.current_time() + pause > deadline
            if isinstance(failure, Refused):
                if is_late or failure.code not in AGAIN:
                    raise self._explain(failure, doing) from failure
            elif is_late or (answer.sent and not again):
                raise self._unreachable(doing, heard, answer.sent) from heard
            else:
                answer.repeated = answer.repeated or answer.sent
            await anyio.sleep(pause)
            pause = min(pause * 2, 0.5)

    async def _once(self, answer: Answer, statement: str, values: Sequence[Any], deadline: float) -> None:
        link = await self._take()
        try:
            link.deadline = deadline
            answer.sent = True
            await link.ask(answer, statement, values)
        except Refused as error:
            # A server that goes down; another session behind a pooler; a table that was changed meanwhile.
            if error.code.startswith("57P") or error.code in ("26000", "0A000"):
                link.cut()
            raise
        except Lost:
            link.cut()
            raise
        finally:
            self._give_back(link)

    def _slot(self) -> anyio.Semaphore:
        try:
            return self._slots.get()
        except LookupError:
            slots = anyio.Semaphore(CONNECTIONS, fast_acquire=True)
            self._slots.set(slots)
            return slots

    async def _take(self) -> Link:
        while True:
            with self._lock:
                if self._closed:
                    raise BackendError(f"{self.place} is closed; open the store again")
                link = self._idle.pop() if self._idle else None
            if link is None:
                return await self.open_link()
            if link.is_alive():
                return link
            link.cut()

    async def open_link(self) -> Link:
        """A new connection. Raises `Lost` when there is no server, `BackendError` when it refuses us."""
        link = await self._open()
        try:
            await self._setup(link)
        except Refused as error:
            link.cut()
            if error.code in AGAIN:
                raise Lost(str(error)) from error
            raise self._explain(error, "opening it") from error
        except Lost as error:
            link.cut()
            raise Lost(str(error)) from error
        except BaseException:
            link.cut()
            raise
        return link

    async def _open(self) -> Link:
        from psycopg import Error, ProgrammingError

        from flat.backends.postgres.link import Link

        made: list[Connection[Any]] = []
        abandoned = threading.Event()

        def connect() -> None:
            made.append(self._connect())
            if abandoned.is_set():
                made.pop().close()

        try:
            await anyio.to_thread.run_sync(connect, limiter=_limiter(), abandon_on_cancel=True)
        except Error as error:
            said = str(error).strip()
            code = error.sqlstate
            if (code not in AGAIN) if code else (isinstance(error, ProgrammingError) or _FINAL.search(said)):
                raise BackendError(f"{self.place} cannot be opened: {said}") from error
            raise Lost(said) from error
        except BaseException:
            abandoned.set()
            while made:
                made.pop().close()
            raise
        return await Link.adopt(made[0])

    def _give_back(self, link: Link) -> None:
        with self._lock:
            if not (self._closed or link.closed or link.is_busy() or len(self._idle) >= CONNECTIONS):
                link.used = time.monotonic()
                self._idle.append(link)
                return
        link.cut()

    def _unreachable(self, doing: str, error: BaseException, sent: bool) -> Unreachable:
        why = str(error) or f"no answer within {self.timeout:g} s"
        unknown = ", and what was asked for may have been done or not" if sent else ""
        return Unreachable(
            f"{self.place} cannot be reached{unknown}; check the server and try again [while {doing}: {why}]"
        )

    def _explain(self, error: Refused, doing: str) -> BackendError:
        match error.code:
            case "53100" | "53200" | "53300":
                text = "has no room left"
            case "42501":
                text = "does not allow it: the role lacks a privilege"
            case "42P01" | "3F000" | "42883":
                text = "lacks one of our tables; was the schema dropped? Open the store again"
            case "57014" | "55P03":
                text = "took too long: somebody else keeps a row locked, or the server is overloaded"
            case _:
                text = "failed"
        return BackendError(f"{self.place} {text} [while {doing}: {error} ({error.code})]")

    async def close(self) -> None:
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for link in idle:
            link.cut()


_FINAL = re.compile(r"authentication failed|no pg_hba|does not exist|no password|could not translate|SSL")
"""What libpq says when waiting does not help; it gives no code for a failed connection."""
_LIMITER = RunVar[anyio.CapacityLimiter]("threads that connect to PostgreSQL")


def _limiter() -> anyio.CapacityLimiter:
    """Connecting gets threads of its own: a server that does not answer should not keep everybody's."""
    try:
        return _LIMITER.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(CONNECTIONS)
        _LIMITER.set(limiter)
        return limiter
