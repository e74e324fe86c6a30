"""Code of the user's at fixed points: steering hooks, observers, and the built-in ones."""

from flat.hooks.base import (
    CompositeHooks,
    HooksRegistry,
    MachineHooks,
    action_takes_state,
    call_action,
    observed_points,
    observer,
    steered_points,
)
from flat.hooks.log import LoggingHooks, get_logger, setup_logging
from flat.hooks.metrics import MetricsHooks
from flat.hooks.notices import Notice, Observer, Observers

__all__ = [
    "CompositeHooks",
    "HooksRegistry",
    "LoggingHooks",
    "MachineHooks",
    "MetricsHooks",
    "Notice",
    "Observer",
    "Observers",
    "action_takes_state",
    "call_action",
    "get_logger",
    "observed_points",
    "observer",
    "setup_logging",
    "steered_points",
]
