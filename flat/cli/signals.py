"""`flat signal` and `flat signals`: send one, see who waits and what waits, give dead letters another chance."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from flat.backends.by_name import create_trigger_backend
from flat.backends.protocols import DeadSignal, Execution, Signal
from flat.backends.triggers import TriggerBackend
from flat.cli.ending import DONE, TAKEN, UsageError, complain, say
from flat.cli.inputs import read_json
from flat.cli.stores import DEFAULT, is_missing, need_store, store_url
from flat.cli.text import count, one_line, seconds, short_id
from flat.errors import BackendError, ExecutionNotFound
from flat.runtime import Runtime
from flat.runtime.reading import signal_data

DEFAULT_TRIGGER = "file"


def trigger_for(kind: str | None, path: Path | None) -> TriggerBackend | None:
    """The trigger that was asked for, or else the user's own trigger file; None if that cannot be had."""
    kind = kind or DEFAULT_TRIGGER
    if kind == "none" and path is not None:
        raise UsageError("--trigger none has no --trigger-path")
    if path is not None:
        if kind == "socket":
            return create_trigger_backend(kind, socket_path=path)
        return create_trigger_backend(kind, base_path=path)
    try:
        return create_trigger_backend(kind)
    except BackendError as error:
        complain(f"warning: no dispatcher can be woken: {error}")
        return None


def send_signal(
    target: str, data: str | None, *, store: str | None, trigger: str | None, trigger_path: Path | None
) -> int:
    """Put a signal on a channel, or give it to one execution, and say who waits for it."""
    if not target.strip():
        raise UsageError("the channel is empty")
    value = None if data is None else read_json(data, "the data")
    waker = trigger_for(trigger, trigger_path)
    channel, waiting = anyio.run(_send, store_url(store), target, value, waker)
    where = f" --store {store}" if store and store != DEFAULT else ""
    if channel is None:
        execution = waiting[0]
        complain(
            f"execution {short_id(execution.execution_id)} is {execution.status} and waits for nothing; "
            f"see flat runs show {short_id(execution.execution_id)}{where}"
        )
        return TAKEN
    say(f"sent to {one_line(channel)}")
    for execution in waiting:
        say(f"{one_line(execution.name)} waits for it: flat resume {short_id(execution.execution_id)}{where}")
    if len(waiting) > 1:
        say(f"or wake all {len(waiting)}: flat dispatch --once{where}")
    return DONE


async def _send(
    url: str, target: str, value: Any, waker: TriggerBackend | None
) -> tuple[str | None, list[Execution]]:
    """The channel it was sent to and who waits there; no channel if the one it is for waits for nothing."""
    async with Runtime(url, trigger=waker) as runtime:
        waiting = [e async for e in runtime.opened().find(status="waiting", channel=target)]
        if not waiting and (execution := await _execution(runtime, target)) is not None:
            if execution.status != "waiting" or not execution.channels:
                return None, [execution]
            channels = _asking(execution)
            if len(channels) > 1:
                shown = ", ".join(channels)
                raise UsageError(f"the execution waits on {len(channels)} channels; name one: {shown}")
            await runtime.signal(channels[0], value, to=execution.execution_id)
            return channels[0], [execution]
        await runtime.signal(target, value)
        return target, waiting


def _asking(execution: Execution) -> list[str]:
    """The channels on which an execution asks for something. A tree listens to whatever is said to it as well."""
    asking = [c for c in execution.channels if execution.kind != "tree" or not c.endswith("/inbox")]
    return asking or list(execution.channels)


async def _execution(runtime: Runtime, target: str) -> Execution | None:
    """The execution of this id, as it is written in full or as it is shown."""
    if (found := await runtime.opened().get(target)) is not None:
        return found
    shown = [e for e in await runtime.list(status="waiting") if short_id(e.execution_id) == target]
    return shown[0] if len(shown) == 1 else None


# -- looking -----------------------------------------------------------------------------------


def list_signals(channel: str | None, *, dead: bool, store: str | None, json: bool) -> int:
    """List what was sent and not taken, or the dead letters."""
    url = store_url(store)
    found: Sequence[tuple[Signal, DeadSignal | None, int]] = ()
    if not is_missing(url):
        found = anyio.run(_list, url, channel, dead)
    if json:
        say(json_format.dumps([_data(*one) for one in found], indent=2, default=str))
        return DONE
    if not found:
        where = "" if channel is None else f' on "{one_line(channel)}"'
        complain(f"there is no {'dead letter' if dead else 'signal that nobody has taken'}{where}")
        return DONE
    last = "reason" if dead else "waiting"
    rows: list[tuple[str, ...]] = [("id", "channel", "for", "sent", "data", last)]
    rows += [_row(*one) for one in found]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return DONE


async def _list(url: str, channel: str | None, dead: bool) -> Sequence[tuple[Signal, DeadSignal | None, int]]:
    async with Runtime(url) as runtime:
        store = runtime.opened()
        if dead:
            return [(one.signal, one, 0) for one in await store.dead(channel)]
        waiters: dict[str, int] = {}
        signals = await store.signals(channel)
        for signal in signals:
            if signal.channel not in waiters:
                waiters[signal.channel] = len(
                    [e async for e in store.find(status="waiting", channel=signal.channel)]
                )
        return [(signal, None, waiters[signal.channel]) for signal in signals]


def _data(signal: Signal, letter: DeadSignal | None, waiting: int) -> dict[str, Any]:
    data = {
        "signal_id": signal.signal_id, "channel": signal.channel, "to": signal.to,
        "created_at": signal.created_at, "data": signal_data(signal),
    }  # fmt: skip
    if letter is None:
        return {**data, "waiting": waiting}
    return {**data, "reason": letter.reason, "died_at": letter.at}


def _row(signal: Signal, letter: DeadSignal | None, waiting: int) -> tuple[str, ...]:
    data = json_format.dumps(signal_data(signal), ensure_ascii=False, default=str)
    return (
        one_line(short_id(signal.signal_id) if letter is None else signal.signal_id, 60),
        one_line(signal.channel, 40),
        one_line(short_id(signal.to), 40) if signal.to is not None else "anybody",
        f"{seconds(max(0.0, time.time() - signal.created_at))} ago",
        one_line(data, 40),
        one_line(letter.reason, 160) if letter else count(waiting, "execution"),
    )


def retry_signal(signal_id: str, *, store: str | None, trigger: str | None, trigger_path: Path | None) -> int:
    """Put a dead letter back on its channel, in its old place."""
    url = store_url(store)
    need_store(url, signal_id)
    waker = trigger_for(trigger, trigger_path)
    signal = anyio.run(_retry, url, signal_id, waker)
    say(f"signal {one_line(signal.signal_id)} is back on {one_line(signal.channel)}")
    where = f" --store {store}" if store and store != DEFAULT else ""
    say(f"deliver it: flat dispatch --once{where}")
    return DONE


class NoSuchLetter(ExecutionNotFound):
    """No dead letter has this id."""

    def __init__(self, signal_id: str) -> None:
        super().__init__(signal_id)
        self.args = (f'there is no dead letter "{signal_id}"; list them with: flat signals list --dead',)


async def _retry(url: str, signal_id: str, waker: TriggerBackend | None) -> Signal:
    async with Runtime(url) as runtime:
        store = runtime.opened()
        for letter in await store.dead():
            if letter.signal.signal_id == signal_id and await store.revive(signal_id):
                if waker is not None:
                    await waker.notify(letter.signal.channel)
                return letter.signal
        raise NoSuchLetter(signal_id)
