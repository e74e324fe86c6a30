"""Wakes dispatchers through Redis, whatever host they are on: no polling, and nothing to be set up beside the store.

A store in Redis says `wake` to whoever listens in the very script that stores a signal, so that senders need no trigger
of their own. A listener whose connection breaks opens another one, and then says that it was woken: it may have missed
something. It holds one connection and no task; being cancelled closes it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import anyio

from flat.backends.redis.address import Address, explain, parse_url
from flat.backends.redis.connection import BROKEN, FIRST_PAUSE, LONGEST_PAUSE, Client, Wire, pack
from flat.backends.triggers import Woken
from flat.errors import BackendError

log = logging.getLogger("flat")


class RedisTrigger:
    """Notifies and listens at a server: `RedisTrigger("redis://localhost:6379/0")`. Give it the store's address."""

    def __init__(self, address: str | Address, *, topic: str = "wake") -> None:
        self.address = parse_url(address) if isinstance(address, str) else address
        self.topic = f"{self.address.prefix}:{topic}"

    def __repr__(self) -> str:
        return f"RedisTrigger({str(self.address)!r})"

    async def notify(self, channel: str) -> None:
        client = Client(self.address)
        try:
            text = channel.encode(errors="backslashreplace")
            await client.command("notifying", "PUBLISH", self.topic, text)
        except BackendError as error:
            log.debug("nobody was woken for %r: %s", channel, error)
        finally:
            await client.close()

    @asynccontextmanager
    async def listen(self) -> AsyncIterator[Woken]:
        """Hear of every signal from now on. Raises `BackendError` if the server cannot be reached at first."""
        ear = _Ear(self.address, self.topic)
        try:
            with anyio.fail_after(self.address.timeout):
                await ear.open()
        except BROKEN as error:
            raise BackendError(f"cannot listen at {self.address}: {error or 'no answer'}") from error
        try:
            yield ear
        finally:
            ear.close()


class _Ear:
    def __init__(self, address: Address, topic: str) -> None:
        self._address, self._topic = address, topic
        self._wire: Wire | None = None
        self._heard = False

    async def open(self) -> None:
        """Connect and subscribe; from then on nothing is missed."""
        self._wire = await anyio.to_thread.run_sync(partial(Wire, self._address), abandon_on_cancel=True)
        await self._wire.send(pack("SUBSCRIBE", self._topic), self._address.timeout)
        while True:
            for said in await self._wire.receive():
                if isinstance(said, Exception):
                    raise explain(said, self._address, "listening")
                if said[0] == b"subscribe":
                    return
                self._heard = True

    async def wait(self) -> None:
        pause = FIRST_PAUSE
        while not self._heard:
            try:
                if self._wire is None:
                    await self.open()
                    self._heard = True
                    break
                said = await self._wire.receive()
                self._heard = any(one[0] == b"message" for one in said)
            except (*BROKEN, BackendError) as error:
                log.debug("a listener lost its connection to %s: %s", self._address, error)
                self.close()
                await anyio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
        self._heard = False

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
