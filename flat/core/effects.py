"""What the core asks the world to do. An effect is data; the driver performs it.

Every effect has a derived id, `<instance>/<step>/<op key>[.<suffix>]`, the same after any restart. With the
execution's id in front it serves as idempotency key. `in_doubt` says what to do on resume with an effect
that may have begun and has no record: `retry`, `ask`, `fail` or `verify:<name>`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, Literal, TypeAlias

from flat.core.hookref import HookRefs
from flat.core.record import record

ID_LENGTH = 128
_ID = re.compile(r"[A-Za-z0-9._-]+", re.ASCII)


@record
class RunAction:
    """Call the user's action `action`; the answer is the new context."""

    id: str
    node: str
    action: str
    hooks: HookRefs
    context: Mapping[str, Any]
    deadline: float | None = None
    in_doubt: str = "retry"
    kind: Literal["action"] = "action"


@record
class CallAgent:
    """Ask an agent. The answer is an agent result (`Reply`)."""

    id: str
    node: str
    agent: str
    input: Mapping[str, Any]
    context: Mapping[str, Any]
    hooks: HookRefs = ()
    session_id: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    """The conversation so far, or None for a first call."""
    tools: Literal["none", "offered", "withheld"] = "none"
    """Whether the agent may ask for tools: no, yes, or no longer (they are known, and an empty list is sent)."""
    deadline: float | None = None
    in_doubt: str = "retry"
    kind: Literal["call"] = "call"


@record
class RunTool:
    """Run a tool that a model asked for."""

    id: str
    node: str
    tool: str
    arguments: Mapping[str, Any]
    call_id: str
    context: Mapping[str, Any]
    hooks: HookRefs = ()
    agent: str = ""
    """The agent that asked, which may have tools of its own."""
    timeout: float | None = None
    """Seconds for this one tool; running out of them is an answer for the model, not a failure."""
    deadline: float | None = None
    in_doubt: str = "retry"
    kind: Literal["tool"] = "tool"


@record
class RunHook:
    """Call a steering hook at a point; what it answers depends on the point."""

    id: str
    node: str
    point: str
    hooks: HookRefs
    context: Mapping[str, Any]
    arguments: Mapping[str, Any] = field(default_factory=dict)
    deadline: float | None = None
    in_doubt: str = "retry"
    kind: Literal["hook"] = "hook"


@record
class StartChild:
    """Start another machine as an execution of its own; the effect id gives it its execution id.

    An awaited one is answered with what it came to (`Ended`). One that is not awaited is launched: it is born in
    the same commit as the snapshot that asks for it, and nobody waits. One that is not patient is answered with
    `Waits` as soon as its machine waits for something outside; whoever still wants it asks again, by the same id.
    """

    id: str
    node: str
    machine: str
    input: Mapping[str, Any]
    awaited: bool = True
    deadline: float | None = None
    in_doubt: str = "retry"
    patient: bool = True
    kind: Literal["child"] = "child"


@record
class AwaitSignal:
    """Wait for a signal on a channel. While only such effects are pending, nothing runs.

    One that is not patient only looks, and is alone: it is answered at once, with None when no signal is there.
    """

    id: str
    node: str
    channel: str
    deadline: float | None = None
    in_doubt: str = "retry"
    patient: bool = True
    kind: Literal["signal"] = "signal"


@record
class Sleep:
    """Wait until a time (seconds since the epoch), which survives a restart."""

    id: str
    node: str
    until: float
    deadline: float | None = None
    in_doubt: str = "retry"
    kind: Literal["timer"] = "timer"


Effect: TypeAlias = RunAction | CallAgent | RunTool | RunHook | StartChild | AwaitSignal | Sleep


def instance_of(effect_id: str) -> str:
    """The instance that asked for the effect."""
    return effect_id.partition("/")[0]


def child_id(execution_id: str, effect_id: str) -> str:
    """The id of the execution that a `StartChild` starts: the same after any restart, and readable while short."""
    readable = f"{execution_id}.{effect_id.replace('/', '-')}"
    if len(readable) <= ID_LENGTH and _ID.fullmatch(readable):
        return readable
    digest = hashlib.blake2b(f"{execution_id}/{effect_id}".encode(), digest_size=16).hexdigest()
    return f"child-{digest}"


def child_channel(execution_id: str) -> str:
    """The channel on which an execution tells its parent, where that waits elsewhere, that it is over."""
    return f"flat:child:{execution_id}"
