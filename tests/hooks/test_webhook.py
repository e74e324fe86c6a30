"""Webhooks, against a real HTTP server on this machine."""

from __future__ import annotations

import importlib.util
import logging
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import anyio
import pytest

import flat
from flat import CompositeHooks, MachineHooks, MemoryStore, Outcome, Runtime, WebhookHooks
from flat.errors import DefinitionError
from flat.hooks import stream_listener

_spec = importlib.util.spec_from_file_location("hooks_machines", Path(__file__).with_name("machines.py"))
assert _spec is not None
assert _spec.loader is not None
sys.modules[_spec.name] = machines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(machines)

pytestmark = pytest.mark.anyio


async def ran(hooks: Any, states: Any = machines.TWO_STATES, context: Any = None) -> Outcome:
    async with Runtime(MemoryStore()) as runtime:
        return await runtime.start(machines.machine(states, lambda: hooks, context), execution_id="e1")


async def test_every_event_of_a_run_arrives_with_its_facts(endpoint: Any) -> None:
    outcome = await ran(WebhookHooks(endpoint.url))
    assert outcome.output == {"n": 0}
    assert endpoint.events == [
        "machine_start", "state_enter", "action", "state_exit", "transition", "state_enter", "state_exit",
        "machine_end",
    ]  # fmt: skip
    by_event = {event["event"]: event for event in endpoint.seen}
    assert by_event["action"] | {"context": ...} == {
        "event": "action",
        "state": "start",
        "action": "a",
        "context": ...,
    }
    assert (by_event["transition"]["from"], by_event["transition"]["to"]) == ("start", "end")
    assert by_event["machine_end"]["output"] == {"n": 0}
    assert set(by_event["state_exit"]) == {"event", "state", "context", "output"}
    machine = by_event["state_enter"]["context"]["machine"]
    assert (machine["execution_id"], machine["current_state"]) == ("e1", "end")


async def test_the_request_says_who_sends_it_and_keeps_one_connection(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = WebhookHooks(url=endpoint.url, api_key="${env:HOOK_KEY}")
    monkeypatch.setenv("HOOK_KEY", "k-123")
    ready = anyio.Event()

    class Ready(MachineHooks):
        async def on_background(self, context: Any) -> None:
            ready.set()

        async def on_machine_start(self, context: Any) -> Any:
            await ready.wait()

    await ran(CompositeHooks(hooks, Ready()))
    assert {h["authorization"] for h in endpoint.headers} == {"Bearer k-123"}
    assert {h["user-agent"] for h in endpoint.headers} == {f"flat/{flat.__version__}"}
    assert {h["content-type"] for h in endpoint.headers} == {"application/json"}
    # The very first event may come before the client of the run is there.
    assert len(endpoint.connections) <= 2 < len(endpoint.seen)
    assert hooks._shared == {}


async def test_without_a_key_nothing_is_authorized(endpoint: Any) -> None:
    await WebhookHooks(endpoint.url).on_machine_start({})
    assert "authorization" not in endpoint.headers[0]


async def test_the_answer_steers(endpoint: Any) -> None:
    def answer(event: dict[str, Any]) -> Any:
        match event["event"]:
            case "machine_start" | "state_enter" | "action":
                return {"context": {**event["context"], "n": event["context"]["n"] + 1}}
            case "machine_end":
                return {"output": {"n": event["output"]["n"] * 100}}
        return (204, b"")

    endpoint.answer = answer
    outcome = await ran(WebhookHooks(endpoint.url))
    assert outcome.output == {"n": 400}
    assert outcome.context == {"n": 4}


async def test_the_answer_redirects_transitions_and_rescues_errors(endpoint: Any) -> None:
    states = {
        **machines.TWO_STATES,
        "aside": {"type": "final", "output": {"n": "aside"}},
    }
    endpoint.answer = lambda event: {"to_state": "aside"}
    assert (await ran(WebhookHooks(endpoint.url), states)).output == {"n": "aside"}

    class Fails(MachineHooks):
        def on_action(self, *args: Any) -> Any:
            raise KeyError("lost")

    endpoint.answer = lambda event: {"recovery_state": "aside"}
    assert (await ran(CompositeHooks(WebhookHooks(endpoint.url), Fails()), states)).output == {"n": "aside"}
    error = next(event for event in endpoint.seen if event["event"] == "error")
    assert (error["state"], error["error_type"]) == ("start", "KeyError")
    assert "lost" in error["error"]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((500, b"{}"), "answered 500"), ((404, b""), "answered 404"), ((302, b""), "answered 302 to http"),
        ((200, b"<html>"), "not JSON"), ((200, b"[1]"), "not a JSON object"), ({"context": 5}, "not an object"),
        ({"context": ["n"]}, "not an object"),
    ],
)  # fmt: skip
async def test_an_answer_of_no_use_is_logged_and_changes_nothing(
    endpoint: Any, answer: Any, words: str, caplog: Any
) -> None:
    endpoint.answer = lambda event: answer
    context = {"n": 1}
    assert await WebhookHooks(endpoint.url).on_state_enter("s", context) is context
    (record,) = [r for r in caplog.records if r.levelno == logging.ERROR]
    assert words in record.getMessage()
    assert "state_enter" in record.getMessage()


