"""A store in S3 passes the public kit of faults: lost calls, a busy service, clocks that differ, zombies."""

from __future__ import annotations

import itertools
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from flat.backends.s3.journal import FORMAT
from flat.backends.s3.store import S3Store
from flat.testing.servers import AwsServer, aws_server
from flat.testing.store_faults import FAULT_CHECKS, THROTTLE_CHECKS, FaultCheck, Proxy

pytestmark = pytest.mark.anyio
numbers = itertools.count()
EVERY = int(os.environ.get("FLAT_FAULTS_EVERY", "101"))
"""Of the faults of a sweep, each of which is a story of its own, one in so many is tried. For all of them: 1."""
RESTARTS = (
    "a_server_that_is_killed_and_started_again_goes_on_with_its_data",
    "a_place_that_is_left_at_any_moment_is_found_as_it_was",
)
ONE_LOOP = {
    "a_connection_that_breaks_at_any_call_loses_and_doubles_nothing": "trio",
    "an_answer_that_does_not_come_ends_in_time": "asyncio",
    "a_server_that_goes_away_at_any_call_is_one_clear_error": "trio",
    "a_server_that_refuses_for_a_while_is_asked_again": "asyncio",
    RESTARTS[0]: "none",
    RESTARTS[1]: "trio",
}
"""Checks that take long: each is made on one of the event loops; one that starts a server 22 times, with all faults."""


def cases(*, restarts: bool) -> list[Any]:
    return [
        pytest.param(check, loop, id=f"{loop}-{check.__name__}")
        for check in (*FAULT_CHECKS, *THROTTLE_CHECKS)
        for loop in ("asyncio", "trio")
        if (check.__name__ in RESTARTS) == restarts
        if ONE_LOOP.get(check.__name__, loop) == loop or EVERY == 1
    ]


@pytest.fixture
def keeping() -> Iterator[AwsServer]:
    """A server that has its data when it is started again. It has to be asked to stop for that."""
    with aws_server(keeps=True) as started:
        yield started


def throttled(said: bytes) -> bytes | None:
    """What S3 answers to a call when there were too many."""
    head, _, body = said.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    if not head.strip() or len(body) < length:
        return None
    answer = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
    return b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\n\r\n%b" % (
        len(answer),
        answer,
    )


class S3Faults:
    """A bucket of its own in a server, through a proxy and directly."""

    every = EVERY

    def __init__(self, server: AwsServer) -> None:
        self.server, self.proxy = server, Proxy(server.port, throttled, lingers=True)
        self.bucket = f"faults-{os.getpid()}-{next(numbers)}"
        self._put("")
        self._put("/format", FORMAT)

    def _put(self, key: str, body: bytes = b"") -> None:
        request = urllib.request.Request(f"{self.server.endpoint}/{self.bucket}{key}", body, method="PUT")
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    def _url(self, **options: Any) -> str:
        return self.server.url(self.bucket, scheme="s3", create="false", **options)

    def through(self, patience: float) -> S3Store:
        return S3Store(self._url(port=self.proxy.port, timeout=patience))

    def direct(self) -> S3Store:
        return S3Store(self._url())

    def restart(self) -> None:
        self.server.stop()
        self.server.start()

    def close(self) -> None:
        self.proxy.close()


@pytest.mark.parametrize(("check", "anyio_backend"), cases(restarts=False))
async def test_s3(check: FaultCheck, aws: AwsServer) -> None:
    await check(lambda: S3Faults(aws))


@pytest.mark.parametrize(("check", "anyio_backend"), cases(restarts=True))
async def test_a_server_that_is_started_again(check: FaultCheck, keeping: AwsServer) -> None:
    await check(lambda: S3Faults(keeping))
