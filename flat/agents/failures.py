"""From whatever litellm raises to `AgentFailed`: which code, whether to try again, and a message for people.

Judged by class names and attributes along the chain of causes, so nothing here imports litellm. Two of its
habits decide the order of the rules: it invents `status_code` (500, 408) when no HTTP answer came, which
shows in the missing response headers; and it raises one class for a refused connection, a garbage body and a
missing key.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flat.agents.ratelimits import build_rate_limit_state, lower_headers, retry_after_seconds
from flat.errors import AgentFailed, nearest

_NO_KEY = re.compile(
    r"missing credentials|missing .*api[ _]?key|no api key|unable to locate credentials"
    r"|api_key client option must be set"
)
_SPENT = re.compile(r"insufficient_quota|exceeded your current quota")
_PREFIX = re.compile(r"^(?:(?:litellm\.)?\w*(?:Error|Timeout): |\w+Exception - )*")
_SHOWN = 600


@dataclass(frozen=True, slots=True)
class Verdict:
    """What kind of failure it is."""

    code: str
    retryable: bool
    hint: str = ""


_AUTH = Verdict("auth_error", False, "check the API key of this provider")
_TIMEOUT = Verdict("timeout", True)
_SERVER = Verdict("server_error", True)
_INVALID = Verdict("invalid_request", False)


def agent_failure(
    error: Exception, *, agent: str, model: str, url: str | None, secrets: tuple[str, ...]
) -> AgentFailed:
    """The failure to raise for an error of litellm."""
    headers = lower_headers(getattr(error, "litellm_response_headers", None))
    status = _status(error) if headers else None
    verdict = classify(error, status, headers)
    if "LLM Provider NOT provided" in str(error):
        return _no_provider(agent, model, verdict)
    text = _reached(error, url) if _is_connection(error, headers) else _plain_message(error)
    if status is None and any(type(link).__name__ == "JSONDecodeError" for link in _chain(error)):
        text = f"what {url or 'the provider'} answered is not JSON ({text})"
    elif status is not None and status >= 400 and str(status) not in text:
        text = f"{text} (HTTP {status})"
    for secret in secrets:
        text = text.replace(secret, "***")
    retry_after = retry_after_seconds(headers)
    return AgentFailed(
        f'agent "{agent}" ({model}): {text}',
        code=verdict.code,
        retryable=verdict.retryable,
        status_code=status,
        retry_after=retry_after,
        hint=verdict.hint,
        rate_limit=build_rate_limit_state(headers, retry_after) if headers else None,
    )


def _no_provider(agent: str, model: str, verdict: Verdict) -> AgentFailed:
    """litellm says the same to a missing provider and to a misspelt one, and sends people to its documentation."""
    provider, slash, _ = model.partition("/")
    if not slash:
        return AgentFailed(
            f'agent "{agent}" ({model}): the model has no provider', code=verdict.code, hint=verdict.hint
        )
    known = [str(getattr(p, "value", p)) for p in getattr(sys.modules.get("litellm"), "provider_list", ())]
    near = nearest(provider, known)
    return AgentFailed(
        f'agent "{agent}" ({model}): litellm knows no provider "{provider}"',
        code=verdict.code,
        hint=f'did you mean "{near}"?' if near else verdict.hint,
    )


def classify(error: BaseException, status: int | None, headers: Mapping[str, str]) -> Verdict:
    """The verdict on an error of litellm; `status` and `headers` only when the server did answer."""
    names = {c.__name__ for c in type(error).__mro__}
    known = _by_class(names, str(error), status, headers)
    if known is not None:
        return known
    return by_status(status) if status is not None else _unanswered(error, names, headers)


def _by_class(names: set[str], text: str, status: int | None, headers: Mapping[str, str]) -> Verdict | None:
    low = text.lower()
    if "MidStreamFallbackError" in names:
        return _SERVER
    if status is None and _NO_KEY.search(low):
        return _AUTH
    if "LLM Provider NOT provided" in text:
        return Verdict(
            "invalid_request", False, "give the profile a `provider`, for example `provider: openai`"
        )
    if "ContextWindowExceededError" in names:
        return Verdict("context_length", False, "shorten the prompt or the history, or use a larger model")
    if "ContentPolicyViolationError" in names or (
        status == 400 and re.search("content_(policy|filter)", low)
    ):
        return Verdict("content_filter", False)
    if "RateLimitError" in names or status == 429:
        # Some providers call a limit per minute a quota too; those say when to come back.
        spent = "retry-after" not in headers and _SPENT.search(low) is not None
        return Verdict("rate_limit", not spent, "the account's quota is used up" if spent else "")
    return None


def by_status(status: int) -> Verdict:
    """The verdict when there is nothing but an HTTP status."""
    if status == 429:
        return Verdict("rate_limit", True)
    if status in (401, 403):
        return _AUTH
    if status == 404:
        return Verdict("model_unavailable", False, "check the name of the model and its `base_url`")
    if status in (408, 504):
        return _TIMEOUT
    if status in (409, 425) or status >= 500:
        return _SERVER
    return _INVALID if status >= 400 else Verdict("server_error", False)


def _unanswered(error: BaseException, names: set[str], headers: Mapping[str, str]) -> Verdict:
    along = {c.__name__ for link in _chain(error) for c in type(link).__mro__}
    if "ImportError" in along:
        return Verdict("model_unavailable", False, "a package that litellm needs here is not installed")
    if "APITimeoutError" in along or "Timeout" in names:
        return _TIMEOUT
    if _is_connection(error, headers):
        return Verdict("server_error", True, "is the server running, and the `base_url` right?")
    if "JSONDecodeError" in along:
        return Verdict("server_error", True, "is it a model's server, and the `base_url` right?")
    if "InternalServerError" in names:  # an answer that makes no sense
        return _SERVER
    if "AuthenticationError" in names:
        return _AUTH
    return _INVALID if "BadRequestError" in names else Verdict("server_error", False)


def _is_connection(error: BaseException, headers: Mapping[str, str]) -> bool:
    along = {c.__name__ for link in _chain(error) for c in type(link).__mro__}
    answered = headers or "JSONDecodeError" in along or "APITimeoutError" in along
    return (
        not answered
        and "MidStreamFallbackError" not in along
        and "APIConnectionError" in along
        and (not _NO_KEY.search(str(error).lower()))
    )


def _reached(error: BaseException, url: str | None) -> str:
    """`cannot reach <url>: <reason>`; litellm's own text says no more than "Connection error"."""
    links = list(_chain(error))
    # Only the client library's error holds the real request; litellm's own carries a made-up one.
    asked = [
        link.request.url for link in links if type(link).__module__ == "openai" and hasattr(link, "request")
    ]
    reason = next((link for link in reversed(links) if isinstance(link, OSError)), links[-1])
    told = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return f"cannot reach {url or next(iter(asked), 'the provider')}: {told}"


def _plain_message(error: BaseException) -> str:
    told = str(error).split("Traceback (most recent call last)", 1)[0].split(" Original exception:", 1)[0]
    text = _PREFIX.sub("", told).strip() or type(error).__name__
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _status(error: BaseException) -> int | None:
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def _chain(error: BaseException | None) -> Iterator[Any]:
    for _ in range(12):
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__ or getattr(error, "original_exception", None)
