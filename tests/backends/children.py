"""Processes that the store tests start: `python children.py CASE STORE_URL COUNT`. Each says what it found."""

from __future__ import annotations

import os
import resource
import signal
import sys
import time

import anyio

from flat.backends import open_store, this_process
from flat.backends.protocols import CheckpointStore
from flat.errors import BackendError, ExecutionBusy, StaleSnapshot
from flat.testing.store_case import birth, step

COUNT = int(sys.argv[3])
"""How often to do what is done many times."""


def say(text: str) -> None:
    print(text, flush=True)


def hear() -> str:
    return sys.stdin.readline().strip()


async def acquire(store: CheckpointStore) -> None:
    """Try to become the owner at the same moment as many others; commit if it works."""
    say("ready")
    hear()
    try:
        lease = await store.acquire("e1", this_process(), now=time.time(), ttl=60)
        await store.commit(step(lease, 1))
        say("owner")
    except ExecutionBusy:
        say("busy")
    hear()


async def zombie(store: CheckpointStore) -> None:
    """Own the execution, be stopped, and try to commit after waking."""
    lease = await store.acquire("e1", this_process(), now=time.time(), ttl=0.05)
    await store.commit(step(lease, 1))
    say("owner")
    hear()
    try:
        await store.commit(step(lease, 2, b"from the dead"))
        say("stored")
    except StaleSnapshot:
        say("stale")


async def die(store: CheckpointStore) -> None:
    """Own the execution and be killed."""
    lease = await store.acquire("e1", this_process(), now=time.time(), ttl=3600)
    await store.commit(step(lease, 1))
    say("owner")
    os.kill(os.getpid(), signal.SIGKILL)


async def fill(store: CheckpointStore) -> None:
    """Commit until files may not grow any more."""
    await store.create(birth())
    lease = await store.acquire("e1", this_process(), now=0, ttl=60)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    seq = 0
    try:
        while True:
            await store.commit(step(lease, seq + 1, b"x" * 3_000))
            seq += 1
    except BackendError as error:
        say(f"{seq} {error}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    await store.commit(step(lease, seq + 1, b"small"))
    say("resumed")


async def take(store: CheckpointStore) -> None:
    """Take every signal, or fan it out, or bury it, at the same moment as many others; say which ones it got."""
    name = f"e{os.getpid()}"
    await store.create(birth(name))
    lease = await store.acquire(name, this_process(), now=time.time(), ttl=60)
    say("ready")
    hear()
    got, seq = [], 1
    for number in range(COUNT):
        try:
            await store.commit(step(lease, seq, consume=(f"s{number}",)))
            seq += 1
            got.append(f"s{number}")
        except StaleSnapshot:
            pass
        if await store.fan_out(f"f{number}", [name, "somebody"]):
            got.append(f"f{number}")
        if await store.bury(f"b{number}", "why", 1.0):
            got.append(f"b{number}")
    say(" ".join(got))


async def fan_out_and_die(store: CheckpointStore) -> None:
    """Be killed after fanning out."""
    say(str(await store.fan_out("s", ["e1", "e2"])))
    os.kill(os.getpid(), signal.SIGKILL)


async def append(store: CheckpointStore) -> None:
    """Create and drive an execution of one's own among many processes."""
    name = f"e{os.getpid()}"
    await store.create(birth(name))
    lease = await store.acquire(name, this_process(), now=time.time(), ttl=60)
    for seq in range(1, COUNT + 1):
        await store.commit(step(lease, seq, log=(b"line",) if seq % 4 == 0 else ()))
    await store.release(lease)
    say("done")


async def main(case: str, url: str) -> None:
    store = open_store(url)
    await {
        "acquire": acquire,
        "zombie": zombie,
        "die": die,
        "fill": fill,
        "append": append,
        "take": take,
        "fan_out_and_die": fan_out_and_die,
    }[case](store)
    await store.close()


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], sys.argv[2])
