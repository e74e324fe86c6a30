"""What callers hand over: limits, ids and channels. What makes no sense is refused before anything is stored."""

from __future__ import annotations

from typing import Any

from flat.errors import DefinitionError, ExecutionBusy


def check_limits(max_steps: Any, max_agent_calls: Any) -> None:
    """Raise unless each is None or a whole number that is not negative."""
    for name, limit in (("max_steps", max_steps), ("max_agent_calls", max_agent_calls)):
        if limit is not None and (type(limit) is not int or limit < 0):
            raise DefinitionError(
                f"{name} is a whole number, 0 or more, or None for no other limit, not {limit!r}"
            )


def check_id(execution_id: Any) -> None:
    """Raise unless it can be an execution's id."""
    if not isinstance(execution_id, str) or not execution_id.strip():
        raise DefinitionError(f"an execution's id is a text that is not blank, not {execution_id!r}")


def check_channel(channel: Any) -> None:
    """Raise unless it can be the name of a channel."""
    if not isinstance(channel, str) or not channel:
        raise DefinitionError(f"a channel is a text that is not empty, not {channel!r}")


def check_machine(machine: Any) -> None:
    """Raise unless it is a machine."""
    if not hasattr(machine, "program"):
        inner = "; a FlatMachine has one: .machine" if hasattr(machine, "machine") else ""
        raise DefinitionError(
            f"a machine is what flat.load gives, as in load('machine.yml'), not {type(machine).__name__}{inner}"
        )


def taken(execution_id: str, advice: str) -> ExecutionBusy:
    """The error to raise when there is an execution of this id already."""
    error = ExecutionBusy(execution_id)
    error.args = (f'there is an execution "{execution_id}" already; {advice}',)
    return error
