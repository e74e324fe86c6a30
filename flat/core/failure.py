"""A failure as data: what a snapshot keeps of an exception, and which error target answers to it."""

from __future__ import annotations

from collections.abc import Mapping

from flat.core.record import record
from flat.errors import AgentFailed, ExecutionError, ExpressionError, Location


@record(kw_only=True)
class Failure:
    """What went wrong. `type` is the exception's class name; `names` are the other names it answers to."""

    type: str
    message: str
    names: tuple[str, ...] = ()
    retryable: bool | None = None
    """None when nobody said whether trying again may help."""
    retry_after: float | None = None
    location: str = ""
    detail: str = ""
    """The message as shown to people, with the source line where there is one."""


def failure_of(error: BaseException) -> Failure:
    """Keep what later decisions and readers need of an exception."""
    bases = tuple(c.__name__ for c in type(error).__mro__[1:-1])
    location = getattr(error, "location", None)
    place = str(location) if isinstance(location, Location) else ""
    if isinstance(error, AgentFailed):
        own = error.type if error.type != "AgentFailed" else type(error).__name__
        classes = tuple(name for name in (type(error).__name__, *bases) if name != own)
        return Failure(
            type=own,
            message=error.message,
            names=(error.code, *(["RetryableError"] if error.retryable else []), "RuntimeError", *classes),
            retryable=error.retryable,
            retry_after=error.retry_after,
            location=place,
            detail="\n  help: ".join(x for x in (error.message, error.hint) if x),
        )
    if isinstance(error, ExpressionError):
        return Failure(
            type="ExpressionError", message=error.message, names=bases, location=place, detail=str(error)
        )
    if isinstance(error, ExecutionError):
        return Failure(
            type=error.type, message=error.message, names=bases, location=place, detail=error.message
        )
    return Failure(
        type=type(error).__name__, message=str(error), names=bases, location=place, detail=str(error)
    )


_SAME_AGAIN = frozenset(
    ("auth_error", "invalid_request", "context_length", "model_unavailable", "rate_limit")
)
"""Codes of failures that do not depend on what a model happens to answer."""


def is_certain(failure: Failure) -> bool:
    """Whether the very same call is sure to fail again: a wrong key, a bad request, a quota that is used up."""
    return failure.retryable is False and not _SAME_AGAIN.isdisjoint(failure.names)


def error_target(failure: Failure, targets: Mapping[str, str]) -> str | None:
    """Where `on_error` sends this failure: its class name, its other names in order, then `default`."""
    for name in (failure.type, *failure.names, "default"):
        if name in targets:
            return targets[name]
    return None
