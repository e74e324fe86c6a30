"""Hooks that count."""

from __future__ import annotations

from collections import Counter
from typing import Any

from flat.hooks.base import Context, MachineHooks, observer


class MetricsHooks(MachineHooks):
    """Counts states, transitions and errors; `get_metrics` gives the figures."""

    def __init__(self) -> None:
        self.state_counts: Counter[str] = Counter()
        self.transition_counts: Counter[str] = Counter()
        self.total_states_executed = 0
        self.error_count = 0

    @observer
    def on_state_enter(self, state_name: str, context: Context) -> Any:
        self.state_counts[state_name] += 1
        self.total_states_executed += 1

    @observer
    def on_transition(self, from_state: str, to_state: str, context: Context) -> Any:
        self.transition_counts[f"{from_state}->{to_state}"] += 1

    def on_error(self, state_name: str, error: Exception, context: Context) -> None:
        """Count an error that no `on_error` of the file routes, and leave it to the others."""
        self.error_count += 1

    def on_action(self, *args: Any) -> Any:
        return args[-1]

    def get_metrics(self) -> dict[str, Any]:
        return {
            "state_counts": dict(self.state_counts),
            "transition_counts": dict(self.transition_counts),
            "total_states_executed": self.total_states_executed,
            "error_count": self.error_count,
        }
