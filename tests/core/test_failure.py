"""Which names in `on_error` a failure answers to, and in which order they are looked for."""

from __future__ import annotations

import pytest

from flat.core.failure import error_target, failure_of
from flat.errors import AgentFailed


class Refused(ConnectionError):
    pass


@pytest.mark.parametrize("name", ["Refused", "ConnectionError", "OSError", "Exception", "default"])
def test_a_failure_answers_to_its_class_and_those_above(name: str) -> None:
    assert error_target(failure_of(Refused("no")), {name: "there"}) == "there"


def test_the_nearest_name_wins() -> None:
    targets = {"default": "d", "Exception": "e", "OSError": "o"}
    assert error_target(failure_of(Refused("no")), targets) == "o"


@pytest.mark.parametrize(
    "name",
    ["SlowDown", "rate_limit", "RetryableError", "RuntimeError", "AgentFailed", "ExecutionError", "default"],
)
def test_a_failure_of_an_agent_answers_to_its_type_its_code_and_its_classes(name: str) -> None:
    failure = failure_of(AgentFailed("m", code="rate_limit", type="SlowDown", retryable=True))
    assert error_target(failure, {name: "there"}) == "there"


@pytest.mark.parametrize("name", ["RetryableError", "timeout", "ValueError"])
def test_it_does_not_answer_to_others(name: str) -> None:
    assert error_target(failure_of(AgentFailed("m", code="rate_limit")), {name: "there"}) is None
