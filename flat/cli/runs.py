"""`flat runs`, `flat cancel`, `flat signal`: what is in a store, and messages to it."""

from __future__ import annotations

import datetime
import json as json_format
from collections.abc import Mapping, Sequence
from typing import Any

import anyio

from flat.backends.protocols import Execution
from flat.cli.ending import DONE, TAKEN, UsageError, complain, say
from flat.cli.inputs import read_json
from flat.cli.outcomes import failure_data
from flat.cli.plain import spent_data
from flat.cli.stores import DEFAULT, full_id, is_missing, need_store, store_url
from flat.cli.text import count, money, one_line, seconds, short_id
from flat.core.snapshot import Snapshot
from flat.errors import did_you_mean
from flat.runtime import Runtime

STATUSES = ("running", "interrupted", "waiting", "done", "failed", "cancelled", "limit", "in_doubt")


def list_runs(*, store: str | None, status: str | None, limit: int, json: bool) -> int:
    """List executions, newest first."""
    if status is not None and status not in STATUSES:
        raise UsageError(f'there is no status "{status}"; {did_you_mean(status, STATUSES)}')
    url = store_url(store)
    found: Sequence[Execution] = () if is_missing(url) else anyio.run(_list, url, status, limit)
    if json:
        say(json_format.dumps([_execution_data(e) for e in found], indent=2))
    elif not found:
        complain(f"nothing has run yet in {url}" if status is None else f"no execution is {status}")
    else:
        rows: list[tuple[str, ...]] = [("id", "machine", "status", "started", "last change", "waits on")]
        rows += [_row(e) for e in found]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for row in rows:
            say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return DONE


async def _list(url: str, status: str | None, limit: int) -> Sequence[Execution]:
    stored = "running" if status == "interrupted" else status
    async with Runtime(url) as runtime:
        if status not in ("running", "interrupted"):
            return await runtime.list(status=stored, limit=limit)
        return [e for e in await runtime.list(status=stored) if shown_status(e) == status][:limit]


def shown_status(execution: Execution) -> str:
    """The status, told apart: what nobody drives is not running."""
    return "interrupted" if execution.status == "running" and execution.owner is None else execution.status


def _row(e: Execution) -> tuple[str, ...]:
    channels = ", ".join(one_line(c, 40) for c in e.channels)
    started, changed = _when(e.created_at), _when(e.updated_at)
    return (
        one_line(short_id(e.execution_id)),
        one_line(e.name, 40),
        shown_status(e),
        started,
        changed,
        channels,
    )


def _when(at: float) -> str:
    return datetime.datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")


def _execution_data(e: Execution) -> dict[str, Any]:
    return {
        "execution_id": e.execution_id, "machine": e.name, "status": shown_status(e), "parent": e.parent,
        "created_at": e.created_at, "updated_at": e.updated_at, "waiting_on": list(e.channels),
        "wake_at": e.wake_at,
    }  # fmt: skip


# -- one execution ---------------------------------------------------------------------------------


def show_run(id_: str, *, store: str | None, steps: bool, json: bool) -> int:
    """Show one execution; with `steps`, every checkpoint of it."""
    url = store_url(store)
    need_store(url, id_)
    execution, snapshot, history = anyio.run(_read, url, id_, steps)
    if json:
        data = {**_execution_data(execution), **_snapshot_data(snapshot)}
        if steps:
            data["checkpoints"] = [{"seq": seq, **_snapshot_data(one)} for seq, one in history]
        say(json_format.dumps(data, indent=2, default=str))
        return DONE
    for name, value in _facts(execution, snapshot):
        say(f"{name + ':':<11}{value}")
    if steps:
        say()
        before: Mapping[str, Any] = {}
        for seq, one in history:
            say(_checkpoint_line(seq, one, before, execution.created_at))
            before = one.root.context
    return DONE


async def _read(
    url: str, given: str, steps: bool
) -> tuple[Execution, Snapshot, Sequence[tuple[int, Snapshot]]]:
    async with Runtime(url) as runtime:
        execution_id = await full_id(runtime, given)
        execution = await runtime.opened().get(execution_id)
        assert execution is not None
        history = await runtime.snapshots(execution_id) if steps else ()
        return execution, await runtime.inspect(execution_id), history


def _snapshot_data(snapshot: Snapshot) -> dict[str, Any]:
    root = snapshot.root
    return {
        "state": root.node, "op": root.op, "steps": snapshot.steps, "spent": spent_data(snapshot.spent),
        "pending": list(snapshot.pending), "context": root.context, "output": snapshot.output,
        "reason": snapshot.reason, "failure": failure_data(snapshot.failure, root.node),
    }  # fmt: skip


def _facts(execution: Execution, snapshot: Snapshot) -> list[tuple[str, str]]:
    spent, root = snapshot.spent, snapshot.root
    facts = [
        ("execution", execution.execution_id),
        ("machine", execution.name),
        ("status", shown_status(execution)),
        ("state", f"{root.node} (step {snapshot.steps})"),
        ("started", _when(execution.created_at)),
        ("took", seconds(execution.updated_at - execution.created_at)),
        ("stored", count(execution.seq + 1, "checkpoint")),
    ]
    if spent.calls:
        tokens = spent.input_tokens + spent.output_tokens
        price = money(spent.cost, spent.priced)
        facts.append(("spent", f"{count(spent.calls, 'model call')}, {count(tokens, 'token')}, {price}"))
    if snapshot.reason:
        facts.append(("reason", snapshot.reason))
    if snapshot.failure is not None:
        facts.append(
            ("failure", f"{snapshot.failure.type}: {snapshot.failure.detail or snapshot.failure.message}")
        )
    if execution.channels:
        facts.append(("waits on", ", ".join(execution.channels)))
    if snapshot.pending:
        facts.append(("pending", ", ".join(snapshot.pending)))
    facts.append(("context", json_format.dumps(root.context, ensure_ascii=False, default=str)))
    if execution.status == "done":
        facts.append(("output", json_format.dumps(snapshot.output, ensure_ascii=False, default=str)))
    return [(name, one_line(value, 2000)) for name, value in facts]


def _checkpoint_line(seq: int, one: Snapshot, before: Mapping[str, Any], began: float) -> str:
    root = one.root
    changed = {
        k: v for k, v in root.context.items() if k not in before or (before[k] is not v and before[k] != v)
    }
    what = one_line(json_format.dumps(changed, ensure_ascii=False, default=str), 100) if changed else ""
    where = one_line(f"{root.node}/{root.op}" if root.op else root.node, 40)
    status = "" if one.status == "running" else f"{one.status}  "
    return (
        f"{seq:>5}  {seconds(one.at - began):>9}  step {one.steps:<4}  {where:<24}  {status}{what}".rstrip()
    )


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


def send_signal(channel: str, data: str | None, *, store: str | None) -> int:
    """Put a signal on a channel, and say who waits for it."""
    if not channel.strip():
        raise UsageError("the channel is empty")
    value = None if data is None else read_json(data, "the data")
    waiting = anyio.run(_send, store_url(store), channel, value)
    say(f"sent to {channel}")
    where = f" --store {store}" if store and store != DEFAULT else ""
    for execution in waiting:
        say(f"{execution.name} waits for it: flat resume {short_id(execution.execution_id)}{where}")
    return DONE


async def _send(url: str, channel: str, value: Any) -> list[Execution]:
    async with Runtime(url) as runtime:
        await runtime.signal(channel, value)
        return [e async for e in runtime.opened().find(status="waiting", channel=channel)]
