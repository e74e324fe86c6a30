"""Headers, statuses and limits for those who deal with providers themselves."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest

from flat.agents.headers import (
    CerebrasRateLimits,
    extract_anthropic_rate_limits,
    extract_cerebras_rate_limits,
    extract_headers_from_error,
    extract_headers_from_response,
    extract_openai_rate_limits,
    extract_rate_limit_info,
    extract_status_code,
    is_retryable_error,
    normalize_headers,
)

NOW = 1_700_000_000.0


@pytest.fixture(autouse=True)
def fixed_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flat.agents.headers.time", SimpleNamespace(time=lambda: NOW))


class Items:
    def items(self) -> list[tuple[str, Any]]:
        return [("A", 1)]


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"A-B": 1, "C": ["x", "y"], "D": None, "E": b"z"}, {"a-b": "1", "c": "x, y", "e": "z"}),
        (Items(), {"a": "1"}),
        ([("A", "1"), ["B", 2]], {"a": "1", "b": "2"}),
        ("text", {}),
        (None, {}),
        ([1, 2], {}),
    ],
)
def test_headers_in_any_form(headers: Any, found: dict[str, str]) -> None:
    assert normalize_headers(headers) == found


def test_headers_of_an_answer_and_of_an_error() -> None:
    answer = SimpleNamespace(
        _response_headers={"A": 1, "B": 1}, _hidden_params={"additional_headers": {"b": 2}}
    )
    assert extract_headers_from_response(answer) == {"a": "1", "b": "2"}
    assert extract_headers_from_response(object()) == {}
    error: Any = RuntimeError()
    error.response, error.headers = SimpleNamespace(headers={"A": 1, "B": 1}), {"b": 2}
    assert extract_headers_from_error(error) == {"a": "1", "b": "2"}
    error.response = {"headers": {"C": 3}}
    assert extract_headers_from_error(error) == {"b": "2", "c": "3"}


@pytest.mark.parametrize(
    ("headers", "facts"),
    [
        ({"x-ratelimit-remaining-requests": "0", "ratelimit-remaining": "5"}, {"remaining_requests": 0}),
        (
            {"ratelimit-remaining": "5", "ratelimit-limit": "6"},
            {"remaining_requests": 5, "limit_requests": 6},
        ),
        ({"anthropic-ratelimit-tokens-remaining": "7"}, {"remaining_tokens": 7}),
        ({"x-ratelimit-limit-tokens": "many"}, {"limit_tokens": None}),
        ({"retry-after": "3"}, {"retry_after": 3}),
        ({"retry-after": "1.5"}, {"retry_after": None}),
        ({"x-ratelimit-reset": "30"}, {"reset_at": NOW + 30}),
        ({"x-ratelimit-reset": "30s"}, {"reset_at": NOW + 30}),
        ({"x-ratelimit-reset": "1700000030"}, {"reset_at": NOW + 30}),
        ({"x-ratelimit-reset": "1700000030000"}, {"reset_at": NOW + 30}),
        ({"x-ratelimit-reset-requests": "1m30s"}, {"reset_at": NOW + 90}),
        ({"x-ratelimit-reset": "2023-11-14T22:13:50Z"}, {"reset_at": NOW + 30}),
        ({"x-ratelimit-reset": "soon"}, {"reset_at": None}),
        ({"x-ratelimit-reset": "inf"}, {"reset_at": None}),
    ],
)
def test_limits_in_one_form(headers: dict[str, str], facts: dict[str, Any]) -> None:
    info = extract_rate_limit_info(headers)
    assert {name: getattr(info, name) for name in facts} == facts
    assert info.raw_headers == headers


def test_when_to_come_back() -> None:
    info = extract_rate_limit_info({"x-ratelimit-reset": "30", "x-ratelimit-remaining-tokens": "0"})
    assert (info.is_limited(), info.get_retry_delay()) == (True, 30)
    info = extract_rate_limit_info({"x-ratelimit-reset": "-5"})
    assert (info.is_limited(), info.get_retry_delay()) == (False, 0)
    assert extract_rate_limit_info({}).get_retry_delay() is None


def failed(text: str = "", name: str = "Error", **facts: Any) -> Exception:
    error: Exception = type(name, (Exception,), {})(text)
    for key, value in facts.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (failed(status_code=418), 418),
        (failed(http_status="503"), 503),
        (failed(response=SimpleNamespace(status_code=404)), 404),
        (failed(response={"statusCode": 409}), 409),
        (failed("HTTP 429 happened"), 429),
        (failed("took 1500 ms"), None),
        (failed(status_code=True), None),
        (failed("plain"), None),
    ],
)
def test_statuses(error: Exception, status: int | None) -> None:
    assert extract_status_code(error) == status


@pytest.mark.parametrize(
    ("error", "status", "retryable"),
    [
        (failed(), 429, True),
        (failed(), 599, True),
        (failed(), 400, False),
        (failed(name="RateLimitError"), None, True),
        (failed(name="ReadTimeout"), None, True),
        (failed("Too Many Requests"), None, True),
        (failed("temporarily gone"), None, True),
        (failed("connection refused"), None, False),
    ],
)
def test_what_may_be_tried_again(error: Exception, status: int | None, retryable: bool) -> None:
    assert is_retryable_error(error, status) is retryable


def test_cerebras_windows() -> None:
    found = extract_cerebras_rate_limits(
        {
            "x-ratelimit-remaining-requests-day": "0",
            "x-ratelimit-remaining-tokens-hour": "0",
            "x-ratelimit-limit-tokens-minute": "9",
        }
    )
    assert (found.limit_tokens_minute, found.remaining_tokens_hour, found.is_limited()) == (9, 0, True)
    assert (found.get_most_restrictive_bucket(), found.get_suggested_wait_seconds()) == ("hour", 3600)
    nothing = CerebrasRateLimits()
    assert (nothing.is_limited(), nothing.get_suggested_wait_seconds()) == (False, None)


def test_anthropics_limits() -> None:
    found = extract_anthropic_rate_limits(
        {
            "anthropic-ratelimit-input-tokens-remaining": "0",
            "anthropic-ratelimit-input-tokens-reset": "2023-11-14T22:13:50Z",
            "anthropic-ratelimit-requests-reset": "2023-11-14T22:14:20",
        }
    )
    assert found.is_limited()
    assert found.get_next_reset() == datetime.fromtimestamp(NOW + 30, UTC)
    assert found.get_seconds_until_reset() == 30
    assert extract_anthropic_rate_limits({}).get_seconds_until_reset() is None


def test_openais_limits() -> None:
    found = extract_openai_rate_limits(
        {
            "x-ratelimit-reset-requests": "1h2m3.5s",
            "x-ratelimit-reset-tokens": "500ms",
            "x-ratelimit-limit-tokens": "5",
        }
    )
    assert (found.reset_requests, found.reset_requests_seconds, found.reset_tokens_seconds) == (
        "1h2m3.5s",
        3724,
        1,
    )
    assert (found.limit_tokens, found.is_limited(), found.get_seconds_until_reset()) == (5, False, 1)
    assert extract_openai_rate_limits({"x-ratelimit-reset-tokens": "0"}).get_seconds_until_reset() is None
