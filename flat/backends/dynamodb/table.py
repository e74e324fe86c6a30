"""The one table of a DynamoDB store: keys, transactions, reads in batches, queries, large values, numbers.

Every item has a partition key `pk` and a sort key `sk`. A partition key is one letter for the kind of thing and the
hash of its name, so that no name from outside can be the key of something else. Items that are searched for carry
keys of the sparse indexes `g1` to `g5`. An index is a moment behind the table; what is found there is read again from
the table itself, so that nothing is reported which is not so.

An item may have 400 KB and a transaction 4 MB. A value that does not fit is written before the transaction, in pieces
named for their content, into the partition of the item that then names it (`spill`). A transaction that fails leaves
such pieces behind, and its repetition finds them there.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Self, TypeVar

import anyio
import orjson

from flat.backends.aws import Address, Aws, Refused, host_of
from flat.backends.checks import check_text
from flat.errors import BackendError

T = TypeVar("T")
Item = dict[str, Any]
"""Attributes in DynamoDB's own form: `{"sq": {"N": "7"}}`."""
Action = dict[str, Any]
"""One part of a transaction: a Put, Update, Delete or ConditionCheck."""
INDEXES = ("g1", "g2", "g3", "g4", "g5")
SHOWN = ("sid", "chn", "dst", "mad")
"""What index g2 tells of a signal besides its keys, so that who is ready can be told without reading signals."""
MOST_ACTIONS = 100
"""Of one transaction: DynamoDB's own limit."""
INLINE = 200_000
"""Bytes of one value that stay in its item."""
TOGETHER = 2_000_000
"""Bytes of values that stay in the items of one transaction. In transit a third more."""
PIECE = 350_000
"""Bytes of a large value in one of the items that it is spread over."""
READ_AT_ONCE, WRITE_AT_ONCE = 100, 25
"""Items of one batch: DynamoDB's own limits."""
FORMAT = "1"
NEW = "attribute_not_exists(pk)"
OLD = "attribute_exists(pk)"


def hashed(kind: str, name: str, path: str = "name") -> str:
    """The partition key of a thing: of its kind and its name, which may be any text."""
    check_text(path, name)
    return f"{kind}#{hashlib.sha256(name.encode()).hexdigest()[:40]}"


def numbered(number: int) -> str:
    """A number as text that sorts like the number."""
    return f"{number:020d}"


def sortable(moment: float) -> str:
    """A time as text that sorts like the time."""
    (bits,) = struct.unpack(">Q", struct.pack(">d", moment + 0.0))
    return f"{bits ^ (0xFFFFFFFFFFFFFFFF if bits >> 63 else 1 << 63):016x}"


def text(value: str) -> dict[str, str]:
    return {"S": value}


def whole(value: int) -> dict[str, str]:
    return {"N": str(value)}


def index_name(index: str) -> str:
    return f"flat-{index}"  # DynamoDB wants three letters and more


def key(pk: str, sk: str) -> Item:
    return {"pk": text(pk), "sk": text(sk)}


