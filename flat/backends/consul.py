"""Locks in Consul: for fleets that have one anyway, and stores that cannot tell their hosts apart.

    lock = ConsulLock("consul://127.0.0.1:8500/flat")
    if await lock.acquire("nightly"):          # does not wait
        ...
        await lock.release("nightly")

    async with lock.hold("nightly") as lease:  # waits, keeps the session alive, is cancelled if the lock is lost
        await work(fence=lease.token)

A lock is a key that a *session* of Consul holds. The session ends when it has not been renewed for its ttl, and Consul
then frees its locks, up to twice the ttl later; a holder that died is waited for that long, one that released is not.

**What is guaranteed.** One session at a time holds a key (Consul decides by its log, which a majority of its servers
agree on). Each time that a key changes hands its `LockIndex` rises; that number is the lease's *token*, and
`backends.locks` says what it is for. Keys are never deleted, because the number would start again.

**What is not.** While Consul has no majority nothing can be locked; an unreachable Consul raises `BackendError`.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import anyio
import orjson
from anyio.lowlevel import RunVar

from flat.backends.checks import check_text
from flat.backends.locks import LockLease, LockLost
from flat.errors import BackendError, BadStoreURL

try:
    import httpx
except ModuleNotFoundError as error:
    raise BackendError("locks in Consul need a client library: pip install 'flat[consul]'") from error

EXAMPLE = "consul://127.0.0.1:8500/flat?ttl=15"
LEAST_TTL, MOST_TTL = 10.0, 86_400.0
"""What Consul takes, as long as its `session_ttl_min` is what it usually is."""
RENEWALS = 3
"""Renewals within one ttl."""
WAIT = 30.0
"""Seconds that Consul holds a question back until there is news."""
_ENV = re.compile(r"\$\{env:([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a Consul is. Prints without its token."""

    host: str
    port: int = 8500
    prefix: str = "flat"
    tls: bool = False
    ttl: float = 15.0
    timeout: float = 5.0
    token: str = ""
    """As written: a reference `${env:NAME}` is looked up when it is needed."""

    def __repr__(self) -> str:
        return f"consul://{self.host}:{self.port}/{self.prefix}"

    __str__ = __repr__


def parse_url(url: str) -> Address:
    """The address in a URL such as `consul://127.0.0.1:8500/flat?ttl=15&token=${env:CONSUL_TOKEN}`."""
    try:
        parts = urlsplit(url)
        port = parts.port or 8500
    except ValueError as error:
        raise BadStoreURL(f"the address of Consul is wrong ({error}); write {EXAMPLE}") from error
    if parts.scheme != "consul" or not parts.hostname:
        raise BadStoreURL(f"the address of Consul names a host; write {EXAMPLE}")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    tls = options.pop("tls", "false")
    if tls not in ("true", "false"):
        raise BadStoreURL(f'the option tls of consul is true or false, not "{tls}"')
    address = Address(
        host=parts.hostname, port=port, prefix=unquote(parts.path).strip("/") or "flat", tls=tls == "true",
        ttl=_seconds("ttl", options.pop("ttl", "15"), LEAST_TTL, MOST_TTL),
        timeout=_seconds("timeout", options.pop("timeout", "5"), 0.001, MOST_TTL), token=options.pop("token", ""),
    )  # fmt: skip
    if options:
        raise BadStoreURL(f"consul has no option {', '.join(options)}; it has ttl, timeout, tls and token")
    return address


