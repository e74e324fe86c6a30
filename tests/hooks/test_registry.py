"""Hooks by name: what is there, what is refused, and how."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from flat import CompositeHooks, HooksRegistry, LoggingHooks, MachineHooks, MetricsHooks, WebhookHooks
from flat.errors import BindingError, DefinitionError
from flat.hooks import DistributedWorkerHooks


class Mine(MachineHooks):
    def __init__(self, a: int = 1) -> None:
        self.a = a


def test_each_resolve_makes_an_object() -> None:
    registry = HooksRegistry()
    registry.register("mine", Mine)
    first, second = registry.resolve("mine"), registry.resolve({"name": "mine", "args": {"a": 5}})
    assert first is not registry.resolve("mine")
    assert (first.a, second.a) == (1, 5)
    assert registry.resolve({"name": "mine"}).a == 1
    assert registry.resolve({"name": "mine", "args": None}).a == 1


def test_a_list_is_a_composite_in_order() -> None:
    registry = HooksRegistry({"mine": Mine})
    hooks = registry.resolve(["logging", {"name": "mine", "args": {"a": 2}}, ["metrics"]])
    assert isinstance(hooks, CompositeHooks)
    assert [type(one) for one in hooks.hooks] == [LoggingHooks, Mine, MetricsHooks]


def test_a_later_registration_replaces() -> None:
    registry = HooksRegistry({"logging": Mine})
    assert isinstance(registry.resolve("logging"), Mine)
    registry.register("logging", lambda: "another")
    assert registry.resolve("logging") == "another"


def test_the_built_in_ones_are_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    registry = HooksRegistry()
    assert all(registry.has(name) for name in ("logging", "metrics", "webhook", "distributed-worker"))
    assert not registry.has("nothing")
    assert isinstance(registry.resolve({"name": "logging", "args": {"log_level": 10}}), LoggingHooks)
    assert isinstance(registry.resolve("metrics"), MetricsHooks)
    assert isinstance(registry.resolve({"name": "webhook", "args": {"url": "http://x"}}), WebhookHooks)
    worker = registry.resolve({"name": "distributed-worker", "args": {"db_path": "w.sqlite"}})
    again = registry.resolve({"name": "distributed-worker", "args": {"db_path": str(tmp_path / "w.sqlite")}})
    assert isinstance(worker, DistributedWorkerHooks)
    assert worker.work is again.work
    assert os.listdir(tmp_path)


def test_an_unknown_name_lists_what_is_there_and_suggests() -> None:
    registry = HooksRegistry({"my-hooks": Mine})
    with pytest.raises(BindingError) as caught:
        registry.resolve("my-hoks")
    text = str(caught.value)
    assert 'did you mean "my-hooks"?' in text
    assert "registered are distributed-worker, logging, metrics, my-hooks, webhook" in text
    assert "HooksRegistry.register" in text


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        (5, "not int"), (None, "not NoneType"), ({}, "need a name"), ({"nme": "x"}, "nme"),
        ({"name": 5}, "need a name"), ({"name": "mine", "args": [1]}, "args"), ([5], "not int"),
        ({"name": "mine", "args": {"b": 1}}, "with the args b"),
        ({"name": "webhook", "args": {"endpoit": "secret"}}, "endpoit"),
    ],
)  # fmt: skip
def test_a_reference_that_cannot_be_is_explained(ref: Any, words: str) -> None:
    with pytest.raises(DefinitionError, match=words) as caught:
        HooksRegistry({"mine": Mine}).resolve(ref)
    assert "secret" not in str(caught.value)


def test_what_goes_wrong_inside_a_factory_comes_out_as_it_is() -> None:
    def factory() -> Any:
        return len(5)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        HooksRegistry({"mine": factory}).resolve("mine")


@pytest.mark.parametrize(("name", "factory"), [("", Mine), (5, Mine), ("x", Mine()), ("x", None)])
def test_a_bad_registration_is_refused(name: Any, factory: Any) -> None:
    with pytest.raises(DefinitionError):
        HooksRegistry().register(name, factory)
