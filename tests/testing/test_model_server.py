"""The scripted model, seen by a plain HTTP client."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from flat.errors import SpecError
from flat.testing.model_script import Script
from flat.testing.model_server import Reply, ScriptedModel


@contextmanager
def connected(model: ScriptedModel) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(urlsplit(model.base_url).netloc, timeout=10)
    try:
        yield connection
    finally:
        connection.close()


def post(model: ScriptedModel, user: str = "hi", /, **body: Any) -> tuple[int, dict[str, str], Any]:
    sent = json.dumps({"model": "m", "messages": [{"role": "user", "content": user}], **body})
    with connected(model) as connection:
        connection.request("POST", "/v1/chat/completions", sent, {"X-Test": "1"})
        response = connection.getresponse()
        text = response.read().decode()
        headers = {k.lower(): v for k, v in response.getheaders()}
        return response.status, headers, json.loads(text) if "json" in headers["content-type"] else text


def say(model: ScriptedModel, user: str = "hi", /, **body: Any) -> Any:
    return post(model, user, **body)[2]["choices"][0]["message"]["content"]


def test_replies_come_in_order_and_run_out_with_an_error_that_says_so() -> None:
    with ScriptedModel(["one", {"json": {"a": 1}}, Reply(None)]) as model:
        assert [say(model), say(model), say(model)] == ["one", '{"a": 1}', None]
        status, _, body = post(model)
        assert status == 400
        assert "run out of replies after 3" in body["error"]["message"]
        assert model.calls == 4
        assert model.requests[0].body["messages"][0]["content"] == "hi"
        assert model.requests[0].headers["x-test"] == "1"


def test_a_repeated_call_gets_its_first_answer_where_answers_are_remembered() -> None:
    def asked(model: ScriptedModel, key: str) -> Any:
        with connected(model) as connection:
            connection.request("POST", "/v1/chat/completions", '{"messages": []}', {"Idempotency-Key": key})
            return json.loads(connection.getresponse().read())["choices"][0]["message"]["content"]

    with ScriptedModel(["one", "two", "three"], remember=True) as model:
        assert [asked(model, key) for key in ("a", "b", "a", "c")] == ["one", "two", "one", "three"]
    with ScriptedModel(["one", "two"]) as model:
        assert [asked(model, "a"), asked(model, "a")] == ["one", "two"]


def test_an_answer_has_the_usual_shape() -> None:
    with ScriptedModel(
        [Reply("a b", headers={"x-ratelimit-limit-tokens": "5"}), Reply("x", usage=False)]
    ) as model:
        _, headers, body = post(model, "one two three")
        assert headers["x-ratelimit-limit-tokens"] == "5"
        assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        assert (body["model"], body["choices"][0]["finish_reason"]) == ("m", "stop")
        assert "usage" not in post(model)[2]


def test_tool_calls() -> None:
    with ScriptedModel([{"text": None, "tool_calls": [{"name": "add", "arguments": {"a": 1}}]}]) as model:
        choice = post(model)[2]["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 1}'}


def test_a_stream_is_events_with_usage_on_request() -> None:
    with ScriptedModel([Reply("one two")] * 2) as model:
        events = post(model, stream=True, stream_options={"include_usage": True})[2].strip().split("\n\n")
        assert events[-1] == "data: [DONE]"
        chunks = [json.loads(e.removeprefix("data: ")) for e in events[:-1]]
        assert [c["choices"][0]["delta"].get("content") for c in chunks[:-1]] == ["", "one ", "two", None]
        assert chunks[-1]["usage"]["completion_tokens"] == 2
        assert "usage" not in post(model, stream=True)[2]


@pytest.mark.parametrize("reply", [Reply(drop=True), Reply("hello", cut_after=1)])
def test_broken_connections(reply: Reply) -> None:
    with ScriptedModel([reply]) as model, pytest.raises((http.client.HTTPException, ConnectionError)):
        post(model)


def test_a_cut_stream_has_no_end() -> None:
    with (
        ScriptedModel([Reply("one two three", cut_after=2)]) as model,
        pytest.raises(http.client.IncompleteRead),
    ):
        post(model, stream=True)


def test_errors_carry_status_body_and_retry_after() -> None:
    replies = [
        Reply(status=429, error="slow down", retry_after=2),
        Reply(status=502, body="<html>"),
        Reply(status=418),
    ]
    with ScriptedModel(replies) as model:
        status, headers, body = post(model)
        assert (status, headers["retry-after"], body["error"]["message"]) == (429, "2", "slow down")
        with pytest.raises(ValueError, match="Expecting value"):
            post(model)
        assert post(model)[2]["error"]["message"] == "scripted status 418"


def test_a_client_that_leaves_is_counted() -> None:
    with ScriptedModel([Reply("late", delay=30), Reply("a b c", stall_after=1)]) as model:
        for number, stream in ((1, False), (2, True)):
            with connected(model) as connection:
                connection.request(
                    "POST", "/v1/chat/completions", json.dumps({"messages": [], "stream": stream})
                )
                assert model.wait_until(lambda m: m.in_flight == 1)
            assert model.wait_until(lambda m: (m.aborts, m.in_flight) == (number, 0))  # noqa: B023  # runs at once
        assert not model.wait_until(lambda m: m.aborts == 3, timeout=0.01)


def test_the_peak_of_parallel_calls_is_counted() -> None:
    with ScriptedModel(lambda body: Reply("x", delay=0.3)) as model:
        threads = [threading.Thread(target=post, args=(model,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (model.calls, model.peak) == (5, 5)
        # An answer arrives before its server is done with it.
        assert model.wait_until(lambda m: m.in_flight == 0, timeout=10)


def test_a_function_answers_and_its_errors_are_told() -> None:
    def answer(body: Any) -> Any:
        return {"text": body["messages"][0]["content"].upper()} if body["model"] == "m" else 1 / 0

    with ScriptedModel(answer) as model:
        assert say(model, "loud") == "LOUD"
        status, _, body = post(model, model="other")
        assert status == 500
        assert "ZeroDivisionError" in body["error"]["message"]


def test_what_is_no_chat_call() -> None:
    with ScriptedModel(["hi"]) as model, connected(model) as connection:
        connection.request("GET", "/v1/models")
        assert json.loads(connection.getresponse().read())["data"][0]["id"] == "scripted"
        connection.request("GET", "/v1/nothing")
        assert "no GET /v1/nothing" in connection.getresponse().read().decode()
        connection.request("POST", "/v1/chat/completions", "garbage")
        assert connection.getresponse().status == 400
        assert model.calls == 1


def test_the_url_is_there_only_while_it_runs() -> None:
    model = ScriptedModel(["hi"])
    with pytest.raises(RuntimeError, match="not running"):
        _ = model.base_url
    with model, pytest.raises(RuntimeError, match="already"):
        model.start()
    model.stop()
    with pytest.raises(RuntimeError, match="not running"):
        _ = model.base_url


HELLO = """
model: scripted-helloworld
rules:
  - continue:
      target: 'Target: (.*)'
      built: 'Built so far: (.*)'
      done: '<end>'
  - match: 'capital of (?P<land>\\w+)'
    system: geo
    reply: 'It costs $5 to ask about $land ($1).'
  - match: draft
    replies: [bad, better]
  - model: mini
    reply: {json: {label: spam}}
