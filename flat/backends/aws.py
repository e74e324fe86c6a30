"""How the backends in AWS talk to their service: an address, a client for each event loop, and calls that are repeated.

`aiobotocore` knows the protocol and the credentials (environment, profiles, roles: the usual places of AWS, never our
URL). Its httpx session runs on asyncio and on trio. A client belongs to one event loop, and is opened there when it is
first used; a store object that lives through several loops has one in each.

Everything that may pass by itself is tried again, with growing pauses of random length, until `timeout` seconds are
over: throttling, conflicts of transactions, failures of the service, connections that break. Whoever calls makes sure
that a repetition does no harm, because the first attempt may have been carried out though its answer was lost.
"""

from __future__ import annotations

import random
import re
import time
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import anyio
from anyio.lowlevel import RunVar

from flat.errors import BackendError, BadStoreURL

try:
    from aiobotocore.config import AioConfig
    from aiobotocore.httpxsession import HttpxSession
    from aiobotocore.session import AioSession, get_session
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        CredentialRetrievalError,
        HTTPClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )
    from httpx2 import TransportError
except ModuleNotFoundError as error:
    raise BackendError("stores in AWS need a client library: pip install 'flat[aws]'") from error

T = TypeVar("T")
PATIENCE = 10.0
"""Seconds that a call may take, with all repetitions, unless the URL says otherwise."""
LONGEST_PATIENCE = 300.0
"""AWS knows a repeated call by its token for ten minutes, and would carry it out once more after that."""
CONNECTIONS = 64
"""Open to the service at the same time, for each event loop."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Seconds before a call is repeated: at first, and at most."""
PASSING = frozenset((
    "ConditionalRequestConflict", "InternalError", "InternalFailure", "InternalServerError", "LimitExceededException",
    "OperationAborted", "PriorRequestNotComplete", "ProvisionedThroughputExceededException", "RequestLimitExceeded",
    "RequestThrottled", "RequestTimeout", "RequestTimeoutException", "ServiceUnavailable", "SlowDown",
    "ThrottledException", "Throttling", "ThrottlingException", "TooManyRequestsException",
    "TransactionConflictException", "TransactionInProgressException",
))  # fmt: skip
"""Error codes that say: try again."""
PASSING_REASONS = frozenset((
    "ProvisionedThroughputExceeded", "ThrottlingError", "TransactionConflict", "ThrottlingException",
))  # fmt: skip
"""Why a transaction was cancelled although nothing was wrong with it."""
_NAME = re.compile(r"[A-Za-z0-9_.-]{3,255}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a service is. Credentials are none of it."""

    name: str
    """The table or bucket."""
    prefix: str = ""
    region: str | None = None
    endpoint: str | None = None
    """Another server that speaks the protocol, such as `http://127.0.0.1:4566`."""
    create: bool = False
    """Create the table or bucket when it is first used and does not exist."""
    timeout: float = PATIENCE


def parse_address(scheme: str, path: str, options: dict[str, str], example: str) -> Address:
    """The address in what follows the scheme. Raises `BadStoreURL`."""
    name, _, prefix = path.removeprefix("//").partition("/")
    if not path.startswith("//") or not _NAME.fullmatch(name):
        raise BadStoreURL(
            f'the name after {scheme}:// is 3 to 255 letters, digits and "._-"; write {example}'
        )
    endpoint = options.pop("endpoint", None)
    if endpoint is not None and not re.match(r"https?://[^/?#]+", endpoint):
        raise BadStoreURL(f'an endpoint is a URL such as http://127.0.0.1:4566, not "{endpoint}"')
    create = options.pop("create", "false")
    if create not in ("true", "false"):
        raise BadStoreURL(f'the option create of a {scheme} store is true or false, not "{create}"')
    address = Address(
        name=name, prefix=prefix.strip("/"), region=options.pop("region", None), endpoint=endpoint,
        create=create == "true", timeout=_seconds(scheme, options.pop("timeout", str(PATIENCE))),
    )  # fmt: skip
    if options:
        raise BadStoreURL(
            f"a {scheme} store has no option {', '.join(options)}; it has region, endpoint, create and timeout"
        )
    return address


def parse_url(scheme: str, url: str, example: str) -> Address:
    """The address in a whole URL such as `dynamodb://flat?region=eu-central-1`."""
    kind, _, rest = url.partition(":")
    if kind != scheme:
        raise BadStoreURL(f"the address is written like {example}")
    path, _, query = rest.partition("?")
    return parse_address(scheme, unquote(path), dict(parse_qsl(query, keep_blank_values=True)), example)


def _seconds(scheme: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.001 <= value <= LONGEST_PATIENCE:
        raise BadStoreURL(
            f"the option timeout of a {scheme} store is a number of seconds above 0, and not above "
            f'{LONGEST_PATIENCE:g}, not "{text}"'
        )
    return value


class Refused(Exception):
    """The service refused the call, and will again. `reasons`: of a transaction, why each part was refused."""

    def __init__(self, code: str, reasons: tuple[str, ...] = ()) -> None:
        super().__init__(code, reasons)
        self.code, self.reasons = code, reasons


class _Passing(Exception):
    """The attempt failed, and the next one may not."""


class Aws:
    """One service of AWS, such as `dynamodb`, for one store object."""

    def __init__(self, service: str, address: Address) -> None:
        self.service, self.address = service, address
        self.closed = False
        # A name that no other object has, or will have: one loop may use several stores.
        self._clients: RunVar[_Client | None] = RunVar(f"flat-{service}-{uuid.uuid4().hex}", None)

    async def close(self) -> None:
        """Close the client of this event loop. The ones of loops that have ended went with them."""
        self.closed = True
        client = self._clients.get()
        if client is not None:
            self._clients.set(None)
            with anyio.CancelScope(shield=True):
                await client.close()

    async def call(self, doing: str, operation: str, **arguments: Any) -> dict[str, Any]:
        """Make a call, again and again while what is wrong may pass. Raises `Refused` and `BackendError`."""
        return await self.patiently(doing, lambda: self.attempt(doing, operation, arguments))

    async def patiently(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """What an attempt returns, which is repeated until it passes or the time is over."""
        deadline = time.monotonic() + self.address.timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return await attempt()
            except _Passing as error:
                rest = deadline - time.monotonic()
                if rest <= 0:
                    raise BackendError(
                        f"{doing} failed for {self.address.timeout:g} s, and whether it was done is not known: {error}"
                    ) from error
            await anyio.sleep(min(rest, pause * random.uniform(0.5, 1.0)))
            pause = min(2 * pause, LONGEST_PAUSE)

    async def attempt(self, doing: str, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Make a call once, for `patiently`."""
        try:
            return await (await self._client()).call(operation, arguments)
        except ClientError as error:
            raise self._explained(doing, error) from error
        except (NoCredentialsError, PartialCredentialsError, CredentialRetrievalError) as error:
            raise BackendError(
                f"{doing} needs credentials of AWS ({error}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
                "AWS_PROFILE"
            ) from error
        except HTTPClientError as error:
            raise _Passing(str(error)) from error
        except BotoCoreError as error:
            raise BackendError(f"{doing} failed: {error}") from error

    def _explained(self, doing: str, error: ClientError) -> Exception:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code == "TransactionCanceledException":
            given: Any = error.response.get("CancellationReasons", ())
            reasons = tuple(str(one.get("Code", "None")) for one in given)
            # A condition that does not hold is the answer, whatever else was in the way.
            if "ConditionalCheckFailed" not in reasons and PASSING_REASONS.intersection(reasons):
                return _Passing(str(error))
            return Refused(code, reasons)
        if code in PASSING or status >= 500:
            return _Passing(str(error))
        if code in (
            "AccessDeniedException",
            "UnrecognizedClientException",
            "InvalidSignatureException",
            "ExpiredToken",
        ):
            return BackendError(f"{doing} was refused by AWS: {error}")
        return Refused(code)

    async def _client(self) -> _Client:
        if self.closed:
            raise BackendError(f"the {self.service} store {self.address.name} is closed")
        client = self._clients.get()
        if client is None:
            client = _Client(self.service, self.address)
            self._clients.set(client)
        return client


class _Client:
    """The client of one event loop, opened by whoever uses it first, and closed at the latest when the loop ends."""

    def __init__(self, service: str, address: Address) -> None:
        self._service, self._address = service, address
        self._opening = anyio.Lock()
        self._places = anyio.CapacityLimiter(CONNECTIONS)
        self._living: AsyncGenerator[Any, None] | None = None
        self._client: Any = None

    async def call(self, operation: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        if self._client is None:
            await self._open()
        # Whoever makes a call borrows a place in its own name, so that one task may make several.
        place = object()
        await self._places.acquire_on_behalf_of(place)
        try:
            found: dict[str, Any] = await getattr(self._client, operation)(**arguments)
            body = found.get("Body")
            if body is not None:
                try:
                    found["Body"] = await body.read()
                except TransportError as error:  # it began to answer, and botocore looks no further
                    raise HTTPClientError(error=error) from error
            return found
        finally:
            self._places.release_on_behalf_of(place)

    async def _open(self) -> None:
        async with self._opening:
            if self._client is None:
                self._living = self._live()
                self._client = await anext(self._living)

    async def _live(self) -> AsyncGenerator[Any, None]:
        """Gives the client once. Event loops close what has not come to its end when they do."""
        config = AioConfig(
            http_session_cls=HttpxSession,
            # The pauses are ours: botocore's sleep with asyncio.
            retries={"total_max_attempts": 1},
            connect_timeout=min(5.0, self._address.timeout),
            read_timeout=min(30.0, max(1.0, self._address.timeout)),
            max_pool_connections=CONNECTIONS,
            s3={"addressing_style": "path" if self._address.endpoint else "auto"},
        )
        context = _session().create_client(
            self._service, region_name=self._address.region, endpoint_url=self._address.endpoint, config=config,
        )  # fmt: skip
        client = await context.__aenter__()
        try:
            yield client
        finally:
            with anyio.CancelScope(shield=True):
                await context.__aexit__(None, None, None)

    async def close(self) -> None:
        living, self._client, self._living = self._living, None, None
        if living is not None:
            await living.aclose()


_loaders: list[Any] = []


def _session() -> AioSession:
    """A new one, so that credentials are looked for anew. What describes the services takes long, and is read once."""
    session = get_session()
    if _loaders:
        session.register_component("data_loader", _loaders[0])
    else:
        _loaders.append(session.get_component("data_loader"))
    return session


def host_of(address: Address) -> str:
    """How messages name the place."""
    return urlsplit(address.endpoint).netloc if address.endpoint else (address.region or "AWS")
