"""What DynamoDB does through its client alone: the writes of a store, with the same atomicity, and nothing checked."""

from __future__ import annotations

from typing import Any

import anyio
from aiobotocore.session import get_session

from benchmarks.harness import Meter


class _ByHand:
    """aiobotocore with the session that it has by itself, and transactions without conditions."""

    def __init__(self, client: Any) -> None:
        self.client = client

    async def write(self, *actions: dict[str, Any]) -> None:
        await self.client.transact_write_items(TransactItems=list(actions))

    def put(self, pk: str, sk: str, **item: str) -> dict[str, Any]:
        values = {name: {"S": value} for name, value in item.items()}
        return {"Put": {"TableName": "raw", "Item": {"pk": {"S": pk}, "sk": {"S": sk}, **values}}}

    def delete(self, pk: str, sk: str) -> dict[str, Any]:
        return {"Delete": {"TableName": "raw", "Key": {"pk": {"S": pk}, "sk": {"S": sk}}}}

    def update(self, pk: str, **item: str) -> dict[str, Any]:
        change = "SET " + ", ".join(f"#{name} = :{name}" for name in item)
        return {
            "Update": {
                "TableName": "raw", "Key": {"pk": {"S": pk}, "sk": {"S": "x"}}, "UpdateExpression": change,
                "ExpressionAttributeNames": {f"#{name}": name for name in item},
                "ExpressionAttributeValues": {f":{name}": {"S": value} for name, value in item.items()},
            }
        }  # fmt: skip

    async def step(self, part: int, count: int) -> None:
        for seq in range(count):
            await self.write(
                self.update(f"e{part}", seq=str(seq)), self.put(f"b{part}", str(seq), val="x" * 300)
            )

    async def jobs(self, part: int, count: int) -> None:
        line = f"q{part}"
        for n in range(count):
            await self.write(self.put(f"j{part}", f"{n:09d}", data="{}"), self.put(line, f"{n:09d}"))
        question = {
            "TableName": "raw", "KeyConditionExpression": "pk = :p", "ExpressionAttributeValues": {":p": {"S": line}},
            "Limit": 1, "ConsistentRead": True,
        }  # fmt: skip
        while found := (await self.client.query(**question))["Items"]:
            number = found[0]["sk"]["S"]
            job, worker = self.put(f"j{part}", number, data="{}", worker="w"), self.put(f"k{part}", number)
            await self.write(job, self.delete(line, number), worker)
            await self.write(self.delete(f"j{part}", number), self.delete(f"k{part}", number))

    async def park(self, part: int, count: int) -> None:
        name = f"e{part}"
        for turn in range(count):
            body = self.put(f"b{part}", str(2 * turn), val="x" * 300)
            await self.write(body, self.update(name, status="waiting"), self.put(f"w{part}", "e"))
            await self.write(self.put(f"s{part}", str(turn), body="{}"))
            await self.write(self.update(name, owner="bench"))
            body = self.put(f"b{part}", str(2 * turn + 1), val="x" * 300)
            woken = self.update(name, status="running")
            await self.write(body, woken, self.delete(f"w{part}", "e"), self.delete(f"s{part}", str(turn)))


async def by_hand(endpoint: str, what: str, n: int, at_once: int, meter: Meter) -> None:
    """Do a number of `step`, `jobs` or `park`, in so many tasks at once."""
    async with get_session().create_client(
        "dynamodb", region_name="us-east-1", endpoint_url=endpoint
    ) as client:
        keys = [("pk", "HASH"), ("sk", "RANGE")]
        await client.create_table(
            TableName="raw", BillingMode="PAY_PER_REQUEST",
            KeySchema=[{"AttributeName": name, "KeyType": what} for name, what in keys],
            AttributeDefinitions=[{"AttributeName": name, "AttributeType": "S"} for name, _ in keys],
        )  # fmt: skip
        work = getattr(_ByHand(client), what)
        with meter:
            async with anyio.create_task_group() as group:
                for part in range(at_once):
                    group.start_soon(work, part, n // at_once)