class Table:
    """The table, and the calls that all stores in it make."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.aws = Aws("dynamodb", address)
        self._ready = False

    def __repr__(self) -> str:
        return f"{self.address.name!r} at {host_of(self.address)}"

    async def close(self) -> None:
        await self.aws.close()

    async def call(self, doing: str, operation: str, **arguments: Any) -> dict[str, Any]:
        if not self._ready:
            await self._prepare()
        return await self.aws.call(doing, operation, **arguments)

    # -- the table itself ---------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Make sure that the table is there and ours."""
        if self.address.create:
            await self.create()
        try:
            found = await self.aws.call(
                "opening the table", "get_item", TableName=self.address.name, Key=key("format", "format"),
                ConsistentRead=True,
            )  # fmt: skip
        except Refused as error:
            if error.code != "ResourceNotFoundException":
                raise BackendError(f"opening the table {self!r} was refused: {error.code}") from error
            raise BackendError(
                f"there is no table {self!r}; create it with ?create=true in the URL, once"
            ) from error
        kept = found.get("Item", {}).get("fmt", {}).get("S")
        if kept is None:
            raise BackendError(
                f"the table {self!r} was not made by flat; name another one, or add ?create=true"
            )
        if kept != FORMAT:
            raise BackendError(
                f"the table {self!r} has format {kept}, and this version of flat reads {FORMAT}"
            )
        self._ready = True

    async def create(self) -> None:
        """Create the table with its indexes, unless it exists, and wait until it can be used."""
        try:
            await self.aws.call("creating the table", "create_table", **description(self.address.name))
        except Refused as error:
            if error.code != "ResourceInUseException":
                raise BackendError(f"creating the table {self!r} was refused: {error.code}") from error
        with anyio.move_on_after(120):
            while True:
                found = await self.aws.call(
                    "creating the table", "describe_table", TableName=self.address.name
                )
                if found["Table"]["TableStatus"] == "ACTIVE":
                    break
                await anyio.sleep(0.5)
        keys = {one["AttributeName"] for one in found["Table"]["KeySchema"]}
        indexes = {one["IndexName"] for one in found["Table"].get("GlobalSecondaryIndexes", ())}
        if keys != {"pk", "sk"} or not indexes.issuperset(map(index_name, INDEXES)):
            raise BackendError(f"the table {self!r} has other keys than a table of flat; name another one")
        await self.aws.call(
            "creating the table", "update_item", TableName=self.address.name, Key=key("format", "format"),
            UpdateExpression="SET fmt = if_not_exists(fmt, :f)", ExpressionAttributeValues={":f": text(FORMAT)},
        )  # fmt: skip

    # -- writing ------------------------------------------------------------------------------

    async def write(self, doing: str, actions: Sequence[Action]) -> None:
        """All of these or none. Carried out once, however often it has to be sent. Raises `Refused`."""
        if len(actions) > MOST_ACTIONS:
            raise BackendError(
                f"{doing} changes {len(actions)} things at once, and DynamoDB takes {MOST_ACTIONS}; "
                "do it in several steps"
            )
        await self.call(
            doing, "transact_write_items", TransactItems=list(actions), ClientRequestToken=str(uuid.uuid4()),
        )  # fmt: skip

    async def try_write(self, doing: str, actions: Sequence[Action]) -> bool:
        """`write`, where conditions that do not hold are an answer and no error."""
        try:
            await self.write(doing, actions)
        except Refused as error:
            if "ConditionalCheckFailed" not in error.reasons:
                raise self.refusal(doing, error) from error
            return False
        return True

    def refusal(self, doing: str, error: Refused) -> BackendError:
        said = error.__cause__ or error
        return BackendError(f"{doing} was refused by DynamoDB: {said}")

    def put(self, item: Item, condition: str | None = None, **values: Any) -> Action:
        return self._action("Put", {"Item": item}, condition, values)

    def update(self, where: Item, change: str, condition: str | None = None, **values: Any) -> Action:
        return self._action("Update", {"Key": where, "UpdateExpression": change}, condition, values)

    def remove(self, where: Item, condition: str | None = None, **values: Any) -> Action:
        return self._action("Delete", {"Key": where}, condition, values)

    def check(self, where: Item, condition: str, **values: Any) -> Action:
        return self._action("ConditionCheck", {"Key": where}, condition, values)

    def _action(
        self, kind: str, what: dict[str, Any], condition: str | None, values: dict[str, Any]
    ) -> Action:
        what["TableName"] = self.address.name
        if condition is not None:
            what["ConditionExpression"] = condition
        if values:
            what["ExpressionAttributeValues"] = {f":{name}": value for name, value in values.items()}
        return {kind: what}

    async def put_now(self, doing: str, item: Item) -> None:
        """Write one item, whatever was there."""
        await self.call(doing, "put_item", TableName=self.address.name, Item=item)

    async def count(self, counter: str, number: int = 1) -> int:
        """Take so many numbers that nobody had before, and return the first. Some may never be used."""
        found = await self.call(
            "taking a number", "update_item", TableName=self.address.name, Key=key("count", counter),
            UpdateExpression="ADD nr :n", ExpressionAttributeValues={":n": whole(number)}, ReturnValues="UPDATED_NEW",
        )  # fmt: skip
        return int(found["Attributes"]["nr"]["N"]) - number + 1

    async def batch(self, doing: str, requests: Iterable[dict[str, Any]]) -> None:
        """Puts and deletes that need not be one transaction."""
        for some in groups(requests, WRITE_AT_ONCE):
            left = some
            while left:
                left = await self._batch(doing, left)

    async def _batch(self, doing: str, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
        name = self.address.name
        found = await self.call(doing, "batch_write_item", RequestItems={name: requests})
        left: list[dict[str, Any]] = found.get("UnprocessedItems", {}).get(name, [])
        if left:
            await anyio.sleep(0.05)
        return left

    # -- reading ------------------------------------------------------------------------------

    async def get(self, doing: str, pk: str, sk: str) -> Item | None:
        """One item as it is now."""
        found = await self.call(
            doing, "get_item", TableName=self.address.name, Key=key(pk, sk), ConsistentRead=True
        )
        item: Item | None = found.get("Item")
        return item

    async def get_all(self, doing: str, keys: Sequence[tuple[str, str]]) -> list[Item | None]:
        """Items as they are now, in the order of their keys."""
        name = self.address.name
        found: dict[tuple[str, str], Item] = {}
        for some in groups(dict.fromkeys(keys), READ_AT_ONCE):
            left: list[Item] = [key(*one) for one in some]
            while left:
                answer = await self.call(
                    doing, "batch_get_item", RequestItems={name: {"Keys": left, "ConsistentRead": True}}
                )
                for item in answer.get("Responses", {}).get(name, ()):
                    found[item["pk"]["S"], item["sk"]["S"]] = item
                left = answer.get("UnprocessedKeys", {}).get(name, {}).get("Keys", [])
                if left:
                    await anyio.sleep(0.05)
        return [found.get(one) for one in keys]

    def pages(
        self, doing: str, pk: str, *, index: str | None = None, first: str = "", last: str = "\U0010ffff",
        newest: bool = False, limit: int | None = None, keys_only: bool = False,
    ) -> Pages:  # fmt: skip
        """The items of a partition whose sort keys are in a range, page by page."""
        hash_key, sort_key = (f"{index}p", f"{index}s") if index else ("pk", "sk")
        values = {":p": text(pk), ":last": text(last)}
        condition = f"{hash_key} = :p AND {sort_key} <= :last"
        if first:
            condition = f"{hash_key} = :p AND {sort_key} BETWEEN :first AND :last"
            values[":first"] = text(first)
        question: dict[str, Any] = {
            "TableName": self.address.name, "KeyConditionExpression": condition, "ExpressionAttributeValues": values,
            "ScanIndexForward": not newest,
        }  # fmt: skip
        question |= {"IndexName": index_name(index)} if index else {"ConsistentRead": True}
        if keys_only:
            question["ProjectionExpression"] = "pk, sk"
        if limit is not None:
            question["Limit"] = limit
        return Pages(self, doing, question)

    async def query(self, doing: str, pk: str, **options: Any) -> list[Item]:
        """All items of a range."""
        return [item async for page in self.pages(doing, pk, **options) for item in page]

    # -- large values ---------------------------------------------------------------------------

    async def spill(self, pk: str, value: bytes) -> dict[str, Any]:
        """An attribute that stands for a value kept in pieces, which are written now."""
        digest = hashlib.sha256(value).hexdigest()
        pieces = [value[at : at + PIECE] for at in range(0, len(value), PIECE)]
        # Large ones share no request: it may have 16 MB.
        await self.batch(
            "storing a large value",
            (
                {"PutRequest": {"Item": {**key(pk, f"k#{digest}#{n:06d}"), "val": {"B": piece}}}}
                for n, piece in enumerate(pieces)
            ),
        )
        return {"M": {"sha": text(digest), "len": whole(len(value))}}

    async def value(self, pk: str, attribute: Mapping[str, Any]) -> bytes:
        """The value of an attribute, fetched when it was spilled."""
        if "B" in attribute:
            return bytes(attribute["B"])
        digest, size = attribute["M"]["sha"]["S"], int(attribute["M"]["len"]["N"])
        items = await self.query("reading a large value", pk, first=f"k#{digest}#", last=f"k#{digest}#999999")
        joined = b"".join(bytes(item["val"]["B"]) for item in items)
        if len(joined) != size:
            raise BackendError(
                f"a large value in the table {self!r} has {len(joined)} bytes instead of {size}"
            )
        return joined


def groups(many: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(many)
    while some := list(islice(rest, size)):
        yield some


class Pages:
    """The pages of a query, which may be left at any time."""

    def __init__(self, table: Table, doing: str, question: dict[str, Any]) -> None:
        self._table, self._doing, self._question = table, doing, question
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Item]:
        if self._over:
            raise StopAsyncIteration
        found = await self._table.call(self._doing, "query", **self._question)
        self._over = "LastEvaluatedKey" not in found
        self._question["ExclusiveStartKey"] = found.get("LastEvaluatedKey")
        items: list[Item] = found["Items"]
        return items


class Values:
    """The values of one transaction: what fits stays in the items, and the rest is spilled."""

    def __init__(self, table: Table, together: int = TOGETHER) -> None:
        self._table, self._left = table, together

    async def attribute(self, pk: str, value: bytes) -> dict[str, Any]:
        if len(value) > min(INLINE, self._left):
            return await self._table.spill(pk, value)
        self._left -= len(value)
        return {"B": value}


def joined(rows: Sequence[bytes]) -> bytes:
    """Several rows as one value."""
    return orjson.dumps([len(row) for row in rows]) + b"\n" + b"".join(rows)


def split(value: bytes) -> list[bytes]:
    lengths, _, rest = value.partition(b"\n")
    rows, at = [], 0
    for length in orjson.loads(lengths):
        rows.append(rest[at : at + length])
        at += length
    return rows


def description(name: str) -> dict[str, Any]:
    """What a table of flat looks like, as arguments of CreateTable: for templates of those who create their own."""

    def schema(pk: str, sk: str) -> list[dict[str, str]]:
        return [{"AttributeName": pk, "KeyType": "HASH"}, {"AttributeName": sk, "KeyType": "RANGE"}]

    def projection(index: str) -> dict[str, Any]:
        if index == "g2":
            return {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(SHOWN)}
        return {"ProjectionType": "KEYS_ONLY"}

    keys = ["pk", "sk", *(f"{index}{which}" for index in INDEXES for which in "ps")]
    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "KeySchema": schema("pk", "sk"),
        "AttributeDefinitions": [{"AttributeName": one, "AttributeType": "S"} for one in keys],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": index_name(index),
                "KeySchema": schema(f"{index}p", f"{index}s"),
                "Projection": projection(index),
            }
            for index in INDEXES
        ],
    }
