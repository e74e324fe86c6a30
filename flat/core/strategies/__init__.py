"""How often and how an agent is called. A strategy is like an op: it starts, and is resumed with each answer."""

from __future__ import annotations

from typing import TypeAlias

from flat.core.strategies.asking import Asking
from flat.core.strategies.retry import Retry
from flat.core.strategies.sample import Sample
from flat.core.strategies.single import Single
from flat.core.strategies.vote import Parsed, Vote

Strategy: TypeAlias = Single | Retry | Sample | Vote

__all__ = ["Asking", "Parsed", "Retry", "Sample", "Single", "Strategy", "Vote"]
