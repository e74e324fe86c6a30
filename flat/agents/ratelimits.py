"""Rate limits as providers tell them in response headers: windows, and a state that machines can read.

A window is `{name, resource, remaining?, limit?, resets_in?, reset_at?}`; `resets_in` is in seconds,
`reset_at` in seconds since the epoch. Header names are expected in lower case (`lower_headers`).
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

Headers = Mapping[str, str]
Window = dict[str, Any]

_BUCKETS = {"minute": 60, "hour": 3600, "day": 86400}
_RESOURCES = ("requests", "tokens")
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|[dhms])")
_KEPT = re.compile(r"(x-|anthropic-)?ratelimit-|retry-after|(x-|anthropic-)?request-id$")


def lower_headers(headers: Any) -> dict[str, str]:
    """Headers from a mapping: names in lower case, values as text, what is None left out."""
    items = headers.items() if hasattr(headers, "items") else ()
    return {str(k).lower(): str(v) for k, v in items if v is not None}


def telling_headers(headers: Headers) -> dict[str, str]:
    """The headers worth keeping in a record: limits and request ids, and no cookies."""
    return {name: value for name, value in headers.items() if _KEPT.match(name)}


def build_rate_limit_windows(headers: Headers) -> list[Window]:
    """All windows that the headers tell of: bucketed ones first, then plain, then Anthropic's."""
    windows = []
    for bucket, seconds in _BUCKETS.items():
        for resource in _RESOURCES:
            counts = _counts(headers, f"x-ratelimit-{{}}-{resource}-{bucket}")
            if counts:
                name = f"{resource}_per_{bucket}"
                windows.append({"name": name, "resource": resource, **counts, "resets_in": seconds})
    bucketed = {w["resource"] for w in windows}
    for resource in _RESOURCES:
        counts = _counts(headers, f"x-ratelimit-{{}}-{resource}")
        if counts and resource not in bucketed:
            resets = _keep(resets_in=seconds_of(headers.get(f"x-ratelimit-reset-{resource}")))
            windows.append({"name": resource, "resource": resource, **counts, **resets})
    for resource in _RESOURCES:
        counts = _counts(headers, f"anthropic-ratelimit-{resource}-{{}}")
        if counts:
            resets = _keep(reset_at=_epoch(headers.get(f"anthropic-ratelimit-{resource}-reset")))
            windows.append({"name": resource, "resource": resource, **counts, **resets})
    if not windows and (counts := _counts(headers, "ratelimit-{}")):
        resets = _keep(resets_in=seconds_of(headers.get("ratelimit-reset")))
        windows.append({"name": "requests", "resource": "requests", **counts, **resets})
    return windows


def build_rate_limit_state(headers: Headers, retry_after: float | None = None) -> dict[str, Any]:
    """`{limited, retry_after?, windows?}`: limited when any window has nothing left."""
    windows = build_rate_limit_windows(headers)
    wait = retry_after if retry_after is not None else retry_after_seconds(headers)
    state: dict[str, Any] = {"limited": any(w.get("remaining") == 0 for w in windows)}
    if wait is not None:
        state["retry_after"] = int(wait) if wait == int(wait) else wait
    if windows:
        state["windows"] = windows
    return state


def retry_after_seconds(headers: Headers) -> float | None:
    """What the server asks us to wait, given as seconds or as a date; never negative."""
    if (text := headers.get("retry-after-ms")) and (milliseconds := _number(text)) is not None:
        return max(0.0, milliseconds / 1000)
    text = headers.get("retry-after") or ""
    if (seconds := _number(text)) is not None:
        return max(0.0, seconds)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except ValueError:
        return None


def _counts(headers: Headers, pattern: str) -> Window:
    found = {kind: headers.get(pattern.format(kind), "") for kind in ("remaining", "limit")}
    return {kind: int(text) for kind, text in found.items() if text.strip().isdecimal()}


def _keep(**facts: int | float | None) -> Window:
    return {name: value for name, value in facts.items() if value}


def seconds_of(text: str | None) -> int | None:
    """A duration such as `6m0s`, `500ms` or `30`, rounded up."""
    text = (text or "").strip()
    if (bare := _number(text)) is not None:
        return math.ceil(bare)
    parts = _DURATION.findall(text)
    if not parts or "".join(n + unit for n, unit in parts) != text:
        return None
    return math.ceil(sum(float(n) * _UNITS[unit] for n, unit in parts))


def _epoch(text: str | None) -> float | None:
    """An ISO time; one without an offset counts as UTC."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
