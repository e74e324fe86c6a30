"""Rate limits from headers."""

from __future__ import annotations

import time
from email.utils import formatdate
from typing import Any

import pytest

from flat.agents.ratelimits import (
    build_rate_limit_state,
    build_rate_limit_windows,
    lower_headers,
    retry_after_seconds,
    telling_headers,
)


def test_bucketed_windows_hide_the_plain_one_of_their_resource() -> None:
    headers = {
        "x-ratelimit-remaining-requests-minute": "0",
        "x-ratelimit-limit-requests-day": "1000",
        "x-ratelimit-remaining-requests": "5",
        "x-ratelimit-remaining-tokens": "9",
        "x-ratelimit-reset-tokens": "1h2m3.5s",
    }
    assert build_rate_limit_windows(headers) == [
        {"name": "requests_per_minute", "resource": "requests", "remaining": 0, "resets_in": 60},
        {"name": "requests_per_day", "resource": "requests", "limit": 1000, "resets_in": 86400},
        {"name": "tokens", "resource": "tokens", "remaining": 9, "resets_in": 3724},
    ]


def test_anthropic_windows_reset_at_a_moment_in_utc() -> None:
    headers = {
        "anthropic-ratelimit-tokens-remaining": "1",
        "anthropic-ratelimit-tokens-reset": "1970-01-01T00:01:00Z",
    }
    assert build_rate_limit_windows(headers) == [
        {"name": "tokens", "resource": "tokens", "remaining": 1, "reset_at": 60.0}
    ]


def test_standard_headers_count_when_there_are_no_others() -> None:
    headers = {"ratelimit-remaining": "0", "ratelimit-limit": "10", "ratelimit-reset": "7"}
    window = {"name": "requests", "resource": "requests", "remaining": 0, "limit": 10, "resets_in": 7}
    assert build_rate_limit_state(headers) == {"limited": True, "windows": [window]}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360), ("500ms", 1), ("30", 30), ("1.2s", 2), ("0", None), ("soon", None), ("5 apples", None)],
)
def test_durations(text: str, seconds: int | None) -> None:
    windows = build_rate_limit_windows({"x-ratelimit-limit-tokens": "1", "x-ratelimit-reset-tokens": text})
    assert windows[0].get("resets_in") == seconds


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "Thu, 01 Jan 1970 00:00:00 GMT"}, 0),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "later"}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers) == seconds


def test_retry_after_may_be_a_date() -> None:
    wait = retry_after_seconds({"retry-after": formatdate(time.time() + 60, usegmt=True)})
    assert wait is not None
    assert 55 < wait <= 60


def test_the_state_prefers_the_given_wait_and_ignores_what_is_no_number() -> None:
    assert build_rate_limit_state({"retry-after": "9", "x-ratelimit-remaining-tokens": "many"}, 3) == {
        "limited": False,
        "retry_after": 3,
    }
    assert build_rate_limit_state({}) == {"limited": False}


@pytest.mark.parametrize("headers", [None, 5, "text"])
def test_what_is_no_headers_gives_none(headers: Any) -> None:
    assert lower_headers(headers) == {}


def test_headers_are_lowered_and_cookies_not_kept() -> None:
    headers = lower_headers(
        {"X-RateLimit-Limit-Tokens": 5, "Set-Cookie": "a", "X-Request-ID": "r", "None": None}
    )
    assert telling_headers(headers) == {"x-ratelimit-limit-tokens": "5", "x-request-id": "r"}
