"""How often and how an agent is called. A strategy is like an op: it starts, and is resumed with each answer."""

from __future__ import annotations

from typing import TypeAlias

from flat.core.strategies.asking import Asking
from flat.core.strategies.retry import Retry
from flat.core.strategies.single import Single

Strategy: TypeAlias = Single | Retry

__all__ = ["Asking", "Retry", "Single", "Strategy"]