@pytest.mark.parametrize("answer", [{}, (200, b""), (204, b""), {"context": None}, {"other": 1}])
async def test_an_answer_without_the_key_changes_nothing_and_is_no_error(
    endpoint: Any, answer: Any, caplog: Any
) -> None:
    endpoint.answer = lambda event: answer
    context = {"n": 1}
    hooks = WebhookHooks(endpoint.url)
    assert await hooks.on_state_enter("s", context) is context
    assert await hooks.on_transition("a", "b", context) == "b"
    assert await hooks.on_error("s", ValueError("x"), context) is None
    assert await hooks.on_machine_end(context, {"x": 1}) == {"x": 1}
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_target_that_is_no_name_is_logged(endpoint: Any, caplog: Any) -> None:
    endpoint.answer = lambda event: {"to_state": 5, "recovery_state": ["x"]}
    hooks = WebhookHooks(endpoint.url)
    assert await hooks.on_transition("a", "b", {}) == "b"
    assert await hooks.on_error("a", ValueError("x"), {}) is None
    assert caplog.text.count("not the name of a state") == 2


async def test_an_endpoint_that_is_not_there_stops_nothing(caplog: Any) -> None:
    outcome = await ran(WebhookHooks("http://127.0.0.1:1/hook"))
    assert outcome.output == {"n": 0}
    assert "ConnectError" in caplog.text
    assert caplog.text.count("nothing is changed by it") == 8


async def test_an_endpoint_that_is_silent_is_left_after_the_timeout(endpoint: Any, caplog: Any) -> None:
    import threading

    go_on = threading.Event()

    def answer(event: dict[str, Any]) -> Any:
        go_on.wait(10)
        return {}

    endpoint.answer = answer
    context = {"n": 1}
    try:
        assert await WebhookHooks(endpoint.url, timeout=0.05).on_state_enter("s", context) is context
    finally:
        go_on.set()
    assert "no answer within 0.05 s" in caplog.text


async def test_a_key_that_is_not_set_keeps_the_event_at_home(endpoint: Any, caplog: Any) -> None:
    context = {"n": 1}
    assert (
        await WebhookHooks(endpoint.url, api_key="${env:NOT_SET_ANYWHERE}").on_machine_start(context)
        is context
    )
    assert endpoint.seen == []
    assert "NOT_SET_ANYWHERE is not set" in caplog.text


