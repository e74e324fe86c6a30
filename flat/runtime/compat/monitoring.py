"""Meters around agents and operations, through OpenTelemetry where it is installed."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import TracebackType
from typing import Any

log = logging.getLogger("flat")
OFF = ("false", "0", "no")
SPENT = ("tokens", "input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "cost")
LIMITS = tuple(
    f"ratelimit_{kind}_{what}" for kind in ("remaining", "limit") for what in ("requests", "tokens")
)


@cache
def get_meter() -> Any:
    """The OpenTelemetry meter, or None when metrics are switched off or OpenTelemetry is not installed.

    Where the figures go is the application's choice: the meter is the global provider's.
    """
    if os.environ.get("FLATAGENTS_METRICS_ENABLED", "true").lower() in OFF:
        return None
    try:
        from opentelemetry import metrics
    except ImportError:
        log.warning("metrics need OpenTelemetry: pip install opentelemetry-sdk")
        return None
    return metrics.get_meter("flatagents")


@cache
def _instrument(kind: str, name: str) -> Any:
    meter = get_meter()
    return None if meter is None else getattr(meter, f"create_{kind}")(name)


def _record(kind: str, name: str, value: float, attributes: Mapping[str, Any]) -> None:
    instrument = _instrument(kind, name)
    if instrument is not None:
        write = {"histogram": "record", "counter": "add", "gauge": "set"}[kind]
        getattr(instrument, write)(value, dict(attributes))


class AgentMonitor:
    """Counts one run of an agent: time, tokens and cost that are put in `metrics`, and how it ended."""

    def __init__(self, agent_id: str, extra_attributes: Mapping[str, Any] | None = None) -> None:
        self.agent_id = agent_id
        self.extra_attributes = dict(extra_attributes or {})
        self.metrics: dict[str, Any] = {}
        self._began = 0.0

    def __enter__(self) -> AgentMonitor:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        took = (time.perf_counter() - self._began) * 1000
        status = "success" if kind is None else "error"
        attributes = {"agent_id": self.agent_id, "status": status, **self.extra_attributes}
        if kind is not None:
            attributes["error_type"] = kind.__name__
        _record("histogram", "flatagents.agent.duration", took, attributes)
        _record("counter", "flatagents.agent.executions", 1, attributes)
        for name in SPENT:
            if self.metrics.get(name):
                _record("counter", f"flatagents.agent.{name}", self.metrics[name], attributes)
        for name in LIMITS:
            if self.metrics.get(name) is not None:
                short = name.removeprefix("ratelimit_")
                _record("gauge", f"flatagents.ratelimit.{short}", self.metrics[name], attributes)
        log.info("Agent %s completed in %.0f ms - %s", self.agent_id, took, status)


@contextmanager
def track_operation(operation_name: str, **attributes: Any) -> Iterator[None]:
    """Measures how long what is inside takes, in milliseconds."""
    began, status = time.perf_counter(), "success"
    try:
        yield
    except BaseException:
        status = "error"
        raise
    finally:
        took = (time.perf_counter() - began) * 1000
        _record("histogram", f"flatagents.{operation_name}.duration", took, {"status": status, **attributes})
