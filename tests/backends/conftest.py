"""What the tests of stores have besides the servers that all tests share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flat.testing.servers import ConsulServer, PostgresServer, consul_program, consul_server

FETCH = Path(__file__).parents[2] / ".ci" / "consul"
FETCH_SECONDS = 180.0


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The address of an empty store, which others have used before."""
    schema = postgres.borrow()
    yield postgres.url(schema)
    postgres.give_back(schema)


@pytest.fixture(scope="session")
def consul() -> Iterator[ConsulServer]:
    """A Consul, which is fetched the first time: no package index has it, so no extra can install it."""
    try:
        program = consul_program()
    except RuntimeError as error:
        program = fetched(error)
    with consul_server(program) as started:
        yield started


def fetched(missing: RuntimeError) -> str:
    made = subprocess.run(
        ["bash", str(FETCH)], capture_output=True, text=True, timeout=FETCH_SECONDS, check=False
    )
    if made.returncode == 0:
        return made.stdout.strip()
    said = f"{missing}; fetching one failed: {made.stderr.strip()[-500:]}"
    if os.environ.get("CI"):
        raise RuntimeError(said)
    pytest.skip(said)
