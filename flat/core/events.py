"""What happened in the world, as told to the core. `at` is the time in seconds since the epoch.

The core reads no clock: an event's `at` is all it knows of time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, TypeAlias

from flat.core.failure import Failure
from flat.core.record import record


@record
class Started:
    """An execution begins."""

    input: Mapping[str, Any]
    at: float
    kind: Literal["started"] = "started"


@record
class Done:
    """An effect succeeded."""

    effect_id: str
    value: Any
    at: float
    kind: Literal["done"] = "done"


@record
class Steered:
    """What a hook answered whose answer is not the context, as the value of a `Done`, and the context after it."""

    value: Any
    context: Mapping[str, Any]


@record
class Failed:
    """An effect failed."""

    effect_id: str
    failure: Failure
    at: float
    usage: Spent | None = None
    kind: Literal["failed"] = "failed"


@record
class Resumed:
    """A run takes the execution up again, possibly with other limits. None leaves a limit as it is."""

    at: float
    max_steps: int | None = None
    max_agent_calls: int | None = None
    kind: Literal["resumed"] = "resumed"


@record
class Cancelled:
    """Somebody wants the execution to stop for good."""

    at: float
    reason: str = ""
    kind: Literal["cancelled"] = "cancelled"


@record
class Doubted:
    """A resume found effects that may have begun, and their policy is to ask a person."""

    effect_ids: tuple[str, ...]
    at: float
    kind: Literal["doubted"] = "doubted"


@record
class Parked:
    """Nothing runs any more: what is pending is answered from outside."""

    at: float
    kind: Literal["parked"] = "parked"


@record
class Limited:
    """What the family of executions may use together is used up."""

    reason: str
    at: float
    kind: Literal["limited"] = "limited"


Event: TypeAlias = Started | Done | Failed | Resumed | Cancelled | Doubted | Parked | Limited


@record(kw_only=True)
class Spent:
    """Calls, tokens and US dollars. `priced` is False when some call's price is not known."""

    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0
    priced: bool = True

    def plus(self, other: Spent) -> Spent:
        """The sum; the price of a sum is known when both are."""
        return Spent(
            calls=self.calls + other.calls,
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost=self.cost + other.cost,
            priced=self.priced and other.priced,
        )


@record(kw_only=True)
class Reply:
    """An agent's answer, as the value of a `Done`: what the state calls `output`, and what it took."""

    payload: Any
    spent: Spent = field(default_factory=Spent)
    text: str | None = None
    """What it said in words, whatever the payload is."""
    finish_reason: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    prompt: str | None = None
    """The rendered user prompt, which begins a conversation."""
    metadata: Mapping[str, Any] = field(default_factory=dict)


@record(kw_only=True)
class Ended:
    """What a child came to, as the value of a `Done`."""

    output: Any
    spent: Spent = field(default_factory=Spent)


@record(kw_only=True)
class Waits:
    """That a child waits for something outside, as the value of a `Done`."""

    reason: str
    """For people."""
    channels: tuple[str, ...] = ()
    """What it waits for in the end, where anybody may answer."""


@record(kw_only=True)
class Told:
    """What a tool answered, as the value of a `Done`."""

    content: str
    is_error: bool = False
