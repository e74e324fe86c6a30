"""Call again after a failure or an empty answer, with growing pauses.

A pause is a timer effect, so that it survives a restart and resumes in its middle. Jitter is drawn from the
effect's id: the same execution always waits the same time, and two executions wait different times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from flat.core.effects import Sleep
from flat.core.events import Done, Failed, Reply
from flat.core.failure import Failure
from flat.core.op import Answer, Block, Next, Raise, View
from flat.core.strategies.asking import Asking

DEFAULT_BACKOFFS = (2.0, 8.0, 16.0, 35.0)
PAUSE = "pause"


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """`local` is `[attempt]` while a call is out, `[attempt, "pause", until]` during a pause."""

    backoffs: tuple[float, ...] = DEFAULT_BACKOFFS
    """Seconds to wait before each further attempt."""
    jitter: float = 0.1
    """Share of a pause by which it is lengthened or shortened at most."""
    retry_on_empty: bool = False
    kind: Literal["retry"] = "retry"

    def start(self, call: Asking, here: View) -> Answer:
        """Ask for the first time, or again from what `local` says after a restart."""
        local = here.local or [0]
        if len(local) > 1:
            return self._pause(call, here, local[0], local[2])
        return Block((call.ask(here, _suffix(local[0])),), local)

    def resume(self, call: Asking, here: View, event: Done | Failed) -> Answer:
        local = here.local
        if isinstance(event, Failed) and here.deadline is not None and here.at >= here.deadline:
            return Raise(event.failure)
        if len(local) > 1:
            attempt = local[0] + 1
            return Block((call.ask(here, _suffix(attempt)),), [attempt])
        if isinstance(event, Failed):
            return self._again_or_raise(call, here, event.failure)
        reply: Reply = event.value
        here.spend(reply.spent)
        if self.retry_on_empty and is_empty(reply.payload):
            return self._again_or_raise(call, here, EMPTY)
        return Next(output=reply.payload)

    def _again_or_raise(self, call: Asking, here: View, failure: Failure) -> Answer:
        attempt: int = here.local[0]
        if failure.retryable is False or attempt >= len(self.backoffs):
            return Raise(failure)
        jitter = self.jitter * spread(f"{here.execution_id}/{here.effect_id(call.key, _suffix(attempt))}")
        # Jitter must not bring us back before the time that the provider named.
        delay = max(self.backoffs[attempt] * (1.0 + jitter), failure.retry_after or 0.0)
        return self._pause(call, here, attempt, here.at + delay)

    def _pause(self, call: Asking, here: View, attempt: int, until: float) -> Answer:
        timer = Sleep(here.effect_id(call.key, f"{attempt}.{PAUSE}"), here.node, until, here.deadline)
        return Block((timer,), [attempt, PAUSE, until])


EMPTY = Failure(
    type="ValueError",
    message="empty response from the agent",
    names=("EmptyResponse", "Exception"),
    retryable=True,
)


def _suffix(attempt: int) -> str:
    return str(attempt) if attempt else ""


def is_empty(payload: Any) -> bool:
    """Nothing at all, or an empty text. A blank is an answer: the next character may well be a space."""
    if isinstance(payload, Mapping):
        return not payload or (payload.keys() == {"content"} and payload["content"] in (None, ""))
    return payload is None or payload == ""


def spread(seed: str) -> float:
    """A number in [-1, 1) that looks random and depends on nothing but the seed."""
    return int.from_bytes(hashlib.blake2b(seed.encode(), digest_size=6).digest(), "big") / 2**47 - 1.0
