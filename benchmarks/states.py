"""The state of a graph that counts, for langgraph."""

from __future__ import annotations

from typing import TypedDict


class Counter(TypedDict):
    i: int
