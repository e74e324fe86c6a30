"""Signals by the seed system's names: what its users' code does with them works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import flat
from flat.errors import ExecutionNotFound, UnknownName
from flat.runtime.compat.signals import opened_store

pytestmark = pytest.mark.anyio

CONFIG = {
    "spec": "flatmachine", "spec_version": "4.0.0",
    "data": {
        "name": "approval", "context": {"task": "{{ input.task }}"},
        "states": {
            "ask": {
                "type": "initial", "wait_for": "approval/{{ context.task }}",
                "output_to_context": {"ok": "{{ output.ok }}"}, "transitions": [{"to": "done"}],
            },
            "done": {"type": "final", "output": {"ok": "{{ context.ok }}"}},
        },
    },
}  # fmt: skip


class Setting:
    """Signals and checkpoints, in one file or in two places."""

    def __init__(self, signals: Any, persistence: Any) -> None:
        self.signals, self.persistence = signals, persistence

    def machine(self, execution_id: str | None = None) -> flat.FlatMachine:
        more: dict[str, Any] = {} if execution_id is None else {"_execution_id": execution_id}
        return flat.FlatMachine(
            config_dict=CONFIG, persistence=self.persistence, signal_backend=self.signals, **more
        )

    async def park(self, execution_id: str, task: str = "7") -> None:
        result = await self.machine(execution_id).execute(input={"task": task})
        assert result == {"_waiting": True, "_channel": f"approval/{task}"}

    async def resume(self, execution_id: str, signal_data: Any) -> None:
        assert isinstance(signal_data, dict)
        self.results[execution_id] = await self.machine().execute(resume_from=execution_id)

    results: dict[str, Any]


SETTINGS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "one file": lambda folder: (
        flat.SQLiteSignalBackend(db_path=folder / "m.sqlite"), flat.SQLiteCheckpointBackend(folder / "m.sqlite"),
    ),
    "one file by two names": lambda folder: (
        flat.SQLiteSignalBackend(str(folder / "x" / ".." / "m.sqlite")), f"sqlite:///{folder}/m.sqlite",
    ),
    "two files": lambda folder: (
        flat.SQLiteSignalBackend(folder / "s.sqlite"), flat.SQLiteCheckpointBackend(folder / "m.sqlite"),
    ),
    "memory": lambda folder: (flat.MemorySignalBackend(), flat.MemoryBackend()),
}  # fmt: skip


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest, tmp_path: Path) -> Setting:
    (tmp_path / "x").mkdir()
    made = Setting(*SETTINGS[request.param](tmp_path))
    made.results = {}
    return made


# -- backends ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [flat.MemorySignalBackend, None])
async def test_a_backend_keeps_signals_in_order(make: Any, tmp_path: Path) -> None:
    backend = make() if make else flat.create_signal_backend("sqlite", db_path=tmp_path / "a" / "s.sqlite")
    assert isinstance(backend, flat.SignalBackend)
    ids = [await backend.send("b", number) for number in range(3)]
    await backend.send("a", {"x": [1]})
    assert await backend.channels() == ["a", "b"]
    assert [one.id for one in await backend.peek("b")] == ids
    assert [one.data for one in await backend.peek("b")] == [0, 1, 2]
    taken = [await backend.consume("b") for _ in range(4)]
    assert [one and one.data for one in taken] == [0, 1, 2, None]
    assert await backend.channels() == ["a"]
    assert (await backend.peek("a"))[0].created_at.startswith("20")


async def test_one_of_many_consumers_gets_a_signal() -> None:
    backend = flat.MemorySignalBackend()
    for number in range(20):
        await backend.send("c", number)
    got: list[int] = []

    async def consume() -> None:
        while (found := await backend.consume("c")) is not None:
            got.append(found.data)
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(consume)
    assert sorted(got) == list(range(20))


def test_an_unknown_kind_of_backend_is_refused() -> None:
    with pytest.raises(UnknownName, match="kafka"):
        flat.create_signal_backend("kafka")


async def test_to_send_and_notify_needs_nobody_to_listen() -> None:
    class Broken:
        async def notify(self, channel: str) -> None:
            raise OSError("no such device")

        def listen(self) -> Any: ...

    backend = flat.MemorySignalBackend()
    signal_id = await flat.send_and_notify(backend, Broken(), "c", 1)
    assert [one.id for one in await backend.peek("c")] == [signal_id]


# -- dispatching -------------------------------------------------------------------------------


async def test_a_machine_takes_a_signal_that_is_there_already(setting: Setting) -> None:
    await setting.signals.send("approval/7", {"ok": "yes"})
    assert await setting.machine().execute(input={"task": "7"}) == {"ok": "yes"}
    assert await setting.signals.channels() == []


async def test_the_dispatcher_resumes_everybody_who_waits(setting: Setting) -> None:
    for execution_id in ("b", "a"):
        await setting.park(execution_id)
    await setting.park("c", "other")
    dispatcher = flat.SignalDispatcher(setting.signals, setting.persistence, setting.resume)
    assert await dispatcher.dispatch("approval/7") == []
    await setting.signals.send("approval/7", {"ok": "yes"})
    await setting.signals.send("nobody", {"ok": "no"})
    assert await dispatcher.dispatch_all() == {"approval/7": ["a", "b"]}
    assert setting.results == {"a": {"ok": "yes"}, "b": {"ok": "yes"}}
    left = {signal.channel for signal in await opened_store(setting.persistence).signals()}
    assert left | set(await setting.signals.channels()) == {"nobody"}


async def test_a_failing_resume_keeps_its_copy_for_the_next_time(setting: Setting) -> None:
    await setting.park("a")
    await setting.signals.send("approval/7", {"ok": "yes"})

    async def fail(execution_id: str, signal_data: Any) -> None:
        raise ValueError("broken")

    assert await flat.SignalDispatcher(setting.signals, setting.persistence, fail).dispatch_all() == {}
    again = flat.SignalDispatcher(setting.signals, setting.persistence, setting.resume)
    assert await again.dispatch_channel("approval/7") == ["a"]
    assert setting.results == {"a": {"ok": "yes"}}


async def test_without_a_resume_function_the_ids_are_told(setting: Setting) -> None:
    await setting.park("a")
    await setting.signals.send("approval/7", {"ok": "yes"})
    dispatcher = flat.SignalDispatcher(setting.signals, setting.persistence)
    assert await dispatcher.dispatch_channel("approval/7") == ["a"]
    assert await setting.machine().execute(resume_from="a") == {"ok": "yes"}


async def test_the_config_store_resumer_needs_no_files(setting: Setting) -> None:
    await setting.park("a")
    await setting.signals.send("approval/7", {"ok": "yes"})
    if isinstance(setting.persistence, str):
        setting.persistence = flat.open_store(setting.persistence)
    resumer = flat.ConfigStoreResumer(setting.signals, setting.persistence, config_store=None)
    assert isinstance(resumer, flat.MachineResumer)
    assert flat.ConfigFileResumer is flat.ConfigStoreResumer
    dispatcher = flat.SignalDispatcher(setting.signals, setting.persistence, resumer=resumer)
    assert await dispatcher.dispatch_all() == {"approval/7": ["a"]}
    with pytest.raises(ExecutionNotFound):
        await resumer.resume("nobody", None)


async def test_listening_delivers_when_the_socket_is_notified(setting: Setting, tmp_path: Path) -> None:
    await setting.park("a")
    stop, done = anyio.Event(), anyio.Event()

    async def resume(execution_id: str, signal_data: Any) -> None:
        await setting.resume(execution_id, signal_data)
        done.set()

    dispatcher = flat.SignalDispatcher(setting.signals, setting.persistence, resume)
    trigger = flat.create_trigger_backend("socket", socket_path=tmp_path / "t.sock")
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(dispatcher.listen, tmp_path / "t.sock", stop)
            while not (tmp_path / "t.sock").exists():
                await anyio.lowlevel.checkpoint()
            await flat.send_and_notify(setting.signals, trigger, "approval/7", {"ok": "yes"})
            await done.wait()
            stop.set()
    assert setting.results == {"a": {"ok": "yes"}}
    assert not (tmp_path / "t.sock").exists()
