"""Locks in a real Consul: one holder, tokens that rise, sessions that end, hostile names, and a server that is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

from flat import FlatMachine, HooksRegistry, MachineHooks
from flat.backends.consul import ConsulLock, parse_url
from flat.backends.locks import LockLease, LockLost
from flat.errors import BackendError, BadStoreURL, ExecutionBusy, NotStorable
from flat.testing.servers import ConsulServer, free_port
from flat.testing.store_signals import MEANT_HARM

pytestmark = pytest.mark.anyio


async def got(lock: ConsulLock, key: str = "k") -> LockLease:
    lease = await lock.lease(key)
    assert lease is not None, "the lock was free, and was not given"
    return lease


async def test_one_of_two_holds_a_lock(consul: ConsulServer) -> None:
    url = consul.url()
    async with ConsulLock(url) as one, ConsulLock(url) as other:
        assert await one.acquire("k")
        assert not await other.acquire("k")
        assert not await one.acquire("k")
        assert await other.acquire("another")
        await one.release("k")
        assert await other.acquire("k")
        await one.release("k")
        assert not await one.acquire("k")


async def test_every_holder_has_a_higher_token(consul: ConsulServer) -> None:
    url = consul.url()
    tokens = []
    for _ in range(3):
        async with ConsulLock(url) as lock:
            for _ in range(2):
                tokens.append((await got(lock)).token)
                await lock.release("k")
    assert tokens == sorted(set(tokens))


async def test_closing_frees_what_was_held(consul: ConsulServer) -> None:
    url = consul.url()
    one = ConsulLock(url)
    assert await one.acquire("k")
    await one.close()
    await one.close()
    async with ConsulLock(url) as other:
        assert await other.acquire("k")
    with pytest.raises(BackendError, match="is closed"):
        await one.acquire("k")


async def test_a_holder_whose_session_ended_is_told_and_fenced(consul: ConsulServer) -> None:
    url = consul.url()
    async with ConsulLock(url) as zombie, ConsulLock(url) as heir:
        old = await got(zombie)
        assert await zombie.holds(old)
        consul.destroy_session(old.holder)
        new = await got(heir)
        assert new.token > old.token
        assert not await zombie.holds(old)
        assert not await zombie.renew()
        assert zombie.held == {}
        await zombie.release("k")
        assert await heir.holds(new)
        assert not await zombie.acquire("k"), "in a new session, and the lock is the heir's"
        assert await zombie.acquire("another")


async def test_an_ended_session_is_replaced_unasked(consul: ConsulServer) -> None:
    async with ConsulLock(consul.url()) as lock:
        old = await got(lock)
        consul.destroy_session(old.holder)
        lease = await got(lock, "another")
        assert lease.holder != old.holder
        assert (await got(lock)).token > old.token


async def test_renewing_keeps_a_session(consul: ConsulServer) -> None:
    async with ConsulLock(consul.url()) as lock:
        assert not await lock.renew()
        lease = await got(lock)
        assert await lock.renew()
        assert await lock.holds(lease)


async def test_holding_waits_for_whoever_holds(consul: ConsulServer) -> None:
    url = consul.url()
    order: list[str] = []
    waiting = anyio.Event()

    async with ConsulLock(url) as one, ConsulLock(url) as other:

        async def wait() -> None:
            waiting.set()
            async with other.hold("k") as lease:
                order.append("other")
                assert await other.holds(lease)

        async with one.hold("k"), anyio.create_task_group() as group:
            group.start_soon(wait)
            await waiting.wait()
            assert not await other.acquire("k")
            order.append("one")
            await one.release("k")
        assert order == ["one", "other"]
        assert await one.acquire("k")


async def test_whoever_holds_is_cancelled_when_the_lock_is_lost(
    consul: ConsulServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with ConsulLock(consul.url()) as lock:
        ended = anyio.Event()

        async def keep() -> None:
            await ended.wait()
            assert not await lock.renew()

        monkeypatch.setattr(lock, "keep", keep)

        async def hold() -> None:
            async with lock.hold("k") as lease:
                consul.destroy_session(lease.holder)
                ended.set()
                await anyio.sleep_forever()

        with pytest.raises(LockLost, match="session in Consul has ended"):
            await hold()


async def test_an_error_of_the_block_comes_out_as_it_is_and_frees_the_lock(consul: ConsulServer) -> None:
    async with ConsulLock(consul.url()) as lock:

        async def fail() -> None:
            async with lock.hold("k"):
                raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await fail()
        assert await lock.acquire("k")


async def test_hostile_names_are_names_like_any_other(consul: ConsulServer) -> None:
    url = consul.url()
    async with ConsulLock(url) as one, ConsulLock(url) as other:
        for key in MEANT_HARM:
            assert await one.acquire(key), key
        assert len(one.held) == len(set(MEANT_HARM))
        for key in MEANT_HARM:
            assert not await other.acquire(key), key
        with pytest.raises(NotStorable):
            await one.acquire("half \ud83d")


async def test_a_waiting_holder_can_be_cancelled(consul: ConsulServer) -> None:
    url = consul.url()
    async with ConsulLock(url) as one, ConsulLock(url) as other:
        assert await one.acquire("k")
        with anyio.move_on_after(0.2) as scope:
            async with other.hold("k"):
                raise AssertionError("the lock was held")
        assert scope.cancelled_caught
        await one.release("k")
        assert await other.acquire("k")


def test_many_processes_never_hold_one_lock_together(consul: ConsulServer) -> None:
    url = consul.url()
    children = [
        subprocess.Popen([sys.executable, "-c", CHILD, url], stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]  # fmt: skip
    said = [child.communicate()[0].split() for child in children]
    tokens = [int(token) for one in said for token in one]
    assert len(tokens) == 20
    assert len(set(tokens)) == 20, "two held the lock under one token"


CHILD = """
import sys, anyio
from flat.backends.consul import ConsulLock

