"""What a strategy needs from the op that it works for."""

from __future__ import annotations

from typing import Protocol

from flat.core.effects import CallAgent
from flat.core.op import View


class Asking(Protocol):
    """The op that a strategy works for: it can phrase the call."""

    @property
    def key(self) -> str: ...
    def ask(self, here: View, suffix: str = "") -> CallAgent: ...
