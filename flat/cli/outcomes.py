"""What a run came to: as data, as an exit code, and as words that say what can be done next."""

from __future__ import annotations

import shlex
from typing import Any

from flat.cli.ending import BY_STATUS, TIMED_OUT, Interrupted, complain
from flat.cli.plain import spent_data
from flat.cli.text import one_line
from flat.core.failure import Failure
from flat.runtime import Outcome

Commands = dict[str, str]
"""The commands that go on with the execution: `resume`, `more` (steps), `show`; the option `store`; `kept`, empty
when nothing is."""
NOT_KEPT = "nothing was kept (the store is memory:)"
TIMEOUT = "TimeoutError"


def exit_code(outcome: Outcome) -> int:
    """What the process ends with."""
    if outcome.failure is not None and outcome.failure.type == TIMEOUT:
        return TIMED_OUT
    return BY_STATUS[outcome.status]


def failure_data(failure: Failure | None, node: str) -> dict[str, Any] | None:
    if failure is None:
        return None
    return {"type": failure.type, "message": failure.message, "state": node, "location": failure.location}


def result_data(outcome: Outcome) -> dict[str, Any]:
    """The outcome as plain data."""
    return {
        "status": outcome.status,
        "output": outcome.output,
        "execution_id": outcome.execution_id,
        "steps": outcome.steps,
        "spent": spent_data(outcome.spent),
        "state": outcome.node,
        "reason": outcome.reason,
        "failure": failure_data(outcome.failure, outcome.node),
        "waiting_on": list(outcome.waiting_on),
        "in_doubt": [
            {
                "effect_id": d.effect_id,
                "execution_id": d.execution_id,
                "what": d.what,
                "state": d.node,
                "policy": d.policy,
            }
            for d in outcome.in_doubt
        ],
        "exit_code": exit_code(outcome),
    }


def explain(outcome: Outcome, commands: Commands) -> None:
    """Say on stderr why an execution did not end as done, and how to go on."""
    match outcome.status:
        case "failed":
            complain(_failed(outcome, commands))
        case "waiting" if (child := _child_in_doubt(outcome)) is not None:
            resume = f"flat resume {child}{commands['store']}"
            complain(f"child {child}: {_in_doubt(outcome, resume)}\nthen: {commands['resume']}")
        case "waiting":
            channels = ", ".join(f'"{one_line(c)}"' for c in outcome.waiting_on)
            if not commands["kept"]:
                complain(f"waiting for a signal on {channels}; {NOT_KEPT}")
                return
            first = one_line(outcome.waiting_on[0]) if outcome.waiting_on else "CHANNEL"
            complain(
                f"waiting for a signal on {channels}; "
                f"send it with: flat signal {shlex.quote(first)} JSON{commands['store']}\n"
                f"then: {commands['resume']}"
            )
        case "limit":
            then = f"continue with: {commands['more']}" if commands["kept"] else NOT_KEPT
            complain(f"stopped at a limit: {outcome.reason}; {then}")
        case "in_doubt":
            complain(_in_doubt(outcome, commands["resume"]))
        case "cancelled":
            reason = f": {one_line(outcome.reason)}" if outcome.reason else ""
            complain(f"cancelled{reason}")


def _failed(outcome: Outcome, commands: Commands) -> str:
    failure = outcome.failure
    assert failure is not None
    what = failure.detail or failure.message
    place = "" if not failure.location or failure.location in what else f"{failure.location}: "
    where = f'{place}{failure.type} in state "{one_line(outcome.node)}"'
    then = f"\nsee what happened with: {commands['show']}" if commands["kept"] else ""
    return f"error: {where}: {what}{then}"


def _child_in_doubt(outcome: Outcome) -> str | None:
    """The id of a child that a person has to decide about before its parent can go on."""
    return next(
        (
            d.execution_id
            for d in outcome.in_doubt
            if d.policy == "ask" and d.execution_id != outcome.execution_id
        ),
        None,
    )


def _in_doubt(outcome: Outcome, resume: str) -> str:
    asked = [d for d in outcome.in_doubt if d.policy == "ask"]
    what = " and ".join(d.what for d in asked) or outcome.reason
    return (
        f"{what} may or may not have happened when the last run ended; decide with:\n"
        f"  {resume} --retry-in-doubt        do it again\n"
        f"  {resume} --mark-done JSON        take it as done, with this result"
    )


def interrupted(commands: Commands | None, kept: bool) -> Interrupted:
    """The end of a run that the user broke off."""
    if commands is None:
        return Interrupted("interrupted before anything ran")
    if not kept:
        return Interrupted(f"interrupted; {NOT_KEPT}")
    return Interrupted(f"interrupted; continue with: {commands['resume']}")
