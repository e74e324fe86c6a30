"""Code of the user's at fixed points: steering hooks, observers, and the built-in ones."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from flat.hooks.base import MachineHooks, action_takes_state, call_action, observer
from flat.hooks.composite import CompositeHooks, members, observed_points, steered_points
from flat.hooks.log import LoggingHooks, get_logger, setup_logging
from flat.hooks.metrics import MetricsHooks
from flat.hooks.notices import Notice, Observer, Observers
from flat.hooks.registry import HooksRegistry

if TYPE_CHECKING:
    from flat.hooks.distributed import DistributedWorkerHooks
    from flat.hooks.stream import hears_stream, stream_listener
    from flat.hooks.webhook import WebhookHooks

__all__ = [
    "CompositeHooks",
    "DistributedWorkerHooks",
    "HooksRegistry",
    "LoggingHooks",
    "MachineHooks",
    "MetricsHooks",
    "Notice",
    "Observer",
    "Observers",
    "WebhookHooks",
    "action_takes_state",
    "call_action",
    "get_logger",
    "hears_stream",
    "members",
    "observed_points",
    "observer",
    "setup_logging",
    "steered_points",
    "stream_listener",
]

# Loaded when used: most machines ask no endpoint, share no work, and stream to nobody.
_HOMES = {
    "DistributedWorkerHooks": "distributed",
    "WebhookHooks": "webhook",
    "hears_stream": "stream",
    "stream_listener": "stream",
}


def __getattr__(name: str) -> Any:
    if home := _HOMES.get(name):
        return getattr(importlib.import_module(f"flat.hooks.{home}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
