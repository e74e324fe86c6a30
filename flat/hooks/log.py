"""Logging: hooks that log what happens, and the set-up of the library's loggers.

The library never configures logging by being imported. `setup_logging` puts one handler on the terminal for the
loggers that `get_logger` hands out, whatever their names, so that a script's own lines are seen too.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

from flat.errors import DefinitionError
from flat.hooks.base import Context, MachineHooks, observer

FORMATS = {
    "standard": "%(asctime)s - %(name)s - %(levelname)s - %(message)s",
    "simple": "%(levelname)s - %(message)s",
}
ROOT = "flat"
_setup: dict[str, Any] = {}


class JsonFormatter(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "name": record.name,
            "level": record.levelname,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if isinstance(extra := getattr(record, "extra", None), dict):
            line["extra"] = extra
        return json.dumps(line, default=str)


def setup_logging(level: str | int | None = None, format: str | None = None, force: bool = False) -> None:
    """Show the library's log, and that of every `get_logger` logger, on standard output.

    `level` and `format` (standard, simple, json, or a logging format) default to the environment's
    FLATAGENTS_LOG_LEVEL and FLATAGENTS_LOG_FORMAT; an unknown level is INFO. With FLATAGENTS_LOG_DIR the same lines
    go to a file in that folder as well. A second call changes nothing unless `force` is set.
    """
    if _setup and not force:
        return
    number = _level(os.environ.get("FLATAGENTS_LOG_LEVEL", "INFO") if level is None else level)
    formatter = _formatter(format or os.environ.get("FLATAGENTS_LOG_FORMAT") or "standard")
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if folder := os.environ.get("FLATAGENTS_LOG_DIR"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = f"flatagents_{os.getpid()}_{datetime.now():%Y%m%d_%H%M%S}.log"
        handlers.append(logging.FileHandler(Path(folder) / name, encoding="utf-8", delay=True))
    for handler in handlers:
        handler.setFormatter(formatter)
    loggers = {ROOT, *_setup.get("loggers", ()), *_handed_out}
    ours = _setup.get("handlers", [])
    _setup.update(level=number, handlers=handlers, loggers=loggers)
    for name in loggers:
        logger = logging.getLogger(name)
        for old in ours:
            logger.removeHandler(old)
        _attach(logger)
    for old in ours:
        old.close()


def _level(level: str | int) -> int:
    if isinstance(level, int):
        return level
    name = level.strip().upper()
    return int(name) if name.isdecimal() else logging.getLevelNamesMapping().get(name, logging.INFO)


def _formatter(name: str) -> logging.Formatter:
    if name == "json":
        return JsonFormatter()
    try:
        return logging.Formatter(FORMATS.get(name, name), "%Y-%m-%d %H:%M:%S")
    except ValueError as error:
        raise DefinitionError(
            f"the log format {name!r} is none: write {', '.join(FORMATS)}, json, "
            f'or a format such as "%(levelname)s %(message)s"'
        ) from error


def get_logger(name: str) -> logging.Logger:
    """A logger that `setup_logging` shows, whether that was called before or is called later."""
    logger = logging.getLogger(name)
    _handed_out.add(name)
    if _setup and name not in _setup["loggers"]:
        _setup["loggers"].add(name)
        _attach(logger)
    return logger


_handed_out: set[str] = set()


def _attach(logger: logging.Logger) -> None:
    """Give a logger our handlers, unless one above it has them already."""
    if any(logger.name.startswith(other + ".") for other in _setup["loggers"]):
        return
    for handler in _setup["handlers"]:
        logger.addHandler(handler)
    logger.setLevel(_setup["level"])
    logger.propagate = False


class LoggingHooks(MachineHooks):
    """Logs every event. Subclass it and define `on_action` to have both."""

    def __init__(self, log_level: int = logging.INFO) -> None:
        self.log_level = log_level
        self.logger = get_logger("flat.hooks")

    def _log(self, message: str, *args: Any) -> None:
        self.logger.log(self.log_level, message, *args)

    @observer
    def on_machine_start(self, context: Context) -> Any:
        self._log("Machine starting")

    @observer
    def on_machine_end(self, context: Context, final_output: Any) -> Any:
        self._log("Machine ended with output: %s", final_output)

    @observer
    def on_state_enter(self, state_name: str, context: Context) -> Any:
        self._log("Entering state: %s", state_name)

    @observer
    def on_state_exit(self, state_name: str, context: Context, output: Any) -> Any:
        self._log("Leaving state: %s", state_name)

    @observer
    def on_transition(self, from_state: str, to_state: str, context: Context) -> Any:
        self._log("Transition: %s -> %s", from_state, to_state)

    def on_action(self, *args: Any) -> Any:
        """Log the action and leave the context as it is."""
        *_, action_name, context = args
        self._log("Action: %s", action_name)
        return context

    def on_tool_calls(self, state_name: str, tool_calls: list[Any], context: Context) -> Any:
        names = ", ".join(
            str(call.get("name", call)) if isinstance(call, dict) else str(call) for call in tool_calls
        )
        self._log("Tool calls in state %s: %s", state_name, names)

    def on_tool_result(self, state_name: str, tool_result: dict[str, Any], context: Context) -> Any:
        self._log("Tool result in state %s: %s", state_name, tool_result.get("name", tool_result))
