"""The set-up of the log: formats, levels, and what is shown of whom."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flat import LoggingHooks, get_logger, setup_logging
from flat.errors import DefinitionError
from flat.hooks import log as module


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nobody has set up logging yet; and everything as it was afterwards."""
    monkeypatch.setattr(module, "_setup", {})
    monkeypatch.setattr(module, "_handed_out", set())
    names = ("flat", "flat.hooks", "mine", "mine.inner")
    before = {
        name: (list(one.handlers), one.level, one.propagate)
        for name in names
        for one in [logging.getLogger(name)]
    }
    for name in before:  # a test of the command line in this process may have set it up
        logging.getLogger(name).handlers[:] = []
    for name in list(os.environ):
        if name.startswith("FLATAGENTS_LOG"):
            monkeypatch.delenv(name)
    yield
    for handler in module._setup.get("handlers", ()):
        handler.close()
    for name, (handlers, level, propagate) in before.items():
        logger = logging.getLogger(name)
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


def test_the_standard_format_has_time_name_level_and_message(capsys: Any) -> None:
    setup_logging()
    get_logger("flat.x").info("hello %s", "you")
    line = capsys.readouterr().out
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d - flat\.x - INFO - hello you\n", line)


def test_the_simple_format_and_one_of_ones_own(capsys: Any) -> None:
    setup_logging(format="simple")
    logging.getLogger("flat").warning("careful")
    setup_logging(format="%(levelname)s|%(message)s", force=True)
    logging.getLogger("flat").warning("careful")
    assert capsys.readouterr().out == "WARNING - careful\nWARNING|careful\n"


def test_the_json_format_is_one_object_per_line(capsys: Any) -> None:
    setup_logging(format="json")
    logger = get_logger("flat.x")
    logger.info("hello", extra={"extra": {"n": 1, "path": Path("/x")}})
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it failed")
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", first.pop("time"))
    assert first == {"name": "flat.x", "level": "INFO", "message": "hello", "extra": {"n": 1, "path": "/x"}}
    assert "ValueError: broken" in second["exception"]


@pytest.mark.parametrize(
    ("level", "number"),
    [("DEBUG", 10), ("debug", 10), ("nonsense", 20), (35, 35), ("35", 35), (None, 20), ("error", 40)],
)
def test_levels_by_name_or_number_and_unknown_ones_are_info(level: Any, number: int) -> None:
    setup_logging(level)
    assert logging.getLogger("flat").level == number


def test_the_environment_says_what_the_call_leaves_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FLATAGENTS_LOG_LEVEL", "ERROR")
    monkeypatch.setenv("FLATAGENTS_LOG_FORMAT", "simple")
    setup_logging()
    logging.getLogger("flat").warning("not shown")
    logging.getLogger("flat").error("shown")
    assert capsys.readouterr().out == "ERROR - shown\n"


def test_a_second_call_changes_nothing_unless_forced(capsys: Any) -> None:
    setup_logging("INFO", "simple")
    setup_logging("DEBUG", "json")
    logging.getLogger("flat").debug("not shown")
    logging.getLogger("flat").info("plain")
    setup_logging("DEBUG", "simple", force=True)
    logging.getLogger("flat").debug("shown once")
    assert capsys.readouterr().out == "INFO - plain\nDEBUG - shown once\n"


def test_loggers_are_shown_whether_they_were_asked_for_before_or_after(capsys: Any) -> None:
    before = get_logger("mine")
    setup_logging(format="simple")
    get_logger("mine.inner").info("inner, once")
    before.info("before")
    assert get_logger("mine") is before
    assert capsys.readouterr().out == "INFO - inner, once\nINFO - before\n"


def test_nothing_is_set_up_by_asking_for_a_logger() -> None:
    assert get_logger("mine").handlers == []
    assert not logging.getLogger("flat").handlers


def test_a_folder_gets_the_same_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("FLATAGENTS_LOG_DIR", str(tmp_path / "logs"))
    setup_logging(format="simple")
    logging.getLogger("flat").info("kept")
    (file,) = (tmp_path / "logs").iterdir()
    assert re.fullmatch(rf"flatagents_{os.getpid()}_\d{{8}}_\d{{6}}\.log", file.name)
    assert file.read_text() == capsys.readouterr().out == "INFO - kept\n"


def test_a_format_that_is_none_is_explained() -> None:
    with pytest.raises(DefinitionError, match="standard, simple, json"):
        setup_logging(format="jsn")


def test_logging_hooks_log_each_event_but_errors(capsys: Any) -> None:
    setup_logging("DEBUG", "simple")
    hooks = LoggingHooks(log_level=logging.DEBUG)
    hooks.on_machine_start({})
    hooks.on_state_enter("a", {})
    assert hooks.on_action("a", "act", {"n": 1}) == {"n": 1}
    assert hooks.on_action("act", {"n": 1}) == {"n": 1}
    hooks.on_state_exit("a", {}, {})
    hooks.on_transition("a", "b", {})
    hooks.on_tool_calls("a", [{"name": "t"}, {"name": "u"}], {})
    hooks.on_tool_result("a", {"name": "t"}, {})
    hooks.on_machine_end({}, {"x": 1})
    assert hooks.on_error("a", ValueError("x"), {}) is None
    assert capsys.readouterr().out.splitlines() == [
        f"DEBUG - {text}"
        for text in (
            "Machine starting", "Entering state: a", "Action: act", "Action: act", "Leaving state: a",
            "Transition: a -> b", "Tool calls in state a: t, u", "Tool result in state a: t",
            "Machine ended with output: {'x': 1}",
        )
    ]  # fmt: skip