def _seconds(name: str, text: str, least: float, most: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not least <= value <= most:
        raise BadStoreURL(f'the option {name} of consul is {least:g} to {most:g} seconds, not "{text}"')
    return value


class ConsulLock:
    """Locks by name, all held by one session: `ConsulLock("consul://127.0.0.1:8500/flat")`.

    It is an `ExecutionLock`. Whoever uses `acquire` and `release` renews the session itself, by `renew` or by running
    `keep` in a task of its own; `hold` does so itself.
    """

    def __init__(self, address: str | Address, *, owner: str = "") -> None:
        self.address = parse_url(address) if isinstance(address, str) else address
        check_text("owner", owner)
        self.owner = owner or f"pid {os.getpid()}"
        self.session: str | None = None
        self.held: dict[str, LockLease] = {}
        self._client: RunVar[httpx.AsyncClient | None] = RunVar(f"flat-consul-{id(self)}")
        self._closed = False
        self._users = 0

    def __repr__(self) -> str:
        return f"ConsulLock({str(self.address)!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the session, which frees all its locks at once."""
        with anyio.CancelScope(shield=True):
            await self._rest()
            self._closed = True

    async def _rest(self) -> None:
        """Leave nothing open, here or in Consul. The next lock has a new session."""
        session, self.session = self.session, None
        self.held.clear()
        if session is not None:
            with suppress(BackendError):
                await self._put(f"session/destroy/{session}")
        if (client := self._client.get(None)) is not None:
            self._client.set(None)
            await client.aclose()

    # -- locks --------------------------------------------------------------------------------

    async def acquire(self, key: str) -> bool:
        """True if the lock is ours now. False when somebody has it, also if that is this very object."""
        async with self._used():
            return await self.lease(key) is not None

    async def lease(self, key: str) -> LockLease | None:
        """`acquire`, with the token that fences: None when somebody has the lock."""
        where = self._where(key)
        if key in self.held:
            return None
        session = self.session or await self._begin()
        answer = await self._put(f"kv/{where}", self.owner.encode(), acquire=session)
        if answer.status_code >= 500 and b"invalid session" in answer.content:
            # It ended while nobody looked, and with it all that it held.
            self._lose()
            session = await self._begin()
            answer = await self._put(f"kv/{where}", self.owner.encode(), acquire=session)
        if not self._checked(answer):
            return None
        found = await self._read(where)
        if found is None or found.get("Session") != session:
            return None  # it ended at this moment
        lease = LockLease(key=key, holder=session, token=int(found["LockIndex"]))
        self.held[key] = lease
        return lease

    async def release(self, key: str) -> None:
        """Give a lock back. Does nothing when it is no longer ours."""
        async with self._used():
            if (lease := self.held.pop(key, None)) is not None:
                self._checked(await self._put(f"kv/{self._where(key)}", b"", release=lease.holder))

    @asynccontextmanager
    async def _used(self) -> AsyncIterator[None]:
        """Whoever leaves last, with nothing held, closes all: a lock made for one run is not told of its end."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if not self._users and not self.held:
                with anyio.CancelScope(shield=True):
                    await self._rest()

    async def holds(self, lease: LockLease) -> bool:
        """Whether a lock is still held under this very lease, as Consul sees it now."""
        found = await self._read(self._where(lease.key))
        return found is not None and (found.get("Session"), found["LockIndex"]) == (
            lease.holder,
            lease.token,
        )

    async def renew(self) -> bool:
        """Keep the session, and all its locks, for another ttl. False if it has ended, and nothing is held any more."""
        if self.session is None:
            return False
        answer = await self._put(f"session/renew/{self.session}")
        if answer.status_code == 404:
            self._lose()
            return False
        self._checked(answer)
        return True

    async def keep(self) -> None:
        """Renew until cancelled, or until nothing is held any more because the session has ended."""
        heard = anyio.current_time()
        while True:
            await anyio.sleep(self.address.ttl / RENEWALS)
            try:
                if not await self.renew():
                    return
                heard = anyio.current_time()
            except BackendError:
                if anyio.current_time() - heard > self.address.ttl:
                    self._lose()
                    return

    @asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[LockLease]:
        """Wait for a lock, keep it for the block, and release it. Raises `LockLost` when it is lost meanwhile."""
        async with self._used():
            lease = await self._wait(key)
        lost = False
        failed: Exception | None = None
        async with anyio.create_task_group() as group:

            async def watch() -> None:
                nonlocal lost
                await self.keep()
                lost = True
                group.cancel_scope.cancel()

            group.start_soon(watch)
            try:
                yield lease
            except Exception as error:
                failed = error  # raised below, where no group wraps it
            finally:
                group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True), suppress(BackendError):
                    await self.release(key)
        if failed is not None:
            raise failed
        if lost:
            raise LockLost(key, "its session in Consul has ended")

    async def _wait(self, key: str) -> LockLease:
        index = 0
        while (lease := await self.lease(key)) is None:
            if key in self.held:
                raise BackendError(
                    f'the lock "{key}" is held by this very object, which would wait for itself'
                )
            # The session of one who waits for long must not end meanwhile.
            await self.renew()
            pause = min(WAIT, self.address.ttl / RENEWALS)
            found = await self._get(self._where(key), index=index, wait=f"{pause:.0f}s")
            index = int(found.headers.get("X-Consul-Index", "0"))
        return lease

    def _lose(self) -> None:
        self.session = None
        self.held.clear()

    async def _begin(self) -> str:
        facts = {
            "Name": "flat", "TTL": f"{self.address.ttl:.0f}s", "Behavior": "release",
            # Tokens fence a late holder, so nobody need be kept waiting for it to notice.
            "LockDelay": "0s",
        }  # fmt: skip
        answer = self._checked(await self._put("session/create", orjson.dumps(facts)))
        self.session = session = str(answer["ID"])
        return session

    # -- requests -----------------------------------------------------------------------------

    def _where(self, key: str) -> str:
        check_text("key", key)
        return f"{quote(self.address.prefix)}/{hashlib.sha256(key.encode()).hexdigest()[:40]}"

    async def _read(self, where: str) -> dict[str, Any] | None:
        answer = await self._get(where)
        if answer.status_code == 404:
            return None
        found: dict[str, Any] = self._checked(answer)[0]
        return found

    async def _get(self, where: str, **options: Any) -> httpx.Response:
        slow = WAIT if "wait" in options else 0.0
        return await self._ask("GET", f"kv/{where}", None, {**options, "consistent": ""}, slow)

    async def _put(self, path: str, body: bytes = b"", **options: str) -> httpx.Response:
        return await self._ask("PUT", path, body, options, 0.0)

    async def _ask(
        self, method: str, path: str, body: bytes | None, options: dict[str, Any], slow: float
    ) -> httpx.Response:
        if self._closed:
            raise BackendError(f"{self!r} is closed")
        client = self._client.get(None)
        if client is None:
            scheme = "https" if self.address.tls else "http"
            client = httpx.AsyncClient(
                base_url=f"{scheme}://{self.address.host}:{self.address.port}/v1/", trust_env=False
            )
            self._client.set(client)
        headers = {"X-Consul-Token": self._token()} if self.address.token else {}
        try:
            return await client.request(
                method,
                path,
                content=body,
                params=options,
                headers=headers,
                timeout=self.address.timeout + slow,
            )
        except httpx.HTTPError as error:
            said = str(error) or type(error).__name__
            raise BackendError(f"no answer from Consul at {self.address}: {said}") from error

    def _token(self) -> str:
        def value(found: re.Match[str]) -> str:
            if (known := os.environ.get(found[1])) is None:
                raise BackendError(f"the address of Consul refers to {found[1]}, which is not set")
            return known

        return _ENV.sub(value, self.address.token)

    def _checked(self, answer: httpx.Response) -> Any:
        if answer.status_code >= 400:
            said = answer.text.strip()[:200]
            raise BackendError(f"Consul at {self.address} refused: {answer.status_code} {said}")
        return orjson.loads(answer.content)
