"""What a provider's answer or error tells besides its text: headers, status, whether trying again may help.

For code that deals with providers itself, and for `AgentResponse`. The agents' own calls are judged more closely,
in `failures` and `ratelimits`.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, TypeVar

from flat.agents.ratelimits import seconds_of

R = TypeVar("R")

_STATUS_NAMES = ("status_code", "status", "http_status", "statusCode")
_STATUS_IN_TEXT = re.compile(r"(?<!\d)([45]\d\d)(?!\d)")
_PASSING = ("rate limit", "too many requests", "timeout", "temporarily")
_YEAR_2000 = 946_684_800
_BUCKETS = {"minute": 60, "hour": 3600, "day": 86400}


@dataclass
class RateLimitInfo:
    """The limits that any provider may tell of, in one form."""

    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_at: float | None = None
    """Seconds since the epoch."""
    retry_after: int | None = None
    """Seconds."""
    raw_headers: dict[str, str] = field(default_factory=dict)

    def is_limited(self) -> bool:
        """Whether nothing is left of something."""
        return 0 in (self.remaining_requests, self.remaining_tokens)

    def get_retry_delay(self) -> int | None:
        """Seconds to wait, as far as the provider told."""
        if self.retry_after is not None:
            return self.retry_after
        return None if self.reset_at is None else max(0, int(self.reset_at - time.time()))


_NORMALISED = {
    "remaining_requests": (
        "x-ratelimit-remaining-requests", "ratelimit-remaining", "anthropic-ratelimit-requests-remaining",
    ),
    "remaining_tokens": ("x-ratelimit-remaining-tokens", "anthropic-ratelimit-tokens-remaining"),
    "limit_requests": (
        "x-ratelimit-limit-requests", "ratelimit-limit", "anthropic-ratelimit-requests-limit",
    ),
    "limit_tokens": ("x-ratelimit-limit-tokens", "anthropic-ratelimit-tokens-limit"),
}  # fmt: skip
_RESETS = (
    "x-ratelimit-reset-requests", "x-ratelimit-reset-tokens", "x-ratelimit-reset",
    "anthropic-ratelimit-requests-reset", "anthropic-ratelimit-tokens-reset",
)  # fmt: skip


def normalize_headers(headers: Any) -> dict[str, str]:
    """Headers from a mapping, an object with `items()`, or pairs: lower-case names, texts as values."""
    pairs: Iterable[Any] = ()
    if hasattr(headers, "items"):
        pairs = headers.items()
    elif isinstance(headers, list | tuple) and all(
        isinstance(p, list | tuple) and len(p) == 2 for p in headers
    ):
        pairs = headers
    return {str(name).lower(): _header_text(value) for name, value in pairs if value is not None}


def _header_text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return ", ".join(str(v) for v in value) if isinstance(value, list | tuple) else str(value)


def extract_headers_from_response(response: Any) -> dict[str, str]:
    """The headers that litellm keeps with an answer."""
    hidden = getattr(response, "_hidden_params", None)
    more = hidden.get("additional_headers") if isinstance(hidden, Mapping) else None
    return normalize_headers(getattr(response, "_response_headers", None)) | normalize_headers(more)


def extract_headers_from_error(error: BaseException) -> dict[str, str]:
    """The headers of the answer that led to an error."""
    response = getattr(error, "response", None)
    inner = response.get("headers") if isinstance(response, Mapping) else getattr(response, "headers", None)
    kept = normalize_headers(getattr(error, "litellm_response_headers", None))
    return kept | normalize_headers(inner) | normalize_headers(getattr(error, "headers", None))


def extract_rate_limit_info(headers: Mapping[str, str]) -> RateLimitInfo:
    """The limits in normalised headers; of several names for one thing, the first counts."""
    told = {name: _first_number(headers, names) for name, names in _NORMALISED.items()}
    resets = (_reset_moment(headers[name]) for name in _RESETS if name in headers)
    return RateLimitInfo(
        **told,
        reset_at=next((r for r in resets if r is not None), None),
        retry_after=_whole(headers.get("retry-after")),
        raw_headers=dict(headers),
    )


def extract_status_code(error: BaseException) -> int | None:
    """The HTTP status of an error: an attribute of it or of its response, else a number in its message."""
    response = getattr(error, "response", None)
    told = [getattr(source, name, None) for source in (error, response) for name in _STATUS_NAMES]
    if isinstance(response, Mapping):
        told += [response.get(name) for name in _STATUS_NAMES]
    for value in told:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)
    found = _STATUS_IN_TEXT.search(str(error))
    return int(found[1]) if found else None


def is_retryable_error(error: BaseException, status_code: int | None) -> bool:
    """Whether trying again may help, judged by status, class name and words."""
    if status_code is not None and (status_code == 429 or 500 <= status_code <= 599):
        return True
    name = type(error).__name__
    return "RateLimit" in name or "Timeout" in name or any(word in str(error).lower() for word in _PASSING)


@dataclass
class CerebrasRateLimits:
    """Cerebras' windows by minute, hour and day."""

    remaining_requests_minute: int | None = None
    limit_requests_minute: int | None = None
    remaining_tokens_minute: int | None = None
    limit_tokens_minute: int | None = None
    remaining_requests_hour: int | None = None
    limit_requests_hour: int | None = None
    remaining_tokens_hour: int | None = None
    limit_tokens_hour: int | None = None
    remaining_requests_day: int | None = None
    limit_requests_day: int | None = None
    remaining_tokens_day: int | None = None
    limit_tokens_day: int | None = None

    def is_limited(self) -> bool:
        """Whether nothing is left in some window."""
        return self.get_most_restrictive_bucket() is not None

    def get_most_restrictive_bucket(self) -> str | None:
        """The shortest window that is used up: `minute`, `hour` or `day`."""
        for bucket in _BUCKETS:
            if 0 in (
                getattr(self, f"remaining_requests_{bucket}"),
                getattr(self, f"remaining_tokens_{bucket}"),
            ):
                return bucket
        return None

    def get_suggested_wait_seconds(self) -> int | None:
        """The length of that window."""
        bucket = self.get_most_restrictive_bucket()
        return _BUCKETS[bucket] if bucket else None


