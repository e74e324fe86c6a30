"""What a file may amount to: caps on bytes, depth, nodes and aliases."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a file may amount to."""

    size: int = 2 * 1024 * 1024
    depth: int = 100
    nodes: int = 100_000
    aliased: int = 20_000
    """Nodes that aliases stand for, written out."""


LIMITS = Limits()
