"""Wakes dispatchers through PostgreSQL's LISTEN and NOTIFY, whatever host they are on: no polling.

A store in PostgreSQL notifies in the very transaction that stores a signal, so that senders need no trigger of their
own, and nobody is woken before there is something to see. A listener whose connection breaks opens another one, and
then says that it was woken: it may have missed something. It holds one connection and no task; being cancelled closes
it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from flat.backends.postgres.answers import Lost, Refused
from flat.backends.postgres.pool import Database
from flat.backends.postgres.schema import STORE, client, open_database, quoted
from flat.backends.postgres.url import Address
from flat.backends.triggers import Woken
from flat.errors import BackendError

if TYPE_CHECKING:
    from flat.backends.postgres.link import Link

log = logging.getLogger("flat")

FIRST_PAUSE, LONGEST_PAUSE = 0.02, 2.0
"""Seconds before a listener opens another connection: at first, and at most."""


class PostgresTrigger:
    """Notifies and listens at a store: `PostgresTrigger("postgresql://user@host/db")`. Give it the store's address."""

    def __init__(self, address: str | Address) -> None:
        self.address = Address.parse(address) if isinstance(address, str) else address
        client()  # that it is missing would go unnoticed later, where nobody is woken

    def __repr__(self) -> str:
        return f"PostgresTrigger({str(self.address)!r})"

    async def notify(self, channel: str) -> None:
        database = open_database(self.address, STORE)
        try:
            await wake(database, channel)
        finally:
            await database.close()

    def listen(self) -> AbstractAsyncContextManager[Woken]:
        """Hear of every signal from now on. Raises `BackendError` if the server cannot be reached at first."""
        return listening(open_database(self.address, STORE))


async def wake(database: Database, channel: str) -> None:
    """Wake whoever listens at a store. Never raises."""
    try:
        await database.rows("notifying", "SELECT wake()")
    except BackendError as error:
        log.debug("nobody was woken for %r: %s", channel, error)


@asynccontextmanager
async def listening(database: Database, topic: str | None = None) -> AsyncIterator[Woken]:
    """Listen at a store, or at a topic of a name that is nobody else's, over a connection of its own."""
    ear = _Ear(database, topic)
    try:
        with anyio.fail_after(database.timeout):
            await ear.open()
    except (Lost, Refused, TimeoutError) as error:
        raise BackendError(f"cannot listen at {database.place}: {error or 'no answer'}") from error
    try:
        yield ear
    finally:
        ear.close()


class _Ear:
    def __init__(self, database: Database, topic: str | None) -> None:
        self._database, self._topic = database, topic
        self._link: Link | None = None
        self._heard = False

    async def open(self) -> None:
        """Connect and listen; from then on nothing is missed."""
        link = await self._database.open_link()
        try:
            if (topic := self._topic) is None:
                ((topic,),) = await link.rows("SELECT topic()")
            await link.run(f"LISTEN {quoted(topic)}")
        except BaseException:
            link.cut()
            raise
        self._link = link

    async def wait(self) -> None:
        pause = FIRST_PAUSE
        while not self._heard:
            try:
                if self._link is None:
                    await self.open()
                    self._heard = True
                else:
                    await self._link.wait_notified()
                    self._heard = True
            except (Lost, Refused, BackendError) as error:
                log.debug("a listener lost its connection to %s: %s", self._database.place, error)
                self.close()
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self._heard = False

    def close(self) -> None:
        if self._link is not None:
            self._link.cut()
            self._link = None
