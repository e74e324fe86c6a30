"""Executions and signals as items of a table, and back.

An execution is one item (`x#`) of columns; its bodies and log are items of a partition of their own, named for the
number that the execution got at birth (`b#`), so that a namesake born later never sees them. A channel that it waits on
is one more item (`w#`). A signal is one item (`s#`) for ever, so that its id is known also when it is spent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flat.backends.dynamodb.table import Item, hashed, key, numbered, sortable, text, whole
from flat.backends.protocols import Birth, Execution, Owner, Signal

TOKENS = 1 << 32
"""Tokens of one execution start at its number times this, so that they are above those of any earlier namesake."""
ANYBODY = "*"

# -- executions ------------------------------------------------------------------------------------


def row_key(execution_id: str) -> tuple[str, str]:
    return hashed("x", execution_id, "execution_id"), "x"


def story(number: int) -> str:
    """The partition of an execution's bodies and log."""
    return f"b#{numbered(number)}"


def body_sort(seq: int) -> str:
    return f"b#{seq:012d}"


def log_sort(seq: int) -> str:
    return f"l#{seq:012d}"


def birth_row(birth: Birth, number: int, owner: str | None) -> Item:
    """The item of a new execution."""
    new = birth.execution
    row: Item = {
        **key(*row_key(new.execution_id)),
        "xid": text(new.execution_id), "nm": text(new.name), "kd": text(new.kind), "pg": text(new.program),
        "stt": text(new.status), "sq": whole(0), "bas": whole(0), "crt": text(repr(new.created_at)),
        "upd": text(repr(new.updated_at)), "chs": {"L": [text(one) for one in new.channels]}, "chq": whole(0),
        "nr": whole(number), "tok": whole(number * TOKENS + (owner is not None)),
        "g1p": text("x"), "g1s": text(numbered(number)),
        "g2p": text(status_key(new.status)), "g2s": text(numbered(number)),
    }  # fmt: skip
    if new.parent is not None:
        row |= {"par": text(new.parent), "g3p": text(parent_key(new.parent)), "g3s": text(numbered(number))}
    if new.wake_at is not None:
        row |= {"wak": text(repr(new.wake_at)), "g4p": text("due"), "g4s": text(sortable(new.wake_at))}
    if owner is not None:
        row["own"] = text(owner)
    return row


def status_key(status: str) -> str:
    return hashed("t", status, "status")


def parent_key(parent: str) -> str:
    return hashed("p", parent, "parent")


def waiter_key(channel: str, number: int) -> tuple[str, str]:
    return hashed("w", channel, "channel"), numbered(number)


def number_of(row: Item) -> int:
    return int(row["nr"]["N"])


def token_of(row: Item) -> int:
    return int(row["tok"]["N"])


def channels_of(row: Item) -> tuple[str, ...]:
    return tuple(one["S"] for one in row["chs"]["L"])


def execution_of(row: Item) -> Execution:
    return Execution(
        execution_id=row["xid"]["S"],
        name=row["nm"]["S"],
        kind=row["kd"]["S"],
        program=row["pg"]["S"],
        status=row["stt"]["S"],
        seq=int(row["sq"]["N"]),
        created_at=float(row["crt"]["S"]),
        updated_at=float(row["upd"]["S"]),
        parent=row["par"]["S"] if "par" in row else None,
        wake_at=float(row["wak"]["S"]) if "wak" in row else None,
        channels=channels_of(row),
        owner=row["own"]["S"] if "own" in row else None,
        token=token_of(row),
    )


# -- owners ----------------------------------------------------------------------------------------


def owner_key(owner: str) -> tuple[str, str]:
    return hashed("o", owner, "owner"), "o"


def owner_item(owner: Owner, now: float, ttl: float) -> Item:
    return {
        **key(*owner_key(owner.owner)),
        "who": text(owner.owner), "hst": text(owner.host), "pid": whole(owner.pid), "boo": text(owner.boot),
        "sta": text(owner.started), "see": text(repr(float(now))), "kep": text(repr(float(ttl))),
    }  # fmt: skip


def owner_of(item: Item) -> tuple[Owner, float, float]:
    """An owner, when it was last heard of, and for how long that counts."""
    owner = Owner(
        owner=item["who"]["S"], host=item["hst"]["S"], pid=int(item["pid"]["N"]), boot=item["boo"]["S"],
        started=item["sta"]["S"],
    )  # fmt: skip
    return owner, float(item["see"]["S"]), float(item["kep"]["S"])


# -- signals ---------------------------------------------------------------------------------------


def letter_key(signal_id: str) -> tuple[str, str]:
    return hashed("s", signal_id, "signal_id"), "s"


def line_key(channel: str, to: str | None) -> str:
    """The partition of an index with the open signals of a channel that are for the same."""
    return f"{hashed('l', channel, 'channel')}{ANYBODY if to is None else hashed('', to, 'to')}"


def letter_item(signal: Signal, place: int, body: dict[str, Any]) -> Item:
    item = {
        **key(*letter_key(signal.signal_id)),
        "sid": text(signal.signal_id), "chn": text(signal.channel), "bod": body,
        "mad": text(repr(signal.created_at)), "plc": whole(place), "sta": text("open"),
    }  # fmt: skip
    if signal.to is not None:
        item["dst"] = text(signal.to)
    return {**item, **open_keys(item)}


def open_keys(item: Item) -> Item:
    """The keys of the indexes in which an open signal stands."""
    where = text(f"{numbered(int(item['plc']['N']))}#{item['pk']['S']}")
    channel = item["chn"]["S"]
    return {
        "g1p": text(line_key(channel, to_of(item))), "g1s": where,
        "g2p": text("l"), "g2s": where,
        "g3p": text(hashed("c", channel, "channel")), "g3s": where,
    }  # fmt: skip


def dead_keys(item: Item) -> Item:
    """The keys of the indexes in which a dead letter stands."""
    where = open_keys(item)["g2s"]
    return {"g2p": text("d"), "g2s": where, "g3p": text(dead_line(item["chn"]["S"])), "g3s": where}


def dead_line(channel: str) -> str:
    return hashed("d", channel, "channel")


def to_of(item: Item) -> str | None:
    return item["dst"]["S"] if "dst" in item else None


def signal_of(item: Item, body: bytes) -> Signal:
    return Signal(
        signal_id=item["sid"]["S"], channel=item["chn"]["S"], body=body, created_at=float(item["mad"]["S"]),
        to=to_of(item),
    )  # fmt: skip


def setting(values: Item) -> tuple[str, dict[str, Any]]:
    """`SET` words for an update, and their values under the names of the attributes."""
    return ", ".join(f"{name} = :{name}" for name in values), dict(values)


def distinct(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))