faults:
  - {every: 5, text: '?'}
  - {at: [3], status: 429, retry_after: 0.1}
"""


@pytest.fixture
def hello(tmp_path: Path) -> Iterator[ScriptedModel]:
    file = tmp_path / "script.yml"
    file.write_text(HELLO)
    with ScriptedModel.from_file(file) as model:
        yield model


def test_a_script_file_builds_a_text_by_character_with_faults_on_schedule(hello: ScriptedModel) -> None:
    target, built = "Hello, World!", ""
    odd: list[tuple[int, int, str]] = []
    for call in range(1, 18):
        status, _, body = post(hello, f"Target: {target}\nBuilt so far: {built}")
        text = body["choices"][0]["message"]["content"] if status == 200 else ""
        if status == 200 and target.startswith(built + text):
            built += text
        else:
            odd.append((call, status, text))
    assert built == target
    assert odd == [(3, 429, ""), (5, 200, "?"), (10, 200, "?"), (15, 200, "?")]
    assert say(hello, f"Target: {target}\nBuilt so far: {target}") == "<end>"


def test_blanks_at_the_end_of_what_is_built_count() -> None:
    script = Script({"rules": [{"continue": {"target": "T: (.*)", "built": "B: (.*)", "step": 2}}]})
    for built, more in (("a", " b"), ("a ", "bc"), ("", "a "), ("a bc", "")):
        reply = script.answer({"messages": [{"role": "user", "content": f"T: a bc\nB: {built}"}]})
        assert reply.text == more


def test_rules_fill_in_groups_and_look_at_system_and_model(hello: ScriptedModel) -> None:
    system = {"role": "system", "content": "geographer"}
    asked = {"role": "user", "content": [{"type": "text", "text": "capital of Japan"}]}
    assert say(hello, messages=[system, asked]) == "It costs $5 to ask about Japan (Japan)."
    assert say(hello, "x", model="mini") == '{"label": "spam"}'


def test_a_rules_replies_run_out(hello: ScriptedModel) -> None:
    hello.script = Script({"rules": [{"match": "draft", "replies": ["bad", "better"]}]})
    assert [say(hello, "draft"), say(hello, "draft")] == ["bad", "better"]
    assert "rules[0].replies: the script has run out" in post(hello, "draft")[2]["error"]["message"]
    assert "no rule of the script matches" in post(hello, "other")[2]["error"]["message"]


def test_turns_are_told_by_the_conversation_and_not_by_who_asked_before() -> None:
    script = Script({"rules": [{"match": "go to (.*)", "turns": ["to $1", {"text": "there"}]}]})
    asked: list[Any] = [{"role": "user", "content": "go to Ulm"}]
    later = [*asked, {"role": "assistant", "content": "to Ulm"}]
    assert [script.answer({"messages": m}).text for m in (later, asked, later)] == [
        "there",
        "to Ulm",
        "there",
    ]
    over = script.answer({"messages": [*later, {"role": "assistant", "content": "there"}]})
    assert (over.status, "goes on after 2 turns" in str(over.error)) == (400, True)


def test_replies_may_start_over() -> None:
    script = Script({"replies": ["a", "b"], "repeat": True})
    assert [script.answer({}).text for _ in range(3)] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ({"rulse": []}, 'unknown key "rulse"; did you mean "rules"'),
        ({}, "needs `rules` or `replies`"),
        ({"rules": [{"match": "("}]}, "needs exactly one of"),
        ({"rules": [{"match": "(", "reply": "x"}]}, "is not a regular expression"),
        ({"rules": [{"reply": {"txt": "x"}}]}, 'did you mean "text"'),
        ({"rules": [{"continue": {"target": "T", "built": "(.*)"}}]}, "needs a group"),
        ({"replies": ["x"], "faults": [{"text": "?"}]}, "needs `every: n` or `at:"),
        ({"replies": [3]}, "replies[0]: expected text or a mapping"),
    ],
)
def test_a_wrong_script_says_what_is_wrong(source: Any, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        Script(source)
    assert told in str(caught.value)