def extract_cerebras_rate_limits(raw_headers: Mapping[str, str]) -> CerebrasRateLimits:
    """Read `x-ratelimit-{remaining,limit}-{requests,tokens}-{minute,hour,day}`."""
    return _by_fields(CerebrasRateLimits, raw_headers, "x-ratelimit-")


@dataclass
class AnthropicRateLimits:
    """Anthropic's limits; each resets at a moment."""

    requests_remaining: int | None = None
    requests_limit: int | None = None
    requests_reset: datetime | None = None
    tokens_remaining: int | None = None
    tokens_limit: int | None = None
    tokens_reset: datetime | None = None
    input_tokens_remaining: int | None = None
    input_tokens_limit: int | None = None
    input_tokens_reset: datetime | None = None
    output_tokens_remaining: int | None = None
    output_tokens_limit: int | None = None
    output_tokens_reset: datetime | None = None

    def is_limited(self) -> bool:
        """Whether nothing is left of something."""
        return any(getattr(self, f.name) == 0 for f in fields(self) if f.name.endswith("_remaining"))

    def get_next_reset(self) -> datetime | None:
        """The earliest reset."""
        return min(
            (r for f in fields(self) if isinstance(r := getattr(self, f.name), datetime)), default=None
        )

    def get_seconds_until_reset(self) -> int | None:
        """Whole seconds until then, never negative."""
        reset = self.get_next_reset()
        return None if reset is None else max(0, int(reset.timestamp() - time.time()))


def extract_anthropic_rate_limits(raw_headers: Mapping[str, str]) -> AnthropicRateLimits:
    """Read `anthropic-ratelimit-{requests,tokens,input-tokens,output-tokens}-{remaining,limit,reset}`."""
    return _by_fields(AnthropicRateLimits, raw_headers, "anthropic-ratelimit-")


@dataclass
class OpenAIRateLimits:
    """OpenAI's limits; each resets after a while."""

    remaining_requests: int | None = None
    remaining_tokens: int | None = None
    limit_requests: int | None = None
    limit_tokens: int | None = None
    reset_requests: str | None = None
    reset_tokens: str | None = None
    reset_requests_seconds: int | None = None
    reset_tokens_seconds: int | None = None

    def is_limited(self) -> bool:
        """Whether nothing is left of something."""
        return 0 in (self.remaining_requests, self.remaining_tokens)

    def get_seconds_until_reset(self) -> int | None:
        """The sooner of the two resets."""
        told = (self.reset_requests_seconds, self.reset_tokens_seconds)
        return min((seconds for seconds in told if seconds is not None), default=None)


def extract_openai_rate_limits(raw_headers: Mapping[str, str]) -> OpenAIRateLimits:
    """Read `x-ratelimit-{remaining,limit,reset}-{requests,tokens}`; resets are durations such as `6m0s`."""
    found = _by_fields(OpenAIRateLimits, raw_headers, "x-ratelimit-")
    found.reset_requests_seconds = seconds_of(found.reset_requests) or None
    found.reset_tokens_seconds = seconds_of(found.reset_tokens) or None
    return found


def _by_fields(cls: type[R], headers: Mapping[str, str], prefix: str) -> R:
    """A record whose fields are named as the headers are."""
    values: dict[str, Any] = {}
    for spec in fields(cls):  # type: ignore[arg-type]
        text = headers.get(prefix + spec.name.replace("_", "-"))
        if "datetime" in str(spec.type):
            values[spec.name] = _moment(text)
        else:
            values[spec.name] = text if "str" in str(spec.type) else _whole(text)
    return cls(**values)


def _first_number(headers: Mapping[str, str], names: Iterable[str]) -> int | None:
    return _whole(next((headers[name] for name in names if name in headers), None))


def _whole(text: str | None) -> int | None:
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def _reset_moment(text: str) -> float | None:
    """A moment: seconds or milliseconds since the epoch, seconds from now, a duration, or ISO 8601."""
    try:
        value = float(text.strip().removesuffix("s"))
    except ValueError:
        if (moment := _moment(text)) is not None:
            return moment.timestamp()
        seconds = seconds_of(text)
        return None if seconds is None else time.time() + seconds
    if not math.isfinite(value):
        return None
    if value > _YEAR_2000 * 1000:
        return value / 1000
    return value if value > _YEAR_2000 else time.time() + value


def _moment(text: str | None) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
