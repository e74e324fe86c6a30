"""`flat runs list` and `flat cancel`: what is in a store, and the wish to stop it."""

from __future__ import annotations

import datetime
import json as json_format
from collections.abc import Sequence
from typing import Any

import anyio

from flat.backends.protocols import Execution
from flat.cli.ending import DONE, TAKEN, UsageError, complain, say
from flat.cli.stores import full_id, is_missing, need_store, store_url
from flat.cli.tables import room, table
from flat.cli.text import one_line, short_id
from flat.drivers.stranded import is_buried, is_queued
from flat.errors import did_you_mean
from flat.runtime import Runtime

STATUSES = (
    "ready", "running", "interrupted", "buried", "waiting", "done", "failed", "cancelled", "limit", "in_doubt",
)  # fmt: skip
STORED = {"interrupted": "running", "ready": "waiting", "buried": "waiting"}
"""What is told apart here, and not by the store."""
Seen = tuple[Execution, str]
"""An execution, and its status as it is shown."""


def check_statuses(statuses: Sequence[str]) -> None:
    """Refuse statuses that there are not."""
    for status in statuses:
        if status not in STATUSES:
            raise UsageError(f'there is no status "{status}"; {did_you_mean(status, STATUSES)}')


def list_runs(*, store: str | None, statuses: Sequence[str], name: str | None, limit: int, json: bool) -> int:
    """List executions, newest first: all of them, or those of some statuses."""
    check_statuses(statuses)
    url = store_url(store)
    found: Sequence[Seen] = () if is_missing(url) else anyio.run(_list, url, statuses, name, limit)
    if json:
        say(json_format.dumps([execution_data(*seen) for seen in found], indent=2))
    elif not found:
        complain(_nothing(url, statuses, name))
    else:
        heads = ("id", "machine", "status", "started", "last change", "waits on")
        for line in table([heads, *(_row(*seen) for seen in found)], room(), spare=(4, 3, 1)):
            say(line)
    return DONE


def _nothing(url: str, statuses: Sequence[str], name: str | None) -> str:
    if not statuses and name is None:
        return f"nothing has run yet in {url}"
    what = "no execution" if name is None else f'no execution of "{name}"'
    return f"{what} is {' or '.join(statuses)}" if statuses else f"there is {what} in {url}"


async def _list(url: str, statuses: Sequence[str], name: str | None, limit: int) -> list[Seen]:
    asked = {STORED.get(status, status) for status in statuses}
    stored = asked.pop() if len(asked) == 1 else None
    found: list[Seen] = []
    async with Runtime(url) as runtime:
        # The store can count only when nothing is left to sort out here.
        simple = name is None and not asked and stored not in STORED.values()
        for execution in await runtime.list(status=stored, limit=limit if simple else None):
            if name is not None and execution.name != name:
                continue
            shown = await shown_status(runtime, execution)
            if not statuses or shown in statuses:
                found.append((execution, shown))
            if len(found) == limit:
                break
    return found


async def shown_status(runtime: Runtime, execution: Execution) -> str:
    """The status, told apart: what nobody drives, or a process that is gone, is not running; and what waits for a
    worker, or was taken from the workers, does not wait for a signal."""
    if execution.status == "waiting":
        return "ready" if is_queued(execution) else "buried" if is_buried(execution) else "waiting"
    if execution.status != "running":
        return execution.status
    gone = execution.owner is None
    if not gone:
        gone = await runtime.opened().abandoned(execution.execution_id, now=runtime.clock.now())
    return "interrupted" if gone else "running"


def _row(e: Execution, status: str) -> tuple[str, ...]:
    channels = "" if status == "buried" else ", ".join(one_line(c, 40) for c in e.channels)
    return (
        one_line(short_id(e.execution_id)), one_line(e.name, 40), status, when(e.created_at), when(e.updated_at),
        channels,
    )  # fmt: skip


def when(at: float) -> str:
    """A time, for people."""
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def execution_data(e: Execution, status: str) -> dict[str, Any]:
    """The columns of an execution as plain data."""
    return {
        "execution_id": e.execution_id, "machine": e.name, "status": status, "parent": e.parent,
        "created_at": e.created_at, "updated_at": e.updated_at, "waiting_on": list(e.channels),
        "wake_at": e.wake_at,
    }  # fmt: skip


# -- messages ----------------------------------------------------------------------------------------


def cancel_run(id_: str, reason: str, *, store: str | None) -> int:
    """Cancel an execution; 8 when it was finished already."""
    url = store_url(store)
    need_store(url, id_)
    execution, stopped = anyio.run(_cancel, url, id_, reason)
    name = one_line(short_id(execution.execution_id))
    if not stopped:
        complain(f"execution {name} is {execution.status} already")
        return TAKEN
    if execution.status == "cancelled":
        say(f"execution {name} is cancelled")
    else:
        say(f"execution {name} runs in another process, which was asked to stop")
    return DONE


async def _cancel(url: str, given: str, reason: str) -> tuple[Execution, bool]:
    async with Runtime(url) as runtime:
        execution_id = await full_id(runtime, given)
        stopped = await runtime.cancel(execution_id, reason)
        execution = await runtime.opened().get(execution_id)
        assert execution is not None
        return execution, stopped
