"""What hooks hear of a model that is answering."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from flat import CompositeHooks, MachineHooks
from flat.hooks import hears_stream, stream, stream_listener

pytestmark = pytest.mark.anyio


class Hears(MachineHooks):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    async def on_agent_stream_event(self, state_name: str, event: Any, context: Any) -> None:
        await anyio.lowlevel.checkpoint()
        self.seen.append((state_name, event["text"], context["n"]))


class HearsPlainly(Hears):
    def on_agent_stream_event(self, state_name: str, event: Any, context: Any) -> None:  # type: ignore[override]
        self.seen.append((state_name, event["text"], context["n"]))
        context["n"] += 1


async def test_events_come_in_order_and_all_of_them_before_the_call_ends() -> None:
    hears, plainly = Hears(), HearsPlainly()
    context = {"n": 1}
    async with stream_listener(CompositeHooks(hears, MachineHooks(), plainly), "s", context) as listen:
        assert listen is not None
        for text in "abc":
            listen({"text": text})
    assert [text for _, text, _ in hears.seen] == ["a", "b", "c"]
    assert [text for _, text, _ in plainly.seen] == ["a", "b", "c"]
    assert context == {"n": 1}


@pytest.mark.parametrize("hooks", [None, MachineHooks(), CompositeHooks(MachineHooks())])
async def test_nobody_listens_where_no_hook_wants_to(hooks: Any) -> None:
    assert not hears_stream(hooks)
    async with stream_listener(hooks, "s", {}) as listen:
        assert listen is None


async def test_hooks_that_raise_are_switched_off_alone(caplog: Any) -> None:
    class Breaks(MachineHooks):
        calls = 0

        def on_agent_stream_event(self, state_name: str, event: Any, context: Any) -> None:
            self.calls += 1
            raise ValueError("breaks")

    breaks, hears = Breaks(), Hears()
    async with stream_listener(CompositeHooks(breaks, hears), "s", {"n": 1}) as listen:
        assert listen is not None
        for text in "abc":
            listen({"text": text})
    assert (breaks.calls, len(hears.seen)) == (1, 3)
    assert "on_agent_stream_event of Breaks raised" in caplog.text


async def test_an_error_of_the_call_comes_out_as_it_is() -> None:
    hears = Hears()

    async def call() -> None:
        async with stream_listener(hears, "s", {"n": 1}) as listen:
            assert listen is not None
            listen({"text": "a"})
            raise KeyError("the call's own")

    with pytest.raises(KeyError):
        await call()
    assert len(hears.seen) == 1


async def test_a_call_that_is_cancelled_does_not_wait_for_its_listeners() -> None:
    class Never(MachineHooks):
        async def on_agent_stream_event(self, state_name: str, event: Any, context: Any) -> None:
            await anyio.sleep_forever()

    with anyio.CancelScope() as scope:
        async with stream_listener(Never(), "s", {}) as listen:
            assert listen is not None
            listen({"text": "a"})
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught


async def test_what_slow_hooks_cannot_take_is_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(stream, "QUEUE", 2)
    hears = Hears()
    async with stream_listener(hears, "s", {"n": 1}) as listen:
        assert listen is not None
        for text in "abcde":
            listen({"text": text})
    assert len(hears.seen) == 2
    assert "too slow for 3 stream events" in caplog.text