async def main():
    async with ConsulLock(sys.argv[1]) as lock:
        for _ in range(5):
            async with lock.hold("k") as lease:
                assert await lock.holds(lease)
                print(lease.token)

anyio.run(main)
"""


MACHINE = """\
spec: flatmachine
spec_version: "4.2.1"
data:
  name: small
  settings: {backends: {BACKENDS}}
  context: {answer: null}
  hooks: hooks
  states:
    look: {type: initial, action: look, transitions: [{to: done}]}
    done: {type: final, output: {held: "{{ context.held }}"}}
"""


class Looking(MachineHooks):
    """Tries to get the lock of its own execution."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def on_action(self, action_name: str, context: dict[str, Any]) -> dict[str, Any]:
        async with ConsulLock(self.url) as other:
            return {**context, "held": not await other.acquire("x")}


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("locking: 'URL'", {}),
        ("locking: consul, consul_url: 'URL'", {}),
        ("locking: consul", {"FLAT_CONSUL_URL": "URL"}),
    ],
)
@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_a_file_asks_for_a_lock_beside_whatever_store(
    store: str, said: str, told: dict[str, str], consul: ConsulServer, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    url = consul.url()
    for name, value in told.items():
        monkeypatch.setenv(name, value.replace("URL", url))
    backends = f"persistence: {store}, {said.replace('URL', url)}"
    (tmp_path / "machine.yml").write_text(MACHINE.replace("BACKENDS", backends))
    hooks = HooksRegistry()
    hooks.register("hooks", lambda: Looking(url))

    def machine() -> FlatMachine:
        return FlatMachine(config_file="machine.yml", hooks_registry=hooks, _execution_id="x")

    async with ConsulLock(url) as somebody:
        assert await somebody.acquire("x")
        with pytest.raises(ExecutionBusy, match="its lock is held"):
            await machine().execute()
        await somebody.release("x")
        assert await machine().execute() in ({"held": "True"}, {"held": True})
        assert await somebody.acquire("x"), "the run that has ended still holds its lock"


async def test_a_consul_that_is_gone_is_an_error_that_says_where() -> None:
    port = free_port()
    async with ConsulLock(f"consul://127.0.0.1:{port}/x?timeout=1") as lock:
        with pytest.raises(BackendError, match=f"no answer from Consul at consul://127.0.0.1:{port}"):
            await lock.acquire("k")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("consul:", "names a host"),
        ("http://x", "names a host"),
        ("consul://x:port", "is wrong"),
        ("consul://x?ttl=1", "10 to 86400 seconds"),
        ("consul://x?ttl=nan", "10 to 86400 seconds"),
        ("consul://x?tls=maybe", "true or false"),
        ("consul://x?tllt=1", "no option tllt"),
    ],
)
def test_a_bad_address_is_refused(url: str, said: str) -> None:
    with pytest.raises(BadStoreURL, match=said):
        parse_url(url)


def test_an_address_prints_without_its_token() -> None:
    address = parse_url("consul://x/y?token=secret")
    assert "secret" not in repr(address)
    assert address.token == "secret"
