"""A store in DynamoDB passes the public kit of faults: lost calls, a busy server, clocks that differ, zombies."""

from __future__ import annotations

import itertools
import json
import os
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from flat.backends.dynamodb.store import DynamoStore
from flat.backends.dynamodb.table import FORMAT, description, key
from flat.testing.servers import AwsServer, aws_server
from flat.testing.store_faults import FAULT_CHECKS, THROTTLE_CHECKS, FaultCheck, Proxy

pytestmark = pytest.mark.anyio
numbers = itertools.count()
EVERY = int(os.environ.get("FLAT_FAULTS_EVERY", "47"))
"""Of the faults of a sweep, each of which is a story of its own, one in so many is tried. For all of them: 1."""
RESTARTS = (
    "a_server_that_is_killed_and_started_again_goes_on_with_its_data",
    "a_place_that_is_left_at_any_moment_is_found_as_it_was",
)
ONE_LOOP = {
    "a_connection_that_breaks_at_any_call_loses_and_doubles_nothing": "asyncio",
    "an_answer_that_does_not_come_ends_in_time": "trio",
    "a_server_that_goes_away_at_any_call_is_one_clear_error": "asyncio",
    "a_server_that_refuses_for_a_while_is_asked_again": "trio",
    RESTARTS[0]: "trio",
    RESTARTS[1]: "asyncio",
}
"""Checks that take long: each is made on one of the event loops."""


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
    """What DynamoDB answers to a call when there were too many."""
    head, _, body = said.partition(b"\r\n\r\n")
    length = next(
        (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None
    )
    if length is None or len(body) < length:
        return None
    kind = "com.amazonaws.dynamodb.v20120810#ProvisionedThroughputExceededException"
    answer = json.dumps({"__type": kind, "message": "The level of throughput is exceeded."}).encode()
    return (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/x-amz-json-1.0\r\n"
        b"Content-Length: %d\r\n\r\n%b" % (len(answer), answer)
    )


class DynamoFaults:
    """A table of its own in a server, through a proxy and directly."""

    every = EVERY

    def __init__(self, server: AwsServer, *, restarts: int = 1) -> None:
        """Of the restarts that it is asked for, it makes one in so many: each takes a second."""
        self.restarts, self.asked = restarts, 0
        self.server, self.proxy = server, Proxy(server.port, throttled, lingers=True)
        self.table = f"faults-{os.getpid()}-{next(numbers)}"
        self._ask("CreateTable", description(self.table))
        item = {**key("format", "format"), "fmt": {"S": FORMAT}}
        self._ask("PutItem", {"TableName": self.table, "Item": item})

    def _ask(self, operation: str, arguments: dict[str, Any]) -> None:
        headers = {
            "X-Amz-Target": f"DynamoDB_20120810.{operation}", "Content-Type": "application/x-amz-json-1.0",
            "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/dynamodb/aws4_request, "
            "SignedHeaders=host, Signature=0",
        }  # fmt: skip
        request = urllib.request.Request(self.server.endpoint, json.dumps(arguments).encode(), headers)
        with urllib.request.urlopen(request) as answer:
            assert answer.status == 200

    def through(self, patience: float) -> DynamoStore:
        return DynamoStore(
            self.server.url(self.table, port=self.proxy.port, timeout=patience, create="false")
        )

    def direct(self) -> DynamoStore:
        return DynamoStore(self.server.url(self.table, create="false"))

    def restart(self) -> None:
        self.asked += 1
        if self.asked % self.restarts:
            return
        self.server.stop()
        self.server.start()

    def close(self) -> None:
        self.proxy.close()


@pytest.mark.parametrize(("check", "anyio_backend"), cases(restarts=False))
async def test_dynamodb(check: FaultCheck, aws: AwsServer) -> None:
    await check(lambda: DynamoFaults(aws))


@pytest.mark.parametrize(("check", "anyio_backend"), cases(restarts=True))
async def test_a_server_that_is_started_again(check: FaultCheck, keeping: AwsServer) -> None:
    many = check.__name__ == RESTARTS[0] and EVERY > 1
    await check(lambda: DynamoFaults(keeping, restarts=4 if many else 1))
