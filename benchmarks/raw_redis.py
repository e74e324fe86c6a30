"""What Redis does through its clients alone: the writes of a store, with the same atomicity, and nothing checked."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.harness import Meter

BODY = b"x" * 300
Transactions = Sequence[Sequence[tuple[Any, ...]]]


class RedisPy:
    """redis-py with hiredis, in its fastest use: blocking, and whatever is ready at once in one transaction."""

    def __init__(self, port: int) -> None:
        import redis

        self._client: Any = redis.Redis(port=port)

    def __call__(self, transactions: Transactions) -> list[Any]:
        pipe = self._client.pipeline(transaction=True)
        for command in itertools.chain.from_iterable(transactions):
            pipe.execute_command(*command)
        answers = iter(pipe.execute())
        return [list(itertools.islice(answers, len(one))) for one in transactions]

    def close(self) -> None:
        self._client.close()


class ByHand:
    """hiredis on a blocking socket, without a client: the floor, on which nothing could be built."""

    def __init__(self, port: int) -> None:
        import hiredis

        self.pack, self.reader = hiredis.pack_command, hiredis.Reader()
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __call__(self, transactions: Transactions) -> list[Any]:
        """Transactions in one message; what each of them answers."""
        out: list[bytes] = []
        for transaction in transactions:
            out += (self.pack(("MULTI",)), *map(self.pack, transaction), self.pack(("EXEC",)))
        self.socket.sendall(b"".join(out))
        left, answers = [len(one) + 2 for one in transactions], []
        for count in left:
            for _ in range(count):
                while (reply := self.reader.gets()) is False:
                    self.reader.feed(self.socket.recv(262_144))
            assert isinstance(reply, list), reply
            answers.append(reply)
        return answers

    def close(self) -> None:
        self.socket.close()


def write(send: RedisPy | ByHand, what: str, n: int, at_once: int, meter: Meter) -> None:
    """So many steps, jobs, or parks and wakes, `at_once` of them ready at the same time."""
    with meter:
        if what == "step":
            for seq in range(n // at_once):
                send(
                    [
                        [("RPUSH", f"b:{one}", BODY), ("HSET", f"e:{one}", "seq", seq, "updated", "1.0")]
                        for one in range(at_once)
                    ]
                )
        elif what == "jobs":
            for first in range(0, n, at_once):
                numbers = range(first, first + at_once)
                send(
                    [[("HSET", f"j:{i}", "data", "{}", "max", 3), ("ZADD", "pending", i, i)] for i in numbers]
                )
            for _ in range(0, n, at_once):
                popped = send([[("ZPOPMIN", "pending")]] * at_once)
                # A pair in a list, or a list that is the pair.
                heads = [
                    (one[0][0] if isinstance(one[0], list | tuple) else one[0]).decode() for (one,) in popped
                ]
                send([[("HSET", f"j:{i}", "worker", "w"), ("ZADD", "claimed", i, i)] for i in heads])
                send([[("DEL", f"j:{i}"), ("ZREM", "claimed", i)] for i in heads])
        else:
            for turn in range(n // at_once):
                _turn(send, turn, at_once)
    send.close()


def _turn(send: Callable[[Transactions], Any], turn: int, at_once: int) -> None:
    every = range(at_once)
    send([
        [("RPUSH", f"b:{i}", BODY), ("HSET", f"e:{i}", "seq", 2 * turn, "status", "waiting", "channels", f"e{i}"),
         ("HDEL", f"e:{i}", "owner"), ("ZADD", f"w:e{i}", i, i), ("ZREM", "running", i), ("ZADD", "waiting", i, i)]
        for i in every
    ])  # fmt: skip
    send([
        [("HSET", f"g:{turn}/{i}", "channel", f"e{i}", "body", "{}"), ("ZADD", f"q:e{i}", turn, f"{turn}/{i}"),
         ("ZADD", "open", turn, f"{turn}/{i}"), ("SADD", "calls", f"e{i}")]
        for i in every
    ])  # fmt: skip
    send([[("HINCRBY", f"e:{i}", "token", 1), ("HSET", f"e:{i}", "owner", "bench")] for i in every])
    send([
        [("RPUSH", f"b:{i}", BODY), ("HSET", f"e:{i}", "seq", 2 * turn + 1, "status", "running", "channels", ""),
         ("ZREM", f"w:e{i}", i), ("ZADD", "running", i, i), ("ZREM", "waiting", i), ("DEL", f"g:{turn}/{i}"),
         ("ZREM", f"q:e{i}", f"{turn}/{i}"), ("ZREM", "open", f"{turn}/{i}"), ("SREM", "calls", f"e{i}")]
        for i in every
    ])  # fmt: skip


async def by_coredis(port: int, n: int, at_once: int, meter: Meter) -> None:
    import coredis

    async with coredis.Redis(host="127.0.0.1", port=port) as client:
        with meter:
            for seq in range(n // at_once):
                async with client.pipeline(transaction=True) as pipe:
                    for one in range(at_once):
                        pipe.rpush(f"b:{one}", [BODY])
                        pipe.hset(f"e:{one}", {"seq": seq, "updated": "1.0"})


async def by_redis_asyncio(port: int, n: int, at_once: int, meter: Meter) -> None:
    import redis.asyncio

    client: Any = redis.asyncio.Redis(port=port)
    with meter:
        for seq in range(n // at_once):
            async with client.pipeline(transaction=True) as pipe:
                for one in range(at_once):
                    pipe.execute_command("RPUSH", f"b:{one}", BODY)
                    pipe.execute_command("HSET", f"e:{one}", "seq", seq, "updated", "1.0")
                await pipe.execute()
    await client.aclose()


ASYNC_CLIENTS = {"coredis": by_coredis, "redis.asyncio": by_redis_asyncio}
"""Whole clients for event loops: what the store would cost at the least on top of one, in the best case, which is all
that is ready at once in one transaction of one task."""