async def test_secrets_of_the_endpoint_are_in_no_message(
    endpoint: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    endpoint.answer = lambda event: (500, b"")
    monkeypatch.setenv("HOOK_TOKEN", "tok-secret")
    hooks = WebhookHooks(
        endpoint.url.replace("//", "//me:pass-secret@") + "?t=${env:HOOK_TOKEN}", api_key="key-secret"
    )
    caplog.set_level(logging.ERROR)
    await hooks.on_machine_start({})
    assert endpoint.seen
    assert "answered 500" in caplog.text
    assert "secret" not in caplog.text + repr(hooks)


async def test_values_that_are_no_json_are_written_readably(endpoint: Any) -> None:
    context = {
        "at": datetime(2026, 1, 2, tzinfo=UTC), "price": Decimal("1.50"), "path": Path("/x"), "big": 2**70,
        "tags": {"a"}, "raw": b"bytes", 5: "five",
    }  # fmt: skip
    await WebhookHooks(endpoint.url).on_machine_start(context)  # type: ignore[arg-type]
    assert endpoint.seen[0]["context"] == {
        "at": "2026-01-02T00:00:00+00:00", "price": "1.50", "path": "/x", "big": 2**70, "tags": ["a"],
        "raw": "bytes", "5": "five",
    }  # fmt: skip


async def test_what_cannot_be_written_at_all_is_logged(endpoint: Any, caplog: Any) -> None:
    context = {"lock": object()}
    assert await WebhookHooks(endpoint.url).on_machine_start(context) is context
    assert endpoint.seen == []
    assert "cannot be written as JSON" in caplog.text


async def test_actions_of_both_forms_and_tool_events_arrive(endpoint: Any) -> None:
    endpoint.answer = lambda event: {"context": {"event": event["event"]}}
    hooks = WebhookHooks(endpoint.url)
    assert await hooks.on_action("s", "a", {}) == {"event": "action"}
    assert await hooks.on_action("a", {}) == {"event": "action"}
    assert await hooks.on_tool_calls("s", [{"name": "t"}], {}) == {"event": "tool_calls"}
    assert await hooks.on_tool_result("s", {"content": "c"}, {}) == {"event": "tool_result"}
    assert [event.get("state") for event in endpoint.seen] == ["s", None, "s", "s"]
    assert endpoint.seen[2]["tool_calls"] == [{"name": "t"}]
    assert endpoint.seen[3]["tool_result"] == {"content": "c"}


async def test_stream_events_keep_their_own_name(endpoint: Any) -> None:
    async with stream_listener(WebhookHooks(endpoint.url), "s", {}) as listen:
        assert listen is not None
        listen({"event": "token", "text": "a"})
        listen({"event": "token", "text": "b"})
    assert endpoint.events == ["agent_stream_event"] * 2
    assert [event["stream_event"]["text"] for event in endpoint.seen] == ["a", "b"]


async def test_a_stream_that_cannot_be_delivered_is_given_up_at_once(caplog: Any) -> None:
    async with stream_listener(WebhookHooks("http://127.0.0.1:1/x"), "s", {}) as listen:
        assert listen is not None
        for _ in range(50):
            listen({"text": "a"})
    assert caplog.text.count("is switched off") == 1


async def test_runs_that_share_an_object_share_its_client_to_the_end(endpoint: Any) -> None:
    hooks = WebhookHooks(endpoint.url)
    async with Runtime(MemoryStore()) as runtime, anyio.create_task_group() as group:
        for i in range(5):
            made = machines.machine(machines.TWO_STATES, lambda: hooks)
            group.start_soon(lambda made=made, i=i: runtime.start(made, execution_id=f"e{i}"))  # type: ignore[misc]
    assert len(endpoint.seen) == 40
    assert hooks._shared == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {}, {"endpoint": "http://a", "url": "http://b"}, {"endpoint": ""}, {"endpoint": "ftp://a"},
        {"endpoint": "ops.example/hook"}, {"endpoint": 5}, {"endpoint": "http://a", "timeout": 0},
        {"endpoint": "http://a", "timeout": "5"}, {"endpoint": "http://a", "timeout": float("inf")},
    ],
)  # fmt: skip
def test_arguments_that_cannot_be_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="WebhookHooks"):
        WebhookHooks(**arguments)
