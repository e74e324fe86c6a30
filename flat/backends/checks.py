"""What every store refuses before it writes: names that no encoding can hold.

Bodies are bytes and need no check. Ids and channels come from outside, and a lone surrogate in one of them
(half of an emoji cut in two) would otherwise surface as a different error in every store.
"""

from __future__ import annotations

from collections.abc import Callable

from flat.backends.protocols import Birth, Commit, Signal
from flat.errors import NotStorable

CANCELLED = "cancelled"
"""The status that answers a request to cancel: a commit that sets it clears the request."""
WAITING = "waiting"
"""The status of an execution that is parked: a signal or a timer may wake it."""


def check_text(path: str, value: str) -> None:
    """Refuse text that is not valid Unicode."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise NotStorable(
            path, "text with half a character", f"remove the lone surrogate at position {error.start}"
        ) from error


def check_birth(birth: Birth) -> None:
    """Refuse a birth with an id, parent or channel that cannot be stored."""
    execution = birth.execution
    check_text("execution_id", execution.execution_id)
    check_text("parent", execution.parent or "")
    for channel in execution.channels:
        check_text("channel", channel)


def check_signal(signal: Signal) -> None:
    """Refuse a signal with an id or channel that cannot be stored."""
    check_text("signal_id", signal.signal_id)
    check_text("channel", signal.channel)
    check_text("to", signal.to or "")


def readable(reason: str) -> str:
    """A reason for people, whatever an error's text may hold: half characters are written out."""
    return reason.encode(errors="backslashreplace").decode()


def copy_id(signal_id: str, execution_id: str, taken: Callable[[str], bool]) -> str:
    """The id of the copy of a signal for one execution. Somebody may have sent one of that very name before."""
    name = f"{signal_id}@{execution_id}"
    while taken(name):
        name += "@"
    return name


def check_commit(commit: Commit) -> None:
    """Refuse a commit any part of which has a name that cannot be stored."""
    for channel in commit.head.channels if commit.head else ():
        check_text("channel", channel)
    for signal in commit.send:
        check_signal(signal)
    for birth in commit.births:
        check_birth(birth)


def is_plain(commit: Commit) -> bool:
    """True for the commit of an ordinary step: a body and nothing else."""
    return not (
        commit.head
        or commit.log
        or commit.blobs
        or commit.consume
        or commit.send
        or commit.births
        or commit.release
    )
