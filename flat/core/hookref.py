"""How a program names hooks: by a registered name and arguments, never by code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class HookRef:
    """A registered name, with the arguments that its factory gets."""

    name: str
    args: str = "{}"
    """A JSON object, as text: so that a reference can be compared and hashed."""
    scope: str = "machine"
    """`machine`: one object serves the whole execution. Else the name of the node that has its own."""


GIVEN = "(given)"
"""The name of an object that was handed over when the machine was loaded, and not by a name in its file."""

GIVEN_LIFECYCLE = "(given lifecycle)"
"""The same for an object that serves the machine's own beginning and end, and no state."""

HookRefs: TypeAlias = tuple[HookRef, ...]
